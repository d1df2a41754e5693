"""The runner registry: who is registered, with which token, and when it was last heard of.

Secrets are kept as SHA-256 only and compared in constant time (INV8). A runner's identity lives
seven days past its last heartbeat; heartbeats extend it and never recreate it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from noj_server import keys
from noj_server.redis_client import now_ms, sync
from noj_server.scripts import Scripts
from noj_shared.ids import digest, new_runner_id, new_runner_token, same_digest
from noj_shared.language import JUDGED
from noj_shared.wire import HeartbeatBody, LanguageInfo, RegisterRunnerBody

_SHOWN_LIMIT = 1000


@dataclass(frozen=True)
class RunnerRecord:
    """One registered runner; optional things are None if it never told."""

    runner_id: str
    name: str
    version: str | None
    slots: int | None
    languages: tuple[LanguageInfo, ...]
    tags: tuple[str, ...]
    paused: bool
    state: str | None
    reason: str | None
    busy_slots: int | None
    outbox: int | None
    load: float | None
    disk_free_bytes: int | None
    registered_ms: int
    last_seen_ms: int
    alive: bool

    @property
    def language_numbers(self) -> tuple[int, ...]:
        """What it can judge: all that can be judged, if it did not say."""
        return tuple(info.language for info in self.languages) or tuple(map(int, JUDGED))


class RunnerRegistry:
    """The registry on one Redis. Thread-safe. Every method may raise redis.RedisError."""

    def __init__(self, redis: Redis, *, alive_ttl_s: float = 30.0) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._alive_ttl_ms = round(alive_ttl_s * 1000)

    def register(self, body: RegisterRunnerBody) -> tuple[str, str]:
        """A new runner; its id and its token, which is shown this once."""
        runner_id, token = new_runner_id(), new_runner_token()
        hashed = digest(token)
        registered_ms = now_ms(self._redis)
        meta: dict[Any, Any] = {
            "name": body.name,
            "registered_ms": str(registered_ms),
            "version": body.version or "",
            "slots": str(body.slots or ""),
            "languages": json.dumps([info.model_dump() for info in body.languages or ()]),
            "tags": json.dumps(body.tags or ()),
        }
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.runner(runner_id, "meta"), mapping=meta)
            pipe.expire(keys.runner(runner_id, "meta"), keys.IDENTITY_TTL_S)
            pipe.set(keys.runner(runner_id, "token_hash"), hashed, ex=keys.IDENTITY_TTL_S)
            pipe.set(keys.token(hashed), runner_id, ex=keys.IDENTITY_TTL_S)
            pipe.set(keys.runner(runner_id, "alive"), "1", px=self._alive_ttl_ms)
            pipe.zadd(keys.RUNNERS, {runner_id: registered_ms})
            pipe.execute()
        return runner_id, token

    def verify_token(self, runner_id: str, token: str) -> bool:
        """Whether this is that runner's token."""
        stored = sync(self._redis.get(keys.runner(runner_id, "token_hash")))
        return same_digest(stored or "", digest(token))

    def verify_any_token(self, token: str) -> str | None:
        """The runner whose token this is: one look-up by digest, never a scan."""
        found: str | None = sync(self._redis.get(keys.token(digest(token))))
        return found

    def renew_alive(self, runner_id: str, body: HeartbeatBody | None = None) -> bool:
        """Note a heartbeat and what it told; False if there is no such runner."""
        told: dict[str, Any] = {}
        if body is not None:
            told = body.model_dump(exclude={"active_job_ids", "leases"}, exclude_none=True)
            told.setdefault("reason", "")
        pairs = [str(part) for item in told.items() for part in item]
        reply = self._scripts.run(
            "beat", runner_id, keys.IDENTITY_TTL_S, self._alive_ttl_ms, *pairs
        )
        return bool(reply == 1)

    def is_alive(self, runner_id: str) -> bool:
        """Heard of within the alive TTL. For display: no decision reads it (INV2)."""
        return bool(self._redis.exists(keys.runner(runner_id, "alive")))

    def get(self, runner_id: str) -> RunnerRecord | None:
        """One runner."""
        return self._records([runner_id]).get(runner_id)

    def list_runners(self) -> list[RunnerRecord]:
        """All runners, by name; those whose identity has expired are forgotten on the way."""
        ids = sync(self._redis.zrevrange(keys.RUNNERS, 0, _SHOWN_LIMIT - 1))
        records = self._records(ids)
        gone = [runner_id for runner_id in ids if runner_id not in records]
        if gone:
            self._redis.zrem(keys.RUNNERS, *gone)
        expired_ms = now_ms(self._redis) - keys.IDENTITY_TTL_S * 1000
        self._redis.zremrangebyscore(keys.RUNNERS, "-inf", expired_ms)
        return sorted(records.values(), key=lambda record: (record.name, record.runner_id))

    def name_of(self, runner_id: str) -> str | None:
        """A runner's name, while it is known."""
        found: str | None = sync(self._redis.hget(keys.runner(runner_id, "meta"), "name"))
        return found

    def set_paused(self, runner_id: str, paused: bool) -> bool:
        """Let a runner claim no more jobs, or let it again; False if there is no such runner."""
        return bool(self._scripts.run("pause", runner_id, "1" if paused else "0") == 1)

    def sign_off(self, runner_id: str) -> None:
        """Forget a runner at once. Jobs it still holds become orphans by their leases (INV2)."""
        hashed = sync(self._redis.get(keys.runner(runner_id, "token_hash")))
        with self._redis.pipeline(transaction=True) as pipe:
            for part in ("meta", "token_hash", "alive"):
                pipe.delete(keys.runner(runner_id, part))
            pipe.set(keys.runner(runner_id, "revoked"), "1", ex=keys.REVOKED_S)
            if hashed:
                pipe.delete(keys.token(hashed))
            pipe.zrem(keys.RUNNERS, runner_id)
            pipe.execute()

    def _records(self, ids: list[str]) -> dict[str, RunnerRecord]:
        with self._redis.pipeline(transaction=False) as pipe:
            for runner_id in ids:
                pipe.hgetall(keys.runner(runner_id, "meta"))
                pipe.zscore(keys.RUNNERS, runner_id)
                pipe.exists(keys.runner(runner_id, "alive"))
            found = pipe.execute()
        return {
            runner_id: _record(runner_id, meta, seen, bool(alive))
            for runner_id, meta, seen, alive in zip(
                ids, found[::3], found[1::3], found[2::3], strict=True
            )
            if "name" in meta
        }


def _record(
    runner_id: str, meta: Mapping[str, str], seen: float | None, alive: bool
) -> RunnerRecord:
    registered_ms = int(meta["registered_ms"])
    return RunnerRecord(
        runner_id=runner_id,
        name=meta["name"],
        version=meta.get("version") or None,
        slots=_int(meta.get("slots")),
        languages=tuple(
            LanguageInfo.model_validate(item) for item in json.loads(meta["languages"])
        ),
        tags=tuple(json.loads(meta["tags"])),
        paused=meta.get("paused") == "1",
        state=meta.get("state") or None,
        reason=meta.get("reason") or None,
        busy_slots=_int(meta.get("busy_slots")),
        outbox=_int(meta.get("outbox")),
        load=float(meta["load"]) if meta.get("load") else None,
        disk_free_bytes=_int(meta.get("disk_free_bytes")),
        registered_ms=registered_ms,
        last_seen_ms=int(seen) if seen is not None else registered_ms,
        alive=alive,
    )


def _int(value: str | None) -> int | None:
    return int(value) if value else None
