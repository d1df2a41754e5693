"""Load the Lua scripts, one per transition, and run them with the key prefix."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

from redis import Redis

from noj_server import keys

NAMES = (
    *("enqueue", "rejudge", "cancel"),
    *("claim", "renew", "complete", "abort", "sweep"),
    *("beat", "pause"),
)


def source(name: str) -> str:
    """The text of a script with the common part before it."""
    folder = resources.files("noj_server") / "lua"
    return (folder / "_common.lua").read_text() + (folder / f"{name}.lua").read_text()


class Scripts:
    """The scripts on one Redis client. Thread-safe, as the client is."""

    def __init__(self, redis: Redis) -> None:
        self._calls: dict[str, Callable[..., Any]] = {
            name: redis.register_script(source(name)) for name in NAMES
        }

    def run(self, name: str, *args: str | float) -> Any:
        """Run a script; the reply is as its header says. Raises redis.RedisError."""
        # redis-py would send an IntEnum as its repr.
        plain = [int(arg) if isinstance(arg, int) else arg for arg in args]
        return self._calls[name](keys=[keys.PREFIX], args=plain)
