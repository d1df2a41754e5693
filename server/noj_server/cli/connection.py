"""How a command finds the server: its URL, and a key that never stands in argv."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from noj_server.cli.tables import plain
from noj_server.client import Client, ClientError, ServerUnreachableError

EXIT_NEEDS_PERSON = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

Url = Annotated[
    str,
    typer.Option(envvar="NOJ_SERVER_URL", help="Where the server is."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="NOJ_SERVER_API_KEY_FILE",
        help="File with the API key; or set NOJ_SERVER_API_KEY.",
        show_default=False,
    ),
]
DEFAULT_URL = "http://127.0.0.1:8000"


def read_key(key_file: Path | None) -> str:
    """The API key from the file, else from the environment; exit 2 with what to do."""
    if key_file is not None:
        try:
            key = key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot read {key_file}: {error}") from error
    else:
        key = os.environ.get("NOJ_SERVER_API_KEY", "")
    if not key:
        raise typer.BadParameter("no API key: set NOJ_SERVER_API_KEY or give --key-file")
    if not (key.isascii() and key.isprintable()):
        raise typer.BadParameter(
            "the API key has characters that no key has; is it the right file?"
        )
    return key


@contextmanager
def connected(url: str, key_file: Path | None) -> Iterator[Client]:
    """A client for the length of a command; its errors become a line and an exit status."""
    console = Console(stderr=True)
    try:
        with Client(url, read_key(key_file)) as client:
            yield client
    except ServerUnreachableError as error:
        console.print(plain(str(error), "red"))
        raise typer.Exit(EXIT_UNREACHABLE) from error
    except ClientError as error:
        console.print(plain(str(error), "red"))
        raise typer.Exit(EXIT_NEEDS_PERSON) from error
