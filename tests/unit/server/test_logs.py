"""What reaches the log, and what does not."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Iterator

import pytest

from noj_server.logs import log_config


@pytest.fixture
def server_log() -> Iterator[logging.Logger]:
    """The root logger as `serve` sets it up, and as it was afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before, level


@pytest.mark.parametrize("style", ["json", "rich"])
def test_no_token_is_logged(
    server_log: logging.Logger, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    """INV8: whoever quotes a request line or a URL, with whatever in it."""
    logging.config.dictConfig(log_config(style))
    server_log.warning("Invalid request from ip=%s: %s", "10.0.0.1", "ak_s3cr-et_x")
    server_log.warning("GET /submissions/s/code?token=eyJ.s3cret.x HTTP/1.1")
    server_log.warning("Bearer rk_s3cret; task_rk 100 %s done", "%")
    said = capsys.readouterr().err
    assert "s3c" not in said
    assert "ip=10.0.0.1" in said
    assert "task_rk 100" in said


def test_a_stalled_client_is_a_line(
    server_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """gunicorn would write a traceback for everybody who opens a connection and types nothing."""
    logging.config.dictConfig(log_config("json"))
    for error in (BlockingIOError(11, "try again"), ValueError("a defect")):
        try:
            raise error
        except (BlockingIOError, ValueError):
            server_log.exception("Socket error processing request.")
    stalled, defect = capsys.readouterr().err.splitlines()
    assert "Traceback" not in stalled
    assert "stalled" in stalled
    assert "a defect" in defect
    assert "Traceback" in defect
