"""Problems and their versions. The disk is the truth; nothing here needs Redis.

A version is the digest of the test data's checksum and the meta; it never changes, so a job that
names one is judged by just that. `problems/<id>/current` names the newest.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import IO

from noj_server.blobs import Blobs
from noj_shared.package import inspect_testdata
from noj_shared.wire import ProblemMeta

_CHUNK_BYTES = 1024 * 1024
TESTDATA = "testdata"
VERSIONS = "problem-versions"
CURRENT = "problem-current"


@dataclass(frozen=True)
class ProblemVersion:
    """One version: what jobs of it are judged by. `checksum` is the zip's SHA-256."""

    problem_id: str
    version: str
    checksum: str
    meta: ProblemMeta

    @property
    def cases(self) -> int:
        """Cases in all."""
        return sum(task.caseCount for task in self.meta.tasks)


class UnknownProblemError(LookupError):
    """No such problem, or no such version of it; says which and what to do."""

    def __init__(self, problem_id: str) -> None:
        super().__init__(f"problem: {problem_id}; PUT /problems/{problem_id} first")


class Problems:
    """The problems on one blob store. Thread-safe."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._version = functools.lru_cache(maxsize=1024)(self._read_version)

    def store(
        self, problem_id: str, testdata: IO[bytes], meta: bytes | None
    ) -> tuple[ProblemVersion, bool]:
        """Check a package and make it the current version; True if the problem is new.

        Raises PackageError with every fault; then nothing has changed.
        """
        package = inspect_testdata(testdata, meta)
        testdata.seek(0)
        checksum = _sha256(testdata)
        tasks = package.meta.model_dump_json()
        version = hashlib.sha256(f"{checksum}\n{tasks}".encode()).hexdigest()
        if not self._blobs.exists(TESTDATA, checksum):
            testdata.seek(0)
            with self._blobs.writing(TESTDATA, checksum) as out:
                while chunk := testdata.read(_CHUNK_BYTES):
                    out.write(chunk)
        is_new = not self._blobs.exists(CURRENT, _safe(problem_id))
        content = json.dumps({"checksum": checksum, "meta": json.loads(tasks)}).encode()
        self._blobs.put(VERSIONS, f"{_safe(problem_id)}.{version}", content)
        self._blobs.put(CURRENT, _safe(problem_id), version.encode())
        return self.version(problem_id, version), is_new

    def current(self, problem_id: str) -> ProblemVersion:
        """The newest version. Raises UnknownProblemError."""
        try:
            version = self._blobs.read(CURRENT, _safe(problem_id)).decode()
        except FileNotFoundError as error:
            raise UnknownProblemError(problem_id) from error
        return self.version(problem_id, version)

    def version(self, problem_id: str, version: str) -> ProblemVersion:
        """One version. Raises UnknownProblemError."""
        return self._version(problem_id, version)

    def _read_version(self, problem_id: str, version: str) -> ProblemVersion:
        try:
            stored = json.loads(self._blobs.read(VERSIONS, f"{_safe(problem_id)}.{version}"))
        except FileNotFoundError as error:
            raise UnknownProblemError(problem_id) from error
        return ProblemVersion(
            problem_id=problem_id,
            version=version,
            checksum=stored["checksum"],
            meta=ProblemMeta.model_validate(stored["meta"]),
        )


def _sha256(stream: IO[bytes]) -> str:
    total = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        total.update(chunk)
    return total.hexdigest()


def _safe(problem_id: str) -> str:
    """A blob name: at least two characters, whatever the id is."""
    return f"p.{problem_id}"
