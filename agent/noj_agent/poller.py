"""The poller: asks for a job when there is room for one, and hands it to a slot's thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from noj_agent.api import ServerApi
from noj_agent.errors import AgentError, Rejected, Unavailable
from noj_agent.hand import Hand, JobInHand
from noj_agent.health import Health
from noj_agent.outbox import Entry, Outbox
from noj_agent.retry import patiently
from noj_agent.session import Session
from noj_shared.ids import new_request_id
from noj_shared.wire import AbortJobBody, AbortReason, Job

log = logging.getLogger(__name__)

IDLE_S = 1.0
QUICK_ANSWER_S = 1.0
"""A 204 that comes sooner means that the server did not park us."""


class Poller:
    """Long-polls, only while something can be started at once."""

    def __init__(
        self,
        *,
        api: ServerApi,
        session: Session,
        hand: Hand,
        outbox: Outbox,
        health: Health,
        capacity: int,
        paused: Callable[[], bool],
        draining: threading.Event,
    ) -> None:
        self._api = api
        self._session = session
        self._hand = hand
        self._outbox = outbox
        self._health = health
        self._capacity = capacity
        self._paused = paused
        self._draining = draining
        self.room = threading.Event()
        """Set it when there may be room again."""
        self.claimed: queue.SimpleQueue[JobInHand | None] = queue.SimpleQueue()
        """Where the slots' threads get their jobs; None tells one of them to end."""

    def idle_reason(self) -> str | None:
        """Why it does not ask for work now; None while it does."""
        if self._draining.is_set():
            return "draining"
        if (sick := self._health.reason()) is not None:
            return sick
        if self._paused():
            return "paused by an operator"
        limit = min(self._capacity, self._session.config.max_concurrent_jobs)
        return "all slots are busy" if len(self._hand) >= limit else None

    def run(self) -> None:
        """Poll until draining. A poll under way is never cut off: the server answers it when a
        heartbeat says that we drain."""
        while not self._draining.is_set():
            self.room.clear()
            if self.idle_reason() is not None:
                self._health.try_to_recover()
                self.room.wait(IDLE_S)
                continue
            try:
                self._poll()
            except Unavailable:
                if not self._draining.is_set():
                    raise
            except Rejected as error:
                log.error("the server refuses our poll: %s", error)
                self._draining.wait(float(self._session.config.poll_interval_sec))

    def _poll(self) -> None:
        key = new_request_id()  # the same for every try of this poll
        started = time.monotonic()
        job: Job | None = None
        for attempt in patiently(self._draining, self._session.outage):
            with attempt:
                job = self._session.call(lambda me: self._api.next_job(me, key))
        if job is not None:
            self._take(job)
        elif time.monotonic() - started < QUICK_ANSWER_S:
            self._draining.wait(float(self._session.config.poll_interval_sec))

    def _take(self, job: Job) -> None:
        """Keep the job durably, then pass it on; or hand it back if we drain by now."""
        log.info("job %s claimed (submission %s)", job.job_id, job.submission_id)
        try:
            held = self._hand.take(job)
        except OSError as error:
            # Not even noted: its lease runs out, and somebody healthier gets it.
            self._health.failed(error)
            log.error("cannot keep job %s on disk: %s", job.job_id, error)
            return
        if self._draining.is_set():
            body = AbortJobBody(reason=AbortReason.DRAIN, lease=job.lease, detail="draining")
            self._outbox.put(Entry(job.job_id, body))
            self._hand.done(held)
            return
        self.claimed.put(held)


def describe(error: BaseException) -> str:
    """An error as one line for reports and logs."""
    text = str(error) if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]
