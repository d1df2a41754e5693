"""Judge one job: lay out, compile, run every case on all free slots, and say what came of it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from noj_agent.errors import SandboxError
from noj_agent.judge.checker import matches
from noj_agent.judge.compile import TOOLCHAINS, compile_source, lay_out, report_text
from noj_agent.judge.slots import SlotPool
from noj_agent.judge.verdict import decide, explain
from noj_agent.sandbox.base import Engine, JobSandbox, Limits, Slot
from noj_agent.sandbox.bubblewrap import sealed_copy
from noj_shared.language import Language
from noj_shared.package import CHAOS, case_name, inspect_code, opened, read_member
from noj_shared.verdict import Verdict
from noj_shared.wire import (
    CASE_OUTPUT_LIMIT_BYTES,
    REPORT_OUTPUT_LIMIT_BYTES,
    CaseResult,
    CompleteJobBody,
    Job,
    TaskSpec,
)

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all), from any thread."""


def limits_of(task: TaskSpec) -> Limits:
    """The limits of a task's cases: wall time is 2 × timeLimit + 1 s."""
    return Limits(
        cpu_ms=task.timeLimit,
        wall_ms=2 * task.timeLimit + 1000,
        memory_bytes=task.memoryLimit * 1024,
    )


def output_limit_bytes(cases: int) -> int:
    """How much of each stdout and stderr is reported, so that a report of so many cases is never
    too large to be taken: that would be a Judge Error by the user's doing."""
    return min(CASE_OUTPUT_LIMIT_BYTES, REPORT_OUTPUT_LIMIT_BYTES // (2 * cases))


def judge_job(
    job: Job,
    *,
    code_zip: Path,
    testdata_dir: Path,
    slot: Slot,
    slots: SlotPool,
    engine: Engine,
    cancel: threading.Event,
    on_progress: Progress | None = None,
) -> CompleteJobBody:
    """Judge a job to its end; blocks. The report has the job's shape and lease.

    `testdata_dir` holds the plain files of one version of the problem's test data. Raises
    PackageError (a bad code zip), JobCancelled, SandboxError; nothing of the job is left running
    whichever way it ends.
    """
    if job.language not in TOOLCHAINS:
        raise SandboxError(f"language {job.language} cannot be judged on this machine")
    sources = read_code(code_zip, Language(job.language))
    chaos = _chaos(testdata_dir)
    # What the problem lays beside the source wins over a submission's file of the same name.
    compiled = compile_source(engine, slot, job.language, {**sources, **chaos}, cancel)
    if compiled.result.status is Verdict.CE:
        cases = {index: _not_run() for index in _indices(job)}
    else:
        toolchain = TOOLCHAINS[job.language]
        with engine.open_job(slot) as sandbox:
            lay_out(sandbox, compiled.files, executable=toolchain.makes_binary)
            if toolchain.makes_binary:
                lay_out(sandbox, chaos)
            crew = _Crew(
                sandbox=sandbox,
                argv=toolchain.run,
                job=job,
                testdata_dir=testdata_dir,
                slots=slots,
                cancel=cancel,
                on_progress=on_progress,
                waiting=deque(_indices(job)),
            )
            cases = crew.run(slot)
    return CompleteJobBody(
        lease=job.lease,
        compile=compiled.result,
        tasks=tuple(
            tuple(cases[t, c] for c in range(task.caseCount)) for t, task in enumerate(job.tasks)
        ),
    )


def read_code(code_zip: Path, language: Language) -> dict[str, bytes]:
    """The files of a submission. Raises PackageError."""
    with code_zip.open("rb") as stream:
        code = inspect_code(stream, language)
        with opened(stream) as archive:
            return {m.name: b"".join(read_member(archive, m)) for m in code.members}


def _chaos(testdata_dir: Path) -> dict[str, bytes]:
    root = testdata_dir / CHAOS
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def _indices(job: Job) -> Iterator[tuple[int, int]]:
    return ((t, c) for t, task in enumerate(job.tasks) for c in range(task.caseCount))


def _not_run() -> CaseResult:
    """A case of a submission that did not compile."""
    return CaseResult(
        status=Verdict.CE, exitCode=0, execTime=0, memoryUsage=0, stdout="", stderr=""
    )


@dataclass
class _Crew:
    """The threads that work through a job's cases: the slot's own, and one per borrowed slot."""

    sandbox: JobSandbox
    argv: tuple[str, ...]
    job: Job
    testdata_dir: Path
    slots: SlotPool
    cancel: threading.Event
    on_progress: Progress | None
    waiting: deque[tuple[int, int]]
    done: dict[tuple[int, int], CaseResult] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = len(self.waiting)

    def run(self, slot: Slot) -> dict[tuple[int, int], CaseResult]:
        """Work until every case is done; raises the first error any thread met."""
        helpers: list[threading.Thread] = []
        self._work(slot, lambda: self._hire(helpers))
        for helper in helpers:
            helper.join()  # bounded: each runs at most one case, which has its own limits
        if self.errors:
            raise self.errors[0]
        return self.done

    def _hire(self, helpers: list[threading.Thread]) -> None:
        """Start a thread for each free slot while more than one case waits."""
        while len(self.waiting) > 1 and (slot := self.slots.try_acquire()) is not None:
            thread = threading.Thread(
                target=self._help, args=(slot,), name=f"slot-{slot.index + 1}-lent"
            )
            helpers.append(thread)
            thread.start()

    def _help(self, slot: Slot) -> None:
        try:
            self._work(slot, lambda: None, until=lambda: self.slots.wanted)
        finally:
            self.slots.release(slot)

    def _work(
        self, slot: Slot, before: Callable[[], None], until: Callable[[], bool] = lambda: False
    ) -> None:
        while not self.errors and not until():
            try:
                index = self.waiting.popleft()
            except IndexError:
                return
            before()
            try:
                self.done[index] = self._case(index, slot)
            except BaseException as error:  # noqa: BLE001  # raised again by run(), in its thread
                self.errors.append(error)
            if self.on_progress is not None:
                self.on_progress(len(self.done), self.total)

    def _case(self, index: tuple[int, int], slot: Slot) -> CaseResult:
        task, case = index
        limits = limits_of(self.job.tasks[task])
        with _opened_input(self.testdata_dir / case_name(task, case, "in")) as stdin_fd:
            seen = self.sandbox.run(
                self.argv, stdin_fd=stdin_fd, limits=limits, cancel=self.cancel, slot=slot
            )
        answer = self.testdata_dir / case_name(task, case, "out")
        status = decide(
            seen, limits=limits, accepted=lambda: matches(seen.stdout, _content(answer))
        )
        signal = seen.signal
        return CaseResult(
            status=status,
            exitCode=seen.exit_code if seen.exit_code is not None else -(signal or 9),
            signal=signal,
            execTime=round(seen.cpu_ms),
            wallTime=round(seen.wall_ms),
            memoryUsage=seen.memory_bytes // 1024,
            stdout=report_text(seen.stdout, output_limit_bytes(self.total)),
            stderr=report_text(seen.stderr, output_limit_bytes(self.total)),
            detail=explain(seen, limits),
        )


@contextmanager
def _opened_input(path: Path) -> Iterator[int]:
    """A case's input for reading. The program can never write it (sandbox findings 32):
    its uid does not own the file; where the agent is not root, it gets a sealed copy."""
    if os.geteuid() != 0:
        with sealed_copy(_content(path)) as fd:
            yield fd
        return
    try:
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise SandboxError(f"test data is damaged: {error}") from error
    with stream:
        yield stream.fileno()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SandboxError(f"test data is damaged: {error}") from error
