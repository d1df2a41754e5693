"""`noj-server submit` and `rejudge`: try things by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from noj_server.cli import app
from noj_server.cli.connection import DEFAULT_URL, KeyFile, Url, connected
from noj_server.cli.tables import submission_table
from noj_server.client import Client
from noj_shared.language import JUDGED, language_of_source

Wait = Annotated[bool, typer.Option("--wait", help="Wait for the result and show it.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Source or zip.")],
    problem: Annotated[str, typer.Option(help="Problem id.")],
    language: Annotated[
        int | None,
        typer.Option(help="0 C11, 1 C++17, 2 Python 3; else by the suffix.", show_default=False),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose it is.", show_default=False)] = None,
    priority: Annotated[int, typer.Option(help="Higher is judged first.")] = 0,
    wait: Wait = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Hand in a file by hand. Prints the submission id."""
    spoken = language if language is not None else language_of_source(file.name)
    if spoken is None:
        known = ", ".join(f"{int(item)} {item.title}" for item in JUDGED)
        raise typer.BadParameter(f"the suffix of {file.name} is no language; --language: {known}")
    with connected(url, key_file) as client:
        created = client.submit(
            problem_id=problem,
            language=spoken,
            code=file.read_bytes(),
            user=user,
            priority=priority,
        )
        _finish(client, created.submission_id, created.job_id, wait)


@app.command()
def rejudge(
    submission: Annotated[str, typer.Argument(help="Submission id.")],
    wait: Wait = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Judge a submission again, on the problem's newest test data."""
    with connected(url, key_file) as client:
        created = client.rejudge(submission)
        _finish(client, submission, created.job_id, wait)


def _finish(client: Client, submission_id: str, job_id: str, wait: bool) -> None:
    typer.echo(submission_id)
    if wait:
        Console().print(submission_table(client.wait(submission_id, job_id=job_id)))
