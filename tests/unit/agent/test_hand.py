"""The jobs in hand: what is claimed is on the disk until it is reported."""

from __future__ import annotations

from noj_machine import make_job

from noj_agent.hand import Hand, Unfinished
from noj_agent.state import StateDir, read_json
from noj_shared.ids import new_job_id


def test_a_job_is_noted_and_forgotten(state: StateDir) -> None:
    """Its folder lives as long as it is in hand, readable by its owner only."""
    hand = Hand(state)
    job = make_job()
    held = hand.take(job)
    assert read_json(state.jobs / job.job_id / "job.json") == {
        "job_id": job.job_id,
        "lease": job.lease,
    }
    assert held.folder.stat().st_mode & 0o777 == 0o700
    assert (len(hand), hand.jobs(), hand.leases()) == (1, [held], {job.job_id: job.lease})
    for _ in range(2):
        hand.done(held)
        assert (len(hand), hand.jobs(), hand.leases()) == (0, [], {})
        assert list(state.jobs.iterdir()) == []


def test_a_job_that_comes_again(state: StateDir) -> None:
    """A repeated poll gives the same job: it is noted once, with its newest lease."""
    hand = Hand(state)
    job = make_job()
    hand.take(job)
    hand.take(job.model_copy(update={"lease": "newer"}))
    assert hand.leases() == {job.job_id: "newer"}


def test_dropping_stops_one_job(state: StateDir) -> None:
    """The others go on; an unknown id is no error."""
    hand = Hand(state)
    one, other = hand.take(make_job()), hand.take(make_job())
    hand.drop(one.job.job_id)
    hand.drop(new_job_id())
    assert (one.cancel.is_set(), one.dropped) == (True, True)
    assert (other.cancel.is_set(), other.dropped) == (False, False)


def test_cancelling_all_hands_them_back(state: StateDir) -> None:
    """They stop, but are not dropped: a report is still due."""
    hand = Hand(state)
    held = [hand.take(make_job()) for _ in range(2)]
    hand.cancel_all()
    assert [(job.cancel.is_set(), job.dropped) for job in held] == [(True, False)] * 2


def test_what_a_killed_predecessor_left(state: StateDir) -> None:
    """Every job folder is found, with its lease where that can be read; other things go."""
    job = make_job()
    Hand(state).take(job)
    torn, empty = new_job_id(), new_job_id()
    for job_id in (torn, empty):
        (state.jobs / job_id).mkdir()
    (state.jobs / torn / "job.json").write_text("{")
    (state.jobs / "notes").mkdir()
    found = {left.job_id: left for left in Hand(state).unfinished()}
    assert found == {
        job.job_id: Unfinished(job.job_id, job.lease, state.jobs / job.job_id),
        torn: Unfinished(torn, None, state.jobs / torn),
        empty: Unfinished(empty, None, state.jobs / empty),
    }
    assert not (state.jobs / "notes").exists()
