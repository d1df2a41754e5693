"""Is this process alive, and can it do its work."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flask import Blueprint, Response
from redis import RedisError

from noj_server.redis_client import EMBEDDED_WARNING, persistence_faults
from noj_server.replies import model
from noj_server.services import services
from noj_shared.wire import ReadyCheck, ReadyReply

blueprint = Blueprint("health", __name__)

DISK_FLOOR_BYTES = 256 * 1024 * 1024
TICKS_MISSED = 10


@blueprint.get("/healthz")
def healthz() -> Response:
    """200 while the process answers."""
    return Response("ok\n", content_type="text/plain")


@blueprint.get("/readyz")
def readyz() -> Response:
    """200 when everything it needs works, else 503; the reasons either way."""
    checks = tuple(_checks())
    ready = all(check.ok for check in checks)
    return model(ReadyReply(ready=ready, checks=checks), 200 if ready else 503)


def _checks() -> Iterator[ReadyCheck]:
    parts = services()
    try:
        yield from _redis_checks()
    except RedisError as error:
        yield ReadyCheck(name="redis", ok=False, detail=str(error))
    listening = parts.parking.listening
    yield ReadyCheck(name="wake-ups", ok=listening, detail="" if listening else "listener is dead")
    yield _disk_check()


def _disk_check() -> ReadyCheck:
    blobs = services().blobs
    try:
        free = blobs.free_bytes()
    except OSError as error:
        return ReadyCheck(name="disk", ok=False, detail=f"{blobs.root}: {error.strerror}")
    if not os.access(blobs.root, os.W_OK):
        return ReadyCheck(name="disk", ok=False, detail=f"cannot write to {blobs.root}")
    detail = f"{free // 2**20} MiB free in {blobs.root}"
    return ReadyCheck(name="disk", ok=free > DISK_FLOOR_BYTES, detail=detail)


def _redis_checks() -> Iterator[ReadyCheck]:
    parts = services()
    parts.redis.ping()
    yield ReadyCheck(name="redis", ok=True, detail="embedded" if parts.embedded else "answers")
    # Weak persistence is told, but does not make the server unready: it works.
    faults = [EMBEDDED_WARNING] if parts.embedded else persistence_faults(parts.redis)
    yield ReadyCheck(name="persistence", ok=True, detail="; ".join(faults) or "AOF, noeviction")
    age = parts.queue.tick_age_s()
    limit_s = max(TICKS_MISSED * parts.settings.queue.tick_s, 5.0)
    yield ReadyCheck(
        name="sweeper",
        ok=parts.sweeper.running and age is not None and age < limit_s,
        detail="no tick yet" if age is None else f"last tick {age:.1f} s ago",
    )
