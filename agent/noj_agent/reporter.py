"""The reporter: drains the outbox. A result leaves the disk only when the server has taken it, or
refused it for good (INV7)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from noj_agent.api import Identity, ServerApi
from noj_agent.errors import LeaseLost, Rejected, Unavailable
from noj_agent.outbox import Entry, Outbox
from noj_agent.retry import CAP_S, RETRY_AFTER_CAP_S, growing_s
from noj_agent.session import Session
from noj_shared.wire import CompleteJobBody

log = logging.getLogger(__name__)


class Reporter:
    """Delivers reports one by one; one that fails waits for its turn and blocks no other."""

    def __init__(self, *, api: ServerApi, session: Session, outbox: Outbox) -> None:
        self._api = api
        self._session = session
        self._outbox = outbox
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def run(self, finished: threading.Event) -> None:
        """Deliver until `finished`."""
        while not finished.is_set():
            self._outbox.changed.clear()
            delay_s = self.deliver()
            self._outbox.changed.wait(delay_s)

    def deliver(self, clock: Callable[[], float] = time.monotonic) -> float:
        """Try every report that is due; how many seconds until the next one is."""
        for entry in self._outbox.entries():
            if clock() < self._not_before.get(entry.job_id, 0.0):
                continue
            try:
                self._deliver(entry)
            except Unavailable as error:
                self._postpone(entry, error, clock())
            else:
                self._failures.pop(entry.job_id, None)
                self._not_before.pop(entry.job_id, None)
        due = min(self._not_before.values(), default=clock() + CAP_S)
        return max(due - clock(), 0.01)

    def _deliver(self, entry: Entry) -> None:
        try:
            self._session.call(lambda me: self._send(me, entry))
        except LeaseLost:
            log.warning("job %s: our report came too late, another has the job", entry.job_id)
        except Rejected as error:
            slim = entry.without_outputs()
            if error.status == 413 and slim != entry:
                # A proxy before the server may take less than it does.
                log.warning("job %s: report too large; sent without outputs", entry.job_id)
                self._deliver(slim)
                return
            if error.status == 404:
                log.warning("job %s: the server does not know it any more", entry.job_id)
            else:
                log.error("job %s: report refused, kept aside: %s", entry.job_id, error)
                self._outbox.refuse(entry)
                return
        else:
            log.info("job %s: %s taken by the server", entry.job_id, entry.kind)
        self._outbox.remove(entry)

    def _send(self, me: Identity, entry: Entry) -> None:
        if isinstance(entry.body, CompleteJobBody):
            self._api.complete(me, entry.job_id, entry.body)
        else:
            self._api.abort(me, entry.job_id, entry.body)

    def _postpone(self, entry: Entry, error: Unavailable, now: float) -> None:
        failures = self._failures.get(entry.job_id, 0) + 1
        self._failures[entry.job_id] = failures
        wait_s = growing_s(failures)
        if error.retry_after_s is not None:
            wait_s = min(error.retry_after_s, RETRY_AFTER_CAP_S)
        self._not_before[entry.job_id] = now + wait_s
