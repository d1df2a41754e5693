"""The typed client: what it sends, what it makes of answers, whom it blames."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import respx

from noj_server.client import Client, RefusedError, ServerUnreachableError, TimedOutError
from noj_shared.ids import new_job_id

URL = "http://dispatch.test"
JOB = new_job_id()


@pytest.fixture
def server() -> Iterator[respx.Router]:
    """Every route that is named must be used."""
    with respx.mock(base_url=URL) as router:
        yield router


@pytest.fixture
def client() -> Iterator[Client]:
    """With a key."""
    with Client(URL, "ak_key") as made:
        yield made


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have slept, each time; nobody sleeps here."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def view(state: str, **changes: Any) -> dict[str, Any]:
    """A submission as the server shows it."""
    return {
        "submission_id": "s1",
        "problem_id": "p1",
        "language": 0,
        "state": state,
        "status": 0 if state == "done" else -1,
        "verdict": "AC" if state == "done" else "PENDING",
        "score": 0,
        "job_id": JOB,
        "created_at": datetime.now(UTC).isoformat(),
        **changes,
    }


def page(cursor: str = "5-0") -> dict[str, Any]:
    """An empty page of the feed."""
    return {"results": [], "next": cursor}


def test_submit_sends_only_what_was_given(server: respx.Router, client: Client) -> None:
    """Optional fields stay out of the form; the key is a bearer token."""
    route = server.post("/submissions").respond(201, json={"submission_id": "s1", "job_id": JOB})
    created = client.submit(problem_id="p1", language=2, code=b"print(1)")
    assert (created.submission_id, created.job_id) == ("s1", JOB)
    request = route.calls.last.request
    assert request.headers["Authorization"] == "Bearer ak_key"
    body = request.content
    assert b'name="problem_id"' in body
    assert b"print(1)" in body
    assert b"user" not in body
    assert b"submission_id" not in body


def test_a_refusal_tells_every_fault(server: respx.Router, client: Client) -> None:
    """Status, code and the list of faults, for programs and for people."""
    fault = {"field": "0001.out", "message": "is missing"}
    server.put("/problems/p1").respond(
        400,
        json={"title": "T", "status": 400, "code": "bad_package", "detail": "D", "errors": [fault]},
    )
    with pytest.raises(RefusedError) as raised:
        client.put_problem("p1", b"zip")
    assert (raised.value.status, raised.value.code) == (400, "bad_package")
    assert str(raised.value) == "D (400 bad_package)\n  0001.out: is missing"


def test_a_refusal_of_a_proxy(server: respx.Router, client: Client) -> None:
    """A page that is no problem document is quoted, in part."""
    server.get("/queue").respond(403, text="<h1>Forbidden</h1>" + "x" * 999)
    with pytest.raises(RefusedError, match="Forbidden") as raised:
        client.queue()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503, json={"title": "T", "status": 503, "code": "c", "detail": "no Redis"}),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(200, text="<html>a captive portal</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
    ids=["503", "502", "portal", "refused", "timeout"],
)
def test_no_answer(
    server: respx.Router, client: Client, answer: httpx.Response | Exception
) -> None:
    """All of these may be tried again, and are one class."""
    server.get("/submissions/s1").mock(side_effect=[answer])
    with pytest.raises(ServerUnreachableError):
        client.status("s1")


def test_no_url() -> None:
    """A mistyped URL is said so."""
    with pytest.raises(ServerUnreachableError, match="no URL"):
        Client("http://dispatch.test:port", "ak_key")


def test_wait_wakes_on_the_feed(server: respx.Router, client: Client) -> None:
    """The feed is read from about now on, not from its beginning, and from its cursor then."""
    server.get("/submissions/s1").mock(
        side_effect=[
            httpx.Response(200, json=view(state)) for state in ("pending", "judging", "done")
        ]
    )
    feed = server.get("/results").mock(return_value=httpx.Response(200, json=page("7-1")))
    assert client.wait("s1").state == "done"
    first, second = (call.request for call in feed.calls)
    assert int(first.url.params["after"].partition("-")[0]) > 10**12
    assert second.url.params["after"] == "7-1"
    assert first.headers["Prefer"] == "wait=20"


def test_wait_for_the_job_of_a_rejudge(server: respx.Router, client: Client) -> None:
    """A result of the job before does not count."""
    new = new_job_id()
    server.get("/submissions/s1").mock(
        side_effect=[
            httpx.Response(200, json=view("done")),
            httpx.Response(200, json=view("done", job_id=new)),
        ]
    )
    server.get("/results").respond(200, json=page())
    assert client.wait("s1", job_id=new).job_id == new


def test_an_early_empty_page_is_no_reason_to_hurry(
    server: respx.Router, client: Client, pauses: list[float]
) -> None:
    """The server has no room to park us and answers at once: a pause, not a storm."""
    states = [httpx.Response(200, json=view(state)) for state in ("pending", "pending", "done")]
    server.get("/submissions/s1").mock(side_effect=states)
    server.get("/results").respond(200, json=page())
    assert client.wait("s1").state == "done"
    assert pauses == [1.0, 1.0]


def test_wait_sits_out_a_restart(server: respx.Router, client: Client, pauses: list[float]) -> None:
    """No answer, and 503, are waited out on both calls; the result is what counts."""
    away: list[httpx.Response | Exception] = [
        httpx.ConnectError("refused"),
        httpx.Response(503, text=""),
    ]
    server.get("/submissions/s1").mock(
        side_effect=[
            httpx.Response(200, json=view("pending")),
            *away,
            httpx.Response(200, json=view("done")),
        ]
    )
    feed = server.get("/results")
    feed.mock(side_effect=[*away, httpx.Response(200, json=page())])
    assert client.wait("s1").state == "done"
    assert len(pauses) >= 4


def test_a_server_that_stays_away(server: respx.Router, client: Client) -> None:
    """Patience ends with the server's last word."""
    server.get("/submissions/s1").respond(503, text="down for good")
    with pytest.raises(ServerUnreachableError, match="down for good"):
        client.wait("s1", timeout_s=0)
    server.get("/results").respond(503, text="down for good")
    with pytest.raises(ServerUnreachableError, match="down for good"):
        next(client.results_from(patience_s=0))


def test_wait_in_vain(server: respx.Router, client: Client) -> None:
    """It tells the state it is stuck in."""
    server.get("/submissions/s1").respond(200, json=view("pending"))
    with pytest.raises(TimedOutError, match="s1 is pending after 0 s"):
        client.wait("s1", timeout_s=0)


def test_results_go_on_from_page_to_page(server: respx.Router, client: Client) -> None:
    """Every entry once, in order; an empty page is no end."""

    def entry(number: int) -> dict[str, Any]:
        return {
            "cursor": f"{number}-0",
            "submission_id": f"s{number}",
            "job_id": JOB,
            "problem_id": "p1",
            "status": 0,
            "verdict": "AC",
            "score": 100,
            "execTime": 3,
            "memoryUsage": 900,
            "landed_at": datetime.now(UTC).isoformat(),
        }

    feed = server.get("/results").mock(
        side_effect=[
            httpx.Response(200, json={"results": [entry(1), entry(2)], "next": "2-0"}),
            httpx.Response(200, json=page("2-0")),
            httpx.ConnectError("refused"),
            httpx.Response(200, json={"results": [entry(3)], "next": "3-0"}),
        ]
    )
    entries = client.results_from("0")
    assert [next(entries).cursor for _ in range(3)] == ["1-0", "2-0", "3-0"]
    assert [call.request.url.params["after"] for call in feed.calls] == ["0", "2-0", "2-0", "2-0"]


def test_ready_also_when_it_is_not(server: respx.Router, client: Client) -> None:
    """503 of `/readyz` is an answer."""
    check = {"name": "redis", "ok": False, "detail": "refused"}
    server.get("/readyz").respond(503, json={"ready": False, "checks": [check]})
    assert client.ready().checks[0].detail == "refused"
