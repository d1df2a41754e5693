"""The reporter: a report leaves the disk when it was taken, or refused for good (INV7)."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from noj_machine import FakeClock, FakeServer, make_abort, make_result, refusal
from noj_testing import wait_until

from noj_agent.api import ServerApi
from noj_agent.outbox import Entry, Outbox
from noj_agent.reporter import Reporter
from noj_agent.retry import CAP_S, RETRY_AFTER_CAP_S
from noj_agent.session import Session
from noj_agent.state import StateDir
from noj_shared.ids import new_job_id


@pytest.fixture
def outbox(state: StateDir) -> Outbox:
    """The agent's outbox."""
    return Outbox(state.outbox)


@pytest.fixture
def reporter(api: ServerApi, session: Session, outbox: Outbox) -> Reporter:
    """Of a registered agent."""
    session.open(threading.Event())
    return Reporter(api=api, session=session, outbox=outbox)


def put(outbox: Outbox, *, abort: bool = False) -> str:
    """A report to deliver; its job id."""
    job_id = new_job_id()
    outbox.put(Entry(job_id, make_abort() if abort else make_result()))
    return job_id


def refused(state: StateDir) -> list[str]:
    """What was kept aside."""
    return [path.stem for path in (state.outbox / "refused").iterdir()]


def test_reports_are_delivered(server: FakeServer, reporter: Reporter, outbox: Outbox) -> None:
    """Results to complete, hand-backs to abort, each under its lease; then they are gone."""
    done, back = put(outbox), put(outbox, abort=True)
    assert reporter.deliver(FakeClock()) == CAP_S
    assert server.completed[done]["lease"] == "lease-1"
    assert server.aborted[back]["reason"] == "drain"
    assert outbox.job_ids() == []


@pytest.mark.parametrize("abort", [False, True], ids=["complete", "abort"])
@pytest.mark.parametrize(
    ("status", "aside"),
    [(204, False), (409, False), (404, False), (400, True), (403, True), (422, True)],
)
def test_final_answers(
    server: FakeServer,
    reporter: Reporter,
    outbox: Outbox,
    state: StateDir,
    *,
    status: int,
    aside: bool,
    abort: bool,
) -> None:
    """Taken, too late, unknown: gone. Any other refusal is kept aside. Nothing is sent twice."""
    job_id = put(outbox, abort=abort)
    endpoint = "abort" if abort else "complete"
    server.answers[endpoint] = [httpx.Response(204) if status == 204 else refusal(status)]
    clock = FakeClock()
    for _ in range(3):
        reporter.deliver(clock)
        clock.advance(60)
    assert len(server.seen(endpoint)) == 1
    assert outbox.job_ids() == []
    assert refused(state) == ([job_id] if aside else [])


def test_too_large_a_report(
    server: FakeServer, reporter: Reporter, outbox: Outbox, state: StateDir
) -> None:
    """413, perhaps of a proxy: the verdicts are sent again without what the programs printed."""
    job_id = put(outbox)
    server.answers["complete"] = [refusal(413)]
    reporter.deliver(FakeClock())
    (case,) = server.completed[job_id]["tasks"][0]
    assert (case["status"], case["stdout"]) == (0, "")
    assert server.completed[job_id]["lease"] == "lease-1"
    assert (outbox.job_ids(), refused(state)) == ([], [])


def test_too_large_even_without_outputs(
    server: FakeServer, reporter: Reporter, outbox: Outbox, state: StateDir
) -> None:
    """Then it is kept aside, whole; so is a hand-back."""
    done, back = put(outbox), put(outbox, abort=True)
    server.answers["complete"] = [refusal(413), refusal(413)]
    server.answers["abort"] = [refusal(413)]
    reporter.deliver(FakeClock())
    assert (len(server.seen("complete")), len(server.seen("abort"))) == (2, 1)
    assert outbox.job_ids() == []
    assert sorted(refused(state)) == sorted([done, back])
    kept = json.loads((state.outbox / "refused" / f"{done}.json").read_text())
    assert kept["body"]["tasks"][0][0]["stdout"] == "3\n"


@pytest.mark.parametrize(
    "failure",
    [refusal(503), refusal(500), refusal(429), refusal(408), httpx.ConnectError("refused")],
    ids=["503", "500", "429", "408", "network"],
)
def test_retryable_answers(
    server: FakeServer,
    reporter: Reporter,
    outbox: Outbox,
    failure: httpx.Response | Exception,
) -> None:
    """INV7: it stays, waits longer each time up to 15 s, and is delivered in the end."""
    job_id = put(outbox)
    server.answers["complete"] = [failure] * 8
    clock = FakeClock()
    waits = []
    for _ in range(8):
        wait_s = reporter.deliver(clock)
        assert outbox.job_ids() == [job_id]
        waits.append(wait_s)
        tries = len(server.seen("complete"))
        clock.advance(wait_s - 0.1)
        reporter.deliver(clock)
        assert len(server.seen("complete")) == tries
        clock.advance(0.2)
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 15, 15, 15])
    reporter.deliver(clock)
    assert job_id in server.completed
    assert outbox.job_ids() == []


@pytest.mark.parametrize(("asked", "waited"), [("3", 3), ("600", RETRY_AFTER_CAP_S)])
def test_retry_after_is_respected(
    server: FakeServer, reporter: Reporter, outbox: Outbox, asked: str, waited: float
) -> None:
    """The server's wish wins, up to a minute."""
    put(outbox)
    server.answers["complete"] = [refusal(503, Retry_After=asked)]
    assert reporter.deliver(FakeClock()) == pytest.approx(waited)


def test_one_stubborn_report_blocks_no_other(
    server: FakeServer, reporter: Reporter, outbox: Outbox
) -> None:
    """The others of the same round are delivered, later ones too."""
    first = put(outbox)
    second = put(outbox, abort=True)
    server.down.add("complete")
    clock = FakeClock()
    reporter.deliver(clock)
    assert second in server.aborted
    third = put(outbox, abort=True)
    reporter.deliver(clock)
    assert third in server.aborted
    assert outbox.job_ids() == [first]


def test_a_success_forgets_the_failures(
    server: FakeServer, reporter: Reporter, outbox: Outbox
) -> None:
    """A job that comes back later starts with short waits again."""
    job_id = put(outbox)
    clock = FakeClock()
    server.answers["complete"] = [refusal(503)] * 5
    for _ in range(6):
        clock.advance(reporter.deliver(clock))
    assert outbox.job_ids() == []
    outbox.put(Entry(job_id, make_result()))
    server.answers["complete"] = [refusal(503)]
    assert reporter.deliver(clock) == pytest.approx(0.5)


def test_it_registers_anew_and_delivers(
    server: FakeServer, reporter: Reporter, outbox: Outbox
) -> None:
    """After a wiped Redis the report is sent as the new runner, and what comes of it is final."""
    put(outbox)
    server.wipe()
    server.answers["complete"] = [refusal(401), refusal(401), refusal(404)]
    clock = FakeClock()
    for _ in range(3):
        clock.advance(reporter.deliver(clock))
    assert len(server.seen("register")) == 2
    assert outbox.job_ids() == []


def test_an_outage_of_hours(server: FakeServer, reporter: Reporter, outbox: Outbox) -> None:
    """INV7: after a night without the server the report is still tried every 15 s."""
    put(outbox)
    server.down.add("complete")
    clock = FakeClock()
    for _ in range(1100):  # four and a half hours
        clock.advance(reporter.deliver(clock))
    server.down.clear()
    reporter.deliver(clock)
    assert outbox.job_ids() == []


def test_a_restart_delivers_what_was_left(
    server: FakeServer, api: ServerApi, session: Session, state: StateDir
) -> None:
    """INV7: a new process with the same directory has the same reports."""
    job_id = put(Outbox(state.outbox))
    session.open(threading.Event())
    Reporter(api=api, session=session, outbox=Outbox(state.outbox)).deliver(FakeClock())
    assert job_id in server.completed


def test_the_thread(server: FakeServer, reporter: Reporter, outbox: Outbox) -> None:
    """A new report is sent at once, not at the next round; the thread ends when told."""
    finished = threading.Event()
    thread = threading.Thread(target=reporter.run, args=(finished,), name="reporter")
    thread.start()
    try:
        for _ in range(3):
            put(outbox)
            wait_until(lambda: not outbox.job_ids(), what="it is sent", timeout_s=5)
    finally:
        finished.set()
        outbox.changed.set()
        thread.join(5)
    assert not thread.is_alive()
    assert len(server.completed) == 3
