"""The heartbeat: a thread of its own, never blocked by work, until the last job is reported."""

from __future__ import annotations

import logging
import os
import threading

from noj_agent.api import ServerApi
from noj_agent.errors import Rejected, Unavailable
from noj_agent.hand import Hand
from noj_agent.health import Health
from noj_agent.judge.slots import SlotPool
from noj_agent.outbox import Outbox
from noj_agent.retry import growing_s
from noj_agent.session import Session
from noj_agent.state import StateDir
from noj_shared.wire import HeartbeatBody, HeartbeatReply, RunnerActivity

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the leases of everything in hand and in the outbox."""

    def __init__(
        self,
        *,
        api: ServerApi,
        session: Session,
        hand: Hand,
        outbox: Outbox,
        slots: SlotPool,
        health: Health,
        state: StateDir,
        draining: threading.Event,
    ) -> None:
        self._api = api
        self._session = session
        self._hand = hand
        self._outbox = outbox
        self._slots = slots
        self._health = health
        self._state = state
        self._draining = draining
        self.paused = False
        self.now = threading.Event()
        """Set it to have the next beat at once."""

    def run(self, finished: threading.Event) -> None:
        """Beat until `finished`; a failed beat is tried again sooner than the next one is due."""
        failures = 0
        while not finished.is_set():
            try:
                self.beat()
                failures = 0
            except Unavailable:  # noted by the session
                failures += 1
            except Rejected as error:
                log.error("the server refuses our heartbeat: %s", error)
            # Only now: the answer may have brought another interval than the one we began with.
            interval_s = float(self._session.config.heartbeat_interval_sec)
            if failures:
                interval_s = min(interval_s, growing_s(failures))
            self.now.wait(interval_s)
            self.now.clear()

    def beat(self) -> None:
        """One heartbeat, and what its answer asks for."""
        reason = self._health.reason()
        leases = self._hand.leases()
        waiting = {entry.job_id: entry.lease for entry in self._outbox.entries()}
        known = {**{job_id: lease for job_id, lease in waiting.items() if lease}, **leases}
        body = HeartbeatBody(
            active_job_ids=tuple(sorted({*leases, *waiting})),
            leases=known,
            state=self._activity(reason),
            reason=reason[:200] if reason else None,
            busy_slots=self._slots.size - self._slots.free,
            outbox=len(waiting),
            load=os.getloadavg()[0],
            disk_free_bytes=self._state.free_bytes(),
        )
        self._obey(self._session.call(lambda me: self._api.heartbeat(me, body)))

    def _activity(self, reason: str | None) -> RunnerActivity:
        if self._draining.is_set():
            return RunnerActivity.DRAINING
        return RunnerActivity.SICK if reason else RunnerActivity.READY

    def _obey(self, reply: HeartbeatReply) -> None:
        for job_id in reply.cancel:
            log.info("job %s was superseded or cancelled: dropping it", job_id)
            self._hand.drop(job_id)
        for job_id in reply.lost:
            log.warning("job %s is not ours any more: dropping it", job_id)
            self._hand.drop(job_id)
        if reply.paused != self.paused:
            log.info("paused by an operator" if reply.paused else "resumed by an operator")
        self.paused = reply.paused
        self._session.config = reply.config
