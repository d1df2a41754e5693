"""The queue: one method per transition, each one Lua script; and what operators read of it.

Time is Redis' clock, inside the scripts. Every mutating call is idempotent by its job, lease or
idempotency key, so it may be repeated after a lost reply. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from redis import Redis

from noj_server import keys
from noj_server.redis_client import now_ms, sync
from noj_server.scripts import Scripts
from noj_shared.ids import new_lease_id
from noj_shared.language import Language

_SHOWN_LIMIT = 1000
"""At most so many jobs are read for one operator's view."""
_DETAIL_LIMIT = 500


@dataclass(frozen=True)
class QueueSettings:
    """How long things last, and how often a job is tried."""

    lease_ttl_s: float = 30.0
    max_attempts: int = 3
    retention_s: int = 30 * 86_400
    tick_s: float = 1.0

    @property
    def lease_ttl_ms(self) -> int:
        """The lease TTL as Redis takes it."""
        return round(self.lease_ttl_s * 1000)

    @property
    def outage_gap_ms(self) -> int:
        """A gap between ticks longer than this was an outage (INV6).

        A sixth of the lease TTL: a gap below it cannot expire a lease that is renewed every
        half TTL. At least three ticks, so that a late sweeper alone is none.
        """
        return round(1000 * max(self.lease_ttl_s / 6, 3 * self.tick_s))


@dataclass(frozen=True)
class Enqueued:
    """`created` is False when the submission was there already; `job_id` is its current job."""

    job_id: str
    created: bool


@dataclass(frozen=True)
class ClaimedJob:
    """A job leased to the runner that asked."""

    job_id: str
    submission_id: str
    problem_id: str
    version: str
    language: int
    code_blob: str
    lease: str
    attempts: int
    deadline_ms: int


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat's jobs came to; see wire.HeartbeatReply."""

    renewed: tuple[str, ...]
    cancel: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class LandedSummary:
    """The final result as Redis keeps it; details are in the blob."""

    status: int
    score: int
    time_ms: int
    memory_kib: int
    result_blob: str


class Landing(StrEnum):
    """The answers to a report."""

    LANDED = "landed"
    ALREADY_LANDED = "already_landed"
    STALE = "stale"
    NOT_YOURS = "not_yours"
    UNKNOWN = "unknown"


class Abort(StrEnum):
    """The answers to an abort."""

    REQUEUED = "requeued"
    JUDGE_ERROR = "judge_error"
    STALE = "stale"
    NOT_YOURS = "not_yours"
    UNKNOWN = "unknown"


class Cancel(StrEnum):
    """The answers to a cancellation."""

    CANCELLED = "cancelled"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SweepReport:
    """One tick. `ticked` is False when another process had it."""

    ticked: bool
    grace_until_ms: int | None = None
    requeued: tuple[str, ...] = ()
    exhausted: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRecord:
    """One job as Redis has it."""

    job_id: str
    submission_id: str
    problem_id: str
    version: str
    language: int
    state: str
    attempts: int
    priority: int
    runner_id: str
    lease: str
    created_ms: int
    leased_ms: int | None


@dataclass(frozen=True)
class SubmissionRecord:
    """One submission as Redis has it; the last fields are None until it has landed."""

    submission_id: str
    state: str
    job_id: str
    problem_id: str
    version: str
    language: int
    user: str
    priority: int
    code_blob: str
    created_ms: int
    status: int | None
    score: int | None
    time_ms: int | None
    memory_kib: int | None
    result_blob: str
    runner_id: str
    attempts: int | None
    landed_ms: int | None


@dataclass(frozen=True)
class AttemptRecord:
    """One failed attempt."""

    at_ms: int
    runner_id: str
    lease: str
    reason: str
    detail: str


@dataclass(frozen=True)
class PendingLine:
    """Pending jobs of one language and priority."""

    language: int
    priority: int
    depth: int
    oldest_wait_s: float


@dataclass(frozen=True)
class LeaseRecord:
    """One leased job, with times by Redis' clock."""

    job: JobRecord
    age_s: float
    time_left_s: float


@dataclass(frozen=True)
class FeedEntry:
    """One landed result; `cursor` orders them."""

    cursor: str
    submission_id: str
    job_id: str
    problem_id: str
    status: int
    score: int
    time_ms: int
    memory_kib: int
    runner_id: str
    attempts: int
    landed_ms: int


@dataclass(frozen=True)
class OrphanRecord:
    """A lease that expired: when, whose, and the job as it is now (None once forgotten)."""

    at_ms: int
    job_id: str
    runner_id: str
    job: JobRecord | None


class UnknownSubmissionError(LookupError):
    """No such submission."""


class ClaimRefusedError(Exception):
    """Whatever is pending, this runner gets nothing now: it is `full`, `paused` or `revoked`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JobQueue:
    """The queue on one Redis. Thread-safe. Every method may raise redis.RedisError.

    `claim_redis` is a client of the same server with retries off: a claim that redis-py repeats
    after a timeout would lease two jobs.
    """

    def __init__(
        self, redis: Redis, settings: QueueSettings, *, claim_redis: Redis | None = None
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._scripts = Scripts(redis)
        self._claim_scripts = Scripts(claim_redis) if claim_redis is not None else self._scripts

    @property
    def settings(self) -> QueueSettings:
        """The settings it was made with."""
        return self._settings

    # -- transitions --------------------------------------------------------------------------

    def enqueue_job(
        self,
        *,
        submission_id: str,
        job_id: str,
        problem_id: str,
        version: str,
        language: int,
        code_blob: str,
        user: str = "",
        priority: int = 0,
    ) -> Enqueued:
        """A new submission with its first job; idempotent by submission id."""
        state, current = self._scripts.run(
            "enqueue",
            *(submission_id, job_id, problem_id, version, language, code_blob, user, priority),
        )
        return Enqueued(job_id=current, created=state == "created")

    def rejudge(self, submission_id: str, new_job_id: str, *, version: str) -> str | None:
        """A new job for a submission; the id of the one it superseded, if that had not ended.

        Raises UnknownSubmissionError.
        """
        reply = self._scripts.run("rejudge", submission_id, new_job_id, version, keys.TOMBSTONE_S)
        if reply[0] == "unknown":
            raise UnknownSubmissionError(submission_id)
        return reply[1] or None

    def cancel_submission(self, submission_id: str) -> Cancel:
        """Cancel what has not landed yet."""
        reply = self._scripts.run(
            "cancel", submission_id, self._settings.retention_s, keys.TOMBSTONE_S
        )
        return Cancel(reply[0])

    def claim_next_job(
        self,
        runner_id: str,
        languages: Sequence[int],
        *,
        idempotency_key: str | None = None,
        max_jobs: int = 8,
    ) -> ClaimedJob | None:
        """Lease the best pending job; None if there is none. Raises ClaimRefusedError."""
        reply = self._claim_scripts.run(
            "claim",
            *(runner_id, new_lease_id(), idempotency_key or ""),
            *(self._settings.lease_ttl_ms, max_jobs, *languages),
        )
        if reply[0] == "none":
            return None
        if reply[0] != "claimed":
            raise ClaimRefusedError(reply[0])
        fields = _pairs(reply[3])
        return ClaimedJob(
            job_id=reply[1],
            submission_id=fields["submission"],
            problem_id=fields["problem"],
            version=fields["version"],
            language=int(fields["language"]),
            code_blob=fields["blob"],
            lease=fields["lease"],
            attempts=int(fields["attempts"]),
            deadline_ms=int(float(reply[2])),
        )

    def renew_lease(
        self, runner_id: str, active: Iterable[str], leases: Mapping[str, str] | None = None
    ) -> Renewal:
        """Extend the leases of the jobs a runner says it works on."""
        pairs = [part for jb in active for part in (jb, (leases or {}).get(jb, ""))]
        reply = self._scripts.run(
            "renew", runner_id, self._settings.lease_ttl_ms, keys.TOMBSTONE_S, *pairs
        )
        return Renewal(*(tuple(part) for part in reply))

    def complete_job(
        self, runner_id: str, job_id: str, lease: str | None, summary: LandedSummary
    ) -> Landing:
        """Land a result. The blob it names must be durable already (INV1)."""
        return Landing(
            self._scripts.run(
                "complete",
                *(runner_id, job_id, lease or "", summary.status, summary.score),
                *(summary.time_ms, summary.memory_kib, summary.result_blob),
                *(self._settings.retention_s, keys.TOMBSTONE_S),
            )
        )

    def abort_job(
        self, runner_id: str, job_id: str, lease: str | None, *, reason: str, detail: str = ""
    ) -> Abort:
        """Give a job back; `reason` is one of wire.AbortReason."""
        return Abort(
            self._scripts.run(
                "abort",
                *(runner_id, job_id, lease or "", reason, _one_line(detail)),
                *(self._settings.max_attempts, self._settings.retention_s, keys.TOMBSTONE_S),
            )
        )

    def sweep(self, limit: int = 100) -> SweepReport:
        """One tick of the sweeper; at most `limit` orphans. See lua/sweep.lua."""
        settings = self._settings
        reply = self._scripts.run(
            "sweep",
            *(round(settings.tick_s * 1000), settings.outage_gap_ms, settings.lease_ttl_ms),
            *(settings.max_attempts, settings.retention_s, keys.TOMBSTONE_S, limit),
        )
        if reply[0] == "grace":
            return SweepReport(ticked=True, grace_until_ms=int(reply[1]))
        if reply[0] == "not_yet":
            return SweepReport(ticked=False)
        return SweepReport(ticked=True, requeued=tuple(reply[1]), exhausted=tuple(reply[2]))

    # -- reads --------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Redis' clock."""
        return now_ms(self._redis)

    def job(self, job_id: str) -> JobRecord | None:
        """One job, also for a day after it ended."""
        return _job_record(job_id, sync(self._redis.hgetall(keys.job(job_id))))

    def submission(self, submission_id: str) -> SubmissionRecord | None:
        """One submission."""
        fields = sync(self._redis.hgetall(keys.submission(submission_id)))
        if not fields:
            return None
        return SubmissionRecord(
            submission_id=submission_id,
            state=fields["state"],
            job_id=fields["job"],
            problem_id=fields["problem"],
            version=fields["version"],
            language=int(fields["language"]),
            user=fields["user"],
            priority=int(fields["priority"]),
            code_blob=fields["blob"],
            created_ms=int(fields["created_ms"]),
            status=_number(fields.get("status")),
            score=_number(fields.get("score")),
            time_ms=_number(fields.get("time_ms")),
            memory_kib=_number(fields.get("memory_kib")),
            result_blob=fields.get("result_blob", ""),
            runner_id=fields.get("runner", ""),
            attempts=_number(fields.get("attempts")),
            landed_ms=_number(fields.get("landed_ms")),
        )

    def history(self, job_id: str) -> list[AttemptRecord]:
        """A job's failed attempts, oldest first."""
        lines = sync(self._redis.lrange(keys.history(job_id), 0, -1))
        return [
            AttemptRecord(int(at), runner, lease, reason, detail)
            for at, runner, lease, reason, detail in (line.split("\x1f", 4) for line in lines)
        ]

    def held_jobs(self, runner_id: str) -> list[str]:
        """The jobs leased to a runner."""
        return sorted(sync(self._redis.smembers(keys.runner(runner_id, "jobs"))))

    def depth(self) -> int:
        """How many jobs are pending."""
        return sum(sync(self._redis.zcard(keys.pending(lang))) for lang in Language)

    def pending_lines(self) -> list[PendingLine]:
        """Pending jobs by language and priority; two range look-ups per priority in use."""
        now = now_ms(self._redis)
        lines = []
        for language in Language:
            key = keys.pending(language)
            floor = "-inf"
            while first := sync(
                self._redis.zrangebyscore(key, floor, "+inf", start=0, num=1, withscores=True)
            ):
                job_id, score = first[0]
                step = int(score // keys.PRIORITY_STEP)
                ceiling = (step + 1) * keys.PRIORITY_STEP
                created = sync(self._redis.hget(keys.job(job_id), "created_ms"))
                lines.append(
                    PendingLine(
                        language=int(language),
                        priority=100 - step,
                        depth=sync(self._redis.zcount(key, floor, f"({ceiling}")),
                        oldest_wait_s=max(now - int(created or now), 0) / 1000,
                    )
                )
                floor = str(ceiling)
        return lines

    def leases(self) -> list[LeaseRecord]:
        """The leased jobs, next deadline first; at most a thousand."""
        now = now_ms(self._redis)
        rows = sync(self._redis.zrange(keys.LEASED, 0, _SHOWN_LIMIT - 1, withscores=True))
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in rows:
                pipe.hgetall(keys.job(job_id))
            found = pipe.execute()
        return [
            LeaseRecord(
                job=record,
                age_s=max(now - (record.leased_ms or now), 0) / 1000,
                time_left_s=(deadline - now) / 1000,
            )
            for (job_id, deadline), fields in zip(rows, found, strict=True)
            # A job that was handed back since the first look is no lease any more.
            if (record := _job_record(job_id, fields)) is not None and record.state == "leased"
        ]

    def results(self, after: str, count: int = 100) -> list[FeedEntry]:
        """Landed results after a cursor, in order; "0" is before all of them."""
        entries = sync(self._redis.xrange(keys.RESULTS, min=f"({after}", count=count))
        return [_feed_entry(cursor, fields) for cursor, fields in entries]

    def last_results(self, count: int = 10) -> list[FeedEntry]:
        """The newest landed results, newest first."""
        entries = sync(self._redis.xrevrange(keys.RESULTS, count=count))
        return [_feed_entry(cursor, fields) for cursor, fields in entries]

    def orphans(self, count: int = 5) -> list[OrphanRecord]:
        """The newest orphans, newest first; at most 20 are remembered, for a day."""
        lines = sync(self._redis.lrange(keys.ORPHANS, 0, count - 1))
        return [
            OrphanRecord(int(at), job_id, runner_id, self.job(job_id))
            for at, job_id, runner_id in (line.split("\x1f") for line in lines)
        ]

    def grace_left_s(self) -> float:
        """For how long no lease is judged expired, after an outage."""
        until = sync(self._redis.get(keys.GRACE))
        return max(int(until) - now_ms(self._redis), 0) / 1000 if until else 0.0

    def tick_age_s(self) -> float | None:
        """Seconds since the last sweep; None if there was none."""
        tick = sync(self._redis.get(keys.TICK))
        return (now_ms(self._redis) - int(tick)) / 1000 if tick else None


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _number(value: str | None) -> int | None:
    return int(value) if value is not None else None


def _one_line(detail: str) -> str:
    return " ".join(detail.replace("\x1f", " ").split())[:_DETAIL_LIMIT]


def _job_record(job_id: str, fields: Mapping[str, str]) -> JobRecord | None:
    if "submission" not in fields:
        return None
    return JobRecord(
        job_id=job_id,
        submission_id=fields["submission"],
        problem_id=fields["problem"],
        version=fields["version"],
        language=int(fields["language"]),
        state=fields["state"],
        attempts=int(fields["attempts"]),
        priority=int(fields["priority"]),
        runner_id=fields["runner"],
        lease=fields["lease"],
        created_ms=int(fields["created_ms"]),
        leased_ms=_number(fields.get("leased_ms")),
    )


def _feed_entry(cursor: str, fields: Mapping[str, str]) -> FeedEntry:
    return FeedEntry(
        cursor=cursor,
        submission_id=fields["submission"],
        job_id=fields["job"],
        problem_id=fields["problem"],
        status=int(fields["status"]),
        score=int(fields["score"]),
        time_ms=int(fields["time_ms"]),
        memory_kib=int(fields["memory_kib"]),
        runner_id=fields["runner"],
        attempts=int(fields["attempts"]),
        landed_ms=int(fields["landed_ms"]),
    )
