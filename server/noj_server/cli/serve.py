"""`noj-server serve`."""

from __future__ import annotations

import logging.config
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from noj_server.cli import app
from noj_server.cli.tables import plain
from noj_server.logs import log_config
from noj_server.settings import ServerSettings, missing_secrets
from noj_server.wsgi import serve as serve_forever

EXIT_CONFIG = 2


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="redis://…; unset: embedded.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Test data, code, results.")] = None,
    lease_ttl_s: Annotated[float | None, typer.Option(help="How long a lease lasts.")] = None,
    heartbeat_interval_s: Annotated[float | None, typer.Option(help="Asked of runners.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries before Judge Error.")] = None,
    retention_s: Annotated[int | None, typer.Option(help="Of landed submissions.")] = None,
) -> None:
    """Run the control plane until SIGTERM or Ctrl-C.

    Every option is also an environment variable, NOJ_SERVER_PORT and so on. Secrets come from the
    environment alone: NOJ_SERVER_REGISTRATION_TOKEN, NOJ_SERVER_ADMIN_KEY, NOJ_SERVER_SECRET_KEY.
    Exit status: 0 stopped, 2 a setting is missing or wrong.
    """
    console = Console(stderr=True)
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "redis_url": redis_url,
        "data_dir": data_dir,
        "lease_ttl_s": lease_ttl_s,
        "heartbeat_interval_s": heartbeat_interval_s,
        "max_attempts": max_attempts,
        "retention_s": retention_s,
    }
    try:
        settings = ServerSettings(**{k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            name = "_".join(map(str, item["loc"])).upper()
            message = item["msg"].removeprefix("Value error, ")
            console.print(plain(f"NOJ_SERVER_{name}: {message}", "red"), soft_wrap=True)
        raise typer.Exit(EXIT_CONFIG) from error
    faults = missing_secrets(settings)
    for fault in faults:
        console.print(f"[red]{fault}[/]", highlight=False, soft_wrap=True)
    if faults:
        raise typer.Exit(EXIT_CONFIG)
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        console.print(f"[red]NOJ_SERVER_DATA_DIR: cannot make {settings.data_dir}: {error}[/]")
        raise typer.Exit(EXIT_CONFIG) from error
    logging.config.dictConfig(log_config(settings.log_format))
    if settings.registration_token is None:
        logging.getLogger(__name__).warning(
            "NOJ_SERVER_REGISTRATION_TOKEN is not set: no agent can register"
        )
    serve_forever(settings)
