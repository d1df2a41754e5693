"""The sweeper: a thread of each server process that ticks; one of them wins each tick.

Must outlive Redis being away: it says so once, and once more when Redis is back.
"""

from __future__ import annotations

import logging
import threading

from redis import RedisError

from noj_server.job_queue import JobQueue, SweepReport

log = logging.getLogger(__name__)

_BATCH = 100
_JOIN_TIMEOUT_S = 10.0


class Sweeper:
    """Call `start` once per process, `stop` before it ends."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper")
        self._outage = False

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the tick under way."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_TIMEOUT_S)

    @property
    def running(self) -> bool:
        """Whether its thread is alive; `/readyz` looks at it."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.tick()
                self._stopped.wait(self._queue.settings.tick_s)
        except Exception:  # atop a thread: /readyz shows that it has ended
            log.exception("the sweeper died; restart the server")

    def tick(self) -> SweepReport | None:
        """One tick; None while Redis is away."""
        try:
            report = self._queue.sweep(_BATCH)
        except RedisError as error:
            if not self._outage:
                log.error("Redis is away, no orphan is reclaimed meanwhile: %s", error)
            self._outage = True
            return None
        if self._outage:
            log.warning("Redis is back")
        self._outage = False
        for job_id in report.requeued:
            log.warning("job %s: lease expired, requeued", job_id)
        for job_id in report.exhausted:
            log.error("job %s: last attempt lost, landed as Judge Error", job_id)
        return report
