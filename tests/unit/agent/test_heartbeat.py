"""The heartbeat: what it says, what it obeys, and that nothing ends it early."""

from __future__ import annotations

import threading

import httpx
import pytest
from noj_machine import FakeServer, make_job, make_pool, make_result, refusal
from noj_testing import wait_until

from noj_agent.api import ServerApi
from noj_agent.errors import Unavailable
from noj_agent.hand import Hand
from noj_agent.health import Health
from noj_agent.heartbeat import Heartbeat
from noj_agent.outbox import Entry, Outbox
from noj_agent.session import Session
from noj_agent.state import StateDir
from noj_shared.ids import new_job_id


class Bench:
    """A heartbeat with everything around it."""

    def __init__(self, api: ServerApi, session: Session, state: StateDir) -> None:
        self.hand, self.outbox, self.slots = Hand(state), Outbox(state.outbox), make_pool(2)
        self.draining = threading.Event()
        self.free = 10**9
        self.heartbeat = Heartbeat(
            api=api,
            session=session,
            hand=self.hand,
            outbox=self.outbox,
            slots=self.slots,
            health=Health(free_bytes=lambda: self.free, floor_bytes=1, self_test=lambda: None),
            state=state,
            draining=self.draining,
        )


class Patient(threading.Event):
    """An event whose waits take no time and are noted; ends the loop after so many."""

    def __init__(self, finished: threading.Event, waits: int) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self._finished, self._left = finished, waits

    def wait(self, timeout: float | None = None) -> bool:
        """No time passes."""
        self.waits.append(timeout)
        if len(self.waits) >= self._left:
            self._finished.set()
        return False


@pytest.fixture
def bench(api: ServerApi, session: Session, state: StateDir) -> Bench:
    """Registered."""
    session.open(threading.Event())
    return Bench(api, session, state)


def test_what_it_says(server: FakeServer, bench: Bench) -> None:
    """Jobs in hand and in the outbox are active, each under its lease, so their leases live."""
    job, done = make_job(), new_job_id()
    bench.hand.take(job)
    bench.outbox.put(Entry(done, make_result("kept")))
    bench.slots.acquire(1)
    bench.heartbeat.beat()
    body = server.seen("heartbeat")[0].body
    assert body["active_job_ids"] == sorted([job.job_id, done])
    assert body["leases"] == {job.job_id: job.lease, done: "kept"}
    assert (body["state"], body["busy_slots"], body["outbox"]) == ("ready", 1, 1)
    assert body["disk_free_bytes"] > 0
    assert "reason" not in body


def test_a_report_without_a_lease(server: FakeServer, bench: Bench) -> None:
    """It is active too."""
    done = new_job_id()
    bench.outbox.put(Entry(done, make_result(None)))
    bench.heartbeat.beat()
    body = server.seen("heartbeat")[0].body
    assert (body["active_job_ids"], body["leases"]) == ([done], {})


def test_sick_and_draining(server: FakeServer, bench: Bench) -> None:
    """It says why it takes no work; draining comes first, it is what answers a parked poll."""
    bench.free = 0
    bench.heartbeat.beat()
    bench.draining.set()
    bench.heartbeat.beat()
    sick, draining = (call.body for call in server.seen("heartbeat"))
    assert sick["state"] == "sick"
    assert "low disk space" in sick["reason"]
    assert draining["state"] == "draining"


def test_cancelled_and_lost_jobs_are_dropped(server: FakeServer, bench: Bench) -> None:
    """Both are stopped and not reported; a job that we do not hold is no error."""
    cancelled, lost, other = (bench.hand.take(make_job()) for _ in range(3))
    server.cancel = [cancelled.job.job_id, new_job_id()]
    server.lost = [lost.job.job_id]
    bench.heartbeat.beat()
    assert [held.dropped for held in (cancelled, lost, other)] == [True, True, False]
    assert [held.cancel.is_set() for held in (cancelled, lost, other)] == [True, True, False]


def test_pause_and_config_are_applied(
    server: FakeServer, bench: Bench, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Each change is logged once; the config is the server's newest."""
    caplog.set_level("INFO", "noj_agent.heartbeat")
    for paused in (True, True, False, False):
        server.paused = paused
        server.config = {"heartbeat_interval_sec": 3, "max_concurrent_jobs": 5}
        bench.heartbeat.beat()
        assert bench.heartbeat.paused is paused
    assert caplog.messages == ["paused by an operator", "resumed by an operator"]
    assert (session.config.heartbeat_interval_sec, session.config.max_concurrent_jobs) == (3, 5)


def test_its_rhythm(server: FakeServer, bench: Bench, session: Session) -> None:
    """The server's interval; after a failed beat sooner: one miss must not cost the leases."""
    server.config = {"heartbeat_interval_sec": 10}
    bench.heartbeat.beat()
    finished = threading.Event()
    patient = Patient(finished, 8)
    bench.heartbeat.now = patient
    server.answers["heartbeat"] = [
        *(httpx.ConnectError("x") for _ in range(3)),
        *(refusal(503) for _ in range(3)),
        refusal(400),
    ]
    bench.heartbeat.run(finished)
    assert patient.waits == [0.5, 1, 2, 4, 8, 10, 10, 10]


def test_an_outage_of_hours(server: FakeServer, bench: Bench) -> None:
    """INV6: a night without the server does not end the thread, and with it the agent."""
    server.down.add("heartbeat")
    finished = threading.Event()
    bench.heartbeat.now = Patient(finished, 1100)  # four and a half hours
    bench.heartbeat.run(finished)


def test_a_beat_without_contact(server: FakeServer, bench: Bench) -> None:
    """Nothing is dropped or paused because nobody answered."""
    held = bench.hand.take(make_job())
    server.down.add("heartbeat")
    with pytest.raises(Unavailable):
        bench.heartbeat.beat()
    assert not held.cancel.is_set()


def test_it_can_be_hurried(server: FakeServer, bench: Bench) -> None:
    """`now` brings the next beat at once; it ends when told."""
    server.config = {"heartbeat_interval_sec": 600}
    finished = threading.Event()
    thread = threading.Thread(target=bench.heartbeat.run, args=(finished,), name="heartbeat")
    thread.start()
    try:
        wait_until(lambda: server.seen("heartbeat"), what="a beat sets the interval")
        count = len(server.seen("heartbeat"))
        bench.heartbeat.now.set()
        wait_until(lambda: len(server.seen("heartbeat")) > count, what="another beat")
    finally:
        finished.set()
        bench.heartbeat.now.set()
        thread.join(5)
    assert not thread.is_alive()
