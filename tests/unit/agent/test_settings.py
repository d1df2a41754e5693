"""Settings: where they come from, in which order, and what is said when one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from noj_agent.errors import ConfigError
from noj_agent.settings import load_settings

URL = "http://judge.test"


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "agent.toml"
    path.write_text(f'server_url = "{URL}"\nname = "toml"\nslots = 3\n')
    return path


def test_flag_over_environment_over_file_over_default(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source wins over the next; a flag that was not given wins over nothing."""
    monkeypatch.setenv("NOJ_AGENT_NAME", "environment")
    monkeypatch.setenv("NOJ_AGENT_SLOTS", "4")
    settings = load_settings(toml, {"slots": 5, "name": None})
    assert (settings.slots, settings.name, settings.server_url) == (5, "environment", URL)
    assert settings.log_level == "INFO"


def test_the_file_may_be_named_by_the_environment(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOJ_AGENT_CONFIG stands in for --config."""
    monkeypatch.setenv("NOJ_AGENT_CONFIG", str(toml))
    assert load_settings(None, {}).name == "toml"


def test_defaults() -> None:
    """A server's address is enough, the rest has a sane default; a slash at its end is dropped."""
    settings = load_settings(None, {"server_url": f"{URL}/"})
    assert settings.server_url == URL
    assert settings.state_dir == Path("/var/lib/noj-agent")
    assert settings.slots >= 1
    assert settings.name
    assert not settings.allow_weak_limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sloots = 3\nserver_url = "http://x"', "unknown setting sloots"),
        ("name = 'n'", "server_url: Field required"),
        ('server_url = "judge.test"', "must begin with http:// or https://"),
        ('server_url = "http://x"\nslots = 0', "NOJ_AGENT_SLOTS"),
        ('server_url = "http://x"\nlog_level = "LOUD"', "NOJ_AGENT_LOG_LEVEL"),
        ('server_url = "http://x"\nfirst_uid = 0', "NOJ_AGENT_FIRST_UID"),
        ("server_url = ", "not valid TOML"),
    ],
)
def test_faults_name_the_setting(tmp_path: Path, text: str, said: str) -> None:
    """A wrong setting is a ConfigError that a sysadmin can act on."""
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(path, {})
    assert said in str(error.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    """Two mistakes, one message."""
    path = tmp_path / "agent.toml"
    path.write_text("slots = 0\nsloots = 1\n")
    with pytest.raises(ConfigError) as error:
        load_settings(path, {})
    assert len(str(error.value).splitlines()) == 3  # and server_url


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A --config that is not there is never taken for an empty one."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "away.toml", {})


def test_the_token_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file's line end is no part of it; the direct setting wins."""
    path = tmp_path / "token"
    path.write_text("from the file\n")
    monkeypatch.setenv("NOJ_AGENT_REGISTRATION_TOKEN_FILE", str(path))
    settings = load_settings(None, {"server_url": URL})
    assert settings.read_registration_token().get_secret_value() == "from the file"
    monkeypatch.setenv("NOJ_AGENT_REGISTRATION_TOKEN", "direct")
    settings = load_settings(None, {"server_url": URL})
    assert settings.read_registration_token().get_secret_value() == "direct"


def test_no_token_is_refused(tmp_path: Path) -> None:
    """Unset, or a file that is not there: ConfigError naming the setting."""
    with pytest.raises(ConfigError, match="NOJ_AGENT_REGISTRATION_TOKEN_FILE"):
        load_settings(None, {"server_url": URL}).read_registration_token()
    away = {"server_url": URL, "registration_token_file": tmp_path / "away"}
    with pytest.raises(ConfigError, match="NOJ_AGENT_REGISTRATION_TOKEN_FILE"):
        load_settings(None, away).read_registration_token()


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV8: neither by repr nor by str."""
    monkeypatch.setenv("NOJ_AGENT_REGISTRATION_TOKEN", "hush")
    settings = load_settings(None, {"server_url": URL})
    assert "hush" not in f"{settings!r} {settings}"
