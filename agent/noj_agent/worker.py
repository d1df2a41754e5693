"""The agent: its parts, its threads, and how it stops.

thread      started by  ends when
main        process     the others have ended
heartbeat   main        the last job is reported (or the stop ladder is climbed)
poller      main        draining begins
slot-1…n    main        the poller has ended and the claimed jobs are judged
reporter    main        as the heartbeat

signal      first               second                     third
TERM, INT   drain: finish what  cancel: stop the jobs and  exit at once; the server finds
            is running          hand them back             out by the leases
HUP         log level read anew; the rest needs a restart
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType

from noj_agent.api import ServerApi
from noj_agent.errors import AuthRejected, Unavailable
from noj_agent.hand import Hand
from noj_agent.health import Health
from noj_agent.heartbeat import Heartbeat
from noj_agent.judge.slots import SlotPool
from noj_agent.judging import Judge, SlotWorker
from noj_agent.notify import notify
from noj_agent.outbox import Entry, Outbox
from noj_agent.poller import Poller
from noj_agent.reporter import Reporter
from noj_agent.session import Session
from noj_agent.settings import AgentSettings
from noj_agent.state import StateDir, write_json
from noj_agent.testdata import TestdataCache
from noj_shared.wire import AbortJobBody, AbortReason

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_SANDBOX = 3
EXIT_REFUSED = 4
EXIT_NOW = 5

TICK_S = 1.0
LAST_REPORTS_S = 60.0
"""How long a drained agent tries to deliver; what is left stays in the outbox for next time."""
JOIN_TIMEOUT_S = 40.0


class Agent:
    """All parts of one agent. `run` blocks until it has stopped; call it once, in the main
    thread."""

    def __init__(
        self,
        settings: AgentSettings,
        state: StateDir,
        *,
        session: Session,
        api: ServerApi,
        heartbeat_api: ServerApi,
        slots: SlotPool,
        judge: Judge,
        self_test: Callable[[], object],
        facts: dict[str, str],
    ) -> None:
        self._settings = settings
        self._state = state
        self._session = session
        self._facts = facts
        self._slots = slots
        self._signals = 0
        self._draining = threading.Event()
        self._finished = threading.Event()
        self._woken = threading.Event()
        self._fatal: BaseException | None = None
        self._hand = Hand(state)
        self._outbox = Outbox(state.outbox)
        self._health = Health(
            free_bytes=state.free_bytes,
            floor_bytes=settings.disk_floor_bytes,
            self_test=self_test,
        )
        self._heartbeat = Heartbeat(
            api=heartbeat_api,
            session=session,
            hand=self._hand,
            outbox=self._outbox,
            slots=slots,
            health=self._health,
            state=state,
            draining=self._draining,
        )
        self._poller = Poller(
            api=api,
            session=session,
            hand=self._hand,
            outbox=self._outbox,
            health=self._health,
            capacity=slots.size,
            paused=lambda: self._heartbeat.paused,
            draining=self._draining,
        )
        self._reporter = Reporter(api=api, session=session, outbox=self._outbox)
        self._slot_worker = SlotWorker(
            api=api,
            session=session,
            hand=self._hand,
            outbox=self._outbox,
            testdata=TestdataCache(state.testdata, settings.cache_limit_bytes),
            health=self._health,
            slots=slots,
            judge=judge,
            on_done=self._poller.room.set,
        )

    # -- life ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until told to stop; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        self._hand_back_leftovers()
        try:
            self._write_status("starting")
            self._session.open(self._draining)
        except AuthRejected as error:
            log.critical("%s", error)
            return EXIT_REFUSED
        except Unavailable:
            log.info("stopped before the server ever answered")
            return EXIT_OK
        threads = self._start_threads()
        notify("READY=1")
        log.info("ready: %d slot(s), %s", self._slots.size, self._settings.server_url)
        self._wait_for_drain()
        notify("STOPPING=1")
        return self._wind_up(threads)

    def _hand_back_leftovers(self) -> None:
        """Give back what a killed predecessor left unfinished. That costs the attempt: a
        submission that kills agents must not be tried for ever (INV5)."""
        reported = set(self._outbox.job_ids())
        for left in self._hand.unfinished():
            if left.job_id not in reported:
                log.warning("job %s was left unfinished: handing it back", left.job_id)
                body = AbortJobBody(
                    reason=AbortReason.PREP_FAILED,
                    lease=left.lease,
                    detail="the agent was restarted while it judged this job",
                )
                self._outbox.put(Entry(left.job_id, body))
            shutil.rmtree(left.folder, ignore_errors=True)

    def _start_threads(self) -> dict[str, threading.Thread]:
        works: dict[str, Callable[[], None]] = {
            "heartbeat": lambda: self._heartbeat.run(self._finished),
            "reporter": lambda: self._reporter.run(self._finished),
            "poller": self._poller.run,
        }
        for slot in range(self._slots.size):
            works[f"slot-{slot + 1}"] = lambda: self._slot_worker.run(self._poller.claimed)
        threads = {
            name: threading.Thread(target=self._guarded, args=(name, work), name=name)
            for name, work in works.items()
        }
        for thread in threads.values():
            thread.start()
        return threads

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """The top of every thread: its death is seen by main, which then drains."""
        try:
            work()
        except AuthRejected as error:
            self._die(error)
        except Exception as error:
            log.exception("thread %s died", name)
            self._die(error)

    def _die(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self._draining.set()
        self._woken.set()

    def _wait_for_drain(self) -> None:
        while not self._draining.is_set():
            self._write_status("ready")
            self._woken.wait(TICK_S)
            self._woken.clear()
        self._heartbeat.now.set()
        self._poller.room.set()
        count = len(self._hand)
        log.info("draining: %s", f"waiting for {count} job(s)" if count else "nothing is running")

    def _wind_up(self, threads: dict[str, threading.Thread]) -> int:
        """After draining has begun: wait for jobs, then for reports, then for the threads."""
        self._wait_while(threads["poller"].is_alive)
        for _ in range(self._slots.size):
            self._poller.claimed.put(None)
        self._wait_while(lambda: any(threads[name].is_alive() for name in _slot_names(threads)))
        deadline = time.monotonic() + (0 if self._fatal else LAST_REPORTS_S)
        self._wait_while(lambda: bool(self._outbox.job_ids()) and time.monotonic() < deadline)
        left = self._outbox.job_ids()
        if left:
            log.warning("%d report(s) stay in the outbox; the next start delivers them", len(left))
        self._finished.set()
        self._heartbeat.now.set()
        self._outbox.changed.set()
        for thread in threads.values():
            thread.join(JOIN_TIMEOUT_S)
        self._write_status("stopped")
        if self._fatal is None:
            log.info("stopped; nothing is left running")
            return EXIT_OK
        log.critical("stopped because of: %s", self._fatal)
        return EXIT_REFUSED if isinstance(self._fatal, AuthRejected) else EXIT_FAILED

    def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            self._write_status("draining")
            self._woken.wait(0.2)
            self._woken.clear()

    def _on_stop_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The stop ladder; see the module."""
        self._signals += 1
        if self._signals == 1:
            log.info("told to stop: finishing what is running; once more to cancel it")
            self._draining.set()
        elif self._signals == 2:
            log.warning("told to stop again: cancelling the jobs and handing them back")
            self._hand.cancel_all()
        else:
            log.critical("told to stop a third time: exiting now; leases will tell the server")
            os._exit(EXIT_NOW)
        self._woken.set()

    # -- what `noj-agent status` shows ----------------------------------------------------------

    def _write_status(self, phase: str) -> None:
        sick = self._health.reason()
        outage_s = self._session.outage.since_s
        contact_at = self._session.contact_at
        data = {
            "pid": os.getpid(),
            "name": self._settings.name,
            "server_url": self._settings.server_url,
            "runner_id": self._session.runner_id,
            "state": "sick" if sick and phase == "ready" else phase,
            "idle_reason": self._poller.idle_reason() if phase == "ready" else phase,
            "last_contact_at": _iso(contact_at) if contact_at is not None else None,
            "outage_s": outage_s,
            "slots": self._slots.size,
            "free_slots": self._slots.free,
            "jobs": [
                {
                    "job_id": held.job.job_id,
                    "submission_id": held.job.submission_id,
                    "phase": held.phase,
                    "done": held.done,
                    "total": held.total,
                    "since": _iso(held.since),
                }
                for held in self._hand.jobs()
            ],
            "outbox": self._outbox.job_ids(),
            "facts": self._facts,
            "updated_at": _iso(time.time()),
        }
        try:
            write_json(self._state.status, data, durable=False)
        except OSError as error:
            log.debug("cannot write %s: %s", self._state.status, error)


def _slot_names(threads: dict[str, threading.Thread]) -> list[str]:
    return [name for name in threads if name.startswith("slot-")]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
