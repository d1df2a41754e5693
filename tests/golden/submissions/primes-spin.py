while int(input()) > 0:
    while True:
        pass
