raise ValueError("a traceback on stderr, exit code 1")
