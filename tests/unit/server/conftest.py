"""The app on an embedded Redis, and hands to work it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from noj_http import ADMIN_KEY, REGISTRATION_TOKEN, make_app, make_package
from werkzeug.test import TestResponse

from noj_server.services import EXTENSION, Services


class Reply(TestResponse):
    """An answer whose JSON a test may look into without asking first whether there is any."""

    @property
    def json(self) -> Any:
        """The body."""
        return self.get_json()


class Http:
    """Requests to the app; every answer is read to its end, so that no file stays open."""

    def __init__(self, app: Flask) -> None:
        self._client = FlaskClient(app, Reply)

    def open(self, path: str, *, method: str, **kwargs: Any) -> Reply:
        """One request."""
        reply = self._client.open(path, method=method, buffered=True, **kwargs)
        assert isinstance(reply, Reply)
        return reply

    def get(self, path: str, **kwargs: Any) -> Reply:
        """GET."""
        return self.open(path, method="GET", **kwargs)

    def post(self, path: str, **kwargs: Any) -> Reply:
        """POST."""
        return self.open(path, method="POST", **kwargs)

    def put(self, path: str, **kwargs: Any) -> Reply:
        """PUT."""
        return self.open(path, method="PUT", **kwargs)

    def delete(self, path: str, **kwargs: Any) -> Reply:
        """DELETE."""
        return self.open(path, method="DELETE", **kwargs)

    def send_form(
        self,
        path: str,
        *,
        method: str,
        files: Mapping[str, bytes | tuple[None, bytes]],
        fields: dict[str, str],
        **kw: Any,
    ) -> Reply:
        """A multipart form, made in memory; (None, content) is a part without a file name."""
        form = httpx.Request(method, "http://form", files=files, data=fields)
        content_type = form.headers["Content-Type"]
        return self.open(path, method=method, data=form.read(), content_type=content_type, **kw)


@dataclass(frozen=True)
class Runner:
    """A registered runner."""

    runner_id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What proves it."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def path(self) -> str:
        """Where its calls go."""
        return f"/runners/{self.runner_id}"


@dataclass
class Site:
    """One server: requests as operator, backend or runner."""

    app: Flask
    http: Http
    admin: dict[str, str]

    @property
    def parts(self) -> Services:
        """Its services."""
        found: Services = self.app.extensions[EXTENSION]
        return found

    def register(self, **extra: Any) -> Runner:
        """A new runner."""
        body = {"registration_token": REGISTRATION_TOKEN, "name": "alpha", **extra}
        reply = self.http.post("/runners/register", json=body)
        assert reply.status_code == 201, reply.text
        return Runner(reply.json["runner_id"], reply.json["token"])

    def backend(self) -> dict[str, str]:
        """Headers of a new key of the role backend."""
        reply = self.http.post("/keys", json={"name": "backend"}, headers=self.admin)
        assert reply.status_code == 201
        return {"Authorization": f"Bearer {reply.json['key']}"}

    def put_problem(
        self, problem_id: str = "p1", package: bytes | None = None, **fields: str
    ) -> Reply:
        """Upload a package."""
        content = make_package() if package is None else package
        return self.http.send_form(
            f"/problems/{problem_id}",
            method="PUT",
            files={"testdata": content},
            fields=fields,
            headers=self.admin,
        )

    def upload(self, code: bytes, **fields: str) -> Reply:
        """Submit a file by multipart form."""
        return self.http.send_form(
            "/submissions",
            method="POST",
            files={"code": code},
            fields={"problem_id": "p1", "language": "0", **fields},
            headers=self.admin,
        )

    def submit(self, **fields: Any) -> dict[str, str]:
        """Submit source as JSON; the ids. There must be a problem p1."""
        body = {"problem_id": "p1", "language": 0, "source": "int main(){}", **fields}
        reply = self.http.post("/submissions", json=body, headers=self.admin)
        assert reply.status_code == 202, reply.text
        created: dict[str, str] = reply.json
        return created

    def show(self, submission_id: str) -> dict[str, Any]:
        """A submission as its backend sees it."""
        reply = self.http.get(f"/submissions/{submission_id}", headers=self.admin)
        assert reply.status_code == 200, reply.text
        view: dict[str, Any] = reply.json
        return view

    def pull(self, runner: Runner) -> dict[str, Any]:
        """The next job of a runner; there must be one."""
        reply = self.http.get(f"{runner.path}/next-job", headers=runner.headers)
        assert reply.status_code == 200, reply.text
        job: dict[str, Any] = reply.json
        return job

    def complete(self, runner: Runner, job_id: str, report: dict[str, Any]) -> Reply:
        """Report a result."""
        path = f"{runner.path}/jobs/{job_id}/complete"
        return self.http.put(path, json=report, headers=runner.headers)


def make_site(data_dir: Path, **changes: Any) -> Site:
    """A server with settings of the test's own."""
    app = make_app(data_dir, **changes)
    return Site(app, Http(app), {"Authorization": f"Bearer {ADMIN_KEY}"})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty server."""
    return make_site(tmp_path / "data")


@pytest.fixture
def judged(site: Site) -> Site:
    """A server with the problem p1 (noj_http.SHAPE)."""
    assert site.put_problem().status_code == 201
    return site
