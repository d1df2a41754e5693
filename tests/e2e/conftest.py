"""A whole judge on loopback: redis-server, noj-server, agents; all real processes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from noj_testing import AGENT_UIDS, Agent, RedisServer, Server, cgroups_of, wait_until

from noj_server.client import Client
from noj_shared.wire import LeaseView, SubmissionView

LEASE_TTL_S = 3


@dataclass
class World:
    """One judge; everything in it ends with the test."""

    directory: Path
    stack: ExitStack
    redis: RedisServer
    server: Server
    client: Client
    agents: dict[str, Agent] = field(default_factory=dict)
    cgroups_before: list[Path] = field(default_factory=lambda: cgroups_of(AGENT_UIDS))

    def new_cgroups(self) -> list[Path]:
        """Cgroups of cases that were not there before this world."""
        return [path for path in cgroups_of(AGENT_UIDS) if path not in self.cgroups_before]

    def start_agent(self, name: str, *, slots: int = 1, env: dict[str, str] | None = None) -> Agent:
        """An agent that has registered."""
        agent = Agent(self.directory, server=self.server, name=name, slots=slots, env=env)
        self.stack.enter_context(agent)
        self.agents[name] = agent

        def registered() -> bool:
            assert agent.popen is not None
            assert agent.popen.poll() is None, agent.output()
            return any(runner.name == name for runner in self.client.runners())

        wait_until(registered, what=f"{name} registers", timeout_s=30)
        return agent

    def submit(self, code: bytes, language: int, *, problem: str = "demo-sum") -> str:
        """A submission's id."""
        return self.client.submit(problem_id=problem, language=language, code=code).submission_id

    def lease_of(self, submission_id: str) -> LeaseView:
        """Wait until somebody judges it."""
        return wait_until(
            lambda: next(
                (
                    item
                    for item in self.client.queue().leases
                    if item.submission_id == submission_id
                ),
                None,
            ),
            what=f"{submission_id} is leased",
            timeout_s=30,
        )

    def result(self, submission_id: str, **kwargs: str) -> SubmissionView:
        """Its final state."""
        return self.client.wait(submission_id, timeout_s=60, job_id=kwargs.get("job_id"))


def package(folder: Path) -> bytes:
    """A problem folder as the zip a backend uploads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return buffer.getvalue()


def _removed(cgroup: Path) -> bool:
    with suppress(OSError):  # busy while its processes are dying
        cgroup.rmdir()
    return not cgroup.exists()


@pytest.fixture
def make_world(tmp_path: Path, golden_root: Path) -> Iterator[Callable[..., World]]:
    """Makes a world with settings of the test's own."""
    worlds: list[World] = []
    with ExitStack() as stack:

        def make(**env: str) -> World:
            folder = tmp_path / "redis"
            folder.mkdir()
            redis = stack.enter_context(RedisServer(folder))
            settings = {
                "NOJ_SERVER_LEASE_TTL_S": str(LEASE_TTL_S),
                "NOJ_SERVER_HEARTBEAT_INTERVAL_S": "0.5",
                **env,
            }
            server = stack.enter_context(Server(tmp_path, redis_url=redis.url, env=settings))
            client = stack.enter_context(Client(server.url, server.admin_key))
            for problem in ("demo-sum", "demo-primes"):
                client.put_problem(problem, package(golden_root / "problems" / problem))
            worlds.append(World(tmp_path, stack, redis, server, client))
            return worlds[-1]

        yield make
    # An agent that was killed and not started again could not clear away its own.
    for cgroup in {path for world in worlds for path in world.new_cgroups()}:
        wait_until(partial(_removed, cgroup), what=f"{cgroup} can be removed")


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world with short leases."""
    return make_world()
