"""The command line of the control plane. Commands live in modules of their own."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="noj-server",
    help="The control plane of NOJ dispatch: serve it, look at it, try it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they could show secrets
)

from noj_server.cli import demo, keys, serve, status, submit  # noqa: E402, F401  # add commands
