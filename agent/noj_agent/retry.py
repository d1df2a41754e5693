"""When and how often to try again: one policy per operation, on tenacity.

Only `Unavailable` is tried again. Waits grow from about 0.5 s, with jitter, to 15 s, so that after
an outage everybody is back soon but not at once; the server's Retry-After wins, up to a minute.
Every wait ends at once when the stop event is set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from noj_agent.errors import Unavailable

log = logging.getLogger(__name__)

FIRST_S = 0.5
CAP_S = 15.0
RETRY_AFTER_CAP_S = 60.0
PREPARE_TOTAL_S = 120.0
_grow = wait_random_exponential(multiplier=FIRST_S, max=CAP_S)


def wait_s(state: RetryCallState) -> float:
    """How long to wait before the next try."""
    error = state.outcome.exception() if state.outcome is not None else None
    wished = getattr(error, "retry_after_s", None)
    if wished is not None:
        return min(float(wished), RETRY_AFTER_CAP_S)
    return float(_grow(state))


def growing_s(failures: int) -> float:
    """The wait after so many failures in a row, for loops that are no retries of one call: 0.5 s
    after the first, doubled up to 15 s, without jitter."""
    return min(FIRST_S * 2.0 ** min(failures - 1, 16), CAP_S)


def patiently(stop: threading.Event, outage: Outage) -> Retrying:
    """For ever, until `stop`: registering, polling, reporting. Nothing there may be given up."""
    return Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_s,
        sleep=sleep_using_event(stop),
        stop=stop_when_event_set(stop),
        before_sleep=outage.before_sleep,
        reraise=True,
    )


def for_a_while(stop: threading.Event, total_s: float = PREPARE_TOTAL_S) -> Retrying:
    """For at most two minutes (and one try's deadline): fetching code and test data. Then the job
    goes back, for a runner that is better connected."""
    return Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_s,
        sleep=sleep_using_event(stop),
        stop=stop_after_delay(total_s) | stop_when_event_set(stop),
        reraise=True,
    )


class Outage:
    """Says once that the server has gone, and once that it is back. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self.last_contact: float | None = None

    @property
    def since_s(self) -> float | None:
        """For how long the server has not answered; None while it does."""
        since = self._since
        return None if since is None else self._clock() - since

    def opened(self, error: BaseException) -> None:
        """A call failed."""
        with self._lock:
            if self._since is None:
                self._since = self._clock()
                log.warning("the server does not answer (%s); trying again until it does", error)

    def closed(self) -> None:
        """A call went well."""
        with self._lock:
            now = self._clock()
            if self._since is not None:
                log.info("the server answers again, after %.0f s", now - self._since)
            self._since = None
            self.last_contact = now

    def before_sleep(self, state: RetryCallState) -> None:
        """tenacity's hook."""
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            self.opened(error)
