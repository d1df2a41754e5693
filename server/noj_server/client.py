"""A small typed client of the backend and operator side: for backends, the CLI and the tests.

One method per endpoint, one try each; `wait` and `results_from` poll, and sit out a restart of the
server. Errors are exceptions that say who is at fault.

    ClientError
    ├── ServerUnreachableError   no answer, or 5xx: try again
    ├── RefusedError             4xx: `status`, `code`, `faults`
    └── TimedOutError            waited in vain
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from noj_shared.problem import FieldFault, ProblemDetails
from noj_shared.wire import (
    ApiKeyCreated,
    ApiKeyRole,
    CaseOutput,
    ProblemStored,
    QueueReply,
    ReadyReply,
    ResultEntry,
    ResultsPage,
    RunnersReply,
    RunnerView,
    ServerConfig,
    SubmissionCreated,
    SubmissionState,
    SubmissionView,
)

Reply = TypeVar("Reply", bound=BaseModel)

TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 600.0
POLL_WAIT_S = 20
EARLY_PAUSE_S = 1.0
"""Before asking again when an empty page came back early: the server had no room to park us."""
PATIENCE_S = 300.0
_ENDED = (SubmissionState.DONE, SubmissionState.CANCELLED)


class ClientError(Exception):
    """Base of what this client raises."""


class ServerUnreachableError(ClientError):
    """The server did not answer, or could not."""


class RefusedError(ClientError):
    """The server refused the request; repeating it would not help."""

    def __init__(self, problem: ProblemDetails) -> None:
        self.status = problem.status
        self.code = problem.code
        self.faults: list[FieldFault] = problem.errors
        lines = [f"{problem.detail or problem.title} ({problem.status} {problem.code})"]
        lines += [f"  {fault.field}: {fault.message}" for fault in problem.errors]
        super().__init__("\n".join(lines))


class TimedOutError(ClientError):
    """Nothing happened in the time allowed."""


class Client:
    """Talks to one server with one API key. Thread-safe; close it, or use it in a `with`."""

    def __init__(
        self, base_url: str, api_key: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        try:
            self._http = httpx.Client(
                base_url=base_url,
                headers={"Authorization": f"Bearer {api_key}"},
                timeout=TIMEOUT_S,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ServerUnreachableError(f"{base_url!r} is no URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # -- backend ------------------------------------------------------------------------------

    def put_problem(
        self, problem_id: str, testdata: bytes, *, meta: bytes | None = None
    ) -> ProblemStored:
        """Store a problem package; RefusedError.faults lists everything wrong with it."""
        return self._call(
            ProblemStored,
            "PUT",
            f"/problems/{problem_id}",
            files={"testdata": ("testdata.zip", testdata, "application/zip")},
            data=None if meta is None else {"meta": meta.decode()},
            timeout=UPLOAD_TIMEOUT_S,
        )

    def submit(
        self,
        *,
        problem_id: str,
        language: int,
        code: bytes,
        submission_id: str | None = None,
        user: str | None = None,
        priority: int = 0,
    ) -> SubmissionCreated:
        """Hand in a zip with main.c|cpp|py, or the bare source. Idempotent by submission_id."""
        fields = {
            "problem_id": problem_id,
            "language": str(int(language)),
            "priority": str(priority),
            "submission_id": submission_id,
            "user": user,
        }
        return self._call(
            SubmissionCreated,
            "POST",
            "/submissions",
            files={"code": ("code", code, "application/octet-stream")},
            data={name: value for name, value in fields.items() if value is not None},
        )

    def status(self, submission_id: str) -> SubmissionView:
        """Where a submission stands."""
        return self._call(SubmissionView, "GET", f"/submissions/{submission_id}")

    def wait(
        self, submission_id: str, *, timeout_s: float = 300.0, job_id: str | None = None
    ) -> SubmissionView:
        """Its final state; TimedOutError if it has none in time.

        With `job_id` (of a rejudge) only that job's result counts. Wakes on the results feed. A
        server that is away meanwhile is waited for, too.
        """
        deadline = time.monotonic() + timeout_s
        cursor = "0"
        while True:
            view = _patiently(deadline - time.monotonic())(self.status, submission_id)
            if view.state in _ENDED and job_id in (None, view.job_id):
                return view
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimedOutError(f"{submission_id} is {view.state} after {timeout_s:.0f} s")
            if cursor == "0":
                # Only wake-ups matter: start at the newest entry before now, not at the oldest.
                cursor = f"{round(view.created_at.timestamp() * 1000)}-0"
            cursor = self._next_page(cursor, min(POLL_WAIT_S, left_s), left_s).next

    def output(self, submission_id: str, task: int, case: int) -> CaseOutput:
        """What the program printed in one case (zero-based)."""
        return self._call(CaseOutput, "GET", f"/submissions/{submission_id}/output/{task}/{case}")

    def rejudge(self, submission_id: str) -> SubmissionCreated:
        """A new job; the old one is superseded at once."""
        return self._call(SubmissionCreated, "POST", f"/submissions/{submission_id}/rejudge")

    def cancel(self, submission_id: str) -> None:
        """Cancel what has not landed; RefusedError 409 if it has."""
        self._send("DELETE", f"/submissions/{submission_id}")

    def results(self, after: str = "0", *, wait_s: float = 0) -> ResultsPage:
        """One page of the feed; waits for something to land up to `wait_s`."""
        headers = {"Prefer": f"wait={round(wait_s)}"} if wait_s >= 1 else {}
        return self._call(
            ResultsPage,
            "GET",
            "/results",
            params={"after": after},
            headers=headers,
            timeout=TIMEOUT_S + wait_s,
        )

    def results_from(
        self, after: str = "0", *, patience_s: float = PATIENCE_S
    ) -> Iterator[ResultEntry]:
        """Every landed result after a cursor, for ever; remember `entry.cursor` to go on later.

        Raises ServerUnreachableError when the server is away for longer than `patience_s`.
        """
        while True:
            page = self._next_page(after, POLL_WAIT_S, patience_s)
            yield from page.results
            after = page.next

    def _next_page(self, after: str, wait_s: float, patience_s: float) -> ResultsPage:
        asked = time.monotonic()
        page = _patiently(patience_s)(self.results, after, wait_s=wait_s)
        if not page.results and time.monotonic() - asked < min(wait_s, EARLY_PAUSE_S):
            time.sleep(min(wait_s, EARLY_PAUSE_S))
        return page

    # -- operator -----------------------------------------------------------------------------

    def runners(self) -> tuple[RunnerView, ...]:
        """All runners."""
        return self._call(RunnersReply, "GET", "/runners").runners

    def pause(self, runner_id: str, paused: bool = True) -> None:
        """Let a runner claim nothing more, or let it again."""
        self._send("POST", f"/runners/{runner_id}/{'pause' if paused else 'resume'}")

    def revoke(self, runner_id: str) -> None:
        """Forget a runner at once."""
        self._send("DELETE", f"/runners/{runner_id}")

    def queue(self) -> QueueReply:
        """What waits, what is held, what landed last."""
        return self._call(QueueReply, "GET", "/queue")

    def config(self) -> ServerConfig:
        """The live configuration."""
        return self._call(ServerConfig, "GET", "/config")

    def put_config(self, config: ServerConfig) -> ServerConfig:
        """Replace it."""
        return self._call(ServerConfig, "PUT", "/config", json=config.model_dump())

    def create_key(self, name: str, role: ApiKeyRole) -> ApiKeyCreated:
        """A new API key, told this once."""
        return self._call(ApiKeyCreated, "POST", "/keys", json={"name": name, "role": role})

    def ready(self) -> ReadyReply:
        """What `/readyz` says, also when it says no."""
        return self._parse(ReadyReply, self._try("GET", "/readyz"))

    # -- underneath ---------------------------------------------------------------------------

    def _call(self, model: type[Reply], method: str, path: str, **kwargs: Any) -> Reply:
        return self._parse(model, self._send(method, path, **kwargs))

    def _parse(self, model: type[Reply], response: httpx.Response) -> Reply:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise ServerUnreachableError(
                f"{response.url} answered {response.status_code}, but not as noj-server does;"
                " is the URL right?"
            ) from error

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        response = self._try(method, path, **kwargs)
        if response.is_success:
            return response
        try:
            problem = ProblemDetails.model_validate_json(response.content)
        except ValidationError:
            text = response.text[:200]
            problem = ProblemDetails(title=text, status=response.status_code, code="unknown")
        if response.status_code >= 500:
            raise ServerUnreachableError(f"{problem.detail or problem.title} ({problem.status})")
        raise RefusedError(problem)

    def _try(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            url = self._http.base_url
            raise ServerUnreachableError(f"{url} does not answer: {error}") from error


def _patiently(patience_s: float) -> Retrying:
    """Try again while the server is away; its last error when patience is at an end."""
    return Retrying(
        retry=retry_if_exception_type(ServerUnreachableError),
        wait=wait_random_exponential(multiplier=0.5, max=15),
        stop=stop_after_delay(patience_s),
        reraise=True,
    )
