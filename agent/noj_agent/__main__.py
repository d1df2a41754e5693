"""`python -m noj_agent`: the same as `noj-agent`."""

from noj_agent.cli import app

app(prog_name="noj-agent")
