"""Parked requests: long polls that wait for a job, or for a result, without polling Redis.

One listener thread per process hears on pub/sub that there is something, and wakes the first
waiter that can use it; the waiter's own request thread then claims. A parked request holds a thread
but no Redis connection, so parking is capped: heartbeats must always find a thread.
A lost wake-up is healed by a look of each waiter's own every few seconds.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from redis import Redis, RedisError

from noj_server import keys

log = logging.getLogger(__name__)

T = TypeVar("T")
RECHECK_S = 5.0
MAX_WAIT_S = 25.0
"""Below the 30 s after which load balancers cut idle connections."""
_LISTEN_S = 1.0
_RECONNECT_S = 1.0
_JOIN_TIMEOUT_S = 5.0
RESULTS_TOPIC = "results"


class ParkingFullError(Exception):
    """No room: answer 204 at once and let the client come back."""


@dataclass(eq=False)
class Waiter:
    """One parked request: what it waits for, and whom it is for."""

    topics: frozenset[str]
    owner: str
    event: threading.Event = field(default_factory=threading.Event)
    woken_by: str | None = None
    released: bool = False


class Parking:
    """The parked requests of this process. Thread-safe."""

    def __init__(self, redis: Redis, capacity: int, *, recheck_s: float = RECHECK_S) -> None:
        self._redis = redis
        self._capacity = capacity
        self._recheck_s = recheck_s
        self._waiters: list[Waiter] = []  # first come, first woken
        self._lock = threading.Lock()
        self._closed = False
        self._stopped = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="wake-listener")

    # -- the process' side --------------------------------------------------------------------

    def start(self) -> None:
        """Begin to listen."""
        self._listener.start()

    def stop(self) -> None:
        """Release everybody, take nobody in any more, stop listening."""
        self.close()
        self._stopped.set()
        if self._listener.ident is not None:
            self._listener.join(_JOIN_TIMEOUT_S)

    def close(self) -> None:
        """Answer every parked request at once; safe in a signal handler's thread."""
        self._closed = True
        for waiter in list(self._waiters):
            waiter.released = True
            waiter.event.set()

    @property
    def parked(self) -> int:
        """How many are parked now."""
        return len(self._waiters)

    @property
    def listening(self) -> bool:
        """Whether the listener lives."""
        return self._listener.is_alive()

    # -- the requests' side -------------------------------------------------------------------

    def wait(
        self,
        attempt: Callable[[], T | None],
        *,
        topics: Iterable[str],
        owner: str,
        wait_s: float,
        gone: Callable[[], bool] = lambda: False,
    ) -> T | None:
        """What `attempt` gives, as soon as it gives something; None when time is up.

        Tries at once, after each wake-up and every few seconds, but never for a client that
        has `gone`: its wake-up is passed on, as it is when `attempt` raises. A newer request of
        the same owner releases this one. Raises ParkingFullError when there is no room; then
        nothing was attempted but once.
        """
        found = None if gone() else attempt()
        if found is not None or wait_s <= 0 or self._closed:
            return found
        waiter = Waiter(frozenset(topics), owner)
        self._enter(waiter)
        deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
        topic: str | None = None
        try:
            # Not only `released`: `close` may have come before this waiter was in the list.
            while not (waiter.released or self._closed or gone()):
                # Also before the first sleep: something may have come since the first try.
                found = attempt()
                topic = None  # it was used, or told of what somebody else has taken
                left_s = deadline - time.monotonic()
                if found is not None or left_s <= 0:
                    return found
                waiter.event.wait(min(left_s, self._recheck_s))
                waiter.event.clear()
                with self._lock:
                    topic, waiter.woken_by = waiter.woken_by, None
            return None
        finally:
            self._leave(waiter)
            # Also when something was found: a wake-up that came meanwhile told of the next one.
            for unused in {topic, waiter.woken_by}:
                if unused is not None:
                    self.wake(unused)

    def release(self, owner: str) -> None:
        """Answer this owner's parked request now, e.g. because it drains."""
        for waiter in list(self._waiters):
            if waiter.owner == owner:
                waiter.released = True
                waiter.event.set()

    def wake(self, topic: str) -> None:
        """Something came: results wake all that wait for them, a job wakes one."""
        with self._lock:
            for waiter in self._waiters:
                if topic in waiter.topics and waiter.woken_by is None and not waiter.released:
                    waiter.woken_by = topic
                    waiter.event.set()
                    if topic != RESULTS_TOPIC:
                        return

    def _enter(self, waiter: Waiter) -> None:
        self.release(waiter.owner)
        with self._lock:
            if len(self._waiters) >= self._capacity:
                raise ParkingFullError
            self._waiters.append(waiter)

    def _leave(self, waiter: Waiter) -> None:
        with self._lock:
            self._waiters.remove(waiter)

    # -- the listener -------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    self._subscribe()
                except RedisError as error:
                    log.warning("no wake-ups while Redis is away: %s", error)
                    self._stopped.wait(_RECONNECT_S)
        except Exception:  # atop a thread: /readyz shows that it has ended
            log.exception("the wake-up listener died; restart the server")

    def _subscribe(self) -> None:
        with self._redis.pubsub() as channel:  # type: ignore[no-untyped-call]  # redis-py
            channel.subscribe(keys.WAKE_CHANNEL, keys.LANDED_CHANNEL)
            for topic in self._topics():  # what was said while nobody listened
                self.wake(topic)
            while not self._stopped.is_set():
                message = channel.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                if message is not None:
                    landed = message["channel"] == keys.LANDED_CHANNEL
                    self.wake(RESULTS_TOPIC if landed else message["data"])

    def _topics(self) -> set[str]:
        with self._lock:
            return {topic for waiter in self._waiters for topic in waiter.topics}


def client_gone(environ: dict[str, object]) -> Callable[[], bool]:
    """Whether this request's client has hung up, by peeking at its socket.

    gunicorn gives the socket; where a server does not, nobody ever seems gone.
    """
    sock = environ.get("gunicorn.socket")

    def gone() -> bool:
        if not isinstance(sock, socket.socket):
            return False
        try:
            return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    return gone
