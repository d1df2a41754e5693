"""The runner side of the wire: one method per endpoint, one try each, no retries.

Every call has a deadline. Answers are translated into the errors of errors.py; which of those
are worth another try is decided in retry.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import IO, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from noj_agent.errors import AuthRejected, LeaseLost, Rejected, Unavailable
from noj_shared.problem import ProblemDetails
from noj_shared.wire import (
    AbortJobBody,
    CompleteJobBody,
    HeartbeatBody,
    HeartbeatReply,
    Job,
    RegisterRunnerBody,
    RegisterRunnerReply,
)

Reply = TypeVar("Reply", bound=BaseModel)

CALL_TIMEOUT_S = 10.0
REPORT_TIMEOUT_S = 60.0
DOWNLOAD_TIMEOUT_S = 60.0
"""Between two pieces of a download, not for all of it."""
POLL_WAIT_S = 25
POLL_MARGIN_S = 10.0
_CHUNK_BYTES = 1024 * 1024
_RETRYABLE = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Identity:
    """Who the server knows us as."""

    runner_id: str
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What proves it."""
        return {"Authorization": f"Bearer {self.token}"}


class ServerApi:
    """One connection pool to one server. Thread-safe; heartbeats should have one of their own."""

    def __init__(self, server_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=server_url,
            timeout=CALL_TIMEOUT_S,
            headers={"User-Agent": f"noj-agent/{version('noj-agent')}"},
            transport=transport,
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def register(self, body: RegisterRunnerBody) -> RegisterRunnerReply:
        """A new identity. AuthRejected: the registration token is wrong."""
        response = self._send("POST", "/runners/register", json=body.model_dump(exclude_none=True))
        return _parse(RegisterRunnerReply, response)

    def heartbeat(self, me: Identity, body: HeartbeatBody) -> HeartbeatReply:
        """Renew the leases of the listed jobs; what is cancelled or lost comes back."""
        response = self._send(
            "POST",
            f"/runners/{me.runner_id}/heartbeat",
            headers={**me.headers, "Prefer": "return=representation"},
            json=body.model_dump(mode="json", exclude_none=True),
        )
        if response.status_code == 204:  # a server that does not know the preference
            return HeartbeatReply()
        return _parse(HeartbeatReply, response)

    def next_job(self, me: Identity, key: str, *, wait_s: int = POLL_WAIT_S) -> Job | None:
        """The next job, waiting for one on the server; None when there is none.

        A poll that broke is repeated with the same `key`, and gives the same job again.
        """
        response = self._send(
            "GET",
            f"/runners/{me.runner_id}/next-job",
            headers={**me.headers, "Prefer": f"wait={wait_s}", "Idempotency-Key": key},
            timeout=wait_s + POLL_MARGIN_S,
        )
        return None if response.status_code == 204 else _parse(Job, response)

    def complete(self, me: Identity, job_id: str, body: CompleteJobBody) -> None:
        """Report a result. LeaseLost: the job is not ours any more."""
        self._send(
            "PUT",
            f"/runners/{me.runner_id}/jobs/{job_id}/complete",
            headers={**me.headers, "Content-Type": "application/json"},
            content=body.model_dump_json(exclude_none=True),
            timeout=REPORT_TIMEOUT_S,
        )

    def abort(self, me: Identity, job_id: str, body: AbortJobBody) -> None:
        """Give a job back. LeaseLost: it is not ours any more."""
        self._send(
            "PUT",
            f"/runners/{me.runner_id}/jobs/{job_id}/abort",
            headers=me.headers,
            json=body.model_dump(mode="json", exclude_none=True),
        )

    def sign_off(self, me: Identity) -> None:
        """Have the server forget us."""
        self._send("DELETE", f"/runners/{me.runner_id}", headers=me.headers)

    def healthz(self) -> None:
        """Whether the server answers at all."""
        self._send("GET", "/healthz")

    def download_testdata(
        self, me: Identity, problem_id: str, checksum: str, sink: IO[bytes], limit_bytes: int
    ) -> None:
        """Stream one version of a problem's test data into `sink`."""
        self._download(
            f"/problem/{problem_id}/testdata",
            sink,
            limit_bytes,
            params={"checksum": checksum},
            headers=me.headers,
        )

    def download_code(self, code_url: str, sink: IO[bytes], limit_bytes: int) -> None:
        """Stream a submission's zip. The URL is signed; our token is not sent along."""
        self._download(code_url, sink, limit_bytes)

    def _download(self, url: str, sink: IO[bytes], limit_bytes: int, **kwargs: Any) -> None:
        with (
            _translated(url),
            self._http.stream("GET", url, timeout=DOWNLOAD_TIMEOUT_S, **kwargs) as response,
        ):
            if not response.is_success:
                response.read()
                raise _refusal(response)
            size = 0
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                size += len(chunk)
                if size > limit_bytes:
                    raise Rejected(
                        f"a download is larger than {limit_bytes} bytes",
                        status=response.status_code,
                        code="too_large",
                    )
                sink.write(chunk)

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with _translated(path):
            response = self._http.request(method, path, **kwargs)
        if response.is_success:
            return response
        raise _refusal(response)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """httpx' errors as ours; the query, which may hold a token, is left out."""
    try:
        yield
    except httpx.HTTPError as error:
        path = where.partition("?")[0]
        raise Unavailable(f"{path}: {type(error).__name__}: {error}") from error
    except httpx.InvalidURL as error:
        raise Rejected(f"no valid URL: {error}", status=0, code="invalid_url") from error


def _refusal(response: httpx.Response) -> Exception:
    """What a status other than 2xx means."""
    try:
        problem = ProblemDetails.model_validate_json(response.content)
        message, code = problem.detail or problem.title, problem.code
        faults = "; ".join(f"{item.field}: {item.message}" for item in problem.errors[:5])
        message = f"{message} ({faults})" if faults else message
    except ValidationError:  # not from noj-server: a proxy's page
        message, code = f"status {response.status_code} from {response.url.path}", "unknown"
    status = response.status_code
    if status == 401:
        return AuthRejected(message)
    if status == 409:
        return LeaseLost(message)
    if status in _RETRYABLE or status >= 500 or status < 400:
        return Unavailable(message, retry_after_s=_retry_after_s(response))
    return Rejected(message, status=status, code=code)


def _retry_after_s(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdecimal() else None


def _parse(model: type[Reply], response: httpx.Response) -> Reply:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        # A captive portal or a broken proxy answers 200 with a page of its own: try again. The
        # reply itself is not quoted, it may hold a token (INV8); hence `from None`, too.
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "body"
        raise Unavailable(
            f"{response.url.path} gave no {model.__name__}: {where}: {fault['msg']}"
        ) from None
