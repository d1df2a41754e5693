"""A slot's thread: from a claimed job to its report in the outbox, whatever goes wrong between."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from noj_machine import FakeJudge, FakeServer, make_job, make_pool, refusal
from noj_testing import make_zip, wait_until

from noj_agent.api import ServerApi
from noj_agent.errors import JobCancelled, SandboxError
from noj_agent.hand import Hand, JobInHand
from noj_agent.health import Health
from noj_agent.judging import SlotWorker
from noj_agent.outbox import Outbox
from noj_agent.session import Session
from noj_agent.state import StateDir
from noj_agent.testdata import TestdataCache
from noj_shared.package import PackageError
from noj_shared.problem import FieldFault
from noj_shared.wire import AbortJobBody, Job


class Bench:
    """A slot worker with everything around it."""

    def __init__(self, api: ServerApi, session: Session, state: StateDir) -> None:
        self.state = state
        self.hand, self.outbox, self.slots = Hand(state), Outbox(state.outbox), make_pool(1)
        self.judge = FakeJudge()
        self.given_back = 0
        self.health = Health(free_bytes=lambda: 1, floor_bytes=0, self_test=lambda: None)
        self.worker = SlotWorker(
            api=api,
            session=session,
            hand=self.hand,
            outbox=self.outbox,
            testdata=TestdataCache(state.testdata, 10**9),
            health=self.health,
            slots=self.slots,
            judge=self.judge,
            on_done=self._on_done,
        )

    def _on_done(self) -> None:
        self.given_back += 1

    def work(self, job: Job) -> AbortJobBody | None:
        """Judge a job; the hand-back that came of it, None if it was a result."""
        self.worker.work(self.hand.take(job))
        (entry,) = self.outbox.entries()
        assert (entry.job_id, entry.lease) == (job.job_id, job.lease)
        self.outbox.remove(entry)
        return entry.body if isinstance(entry.body, AbortJobBody) else None

    def sick_after(self, run: Callable[[], object], times: int = 3) -> bool:
        """Whether the host is sick when it happened so often."""
        for _ in range(times):
            run()
        return self.health.reason() is not None


@pytest.fixture
def bench(api: ServerApi, session: Session, state: StateDir) -> Bench:
    """Registered."""
    session.open(threading.Event())
    return Bench(api, session, state)


def check_given_back(bench: Bench, times: int = 1) -> None:
    """Slot, room, hand and folder are free again."""
    assert bench.slots.free == bench.slots.size
    assert bench.given_back == times
    assert len(bench.hand) == 0
    assert list(bench.state.jobs.iterdir()) == []


def test_a_result(bench: Bench) -> None:
    """Fetched, judged, reported under its lease."""
    assert bench.work(make_job()) is None
    check_given_back(bench)


def test_the_report_is_kept_before_the_job_leaves_the_hand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV7: at no moment is the job neither in hand nor in the outbox."""
    job = make_job()
    seen: list[tuple[list[str], bool]] = []
    real = bench.hand.done

    def done(held: JobInHand) -> None:
        seen.append((bench.outbox.job_ids(), held.folder.exists()))
        real(held)

    monkeypatch.setattr(bench.hand, "done", done)
    bench.work(job)
    assert seen == [([job.job_id], True)]


def test_progress_is_shown(bench: Bench) -> None:
    """`noj-agent status` sees the phase and the cases."""
    held = bench.hand.take(make_job())
    seen: list[tuple[str, int, int]] = []
    bench.judge.behave = lambda _job, _cancel: seen.append((held.phase, held.done, held.total))
    assert held.phase == "waiting for a slot"
    bench.worker.work(held)
    assert seen == [("judging", 0, 1)]
    assert (held.done, held.total) == (1, 1)


def raising(error: Exception) -> Callable[[Job, threading.Event], None]:
    """A judge that fails so."""

    def behave(_job: Job, _cancel: threading.Event) -> None:
        raise error

    return behave


BAD_ZIP = PackageError([FieldFault(field="code", message="no main.c")])


@pytest.mark.parametrize(
    ("error", "reason", "sick"),
    [
        (SandboxError("no cgroup"), "prep_failed", True),
        (OSError(28, "No space left on device"), "prep_failed", True),
        (BAD_ZIP, "rejected", False),
        (JobCancelled("stop"), "drain", False),
    ],
    ids=["sandbox", "disk", "package", "stopped"],
)
def test_why_there_is_no_result(bench: Bench, error: Exception, reason: str, sick: bool) -> None:
    """The reason decides over the attempt; only the host's own failures make it sick."""
    bench.judge.behave = raising(error)
    bodies: list[AbortJobBody | None] = []
    assert bench.sick_after(lambda: bodies.append(bench.work(make_job()))) is sick
    for body in bodies:
        assert body is not None
        assert (body.reason.value, bool(body.detail)) == (reason, True)
    check_given_back(bench, times=3)


def test_a_good_job_makes_good(bench: Bench) -> None:
    """Errors count only in a row."""
    for _ in range(3):
        bench.judge.behave = raising(SandboxError("x"))
        bench.sick_after(lambda: bench.work(make_job()), times=2)
        bench.judge.behave = lambda _job, _cancel: None
        bench.work(make_job())
    assert bench.health.reason() is None


@pytest.mark.parametrize("endpoint", ["code", "testdata"])
@pytest.mark.parametrize("status", [400, 404, 409, 410, 413])
def test_files_that_are_refused(
    server: FakeServer, bench: Bench, endpoint: str, status: int
) -> None:
    """One try; the job goes back, the host is not to blame."""

    def run() -> None:
        server.answers[endpoint] = [refusal(status)]
        body = bench.work(make_job())
        assert body is not None
        assert body.reason.value == "prep_failed"
        assert f"because of {status}" in (body.detail or "")

    assert not bench.sick_after(run)
    assert len(server.seen(endpoint)) == 3
    check_given_back(bench, times=3)


@pytest.mark.parametrize("endpoint", ["code", "testdata"])
def test_downloads_are_tried_again(server: FakeServer, bench: Bench, endpoint: str) -> None:
    """Each try begins anew: half of one and half of the next is no file."""

    class Torn(httpx.SyncByteStream):
        def __iter__(self):  # type: ignore[no-untyped-def]  # the base class has no useful type
            yield b"the first half"
            raise httpx.ReadError("reset")

    server.answers[endpoint] = [
        refusal(503, Retry_After="0"),
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(200, stream=Torn()),
    ]
    assert bench.work(make_job()) is None
    assert len(server.seen(endpoint)) == 4


def test_wrong_test_data_is_not_judged_with(server: FakeServer, bench: Bench) -> None:
    """A job names its checksum; other bytes send it back."""
    server.testdata = make_zip({"0000.in": b"other"})
    body = bench.work(make_job())
    assert body is not None
    assert body.reason.value == "prep_failed"
    assert bench.judge.judged == []


def test_test_data_is_fetched_once(server: FakeServer, bench: Bench) -> None:
    """Two jobs of one problem, one download; the code comes for each."""
    bench.work(make_job())
    bench.work(make_job())
    assert (len(server.seen("testdata")), len(server.seen("code"))) == (1, 2)


def test_forgotten_by_the_server_while_fetching(server: FakeServer, bench: Bench) -> None:
    """401 twice: registered anew, and the job goes on; its report may be refused, fine."""
    server.wipe()
    assert bench.work(make_job()) is None
    assert len(server.seen("register")) == 2


@pytest.mark.parametrize("finishes", [True, False], ids=["finished anyway", "stopped"])
def test_a_dropped_job_is_not_reported(bench: Bench, finishes: bool) -> None:
    """Superseded while judging: nothing is sent, even if the result was there already."""
    held = bench.hand.take(make_job())

    def behave(job: Job, cancel: threading.Event) -> None:
        bench.hand.drop(job.job_id)
        assert cancel.is_set()
        if not finishes:
            raise JobCancelled("cancelled")

    bench.judge.behave = behave
    bench.worker.work(held)
    assert bench.outbox.job_ids() == []
    check_given_back(bench)


def test_cancelled_while_fetching(server: FakeServer, bench: Bench) -> None:
    """It does not wait out the retries, and is handed back as a drain."""
    held = bench.hand.take(make_job())
    server.answers["code"] = [refusal(503, Retry_After="60") for _ in range(9)]
    thread = threading.Thread(target=bench.worker.work, args=(held,), name="slot-1")
    thread.start()
    wait_until(lambda: server.seen("code"), what="it tries to fetch")
    bench.hand.cancel_all()
    thread.join(10)
    assert not thread.is_alive()
    (entry,) = bench.outbox.entries()
    assert entry.body.model_dump()["reason"] == "drain"
    check_given_back(bench)


def test_it_waits_for_a_slot(bench: Bench) -> None:
    """Another job may have borrowed the slot for a case; it is judged when that comes back."""
    borrowed = bench.slots.try_acquire()
    assert borrowed is not None
    held = bench.hand.take(make_job())
    thread = threading.Thread(target=bench.worker.work, args=(held,), name="slot-1")
    thread.start()
    wait_until(lambda: bench.slots.wanted, what="it waits")
    assert held.phase == "waiting for a slot"
    bench.slots.release(borrowed)
    thread.join(10)
    assert bench.judge.judged == [held.job.job_id]


def test_no_slot_for_too_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is bounded; that is the host's failure."""
    monkeypatch.setattr("noj_agent.judging.SLOT_TIMEOUT_S", 0.01)
    borrowed = bench.slots.try_acquire()
    assert borrowed is not None
    body = bench.work(make_job())
    bench.slots.release(borrowed)
    assert body is not None
    assert (body.reason.value, "no slot" in (body.detail or "")) == ("prep_failed", True)


def test_the_thread_ends_at_none(bench: Bench) -> None:
    """Jobs before the None are judged, those after it are another thread's."""
    claimed: queue.SimpleQueue[JobInHand | None] = queue.SimpleQueue()
    first, second = (bench.hand.take(make_job()) for _ in range(2))
    for item in (first, None, second):
        claimed.put(item)
    bench.worker.run(claimed)
    assert bench.judge.judged == [first.job.job_id]
    assert claimed.get_nowait() is second


def test_a_defect_of_ours_is_not_hidden(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error is logged with its stack and makes the host sick; the job goes back."""
    bench.judge.behave = raising(ZeroDivisionError("a defect"))
    bodies: list[AbortJobBody | None] = []
    assert bench.sick_after(lambda: bodies.append(bench.work(make_job())))
    for body in bodies:
        assert body is not None
        assert (body.reason.value, body.detail) == ("prep_failed", "ZeroDivisionError: a defect")
    assert "in behave" in caplog.text
    check_given_back(bench, times=3)


def test_a_full_disk_ends_no_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §8: a host whose disk is full stops claiming and says so; it does not die of it."""

    def full(_entry: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.outbox, "put", full)
    for _ in range(3):
        bench.worker.work(bench.hand.take(make_job()))
    assert "No space left" in (bench.health.reason() or "")


def test_code_lies_where_only_the_agent_reads_it(bench: Bench) -> None:
    """INV8: below a folder of mode 0700, gone when the job is."""
    seen: list[Path] = []

    def behave(job: Job, _cancel: threading.Event) -> None:
        folder = bench.state.jobs / job.job_id
        assert folder.stat().st_mode & 0o777 == 0o700
        seen.append(folder / "code.zip")
        assert seen[0].exists()

    bench.judge.behave = behave
    bench.work(make_job())
    assert not seen[0].exists()
