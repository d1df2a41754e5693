"""Submissions: take code in, land results, and tell what came of them.

Detail of a result lies in a blob that is durable before the queue records it (INV1); the queue
keeps the summary.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import UTC, datetime

from noj_server.blobs import Blobs
from noj_server.job_queue import (
    Enqueued,
    FeedEntry,
    JobQueue,
    JobRecord,
    LandedSummary,
    Landing,
    SubmissionRecord,
)
from noj_server.problems import Problems, ProblemVersion, UnknownProblemError
from noj_server.runners import RunnerRegistry
from noj_shared.ids import new_job_id, new_request_id, new_submission_id
from noj_shared.language import Language
from noj_shared.package import inspect_code, wrap_source
from noj_shared.problem import FieldFault
from noj_shared.verdict import Verdict, task_score, worst
from noj_shared.wire import (
    CASE_OUTPUT_LIMIT_BYTES,
    COMPILE_OUTPUT_LIMIT_BYTES,
    AttemptView,
    CaseOutput,
    CaseResult,
    CaseView,
    CompleteJobBody,
    CreateSubmissionForm,
    ResultEntry,
    SubmissionState,
    SubmissionView,
    TaskView,
)

CODE = "code"
RESULTS = "results"
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


class ShapeError(ValueError):
    """A report's tasks × cases are not the job's."""

    def __init__(self, faults: list[FieldFault]) -> None:
        super().__init__("tasks × cases differ from the job's")
        self.faults = faults


@dataclass(frozen=True)
class Checked:
    """A submission that may be enqueued: its code is a zip in order, its problem is there."""

    form: CreateSubmissionForm
    code: bytes
    version: str


class Submissions:
    """Submissions on queue, registry, problems and blobs. Thread-safe."""

    def __init__(
        self, queue: JobQueue, registry: RunnerRegistry, problems: Problems, blobs: Blobs
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._problems = problems
        self._blobs = blobs

    def check(self, form: CreateSubmissionForm, code: bytes) -> Checked:
        """Whether it can be judged; `code` is a zip or the bare source.

        Raises PackageError, UnknownProblemError.
        """
        problem = self._problems.current(form.problem_id)
        language = Language(form.language)
        if code.startswith(_ZIP_MAGIC):
            inspect_code(io.BytesIO(code), language)
        else:
            code = wrap_source(code, language)
        return Checked(form=form, code=code, version=problem.version)

    def create(self, checked: Checked) -> tuple[str, Enqueued]:
        """Store the code, then enqueue. Its submission id."""
        form = checked.form
        blob = hashlib.sha256(checked.code).hexdigest()
        if not self._blobs.exists(CODE, blob):
            self._blobs.put(CODE, blob, checked.code)
        submission_id = form.submission_id or new_submission_id()
        return submission_id, self._queue.enqueue_job(
            submission_id=submission_id,
            job_id=new_job_id(),
            problem_id=form.problem_id,
            version=checked.version,
            language=form.language,
            code_blob=blob,
            user=form.user or "",
            priority=form.priority,
        )

    def rejudge(self, record: SubmissionRecord) -> str:
        """A new job on the problem's newest version; its id."""
        job_id = new_job_id()
        version = self._problems.current(record.problem_id).version
        self._queue.rejudge(record.submission_id, job_id, version=version)
        return job_id

    def land(self, runner_id: str, job: JobRecord, body: CompleteJobBody) -> Landing:
        """Check a report's shape, make its detail durable, land it. Raises ShapeError."""
        problem = self._problems.version(job.problem_id, job.version)
        _check_shape(problem, body)
        blob = f"{job.job_id}.{new_request_id()}"
        self._blobs.put(RESULTS, blob, _cut(body).model_dump_json().encode())
        landing = self._queue.complete_job(
            runner_id, job.job_id, body.lease, summarise(problem, body, blob)
        )
        if landing is not Landing.LANDED and not self._is_landed(job.submission_id, blob):
            self._blobs.delete(RESULTS, blob)
        return landing

    def _is_landed(self, submission_id: str, blob: str) -> bool:
        """Whether this very report has landed: redis-py repeats a command whose reply was lost,
        and the repeat says "already landed"."""
        record = self._queue.submission(submission_id)
        return record is not None and record.result_blob == blob

    def view(self, record: SubmissionRecord) -> SubmissionView:
        """All that a backend may know of a submission."""
        detail = self._detail(record)
        job = self._queue.job(record.job_id)
        status = Verdict(record.status if record.status is not None else -1)
        runner_id = record.runner_id or (job.runner_id if job is not None else "")
        return SubmissionView(
            submission_id=record.submission_id,
            problem_id=record.problem_id,
            language=record.language,
            user=record.user or None,
            priority=record.priority,
            state=SubmissionState(record.state),
            status=status,
            verdict=status.name,
            score=record.score or 0,
            execTime=record.time_ms,
            memoryUsage=record.memory_kib,
            tasks=self._task_views(record, detail),
            compile=detail.compile if detail is not None else None,
            job_id=record.job_id,
            runner=runner_id or None,
            runner_name=self._registry.name_of(runner_id) if runner_id else None,
            attempts=(
                record.attempts
                if record.attempts is not None
                else (job.attempts if job is not None else 0)
            ),
            history=tuple(
                AttemptView(
                    runner_id=item.runner_id,
                    runner_name=self._registry.name_of(item.runner_id),
                    lease=item.lease,
                    reason=item.reason,
                    detail=item.detail or None,
                    at=when(item.at_ms),
                )
                for item in self._queue.history(record.job_id)
            ),
            created_at=when(record.created_ms),
            landed_at=when(record.landed_ms) if record.landed_ms is not None else None,
        )

    def output(self, record: SubmissionRecord, task: int, case: int) -> CaseOutput | None:
        """What the program printed in one case; None if there is no such case."""
        detail = self._detail(record)
        if detail is None or task >= len(detail.tasks) or case >= len(detail.tasks[task]):
            return None
        result = detail.tasks[task][case]
        return CaseOutput(stdout=result.stdout, stderr=result.stderr)

    def code(self, record: SubmissionRecord) -> bytes:
        """The code zip. Raises FileNotFoundError."""
        return self._blobs.read(CODE, record.code_blob)

    def _task_views(
        self, record: SubmissionRecord, detail: CompleteJobBody | None
    ) -> tuple[TaskView, ...]:
        if detail is None:
            return ()
        try:
            problem = self._problems.version(record.problem_id, record.version)
        except UnknownProblemError:  # the data directory has lost it; the verdict is in Redis
            return ()
        return tuple(
            TaskView(
                status=worst(case.status for case in task),
                score=task_score([case.status for case in task], spec.taskScore),
                execTime=max(case.execTime for case in task),
                memoryUsage=max(case.memoryUsage for case in task),
                cases=tuple(
                    CaseView.model_validate(case.model_dump(exclude={"stdout", "stderr"}))
                    for case in task
                ),
            )
            for task, spec in zip(detail.tasks, problem.meta.tasks, strict=True)
        )

    def _detail(self, record: SubmissionRecord) -> CompleteJobBody | None:
        if not record.result_blob:
            return None
        try:
            stored = self._blobs.read(RESULTS, record.result_blob)
        except FileNotFoundError:
            return None
        return CompleteJobBody.model_validate_json(stored)


def _check_shape(problem: ProblemVersion, body: CompleteJobBody) -> None:
    want = [task.caseCount for task in problem.meta.tasks]
    got = [len(task) for task in body.tasks]
    if want == got:
        return
    faults = [
        FieldFault(field=f"tasks.{index}", message=f"{have} cases; the job has {wanted}")
        for index, (wanted, have) in enumerate(zip(want, got, strict=False))
        if wanted != have
    ]
    if len(want) != len(got):
        message = f"{len(got)} tasks; the job has {len(want)}"
        faults.append(FieldFault(field="tasks", message=message))
    raise ShapeError(faults)


def _cut(body: CompleteJobBody) -> CompleteJobBody:
    """The report with outputs cut to the caps: a runner of another make may send more."""

    def cut(case: CaseResult) -> CaseResult:
        stdout, stderr = (
            _first_bytes(text, CASE_OUTPUT_LIMIT_BYTES) for text in (case.stdout, case.stderr)
        )
        return case.model_copy(update={"stdout": stdout, "stderr": stderr})

    compiled = body.compile
    if compiled is not None:
        output = _first_bytes(compiled.output, COMPILE_OUTPUT_LIMIT_BYTES)
        compiled = compiled.model_copy(update={"output": output})
    tasks = tuple(tuple(cut(case) for case in task) for task in body.tasks)
    return body.model_copy(update={"tasks": tasks, "compile": compiled})


def _first_bytes(text: str, limit: int) -> str:
    """As much of it as fits into so many bytes of UTF-8, no character halved."""
    return text.encode()[:limit].decode(errors="ignore")


def summarise(problem: ProblemVersion, body: CompleteJobBody, blob: str) -> LandedSummary:
    """Status is the worst, score the sum of the tasks', time and memory the largest."""
    cases = [case for task in body.tasks for case in task]
    return LandedSummary(
        status=worst(case.status for case in cases),
        score=sum(
            task_score([case.status for case in task], spec.taskScore)
            for task, spec in zip(body.tasks, problem.meta.tasks, strict=True)
        ),
        time_ms=max(case.execTime for case in cases),
        memory_kib=max(case.memoryUsage for case in cases),
        result_blob=blob,
    )


def result_entry(entry: FeedEntry) -> ResultEntry:
    """A feed entry as the wire has it."""
    status = Verdict(entry.status)
    return ResultEntry(
        cursor=entry.cursor,
        submission_id=entry.submission_id,
        job_id=entry.job_id,
        problem_id=entry.problem_id,
        status=status,
        verdict=status.name,
        score=entry.score,
        execTime=entry.time_ms,
        memoryUsage=entry.memory_kib,
        runner=entry.runner_id or None,
        attempts=entry.attempts,
        landed_at=when(entry.landed_ms),
    )


def when(ms: int) -> datetime:
    """Milliseconds of Redis' clock as an aware UTC time."""
    return datetime.fromtimestamp(ms / 1000, UTC)
