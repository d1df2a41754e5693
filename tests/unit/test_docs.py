"""The docs are true: every route, error code, setting and command stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask import Flask

from noj_agent.settings import AgentSettings
from noj_server.app import create_app
from noj_server.redis_client import connect
from noj_server.settings import ServerSettings
from noj_shared.problem import ErrorCode

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """The real application, for its routes."""
    return create_app(ServerSettings(data_dir=tmp_path), connect(None))


def test_every_route_is_in_the_protocol(app: Flask) -> None:
    """Each path of the application stands in protocol.md as it is."""
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:any\([^)]*\):|int:)?(\w+)>", r"{\1}", rule.rule)
        for concrete in (
            (path.replace("{action}", "pause"), path.replace("{action}", "resume"))
            if "{action}" in path
            else (path,)
        ):
            assert concrete in PROTOCOL, concrete


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_in_the_protocol(code: ErrorCode) -> None:
    """A program that meets a code finds it explained."""
    assert f"`{code}`" in PROTOCOL


@pytest.mark.parametrize(
    "name",
    [f"NOJ_SERVER_{field.upper()}" for field in ServerSettings.model_fields]
    + [f"NOJ_AGENT_{field.upper()}" for field in AgentSettings.model_fields],
)
def test_every_setting_is_in_operations(name: str) -> None:
    """Each environment variable stands in the tables."""
    assert f"`{name}`" in OPERATIONS


@pytest.mark.parametrize(
    "file",
    [
        *("README.md", "compose.yaml", "Dockerfile.server", "Dockerfile.agent"),
        *("agent/systemd/noj-agent.service", "server/systemd/noj-server.service"),
        *("docs/operations.md", "docs/redis.md", "docs/sandbox.md"),
    ],
)
def test_named_variables_exist(file: str) -> None:
    """No document or deployment file names a variable that nobody reads."""
    known = (
        {f"NOJ_SERVER_{field.upper()}" for field in ServerSettings.model_fields}
        | {f"NOJ_AGENT_{field.upper()}" for field in AgentSettings.model_fields}
        | {"NOJ_AGENT_CONFIG", "NOJ_SERVER_URL", "NOJ_SERVER_API_KEY", "NOJ_SERVER_API_KEY_FILE"}
    )
    named = set(re.findall(r"NOJ_(?:SERVER|AGENT)_[A-Z_]*[A-Z]", (ROOT / file).read_text()))
    assert named <= known


def test_every_invariant_names_tests_that_exist() -> None:
    """states.md names a test for each of INV1…INV8, and it is there."""
    states = (ROOT / "docs/states.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [f"INV{n}" for n in range(1, 9)] == re.findall(r"^\| (INV\d)", states, re.MULTILINE)
    for name in re.findall(r"`(test_\w+)`", states):
        assert f"def {name}(" in tests, name


def test_links_lead_somewhere() -> None:
    """Relative links of README and docs point at files that exist."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    """One runs the main job, one passes all tests."""
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 noxfile\.py[^#\n]*", readme, re.MULTILINE)
    assert [command.strip() for command in commands] == [
        "python3 noxfile.py -s demo",
        "python3 noxfile.py",
    ]
