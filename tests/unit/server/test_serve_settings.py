"""Settings from flags and environment; `serve` refuses to start without its secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from noj_server.cli import app, serve
from noj_server.settings import RESERVED_THREADS, ServerSettings, missing_secrets

GOOD = {
    "NOJ_SERVER_ADMIN_KEY": "a" * 24,
    "NOJ_SERVER_SECRET_KEY": "s" * 24,
    "NOJ_SERVER_REGISTRATION_TOKEN": "r",
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine's, and a data directory of the test's own."""
    for name in ServerSettings.model_fields:
        monkeypatch.delenv(f"NOJ_SERVER_{name.upper()}", raising=False)
    monkeypatch.setenv("NOJ_SERVER_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """The settings that `serve` would have served with."""
    found: list[ServerSettings] = []
    monkeypatch.setattr(serve, "serve_forever", found.append)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    return found


@pytest.mark.parametrize("name", ["NOJ_SERVER_ADMIN_KEY", "NOJ_SERVER_SECRET_KEY"])
@pytest.mark.parametrize(
    ("value", "said"), [(None, "is not set"), ("", "is shorter"), ("s" * 23, "is shorter")]
)
def test_no_start_without_secrets(
    served: list[ServerSettings], name: str, value: str | None, said: str
) -> None:
    """Exit 2 with the variable's name and what to do; nothing is served."""
    result = CliRunner().invoke(app, ["serve"], env={**GOOD, name: value})
    assert result.exit_code == 2
    assert f"{name} {said}" in result.output
    assert "secrets.token_urlsafe" in result.output
    assert not served


def test_both_secrets_are_named_at_once(served: list[ServerSettings]) -> None:
    """One start tells all that is missing."""
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "NOJ_SERVER_ADMIN_KEY" in result.output
    assert "NOJ_SERVER_SECRET_KEY" in result.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "x"),
        ("LEASE_TTL_S", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("RETENTION_S", "1"),
        ("LOG_FORMAT", "xml"),
        ("THREADS", "32"),
        ("HEARTBEAT_INTERVAL_S", "15.1"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "redis://localhost:x/0"),
        ("REDIS_URL", "redis://localhost/0?surprise=1"),
    ],
)
def test_wrong_values(served: list[ServerSettings], name: str, value: str) -> None:
    """Exit 2 that names the setting."""
    result = CliRunner().invoke(app, ["serve"], env={**GOOD, f"NOJ_SERVER_{name}": value})
    assert result.exit_code == 2
    assert f"NOJ_SERVER_{name}" in result.output
    assert not served


def test_a_short_lease_has_short_heartbeats(served: list[ServerSettings]) -> None:
    """The default interval follows the lease; two that do not go together are both named."""
    lease = {"NOJ_SERVER_LEASE_TTL_S": "8"}
    assert CliRunner().invoke(app, ["serve"], env={**GOOD, **lease}).exit_code == 0
    assert served[0].heartbeat_interval_s == 4
    beats = {"NOJ_SERVER_HEARTBEAT_INTERVAL_S": "5"}
    result = CliRunner().invoke(app, ["serve"], env={**GOOD, **lease, **beats})
    assert result.exit_code == 2
    assert set(lease) | set(beats) <= set(result.output.replace(":", " ").split())


def test_a_wrong_redis_url_shows_no_password(served: list[ServerSettings]) -> None:
    """INV8: what is wrong is said without the URL."""
    env = {**GOOD, "NOJ_SERVER_REDIS_URL": "rediss//:hunter2@host/0"}
    result = CliRunner().invoke(app, ["serve"], env=env)
    assert result.exit_code == 2
    assert "NOJ_SERVER_REDIS_URL" in result.output
    assert "hunter2" not in result.output


def test_an_impossible_data_directory(served: list[ServerSettings], tmp_path: Path) -> None:
    """Exit 2 that names the setting and the reason."""
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(
        app, ["serve", "--data-dir", str(tmp_path / "file" / "data")], env=GOOD
    )
    assert result.exit_code == 2
    assert "NOJ_SERVER_DATA_DIR" in result.output
    assert not served


def test_flags_beat_the_environment(served: list[ServerSettings]) -> None:
    """Flag, then environment, then default."""
    env = {**GOOD, "NOJ_SERVER_PORT": "9001", "NOJ_SERVER_LEASE_TTL_S": "5"}
    result = CliRunner().invoke(app, ["serve", "--port", "9002"], env=env)
    assert result.exit_code == 0, result.output
    (settings,) = served
    assert (settings.port, settings.lease_ttl_s, settings.max_attempts) == (9002, 5, 3)
    assert settings.data_dir.is_dir()
    assert settings.queue.lease_ttl_ms == 5000
    assert settings.parking_capacity == settings.threads - RESERVED_THREADS


def test_a_missing_registration_token_is_no_reason_to_stay_down(
    served: list[ServerSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """The server starts, says that no agent can register, and refuses them all."""
    env = {name: value for name, value in GOOD.items() if "REGISTRATION" not in name}
    assert CliRunner().invoke(app, ["serve"], env=env).exit_code == 0
    assert "NOJ_SERVER_REGISTRATION_TOKEN is not set" in caplog.text


def test_settings_are_frozen_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV8: no secret shows in a repr; nothing changes after the start."""
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings()
    assert missing_secrets(settings) == []
    assert "a" * 24 not in repr(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
