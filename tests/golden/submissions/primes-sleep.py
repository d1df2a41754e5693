import time

if int(input()) > 1000:
    time.sleep(60)
print("this task is a wrong answer, the other one never wakes up")
