"""The slots of this machine: who may use a CPU now. Thread-safe.

A job holds one slot from claim to report. While it runs it may borrow free slots to run more
of its cases at once; it gives them back as soon as somebody waits for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from noj_agent.sandbox.base import Slot


class SlotPool:
    """All slots, free or taken."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._free = list(reversed(slots))
        self._condition = threading.Condition()
        self._waiting = 0
        self.size = len(slots)

    @property
    def free(self) -> int:
        """How many nobody uses right now."""
        with self._condition:
            return len(self._free)

    @property
    def wanted(self) -> bool:
        """Whether a job waits for a slot: borrowers should give theirs back."""
        with self._condition:
            return self._waiting > 0

    def acquire(self, timeout_s: float) -> Slot | None:
        """A free slot; None if none becomes free in time."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            self._waiting += 1
            try:
                while not self._free:
                    if not self._condition.wait(max(deadline - time.monotonic(), 0)):
                        return None
                return self._free.pop()
            finally:
                self._waiting -= 1

    def try_acquire(self) -> Slot | None:
        """A free slot to borrow; None if there is none, or if a job waits for one."""
        with self._condition:
            return self._free.pop() if self._free and not self._waiting else None

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._condition:
            self._free.append(slot)
            self._condition.notify()
