"""`noj-server status`: what an operator looks at."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from noj_server.cli import app
from noj_server.cli.connection import (
    DEFAULT_URL,
    EXIT_NEEDS_PERSON,
    KeyFile,
    Url,
    connected,
)
from noj_server.cli.tables import plain, seconds, status_screen
from noj_server.client import Client, ServerUnreachableError
from noj_shared.verdict import Verdict
from noj_shared.wire import QueueReply, RunnerState, RunnerView

WATCH_INTERVAL_S = 1.0
RECENT_JE = timedelta(minutes=15)
_WORKING = (RunnerState.ONLINE, RunnerState.BUSY)


@app.command()
def status(
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Runners, queue, leases, last landed.

    Exit status: 0 fine, 1 something needs a person (it says what), 2 usage, 3 no answer.
    """
    with connected(url, key_file) as client:
        if watch:
            _watch(client)
            return
        runners, queue = client.runners(), client.queue()
        faults = needs_person(runners, queue, not_ready(client))
        if as_json:
            data = {
                "runners": [runner.model_dump(mode="json") for runner in runners],
                "queue": queue.model_dump(mode="json"),
                "needs_person": faults,
            }
            typer.echo(json.dumps(data, indent=2))
        else:
            console = Console()
            console.print(status_screen(runners, queue, faults, console.width))
    if faults:
        raise typer.Exit(EXIT_NEEDS_PERSON)


def not_ready(client: Client) -> list[str]:
    """What `/readyz` finds wrong."""
    return [f"{check.name}: {check.detail}" for check in client.ready().checks if not check.ok]


def needs_person(
    runners: Sequence[RunnerView], queue: QueueReply, broken: Sequence[str] = ()
) -> list[str]:
    """What will not mend itself, as sentences; pure but for the time of day."""
    faults = list(broken)
    if queue.pending and not any(runner.state in _WORKING for runner in runners):
        wait = max(line.oldest_wait_s for line in queue.pending)
        faults.append(
            f"{queue.depth} jobs wait (the oldest {seconds(wait)}) and no runner is online:"
            " start noj-agent on a judge machine"
        )
    faults += [
        f"runner {runner.name} is sick: {runner.reason or 'no reason given'}"
        for runner in runners
        if runner.state is RunnerState.SICK
    ]
    faults += [
        f"runner {runner.name} is lost (silent for {seconds(runner.last_seen_s)}) and still holds"
        f" {len(runner.jobs)} job(s); they are reclaimed when their leases end"
        for runner in runners
        if runner.state is RunnerState.LOST and runner.jobs
    ]
    since = datetime.now(UTC) - RECENT_JE
    faults += [
        f"submission {entry.submission_id} landed as Judge Error; see its history, then"
        f" `noj-server rejudge {entry.submission_id}`"
        for entry in queue.landed
        if entry.status is Verdict.JE and entry.landed_at > since
    ]
    return faults


def _watch(client: Client) -> None:
    console = Console()
    pause = threading.Event()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while not pause.is_set():
            try:
                runners, queue = client.runners(), client.queue()
                faults = needs_person(runners, queue, not_ready(client))
                screen = status_screen(runners, queue, faults, console.width)
            except ServerUnreachableError as error:
                screen = plain(f"{datetime.now(UTC):%H:%M:%S} {error}", "bold red")
            live.update(screen, refresh=True)
            try:
                pause.wait(WATCH_INTERVAL_S)
            except KeyboardInterrupt:
                return
