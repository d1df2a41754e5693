"""Logging of the agent: rich on a terminal, JSON lines otherwise. Never a token or source code."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler


def set_up_logging(style: str, level: str) -> None:
    """Configure the root logger for "auto", "rich" or "json"; again to change the level."""
    rich = style == "rich" or (style == "auto" and sys.stderr.isatty())
    handler: logging.Handler
    if rich:
        handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=True)
        handler.setFormatter(logging.Formatter("%(threadName)s: %(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(
            JsonFormatter("%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s")
        )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore"):  # they log URLs, which may carry tokens
        logging.getLogger(noisy).setLevel(logging.WARNING)
