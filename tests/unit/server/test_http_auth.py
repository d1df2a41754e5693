"""Who may call what: a matrix over every endpoint, and the signed code URLs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from noj_http import ADMIN_KEY, REGISTRATION_TOKEN, SECRET_KEY

from noj_shared.ids import new_runner_id
from tests.unit.server.conftest import make_site

if TYPE_CHECKING:
    from tests.unit.server.conftest import Http, Site

OPERATOR = [
    ("GET", "/runners"),
    ("POST", f"/runners/{new_runner_id()}/pause"),
    ("POST", f"/runners/{new_runner_id()}/resume"),
    ("GET", "/queue"),
    ("GET", "/config"),
    ("PUT", "/config"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("DELETE", "/keys/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
]
BACKEND = [
    ("PUT", "/problems/p1"),
    ("POST", "/submissions"),
    ("GET", "/submissions/s1"),
    ("GET", "/submissions/s1/output/0/0"),
    ("POST", "/submissions/s1/rejudge"),
    ("DELETE", "/submissions/s1"),
    ("GET", "/results"),
]
RUNNER = [
    ("POST", "/runners/{}/heartbeat"),
    ("GET", "/runners/{}/next-job"),
    ("PUT", "/runners/{}/jobs/jb_01ARZ3NDEKTSV4RRFFQ69G5FAV/complete"),
    ("PUT", "/runners/{}/jobs/jb_01ARZ3NDEKTSV4RRFFQ69G5FAV/abort"),
    ("DELETE", "/runners/{}"),
]
ANY_RUNNER = ["/problem/p1/meta", "/problem/p1/checksum", "/problem/p1/testdata"]
WORTHLESS = {
    "none": {},
    "empty": {"Authorization": ""},
    "no token": {"Authorization": "Bearer"},
    "unknown key": {"Authorization": "Bearer ak_unknown"},
    "unknown token": {"Authorization": "Bearer rk_unknown"},
    "other scheme": {"Authorization": f"Basic {ADMIN_KEY}"},
    "not a header": {"Authorization": ADMIN_KEY},
    "odd bytes": {"Authorization": "Bearer \xff\xfe"},
}


def status(http: Http, method: str, path: str, headers: dict[str, str]) -> int:
    """Only the status; a 401 must say which scheme it wants."""
    reply = http.open(path, method=method, headers=headers)
    assert reply.status_code != 401 or reply.headers["WWW-Authenticate"] == "Bearer"
    return reply.status_code


@pytest.mark.parametrize("headers", WORTHLESS.values(), ids=WORTHLESS)
@pytest.mark.parametrize(
    ("method", "path"), OPERATOR + BACKEND + RUNNER + [("GET", path) for path in ANY_RUNNER]
)
def test_worthless_credentials(
    judged: Site, method: str, path: str, headers: dict[str, str]
) -> None:
    """Every endpoint is 401 for nothing, for nonsense and for what is unknown."""
    runner = judged.register()
    assert status(judged.http, method, path.format(runner.runner_id), headers) == 401


def test_no_endpoint_is_forgotten(site: Site) -> None:
    """Each rule of the application stands in this module's matrix, or is open on purpose."""
    listed = [path for _, path in OPERATOR + BACKEND + RUNNER] + ANY_RUNNER
    own_guard = {"/runners/register", "/healthz", "/readyz", "/submissions/s1/code"}
    adapter = site.app.url_map.bind("localhost")
    seen = set()
    for method, path in (
        OPERATOR
        + BACKEND
        + RUNNER
        + [("GET", path) for path in ANY_RUNNER]
        + [("POST", "/runners/register")]
        + [("GET", path) for path in own_guard - {"/runners/register"}]
    ):
        seen.add(adapter.match(path.format(new_runner_id()), method=method)[0])
    assert seen == set(site.app.view_functions), listed


@pytest.mark.parametrize(("method", "path"), OPERATOR)
def test_backends_are_no_operators(site: Site, method: str, path: str) -> None:
    """A backend's key is 403 where an operator's is needed; an operator's is let in."""
    assert status(site.http, method, path, site.backend()) == 403
    assert status(site.http, method, path, site.admin) not in (401, 403)


@pytest.mark.parametrize(("method", "path"), BACKEND)
def test_backend_endpoints(site: Site, method: str, path: str) -> None:
    """Both roles are let in; a runner's token is not."""
    assert status(site.http, method, path, site.backend()) not in (401, 403)
    assert status(site.http, method, path, site.admin) not in (401, 403)
    assert status(site.http, method, path, site.register().headers) == 401


@pytest.mark.parametrize(("method", "path"), RUNNER)
def test_runner_endpoints(site: Site, method: str, path: str) -> None:
    """Only the token of the runner in the path; not another runner's, not a revoked one's."""
    mine, other = site.register(), site.register()
    mine_path = path.format(mine.runner_id)
    assert status(site.http, method, mine_path, other.headers) == 401
    assert status(site.http, method, mine_path, site.backend()) == 401
    assert status(site.http, method, mine_path, mine.headers) != 401
    assert site.http.delete(other.path, headers=site.admin).status_code == 204
    assert status(site.http, method, path.format(other.runner_id), other.headers) == 401


@pytest.mark.parametrize("path", ANY_RUNNER)
def test_test_data_is_for_any_runner(judged: Site, path: str) -> None:
    """By Bearer or `?token=`; revoking is immediate; an API key is no runner."""
    runner = judged.register()
    assert judged.http.get(path, headers=runner.headers).status_code == 200
    assert judged.http.get(f"{path}?token={runner.token}").status_code == 200
    assert judged.http.get(f"{path}?token=rk_wrong").status_code == 401
    assert judged.http.get(path, headers=judged.admin).status_code == 401
    judged.http.delete(runner.path, headers=judged.admin)
    assert judged.http.get(path, headers=runner.headers).status_code == 401


def test_an_operator_revokes_and_a_runner_signs_off(site: Site) -> None:
    """DELETE of a runner: itself or an operator, nobody else."""
    first, second = site.register(), site.register()
    assert site.http.delete(first.path, headers=site.backend()).status_code == 401
    assert site.http.delete(first.path, headers=first.headers).status_code == 204
    assert site.http.delete(second.path, headers=site.admin).status_code == 204
    assert site.http.get("/runners", headers=site.admin).json == {"runners": []}


def test_the_registration_token(site: Site, tmp_path: Path) -> None:
    """Wrong: 401. Unset or empty on the server: always 401, for the empty token too."""
    body = {"registration_token": REGISTRATION_TOKEN, "name": "n"}
    wrong = {**body, "registration_token": REGISTRATION_TOKEN + "x"}
    assert site.http.post("/runners/register", json=body).status_code == 201
    assert site.http.post("/runners/register", json=wrong).status_code == 401
    for number, unset in enumerate((None, "")):
        closed = make_site(tmp_path / str(number), registration_token=unset)
        assert closed.http.post("/runners/register", json=body).status_code == 401
        none = closed.http.post("/runners/register", json={**body, "registration_token": "None"})
        assert none.status_code == 401


def test_keys_are_made_listed_and_revoked(site: Site) -> None:
    """INV8: a key is shown once; a revoked one is worthless at once."""
    made = site.http.post("/keys", json={"name": "oj", "role": "operator"}, headers=site.admin)
    assert made.status_code == 201
    headers = {"Authorization": f"Bearer {made.json['key']}"}
    assert site.http.get("/queue", headers=headers).status_code == 200
    listed = site.http.get("/keys", headers=headers)
    assert made.json["key"] not in listed.text
    assert [(k["key_id"], k["role"]) for k in listed.json["keys"]] == [
        (made.json["key_id"], "operator")
    ]
    path = f"/keys/{made.json['key_id']}"
    assert site.http.delete(path, headers=headers).status_code == 204
    assert site.http.get("/queue", headers=headers).status_code == 401
    assert site.http.delete(path, headers=site.admin).status_code == 404
    bad = site.http.post("/keys", json={"name": "x", "role": "root"}, headers=site.admin)
    assert bad.status_code == 400


def code_token(submission_id: str, *, key: str = SECRET_KEY, age_s: int = 0) -> str:
    """A token for a code URL, signed so long ago."""

    class Earlier(TimestampSigner):
        def get_timestamp(self) -> int:
            return super().get_timestamp() - age_s

    token = URLSafeTimedSerializer(key, salt="noj-code-url", signer=Earlier).dumps(submission_id)
    return token if isinstance(token, str) else token.decode()


def test_code_urls(judged: Site) -> None:
    """Valid for an hour and for one submission; forged, foreign or missing: 401; too old: 410."""
    mine, other = judged.submit(), judged.submit()
    path = f"/submissions/{mine['submission_id']}/code"

    def fetch(token: str) -> int:
        return judged.http.get(path, query_string={"token": token}).status_code

    good = code_token(mine["submission_id"])
    assert fetch(good) == 200
    assert fetch(code_token(mine["submission_id"], age_s=3500)) == 200
    assert fetch(code_token(mine["submission_id"], age_s=3700)) == 410
    assert fetch(code_token(mine["submission_id"], key="another key")) == 401
    assert fetch(code_token(other["submission_id"])) == 401
    assert fetch(good[:-5] + ("A" if good[-5] != "A" else "B") + good[-4:]) == 401
    assert fetch("") == 401
    assert judged.http.get(path, headers=judged.admin).status_code == 401


def test_the_job_carries_a_code_url_that_works(judged: Site) -> None:
    """It is absolute, and on the public URL if one is set."""
    judged.submit()
    url = judged.pull(judged.register())["code_url"]
    assert url.startswith("http://localhost/submissions/")
    reply = judged.http.get(url)
    assert reply.status_code == 200
    assert reply.content_type == "application/zip"


def test_the_public_url(tmp_path: Path) -> None:
    """Agents that reach the server by another name get URLs on that name."""
    site = make_site(tmp_path / "data", public_url="https://judge.example/noj/")
    site.put_problem()
    site.submit()
    url = site.pull(site.register())["code_url"]
    assert url.startswith("https://judge.example/noj/submissions/")
