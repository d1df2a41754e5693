"""Finished work that the server has not acknowledged: on disk before it is sent (INV7).

One file per job. It stays across kill -9, restart and reboot until the server has taken it or
refused it for good; what was refused is kept aside for a person to look at.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noj_agent.state import read_json, sync_folder, write_json
from noj_shared.ids import is_job_id
from noj_shared.wire import AbortJobBody, CompleteJobBody

log = logging.getLogger(__name__)

REFUSED_KEPT = 100


@dataclass(frozen=True)
class Entry:
    """One report to deliver."""

    job_id: str
    body: CompleteJobBody | AbortJobBody

    @property
    def lease(self) -> str | None:
        """The lease it was made under."""
        return self.body.lease

    @property
    def kind(self) -> Literal["complete", "abort"]:
        """What it reports."""
        return "complete" if isinstance(self.body, CompleteJobBody) else "abort"

    def without_outputs(self) -> Entry:
        """The same verdicts without what the programs and the compiler printed."""
        if isinstance(self.body, AbortJobBody):
            return self
        cut = {"stdout": "", "stderr": ""}
        tasks = tuple(tuple(c.model_copy(update=cut) for c in task) for task in self.body.tasks)
        compiled = self.body.compile and self.body.compile.model_copy(update={"output": ""})
        slim = self.body.model_copy(update={"tasks": tasks, "compile": compiled})
        return Entry(self.job_id, slim)


class Outbox:
    """The entries of one directory. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused = folder / "refused"
        self._refused.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.changed = threading.Event()
        """Set when an entry has been put."""

    def put(self, entry: Entry) -> None:
        """Keep a report; it is on the disk when this returns. Of two under the same lease the first
        wins; one under a newer lease replaces the old one, which cannot land any more."""
        with self._lock:
            if not self._holds(entry):
                data = {"kind": entry.kind, "body": entry.body.model_dump(mode="json")}
                write_json(self._path(entry.job_id), data)
        self.changed.set()

    def entries(self) -> list[Entry]:
        """All reports, oldest first; a damaged file is set aside."""
        found = []
        for path in sorted(self._files(), key=lambda file: file.name):
            with self._lock:
                entry = _read(path)
                if entry is not None:
                    found.append(entry)
                elif path.exists():
                    log.error("outbox file %s is damaged; set aside in %s", path, self._refused)
                    path.replace(self._refused / path.name)
        return found

    def job_ids(self) -> list[str]:
        """The jobs whose reports wait."""
        return sorted(path.stem for path in self._files())

    def remove(self, entry: Entry) -> None:
        """The server has taken it; a report of the job under another lease stays."""
        with self._lock:
            if self._holds(entry):
                self._path(entry.job_id).unlink()
        sync_folder(self._folder)

    def refuse(self, entry: Entry) -> None:
        """The server has refused it for good: keep it aside, the newest hundred."""
        with self._lock:
            if self._holds(entry):
                path = self._path(entry.job_id)
                path.replace(self._refused / path.name)
        old = sorted(self._refused.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in old[:-REFUSED_KEPT]:
            file.unlink(missing_ok=True)

    def _holds(self, entry: Entry) -> bool:
        kept = _read(self._path(entry.job_id))
        return kept is not None and kept.lease == entry.lease

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _files(self) -> list[Path]:
        return [path for path in self._folder.glob("jb_*.json") if is_job_id(path.stem)]


def _read(path: Path) -> Entry | None:
    """The report in a file; None if there is none or it is damaged."""
    data = read_json(path)
    try:
        model = CompleteJobBody if data["kind"] == "complete" else AbortJobBody
        return Entry(path.stem, model.model_validate(data["body"]))
    except (TypeError, KeyError, ValueError):
        return None
