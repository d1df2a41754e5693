"""Every transition of the queue, on a real redis-server and on the embedded Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import redis
from noj_testing import RedisServer, wait_until

from noj_server import keys
from noj_server.job_queue import (
    Abort,
    Cancel,
    ClaimRefusedError,
    JobQueue,
    LandedSummary,
    Landing,
    QueueSettings,
    UnknownSubmissionError,
)
from noj_server.runners import RunnerRegistry
from noj_server.sweeper import Sweeper
from noj_shared.ids import new_job_id, new_request_id, new_runner_id, new_submission_id
from noj_shared.wire import HeartbeatBody, RegisterRunnerBody

if TYPE_CHECKING:
    from tests.integration.conftest import Bench

pytestmark = pytest.mark.redis
AC = LandedSummary(status=0, score=100, time_ms=5, memory_kib=900, result_blob="b")


def test_a_job_goes_its_way(bench: Bench) -> None:
    """Enqueue, claim, complete: the submission is done and the feed has it."""
    job_id = bench.enqueue("s1")
    claimed = bench.claim()
    assert (claimed.job_id, claimed.attempts, claimed.submission_id) == (job_id, 1, "s1")
    assert bench.queue.complete_job(bench.runner, job_id, claimed.lease, AC) is Landing.LANDED
    record = bench.queue.submission("s1")
    assert record is not None
    assert (record.state, record.status, record.score, record.runner_id) == (
        *("done", 0, 100),
        bench.runner,
    )
    (entry,) = bench.queue.results("0")
    assert (entry.submission_id, entry.attempts) == ("s1", 1)
    assert bench.queue.results(entry.cursor) == []
    assert bench.nothing_to_claim()


def test_enqueue_is_idempotent_by_submission(bench: Bench) -> None:
    """The same submission again is the same job, not a second one."""
    first = bench.enqueue("s1")
    assert bench.enqueue("s1") == first
    assert bench.queue.depth() == 1


def test_priority_then_arrival_over_languages(bench: Bench) -> None:
    """Higher priority first; within one priority, first come first served over all languages."""
    a = bench.enqueue(lang=2)
    b = bench.enqueue(lang=0)
    c = bench.enqueue(lang=1, priority=5)
    d = bench.enqueue(lang=1, priority=-5)
    assert [bench.claim().job_id for _ in range(4)] == [c, a, b, d]


def test_a_runner_gets_only_its_languages(bench: Bench) -> None:
    """A job of another language stays for another runner."""
    bench.enqueue(lang=2)
    assert bench.queue.claim_next_job(bench.runner, [0, 1]) is None
    assert bench.queue.claim_next_job(bench.runner, [2]) is not None


def test_claims_stop_at_max_jobs_and_when_paused(bench: Bench) -> None:
    """A runner that holds its maximum, or is paused, is refused, which is not "none pending"."""
    for _ in range(3):
        bench.enqueue()
    registry = RunnerRegistry(bench.redis)
    runner, _ = registry.register(RegisterRunnerBody(registration_token="t", name="n"))
    assert bench.queue.claim_next_job(runner, [0], max_jobs=1) is not None
    with pytest.raises(ClaimRefusedError, match="full"):
        bench.queue.claim_next_job(runner, [0], max_jobs=1)
    assert registry.set_paused(runner, True)
    with pytest.raises(ClaimRefusedError, match="paused"):
        bench.queue.claim_next_job(runner, [0])
    assert registry.set_paused(runner, False)
    assert bench.queue.claim_next_job(runner, [0]) is not None


def test_a_revoked_runner_claims_nothing(bench: Bench) -> None:
    """Its poll may be parked in a process that has not heard of it: the script refuses."""
    bench.enqueue()
    registry = RunnerRegistry(bench.redis)
    runner, _ = registry.register(RegisterRunnerBody(registration_token="t", name="n"))
    registry.sign_off(runner)
    with pytest.raises(ClaimRefusedError, match="revoked"):
        bench.queue.claim_next_job(runner, [0])
    assert not registry.set_paused(runner, True)
    assert registry.list_runners() == []


def test_idempotency_key_gives_the_same_job_again(bench: Bench) -> None:
    """A claim whose reply was lost is repeated without leasing a second job."""
    bench.enqueue()
    bench.enqueue()
    key = new_request_id()
    first, again = bench.claim(key=key), bench.claim(key=key)
    assert (first.job_id, first.lease, first.attempts) == (again.job_id, again.lease, 1)
    bench.queue.complete_job(bench.runner, first.job_id, first.lease, AC)
    assert bench.claim(key=key).job_id != first.job_id


def test_each_job_is_claimed_once_by_racing_runners(bench: Bench) -> None:
    """Eight threads that claim 100 jobs get each of them exactly once."""
    jobs = {bench.enqueue() for _ in range(100)}
    got: list[str] = []

    def work() -> None:
        runner = new_runner_id()
        while claimed := bench.queue.claim_next_job(runner, [0], max_jobs=1000):
            got.append(claimed.job_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == sorted(jobs)


def test_inv3_reports_are_fenced_by_lease(bench: Bench) -> None:
    """INV3: a zombie's report, by runner or by lease, changes nothing; the holder's lands once."""
    job_id = bench.enqueue("s1")
    old = bench.claim()
    bench.expire(job_id)
    assert bench.sweep() == ((job_id,), ())
    other = new_runner_id()
    new = bench.claim(other)
    assert (new.job_id, new.attempts) == (job_id, 2)
    complete = bench.queue.complete_job
    assert complete(bench.runner, job_id, old.lease, AC) is Landing.NOT_YOURS
    assert complete(bench.runner, job_id, None, AC) is Landing.NOT_YOURS
    assert complete(other, job_id, old.lease, AC) is Landing.NOT_YOURS
    assert complete(other, job_id, new.lease, AC) is Landing.LANDED
    assert complete(other, job_id, new.lease, AC) is Landing.ALREADY_LANDED
    assert complete(bench.runner, job_id, old.lease, AC) is Landing.NOT_YOURS
    assert complete(other, new_job_id(), None, AC) is Landing.UNKNOWN
    assert len(bench.queue.results("0")) == 1


def test_inv3_same_runner_reclaims_and_its_old_lease_is_stale(bench: Bench) -> None:
    """INV3: the runner id alone is no fence when the same runner claims the job again."""
    job_id = bench.enqueue()
    old = bench.claim()
    bench.expire(job_id)
    bench.sweep()
    new = bench.claim()
    assert bench.queue.complete_job(bench.runner, job_id, old.lease, AC) is Landing.NOT_YOURS
    assert bench.queue.complete_job(bench.runner, job_id, new.lease, AC) is Landing.LANDED


@pytest.mark.parametrize("swept", [False, True])
def test_inv3_late_report_lands_while_nobody_reclaimed(bench: Bench, swept: bool) -> None:
    """INV3: after the deadline, also once requeued, the old holder's result is still taken."""
    job_id = bench.enqueue("s1")
    held = bench.claim()
    bench.expire(job_id)
    if swept:
        bench.sweep()
    assert bench.queue.complete_job(bench.runner, job_id, held.lease, AC) is Landing.LANDED
    assert bench.nothing_to_claim()
    record = bench.queue.submission("s1")
    assert record is not None
    assert record.state == "done"


def test_bare_client_reports_by_runner_alone(bench: Bench) -> None:
    """A client that sends no lease id is checked by its runner id."""
    job_id = bench.enqueue()
    bench.claim()
    assert bench.queue.complete_job(bench.runner, job_id, None, AC) is Landing.LANDED


def test_renew_tells_what_is_whose(bench: Bench) -> None:
    """A heartbeat extends its own leases, and learns what was cancelled and what is lost."""
    mine, superseded, foreign = bench.enqueue("s1"), bench.enqueue("s2"), bench.enqueue("s3")
    held = bench.claim()
    bench.claim()
    bench.claim(new_runner_id())
    bench.expire(mine)
    bench.queue.rejudge("s2", new_job_id(), version="v")
    renewal = bench.queue.renew_lease(
        bench.runner, [mine, superseded, foreign, new_job_id()], {mine: held.lease}
    )
    assert renewal.renewed == (mine,)
    assert renewal.cancel == (superseded,)
    assert len(renewal.lost) == 2
    assert bench.sweep() == ((), ())


def test_renew_takes_back_an_orphan_nobody_reclaimed(bench: Bench) -> None:
    """After a cut, a heartbeat under the old lease has its job back, without a new attempt."""
    job_id = bench.enqueue()
    held = bench.claim()
    bench.expire(job_id)
    bench.sweep()
    assert bench.queue.renew_lease(bench.runner, [job_id], {job_id: held.lease}).renewed
    assert bench.nothing_to_claim()
    record = bench.queue.job(job_id)
    assert record is not None
    assert (record.state, record.attempts) == ("leased", 1)


def test_inv2_only_an_expired_lease_is_an_orphan(bench: Bench) -> None:
    """INV2: a runner that signs off or looks dead loses nothing before its lease expires."""
    registry = RunnerRegistry(bench.redis)
    runner, _ = registry.register(RegisterRunnerBody(registration_token="t", name="n"))
    job_id = bench.enqueue()
    bench.claim(runner)
    registry.sign_off(runner)
    assert bench.sweep() == ((), ())
    bench.expire(job_id)
    assert bench.sweep() == ((job_id,), ())


def test_an_orphan_goes_back_to_the_front(bench: Bench) -> None:
    """A reclaimed job stands before those that arrived after it."""
    first = bench.enqueue()
    bench.enqueue()
    bench.claim()
    bench.expire(first)
    bench.sweep()
    assert bench.claim(new_runner_id()).job_id == first


def test_inv5_three_lost_leases_land_judge_error(bench: Bench) -> None:
    """INV5: the third lost lease lands JE with the whole history, and the job is gone."""
    job_id = bench.enqueue("s1")
    for attempt in (1, 2, 3):
        claimed = bench.claim(new_runner_id())
        assert claimed.attempts == attempt
        bench.expire(job_id)
        requeued, exhausted = bench.sweep()
        assert (requeued, exhausted) == (((job_id,), ()) if attempt < 3 else ((), (job_id,)))
    record = bench.queue.submission("s1")
    assert record is not None
    assert (record.state, record.status, record.score, record.attempts) == ("done", 6, 0, 3)
    assert [a.reason for a in bench.queue.history(job_id)] == ["lease_expired"] * 3
    assert bench.nothing_to_claim()
    late = bench.queue.complete_job(claimed.job_id, job_id, claimed.lease, AC)
    assert late is Landing.NOT_YOURS


@pytest.mark.parametrize("reason", ["prep_failed", "rejected"])
def test_inv5_aborts_use_up_attempts(bench: Bench, reason: str) -> None:
    """INV5: an abort keeps the attempt; the last one lands JE; each repeat answers the same."""
    job_id = bench.enqueue("s1")
    for expected in (Abort.REQUEUED, Abort.REQUEUED, Abort.JUDGE_ERROR):
        claimed = bench.claim()
        for _ in range(2):
            answer = bench.queue.abort_job(
                bench.runner, job_id, claimed.lease, reason=reason, detail="disk\nfull"
            )
            assert answer is expected
    assert [a.detail for a in bench.queue.history(job_id)] == ["disk full"] * 3


def test_inv5_drain_refunds_the_attempt(bench: Bench) -> None:
    """INV5: handing back at a drain costs nothing, however often."""
    job_id = bench.enqueue()
    for _ in range(105):
        claimed = bench.claim()
        assert claimed.attempts == 1
        assert bench.queue.abort_job(bench.runner, job_id, claimed.lease, reason="drain")
    history = bench.queue.history(job_id)
    assert len(history) == 100
    assert history[-1].lease == claimed.lease


def test_abort_of_what_is_not_yours(bench: Bench) -> None:
    """A foreign, an unknown and an old lease's abort change nothing."""
    job_id = bench.enqueue()
    claimed = bench.claim()
    abort = bench.queue.abort_job
    assert abort(new_runner_id(), job_id, None, reason="drain") is Abort.NOT_YOURS
    assert abort(bench.runner, job_id, "old", reason="drain") is Abort.NOT_YOURS
    assert abort(bench.runner, new_job_id(), None, reason="drain") is Abort.UNKNOWN
    assert bench.queue.complete_job(bench.runner, job_id, claimed.lease, AC) is Landing.LANDED


def test_inv4_rejudge_supersedes_at_once(bench: Bench) -> None:
    """INV4: the old job's report is stale, in silence; only the new one lands."""
    old = bench.enqueue("s1")
    held = bench.claim()
    new = new_job_id()
    assert bench.queue.rejudge("s1", new, version="w") == old
    assert bench.queue.rejudge("s1", new, version="w") is None
    assert bench.queue.complete_job(bench.runner, old, held.lease, AC) is Landing.STALE
    assert bench.queue.abort_job(bench.runner, old, held.lease, reason="drain") is Abort.STALE
    bench.expire(old)
    assert bench.sweep() == ((), ())
    claimed = bench.claim()
    assert (claimed.job_id, claimed.version) == (new, "w")
    bench.queue.complete_job(bench.runner, new, claimed.lease, AC)
    assert [entry.job_id for entry in bench.queue.results("0")] == [new]
    with pytest.raises(UnknownSubmissionError):
        bench.queue.rejudge("nobody", new_job_id(), version="v")


def test_inv4_rejudge_removes_a_pending_job(bench: Bench) -> None:
    """INV4: a superseded pending job is never handed out."""
    bench.enqueue("s1")
    new = new_job_id()
    bench.queue.rejudge("s1", new, version="v")
    assert bench.claim().job_id == new
    assert bench.nothing_to_claim()


def test_rejudge_of_a_landed_submission_clears_its_result(bench: Bench) -> None:
    """After a rejudge the submission is pending again and does not expire."""
    job_id = bench.enqueue("s1")
    bench.queue.complete_job(bench.runner, job_id, bench.claim().lease, AC)
    assert bench.redis.ttl(keys.submission("s1")) > 0
    bench.queue.rejudge("s1", new_job_id(), version="v")
    record = bench.queue.submission("s1")
    assert record is not None
    assert (record.state, record.status) == ("pending", None)
    assert bench.redis.ttl(keys.submission("s1")) == -1


def test_cancel_pending_leased_and_done(bench: Bench) -> None:
    """A cancelled job is removed or cancelled on its runner; what has landed stays."""
    pending, leased, done = bench.enqueue("s1"), bench.enqueue("s2"), bench.enqueue("s3")
    assert bench.queue.cancel_submission("s1") is Cancel.CANCELLED
    claims = {claimed.job_id: claimed for claimed in (bench.claim(), bench.claim())}
    assert pending not in claims
    assert bench.queue.cancel_submission("s2") is Cancel.CANCELLED
    assert bench.queue.cancel_submission("s2") is Cancel.CANCELLED
    assert bench.queue.renew_lease(bench.runner, [leased]).cancel == (leased,)
    complete = bench.queue.complete_job
    assert complete(bench.runner, leased, claims[leased].lease, AC) is Landing.STALE
    assert complete(bench.runner, done, claims[done].lease, AC) is Landing.LANDED
    assert bench.queue.cancel_submission("s3") is Cancel.DONE
    assert bench.queue.cancel_submission("s4") is Cancel.UNKNOWN


def test_inv6_an_outage_expires_nothing(make_bench: Callable[[QueueSettings], Bench]) -> None:
    """INV6: after a gap in the ticks no lease is judged expired for one TTL; then it is."""
    bench = make_bench(QueueSettings(lease_ttl_s=0.6, tick_s=0.05))
    job_id = bench.enqueue()
    bench.claim()
    bench.redis.set(keys.TICK, bench.queue.now_ms() - 60_000)
    bench.expire(job_id)
    report = bench.queue.sweep()
    assert report.grace_until_ms is not None
    assert bench.queue.grace_left_s() > 0
    seen: list[str] = []

    def swept() -> bool:
        seen.extend(bench.queue.sweep().requeued)
        return bool(seen)

    started = bench.queue.now_ms()
    wait_until(swept, what="the grace is over", poll_s=0.05)
    assert bench.queue.now_ms() - started > 300
    record = bench.queue.job(job_id)
    assert record is not None
    assert record.attempts == 1


def test_one_winner_per_tick(bench: Bench) -> None:
    """Two server processes tick: one of them sweeps, the other learns that it was too late."""
    bench.sweep()
    assert not bench.queue.sweep().ticked


def test_inv1_a_job_ends_only_by_landing_or_superseding(bench: Bench) -> None:
    """INV1: until its result is recorded a job is pending or leased, and nothing else."""
    job_id = bench.enqueue("s1")
    for step in ("claim", "expire", "claim", "abort", "claim", "complete"):
        if step == "claim":
            claimed = bench.claim()
        elif step == "expire":
            bench.expire(job_id)
            bench.sweep()
        elif step == "abort":
            bench.queue.abort_job(bench.runner, job_id, claimed.lease, reason="drain")
        else:
            bench.queue.complete_job(bench.runner, job_id, claimed.lease, AC)
        pending = bench.redis.zscore(keys.pending(0), job_id) is not None
        leased = bench.redis.zscore(keys.LEASED, job_id) is not None
        landed = len(bench.queue.results("0")) == 1
        assert [pending, leased, landed].count(True) == 1, step


def test_nothing_leaks(bench: Bench) -> None:
    """After everything has ended, only the documented permanent keys live without a TTL."""
    for index in range(4):
        bench.enqueue(f"s{index}")
    for _ in range(3):
        claimed = bench.claim(key=new_request_id())
        bench.queue.complete_job(bench.runner, claimed.job_id, claimed.lease, AC)
    bench.queue.cancel_submission("s3")
    bench.sweep()
    for_ever = {key for key in bench.redis.scan_iter("*") if bench.redis.ttl(key) == -1}
    assert for_ever <= {keys.RESULTS, keys.TICK, f"{keys.PREFIX}dispatch:seq"}


def test_views_for_operators(bench: Bench) -> None:
    """Depth and oldest wait by language and priority; leases with age and time left."""
    bench.enqueue(lang=0)
    for priority in (0, 0, 7):
        bench.enqueue(lang=1, priority=priority)
    bench.queue.claim_next_job(bench.runner, [0])
    lines = {(line.language, line.priority): line.depth for line in bench.queue.pending_lines()}
    assert lines == {(1, 7): 1, (1, 0): 2}
    (lease,) = bench.queue.leases()
    assert 0 < lease.time_left_s <= 30
    assert lease.job.runner_id == bench.runner
    assert bench.queue.held_jobs(bench.runner) == [lease.job.job_id]


def test_job_hash_stays_compact(redis_server: RedisServer) -> None:
    """A job costs Redis a listpack, not a hash table: every field is at most 64 bytes."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        queue = JobQueue(client, QueueSettings())
        job_id = queue.enqueue_job(
            submission_id="s" * 64,
            job_id=new_job_id(),
            problem_id="p" * 64,
            version="v" * 64,
            language=0,
            code_blob="b" * 64,
            user="u" * 64,
        ).job_id
        claimed = queue.claim_next_job(new_runner_id(), [0])
        assert claimed is not None
        assert client.object("encoding", keys.job(job_id)) == "listpack"
        client.flushall()


def test_inv8_tokens_are_stored_as_digests_only(bench: Bench) -> None:
    """INV8: no key and no value holds a token; the right one is known, a wrong one is not."""
    registry = RunnerRegistry(bench.redis)
    runner, token = registry.register(RegisterRunnerBody(registration_token="t", name="n"))
    assert registry.verify_token(runner, token)
    assert not registry.verify_token(runner, token + "x")
    assert not registry.verify_token(new_runner_id(), token)
    assert registry.verify_any_token(token) == runner
    assert registry.verify_any_token("rk_other") is None
    for key in bench.redis.scan_iter("*"):
        kind = bench.redis.type(key)
        value = (
            bench.redis.hgetall(key)
            if kind == "hash"
            else (bench.redis.get(key) if kind == "string" else "")
        )
        assert token not in f"{key!r} {value!r}"


def test_heartbeats_never_recreate_a_runner(bench: Bench) -> None:
    """A runner that was revoked or has expired stays gone, whatever it sends."""
    registry = RunnerRegistry(bench.redis)
    runner, token = registry.register(RegisterRunnerBody(registration_token="t", name="n"))
    beat = HeartbeatBody(active_job_ids=(), busy_slots=1, load=0.5)
    assert registry.renew_alive(runner, beat)
    record = registry.get(runner)
    assert record is not None
    assert (record.busy_slots, record.load, record.alive) == (1, 0.5, True)
    registry.sign_off(runner)
    assert not registry.renew_alive(runner, beat)
    assert not registry.verify_token(runner, token)
    assert registry.list_runners() == []


def test_sweeper_thread_reclaims(make_bench: Callable[[QueueSettings], Bench]) -> None:
    """The real thread requeues an orphan by itself and ends when told."""
    bench = make_bench(QueueSettings(lease_ttl_s=0.3, tick_s=0.05))
    bench.enqueue()
    bench.claim()
    sweeper = Sweeper(bench.queue)
    sweeper.start()
    try:
        wait_until(lambda: bench.queue.depth() == 1, what="the orphan is pending again")
    finally:
        sweeper.stop()
    assert not sweeper.running


def test_redis_killed_loses_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """INV1: kill -9 of Redis after acknowledged enqueues and claims, restart: all is there."""
    with RedisServer(tmp_path_factory.mktemp("redis-killed")) as server:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            queue = JobQueue(client, QueueSettings())
            jobs = set()
            for _ in range(300):
                jobs.add(
                    queue.enqueue_job(
                        submission_id=new_submission_id(),
                        job_id=new_job_id(),
                        problem_id="p",
                        version="v",
                        language=0,
                        code_blob="b",
                    ).job_id
                )
            runner = new_runner_id()
            held = queue.claim_next_job(runner, [0])
            assert held is not None
        server.kill9()
        server.start()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            queue = JobQueue(client, QueueSettings())
            report = queue.complete_job(runner, held.job_id, held.lease, AC)
            assert report is Landing.LANDED
            found = {held.job_id}
            while claimed := queue.claim_next_job(runner, [0], max_jobs=1000):
                found.add(claimed.job_id)
            assert found == jobs
