"""What operators may change while the server runs: the rate limit. Nothing about judge machines."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis

from noj_server import keys
from noj_shared.wire import RateLimit, ServerConfig


class LiveConfig:
    """The configuration that lives in Redis. Thread-safe."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def get(self) -> ServerConfig:
        """What is in force."""
        stored: Any = self._redis.hgetall(keys.CONFIG)
        if not stored:
            return ServerConfig()
        return ServerConfig(
            rate_limit=RateLimit(
                limit=int(stored["rate_limit"]), window_sec=int(stored["rate_window_s"])
            )
        )

    def put(self, config: ServerConfig) -> None:
        """Replace it."""
        fields: dict[Any, Any] = {
            "rate_limit": config.rate_limit.limit,
            "rate_window_s": config.rate_limit.window_sec,
        }
        self._redis.hset(keys.CONFIG, mapping=fields)

    def admit(self, user: str) -> int:
        """Count a submission of this user; 0, or after how many seconds to come back."""
        limit = self.get().rate_limit
        if limit.limit == 0:
            return 0
        now = time.time()
        window = int(now // limit.window_sec)
        key = keys.rate(user, window)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, 2 * limit.window_sec)
            count = pipe.execute()[0]
        if count <= limit.limit:
            return 0
        return max(1, round((window + 1) * limit.window_sec - now))
