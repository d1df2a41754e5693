"""Clients of the one Redis: a given one, or the embedded default.

redis-py repeats a command after a timeout; a claim so repeated would lease two jobs. So claims
go through a client whose retries are off, and all else is idempotent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import fakeredis
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 10.0
"""Longer than any block: the listener's own waits are 1 s."""
EMBEDDED_WARNING = (
    "NO REDIS IS CONFIGURED: using an embedded one in this process. NOTHING SURVIVES A RESTART."
    " Set NOJ_SERVER_REDIS_URL for anything but a try-out."
)


@dataclass(frozen=True)
class RedisClients:
    """`claims` never retries; `embedded` says that nothing survives."""

    main: Redis
    claims: Redis
    embedded: bool


def connect(url: str | None) -> RedisClients:
    """Clients for a URL, or of a fresh embedded Redis for None. Does not talk to it yet."""
    if url is None:
        server = fakeredis.FakeServer()
        fake = fakeredis.FakeRedis(server=server, decode_responses=True)
        return RedisClients(main=fake, claims=fake, embedded=True)

    def client(retry: Retry) -> Redis:
        made: Redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            health_check_interval=30,
            retry=retry,
        )
        return made

    return RedisClients(
        main=client(Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2)),
        claims=client(Retry(NoBackoff(), 0)),
        embedded=False,
    )


def sync(reply: Any) -> Any:
    """redis-py types every reply as perhaps awaitable; ours never are."""
    return reply


def now_ms(redis: Redis) -> int:
    """Redis' clock: the only one that deadlines and ages are told by."""
    seconds, micros = sync(redis.time())
    return int(seconds) * 1000 + int(micros) // 1000


def persistence_faults(redis: Redis) -> list[str]:
    """What of Redis' configuration would lose submissions; each with its fix.

    An empty list too where CONFIG is forbidden (managed Redis): that cannot be seen from here.
    """
    faults = []
    try:
        config = redis.config_get("appendonly", "maxmemory-policy", "maxmemory")
    except ResponseError:  # NoPermissionError among them
        return []
    if config.get("appendonly", "yes") != "yes":
        faults.append("appendonly is off: a restart of Redis loses jobs; set `appendonly yes`")
    policy = config.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        faults.append(f"maxmemory-policy is {policy}: jobs may be evicted; set `noeviction`")
    return faults
