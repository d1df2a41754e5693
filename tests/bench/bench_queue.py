"""How much the queue costs beside the plainest thing Redis can do: `python bench_queue.py`.

Enqueue + claim + complete of one job, beside LPUSH + RPOPLPUSH + LREM of a plain list, on the same
private redis-server in one run, interleaved, so that a noisy machine disturbs both alike. Read
the ratios, not the rates. Not a test: it asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from noj_testing import RedisServer

from noj_server.job_queue import JobQueue, LandedSummary, QueueSettings
from noj_shared.ids import new_job_id, new_runner_id, new_submission_id

SUMMARY = LandedSummary(status=0, score=100, time_ms=5, memory_kib=900, result_blob="b")


def plain_jobs(client: redis.Redis, count: int) -> None:
    """A list, a processing list, and the removal: no lease, no fence, no result."""
    for _ in range(count):
        client.lpush("plain", new_job_id())
    for _ in range(count):
        got = client.rpoplpush("plain", "processing")
        client.lrem("processing", 1, str(got))


def queue_jobs(client: redis.Redis, count: int) -> None:
    """The same by the queue: leases, fencing, priorities, results, feed."""
    queue, runner = JobQueue(client, QueueSettings()), new_runner_id()
    for _ in range(count):
        queue.enqueue_job(
            submission_id=new_submission_id(),
            job_id=new_job_id(),
            problem_id="p1",
            version="v" * 64,
            language=0,
            code_blob="c" * 64,
            user="ann",
        )
    for _ in range(count):
        claimed = queue.claim_next_job(runner, [0, 1, 2])
        assert claimed is not None
        queue.complete_job(runner, claimed.job_id, claimed.lease, SUMMARY)


def jobs_per_s(work: Callable[[redis.Redis, int], None], client: redis.Redis, count: int) -> float:
    """One timed round on an empty Redis."""
    client.flushall()
    started = time.perf_counter()
    work(client, count)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Print rates and their ratio, median of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        rounds = [
            (
                jobs_per_s(plain_jobs, client, given.jobs),
                jobs_per_s(queue_jobs, client, given.jobs),
            )
            for _ in range(given.rounds)
        ]
    plain, queue = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [ours / theirs for theirs, ours in rounds]
    sys.stdout.write(
        f"plain list    {plain:8.0f} jobs/s\n"
        f"noj queue     {queue:8.0f} jobs/s\n"
        f"ratio         {statistics.median(ratios):8.2f}"
        f"  ({min(ratios):.2f} to {max(ratios):.2f} over {given.rounds} rounds)\n"
    )


if __name__ == "__main__":
    main()
