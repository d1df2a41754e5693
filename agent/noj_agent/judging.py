"""A slot's thread: one job after another, from its files to its report in the outbox."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from noj_agent.api import ServerApi
from noj_agent.errors import (
    AgentError,
    JobCancelled,
    LeaseLost,
    Rejected,
    SandboxError,
    Unavailable,
)
from noj_agent.hand import Hand, JobInHand
from noj_agent.health import Health
from noj_agent.judge.slots import SlotPool
from noj_agent.outbox import Entry, Outbox
from noj_agent.poller import describe
from noj_agent.retry import for_a_while
from noj_agent.sandbox.base import Slot
from noj_agent.session import Session
from noj_agent.testdata import DOWNLOAD_LIMIT_BYTES, TestdataCache
from noj_shared.package import CODE_LIMITS, PackageError
from noj_shared.wire import AbortJobBody, AbortReason, CompleteJobBody, Job

log = logging.getLogger(__name__)

SLOT_TIMEOUT_S = 600.0
"""A borrowed slot comes back after one case; the longest case takes 20 minutes and 1 s at most,
an ordinary one seconds."""


class Judge(Protocol):
    """What judges: `judge_job` with the engine and the pool filled in."""

    def __call__(
        self,
        job: Job,
        *,
        code_zip: Path,
        testdata_dir: Path,
        slot: Slot,
        cancel: threading.Event,
        on_progress: Callable[[int, int], None],
    ) -> CompleteJobBody:
        """Judge a job to its end."""


class SlotWorker:
    """Everything a slot's thread needs. One instance serves all threads."""

    def __init__(
        self,
        *,
        api: ServerApi,
        session: Session,
        hand: Hand,
        outbox: Outbox,
        testdata: TestdataCache,
        health: Health,
        slots: SlotPool,
        judge: Judge,
        on_done: Callable[[], None],
    ) -> None:
        self._api = api
        self._session = session
        self._hand = hand
        self._outbox = outbox
        self._testdata = testdata
        self._health = health
        self._slots = slots
        self._judge = judge
        self._on_done = on_done

    def run(self, claimed: queue.SimpleQueue[JobInHand | None]) -> None:
        """Work until a None comes."""
        while (held := claimed.get()) is not None:
            self.work(held)

    def work(self, held: JobInHand) -> None:
        """One job. Its report is on the disk before it leaves the hand; always gives back."""
        try:
            report = self._report(held)
            if report is not None and not held.dropped:
                self._outbox.put(Entry(held.job.job_id, report))
                if isinstance(report, CompleteJobBody):
                    self._health.succeeded()
        except OSError as error:
            # The disk is full: the lease runs out, and somebody healthier judges the job.
            self._health.failed(error)
            log.error("job %s: its report cannot be kept: %s", held.job.job_id, error)
        finally:
            self._hand.done(held)
            self._on_done()

    def _report(self, held: JobInHand) -> CompleteJobBody | AbortJobBody | None:
        """What to report: the result, or why there is none; None if nobody wants to know."""
        job = held.job
        try:
            return self._judged(held)
        except JobCancelled:
            if held.dropped:
                log.info("job %s dropped", job.job_id)
                return None
            return _abort(job, AbortReason.DRAIN, "the agent was told to stop")
        except PackageError as error:
            log.error("job %s: bad package: %s", job.job_id, error)
            return _abort(job, AbortReason.REJECTED, describe(error))
        except (Unavailable, Rejected, LeaseLost) as error:
            log.error("job %s: its files cannot be fetched: %s", job.job_id, error)
            return _abort(job, AbortReason.PREP_FAILED, describe(error))
        except Exception as error:  # a defect of ours, too, must cost neither agent nor job
            known = isinstance(error, SandboxError | OSError)
            log.error(
                "job %s: this host failed: %s", job.job_id, describe(error), exc_info=not known
            )
            self._health.failed(error)
            return _abort(job, AbortReason.PREP_FAILED, describe(error))

    def _judged(self, held: JobInHand) -> CompleteJobBody:
        job = held.job
        held.phase = "fetching"
        code_zip = held.folder / "code.zip"
        with code_zip.open("wb") as sink:
            self._fetch(held, sink, lambda: self._download_code(job, sink))

        def fetch_testdata(sink: IO[bytes]) -> None:
            self._fetch(held, sink, lambda: self._download_testdata(job, sink))

        with self._testdata.use(job.testdata_checksum, fetch_testdata) as folder:
            slot = self._acquire(held)
            try:
                held.phase = "judging"
                return self._judge(
                    job,
                    code_zip=code_zip,
                    testdata_dir=folder,
                    slot=slot,
                    cancel=held.cancel,
                    on_progress=lambda done, total: _progress(held, done, total),
                )
            finally:
                self._slots.release(slot)

    def _acquire(self, held: JobInHand) -> Slot:
        held.phase = "waiting for a slot"
        slot = self._slots.acquire(SLOT_TIMEOUT_S)
        if slot is None:
            raise SandboxError(f"no slot became free within {SLOT_TIMEOUT_S:.0f} s")
        return slot

    def _fetch(self, held: JobInHand, sink: IO[bytes], download: Callable[[], None]) -> None:
        """A download, tried again for a while; begins anew each time."""
        try:
            for attempt in for_a_while(held.cancel):
                with attempt:
                    sink.seek(0)
                    sink.truncate()
                    download()
        except AgentError as error:
            if held.cancel.is_set():
                raise JobCancelled("cancelled while fetching") from error
            raise

    def _download_code(self, job: Job, sink: IO[bytes]) -> None:
        self._api.download_code(job.code_url, sink, 2 * CODE_LIMITS.total_bytes)

    def _download_testdata(self, job: Job, sink: IO[bytes]) -> None:
        self._session.call(
            lambda me: self._api.download_testdata(
                me, job.problem_id, job.testdata_checksum, sink, DOWNLOAD_LIMIT_BYTES
            )
        )


def _progress(held: JobInHand, done: int, total: int) -> None:
    held.done, held.total = done, total


def _abort(job: Job, reason: AbortReason, detail: str) -> AbortJobBody:
    return AbortJobBody(reason=reason, lease=job.lease, detail=detail)
