"""`noj-server demo`: the whole path on one machine, with real processes, in about half a minute.

Starts a server and two agents on loopback, uploads two problems, submits the golden
submissions, kills one agent with -9 while it judges, shows its jobs being judged by the
other one, rejudges a submission, and exits 0 only if every verdict and score is the expected
one. Knows the agent as a program to start, never as a package to import.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from noj_server.cli import app
from noj_server.cli.tables import plain
from noj_server.client import Client, ClientError
from noj_shared.language import language_of_source
from noj_shared.verdict import Verdict
from noj_shared.wire import RunnerState, SubmissionState, SubmissionView

LEASE_TTL_S = 4
HEARTBEAT_INTERVAL_S = 1
DEADLINE_S = 240
REFRESH_S = 0.2
KILL_AFTER_LANDED = 3
VICTIM, SURVIVOR = "judge-1", "judge-2"
REJUDGED = "sum-ac.c"
EVENTS_SHOWN = 6
WIDE_COLUMNS = 100


class DemoError(Exception):
    """The demo could not run to its end; the message says why and where to look."""


@dataclass(frozen=True)
class Golden:
    """One golden submission and what it must end with."""

    source: str
    problem: str
    verdict: Verdict
    score: int
    detail: str


@dataclass
class Row:
    """A golden submission on its way."""

    golden: Golden
    submission_id: str
    view: SubmissionView | None = None

    @property
    def landed(self) -> bool:
        """Whether its current judging has landed."""
        return self.view is not None and self.view.state is SubmissionState.DONE

    @property
    def as_expected(self) -> bool:
        """Whether it landed with the expected verdict and score."""
        return (
            self.landed
            and self.view is not None
            and (self.view.status, self.view.score) == (self.golden.verdict, self.golden.score)
        )


@dataclass
class Stage:
    """What is on the screen: the rows, and what has happened so far."""

    rows: list[Row] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Add an event with the seconds since the start."""
        self.events.append(f"[dim]{time.monotonic() - self.started_at:5.1f} s[/]  {text}")

    @property
    def landed(self) -> int:
        """How many submissions have landed."""
        return sum(row.landed for row in self.rows)


@dataclass
class Child:
    """A program the demo started, with its log file."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the demo alone."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, signum: int) -> None:
        """Send it a signal."""
        if self.process is not None:
            self.process.send_signal(signum)

    def kill9(self) -> None:
        """SIGKILL, as a power cut would."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def check_alive(self) -> None:
        """Raise DemoError with the end of the log if it has stopped by itself."""
        if self.process is not None and self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise DemoError(
                f"{self.name} stopped with exit status {self.process.returncode}; its last words:"
                f"\n{tail}"
            )

    def stop(self) -> None:
        """SIGTERM, wait, SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill9()


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")
    ] = False,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Use this Redis instead of the embedded one.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Save a picture of the final table.", show_default=False)
    ] = None,
) -> None:
    """Run the whole path on this machine: server, two agents, 18 submissions, one kill -9.

    Exit status: 0 every verdict as expected, 1 not, 2 something is missing here, 130 Ctrl-C.
    """
    console = Console(record=svg is not None)
    try:
        with _ended_as_interrupted():
            right = _run(console, keep=keep, redis_url=redis_url)
    except (DemoError, ClientError) as error:
        console.print(plain(f"The demo failed: {error}", "red"))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print("Stopped; everything the demo started is gone.")
        raise typer.Exit(130) from error
    if svg is not None:
        console.save_svg(str(svg), title="noj-server demo")
    raise typer.Exit(0 if right else 1)


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the stack as Ctrl-C does: nothing is left behind."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _run(console: Console, *, keep: bool, redis_url: str | None) -> bool:
    """The demo from start to end; whether every verdict was the expected one."""
    agent_program = _find_agent(console)
    console.print(
        "A server and two agents on loopback"
        + (", with an embedded Redis" if redis_url is None else f", with the Redis at {redis_url}")
        + f". Leases last {LEASE_TTL_S} s here, so that a dead agent shows quickly"
        " (30 s in real life)."
    )
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="noj-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        server, client = _start_server(stack, directory, redis_url)
        key_file = directory / "api.key"
        key_file.touch(mode=0o600)
        key_file.write_text(server.env["NOJ_SERVER_ADMIN_KEY"])
        if not console.record:  # paths of this machine do not belong in a picture
            console.print(
                "To watch as an operator does, in a second terminal:\n"
                f"  {_program()} status --watch --url {_url(server)} --key-file {key_file}\n",
                soft_wrap=True,
                highlight=False,
            )
        agents = {
            name: _start_agent(stack, directory, server, agent_program, name)
            for name in (VICTIM, SURVIVOR)
        }
        children = [server, *agents.values()]
        stage = Stage()
        _upload(client, stage)
        _wait_for_runners(client, children)
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            show = _Screen(live, console, stage)
            _play(client, stage, agents, children, show)
            show()
        console.print()
        right = all(row.as_expected for row in stage.rows)
        _verdict_line(console, stage, right)
        if keep:
            _keep(console, server, client, children)
    return right


def _find_agent(console: Console) -> str:
    """The `noj-agent` beside this program or on PATH; exit 2 with what to do when missing."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("noj-agent", path=path)
    if program is None:
        console.print("[red]noj-agent is not installed here.[/] Install it: pip install ./agent")
        raise typer.Exit(2)
    for tool in ("bwrap", "gcc", "g++"):
        if shutil.which(tool) is None:
            console.print(
                f"[red]{tool} is missing.[/] Install it: apt-get install bubblewrap gcc g++"
            )
            raise typer.Exit(2)
    return program


def _start_server(stack: ExitStack, directory: Path, redis_url: str | None) -> tuple[Child, Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        "NOJ_SERVER_HOST": "127.0.0.1",
        "NOJ_SERVER_PORT": str(port),
        "NOJ_SERVER_DATA_DIR": str(directory / "data"),
        "NOJ_SERVER_LEASE_TTL_S": str(LEASE_TTL_S),
        "NOJ_SERVER_HEARTBEAT_INTERVAL_S": str(HEARTBEAT_INTERVAL_S),
        "NOJ_SERVER_ADMIN_KEY": f"ak_{secrets.token_urlsafe(32)}",
        "NOJ_SERVER_REGISTRATION_TOKEN": secrets.token_urlsafe(24),
        "NOJ_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        **({} if redis_url is None else {"NOJ_SERVER_REDIS_URL": redis_url}),
    }
    argv = [sys.executable, "-m", "noj_server", "serve"]
    server = Child("noj-server", argv, env, directory / "server.log")
    server.start()
    stack.callback(server.stop)
    url = f"http://127.0.0.1:{port}"
    client = stack.enter_context(Client(url, env["NOJ_SERVER_ADMIN_KEY"]))
    _until(lambda: _ready(url), [server], what="the server to be ready")
    return server, client


def _start_agent(
    stack: ExitStack, directory: Path, server: Child, program: str, name: str
) -> Child:
    env = {
        "NOJ_AGENT_SERVER_URL": _url(server),
        "NOJ_AGENT_REGISTRATION_TOKEN": server.env["NOJ_SERVER_REGISTRATION_TOKEN"],
        "NOJ_AGENT_STATE_DIR": str(directory / name),
        "NOJ_AGENT_NAME": name,
        "NOJ_AGENT_SLOTS": "1",
    }
    agent = Child(name, [program, "start"], env, directory / f"{name}.log")
    agent.start()
    stack.callback(_retire, agent)
    return agent


def _retire(agent: Child) -> None:
    """Stop an agent; one that lies killed is started once more, to clear away its sandboxes."""
    if agent.process is not None and agent.process.poll() == -signal.SIGKILL:
        agent.start()
        pid = agent.process.pid
        status = Path(agent.env["NOJ_AGENT_STATE_DIR"]) / "agent.json"
        with suppress(DemoError):
            _until(
                lambda: bool(json.loads(status.read_text())["pid"] == pid),
                [agent],
                what=f"{agent.name} to clear up",
                timeout_s=10,
            )
    agent.stop()


def _url(server: Child) -> str:
    return f"http://127.0.0.1:{server.env['NOJ_SERVER_PORT']}"


def _ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    return False


def _until(
    condition: Callable[[], bool], children: list[Child], *, what: str, timeout_s: float = 60
) -> None:
    """Wait until the condition holds; DemoError when a child dies or time is up."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not condition():
        for child in children:
            child.check_alive()
        if time.monotonic() > deadline:
            raise DemoError(f"waited {timeout_s:.0f} s in vain for {what}")
        pause.wait(REFRESH_S)


def _golden_root() -> Traversable:
    return resources.files("noj_server") / "golden"


def _golden() -> list[Golden]:
    """The golden submissions of the package, in the order of their table."""
    table = tomllib.loads((_golden_root() / "golden.toml").read_text())
    return [
        Golden(
            source=item["source"],
            problem=item["problem"],
            verdict=Verdict[item["verdict"]],
            score=item["score"],
            detail=item["detail"],
        )
        for item in table["submission"]
    ]


def _problem_zip(problem: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((_golden_root() / "problems" / problem).iterdir(), key=str):
            archive.writestr(file.name, file.read_bytes())
    return buffer.getvalue()


def _upload(client: Client, stage: Stage) -> None:
    """Two problems, then all golden submissions."""
    golden = _golden()
    for problem in dict.fromkeys(item.problem for item in golden):
        client.put_problem(problem, _problem_zip(problem))
    for item in golden:
        language = language_of_source(item.source)
        if language is None:
            raise DemoError(f"{item.source} has no suffix of a known language")
        created = client.submit(
            problem_id=item.problem,
            language=language,
            code=(_golden_root() / "submissions" / item.source).read_bytes(),
            user="demo",
        )
        stage.rows.append(Row(item, created.submission_id))
    stage.say(f"{len(golden)} submissions for {len({g.problem for g in golden})} problems enqueued")


def _wait_for_runners(client: Client, children: list[Child]) -> None:
    _until(
        lambda: (
            {r.name for r in client.runners() if r.state is not RunnerState.LOST}
            >= {VICTIM, SURVIVOR}
        ),
        children,
        what="both agents to register",
    )


class _Screen:
    """Draws the stage; called whenever something may have changed."""

    def __init__(self, live: Live, console: Console, stage: Stage) -> None:
        self._live = live
        self._console = console
        self._stage = stage

    def __call__(self) -> None:
        self._live.update(render(self._stage, self._console.width))


def _play(
    client: Client,
    stage: Stage,
    agents: dict[str, Child],
    children: list[Child],
    show: Callable[[], None],
) -> None:
    """Follow the submissions to their end, with a kill -9 and a rejudge on the way."""
    alive = list(children)

    def look() -> None:
        for row in stage.rows:
            if not row.landed:
                row.view = client.status(row.submission_id)
        show()

    def follow(condition: Callable[[], bool], what: str) -> None:
        def looked() -> bool:
            look()
            return condition()

        _until(looked, alive, what=what, timeout_s=DEADLINE_S)

    follow(lambda: stage.landed >= KILL_AFTER_LANDED, "the first submissions to land")
    victim = agents[VICTIM]
    alive.remove(victim)
    orphans: list[str] = []
    follow(lambda: _kill_while_it_judges(client, victim, orphans), "a job to kill")
    killed_at = time.monotonic()
    names = ", ".join(row.golden.source for row in stage.rows if row.submission_id in orphans)
    stage.say(f"[red]{VICTIM} killed with -9[/] while it judged [bold]{names}[/]")

    def reclaimed() -> bool:
        rows = [row for row in stage.rows if row.submission_id in orphans]
        return all(row.view is not None and row.view.attempts >= 2 for row in rows)

    follow(reclaimed, "the orphaned job to be reclaimed")
    stage.say(
        f"[green]{names} reclaimed[/] by {SURVIVOR} after {time.monotonic() - killed_at:.1f} s"
    )
    victim.start()
    alive.append(victim)
    stage.say(f"{VICTIM} started again; it keeps its identity")
    follow(lambda: stage.landed == len(stage.rows), "all submissions to land")
    again = next(row for row in stage.rows if row.golden.source == REJUDGED)
    old_job = again.view.job_id if again.view is not None else ""
    created = client.rejudge(again.submission_id)
    again.view = None
    stage.say(f"{REJUDGED} rejudged: job …{old_job[-6:]} superseded by …{created.job_id[-6:]}")
    follow(lambda: again.landed, "the rejudge to land")
    if again.view is None or again.view.job_id != created.job_id:
        raise DemoError("the rejudge landed with the result of the old job")
    stage.say("rejudge landed")
    if unexpected := _retried(stage, orphans):
        stage.say(
            f"[yellow]tried again without a kill: {', '.join(unexpected)}[/] (a busy machine?)"
        )


def _retried(stage: Stage, orphans: list[str]) -> list[str]:
    """Submissions that needed a second try though nobody was killed over them."""
    return [
        row.golden.source
        for row in stage.rows
        if row.view is not None and row.view.attempts > 1 and row.submission_id not in orphans
    ]


def _kill_while_it_judges(client: Client, victim: Child, orphans: list[str]) -> bool:
    """Freeze the agent, and kill it if it holds a job; `orphans` gets the submissions it held.

    Freezing first closes the race between looking and killing: a frozen agent reports nothing.
    False when there was nothing to kill; ask again.
    """
    victim.check_alive()
    victim.send(signal.SIGSTOP)
    if not _held(client):
        victim.send(signal.SIGCONT)
        return False
    victim.kill9()
    orphans[:] = _held(client)
    if not orphans:  # its last report was already on the way when it was frozen
        victim.start()
    return bool(orphans)


def _held(client: Client) -> list[str]:
    return [lease.submission_id for lease in client.queue().leases if lease.runner_name == VICTIM]


def render(stage: Stage, width: int) -> RenderableType:
    """The whole screen for a terminal of `width` columns."""
    wide = width >= WIDE_COLUMNS
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    table.add_column("Submission", no_wrap=True)
    if wide:
        table.add_column("What it does", no_wrap=True)
    table.add_column("Expected", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for name in ("Score", "ms", "MiB"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    table.add_column("Runner", no_wrap=True)
    table.add_column("Try", justify="right", no_wrap=True, min_width=3)
    for row in stage.rows:
        table.add_row(*_cells(row, wide=wide))
    total = max(len(stage.rows), 1)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=total, completed=stage.landed, width=40),
        f"{stage.landed}/{total} landed",
    )
    events = [Text.from_markup(event) for event in stage.events[-EVENTS_SHOWN:]]
    return Group(table, Text(), bar, *events)


def _cells(row: Row, *, wide: bool) -> list[RenderableType]:
    golden, view = row.golden, row.view
    cells: list[RenderableType] = [golden.source]
    if wide:
        cells.append(Text(golden.detail, style="dim"))
    cells.append(f"{golden.verdict.name} {golden.score}")
    if view is None or not row.landed:
        judging = view is not None and view.state is SubmissionState.JUDGING
        cells += [Text("judging", style="yellow") if judging else Text("pending", style="dim")]
        cells += ["", "", ""]
    else:
        mark, style = ("✓", "green") if row.as_expected else ("✗", "bold red")
        cells += [
            Text(f"{mark} {view.verdict}", style=style),
            str(view.score),
            str(view.execTime or 0),
            f"{(view.memoryUsage or 0) / 1024:.1f}",
        ]
    cells.append((view.runner_name or "") if view is not None else "")
    attempts = view.attempts if view is not None else 0
    cells.append(Text(str(attempts or ""), style="red" if attempts > 1 else ""))
    return cells


def _verdict_line(console: Console, stage: Stage, right: bool) -> None:
    elapsed = time.monotonic() - stage.started_at
    if right:
        console.print(
            f"[green]All {len(stage.rows)} verdicts and scores are the expected ones[/]"
            f" ({elapsed:.0f} s; one agent killed, one submission rejudged, nothing lost)."
        )
        return
    for row in stage.rows:
        if not row.as_expected and row.view is not None:
            console.print(
                f"[red]{row.golden.source}: expected {row.golden.verdict.name}"
                f" {row.golden.score}, got {row.view.verdict} {row.view.score}[/]"
            )


def _keep(console: Console, server: Child, client: Client, children: list[Child]) -> None:
    """Print how to go on by hand, and wait for Ctrl-C."""
    url, key = _url(server), server.env["NOJ_SERVER_ADMIN_KEY"]
    console.print(
        f"\nEverything keeps running until Ctrl-C. In another terminal:\n\n"
        f"  export NOJ_SERVER_URL={url}\n"
        f"  export NOJ_SERVER_API_KEY={key}\n"
        f"  {_program()} status --watch\n"
        f"  {_program()} submit main.c --problem demo-sum --wait\n"
        f"\nLogs: {', '.join(str(child.log) for child in children)}",
        soft_wrap=True,
        highlight=False,
    )
    pause = threading.Event()
    with suppress(KeyboardInterrupt):
        while not pause.wait(1):
            for child in children:
                child.check_alive()
    console.print("Stopping …")


def _program() -> str:
    return str(Path(sys.argv[0])) if Path(sys.argv[0]).name == "noj-server" else "noj-server"
