"""The poller: asks only when there is room, repeats a broken poll, is never cut off."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from noj_machine import FakeServer, make_job, refusal
from noj_testing import wait_until

from noj_agent.api import ServerApi
from noj_agent.errors import SandboxError
from noj_agent.hand import Hand, JobInHand
from noj_agent.health import Health
from noj_agent.outbox import Outbox
from noj_agent.poller import Poller, describe
from noj_agent.session import RegistrationRefusedError, Session
from noj_agent.state import StateDir
from noj_shared.wire import RunnerConfig


@dataclass
class Bench:
    """A poller with everything around it."""

    server: FakeServer
    session: Session
    hand: Hand
    outbox: Outbox
    health: Health
    poller: Poller
    draining: threading.Event
    paused: bool = False
    free: int = 10**9
    tests: int = 0
    died: list[BaseException] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Start its thread."""

        def run() -> None:
            try:
                self.poller.run()
            except (RegistrationRefusedError, OSError) as error:
                self.died.append(error)

        self.thread = threading.Thread(target=run, name="poller")
        self.thread.start()

    def claimed(self) -> JobInHand:
        """The next job that it passed on."""
        held = self.poller.claimed.get(timeout=10)
        assert held is not None
        return held

    def polls(self, count: int) -> None:
        """Wait until it has polled so often."""
        wait_until(
            lambda: len(self.server.seen("next_job")) >= count, what=f"there were {count} polls"
        )


@pytest.fixture
def bench(server: FakeServer, api: ServerApi, session: Session, state: StateDir) -> Iterator[Bench]:
    """Registered, not started; stopped at the end."""
    session.open(threading.Event())
    hand, outbox, draining = Hand(state), Outbox(state.outbox), threading.Event()

    def self_test() -> None:
        made.tests += 1

    health = Health(free_bytes=lambda: made.free, floor_bytes=1, self_test=self_test)
    poller = Poller(
        api=api,
        session=session,
        hand=hand,
        outbox=outbox,
        health=health,
        capacity=2,
        paused=lambda: made.paused,
        draining=draining,
    )
    made = Bench(server, session, hand, outbox, health, poller, draining)
    yield made
    draining.set()
    poller.room.set()
    server.release()
    if made.thread is not None:
        made.thread.join(10)
        assert not made.thread.is_alive()


def test_a_job_is_kept_before_it_is_passed_on(bench: Bench, state: StateDir) -> None:
    """It is on the disk and in the hand when a slot sees it; the poll asked to be parked."""
    job = bench.server.offer(make_job())
    bench.start()
    held = bench.claimed()
    assert held.job == job
    assert (state.jobs / job.job_id / "job.json").exists()
    assert bench.hand.jobs() == [held]
    assert bench.server.seen("next_job")[0].headers["Prefer"] == "wait=25"


def test_it_polls_only_when_there_is_room(bench: Bench) -> None:
    """Two slots, two jobs; a finished one makes it ask at once."""
    for _ in range(3):
        bench.server.offer(make_job())
    bench.start()
    first, _ = bench.claimed(), bench.claimed()
    wait_until(lambda: bench.poller.idle_reason() == "all slots are busy", what="it is full")
    assert len(bench.server.seen("next_job")) == 2
    with pytest.raises(queue.Empty):
        bench.poller.claimed.get_nowait()
    bench.hand.done(first)
    bench.poller.room.set()
    bench.claimed()


def test_the_server_may_ask_for_less(bench: Bench) -> None:
    """max_concurrent_jobs bounds claims below the number of slots."""
    bench.session.config = RunnerConfig(max_concurrent_jobs=1)
    bench.hand.take(make_job())
    assert bench.poller.idle_reason() == "all slots are busy"
    bench.session.config = RunnerConfig(max_concurrent_jobs=8)
    assert bench.poller.idle_reason() is None


def _pause(bench: Bench) -> None:
    bench.paused = True


def _fill_disk(bench: Bench) -> None:
    bench.free = 0


def _break(bench: Bench) -> None:
    for _ in range(3):
        bench.health.failed(SandboxError("x"))


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (_pause, "paused by an operator"),
        (_fill_disk, "low disk space"),
        (_break, "3 internal errors in a row"),
        (lambda bench: bench.draining.set(), "draining"),
    ],
    ids=["paused", "disk", "errors", "draining"],
)
def test_why_it_does_not_ask(bench: Bench, trouble: Callable[[Bench], None], reason: str) -> None:
    """The reason is a sentence for `noj-agent status`; without one it asks."""
    assert bench.poller.idle_reason() is None
    trouble(bench)
    assert reason in (bench.poller.idle_reason() or "")


def test_it_goes_on_by_itself(bench: Bench) -> None:
    """Resumed by an operator: the next poll follows; none before."""
    bench.paused = True
    bench.start()
    assert bench.server.seen("next_job") == []
    bench.paused = False
    bench.poller.room.set()
    bench.polls(1)


def test_a_broken_poll_is_repeated_with_its_key(bench: Bench) -> None:
    """A lost reply costs no job; the next poll has a key of its own."""
    first = bench.server.offer(make_job())
    bench.server.answers["next_job"] = [
        httpx.ReadTimeout("lost"),
        refusal(503, Retry_After="0"),
        httpx.Response(200, text="<html>"),
    ]
    bench.start()
    assert bench.claimed().job == first
    bench.polls(5)
    keys = [call.headers["Idempotency-Key"] for call in bench.server.seen("next_job")]
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]


def test_a_server_that_does_not_park_us(bench: Bench) -> None:
    """204 at once: the next poll waits for poll_interval_sec, and is a new one."""
    waits: list[float | None] = []
    real = bench.draining.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return real(0)

    bench.draining.wait = wait  # type: ignore[method-assign]
    bench.session.config = RunnerConfig(poll_interval_sec=7)
    bench.server.answers["next_job"] = [httpx.Response(204), httpx.Response(204)]
    bench.start()
    bench.polls(3)
    assert waits[:2] == [7, 7]


def test_a_refused_poll(bench: Bench) -> None:
    """A final refusal is logged and tried again at the server's pace; the thread lives."""
    bench.server.answers["next_job"] = [refusal(400), refusal(403)]
    bench.session.config = RunnerConfig(poll_interval_sec=0.01)
    job = bench.server.offer(make_job())
    bench.start()
    assert bench.claimed().job == job


def test_a_parked_poll_is_not_cut_off(bench: Bench) -> None:
    """Draining waits for the server's answer; then the thread ends."""
    bench.start()
    bench.polls(1)
    bench.draining.set()
    bench.poller.room.set()
    assert bench.thread is not None
    bench.thread.join(0.2)
    assert bench.thread.is_alive()
    bench.server.release()
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert len(bench.server.seen("next_job")) == 1


def test_a_job_that_comes_while_draining(bench: Bench, state: StateDir) -> None:
    """It is handed back without a lost attempt, durably, and judged by nobody here."""
    bench.start()
    bench.polls(1)
    bench.draining.set()
    job = bench.server.offer(make_job())
    assert bench.thread is not None
    bench.thread.join(10)
    (entry,) = bench.outbox.entries()
    assert (entry.job_id, entry.kind, entry.lease) == (job.job_id, "abort", job.lease)
    assert entry.body.model_dump()["reason"] == "drain"
    assert len(bench.hand) == 0
    assert list(state.jobs.iterdir()) == []
    assert bench.poller.claimed.empty()


def test_a_broken_poll_while_draining(bench: Bench) -> None:
    """It is not repeated; the thread ends without an error."""
    bench.start()
    bench.polls(1)
    bench.server.answers["next_job"] = [refusal(503, Retry_After="0") for _ in range(3)]
    bench.draining.set()
    bench.server.release()
    assert bench.thread is not None
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert bench.died == []


def test_a_disk_that_keeps_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cannot be noted is left to its lease; the host counts the error."""

    def full(_job: object) -> JobInHand:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.hand, "take", full)
    for _ in range(3):
        bench.server.offer(make_job())
    bench.start()
    wait_until(bench.health.reason, what="the host is sick")
    assert "No space left" in (bench.health.reason() or "")
    assert bench.outbox.job_ids() == []
    assert bench.died == []


def test_a_refused_registration_ends_it(bench: Bench) -> None:
    """Forgotten by the server, and not let in again: only a person can help."""
    bench.server.wipe()
    bench.server.answers["register"] = [refusal(401)]
    bench.start()
    wait_until(lambda: bench.died, what="the thread ends")
    assert isinstance(bench.died[0], RegistrationRefusedError)


def test_describe() -> None:
    """One line, bounded; a library's error keeps its kind."""
    assert describe(SandboxError("a\n  b")) == "a b"
    assert describe(OSError("x")) == "OSError: x"
    assert len(describe(SandboxError("y" * 900))) == 500
