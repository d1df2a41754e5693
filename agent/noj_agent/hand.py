"""The jobs in hand: claimed and not yet in the outbox. What the threads share. Thread-safe."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from noj_agent.state import StateDir, read_json, write_json
from noj_shared.ids import is_job_id
from noj_shared.wire import Job


@dataclass
class JobInHand:
    """One job on its way through this machine."""

    job: Job
    folder: Path
    cancel: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False
    """The server does not want it any more: report nothing."""
    phase: str = "waiting for a slot"
    done: int = 0
    total: int = 0
    since: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Unfinished:
    """A job that a predecessor of this process left behind."""

    job_id: str
    lease: str | None
    folder: Path


class Hand:
    """Adds, drops and cancels jobs; keeps `jobs/<jb>/job.json` in step."""

    def __init__(self, state: StateDir) -> None:
        self._folder = state.jobs
        self._jobs: dict[str, JobInHand] = {}
        self._lock = threading.Lock()

    def take(self, job: Job) -> JobInHand:
        """Note a claimed job, durably."""
        folder = self._folder / job.job_id
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / "job.json", {"job_id": job.job_id, "lease": job.lease})
        held = JobInHand(job, folder)
        with self._lock:
            self._jobs[job.job_id] = held
        return held

    def done(self, held: JobInHand) -> None:
        """Forget a job; its report, if there is one, is in the outbox already."""
        shutil.rmtree(held.folder, ignore_errors=True)
        with self._lock:
            self._jobs.pop(held.job.job_id, None)

    def drop(self, job_id: str) -> None:
        """The server cancelled it or gave it to another: stop it, report nothing."""
        with self._lock:
            held = self._jobs.get(job_id)
        if held is not None:
            held.dropped = True
            held.cancel.set()

    def cancel_all(self) -> None:
        """Stop every job; they are handed back."""
        for held in self.jobs():
            held.cancel.set()

    def jobs(self) -> list[JobInHand]:
        """All of them."""
        with self._lock:
            return list(self._jobs.values())

    def leases(self) -> dict[str, str]:
        """Job id → lease id."""
        return {held.job.job_id: held.job.lease for held in self.jobs()}

    def __len__(self) -> int:
        return len(self._jobs)

    def unfinished(self) -> list[Unfinished]:
        """What lies in the folder from before; call it before the first `take`."""
        found = []
        for folder in self._folder.iterdir():
            if is_job_id(folder.name):
                data = read_json(folder / "job.json")
                lease = data.get("lease") if isinstance(data, dict) else None
                found.append(Unfinished(folder.name, lease, folder))
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return found
