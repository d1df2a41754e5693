"""/healthz and /readyz: is the process there, and can it do its work; the reasons either way."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from noj_http import make_settings
from noj_testing import free_port, wait_until
from redis.exceptions import NoPermissionError

from noj_server import keys
from noj_server.app import create_app
from noj_server.redis_client import persistence_faults
from tests.unit.server.conftest import Http

if TYPE_CHECKING:
    from tests.unit.server.conftest import Site


@pytest.fixture
def running(site: Site) -> Iterator[Site]:
    """A server whose threads run."""
    site.parts.start()
    try:
        wait_until(lambda: ready(site)[0] == 200, what="it is ready")
        yield site
    finally:
        site.parts.stop()


def ready(site: Site) -> tuple[int, dict[str, str]]:
    """Status, and what is not well with its detail."""
    reply = site.http.get("/readyz")
    assert reply.json["ready"] is (reply.status_code == 200)
    return reply.status_code, {
        check["name"]: check["detail"] for check in reply.json["checks"] if not check["ok"]
    }


def test_healthz(site: Site) -> None:
    """200 while the process answers, whatever else."""
    assert site.http.get("/healthz").text == "ok\n"


def test_ready(running: Site) -> None:
    """Every check is listed; the embedded Redis is told, not held against it."""
    checks = running.http.get("/readyz").json["checks"]
    assert [check["name"] for check in checks] == [
        *("redis", "persistence", "sweeper", "wake-ups", "disk")
    ]
    assert "NOTHING SURVIVES" in checks[1]["detail"]


def test_before_the_threads_run(site: Site) -> None:
    """503 with both threads named."""
    status, faults = ready(site)
    assert status == 503
    assert faults == {"sweeper": "no tick yet", "wake-ups": "listener is dead"}


def test_a_sweeper_that_is_stuck(running: Site) -> None:
    """A live thread is not enough: the ticks must come."""
    running.parts.sweeper.stop()
    running.parts.redis.set(keys.TICK, running.parts.queue.now_ms() - 60_000)
    status, faults = ready(running)
    assert (status, set(faults)) == (503, {"sweeper"})
    assert "60" in faults["sweeper"]


def test_disk(running: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk and one that cannot be written to are 503."""
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage(10**12, 10**12, 5 * 2**20))
        assert ready(running) == (503, {"disk": f"5 MiB free in {running.parts.blobs.root}"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert ready(running)[1] == {"disk": f"cannot write to {running.parts.blobs.root}"}


def test_a_lost_data_directory(running: Site) -> None:
    """Unmounted or removed: 503 that names it."""
    root = running.parts.blobs.root
    root.rmdir()
    assert ready(running) == (503, {"disk": f"{root}: No such file or directory"})


def test_redis_away(tmp_path: Path) -> None:
    """503 with Redis' own words."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    http = Http(create_app(make_settings(tmp_path / "data", redis_url=url)))
    reply = http.get("/readyz")
    assert reply.status_code == 503
    faults = {check["name"]: check["detail"] for check in reply.json["checks"] if not check["ok"]}
    assert "refused" in faults["redis"]


class ConfiguredRedis:
    """A Redis that answers CONFIG GET, or refuses to."""

    def __init__(self, config: dict[str, str] | None) -> None:
        self._config = config

    def config_get(self, *_: str) -> dict[str, str]:
        """CONFIG GET."""
        if self._config is None:
            raise NoPermissionError("NOPERM no permissions to run 'config|get'")
        return self._config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"appendonly": "yes", "maxmemory-policy": "noeviction"}, []),
        ({"appendonly": "no", "maxmemory-policy": "noeviction"}, ["appendonly"]),
        ({"appendonly": "no", "maxmemory-policy": "allkeys-lru"}, ["appendonly", "noeviction"]),
        (None, []),
    ],
)
def test_persistence_faults(config: dict[str, str] | None, said: list[str]) -> None:
    """What would lose submissions, with its fix; nothing where CONFIG is forbidden."""
    redis: Any = ConfiguredRedis(config)
    faults = persistence_faults(redis)
    assert len(faults) == len(said)
    assert all(word in fault for word, fault in zip(said, faults, strict=True))
