"""The queue against a small Python model: hypothesis makes up histories of transitions.

After every step the queue's state and answers are those of the model; so a job lands at most
once, nothing is lost, attempts stay within the limit, and only current jobs land (INV1, INV3,
INV4, INV5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from noj_testing import RedisServer

from noj_server import keys
from noj_server.job_queue import Abort, Cancel, JobQueue, LandedSummary, Landing, QueueSettings
from noj_shared.ids import new_job_id, new_runner_id

MAX_ATTEMPTS = 3
RUNNERS = tuple(new_runner_id() for _ in range(3))
LANGUAGES = (0, 2)
Claims = tuple[str, str, str] | MultipleResults[tuple[str, str, str]]
"""A job, the runner that claimed it and the lease; or nothing."""


@dataclass
class ModelJob:
    """What the model knows of one job. `holder` outlives the lease until somebody reclaims."""

    submission: str
    language: int
    rank: tuple[int, int]
    state: str = "pending"
    attempts: int = 0
    holder: tuple[str, str] | None = None
    expired: bool = False
    given_back: tuple[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in ("landed", "superseded", "cancelled")


@dataclass
class Model:
    """The queue as a person would write it on one page."""

    jobs: dict[str, ModelJob] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    feed: list[tuple[str, int]] = field(default_factory=list)
    arrivals: int = 0

    def add(self, submission: str, job: str, language: int, priority: int) -> None:
        """A new job becomes the current one."""
        self.arrivals += 1
        self.jobs[job] = ModelJob(submission, language, (-priority, self.arrivals))
        self.current[submission] = job
        self.cancelled.discard(submission)

    def end_current(self, submission: str, state: str) -> None:
        """Supersede or cancel what has not landed."""
        job = self.jobs[self.current[submission]]
        if not job.ended:
            job.state = state

    def next_for(self, languages: tuple[int, ...]) -> str | None:
        """Who is claimed next: highest priority, then first arrival."""
        waiting = [
            (job.rank, name)
            for name, job in self.jobs.items()
            if job.state == "pending" and job.language in languages
        ]
        return min(waiting)[1] if waiting else None

    def land(self, name: str, status: int) -> None:
        """The job ends with a result."""
        self.jobs[name].state = "landed"
        self.feed.append((name, status))

    def lose(self, name: str, *, refund: bool, status: int = 6) -> str:
        """An attempt failed."""
        job = self.jobs[name]
        if refund:
            job.attempts -= 1
        if job.attempts >= MAX_ATTEMPTS:
            job.holder = None
            self.land(name, status)
            return "judge_error"
        job.state = "pending"
        return "requeued"


class QueueMachine(RuleBasedStateMachine):
    """Drives the queue and the model alike."""

    client: redis.Redis  # set by the tests: which Redis to run on

    submissions: Bundle[str] = Bundle("submissions")
    claims: Bundle[tuple[str, str, str]] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.queue = JobQueue(self.client, QueueSettings(max_attempts=MAX_ATTEMPTS))
        self.model = Model()

    @initialize(target=submissions)
    def begin(self) -> MultipleResults[str]:
        """Two submissions to begin with, so that no history is empty."""
        return multiple(self.enqueue_one(0, 0, again=True), self.enqueue_one(2, 0, again=False))

    @rule(
        target=submissions,
        language=st.sampled_from(LANGUAGES),
        priority=st.sampled_from([-1, 0, 7]),
        again=st.booleans(),
    )
    def enqueue(self, language: int, priority: int, again: bool) -> str:
        """A new submission; perhaps sent twice."""
        return self.enqueue_one(language, priority, again=again)

    def enqueue_one(self, language: int, priority: int, *, again: bool) -> str:
        """Enqueue on both sides; the submission id."""
        submission, job = f"s{len(self.model.current)}", new_job_id()
        for attempt in range(1 + again):
            answer = self.queue.enqueue_job(
                submission_id=submission,
                job_id=job if attempt == 0 else new_job_id(),
                problem_id="p",
                version="v",
                language=language,
                code_blob="b",
                priority=priority,
            )
            assert (answer.job_id, answer.created) == (job, attempt == 0)
        self.model.add(submission, job, language, priority)
        return submission

    @rule(
        target=claims,
        runner=st.sampled_from(RUNNERS),
        languages=st.sampled_from([(0,), (2,), (0, 2)]),
    )
    def claim(self, runner: str, languages: tuple[int, ...]) -> Claims:
        """A runner asks for work."""
        return self.claim_one(runner, languages) or multiple()

    def claim_one(self, runner: str, languages: tuple[int, ...]) -> tuple[str, str, str] | None:
        """Claim on both sides; job, runner and lease."""
        got = self.queue.claim_next_job(runner, languages, max_jobs=100)
        wanted = self.model.next_for(languages)
        assert (got.job_id if got else None) == wanted
        if got is None or wanted is None:
            return None
        job = self.model.jobs[wanted]
        job.state, job.expired, job.holder = "leased", False, (runner, got.lease)
        job.attempts += 1
        assert got.attempts == job.attempts <= MAX_ATTEMPTS
        return (wanted, runner, got.lease)

    @rule(claim=claims, named=st.booleans(), status=st.sampled_from([0, 1, 4]))
    def complete(self, claim: tuple[str, str, str], named: bool, status: int) -> None:
        """A report under a lease that was handed out once, or by the runner's name alone."""
        self.complete_one(claim, named, status)

    def complete_one(self, claim: tuple[str, str, str], named: bool, status: int) -> None:
        """The step on both sides, compared."""
        name, runner, lease = claim
        summary = LandedSummary(status, 100 if status == 0 else 0, 5, 900, "b")
        answer = self.queue.complete_job(runner, name, lease if named else None, summary)
        job = self.model.jobs[name]
        mine = self.holds(job, runner, lease if named else None)
        if job.state in ("superseded", "cancelled"):
            assert answer is Landing.STALE
        elif not mine:
            assert answer is Landing.NOT_YOURS
        elif job.state == "landed":
            assert answer is Landing.ALREADY_LANDED
        else:
            assert answer is Landing.LANDED
            self.model.land(name, status)

    @rule(claim=claims, stranger=st.sampled_from(RUNNERS))
    def complete_under_a_wrong_lease(self, claim: tuple[str, str, str], stranger: str) -> None:
        """A made-up lease never lands anything."""
        summary = LandedSummary(0, 100, 5, 900, "b")
        answer = self.queue.complete_job(stranger, claim[0], "made-up", summary)
        stale = self.model.jobs[claim[0]].state in ("superseded", "cancelled")
        assert answer is (Landing.STALE if stale else Landing.NOT_YOURS)

    @rule(
        claim=claims,
        named=st.booleans(),
        reason=st.sampled_from(["drain", "prep_failed", "rejected"]),
    )
    def abort(self, claim: tuple[str, str, str], named: bool, reason: str) -> None:
        """A job comes back, perhaps twice, perhaps too late."""
        self.abort_one(claim, named, reason)

    def abort_one(self, claim: tuple[str, str, str], named: bool, reason: str) -> None:
        """The step on both sides, compared."""
        name, runner, lease = claim
        given = lease if named else None
        job = self.model.jobs[name]
        wanted = self.expected_abort(job, runner, given)
        if wanted is None:
            held = job.holder
            if job.state == "leased":
                outcome = self.model.lose(name, refund=reason == "drain")
            else:
                outcome = "requeued"  # expired and requeued before
            job.holder, job.given_back = None, held
            wanted = Abort(outcome)
        assert self.queue.abort_job(runner, name, given, reason=reason) is wanted

    def expected_abort(self, job: ModelJob, runner: str, lease: str | None) -> Abort | None:
        """The answer that changes nothing, or None if this abort counts."""
        if job.state in ("superseded", "cancelled"):
            return Abort.STALE
        back = job.given_back
        if job.holder is None and back and back[0] == runner and lease in (None, back[1]):
            return Abort.JUDGE_ERROR if job.state == "landed" else Abort.REQUEUED
        if job.state == "landed" or not self.holds(job, runner, lease):
            return Abort.NOT_YOURS
        return None

    def held(self, pick: int) -> tuple[str, str, str] | None:
        """One of the jobs somebody still works on, expired ones included."""
        live = [
            (name, *job.holder)
            for name, job in self.model.jobs.items()
            if job.holder is not None and not job.ended
        ]
        return live[pick % len(live)] if live else None

    @rule(pick=st.integers(0, 3), named=st.booleans(), status=st.sampled_from([0, 1, 4]))
    def complete_as_holder(self, pick: int, named: bool, status: int) -> None:
        """A report that must land, also when the lease has expired and was requeued."""
        if claim := self.held(pick):
            self.complete_one(claim, named, status)
            assert self.model.jobs[claim[0]].state == "landed"

    @rule(
        pick=st.integers(0, 3),
        named=st.booleans(),
        reason=st.sampled_from(["drain", "drain", "prep_failed", "rejected"]),
    )
    def abort_as_holder(self, pick: int, named: bool, reason: str) -> None:
        """An abort that must count; and the same once more."""
        if claim := self.held(pick):
            self.abort_one(claim, named, reason)
            self.abort_one(claim, named, reason)

    @rule(pick=st.integers(0, 3), then=st.sampled_from(["silence", "renew", "report"]))
    def lose_a_lease(self, pick: int, then: str) -> None:
        """A runner falls silent for a whole lease; perhaps it comes back before the reclaim."""
        if claim := self.held(pick):
            self.expire_one(claim)
            self.sweep_once()
            if then == "renew":
                self.renew_one(claim, True)
            elif then == "report":
                self.complete_one(claim, True, 0)

    @rule(runner=st.sampled_from(RUNNERS), reason=st.sampled_from(["lease", "prep_failed"]))
    def use_up_the_attempts(self, runner: str, reason: str) -> None:
        """One job fails again and again until it lands as JE; its last holder comes too late."""
        for _ in range(MAX_ATTEMPTS):
            claim = self.claim_one(runner, LANGUAGES)
            if claim is None:
                return
            if reason == "lease":
                self.expire_one(claim)
                self.sweep_once()
            else:
                self.abort_one(claim, True, reason)
            if self.model.jobs[claim[0]].ended:
                self.complete_one(claim, True, 0)

    @rule(claim=claims, named=st.booleans())
    def renew(self, claim: tuple[str, str, str], named: bool) -> None:
        """A heartbeat for one job: renewed (also out of pending), cancelled, or lost."""
        self.renew_one(claim, named)

    def renew_one(self, claim: tuple[str, str, str], named: bool) -> None:
        """The step on both sides, compared."""
        name, runner, lease = claim
        job = self.model.jobs[name]
        answer = self.queue.renew_lease(runner, [name], {name: lease} if named else None)
        if not self.holds(job, runner, lease if named else None):
            assert answer.lost == (name,)
        elif job.state in ("superseded", "cancelled"):
            assert answer.cancel == (name,)
        elif job.state == "landed":
            assert answer == type(answer)((), (), ())
        else:
            assert answer.renewed == (name,)
            job.state, job.expired = "leased", False

    @rule(claim=claims)
    def expire(self, claim: tuple[str, str, str]) -> None:
        """A lease runs out by Redis' clock; nobody has noticed yet."""
        self.expire_one(claim)

    def expire_one(self, claim: tuple[str, str, str]) -> None:
        """The step on both sides, compared."""
        job = self.model.jobs[claim[0]]
        if job.state == "leased":
            assert self.client.zadd(keys.LEASED, {claim[0]: 1}, xx=True, ch=True) in (0, 1)
            job.expired = True

    @rule()
    def sweep(self) -> None:
        """A tick: exactly the expired leases are orphans (INV2)."""
        self.sweep_once()

    def sweep_once(self) -> None:
        """The step on both sides, compared."""
        self.client.set(keys.TICK, self.queue.now_ms() - 1000)
        report = self.queue.sweep()
        assert report.ticked
        requeued: set[str] = set()
        exhausted: set[str] = set()
        for name, job in self.model.jobs.items():
            if job.state == "leased" and job.expired:
                job.expired = False
                outcome = self.model.lose(name, refund=False)
                (requeued if outcome == "requeued" else exhausted).add(name)
        assert (set(report.requeued), set(report.exhausted)) == (requeued, exhausted)
        # Within one tick the order of landing is that of the deadlines; take the queue's.
        count = len(exhausted)
        if count:
            landed = [entry.job_id for entry in self.queue.last_results(count)]
            self.model.feed[-count:] = [(name, 6) for name in reversed(landed)]

    @rule(submission=submissions)
    def rejudge(self, submission: str) -> None:
        """A new job; the old one is superseded at once."""
        job, old = new_job_id(), self.model.current[submission]
        before = self.model.jobs[old]
        superseded = self.queue.rejudge(submission, job, version="w")
        assert superseded == (None if before.ended else old)
        self.model.end_current(submission, "superseded")
        self.model.add(submission, job, before.language, -before.rank[0])

    @rule(submission=submissions)
    def cancel(self, submission: str) -> None:
        """What has landed stays."""
        done = self.model.jobs[self.model.current[submission]].state == "landed"
        answer = self.queue.cancel_submission(submission)
        assert answer is (Cancel.DONE if done else Cancel.CANCELLED)
        if not done:
            self.model.end_current(submission, "cancelled")
            self.model.cancelled.add(submission)

    def members(self, key: str) -> list[str]:
        """A sorted set, in order."""
        found: Any = self.client.zrange(key, 0, -1)
        return list(found)

    @staticmethod
    def holds(job: ModelJob, runner: str, lease: str | None) -> bool:
        """Whether a report counts as the present holder's."""
        return job.holder is not None and job.holder[0] == runner and lease in (None, job.holder[1])

    @invariant()
    def the_same_jobs_are_pending_and_leased(self) -> None:
        """INV1: every job is in exactly the place the model says, so none is lost or doubled."""
        pending = {
            job: language for language in LANGUAGES for job in self.members(keys.pending(language))
        }
        leased = set(self.members(keys.LEASED))
        jobs = self.model.jobs
        assert pending == {n: j.language for n, j in jobs.items() if j.state == "pending"}
        assert leased == {n for n, j in jobs.items() if j.state == "leased"}
        for runner in RUNNERS:
            assert set(self.queue.held_jobs(runner)) == {
                n for n in leased if (h := jobs[n].holder) is not None and h[0] == runner
            }

    @invariant()
    def the_feed_is_the_same(self) -> None:
        """INV3, INV4: each landing once, in order, and only of jobs that were current."""
        landed = [(entry.job_id, entry.status) for entry in self.queue.results("0", 10_000)]
        assert landed == self.model.feed
        assert len({job for job, _ in landed}) == len(landed)

    @invariant()
    def every_submission_stands_where_it_should(self) -> None:
        """A submission's state is that of its current job; attempts never exceed the limit."""
        state_of = {"pending": "pending", "leased": "judging", "landed": "done"}
        for submission, name in self.model.current.items():
            record, job = self.queue.submission(submission), self.model.jobs[name]
            stored = self.queue.job(name)
            assert record is not None
            assert stored is not None
            assert record.job_id == name
            assert record.state == state_of.get(job.state, "cancelled")
            assert stored.attempts == job.attempts
            assert 0 <= stored.attempts <= MAX_ATTEMPTS

    def teardown(self) -> None:
        """INV5: from wherever we are, everything ends within the attempts that are left."""
        for _ in range(MAX_ATTEMPTS + 1):
            for runner in RUNNERS:
                while self.queue.claim_next_job(runner, LANGUAGES, max_jobs=1000):
                    pass
            for name in self.members(keys.LEASED):
                self.client.zadd(keys.LEASED, {name: 1}, xx=True)
            self.client.set(keys.TICK, self.queue.now_ms() - 1000)
            self.queue.sweep()
        assert self.queue.depth() == 0
        assert not self.queue.leases()
        for submission in self.model.current:
            record = self.queue.submission(submission)
            assert record is not None
            assert record.state in ("done", "cancelled")


def run(client: redis.Redis, *, examples: int, steps: int) -> None:
    """Run the machine on one Redis."""
    machine = type("QueueMachineOnRedis", (QueueMachine,), {"client": client})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_embedded_redis_follows_the_model() -> None:
    """Many histories on the embedded Redis."""
    with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
        run(client, examples=40, steps=30)


@pytest.mark.redis
def test_the_real_redis_follows_the_model(redis_server: RedisServer) -> None:
    """The same on a redis-server, whose Lua is the one that counts."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        run(client, examples=150, steps=40)
        client.flushall()
