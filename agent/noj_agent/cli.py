"""The command line of a judge machine.

Exit status of `start`: 0 stopped, 1 a thread died, 2 a setting is wrong, 3 the sandbox does not
work here, 4 the server refuses the registration token, 5 third stop signal.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from noj_agent.api import Identity, ServerApi
from noj_agent.errors import AgentError, ConfigError, SandboxError
from noj_agent.judge import SlotPool, judge_job, self_test
from noj_agent.logs import set_up_logging
from noj_agent.retry import Outage
from noj_agent.sandbox import open_engine, reserve_slots
from noj_agent.session import Session
from noj_agent.settings import AgentSettings, load_settings
from noj_agent.state import StateDir, locked, open_state, read_json, running_pid
from noj_agent.worker import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_SANDBOX, Agent

log = logging.getLogger(__name__)

app = typer.Typer(
    name="noj-agent",
    help="Judges submissions on this machine for a noj-server.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they could show secrets
)

STALE_S = 60
Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file. [NOJ_AGENT_CONFIG]", show_default=False),
]
ServerUrl = Annotated[str | None, typer.Option(help="Where noj-server is. [NOJ_AGENT_SERVER_URL]")]
StateDirOption = Annotated[
    Path | None, typer.Option(help="Identity, outbox, cache. [NOJ_AGENT_STATE_DIR]")
]
Slots = Annotated[int | None, typer.Option(help="Programs at once. [NOJ_AGENT_SLOTS]")]
Name = Annotated[str | None, typer.Option(help="Shown to operators. [NOJ_AGENT_NAME]")]
Weak = Annotated[
    bool | None,
    typer.Option(
        "--allow-weak-limits",
        help="Judge without cgroups; hostile code can dodge the limits.",
        show_default=False,
    ),
]


@contextmanager
def _explained(console: Console) -> Iterator[None]:
    """Our errors as one message and the documented exit status."""
    try:
        yield
    except ConfigError as error:
        console.print(Text(str(error), style="red"), soft_wrap=True)
        raise typer.Exit(EXIT_CONFIG) from error
    except SandboxError as error:
        console.print(Text(f"The sandbox does not work here: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(EXIT_SANDBOX) from error


@app.command()
def start(
    config: Config = None,
    server_url: ServerUrl = None,
    state_dir: StateDirOption = None,
    name: Name = None,
    slots: Slots = None,
    allow_weak_limits: Weak = None,
) -> None:
    """Register, pull jobs and judge them until SIGTERM or Ctrl-C.

    The first signal drains (running jobs are finished), the second cancels and hands back, the
    third exits at once. The registration token comes from NOJ_AGENT_REGISTRATION_TOKEN_FILE or
    NOJ_AGENT_REGISTRATION_TOKEN, never from a flag.
    """
    with _explained(Console(stderr=True)):
        flags = {
            "server_url": server_url,
            "state_dir": state_dir,
            "name": name,
            "slots": slots,
            "allow_weak_limits": allow_weak_limits,
        }
        settings = load_settings(config, flags)
        settings.read_registration_token()
        set_up_logging(settings.log_format, settings.log_level)
        signal.signal(signal.SIGHUP, partial(_reload, config, flags))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop_early)
        status = _run(settings)
    raise typer.Exit(status)


def _stop_early(_number: int, _frame: FrameType | None) -> None:
    """Until the agent runs and has its own handlers: unwind, so that no sandbox stays behind."""
    log.info("told to stop while starting")
    raise SystemExit(EXIT_OK)


def _reload(
    config: Path | None, flags: dict[str, Any], _number: int, _frame: FrameType | None
) -> None:
    """SIGHUP: the log level; the rest of the settings needs a restart."""
    try:
        settings = load_settings(config, flags)
    except ConfigError as error:
        log.error("settings not reloaded: %s", error)
        return
    set_up_logging(settings.log_format, settings.log_level)
    log.info("log level is %s now; other settings need a restart", settings.log_level)


def _run(settings: AgentSettings) -> int:
    state = open_state(settings.state_dir)
    with ExitStack() as stack:
        stack.enter_context(locked(state))
        slots = stack.enter_context(reserve_slots(settings.slots, first_uid=settings.first_uid))
        engine = open_engine(state_dir=state.root, allow_weak_limits=settings.allow_weak_limits)
        swept = engine.sweep_leftovers(slots)
        if swept:
            log.warning("removed %d leftover(s) of an agent that was killed", swept)
        languages = self_test(engine, slots[0])
        facts = {
            **engine.describe(),
            "languages": ", ".join(f"{info.language}: {info.version}" for info in languages),
        }
        log.info("sandbox: %s", facts)
        api, heartbeat_api = ServerApi(settings.server_url), ServerApi(settings.server_url)
        stack.callback(api.close)
        stack.callback(heartbeat_api.close)
        pool = SlotPool(slots)
        agent = Agent(
            settings,
            state,
            session=Session(settings, state, api, Outage(), languages),
            api=api,
            heartbeat_api=heartbeat_api,
            slots=pool,
            judge=partial(judge_job, slots=pool, engine=engine),
            self_test=lambda: self_test(engine, slots[0]),
            facts=facts,
        )
        return agent.run()


@app.command()
def status(
    state_dir: Annotated[
        Path, typer.Option(envvar="NOJ_AGENT_STATE_DIR", help="The agent's state directory.")
    ] = Path("/var/lib/noj-agent"),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What the agent of this machine is doing, also while the server is down.

    Exit status: 0 running and in contact, 1 not running, sick or without contact for a minute,
    2 not allowed to look.
    """
    console = Console()
    with _explained(Console(stderr=True)):
        data = _read_status(StateDir(state_dir))
    if data is None:
        console.print(Text(f"No agent has ever run with {state_dir}."), soft_wrap=True)
        raise typer.Exit(EXIT_FAILED)
    fault = _fault(data)
    if as_json:
        typer.echo(json.dumps({**data, "needs_person": fault}, indent=2))
    else:
        console.print(_status_table(data))
        console.print(_jobs_table(data))
        console.print(Text(f"! {fault}", style="bold red") if fault else Text("All is well."))
    raise typer.Exit(EXIT_FAILED if fault else EXIT_OK)


def _read_status(state: StateDir) -> dict[str, Any] | None:
    """What the agent wrote last, and what is on the disk now; None if it never ran."""
    try:
        data = read_json(state.status)
        if not isinstance(data, dict):
            return None
        outbox = sorted(path.stem for path in state.outbox.glob("jb_*.json"))
        return {**data, "running": running_pid(state) is not None, "outbox": outbox}
    except PermissionError as error:
        raise ConfigError(f"{error}: run this as the agent's user, usually root") from error


def _age_s(iso: str | None) -> float | None:
    return (
        None if iso is None else (datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds()
    )


def _fault(data: dict[str, Any]) -> str | None:
    """What needs a person, in a sentence; None if nothing does."""
    if not data["running"]:
        waiting = len(data["outbox"])
        tail = f"; {waiting} report(s) wait for its next start" if waiting else ""
        return f"the agent is not running{tail}. Start it: noj-agent start"
    if data["state"] == "sick":
        return f"sick: {data['idle_reason']}"
    age_s = _age_s(data["last_contact_at"])
    if age_s is None or age_s > STALE_S:
        return f"no contact with {data['server_url']}: is noj-server running and reachable?"
    return None


def _status_table(data: dict[str, Any]) -> Table:
    age_s = _age_s(data["last_contact_at"])
    contact = "never" if age_s is None else f"{age_s:.0f} s ago"
    if data["outage_s"]:
        contact += " (not answering now; trying again every 15 s at most)"
    state = data["state"] if data["running"] else "not running"
    rows = {
        "Agent": f"{data['name']} ({state}, pid {data['pid']})",
        "Runner": data["runner_id"] or "not registered",
        "Server": data["server_url"],
        "Last contact": contact,
        "Slots": f"{data['slots'] - data['free_slots']} of {data['slots']} busy",
        "Idle because": data["idle_reason"] or "–",
        "Outbox": f"{len(data['outbox'])} report(s) waiting" if data["outbox"] else "empty",
        **{key.capitalize(): value for key, value in data["facts"].items()},
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, str(value))
    return table


def _jobs_table(data: dict[str, Any]) -> Table | Text:
    if not data["jobs"] or not data["running"]:
        return Text("No job in hand.", style="dim")
    table = Table("Job", "Submission", "Phase", "Cases", "For", box=None, padding=(0, 2, 0, 0))
    for job in data["jobs"]:
        cases = f"{job['done']}/{job['total']}" if job["total"] else "–"
        age = f"{_age_s(job['since']) or 0:.0f} s"
        table.add_row(job["job_id"], job["submission_id"], job["phase"], cases, age)
    return table


@app.command()
def check(config: Config = None, allow_weak_limits: Weak = None) -> None:
    """Try everything an exam needs: settings, server, sandbox, compilers. Judges nothing.

    Exit status: 0 all good, else the first failure's: 1 server, 2 settings, 3 sandbox.
    """
    console = Console()
    with _explained(console):
        settings = load_settings(config, {"allow_weak_limits": allow_weak_limits})
        settings.read_registration_token()
        console.print("[green]✓[/] settings")
        state = open_state(settings.state_dir)
        with reserve_slots(1, first_uid=settings.first_uid) as slots:
            engine = open_engine(state_dir=state.root, allow_weak_limits=settings.allow_weak_limits)
            languages = self_test(engine, slots[0])
        facts = ", ".join(engine.describe().values())
        console.print(f"[green]✓[/] sandbox: {facts}", soft_wrap=True)
        for info in languages:
            console.print(f"[green]✓[/] language {info.language}: {info.version}")
        api = ServerApi(settings.server_url)
        try:
            api.healthz()
        except AgentError as error:
            console.print(Text(f"✗ {settings.server_url} does not answer: {error}", style="red"))
            raise typer.Exit(EXIT_FAILED) from error
        finally:
            api.close()
        console.print(f"[green]✓[/] server: {settings.server_url}")


@app.command()
def unregister(config: Config = None) -> None:
    """Have the server forget this machine; the agent must not be running.

    Jobs it still held go to other runners when their leases end.
    """
    console = Console()
    with _explained(console):
        settings = load_settings(config, {})
        state = open_state(settings.state_dir)
        with locked(state):
            stored = read_json(state.identity)
            if not isinstance(stored, dict):
                console.print("This machine is not registered.")
                return
            api = ServerApi(settings.server_url)
            try:
                api.sign_off(Identity(stored["runner_id"], stored["token"]))
            except AgentError as error:
                console.print(Text(f"The server did not take it: {error}", style="red"))
                raise typer.Exit(EXIT_FAILED) from error
            finally:
                api.close()
            state.identity.unlink()
            console.print(f"Runner {stored['runner_id']} is forgotten.")
