"""Logging of the server: rich on a terminal, JSON lines otherwise. No access log: URLs may carry
tokens (INV8)."""

from __future__ import annotations

import sys
from typing import Any


def log_config(style: str) -> dict[str, Any]:
    """A `logging.config` dictionary for "auto", "rich" or "json"; gunicorn takes it too."""
    rich = style == "rich" or (style == "auto" and sys.stderr.isatty())
    handler = (
        {"class": "rich.logging.RichHandler", "rich_tracebacks": True, "show_path": False}
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
        "handlers": {"console": handler},
        "root": {"level": "INFO", "handlers": ["console"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "werkzeug": {"level": "WARNING"},
        },
    }
