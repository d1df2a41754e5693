"""Fixtures of the agent's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from noj_machine import URL, FakeServer, make_settings

from noj_agent.api import ServerApi
from noj_agent.retry import Outage
from noj_agent.session import Session
from noj_agent.settings import ENV_PREFIX
from noj_agent.state import StateDir, open_state


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine's own agent reaches a test."""
    for name in ("SERVER_URL", "REGISTRATION_TOKEN", "REGISTRATION_TOKEN_FILE", "STATE_DIR"):
        monkeypatch.delenv(f"{ENV_PREFIX}{name}", raising=False)
    for name in ("NAME", "SLOTS", "CONFIG", "LOG_LEVEL", "LOG_FORMAT", "TAGS"):
        monkeypatch.delenv(f"{ENV_PREFIX}{name}", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory."""
    return open_state(tmp_path / "state")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A scripted server; parked polls are let go at the end."""
    fake = FakeServer()
    yield fake
    fake.release()


@pytest.fixture
def api(server: FakeServer) -> Iterator[ServerApi]:
    """The agent's client of it."""
    client = ServerApi(URL, transport=server.transport())
    yield client
    client.close()


@pytest.fixture
def session(state: StateDir, api: ServerApi) -> Session:
    """Not opened yet."""
    return Session(make_settings(state.root), state, api, Outage(), [])
