"""The real agent's client against the real app, with nothing between them but WSGI."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from noj_http import ADMIN_KEY, REGISTRATION_TOKEN, make_app, make_case, make_package, make_settings
from noj_testing import free_port

from noj_agent.api import Identity, ServerApi
from noj_agent.errors import AuthRejected, LeaseLost, Rejected, Unavailable
from noj_server.app import create_app
from noj_server.client import Client
from noj_shared.ids import new_job_id, new_request_id, new_runner_id
from noj_shared.verdict import Verdict
from noj_shared.wire import (
    AbortJobBody,
    AbortReason,
    CompleteJobBody,
    HeartbeatBody,
    LanguageInfo,
    RegisterRunnerBody,
    RunnerActivity,
    SubmissionState,
)

URL = "http://judge.test"


@pytest.fixture
def transport(tmp_path: Path) -> httpx.WSGITransport:
    """The app as an httpx transport."""
    return httpx.WSGITransport(make_app(tmp_path / "data"))


@pytest.fixture
def api(transport: httpx.WSGITransport) -> Iterator[ServerApi]:
    """The agent's client."""
    client = ServerApi(URL, transport=transport)
    yield client
    client.close()


@pytest.fixture
def backend(transport: httpx.WSGITransport) -> Iterator[Client]:
    """The backend's client; the problem p1 is stored."""
    with Client(URL, ADMIN_KEY, transport=transport) as client:
        client.put_problem("p1", make_package())
        yield client


@pytest.fixture
def me(api: ServerApi, backend: Client) -> Identity:
    """A registered agent."""
    return register(api)


def register(api: ServerApi) -> Identity:
    """Register as agents do, with all optional fields."""
    reply = api.register(
        RegisterRunnerBody(
            registration_token=REGISTRATION_TOKEN,
            name="alpha",
            version="0.1.0",
            protocol=1,
            slots=2,
            languages=(LanguageInfo(language=0, version="gcc 12"),),
            tags=("ssd",),
        )
    )
    assert reply.config.lease_ttl_sec == 30
    return Identity(reply.runner_id, reply.token)


def report(lease: str | None) -> CompleteJobBody:
    """A report of p1's shape."""
    case = make_case()
    return CompleteJobBody.model_validate({"tasks": [[case, case], [case]], "lease": lease})


def poll(api: ServerApi, me: Identity) -> str | None:
    """The id of the next job, without waiting."""
    job = api.next_job(me, new_request_id(), wait_s=0)
    return job.job_id if job is not None else None


def test_the_way_of_a_submission(api: ServerApi, backend: Client, me: Identity) -> None:
    """Pull, fetch code and test data, heartbeat, complete; the backend sees the result."""
    created = backend.submit(problem_id="p1", language=0, code=b"int main(){}", user="ann")
    job = api.next_job(me, new_request_id(), wait_s=0)
    assert job is not None
    assert (job.job_id, job.attempts, len(job.tasks)) == (created.job_id, 1, 2)

    code = io.BytesIO()
    api.download_code(job.code_url, code, 1_000_000)
    with zipfile.ZipFile(code) as archive:
        assert archive.read("main.c") == b"int main(){}"
    data = io.BytesIO()
    api.download_testdata(me, "p1", job.testdata_checksum, data, 1_000_000)
    assert hashlib.sha256(data.getvalue()).hexdigest() == job.testdata_checksum

    beat = HeartbeatBody(
        active_job_ids=(job.job_id,),
        leases={job.job_id: job.lease},
        state=RunnerActivity.READY,
        busy_slots=1,
        outbox=0,
        load=0.5,
        disk_free_bytes=10**9,
    )
    reply = api.heartbeat(me, beat)
    assert (reply.cancel, reply.lost, reply.paused) == ((), (), False)
    for _ in range(2):
        api.complete(me, job.job_id, report(job.lease))
    view = backend.wait(created.submission_id, timeout_s=5)
    assert (view.status, view.score, view.runner_name) == (Verdict.AC, 100, "alpha")
    assert backend.output(created.submission_id, 0, 0).stdout == "3\n"
    (entry,) = backend.results().results
    assert entry.submission_id == created.submission_id
    (runner,) = backend.runners()
    assert (runner.slots, runner.busy_slots, runner.tags) == (2, 1, ("ssd",))


def test_no_job(api: ServerApi, me: Identity) -> None:
    """None, not an error."""
    assert poll(api, me) is None


def test_a_repeated_poll(api: ServerApi, backend: Client, me: Identity) -> None:
    """The same key gives the same job under the same lease."""
    for _ in range(2):
        backend.submit(problem_id="p1", language=0, code=b"x")
    key = new_request_id()
    first, second = (api.next_job(me, key, wait_s=0) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.job_id, first.lease) == (second.job_id, second.lease)
    assert backend.queue().depth == 1


def test_cancel_and_loss_reach_the_agent(api: ServerApi, backend: Client, me: Identity) -> None:
    """A cancelled job is in `cancel`, one that is not ours in `lost`; reports of it are stale."""
    created = backend.submit(problem_id="p1", language=0, code=b"x")
    job = api.next_job(me, new_request_id(), wait_s=0)
    assert job is not None
    backend.cancel(created.submission_id)
    foreign = new_job_id()
    reply = api.heartbeat(me, HeartbeatBody(active_job_ids=(job.job_id, foreign)))
    assert (reply.cancel, reply.lost) == ((job.job_id,), (foreign,))
    api.complete(me, job.job_id, report(job.lease))
    assert backend.status(created.submission_id).state is SubmissionState.CANCELLED


def test_abort(api: ServerApi, backend: Client, me: Identity) -> None:
    """A drained job goes to the next one who asks, without a lost attempt."""
    backend.submit(problem_id="p1", language=0, code=b"x")
    job = api.next_job(me, new_request_id(), wait_s=0)
    assert job is not None
    body = AbortJobBody(reason=AbortReason.DRAIN, lease=job.lease, detail="SIGTERM")
    for _ in range(2):
        api.abort(me, job.job_id, body)
    again = api.next_job(register(api), new_request_id(), wait_s=0)
    assert again is not None
    assert (again.job_id, again.attempts) == (job.job_id, 1)
    with pytest.raises(LeaseLost):
        api.abort(me, job.job_id, AbortJobBody(reason=AbortReason.DRAIN, lease="another"))
    with pytest.raises(LeaseLost):
        api.complete(me, job.job_id, report("another"))


def test_refusals(api: ServerApi, backend: Client, me: Identity) -> None:
    """401, 4xx and 404 become the errors of the agent's tree, with the server's reason."""
    wrong = RegisterRunnerBody(registration_token="wrong", name="n")
    with pytest.raises(AuthRejected):
        api.register(wrong)
    with pytest.raises(AuthRejected):
        api.heartbeat(Identity(new_runner_id(), me.token), HeartbeatBody(active_job_ids=()))
    with pytest.raises(Rejected) as unknown:
        api.complete(me, new_job_id(), report(None))
    assert (unknown.value.status, unknown.value.code) == (404, "not_found")
    backend.submit(problem_id="p1", language=0, code=b"x")
    job_id = poll(api, me)
    assert job_id is not None
    short = CompleteJobBody.model_validate({"tasks": [[make_case()]]})
    with pytest.raises(Rejected, match=r"tasks\.0: 1 cases") as misshapen:
        api.complete(me, job_id, short)
    assert misshapen.value.code == "shape_mismatch"
    with pytest.raises(AuthRejected):
        api.download_code(f"{URL}/submissions/s1/code?token=forged", io.BytesIO(), 100)
    with pytest.raises(Rejected, match="larger than 10 bytes"):
        api.download_testdata(
            me, "p1", hashlib.sha256(make_package()).hexdigest(), io.BytesIO(), 10
        )


def test_sign_off(api: ServerApi, me: Identity) -> None:
    """After it the identity is worthless."""
    api.healthz()
    api.sign_off(me)
    with pytest.raises(AuthRejected):
        poll(api, me)


def test_a_server_without_redis(tmp_path: Path) -> None:
    """503 is worth another try, and says how long to wait; so is a server that is not there."""
    away = f"redis://127.0.0.1:{free_port()}/0"
    app = create_app(make_settings(tmp_path / "data", redis_url=away))
    api = ServerApi(URL, transport=httpx.WSGITransport(app))
    with pytest.raises(Unavailable) as error:
        register(api)
    assert error.value.retry_after_s == 2
    api.close()
    nobody = ServerApi(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable):
        nobody.healthz()
    nobody.close()
