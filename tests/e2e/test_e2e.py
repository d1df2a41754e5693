"""The promises of the judge, with real processes that are really killed."""

from __future__ import annotations

import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from noj_testing import AGENT_UIDS, BIN, processes_of, wait_until

from noj_shared.language import Language, language_of_source
from noj_shared.verdict import Verdict
from noj_shared.wire import SubmissionState

if TYPE_CHECKING:
    from tests.e2e.conftest import World

pytestmark = [pytest.mark.root, pytest.mark.redis, pytest.mark.timeout(180)]

SLEEPY = (Path(__file__).parent / "sleepy.c").read_bytes()
RIGHT = b"input()\nprint(sum(map(int, input().split())))\n"


def assert_nothing_left(world: World) -> None:
    """Stop the agents: no process, no cgroup of a sandbox stays behind."""
    for agent in world.agents.values():
        agent.stop()
    wait_until(
        lambda: not processes_of(AGENT_UIDS), what="every sandboxed process has ended", timeout_s=5
    )
    assert world.new_cgroups() == []


def test_every_golden_submission_gets_its_verdict(world: World, golden_root: Path) -> None:
    """The happy path: all golden submissions, one agent with two slots, verdicts and scores."""
    world.start_agent("judge", slots=2)
    golden = tomllib.loads((golden_root / "golden.toml").read_text())["submission"]
    ids = {}
    for item in golden:
        language = language_of_source(item["source"])
        assert language is not None
        code = (golden_root / "submissions" / item["source"]).read_bytes()
        ids[item["source"]] = world.submit(code, language, problem=item["problem"])
    got = {source: world.result(submission) for source, submission in ids.items()}
    assert {s: (view.verdict, view.score) for s, view in got.items()} == {
        item["source"]: (item["verdict"], item["score"]) for item in golden
    }
    feed = world.client.results("0")
    assert {entry.submission_id for entry in feed.results} == set(ids.values())
    first = ids["sum-ac.c"]
    assert world.client.output(first, 0, 0).stdout == "6\n"
    assert_nothing_left(world)


def test_killed_agent_and_zombie(world: World) -> None:
    """kill -9 mid-job: another agent lands it; the zombie's late report gets 409."""
    first = world.start_agent("first")
    submission = world.submit(SLEEPY, Language.C11)
    lease = world.lease_of(submission)
    first.send(signal.SIGSTOP)
    world.start_agent("second")
    view = world.result(submission)
    assert (view.verdict, view.score, view.runner_name, view.attempts) == ("AC", 100, "second", 2)
    assert [item.reason for item in view.history] == ["lease_expired"]
    first.send(signal.SIGCONT)
    wait_until(
        lambda: re.search("not ours any more|came too late", first.output()),
        what="the zombie learns that its job is another's",
        timeout_s=30,
    )
    first.kill9()
    again = world.client.status(submission)
    assert (again.runner_name, again.job_id) == ("second", lease.job_id)
    assert len(world.client.results("0").results) == 1


def test_inv7_killed_agent_delivers_after_restart(world: World) -> None:
    """INV7: server away when a result is ready, agent killed -9: the restarted agent delivers."""
    agent = world.start_agent("judge", env={"NOJ_AGENT_LOG_FORMAT": "json"})
    submission = world.submit(SLEEPY, Language.C11)
    lease = world.lease_of(submission)
    world.server.kill9()
    outbox = agent.state_dir / "outbox" / f"{lease.job_id}.json"
    wait_until(outbox.exists, what="the result is in the outbox", timeout_s=60)
    agent.kill9()
    world.server.start()
    agent.start()
    view = world.result(submission)
    assert (view.verdict, view.attempts, view.runner_name) == ("AC", 1, "judge")
    # A resumed agent heartbeats as often as this server asks, not as often as the default.
    slow = world.submit(SLEEPY, Language.C11)
    assert world.result(slow).attempts == 1


def test_inv5_three_lost_leases_land_judge_error(make_world: Callable[..., World]) -> None:
    """INV5: a job whose agent dies three times lands JE, status 6, with its history."""
    world = make_world(NOJ_SERVER_LEASE_TTL_S="2")
    submission = world.submit(SLEEPY, Language.C11)
    for attempt in (1, 2, 3):
        agent = world.start_agent(f"victim-{attempt}")
        lease = wait_until(
            lambda attempt=attempt: next(  # type: ignore[misc]  # mypy cannot infer defaults
                (item for item in world.client.queue().leases if item.attempts == attempt), None
            ),
            what=f"attempt {attempt} is leased",
            timeout_s=30,
        )
        agent.kill9()
        assert lease.submission_id == submission
    view = world.result(submission)
    assert (view.status, view.verdict, view.score, view.attempts) == (Verdict.JE, "JE", 0, 3)
    assert [item.runner_name for item in view.history] == ["victim-1", "victim-2", "victim-3"]


def test_inv4_rejudge_during_judging_lands_only_the_new_result(world: World) -> None:
    """INV4: the running job is cancelled within a heartbeat; only the new job's result lands."""
    agent = world.start_agent("judge")
    submission = world.submit(SLEEPY, Language.C11)
    old = world.lease_of(submission)
    new = world.client.rejudge(submission)
    view = world.client.wait(submission, job_id=new.job_id, timeout_s=60)
    assert (view.verdict, view.job_id, view.attempts) == ("AC", new.job_id, 1)
    entries = world.client.results("0").results
    assert [entry.job_id for entry in entries] == [new.job_id]
    assert f"job {old.job_id} dropped" in agent.output()


@pytest.mark.parametrize("victim", ["worker", "master"])
def test_server_killed_loses_nothing(world: World, victim: str) -> None:
    """kill -9 of a server worker or of its master during judging loses no submission."""
    world.start_agent("judge", slots=2)
    ids = [world.submit(SLEEPY, Language.C11) for _ in range(2)]
    ids += [world.submit(RIGHT, Language.PYTHON3) for _ in range(10)]
    world.lease_of(ids[0])
    if victim == "worker":
        (worker,) = psutil.Process(world.server.pid).children()
        worker.kill()
    else:
        world.server.kill9()
        world.server.start()
    world.server.wait_ready()
    assert {world.result(item).verdict for item in ids} == {"AC"}


def test_redis_killed_loses_nothing(world: World) -> None:
    """kill -9 of Redis (AOF) during judging: agents keep judging and land; no attempt burned."""
    world.start_agent("judge", slots=2)
    ids = [world.submit(SLEEPY, Language.C11) for _ in range(2)]
    ids += [world.submit(RIGHT, Language.PYTHON3) for _ in range(10)]
    world.lease_of(ids[0])
    world.redis.kill9()
    world.redis.start()
    world.server.wait_ready()
    views = [world.result(item) for item in ids]
    assert {(view.verdict, view.attempts) for view in views} == {("AC", 1)}


def test_redis_wiped_agents_register_anew(world: World) -> None:
    """A wiped Redis: the agent gets 401, registers anew by itself, and judges."""
    world.start_agent("judge")
    with redis.Redis.from_url(world.redis.url) as client:
        client.flushall()
    submission = world.submit(RIGHT, Language.PYTHON3)
    assert world.result(submission).verdict == "AC"


def test_drain_finishes_and_second_signal_hands_back(world: World) -> None:
    """TERM: the running job lands, then the agent ends with 0. TERM twice: handed back, free."""
    agent = world.start_agent("drains")
    submission = world.submit(SLEEPY, Language.C11)
    world.lease_of(submission)
    agent.send(signal.SIGTERM)
    assert agent.wait(60) == 0
    assert world.client.status(submission).verdict == "AC"
    hasty = world.start_agent("hasty")
    second = world.submit(SLEEPY, Language.C11)
    world.lease_of(second)
    hasty.send(signal.SIGTERM)
    wait_until(lambda: "finishing what is running" in hasty.output(), what="the drain begins")
    hasty.send(signal.SIGTERM)
    assert hasty.wait(30) == 0
    view = world.client.status(second)
    assert (view.state, view.attempts) == (SubmissionState.PENDING, 0)
    assert_nothing_left(world)


def test_idle_agent_stops_at_once(world: World) -> None:
    """An agent whose poll is parked ends within a few seconds: the server answers the poll."""
    agent = world.start_agent("idle")
    wait_until(lambda: world.client.queue().parked_polls == 1, what="its poll is parked")
    agent.send(signal.SIGTERM)
    assert agent.wait(10) == 0


HOSTILE = sorted((Path(__file__).parent / "hostile").glob("*.c"))


def test_hostile_trio_leaves_nothing(world: World) -> None:
    """Fork bomb, memory bomb, one that kills and ptraces all it sees: nothing stays behind, and
    the next submission is judged right."""
    world.start_agent("judge", slots=2)
    assert [file.stem for file in HOSTILE] == ["fork_bomb", "kill_everything", "memory_bomb"]
    mounts = Path("/proc/mounts").read_text()
    got = {
        file.stem: world.result(world.submit(file.read_bytes(), Language.C11)).verdict
        for file in HOSTILE
    }
    assert got["memory_bomb"] == "MLE"
    # Which limit it meets first depends on the kernel: processes it may not have still cost
    # memory for a moment.
    assert got["fork_bomb"] in ("TLE", "RE", "WA", "MLE")
    assert got["kill_everything"] == "WA"
    assert world.result(world.submit(RIGHT, Language.PYTHON3)).verdict == "AC"
    assert_nothing_left(world)
    assert Path("/proc/mounts").read_text() == mounts


def test_status_shows_a_killed_runner_and_the_reclaim(world: World) -> None:
    """What the operator reads: runner lost, exit status 1 while it holds a job, then 0."""
    env = {"NOJ_SERVER_URL": world.server.url, "NOJ_SERVER_API_KEY": world.server.admin_key}

    def status() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "noj-server"), "status"],
            env={"PATH": "/usr/bin", "COLUMNS": "120", **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    agent = world.start_agent("doomed")
    submission = world.submit(SLEEPY, Language.C11)
    world.lease_of(submission)
    assert status().returncode == 0
    agent.kill9()
    shown = wait_until(
        lambda: "no runner is online" in (result := status()).stdout and result,
        what="status asks for a person: the orphan waits, and nobody is there",
    )
    assert shown.returncode == 1
    assert "lost" in shown.stdout
    assert "waits for another runner" in shown.stdout
    world.start_agent("helper")
    view = world.result(submission)
    assert (view.runner_name, view.attempts) == ("helper", 2)
    after = status()
    assert after.returncode == 0
    assert "landed by helper" in after.stdout
