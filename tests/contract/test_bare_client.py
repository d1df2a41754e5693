"""A bare HTTP client, required fields only, as other runners in the field send them: no Prefer,
no Idempotency-Key, no lease. The shapes are those of the protocol's table, to the letter."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from noj_http import (
    ADMIN_KEY,
    REGISTRATION_TOKEN,
    make_app,
    make_meta,
    make_package,
    make_report,
)

ULID = "[0-9A-HJKMNP-TV-Z]{26}"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@dataclass
class Bare:
    """A runner that knows nothing but the required fields."""

    http: httpx.Client
    runner_id: str = ""
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Its one header."""
        return {"Authorization": f"Bearer {self.token}"}

    def register(self) -> dict[str, Any]:
        """201 with an identity."""
        reply = self.http.post(
            "/runners/register",
            content=json.dumps({"registration_token": REGISTRATION_TOKEN, "name": "bare"}),
        )
        assert reply.status_code == 201
        body: dict[str, Any] = reply.json()
        self.runner_id, self.token = body["runner_id"], body["token"]
        return body

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """A call as this runner; the body without a content type."""
        return self.http.request(
            method,
            f"/runners/{self.runner_id}{path}",
            content=None if body is None else json.dumps(body),
            headers=self.headers,
        )


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    """The app behind httpx, with a problem and one submission."""
    transport = httpx.WSGITransport(make_app(tmp_path / "data"))
    with httpx.Client(transport=transport, base_url="http://judge.test") as client:
        files = {"testdata": make_package()}
        assert client.put("/problems/p1", files=files, headers=ADMIN).status_code == 201
        body = {"problem_id": "p1", "language": 0, "source": "int main(){}", "submission_id": "s1"}
        assert client.post("/submissions", json=body, headers=ADMIN).status_code == 202
        yield client


@pytest.fixture
def bare(http: httpx.Client) -> Bare:
    """A registered bare runner."""
    runner = Bare(http)
    runner.register()
    return runner


def test_register(http: httpx.Client) -> None:
    """201 with id, token and a config whose numbers are whole."""
    body = Bare(http).register()
    assert set(body) == {"runner_id", "token", "config"}
    assert re.fullmatch(f"rn_{ULID}", body["runner_id"])
    assert re.fullmatch("rk_[A-Za-z0-9_-]{43}", body["token"])
    wanted = {
        "heartbeat_interval_sec": 15,
        "poll_interval_sec": 3,
        "max_concurrent_jobs": 8,
        "lease_ttl_sec": 30,
    }
    assert {name: body["config"][name] for name in wanted} == wanted
    assert {type(body["config"][name]) for name in wanted} == {int}


def test_heartbeat(bare: Bare) -> None:
    """204 and nothing else."""
    reply = bare.call("POST", "/heartbeat", {"active_job_ids": []})
    assert (reply.status_code, reply.content) == (204, b"")


def test_a_job(bare: Bare) -> None:
    """200 with the fields of the table; the tasks with the backend's spelling, all ints."""
    reply = bare.call("GET", "/next-job")
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "application/json")
    job = reply.json()
    assert re.fullmatch(f"jb_{ULID}", job["job_id"])
    assert (job["submission_id"], job["problem_id"], job["language"]) == ("s1", "p1", 0)
    assert job["checker"] == "diff"
    assert job["tasks"] == make_meta()["tasks"]
    assert {type(value) for task in job["tasks"] for value in task.values()} == {int}
    assert isinstance(job["lease"], str)
    assert re.fullmatch("[0-9a-f]{64}", job["testdata_checksum"])
    assert job["code_url"].startswith("http://judge.test/")
    code = bare.http.get(job["code_url"])
    with zipfile.ZipFile(io.BytesIO(code.content)) as archive:
        assert archive.namelist() == ["main.c"]
    assert bare.call("GET", "/next-job").status_code == 204


def test_complete(bare: Bare) -> None:
    """204 landed; the same again 204; another runner's 409; an unknown job 404; bad shapes 400."""
    job_id = bare.call("GET", "/next-job").json()["job_id"]
    assert bare.call("PUT", f"/jobs/{job_id}/complete", {"tasks": [[]]}).status_code == 400
    assert bare.call("PUT", f"/jobs/{job_id}/complete", {}).status_code == 400
    short = {"tasks": make_report()["tasks"][:1]}
    assert bare.call("PUT", f"/jobs/{job_id}/complete", short).status_code == 400
    for _ in range(2):
        reply = bare.call("PUT", f"/jobs/{job_id}/complete", make_report())
        assert (reply.status_code, reply.content) == (204, b"")
    other = Bare(bare.http)
    other.register()
    assert other.call("PUT", f"/jobs/{job_id}/complete", make_report()).status_code == 409
    unknown = "jb_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert other.call("PUT", f"/jobs/{unknown}/complete", make_report()).status_code == 404
    view = bare.http.get("/submissions/s1", headers=ADMIN).json()
    assert (view["state"], view["status"], view["score"]) == ("done", 0, 100)
    assert (view["execTime"], view["memoryUsage"]) == (7, 900)


def test_abort(bare: Bare) -> None:
    """202; the job is given out again."""
    job_id = bare.call("GET", "/next-job").json()["job_id"]
    for reason in ("drain", "prep_failed", "rejected"):
        reply = bare.call("PUT", f"/jobs/{job_id}/abort", {"reason": reason})
        assert reply.status_code == 202
        assert bare.call("GET", "/next-job").json()["job_id"] == job_id
    assert bare.call("PUT", f"/jobs/{job_id}/abort", {"reason": "tired"}).status_code == 400


def test_a_stale_report(bare: Bare) -> None:
    """204 for a job that a rejudge superseded."""
    job_id = bare.call("GET", "/next-job").json()["job_id"]
    assert bare.http.post("/submissions/s1/rejudge", headers=ADMIN).status_code == 202
    assert bare.call("PUT", f"/jobs/{job_id}/complete", make_report()).status_code == 204
    assert bare.http.get("/submissions/s1", headers=ADMIN).json()["state"] == "pending"


def test_sign_off(bare: Bare) -> None:
    """204, and the token is worthless from then on."""
    reply = bare.call("DELETE", "")
    assert (reply.status_code, reply.content) == (204, b"")
    assert bare.call("POST", "/heartbeat", {"active_job_ids": []}).status_code == 401


def test_problem_data(bare: Bare) -> None:
    """meta and checksum are {"data": …}; test data is the zip; by Bearer or by `?token=`."""
    for auth in ({"headers": bare.headers}, {"params": {"token": bare.token}}):
        meta = bare.http.get("/problem/p1/meta", **auth)  # type: ignore[arg-type]
        assert meta.json() == {"data": {**make_meta(), "checker": "diff"}}
        checksum = bare.http.get("/problem/p1/checksum", **auth)  # type: ignore[arg-type]
        assert list(checksum.json()) == ["data"]
        data = bare.http.get("/problem/p1/testdata", **auth)  # type: ignore[arg-type]
        assert data.content == make_package()


@pytest.mark.parametrize("token", ["", "rk_wrong"])
def test_without_a_right_token(bare: Bare, token: str) -> None:
    """401 for every call, as problem+json."""
    bare.token = token
    for method, path, body in (
        ("POST", "/heartbeat", {"active_job_ids": []}),
        ("GET", "/next-job", None),
        ("PUT", "/jobs/jb_01ARZ3NDEKTSV4RRFFQ69G5FAV/complete", make_report()),
        ("PUT", "/jobs/jb_01ARZ3NDEKTSV4RRFFQ69G5FAV/abort", {"reason": "drain"}),
        ("DELETE", "", None),
    ):
        reply = bare.call(method, path, body)
        assert reply.status_code == 401
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["code"] == "unauthorized"
