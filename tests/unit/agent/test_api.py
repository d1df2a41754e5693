"""The agent's HTTP client: one try, and every answer as an error of the agent's own tree."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from noj_machine import (
    CODE,
    TESTDATA,
    TOKEN,
    URL,
    FakeServer,
    checksum_of,
    make_abort,
    make_job,
    make_result,
    refusal,
)

from noj_agent.api import CALL_TIMEOUT_S, POLL_WAIT_S, Identity, ServerApi
from noj_agent.errors import AuthRejected, LeaseLost, Rejected, Unavailable
from noj_shared.ids import new_job_id, new_request_id, new_runner_id
from noj_shared.wire import HeartbeatBody, RegisterRunnerBody

JOB_ID = new_job_id()
KEY = new_request_id()
NO_JOBS = HeartbeatBody(active_job_ids=())
REGISTER = RegisterRunnerBody(registration_token=TOKEN, name="n")


@pytest.fixture
def me(api: ServerApi) -> Identity:
    """A registered identity."""
    reply = api.register(REGISTER)
    return Identity(reply.runner_id, reply.token)


CALLS: dict[str, Callable[[ServerApi, Identity], object]] = {
    "register": lambda api, _me: api.register(REGISTER),
    "heartbeat": lambda api, me: api.heartbeat(me, NO_JOBS),
    "next_job": lambda api, me: api.next_job(me, KEY, wait_s=0),
    "complete": lambda api, me: api.complete(me, JOB_ID, make_result()),
    "abort": lambda api, me: api.abort(me, JOB_ID, make_abort()),
    "sign_off": lambda api, me: api.sign_off(me),
    "healthz": lambda api, _me: api.healthz(),
    "testdata": lambda api, me: api.download_testdata(me, "p1", "c", io.BytesIO(), 100),
    "code": lambda api, _me: api.download_code(f"{URL}/submissions/s/code", io.BytesIO(), 100),
}
ERRORS: list[tuple[int, type[Exception]]] = [
    *((status, Unavailable) for status in (302, 408, 425, 429, 500, 502, 503, 504)),
    (401, AuthRejected),
    (409, LeaseLost),
    *((status, Rejected) for status in (400, 403, 404, 405, 410, 413, 415, 422)),
]


@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize("meaning", ERRORS, ids=lambda pair: f"{pair[0]}-{pair[1].__name__}")
def test_what_a_status_means(
    server: FakeServer,
    api: ServerApi,
    me: Identity,
    endpoint: str,
    meaning: tuple[int, type[Exception]],
) -> None:
    """Retryable or final is decided in one place, alike for every endpoint; with one try."""
    status, error = meaning
    before = len(server.seen(endpoint))
    server.answers[endpoint] = [refusal(status)]
    with pytest.raises(error, match=f"because of {status}") as raised:
        CALLS[endpoint](api, me)
    if isinstance(raised.value, Rejected):
        assert (raised.value.status, raised.value.code) == (status, "a_code")
    assert len(server.seen(endpoint)) == before + 1


@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize(
    "broken",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.PoolTimeout("full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_network_is_unavailable(
    server: FakeServer, api: ServerApi, me: Identity, endpoint: str, broken: Exception
) -> None:
    """Whatever breaks on the way is worth another try, and the cause is kept."""
    server.answers[endpoint] = [broken]
    with pytest.raises(Unavailable) as raised:
        CALLS[endpoint](api, me)
    assert raised.value.__cause__ is broken


@pytest.mark.parametrize(
    ("endpoint", "page"),
    [
        *((name, "<html>log in</html>") for name in ("register", "heartbeat", "next_job")),
        *((name, "[]") for name in ("register", "heartbeat", "next_job")),
        *((name, '{"nothing": 1}') for name in ("register", "next_job")),  # a beat needs no field
    ],
)
def test_a_proxys_page_is_unavailable(
    server: FakeServer, api: ServerApi, me: Identity, endpoint: str, page: str
) -> None:
    """200 with something else than the reply is a captive portal, not an answer."""
    server.answers[endpoint] = [httpx.Response(200, text=page)]
    with pytest.raises(Unavailable):
        CALLS[endpoint](api, me)


def test_a_proxys_error_page(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """An error without a problem body keeps its status."""
    server.answers["complete"] = [httpx.Response(413, text="<h1>Too large</h1>")]
    with pytest.raises(Rejected, match="status 413") as raised:
        api.complete(me, JOB_ID, make_result())
    assert raised.value.code == "unknown"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None)],
)
def test_retry_after(
    server: FakeServer, api: ServerApi, me: Identity, value: str, seconds: float | None
) -> None:
    """Seconds are passed on; what is not understood counts as not said."""
    server.answers["heartbeat"] = [refusal(429, Retry_After=value)]
    with pytest.raises(Unavailable) as raised:
        api.heartbeat(me, NO_JOBS)
    assert raised.value.retry_after_s == seconds


def test_faults_of_fields_are_told(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """A refused report says which field was wrong."""
    problem = {"title": "t", "status": 400, "code": "invalid_body", "detail": "no"}
    faults = [{"field": "tasks.0.1.status", "message": "is pending"}]
    server.answers["complete"] = [httpx.Response(400, json={**problem, "errors": faults})]
    with pytest.raises(Rejected, match=r"no \(tasks\.0\.1\.status: is pending\)"):
        api.complete(me, JOB_ID, make_result())


def test_a_poll(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """It asks to wait, carries its key, and outlasts the wait; 204 is no job."""
    job = server.offer(make_job())
    assert api.next_job(me, KEY) == job
    server.release()
    assert api.next_job(me, KEY) is None
    first, _ = server.seen("next_job")
    assert first.headers["Prefer"] == f"wait={POLL_WAIT_S}"
    assert first.headers["Idempotency-Key"] == KEY


@pytest.mark.parametrize("endpoint", CALLS)
def test_every_call_has_a_deadline(
    api: ServerApi, me: Identity, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """No phase of any call may take for ever; a poll's deadline is after the server's wait."""
    seen: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return refusal(503)

    one = ServerApi(URL, transport=httpx.MockTransport(handle))
    with pytest.raises(Unavailable):
        CALLS[endpoint](one, me)
    if endpoint == "next_job":
        with pytest.raises(Unavailable):
            one.next_job(me, KEY)
        assert seen[-1]["read"] > POLL_WAIT_S
    one.close()
    assert all(limit is not None and limit >= CALL_TIMEOUT_S for limit in seen[0].values())


def test_a_heartbeat_of_an_old_server(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """204 although we asked for a representation: nothing to obey."""
    server.answers["heartbeat"] = [httpx.Response(204)]
    reply = api.heartbeat(me, NO_JOBS)
    assert (reply.cancel, reply.lost, reply.paused) == ((), (), False)
    assert server.seen("heartbeat")[0].headers["Prefer"] == "return=representation"


def test_optional_fields_are_left_out(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """What is not known is not sent as null."""
    api.heartbeat(me, NO_JOBS)
    api.complete(me, JOB_ID, make_result(None))
    assert server.seen("heartbeat")[0].body == {"active_job_ids": []}
    assert set(server.completed[JOB_ID]) == {"tasks"}


def test_downloads(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """The bytes as they are; test data by its checksum."""
    code, data = io.BytesIO(), io.BytesIO()
    api.download_code(make_job().code_url, code, 1000)
    api.download_testdata(me, "p1", checksum_of(TESTDATA), data, 1000)
    assert (code.getvalue(), data.getvalue()) == (CODE, TESTDATA)


@pytest.mark.parametrize("host", [URL, "http://elsewhere.test"])
def test_our_token_goes_nowhere_else(server: FakeServer, api: ServerApi, host: str) -> None:
    """INV8: a signed URL, wherever it leads, is fetched without the runner's token."""
    api.download_code(f"{host}/submissions/s1/code?token=signed", io.BytesIO(), 1000)
    assert "Authorization" not in server.seen("code")[0].headers


def test_a_redirect_is_not_followed(server: FakeServer, api: ServerApi, me: Identity) -> None:
    """INV8: nobody sends the token on to another host."""
    away = httpx.Response(302, headers={"Location": "http://elsewhere.test/problem/p1/testdata"})
    server.answers["testdata"] = [away]
    with pytest.raises(Unavailable):
        api.download_testdata(me, "p1", "c", io.BytesIO(), 100)
    assert len(server.seen("testdata")) == 1


def test_a_download_is_capped(server: FakeServer, api: ServerApi) -> None:
    """Exactly the limit passes; a byte more is refused, and no more than the limit is written."""
    sink = io.BytesIO()
    api.download_code(make_job().code_url, sink, len(CODE))
    assert sink.getvalue() == CODE
    sink = io.BytesIO()
    with pytest.raises(Rejected, match="larger than") as raised:
        api.download_code(make_job().code_url, sink, len(CODE) - 1)
    assert raised.value.code == "too_large"
    assert len(sink.getvalue()) < len(CODE)


def test_a_download_that_breaks(server: FakeServer, api: ServerApi) -> None:
    """Half a file is Unavailable, never taken for all of it."""

    class Torn(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b"half"
            raise httpx.ReadError("reset")

    server.answers["code"] = [httpx.Response(200, stream=Torn())]
    with pytest.raises(Unavailable):
        api.download_code(make_job().code_url, io.BytesIO(), 1000)


def test_secrets_stay_out_of_messages(server: FakeServer, api: ServerApi) -> None:
    """INV8: neither a signed URL's query nor the identity's repr shows a secret."""
    server.answers["code"] = [httpx.ReadTimeout("slow")]
    with pytest.raises(Unavailable) as raised:
        api.download_code(make_job().code_url, io.BytesIO(), 1000)
    assert "signed" not in str(raised.value)
    assert "rk_" not in repr(Identity(new_runner_id(), "rk_secret"))


def test_a_misread_reply_keeps_its_secret(server: FakeServer, api: ServerApi) -> None:
    """INV8: a reply that is not understood is not quoted; it may hold our new token."""
    server.answers["register"] = [httpx.Response(201, json={"token": "rk_secret"})]
    with pytest.raises(Unavailable) as raised:
        api.register(REGISTER)
    assert "rk_secret" not in str(raised.value)


def test_a_url_that_is_none(api: ServerApi) -> None:
    """A code URL that cannot be parsed is an error of ours, not one that ends a thread."""
    with pytest.raises((Unavailable, Rejected)):
        api.download_code("http://judge.test:port/code", io.BytesIO(), 1000)
