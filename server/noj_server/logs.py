"""Logging of the server: rich on a terminal, JSON lines otherwise. No access log: URLs may carry
tokens (INV8)."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from rich.console import Console

_SECRET = re.compile(r"\b([ra]k_|token=)[\w.~+/=-]+")


class Discreet(logging.Filter):
    """No token reaches the log, also not by a request line that gunicorn quotes (INV8); and a
    client that stalled before its request was whole is a line, not a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; always let it through."""
        if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
            record.exc_info = None
            record.msg, record.args = "a client stalled in the middle of a request", ()
        message = record.getMessage()
        if _SECRET.search(message):
            record.msg, record.args = _SECRET.sub(r"\1…", message), ()
        return True


def log_config(style: str) -> dict[str, Any]:
    """A `logging.config` dictionary for "auto", "rich" or "json"; gunicorn takes it too."""
    rich = style == "rich" or (style == "auto" and sys.stderr.isatty())
    handler: dict[str, Any] = (
        {
            "class": "rich.logging.RichHandler",
            "console": Console(stderr=True),
            "rich_tracebacks": True,
            "show_path": False,
        }
        if rich
        else {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "fmt": "%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s",
            }
        },
        "filters": {"discreet": {"()": Discreet}},
        "handlers": {"console": {**handler, "filters": ["discreet"]}},
        "root": {"level": "INFO", "handlers": ["console"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "werkzeug": {"level": "WARNING"},
        },
    }
