"""`python -m noj_server`: the same as `noj-server`."""

from noj_server.cli import app

app(prog_name="noj-server")
