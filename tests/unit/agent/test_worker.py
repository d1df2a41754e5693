"""The whole agent: start, drain, the stop ladder, what a killed predecessor left, and INV7."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import noj_fake_agent
import pytest
from noj_machine import (
    URL,
    FakeJudge,
    FakeServer,
    make_job,
    make_pool,
    make_result,
    make_settings,
    over_http,
    refusal,
)
from noj_testing import Process, wait_until

from noj_agent import worker
from noj_agent.api import ServerApi
from noj_agent.errors import JobCancelled
from noj_agent.heartbeat import Heartbeat
from noj_agent.outbox import Entry, Outbox
from noj_agent.retry import Outage
from noj_agent.session import Session
from noj_agent.state import StateDir, open_state, read_json, write_json
from noj_agent.worker import EXIT_FAILED, EXIT_NOW, EXIT_OK, EXIT_REFUSED, Agent
from noj_shared.ids import new_job_id
from noj_shared.wire import Job


class Bench:
    """An agent in a thread of its own, signals as calls."""

    def __init__(
        self, server: FakeServer, state: StateDir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.server, self.state, self.judge = server, state, FakeJudge()
        self.handlers: dict[int, Callable[[int, None], None]] = {}
        self.status: int | None = None
        stand_in = SimpleNamespace(
            signal=self.handlers.__setitem__, SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT
        )
        monkeypatch.setattr(worker, "signal", stand_in)
        self.apis = [ServerApi(URL, transport=server.transport()) for _ in range(2)]
        self.thread: threading.Thread | None = None
        self.signals = 0

    def start(self, *, slots: int = 1, **changes: Any) -> None:
        """Start it; returns at once."""
        settings = make_settings(self.state.root, slots=slots, **changes)
        agent = Agent(
            settings,
            self.state,
            session=Session(settings, self.state, self.apis[0], Outage(), []),
            api=self.apis[0],
            heartbeat_api=self.apis[1],
            slots=make_pool(slots),
            judge=self.judge,
            self_test=lambda: None,
            facts={"sandbox": "none"},
        )

        def run() -> None:
            self.status = agent.run()

        self.thread = threading.Thread(target=run, name="main-of-agent")
        self.thread.start()

    def term(self) -> None:
        """SIGTERM; a third one would end the tests."""
        wait_until(lambda: self.handlers, what="it listens to signals")
        self.signals += 1
        assert self.signals < 3
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)

    def ended(self) -> int | None:
        """Its exit status; it must end by itself."""
        assert self.thread is not None
        self.thread.join(15)
        assert not self.thread.is_alive()
        return self.status

    def shown(self) -> dict[str, Any]:
        """What `noj-agent status` reads."""
        data = read_json(self.state.status)
        return data if isinstance(data, dict) else {}


@pytest.fixture
def bench(server: FakeServer, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Not started; stopped at the end, whatever happened."""
    monkeypatch.setattr(worker, "TICK_S", 0.05)
    made = Bench(server, state, monkeypatch)
    yield made
    server.down.clear()
    while made.thread is not None and made.thread.is_alive() and made.signals < 2:
        made.term()
        made.thread.join(8)
    for api in made.apis:
        api.close()
    assert made.thread is None or not made.thread.is_alive()


def _wait(event: threading.Event) -> None:
    assert event.wait(15)


def agent_threads() -> set[str]:
    """The names of the threads that the design lists."""
    listed = ("heartbeat", "poller", "reporter", "slot-")
    return {one.name for one in threading.enumerate() if one.name.startswith(listed)}


def test_the_way_of_a_job(server: FakeServer, bench: Bench) -> None:
    """Claimed, listed in a heartbeat, judged, reported; then a clean end with nothing left."""
    beaten = threading.Event()

    def behave(job: Job, _cancel: threading.Event) -> None:
        wait_until(
            lambda: any(job.job_id in call.body["active_job_ids"] for call in beats()),
            what="a heartbeat renews it while it is judged",
        )
        beaten.set()

    def beats() -> list[Any]:
        return server.seen("heartbeat")

    bench.judge.behave = behave
    bench.start()
    job = server.offer(make_job())
    wait_until(lambda: job.job_id in server.completed, what="it is reported")
    assert beaten.is_set()
    bench.term()
    assert bench.ended() == EXIT_OK
    assert agent_threads() == set()
    assert list(bench.state.jobs.iterdir()) == []
    assert server.seen("sign_off") == []  # a restart goes on as the same runner


def test_its_threads(server: FakeServer, bench: Bench) -> None:
    """As the module's table has them; none is a daemon."""
    bench.start(slots=2)
    names = {"heartbeat", "poller", "reporter", "slot-1", "slot-2"}
    wait_until(lambda: agent_threads() == names, what="all have started")
    assert not any(one.daemon for one in threading.enumerate() if one.name in names)
    bench.term()
    assert bench.ended() == EXIT_OK


def test_draining(server: FakeServer, bench: Bench) -> None:
    """A heartbeat says so at once, the parked poll is answered, the running job is finished and
    reported while heartbeats go on, nothing new is begun."""
    go = threading.Event()
    bench.judge.behave = lambda _job, _cancel: _wait(go)
    bench.start(slots=2)
    running = server.offer(make_job())
    assert bench.judge.started.wait(10)
    wait_until(lambda: len(server.seen("next_job")) == 2, what="the second slot's poll is parked")
    bench.term()
    wait_until(lambda: server.draining, what="a heartbeat says that it drains")
    late = server.offer(make_job())
    wait_until(lambda: "poller" not in agent_threads(), what="the poller ends")
    before = len(server.seen("heartbeat"))
    wait_until(lambda: len(server.seen("heartbeat")) > before + 2, what="heartbeats go on")
    assert bench.shown()["state"] == "draining"
    assert server.completed == {}
    go.set()
    assert bench.ended() == EXIT_OK
    assert list(server.completed) == [running.job_id]
    assert server.pending == [late]
    assert bench.shown()["state"] == "stopped"


def test_heartbeats_last_until_the_last_report(server: FakeServer, bench: Bench) -> None:
    """A job in the outbox stays active, so that its lease lives until the report is taken."""
    server.down.add("complete")
    bench.start()
    job = server.offer(make_job())
    wait_until(lambda: server.seen("complete"), what="it is judged, and not taken")
    bench.term()
    wait_until(lambda: "slot-1" not in agent_threads(), what="the slots end")
    before = len(server.seen("heartbeat"))
    wait_until(lambda: len(server.seen("heartbeat")) > before + 2, what="heartbeats go on")
    last = server.seen("heartbeat")[-1].body
    assert (last["active_job_ids"], last["state"]) == ([job.job_id], "draining")
    server.down.clear()
    assert bench.ended() == EXIT_OK
    assert job.job_id in server.completed


def test_a_second_signal_hands_back(server: FakeServer, bench: Bench) -> None:
    """Running jobs are stopped; that costs no attempt."""

    def behave(_job: Job, cancel: threading.Event) -> None:
        assert cancel.wait(15)
        raise JobCancelled("cancelled")

    bench.judge.behave = behave
    bench.start()
    job = server.offer(make_job())
    assert bench.judge.started.wait(10)
    bench.term()
    bench.term()
    assert bench.ended() == EXIT_OK
    assert server.aborted[job.job_id]["reason"] == "drain"
    assert server.completed == {}


def test_a_rejudge_stops_a_running_job(server: FakeServer, bench: Bench) -> None:
    """INV4: cancelled within a heartbeat, nothing is reported, the slot takes the next job."""

    def behave(_job: Job, cancel: threading.Event) -> None:
        assert cancel.wait(15)
        raise JobCancelled("cancelled")

    bench.judge.behave = behave
    bench.start()
    old = server.offer(make_job())
    assert bench.judge.started.wait(10)
    bench.judge.behave = lambda _job, _cancel: None
    new = server.offer(make_job())
    server.cancel = [old.job_id]
    wait_until(lambda: new.job_id in server.completed, what="the new job is reported")
    assert old.job_id not in server.completed
    assert server.aborted == {}


def test_what_a_killed_predecessor_left(server: FakeServer, bench: Bench) -> None:
    """INV5: an unfinished job costs its attempt; one that was finished is reported as it is."""
    unfinished, finished = new_job_id(), new_job_id()
    for job_id in (unfinished, finished):
        folder = bench.state.jobs / job_id
        folder.mkdir()
        write_json(folder / "job.json", {"job_id": job_id, "lease": "before"})
    Outbox(bench.state.outbox).put(Entry(finished, make_result("before")))
    bench.start()
    wait_until(lambda: server.completed and server.aborted, what="both are reported")
    assert list(server.completed) == [finished]
    assert list(server.aborted) == [unfinished]
    body = server.aborted[unfinished]
    assert (body["reason"], body["lease"]) == ("prep_failed", "before")
    assert list(bench.state.jobs.iterdir()) == []


def test_a_wiped_redis(server: FakeServer, bench: Bench) -> None:
    """The agent registers anew by itself while it judges; nothing to do by hand."""

    def behave(_job: Job, _cancel: threading.Event) -> None:
        if len(server.seen("register")) == 1:
            server.wipe()
            wait_until(lambda: len(server.seen("register")) == 2, what="it registers anew")

    bench.judge.behave = behave
    bench.start()
    server.offer(make_job())
    second = server.offer(make_job())
    wait_until(lambda: second.job_id in server.completed, what="the next job is judged")
    assert len(server.seen("register")) == 2


def test_the_registration_is_refused(server: FakeServer, bench: Bench) -> None:
    """The documented exit status, at start …"""
    bench.start(registration_token="wrong")
    assert bench.ended() == EXIT_REFUSED


def test_the_registration_is_refused_later(server: FakeServer, bench: Bench) -> None:
    """… and when it has to register anew."""
    bench.start()
    wait_until(lambda: server.seen("next_job"), what="it polls")
    server.answers["register"] = [refusal(401) for _ in range(9)]
    server.wipe()
    wait_until(lambda: len(server.seen("register")) > 1, what="it tries to register")
    server.release()
    assert bench.ended() == EXIT_REFUSED


def test_stopped_while_the_server_is_away(server: FakeServer, bench: Bench) -> None:
    """It keeps trying, and a signal still ends it at once."""
    server.answers["register"] = [refusal(503, Retry_After="60") for _ in range(9)]
    bench.start()
    wait_until(lambda: server.seen("register"), what="it tries to register")
    assert bench.shown()["state"] == "starting"
    bench.term()
    assert bench.ended() == EXIT_OK


def test_main_sees_a_thread_die(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in a thread is logged with its stack; the agent drains and exits non-zero."""

    def beat(_self: Heartbeat) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Heartbeat, "beat", beat)
    bench.start()
    wait_until(lambda: "thread heartbeat died" in caplog.text, what="it dies")
    bench.server.release()  # without heartbeats the server finds out by the lease
    assert bench.ended() == EXIT_FAILED
    assert "a defect" in caplog.text
    assert agent_threads() == set()


def test_what_status_reads(server: FakeServer, bench: Bench) -> None:
    """Identity, contact, slots, jobs with progress, outbox; rewritten as it goes."""
    go = threading.Event()
    bench.judge.behave = lambda _job, _cancel: _wait(go)
    bench.start()
    job = server.offer(make_job())
    try:
        shown = wait_until(
            lambda: bench.shown().get("jobs") and bench.shown(), what="the job is shown"
        )
        shown = wait_until(
            lambda: bench.shown()["jobs"][0]["total"] and bench.shown(), what="with progress"
        )
        assert (shown["name"], shown["state"], shown["server_url"]) == ("alpha", "ready", URL)
        assert shown["runner_id"].startswith("rn_")
        assert (shown["slots"], shown["free_slots"]) == (1, 0)
        assert shown["idle_reason"] == "all slots are busy"
        line = shown["jobs"][0]
        assert (line["job_id"], line["phase"], line["done"]) == (job.job_id, "judging", 0)
        assert shown["last_contact_at"] is not None
        assert bench.state.status.stat().st_mode & 0o777 == 0o600
    finally:
        go.set()
    wait_until(lambda: job.job_id in server.completed, what="it is reported")


def test_low_disk_shows(server: FakeServer, bench: Bench) -> None:
    """It takes no work, says why to the server and to people."""
    bench.start(disk_floor_bytes=2**62)
    shown = wait_until(
        lambda: bench.shown().get("state") == "sick" and bench.shown(), what="it is sick"
    )
    assert "low disk space" in shown["idle_reason"]
    wait_until(
        lambda: any(call.body.get("state") == "sick" for call in server.seen("heartbeat")),
        what="a heartbeat says so",
    )
    assert server.seen("next_job") == []


# -- in a process of its own, with real signals ---------------------------------------------------


def process(url: str, directory: Path, mode: str = "instant") -> Process:
    """An agent to start and to kill."""
    argv = [sys.executable, str(noj_fake_agent.__file__), url, str(directory / "state"), mode]
    support = str(Path(noj_fake_agent.__file__).parent)
    return Process(argv=argv, log=directory / "agent.log", env={"PYTHONPATH": support})


def job_at(url: str) -> Job:
    """A job whose code is there."""
    return make_job(code_url=f"{url}/submissions/s1/code?token=signed")


def test_inv7_killed_between_computed_and_reported(server: FakeServer, tmp_path: Path) -> None:
    """INV7: kill -9 while the server does not take the result; the next start delivers it, judges
    nothing twice, and is the same runner."""
    server.down.add("complete")
    with over_http(server) as url:
        job = server.offer(job_at(url))
        with process(url, tmp_path) as agent:
            wait_until(lambda: server.seen("complete"), what="it computed the result")
            agent.kill9()
        state = open_state(tmp_path / "state")
        assert Outbox(state.outbox).job_ids() == [job.job_id]
        assert server.completed == {}
        server.down.clear()
        with process(url, tmp_path) as agent:
            wait_until(lambda: job.job_id in server.completed, what="the next start delivers it")
            wait_until(lambda: not Outbox(state.outbox).job_ids(), what="the outbox is empty")
            agent.send(signal.SIGTERM)
            assert agent.wait() == EXIT_OK
    assert server.completed[job.job_id]["lease"] == job.lease
    assert (len(server.seen("register")), len(server.seen("code"))) == (1, 1)
    assert server.aborted == {}


def test_inv5_killed_while_judging(server: FakeServer, tmp_path: Path) -> None:
    """INV5: kill -9 in the middle; the next start hands the job back, at the cost of an attempt."""
    with over_http(server) as url:
        job = server.offer(job_at(url))
        with process(url, tmp_path, "blocking") as agent:
            wait_until(lambda: server.seen("testdata"), what="it has the job")
            agent.kill9()
        with process(url, tmp_path) as agent:
            wait_until(lambda: job.job_id in server.aborted, what="it is handed back")
            agent.send(signal.SIGTERM)
            assert agent.wait() == EXIT_OK
    assert server.aborted[job.job_id]["reason"] == "prep_failed"
    assert server.aborted[job.job_id]["lease"] == job.lease
    assert server.completed == {}


def test_the_stop_ladder(server: FakeServer, tmp_path: Path) -> None:
    """Real signals: the first drains, the second hands back, and both say what comes next."""
    with over_http(server) as url, process(url, tmp_path, "blocking") as agent:
        job = server.offer(job_at(url))
        wait_until(lambda: server.seen("testdata"), what="it has the job")
        agent.send(signal.SIGTERM)
        wait_until(lambda: "waiting for 1 job(s)" in agent.output(), what="it drains")
        assert "once more to cancel" in agent.output()
        agent.send(signal.SIGINT)
        assert agent.wait() == EXIT_OK
        assert server.aborted[job.job_id]["reason"] == "drain"


def test_the_third_signal_exits_now(server: FakeServer, tmp_path: Path) -> None:
    """Whatever hangs: the documented status; the lease tells the server."""
    with over_http(server) as url, process(url, tmp_path, "stubborn") as agent:
        server.offer(job_at(url))
        wait_until(lambda: server.seen("testdata"), what="it has the job")
        for step in ("told to stop:", "told to stop again", "a third time"):
            agent.send(signal.SIGTERM)
            wait_until(lambda said=step: said in agent.output(), what=f"it says {step}")  # type: ignore[misc]
        assert agent.wait(10) == EXIT_NOW
        assert (server.completed, server.aborted) == ({}, {})


def test_a_twin_is_refused(server: FakeServer, tmp_path: Path) -> None:
    """Two agents never share a state directory; the message names the pid that has it."""
    with over_http(server) as url, process(url, tmp_path) as agent:
        wait_until(lambda: server.seen("next_job"), what="the first one works")
        twin = process(url, tmp_path)
        twin.log = tmp_path / "twin.log"
        with twin:
            assert twin.wait() != EXIT_OK
        assert f"another noj-agent (pid {agent.pid})" in twin.output()
