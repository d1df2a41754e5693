"""Whether this machine should take work: a sick host stops by itself, and says why.

Sick is: too little disk, or several internal errors in a row. It recovers by itself: when there is
room again, or when the self-test passes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from noj_agent.errors import AgentError

log = logging.getLogger(__name__)

ERRORS_IN_A_ROW = 3
FIRST_TEST_S = 10.0
LONGEST_TEST_S = 300.0


class Health:
    """The state of this host. Thread-safe."""

    def __init__(
        self,
        *,
        free_bytes: Callable[[], int],
        floor_bytes: int,
        self_test: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._floor_bytes = floor_bytes
        self._self_test = self_test
        self._clock = clock
        self._lock = threading.Lock()
        self._errors = 0
        self._last_error = ""
        self._test_at = 0.0
        self._wait_s = FIRST_TEST_S
        self._said: str | None = None

    def failed(self, error: BaseException) -> None:
        """A job failed on this host's account."""
        with self._lock:
            self._errors += 1
            self._last_error = str(error)[:150]
            if self._errors == ERRORS_IN_A_ROW:
                self._wait_s = FIRST_TEST_S
                self._test_at = self._clock() + self._wait_s

    def succeeded(self) -> None:
        """A job was judged."""
        with self._lock:
            self._errors = 0

    def reason(self) -> str | None:
        """Why no work should be taken now; None when all is well. Logs each change once."""
        reason = self._disk() or self._streak()
        if reason != self._said:
            if reason is not None:
                log.error("taking no more work: %s", reason)
            else:
                log.info("taking work again")
            self._said = reason
        return reason

    def try_to_recover(self) -> None:
        """Run the self-test if it is time for one; blocks for as long as that takes."""
        with self._lock:
            due = self._errors >= ERRORS_IN_A_ROW and self._clock() >= self._test_at
        if not due:
            return
        try:
            self._self_test()
        except (AgentError, OSError) as error:
            with self._lock:
                self._last_error = str(error)[:150]
                self._wait_s = min(2 * self._wait_s, LONGEST_TEST_S)
                self._test_at = self._clock() + self._wait_s
        else:
            self.succeeded()

    def _disk(self) -> str | None:
        try:
            free = self._free_bytes()
        except OSError as error:
            return f"cannot read the state directory's disk: {error}"
        if free >= self._floor_bytes:
            return None
        return f"low disk space: {free // 2**20} MiB free, {self._floor_bytes // 2**20} MiB needed"

    def _streak(self) -> str | None:
        with self._lock:
            if self._errors < ERRORS_IN_A_ROW:
                return None
            return f"{self._errors} internal errors in a row, the last: {self._last_error}"
