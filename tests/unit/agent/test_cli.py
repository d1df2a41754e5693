"""The commands of a judge machine: what they say and their exit status."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from noj_machine import URL, make_result
from typer.testing import CliRunner, Result

from noj_agent.cli import app
from noj_agent.outbox import Entry, Outbox
from noj_agent.state import StateDir, locked, read_json, write_json
from noj_shared.ids import new_job_id, new_runner_id


def shown(**changes: Any) -> dict[str, Any]:
    """What a healthy agent writes for `status`."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat()
    return {
        "pid": 1,
        "name": "alpha",
        "server_url": URL,
        "runner_id": new_runner_id(),
        "state": "ready",
        "idle_reason": None,
        "last_contact_at": now,
        "outage_s": None,
        "slots": 2,
        "free_slots": 1,
        "jobs": [
            {
                "job_id": new_job_id(),
                "submission_id": "final-exam-7",
                "phase": "judging",
                "done": 3,
                "total": 10,
                "since": now,
            }
        ],
        "outbox": [],
        "facts": {"sandbox": "bubblewrap"},
        "updated_at": now,
        **changes,
    }


def invoke(*arguments: str, state: StateDir, **env: str) -> Result:
    """Run a command with this state directory."""
    variables = {"NOJ_AGENT_STATE_DIR": str(state.root), "COLUMNS": "120", **env}
    return CliRunner().invoke(app, list(arguments), env=variables)


@pytest.fixture
def running(state: StateDir) -> Iterator[StateDir]:
    """Some agent holds the directory."""
    with locked(state):
        yield state


def test_status_of_a_healthy_agent(running: StateDir) -> None:
    """Identity, contact, jobs in hand, outbox; 0."""
    data = shown()
    write_json(running.status, data)
    result = invoke("status", state=running)
    assert result.exit_code == 0
    for word in ("alpha", data["runner_id"], URL, "1 of 2 busy", "final-exam-7", "3/10", "empty"):
        assert word in result.output
    assert "All is well." in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "sick", "idle_reason": "low disk space"}, "sick: low disk space"),
        ({"last_contact_at": None}, "no contact with"),
        ({"last_contact_at": "2026-01-01T00:00:00+00:00", "outage_s": 99.0}, "no contact with"),
    ],
    ids=["sick", "never", "outage"],
)
def test_status_asks_for_a_person(running: StateDir, changes: dict[str, Any], said: str) -> None:
    """1, in the table and in the JSON."""
    write_json(running.status, shown(**changes))
    result = invoke("status", state=running)
    assert (result.exit_code, said in result.output) == (1, True)
    result = invoke("status", "--json", state=running)
    assert (result.exit_code, said in json.loads(result.stdout)["needs_person"]) == (1, True)


def test_status_of_a_dead_agent(state: StateDir) -> None:
    """It still tells what waits in the outbox, read from the disk and not from old news."""
    write_json(state.status, shown())
    Outbox(state.outbox).put(Entry(new_job_id(), make_result()))
    result = invoke("status", state=state)
    assert result.exit_code == 1
    assert "the agent is not running; 1 report(s) wait for its next start" in result.output


def test_status_where_none_ever_ran(tmp_path: Path) -> None:
    """It says so, and makes no directory."""
    state = StateDir(tmp_path / "none")
    result = invoke("status", state=state)
    assert (result.exit_code, "No agent has ever run" in result.output) == (1, True)
    assert not state.root.exists()


def test_status_that_may_not_look(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is root's: a sentence, not a traceback."""

    def read_text(self: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", read_text)
    result = invoke("status", state=state)
    assert result.exit_code == 2
    assert "run this as the agent's user" in result.output


@pytest.mark.parametrize("command", ["start", "check"])
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "server_url"),
        ({"NOJ_AGENT_SERVER_URL": URL}, "NOJ_AGENT_REGISTRATION_TOKEN_FILE"),
        (
            {"NOJ_AGENT_SERVER_URL": URL, "NOJ_AGENT_REGISTRATION_TOKEN_FILE": "/none[0]"},
            "/none[0]",
        ),
        ({"NOJ_AGENT_SERVER_URL": URL, "NOJ_AGENT_SLOTS": "many"}, "NOJ_AGENT_SLOTS"),
    ],
    ids=["no server", "no token", "no token file", "bad slots"],
)
def test_wrong_settings(state: StateDir, command: str, env: dict[str, str], said: str) -> None:
    """2, and the setting's name."""
    result = invoke(command, state=state, **env)
    assert (result.exit_code, said in result.output) == (2, True), result.output


IDENTITY = {"server_url": URL, "runner_id": new_runner_id(), "token": "rk_secret"}


def test_unregister(state: StateDir) -> None:
    """The server is told, then the identity goes; a second time there is nothing to do."""
    write_json(state.identity, IDENTITY)
    with respx.mock(base_url=URL) as server:
        route = server.delete(f"/runners/{IDENTITY['runner_id']}").respond(204)
        result = invoke("unregister", state=state, NOJ_AGENT_SERVER_URL=URL)
    assert (result.exit_code, route.call_count) == (0, 1)
    assert route.calls.last.request.headers["Authorization"] == "Bearer rk_secret"
    assert read_json(state.identity) is None
    result = invoke("unregister", state=state, NOJ_AGENT_SERVER_URL=URL)
    assert (result.exit_code, "not registered" in result.output) == (0, True)


@pytest.mark.parametrize("answer", [httpx.ConnectError("refused"), httpx.Response(503)])
def test_unregister_without_the_server(state: StateDir, answer: httpx.Response | Exception) -> None:
    """The identity stays: with it, a later start is still the same runner."""
    write_json(state.identity, IDENTITY)
    with respx.mock(base_url=URL) as server:
        server.delete(path__startswith="/runners/").mock(side_effect=[answer])
        result = invoke("unregister", state=state, NOJ_AGENT_SERVER_URL=URL)
    assert (result.exit_code, "did not take it" in result.output) == (1, True)
    assert read_json(state.identity) == IDENTITY
    assert "rk_secret" not in result.output


def test_unregister_beside_a_running_agent(running: StateDir) -> None:
    """Refused: it would register anew at once."""
    write_json(running.identity, IDENTITY)
    result = invoke("unregister", state=running, NOJ_AGENT_SERVER_URL=URL)
    assert (result.exit_code, "another noj-agent" in result.output) == (2, True)
    assert read_json(running.identity) == IDENTITY
