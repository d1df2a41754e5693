"""How commands find their API key."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import BadParameter

from noj_server.cli.connection import read_key


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of this machine's."""
    monkeypatch.delenv("NOJ_SERVER_API_KEY", raising=False)


def test_the_file_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """File, then environment."""
    monkeypatch.setenv("NOJ_SERVER_API_KEY", "ak_environment")
    assert read_key(None) == "ak_environment"
    (tmp_path / "key").write_text("ak_file\n")
    assert read_key(tmp_path / "key") == "ak_file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"", "no API key"),
        ("ak_schlüssel".encode(), "characters that no key has"),
        (b"ak_one\nak_two", "characters that no key has"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes | None, said: str) -> None:
    """A usage error that names the file or says what to do, never a traceback."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadParameter, match=said):
        read_key(file)


def test_none_at_all() -> None:
    """Says both ways to give one."""
    with pytest.raises(BadParameter, match="NOJ_SERVER_API_KEY or give --key-file"):
        read_key(None)
