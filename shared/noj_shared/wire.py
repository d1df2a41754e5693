"""The wire: one request and one response model per endpoint, as design.md §4 fixes them.

Names are snake_case except the task and case fields, which keep the backend's spelling
(`taskScore`, `execTime`, …). Requests refuse unknown fields; responses ignore them, so that
programs of different versions can talk. Times: `…_at` is ISO 8601 in UTC, `execTime` and
`timeLimit` are ms, `memoryUsage` and `memoryLimit` are KB (1024 bytes).
Must not know Flask, Redis or httpx.
"""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from noj_shared.ids import JobId, LeaseId, ProblemId, RunnerId, Sha256Hex, SubmissionId
from noj_shared.language import SOURCE_NAMES
from noj_shared.verdict import Verdict

PROTOCOL = 1
"""Version of this wire. A runner sends it at registration."""

PRIORITY_RANGE = (-100, 100)
CASE_OUTPUT_LIMIT_BYTES = 64 * 1024
"""How much of a case's stdout and stderr (each) an agent reports."""
REPORT_OUTPUT_LIMIT_BYTES = 2 * 1024 * 1024
"""All outputs of a report together. JSON spells a byte with six at most (`\\u0000`): with what else
stands in it, any report fits in the 32 MiB that a server takes."""
COMPILE_OUTPUT_LIMIT_BYTES = 64 * 1024
MAX_FIELDS = 64
MAX_TASKS = 100
MAX_CASES = 100


def at_most(count: int) -> BeforeValidator:
    """Refuse an overlong list or object before its items are looked at: pydantic's own max_length
    comes after them, when a million faults have been collected already."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple | dict) and len(value) > count:
            raise ValueError(f"has {len(value)} items; at most {count} are allowed")
        return value

    return BeforeValidator(check)


class Request(BaseModel):
    """Base of request bodies: an unknown field is an error, so a typo is never silent."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"has {len(value)} fields; no body has more than {MAX_FIELDS}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bool(cls, value: Any) -> Any:
        return refuse_bool(value)


class Reply(BaseModel):
    """Base of response bodies: a client ignores what it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def refuse_bool(value: Any) -> Any:
    """No request has a true or false; pydantic would take them for 1 and 0, and 1 is WA."""
    if isinstance(value, bool):
        raise ValueError("true and false are no values here")  # noqa: TRY004  # for pydantic
    return value


def _whole(value: Any) -> Any:
    """Round a float: runners in the field may report fractions of a millisecond."""
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


def _text_id(value: Any) -> Any:
    """Take a number as an id: backends often count their problems."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _encodable(value: str) -> str:
    """Refuse what UTF-8 cannot carry: JSON can spell a lone surrogate, storage cannot keep it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is a lone surrogate, which is not valid Unicode"
        ) from error
    return value


def _plain(value: Any) -> Any:
    """15.0 → 15: runners in the field know whole seconds."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Seconds = Annotated[int | float, Field(gt=0), BeforeValidator(_plain)]
Text = Annotated[str, AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=0, le=2**53), BeforeValidator(_whole)]
Priority = Annotated[int, Field(ge=PRIORITY_RANGE[0], le=PRIORITY_RANGE[1])]
ShortText = Annotated[Text, StringConstraints(max_length=200)]
Name = Annotated[
    Text, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
]
"""What people call a runner, a user or a key: one line, nothing that moves a terminal's cursor."""
AnyProblemId = Annotated[ProblemId, BeforeValidator(_text_id)]


# -- problems ---------------------------------------------------------------------------------


class TaskSpec(Reply):
    """One task of a problem: its score, its limits, its number of cases."""

    taskScore: int = Field(ge=0, le=100)
    memoryLimit: int = Field(ge=1024, le=16 * 1024 * 1024, description="KB")
    timeLimit: int = Field(ge=1, le=600_000, description="ms")
    caseCount: int = Field(ge=1, le=MAX_CASES)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bool(cls, value: Any) -> Any:
        return refuse_bool(value)


class Checker(StrEnum):
    """How an output is compared with the answer."""

    DIFF = "diff"
    """Trailing blanks of lines and trailing blank lines do not count; else byte for byte."""


class ProblemMeta(Request):
    """`meta.json` of a problem package. Scores sum to 100."""

    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1), at_most(MAX_TASKS)]
    checker: Checker = Checker.DIFF
    language: int | None = Field(
        default=None, exclude=True, description="accepted from old packages, not used"
    )

    @model_validator(mode="after")
    def _scores_sum_to_100(self) -> ProblemMeta:
        total = sum(task.taskScore for task in self.tasks)
        if total != 100:
            raise ValueError(f"the taskScore values sum to {total}, not to 100")
        return self


class ProblemStored(Reply):
    """`PUT /problems/{id}`: 201 when new, 200 when it replaced (or equals) a version."""

    problem_id: ProblemId
    checksum: Sha256Hex
    version: Sha256Hex
    tasks: int
    cases: int


class ProblemMetaReply(Reply):
    """`GET /problem/{id}/meta`."""

    data: ProblemMeta


class ProblemChecksumReply(Reply):
    """`GET /problem/{id}/checksum`."""

    data: Sha256Hex


# -- runner side ------------------------------------------------------------------------------


class LanguageInfo(Request):
    """A language a runner can judge, with its compiler's or interpreter's version."""

    language: int = Field(ge=0, le=10_000)
    version: ShortText = ""


class RegisterRunnerBody(Request):
    """`POST /runners/register`. Only the first two fields are required."""

    registration_token: Annotated[Text, StringConstraints(min_length=1, max_length=512)]
    name: Name
    version: ShortText | None = None
    protocol: int | None = None
    slots: int | None = Field(default=None, ge=1, le=1024)
    languages: Annotated[tuple[LanguageInfo, ...], at_most(64)] | None = None
    tags: Annotated[tuple[ShortText, ...], at_most(64)] | None = None


class RunnerConfig(Reply):
    """What the server asks of its runners."""

    heartbeat_interval_sec: Seconds = 15
    poll_interval_sec: Seconds = 3
    max_concurrent_jobs: int = Field(default=8, ge=1)
    lease_ttl_sec: Seconds = 30


class RegisterRunnerReply(Reply):
    """201 of `POST /runners/register`; the token is shown this once."""

    runner_id: RunnerId
    token: str = Field(repr=False)
    config: RunnerConfig = RunnerConfig()


class RunnerActivity(StrEnum):
    """What a runner says about itself in a heartbeat."""

    READY = "ready"
    DRAINING = "draining"
    SICK = "sick"


class HeartbeatBody(Request):
    """`POST /runners/{rn}/heartbeat`. Renews the lease of every job it lists."""

    active_job_ids: Annotated[tuple[JobId, ...], at_most(1024)]
    leases: Annotated[dict[JobId, LeaseId], at_most(1024)] | None = None
    state: RunnerActivity | None = None
    reason: ShortText | None = Field(default=None, description="why it is sick or draining")
    busy_slots: int | None = Field(default=None, ge=0, le=1024)
    outbox: int | None = Field(default=None, ge=0)
    load: float | None = Field(default=None, ge=0, description="1-minute load average")
    disk_free_bytes: int | None = Field(default=None, ge=0)


class HeartbeatReply(Reply):
    """200 of a heartbeat that asked for a representation.

    `cancel`: jobs that were superseded or cancelled; stop them, report nothing.
    `lost`: jobs that are not this runner's any more; stop them, report nothing.
    """

    cancel: tuple[JobId, ...] = ()
    lost: tuple[JobId, ...] = ()
    paused: bool = False
    config: RunnerConfig = RunnerConfig()


class Job(Reply):
    """200 of `GET /runners/{rn}/next-job`: one judging, leased to the runner that asked."""

    job_id: JobId
    submission_id: SubmissionId
    problem_id: ProblemId
    language: int
    code_url: str
    """Absolute, signed, valid for an hour. Answers a zip with `main.c`, `main.cpp` or `main.py`."""
    checker: Checker = Checker.DIFF
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, max_length=MAX_TASKS)
    lease: LeaseId
    testdata_checksum: Sha256Hex
    attempts: int = Field(default=1, ge=1)
    lease_ttl_sec: Seconds = 30


class CaseResult(Request):
    """One case as a runner saw it. stdout and stderr may be cut (CASE_OUTPUT_LIMIT_BYTES)."""

    status: Verdict
    exitCode: int = Field(ge=-(2**31), le=2**31 - 1)
    execTime: Count
    memoryUsage: Count
    stdout: Text
    stderr: Text
    signal: int | None = Field(default=None, ge=1, le=128)
    wallTime: Count | None = Field(default=None, description="ms")
    detail: ShortText | None = Field(default=None, description="one line for staff and student")

    @field_validator("status")
    @classmethod
    def _is_final(cls, value: Verdict) -> Verdict:
        if value is Verdict.PENDING:
            raise ValueError("a reported case is not pending any more: -1 is no result")
        return value


class CompileResult(Request):
    """How compiling went; `status` is AC or CE."""

    status: Literal[Verdict.AC, Verdict.CE]
    exitCode: int = Field(default=0, ge=-(2**31), le=2**31 - 1)
    execTime: Count = 0
    output: Text = ""
    detail: ShortText | None = None


class CompleteJobBody(Request):
    """`PUT /runners/{rn}/jobs/{jb}/complete`: tasks × cases in the job's own shape."""

    tasks: Annotated[
        tuple[Annotated[tuple[CaseResult, ...], Field(min_length=1), at_most(MAX_CASES)], ...],
        Field(min_length=1),
        at_most(MAX_TASKS),
    ]
    lease: LeaseId | None = None
    compile: CompileResult | None = None


class AbortReason(StrEnum):
    """Why a runner gives a job back. Only a drain refunds the attempt (INV5)."""

    DRAIN = "drain"
    PREP_FAILED = "prep_failed"
    REJECTED = "rejected"


class AbortJobBody(Request):
    """`PUT /runners/{rn}/jobs/{jb}/abort`."""

    reason: AbortReason
    lease: LeaseId | None = None
    detail: Annotated[Text, StringConstraints(max_length=2000)] | None = None


class AbortJobReply(Reply):
    """202: where the job went."""

    outcome: Literal["requeued", "judge_error", "stale"]


# -- backend side -----------------------------------------------------------------------------


class CreateSubmissionForm(Request):
    """The fields of the multipart form of `POST /submissions`, beside the file `code`."""

    problem_id: AnyProblemId
    language: int
    submission_id: SubmissionId | None = None
    user: Name | None = None
    priority: Priority = 0

    @field_validator("language")
    @classmethod
    def _is_judged(cls, value: int) -> int:
        return judged_language(value)


class CreateSubmissionBody(CreateSubmissionForm):
    """`POST /submissions` as JSON: `source` instead of the file `code`."""

    source: Text


def judged_language(value: int) -> int:
    """`value` if that language can be judged; else ValueError that lists those that can."""
    if value not in SOURCE_NAMES:
        known = ", ".join(f"{int(lang)} ({lang.title})" for lang in SOURCE_NAMES)
        raise ValueError(f"language {value} is not judged here; known are {known}")
    return value


class SubmissionCreated(Reply):
    """202 of `POST /submissions` and of a rejudge."""

    submission_id: SubmissionId
    job_id: JobId


class SubmissionState(StrEnum):
    """Where a submission stands for the backend."""

    PENDING = "pending"
    JUDGING = "judging"
    DONE = "done"
    CANCELLED = "cancelled"


class CaseView(Reply):
    """One judged case; the outputs are fetched apart."""

    status: Verdict
    exitCode: int
    execTime: int
    memoryUsage: int
    signal: int | None = None
    wallTime: int | None = None
    detail: str | None = None


class TaskView(Reply):
    """One judged task: the worst status, the sum's share, the largest time and memory."""

    status: Verdict
    score: int
    execTime: int
    memoryUsage: int
    cases: tuple[CaseView, ...]


class AttemptView(Reply):
    """One failed attempt at a job: who had it, how it ended, when."""

    runner_id: str
    runner_name: str | None = None
    lease: str | None = None
    reason: str
    detail: str | None = None
    at: datetime


class SubmissionView(Reply):
    """`GET /submissions/{id}`. `status` is -1 and `verdict` PENDING until it is done."""

    submission_id: SubmissionId
    problem_id: ProblemId
    language: int
    user: str | None = None
    priority: int = 0
    state: SubmissionState
    status: Verdict
    verdict: str
    score: int
    execTime: int | None = None
    memoryUsage: int | None = None
    tasks: tuple[TaskView, ...] = ()
    compile: CompileResult | None = None
    job_id: JobId
    runner: RunnerId | None = None
    runner_name: str | None = None
    attempts: int = 0
    history: tuple[AttemptView, ...] = ()
    created_at: datetime
    landed_at: datetime | None = None


class CaseOutput(Reply):
    """`GET /submissions/{id}/output/{task}/{case}`: what the program printed."""

    stdout: str
    stderr: str


class ResultEntry(Reply):
    """One landed result in the feed."""

    cursor: str
    submission_id: SubmissionId
    job_id: JobId
    problem_id: ProblemId
    status: Verdict
    verdict: str
    score: int
    execTime: int
    memoryUsage: int
    runner: RunnerId | None = None
    attempts: int = 0
    landed_at: datetime


class ResultsPage(Reply):
    """`GET /results?after=<cursor>`: what landed after the cursor, in order.

    `next` is the cursor to remember: ask again with `after=next`. It is the cursor that was
    sent if nothing has landed since.
    """

    results: tuple[ResultEntry, ...] = ()
    next: str


class RunnerState(StrEnum):
    """What an operator reads about a runner."""

    ONLINE = "online"
    BUSY = "busy"
    DRAINING = "draining"
    PAUSED = "paused"
    SICK = "sick"
    LOST = "lost"
    """No heartbeat for longer than the alive TTL. For display; no decision reads it (INV2)."""


class RunnerView(Reply):
    """One runner of `GET /runners`."""

    runner_id: RunnerId
    name: str
    state: RunnerState
    reason: str | None = None
    version: str | None = None
    slots: int | None = None
    busy_slots: int | None = None
    languages: tuple[LanguageInfo, ...] = ()
    tags: tuple[str, ...] = ()
    jobs: tuple[JobId, ...] = ()
    outbox: int | None = None
    load: float | None = None
    disk_free_bytes: int | None = None
    registered_at: datetime
    last_seen_at: datetime
    last_seen_s: float = Field(description="seconds since the last heartbeat, by Redis' clock")


class RunnersReply(Reply):
    """`GET /runners`."""

    runners: tuple[RunnerView, ...] = ()


class QueueLine(Reply):
    """Pending jobs of one language and priority."""

    language: int
    priority: int
    depth: int
    oldest_wait_s: float


class LeaseView(Reply):
    """One leased job."""

    job_id: JobId
    submission_id: SubmissionId
    problem_id: ProblemId
    language: int
    runner_id: RunnerId
    runner_name: str | None = None
    age_s: float
    time_left_s: float = Field(description="negative: an orphan that waits for the sweeper")
    attempts: int
    max_attempts: int


class OrphanView(Reply):
    """A job whose lease expired, and what became of it since."""

    at: datetime
    job_id: JobId
    submission_id: SubmissionId | None = None
    lost_by: str = Field(description="name or id of the runner that fell silent")
    state: str = Field(description="of the job now: pending, leased, landed, superseded, …")
    now_with: str | None = Field(default=None, description="who holds or landed it now")


class QueueReply(Reply):
    """`GET /queue`: what waits, what is held, what landed last."""

    pending: tuple[QueueLine, ...] = ()
    leases: tuple[LeaseView, ...] = ()
    landed: tuple[ResultEntry, ...] = ()
    orphans: tuple[OrphanView, ...] = ()
    depth: int = 0
    grace_left_s: float = Field(
        default=0, description="> 0 after an outage: no lease is judged expired meanwhile (INV6)"
    )
    parked_polls: int = 0


class RateLimit(Request):
    """Submissions a user may make: `limit` of them per `window_sec`; limit 0 switches it off."""

    limit: int = Field(default=0, ge=0, le=1_000_000)
    window_sec: int = Field(default=60, ge=1, le=86_400)


class ServerConfig(Request):
    """`GET·PUT /config`. Nothing about judge machines lives here."""

    rate_limit: RateLimit = RateLimit()


class ApiKeyRole(StrEnum):
    """What an API key may do. An operator may do all that a backend may."""

    BACKEND = "backend"
    OPERATOR = "operator"


class CreateApiKeyBody(Request):
    """`POST /keys` (operator)."""

    name: Name
    role: ApiKeyRole = ApiKeyRole.BACKEND


class ApiKeyCreated(Reply):
    """201 of `POST /keys`; the key is shown this once."""

    key_id: str
    key: str = Field(repr=False)
    name: str
    role: ApiKeyRole


class ApiKeyView(Reply):
    """One key of `GET /keys`."""

    key_id: str
    name: str
    role: ApiKeyRole
    created_at: datetime


class ApiKeysReply(Reply):
    """`GET /keys`."""

    keys: tuple[ApiKeyView, ...] = ()


class ReadyCheck(Reply):
    """One thing that `/readyz` looked at."""

    name: str
    ok: bool
    detail: str


class ReadyReply(Reply):
    """`/readyz`: 200 when `ready`, else 503; the reasons stand in `checks`."""

    ready: bool
    checks: tuple[ReadyCheck, ...] = ()
