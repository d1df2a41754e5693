"""A queue on a clean Redis: the real one, and the embedded one that must run the same Lua."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import fakeredis
import pytest
import redis
from noj_testing import RedisServer

from noj_server import keys
from noj_server.job_queue import ClaimedJob, JobQueue, LandedSummary, QueueSettings
from noj_shared.ids import new_job_id, new_runner_id, new_submission_id

AC = LandedSummary(status=0, score=100, time_ms=5, memory_kib=900, result_blob="b")


@dataclass
class Bench:
    """A queue with the hands to work it: enqueue, claim, age a lease."""

    redis: redis.Redis
    queue: JobQueue
    runner: str = field(default_factory=new_runner_id)

    def enqueue(self, submission_id: str | None = None, *, priority: int = 0, lang: int = 0) -> str:
        """A new submission; its job id."""
        return self.queue.enqueue_job(
            submission_id=submission_id or new_submission_id(),
            job_id=new_job_id(),
            problem_id="p1",
            version="v" * 64,
            language=lang,
            code_blob="c" * 64,
            user="alice",
            priority=priority,
        ).job_id

    def claim(self, runner: str | None = None, *, key: str | None = None) -> ClaimedJob:
        """The next job; there must be one."""
        claimed = self.queue.claim_next_job(runner or self.runner, [0, 1, 2], idempotency_key=key)
        assert claimed is not None
        return claimed

    def nothing_to_claim(self) -> bool:
        """Whether a claim by a fresh runner gets nothing."""
        return self.queue.claim_next_job(new_runner_id(), [0, 1, 2]) is None

    def expire(self, job_id: str) -> None:
        """Move a lease's deadline into the past, by Redis' clock."""
        self.redis.zadd(keys.LEASED, {job_id: self.queue.now_ms() - 1}, xx=True)

    def sweep(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One tick that is surely ours and no outage; (requeued, exhausted)."""
        self.redis.set(keys.TICK, self.queue.now_ms() - 1000)
        report = self.queue.sweep()
        assert report.ticked
        assert report.grace_until_ms is None
        return report.requeued, report.exhausted


@pytest.fixture(params=["redis-server", "embedded"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of an empty Redis of either kind."""
    if request.param == "embedded":
        with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as fake:
            yield fake
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    with redis.Redis.from_url(server.url, decode_responses=True) as real:
        real.flushall()
        yield real


@pytest.fixture
def make_bench(client: redis.Redis) -> Callable[[QueueSettings], Bench]:
    """A bench with settings of the test's own."""
    return lambda settings: Bench(client, JobQueue(client, settings))


@pytest.fixture
def bench(make_bench: Callable[[QueueSettings], Bench]) -> Bench:
    """A bench with the default settings."""
    return make_bench(QueueSettings())
