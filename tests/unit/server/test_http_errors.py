"""Every error answer has one shape, whatever is wrong with the request."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from noj_http import REGISTRATION_TOKEN, make_case, make_settings
from noj_testing import free_port

from noj_server.app import create_app
from noj_server.errors import FAULTS_SHOWN
from noj_shared.ids import new_job_id, new_runner_id
from noj_shared.problem import CONTENT_TYPE, ErrorCode
from noj_shared.wire import MAX_CASES, MAX_TASKS
from tests.unit.server.conftest import Http

if TYPE_CHECKING:
    from tests.unit.server.conftest import Reply, Site


def refused(reply: Reply, status: int, code: ErrorCode) -> dict[str, str]:
    """Pin the error shape; field → message of its faults."""
    assert reply.status_code == status, reply.text
    assert reply.content_type == CONTENT_TYPE
    body = reply.json
    assert set(body) == {"type", "title", "status", "code", "detail", "errors"}
    assert (body["type"], body["status"], body["code"]) == ("about:blank", status, code)
    assert body["detail"]
    assert all(set(item) == {"field", "message"} for item in body["errors"])
    return {item["field"]: item["message"] for item in body["errors"]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"name": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "word", "not-utf8", "deep-list", "deep-object", "huge-number"],
)
def test_what_is_not_json(site: Site, raw: bytes) -> None:
    """400 with the body named, whatever the parser stumbles over."""
    reply = site.http.post("/runners/register", data=raw)
    assert "body" in refused(reply, 400, ErrorCode.INVALID_BODY)


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"text"', b"NaN"])
def test_json_that_is_no_object(site: Site, raw: bytes) -> None:
    """A body of another kind is 400 with the body named."""
    reply = site.http.post("/runners/register", data=raw)
    assert "body" in refused(reply, 400, ErrorCode.INVALID_BODY)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"name": None}, "name"),
        ({"name": 5}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"name": "lone \ud800"}, "name"),
        ({"registration_token": "\udfff"}, "registration_token"),
        ({"version": ["1"]}, "version"),
        ({"slots": 0}, "slots"),
        ({"slots": 10**400}, "slots"),
        ({"slots": "many"}, "slots"),
        ({"slots": float("nan")}, "slots"),
        ({"slots": True}, "slots"),
        ({"languages": [{"language": True}]}, "languages.0.language"),
        ({"tags": ["t"] * 65}, "tags"),
        ({"languages": [{"language": 0}] * 65}, "languages"),
        ({str(number): 1 for number in range(65)}, "body"),
        ({"slots": float("inf")}, "slots"),
        ({"languages": [{"language": 0, "extra": 1}]}, "languages.0.extra"),
        ({"languages": [{"language": -1}]}, "languages.0.language"),
        ({"tags": "gpu"}, "tags"),
        ({"\ud800": 1}, "body"),
    ],
)
def test_a_wrong_field_is_named(site: Site, change: dict[str, Any], field: str) -> None:
    """Unknown fields, wrong types, NaN, lone surrogates, huge numbers: each names its field."""
    body = {"registration_token": REGISTRATION_TOKEN, "name": "n", **change}
    reply = site.http.post("/runners/register", data=json.dumps(body))
    assert list(refused(reply, 400, ErrorCode.INVALID_BODY)) == [field]


def test_all_wrong_fields_are_named_at_once(site: Site) -> None:
    """A client author sees every fault of a body in one answer."""
    faults = refused(
        site.http.post("/runners/register", json={"name": "", "slots": -1, "x": 1}),
        400,
        ErrorCode.INVALID_BODY,
    )
    assert set(faults) == {"registration_token", "name", "slots", "x"}


@pytest.mark.parametrize(
    ("case", "field"),
    [
        (make_case(status=-1), "tasks.0.0.status"),
        (make_case(status=99), "tasks.0.0.status"),
        (make_case(status=True), "tasks.0.0.status"),
        (make_case(execTime=float("nan")), "tasks.0.0.execTime"),
        (make_case(execTime=-1), "tasks.0.0.execTime"),
        (make_case(memoryUsage=2**54), "tasks.0.0.memoryUsage"),
        (make_case(exitCode=2**40), "tasks.0.0.exitCode"),
        (make_case(stdout="\ud83d"), "tasks.0.0.stdout"),
        (make_case(stderr=None), "tasks.0.0.stderr"),
        (make_case(extra=1), "tasks.0.0.extra"),
        ({"status": 0, "exitCode": 0, "execTime": 1, "memoryUsage": 1, "stdout": ""},
         "tasks.0.0.stderr"),
    ],
)  # fmt: skip
def test_a_wrong_report_names_task_case_and_field(
    site: Site, case: dict[str, Any], field: str
) -> None:
    """The place in a report is told as tasks.<task>.<case>.<field>."""
    runner = site.register()
    reply = site.http.put(
        f"{runner.path}/jobs/{new_job_id()}/complete",
        data=json.dumps({"tasks": [[case]]}),
        headers=runner.headers,
    )
    assert list(refused(reply, 400, ErrorCode.INVALID_BODY)) == [field]


@pytest.mark.parametrize("tasks", [[], [[]], {}, None, [[[]]]])
def test_a_report_without_cases_is_refused(site: Site, tasks: object) -> None:
    """Empty and misshapen task lists are the body's fault."""
    runner = site.register()
    path = f"{runner.path}/jobs/{new_job_id()}/complete"
    reply = site.http.put(path, json={"tasks": tasks}, headers=runner.headers)
    assert refused(reply, 400, ErrorCode.INVALID_BODY)


BAD_IDS = ["x", "rn_", "rn_0", "jb_" + "0" * 26, "rn_" + "u" * 26, "%0A", "a:b", "é", "*"]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/runners/{}/heartbeat"),
        ("GET", "/runners/{}/next-job"),
        ("DELETE", "/runners/{}"),
        ("POST", "/runners/{}/pause"),
    ],
)
def test_bad_runner_ids(site: Site, method: str, path: str, bad: str) -> None:
    """An id in a path is checked before anything else."""
    reply = site.http.open(path.format(bad), method=method, headers=site.admin, json={})
    refused(reply, 400, ErrorCode.INVALID_ID)


@pytest.mark.parametrize("call", ["complete", "abort"])
@pytest.mark.parametrize("bad", ["x", new_runner_id(), "jb_" + "I" * 26, new_job_id() + "%0A"])
def test_bad_job_ids(site: Site, call: str, bad: str) -> None:
    """A job id of the wrong form is 400, not 404."""
    runner = site.register()
    body = {"tasks": [[make_case()]]} if call == "complete" else {"reason": "drain"}
    path = f"{runner.path}/jobs/{bad}/{call}"
    reply = site.http.put(path, json=body, headers=runner.headers)
    refused(reply, 400, ErrorCode.INVALID_ID)


@pytest.mark.parametrize("bad", ["-x", "a.b", "a" * 65, "a%20b", "%0A", "é", "ok%0A", "{noj}"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/submissions/{}"),
        ("DELETE", "/submissions/{}"),
        ("POST", "/submissions/{}/rejudge"),
        ("GET", "/submissions/{}/output/0/0"),
        ("GET", "/submissions/{}/code"),
        ("PUT", "/problems/{}"),
    ],
)
def test_bad_outside_ids(site: Site, method: str, path: str, bad: str) -> None:
    """Submission and problem ids of the wrong form are 400."""
    reply = site.http.open(path.format(bad), method=method, headers=site.admin)
    refused(reply, 400, ErrorCode.INVALID_ID)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/submissions/none"),
        ("DELETE", "/submissions/none"),
        ("POST", "/submissions/none/rejudge"),
        ("GET", "/submissions/none/output/0/0"),
        ("POST", f"/runners/{new_runner_id()}/pause"),
        ("POST", f"/runners/{new_runner_id()}/resume"),
        ("DELETE", "/keys/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("GET", "/nothing"),
        ("GET", "/submissions/a/output/x/0"),
        ("GET", "/submissions/a/output/-1/0"),
        ("GET", f"/submissions/a/output/{'9' * 5000}/0"),
    ],
)
def test_what_is_not_there(site: Site, method: str, path: str) -> None:
    """404 in the one shape, for unknown things and unknown paths."""
    refused(site.http.open(path, method=method, headers=site.admin), 404, ErrorCode.NOT_FOUND)


@pytest.mark.parametrize("call", ["complete", "abort"])
def test_unknown_jobs(site: Site, call: str) -> None:
    """A job that was never there is 404."""
    runner = site.register()
    body = {"tasks": [[make_case()]]} if call == "complete" else {"reason": "drain"}
    path = f"{runner.path}/jobs/{new_job_id()}/{call}"
    refused(site.http.put(path, json=body, headers=runner.headers), 404, ErrorCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/runners/register", "POST"),
        ("PATCH", "/submissions", "POST"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/config", "PUT"),
    ],
)
def test_wrong_methods(site: Site, method: str, path: str, allowed: str) -> None:
    """405 in the one shape, with what is allowed (RFC 9110 §15.5.6)."""
    reply = site.http.open(path, method=method, headers=site.admin)
    refused(reply, 405, ErrorCode.METHOD_NOT_ALLOWED)
    assert allowed in reply.headers["Allow"]


def test_too_large_bodies(site: Site) -> None:
    """413 names the limit; nothing of the body is parsed."""
    big = b'{"name": "' + b"x" * 300_000 + b'"}'
    reply = site.http.post("/runners/register", data=big)
    refused(reply, 413, ErrorCode.TOO_LARGE)
    assert "262144" in reply.json["detail"]


def test_too_large_report(tmp_path: Path, site: Site) -> None:
    """A report has a limit of its own."""
    runner = site.register()
    path = f"{runner.path}/jobs/{new_job_id()}/complete"
    body = b" " * (site.parts.settings.report_limit_bytes + 1)
    refused(site.http.put(path, data=body, headers=runner.headers), 413, ErrorCode.TOO_LARGE)


def test_redis_away(tmp_path: Path) -> None:
    """503 with Retry-After while Redis is away; what needs no Redis goes on working."""
    app = create_app(
        make_settings(tmp_path / "data", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    )
    http = Http(app)
    runner = new_runner_id()
    headers = {"Authorization": "Bearer rk_x"}
    for method, path in (
        ("POST", f"/runners/{runner}/heartbeat"),
        ("GET", f"/runners/{runner}/next-job"),
        ("GET", "/problem/p1/meta"),
        ("GET", "/submissions/s1"),
    ):
        reply = http.open(path, method=method, headers=headers)
        refused(reply, 503, ErrorCode.UNAVAILABLE)
        assert int(reply.headers["Retry-After"]) >= 1
    body = {"registration_token": REGISTRATION_TOKEN, "name": "n"}
    refused(http.post("/runners/register", json=body), 503, ErrorCode.UNAVAILABLE)
    assert http.get("/healthz").status_code == 200


def test_a_full_disk(judged: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, so a runner keeps its report and a backend its submission; nothing is
    enqueued. Any other error of the system is a defect."""

    def fail(number: int) -> None:
        def put(*_: object) -> None:
            raise OSError(number, "says the system", "/x/y")

        monkeypatch.setattr(type(judged.parts.blobs), "put", put)

    body = {"problem_id": "p1", "language": 0, "source": "int main(){}"}
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        fail(number)
        reply = judged.http.post("/submissions", json=body, headers=judged.admin)
        refused(reply, 503, ErrorCode.UNAVAILABLE)
        assert int(reply.headers["Retry-After"]) >= 1
        assert "/x/y" not in reply.text
    fail(errno.EBADF)
    reply = judged.http.post("/submissions", json=body, headers=judged.admin)
    refused(reply, 500, ErrorCode.INTERNAL)
    assert judged.parts.queue.depth() == 0


def test_double_slashes_are_no_redirect(site: Site) -> None:
    """A client that follows a redirect may leave its body behind."""
    refused(site.http.post("//runners/register", json={}), 404, ErrorCode.NOT_FOUND)
    refused(site.http.get("/problem//p1/meta", headers=site.admin), 404, ErrorCode.NOT_FOUND)


def test_a_large_field_without_a_file(site: Site) -> None:
    """413 that tells fields from files."""
    field = b'--b\r\nContent-Disposition: form-data; name="problem_id"\r\n\r\n%s\r\n--b--\r\n'
    reply = site.http.post(
        "/submissions",
        data=field % (b"x" * 600_000),
        headers=site.admin,
        content_type="multipart/form-data; boundary=b",
    )
    refused(reply, 413, ErrorCode.TOO_LARGE)
    assert "fields without files over 500000" in reply.json["detail"]


def test_an_unexpected_error_tells_no_inner_matters(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in the one shape; the reason stands in the log, not in the answer."""

    def fail() -> None:
        raise RuntimeError("secret path /x/y")

    monkeypatch.setattr(site.parts.config, "get", fail)
    reply = site.http.get("/config", headers=site.admin)
    refused(reply, 500, ErrorCode.INTERNAL)
    assert "/x/y" not in reply.text
    assert "secret path" in caplog.text


def test_very_many_faults(judged: Site) -> None:
    """The first are listed, the others counted; a wrong report costs the server no minutes."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    report: dict[str, Any] = {"tasks": [[{}] * MAX_CASES] * MAX_TASKS}
    reply = judged.complete(runner, job["job_id"], report)
    assert len(refused(reply, 400, ErrorCode.INVALID_BODY)) == FAULTS_SHOWN
    assert f"60000 faults, the first {FAULTS_SHOWN} are listed" in reply.json["detail"]


def test_overlong_lists(site: Site) -> None:
    """Refused by their length, before millions of wrong items are looked at."""
    runner = site.register()
    path = f"{runner.path}/jobs/{new_job_id()}/complete"
    for tasks, field in (([[1]] * 1_000_000, "tasks"), ([[1] * 1_000_000], "tasks.0")):
        reply = site.http.put(path, data=json.dumps({"tasks": tasks}), headers=runner.headers)
        faults = refused(reply, 400, ErrorCode.INVALID_BODY)
        assert faults == {field: "has 1000000 items; at most 100 are allowed"}


def test_a_list_whose_items_are_all_wrong(judged: Site) -> None:
    """Only what is wrong is named: not also that nothing is left of the list."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    reply = judged.complete(runner, job["job_id"], {"tasks": [[{**make_case(), "status": 99}]]})
    assert list(refused(reply, 400, ErrorCode.INVALID_BODY)) == ["tasks.0.0.status"]
