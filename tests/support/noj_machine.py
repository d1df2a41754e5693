"""What tests of the agent share: jobs, reports, packages, a scripted server, a judge that needs no
sandbox.

The server speaks the runner side of the wire from memory, over httpx' mock transport or over real
HTTP on loopback. It checks nothing that a test does not ask for: the real one is tested elsewhere.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from noj_testing import make_zip

from noj_agent.judge.slots import SlotPool
from noj_agent.sandbox.base import Slot
from noj_agent.settings import AgentSettings
from noj_shared.ids import new_job_id, new_lease_id, new_runner_id, new_runner_token
from noj_shared.wire import AbortJobBody, AbortReason, CompleteJobBody, Job

URL = "http://judge.test"
TOKEN = "the registration token"
PARK_LIMIT_S = 20.0
"""A parked poll of a test that went wrong ends by itself."""


TESTDATA = make_zip({"0000.in": b"1 2\n", "0000.out": b"3\n", "meta.json": b"{}"})
CODE = make_zip({"main.c": b"int main(){}"})


def checksum_of(content: bytes) -> str:
    """What names test data."""
    return hashlib.sha256(content).hexdigest()


def make_job(**changes: Any) -> Job:
    """A job of one task with one case; its test data is TESTDATA."""
    values: dict[str, Any] = {
        "job_id": new_job_id(),
        "submission_id": "s1",
        "problem_id": "p1",
        "language": 0,
        "code_url": f"{URL}/submissions/s1/code?token=signed",
        "tasks": [{"taskScore": 100, "memoryLimit": 65536, "timeLimit": 1000, "caseCount": 1}],
        "lease": new_lease_id(),
        "testdata_checksum": checksum_of(TESTDATA),
        **changes,
    }
    return Job.model_validate(values)


def make_result(lease: str | None = "lease-1") -> CompleteJobBody:
    """An AC of that shape."""
    case = {"status": 0, "exitCode": 0, "execTime": 1, "memoryUsage": 900}
    text = {"stdout": "3\n", "stderr": ""}
    return CompleteJobBody.model_validate({"tasks": [[{**case, **text}]], "lease": lease})


def make_abort(reason: AbortReason = AbortReason.DRAIN, lease: str = "lease-1") -> AbortJobBody:
    """A hand-back."""
    return AbortJobBody(reason=reason, lease=lease, detail="a test")


def make_settings(state_dir: Path, **changes: Any) -> AgentSettings:
    """Settings of an agent of the scripted server."""
    values: dict[str, Any] = {
        "server_url": URL,
        "registration_token": TOKEN,
        "state_dir": state_dir,
        "name": "alpha",
        "slots": 1,
        "disk_floor_bytes": 0,
        **changes,
    }
    return AgentSettings(**values)


def make_pool(size: int = 1) -> SlotPool:
    """Slots that nothing runs in."""
    return SlotPool([Slot(index, 65534, 65534) for index in range(size)])


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class FakeJudge:
    """A judge whose verdict is always AC, unless a test plugs in something else."""

    def __init__(self) -> None:
        self.judged: list[str] = []
        self.started = threading.Event()
        self.behave: Callable[[Job, threading.Event], None] = lambda _job, _cancel: None

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
        """Judge a job."""
        assert code_zip.read_bytes() == CODE
        assert (testdata_dir / "0000.in").read_bytes() == b"1 2\n"
        on_progress(0, 1)
        self.started.set()
        self.behave(job, cancel)
        on_progress(1, 1)
        self.judged.append(job.job_id)
        return make_result(job.lease)


@dataclass(frozen=True)
class Call:
    """A request that came."""

    endpoint: str
    method: str
    path: str
    headers: httpx.Headers
    content: bytes

    @property
    def body(self) -> Any:
        """Its JSON."""
        return json.loads(self.content)


_ENDPOINTS = {
    "register": r"POST /runners/register",
    "heartbeat": r"POST /runners/[^/]+/heartbeat",
    "next_job": r"GET /runners/[^/]+/next-job",
    "complete": r"PUT /runners/[^/]+/jobs/[^/]+/complete",
    "abort": r"PUT /runners/[^/]+/jobs/[^/]+/abort",
    "sign_off": r"DELETE /runners/[^/]+",
    "testdata": r"GET /problem/[^/]+/testdata",
    "code": r"GET /submissions/[^/]+/code",
    "healthz": r"GET /healthz",
}


@dataclass
class FakeServer:
    """The runner side, from memory. Thread-safe. `answers[endpoint]` are given first, in order."""

    answers: defaultdict[str, list[httpx.Response | Exception]] = field(
        default_factory=lambda: defaultdict(list)
    )
    down: set[str] = field(default_factory=set)
    """Endpoints that answer 503."""
    config: dict[str, Any] = field(
        default_factory=lambda: {"heartbeat_interval_sec": 0.05, "poll_interval_sec": 0.05}
    )
    code: bytes = CODE
    testdata: bytes = TESTDATA
    pending: list[Job] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    completed: dict[str, Any] = field(default_factory=dict)
    aborted: dict[str, Any] = field(default_factory=dict)
    cancel: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    paused: bool = False
    draining: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    # -- for tests ----------------------------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        """What a client speaks to it through."""
        return httpx.MockTransport(self.handle)

    def offer(self, job: Job) -> Job:
        """Queue a job; a parked poll gets it at once."""
        with self._changed:
            self.pending.append(job)
            self._changed.notify_all()
        return job

    def release(self) -> None:
        """Answer parked polls."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()

    def seen(self, endpoint: str) -> list[Call]:
        """The calls of one endpoint so far."""
        return [call for call in list(self.calls) if call.endpoint == endpoint]

    def wipe(self) -> None:
        """Forget all runners, as a wiped Redis does."""
        self.tokens.clear()

    # -- the wire -----------------------------------------------------------------------------

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        line = f"{request.method} {request.url.path}"
        endpoint = next(name for name, form in _ENDPOINTS.items() if re.fullmatch(form, line))
        call = Call(endpoint, request.method, request.url.path, request.headers, request.read())
        self.calls.append(call)
        if self.answers[endpoint]:
            answer = self.answers[endpoint].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if endpoint in self.down:
            return refusal(503)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if endpoint not in {"register", "code", "healthz"} and token not in self.tokens:
            return refusal(401)
        answering: Callable[[Call], httpx.Response] = getattr(self, f"_{endpoint}")
        return answering(call)

    def _register(self, call: Call) -> httpx.Response:
        if call.body["registration_token"] != TOKEN:
            return refusal(401)
        token = new_runner_token()
        self.tokens.add(token)
        reply = {"runner_id": new_runner_id(), "token": token, "config": self.config}
        return httpx.Response(201, json=reply)

    def _heartbeat(self, call: Call) -> httpx.Response:
        if call.body.get("state") == "draining":
            self.release()
        reply = {"cancel": self.cancel, "lost": self.lost, "paused": self.paused}
        return httpx.Response(200, json={**reply, "config": self.config})

    def _next_job(self, call: Call) -> httpx.Response:
        wait_s = float(call.headers.get("Prefer", "wait=0").removeprefix("wait="))
        with self._changed:
            self._changed.wait_for(
                lambda: self.pending or self.draining, timeout=min(wait_s, PARK_LIMIT_S)
            )
            if not self.pending:
                return httpx.Response(204)
            return httpx.Response(200, json=self.pending.pop(0).model_dump(mode="json"))

    def _complete(self, call: Call) -> httpx.Response:
        self.completed[call.path.split("/")[-2]] = call.body
        return httpx.Response(204)

    def _abort(self, call: Call) -> httpx.Response:
        self.aborted[call.path.split("/")[-2]] = call.body
        return httpx.Response(202, json={"outcome": "requeued"})

    def _sign_off(self, call: Call) -> httpx.Response:
        self.tokens.discard(call.headers["Authorization"].removeprefix("Bearer "))
        return httpx.Response(204)

    def _testdata(self, _call: Call) -> httpx.Response:
        return httpx.Response(200, content=self.testdata)

    def _code(self, _call: Call) -> httpx.Response:
        return httpx.Response(200, content=self.code)

    def _healthz(self, _call: Call) -> httpx.Response:
        return httpx.Response(200, json={})


def refusal(status: int, *, code: str = "a_code", **headers: str) -> httpx.Response:
    """An RFC 9457 error answer; `Retry_After="3"` becomes a header."""
    return httpx.Response(
        status,
        json={"title": "No", "status": status, "code": code, "detail": f"because of {status}"},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


@contextmanager
def over_http(server: FakeServer) -> Iterator[str]:
    """The scripted server on a real loopback port, for agents in a process of their own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            answer = server.handle(
                httpx.Request(
                    self.command,
                    f"{url}{self.path}",
                    headers=dict(self.headers.items()),
                    content=self.rfile.read(length),
                )
            )
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Retry-After"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  # http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A killed agent's connection breaks: that is the point of the test."""

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(
            target=lambda: listener.serve_forever(poll_interval=0.02), name="fake-server"
        )
        thread.start()
        try:
            yield url
        finally:
            server.release()
            listener.shutdown()
            thread.join(10)
