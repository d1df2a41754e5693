"""`noj-server create-key`: keys for backends and operators."""

from __future__ import annotations

from typing import Annotated

import typer

from noj_server.cli import app
from noj_server.cli.connection import DEFAULT_URL, KeyFile, Url, connected
from noj_shared.wire import ApiKeyRole


@app.command("create-key")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    role: Annotated[ApiKeyRole, typer.Option(help="What it may do.")] = ApiKeyRole.BACKEND,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Make an API key and print it, this once, to stdout."""
    with connected(url, key_file) as client:
        typer.echo(client.create_key(name, role).key)
