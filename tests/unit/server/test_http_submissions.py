"""The backend side: hand in code, ask what came of it, rejudge, cancel, the results feed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from noj_http import make_case, make_package, make_report
from noj_testing import make_zip

from noj_shared.package import CODE_LIMITS
from tests.unit.server.conftest import make_site

if TYPE_CHECKING:
    from tests.unit.server.conftest import Site

SOURCE = b"int main(void){return 0;}\n"


def code_of(site: Site) -> dict[str, bytes]:
    """The files of the next job's code zip."""
    reply = site.http.get(site.pull(site.register())["code_url"])
    with zipfile.ZipFile(io.BytesIO(reply.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def land(site: Site, status: int = 0) -> str:
    """Submit and judge, all cases alike; the submission id."""
    created = site.submit()
    runner = site.register()
    site.complete(runner, site.pull(runner)["job_id"], make_report(status=status))
    return created["submission_id"]


@pytest.mark.parametrize(
    ("language", "name"), [("0", "main.c"), ("1", "main.cpp"), ("2", "main.py")]
)
def test_code_as_zip_bare_file_and_json(judged: Site, language: str, name: str) -> None:
    """All three ways end as a zip with the language's main file."""
    zipped = make_zip({name: SOURCE, "helper.h": "x"})
    assert judged.upload(zipped, language=language).status_code == 202
    assert code_of(judged) == {name: SOURCE, "helper.h": b"x"}
    assert judged.upload(SOURCE, language=language).status_code == 202
    assert code_of(judged) == {name: SOURCE}
    judged.submit(language=int(language), source="é\x00\n")
    assert code_of(judged) == {name: "é\x00\n".encode()}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"main.cpp": "x"}, "main.cpp"),
        ({"Main.c": "x", "b.c": "y"}, "Main.c, b.c"),
        ({}, "no file at all"),
    ],
)
def test_a_zip_without_the_main_file(judged: Site, files: dict[str, str], found: str) -> None:
    """400 that says what was expected and what was found; nothing is enqueued."""
    reply = judged.upload(make_zip(files))
    assert (reply.status_code, reply.json["code"]) == (400, "invalid_package")
    (fault,) = reply.json["errors"]
    assert fault["field"] == "code"
    assert fault["message"].endswith(f"must hold main.c; found {found}")
    assert judged.parts.queue.depth() == 0


@pytest.mark.parametrize(
    ("code", "field"),
    [
        (make_zip({"../main.c": "x", "main.c": "x"}), "../main.c"),
        (make_zip({"src/main.c": "x"}), "src/main.c"),
        (make_zip({"main.c": "x" * (CODE_LIMITS.file_bytes + 1)}), "main.c"),
        (make_zip({"main.c": "x"})[:-10], "zip"),
        (b"PK\x03\x04 is no zip", "zip"),
        (b"x" * (CODE_LIMITS.file_bytes + 1), "code"),
    ],
    ids=["traversal", "folder", "big-member", "cut", "garbage", "big-source"],
)
def test_bad_code(judged: Site, code: bytes, field: str) -> None:
    """Hostile and over-large code is 400 with the file named; nothing is enqueued."""
    reply = judged.upload(code)
    assert (reply.status_code, reply.json["code"]) == (400, "invalid_package"), reply.text
    assert field in {fault["field"] for fault in reply.json["errors"]}
    assert judged.parts.queue.depth() == 0


def test_an_upload_over_every_limit(judged: Site) -> None:
    """413 before anything is read into memory."""
    reply = judged.upload(b"x" * (2 * CODE_LIMITS.total_bytes + 1))
    assert (reply.status_code, reply.json["code"]) == (413, "too_large")
    body = {"problem_id": "p1", "language": 0, "source": "x" * (2 * CODE_LIMITS.total_bytes)}
    reply = judged.http.post("/submissions", json=body, headers=judged.admin)
    assert (reply.status_code, reply.json["code"]) == (413, "too_large")


def test_an_empty_source_is_a_submission(judged: Site) -> None:
    """A student may hand in an empty file; the compiler tells them what is wrong with it."""
    assert judged.upload(b"").status_code == 202
    assert code_of(judged) == {"main.c": b""}


def test_code_as_a_plain_field(judged: Site) -> None:
    """`curl -F 'code=<main.c'` sends no file name: the bare source all the same."""
    reply = judged.http.send_form(
        "/submissions",
        method="POST",
        files={"code": (None, "int main(){} // é".encode())},
        fields={"problem_id": "p1", "language": "0"},
        headers=judged.admin,
    )
    assert reply.status_code == 202, reply.text
    assert code_of(judged) == {"main.c": "int main(){} // é".encode()}


def test_a_form_without_code(judged: Site) -> None:
    """400 that names the missing file."""
    reply = judged.http.send_form(
        "/submissions",
        method="POST",
        files={"kode": b"x"},
        fields={"problem_id": "p1", "language": "0"},
        headers=judged.admin,
    )
    assert (reply.status_code, reply.json["code"]) == (400, "invalid_body")
    assert [fault["field"] for fault in reply.json["errors"]] == ["code"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"problem_id": ""}, "problem_id"),
        ({"problem_id": "../x"}, "problem_id"),
        ({"problem_id": "p1\n"}, "problem_id"),
        ({"problem_id": 1.5}, "problem_id"),
        ({"language": 3}, "language"),
        ({"language": 7}, "language"),
        ({"language": "C"}, "language"),
        ({"submission_id": "a b"}, "submission_id"),
        ({"submission_id": ""}, "submission_id"),
        ({"user": "a\tb"}, "user"),
        ({"user": "u" * 65}, "user"),
        ({"priority": 101}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"source": 5}, "source"),
        ({"source": "\ud800"}, "source"),
        ({"code": "x"}, "code"),
    ],
)
def test_bad_fields(judged: Site, change: dict[str, Any], field: str) -> None:
    """Each wrong field is named; the one about languages lists those that are judged."""
    body = {"problem_id": "p1", "language": 0, "source": "x", **change}
    reply = judged.http.post("/submissions", json=body, headers=judged.admin)
    assert (reply.status_code, reply.json["code"]) == (400, "invalid_body")
    (fault,) = reply.json["errors"]
    assert fault["field"] == field
    if change.get("language") in (3, 7):
        assert "0 (C11), 1 (C++17), 2 (Python 3)" in fault["message"]


def test_an_unknown_problem(site: Site) -> None:
    """404 that says what to do first."""
    reply = site.upload(SOURCE)
    assert (reply.status_code, reply.json["code"]) == (404, "not_found")
    assert "PUT /problems/p1 first" in reply.json["detail"]


def test_numbers_as_problem_ids(site: Site) -> None:
    """Backends that count their problems may send the number."""
    site.put_problem("17")
    assert site.submit(problem_id=17)["submission_id"].startswith("sn_")


def test_the_same_submission_again(judged: Site) -> None:
    """One submission, one job, however often and with whatever code it is sent."""
    first = judged.submit(submission_id="oj-7")
    assert first["submission_id"] == "oj-7"
    assert judged.submit(submission_id="oj-7", source="other") == first
    assert judged.upload(b"other", submission_id="oj-7").json == first
    assert judged.parts.queue.depth() == 1
    runner = judged.register()
    judged.complete(runner, judged.pull(runner)["job_id"], make_report())
    assert judged.submit(submission_id="oj-7") == first
    assert judged.parts.queue.depth() == 0


def test_rate_limit(judged: Site) -> None:
    """429 with Retry-After beyond the user's limit; known ids and other users are not counted."""
    config = {"rate_limit": {"limit": 2, "window_sec": 86_400}}
    assert judged.http.put("/config", json=config, headers=judged.admin).json == config
    judged.submit(user="ann", submission_id="s1")
    refused = {"problem_id": "none", "language": 0, "source": "x", "user": "ann"}
    for _ in range(3):
        # Neither does what was refused count.
        reply = judged.http.post("/submissions", json=refused, headers=judged.admin)
        assert reply.status_code == 404
        judged.submit(user="ann", submission_id="s1")
    judged.submit(user="ann")
    body = {"problem_id": "p1", "language": 0, "source": "x", "user": "ann"}
    reply = judged.http.post("/submissions", json=body, headers=judged.admin)
    assert (reply.status_code, reply.json["code"]) == (429, "rate_limited")
    assert 1 <= int(reply.headers["Retry-After"]) <= 86_400
    judged.submit(user="ann", submission_id="s1")
    judged.submit(user="bob")
    judged.submit()
    judged.http.put("/config", json={"rate_limit": {"limit": 0}}, headers=judged.admin)
    judged.submit(user="ann")


def test_priority_goes_first(judged: Site) -> None:
    """Higher priority is judged first; within one, first come first served."""
    order = [judged.submit(priority=p)["job_id"] for p in (0, 5, 0, 5)]
    runner = judged.register()
    pulled = [judged.pull(runner)["job_id"] for _ in range(4)]
    assert pulled == [order[1], order[3], order[0], order[2]]


def test_the_life_of_a_submission(judged: Site) -> None:
    """pending, judging, done: with status, score, tasks, cases, runner and attempts."""
    created = judged.submit(user="ann", priority=3)
    sid = created["submission_id"]
    view = judged.show(sid)
    assert (view["state"], view["status"], view["verdict"]) == ("pending", -1, "PENDING")
    assert (view["user"], view["priority"], view["tasks"], view["score"]) == ("ann", 3, [], 0)
    runner = judged.register(name="beta")
    job = judged.pull(runner)
    view = judged.show(sid)
    assert (view["state"], view["runner"], view["attempts"]) == ("judging", runner.runner_id, 1)
    path = f"/submissions/{sid}/output/0/0"
    assert judged.http.get(path, headers=judged.admin).status_code == 404
    report = make_report()
    report["tasks"][0][1] = make_case(status=3, execTime=1000, memoryUsage=5000, stdout="slow")
    judged.complete(runner, job["job_id"], report)
    view = judged.show(sid)
    assert (view["state"], view["status"], view["verdict"], view["score"]) == ("done", 3, "TLE", 40)
    assert [(t["status"], t["score"], t["execTime"]) for t in view["tasks"]] == [
        (3, 0, 1000),
        (0, 40, 7),
    ]
    assert (view["runner_name"], view["job_id"]) == ("beta", created["job_id"])
    assert "stdout" not in view["tasks"][0]["cases"][0]
    outputs = [(0, 1, 200), (1, 0, 200), (1, 1, 404), (2, 0, 404)]
    for task, case, status in outputs:
        path = f"/submissions/{sid}/output/{task}/{case}"
        assert judged.http.get(path, headers=judged.admin).status_code == status
    output = judged.http.get(f"/submissions/{sid}/output/0/1", headers=judged.admin)
    assert output.json == {"stdout": "slow", "stderr": ""}


def test_rejudge_uses_the_newest_test_data(judged: Site) -> None:
    """A rejudge makes a new job on the current version; the old result is gone at once."""
    sid = land(judged, status=1)
    assert judged.show(sid)["verdict"] == "WA"
    newer = make_package(((100, 1),))
    assert judged.put_problem(package=newer).status_code == 200
    reply = judged.http.post(f"/submissions/{sid}/rejudge", headers=judged.admin)
    assert reply.status_code == 202
    view = judged.show(sid)
    assert (view["state"], view["job_id"]) == ("pending", reply.json["job_id"])
    runner = judged.register()
    job = judged.pull(runner)
    assert (job["job_id"], len(job["tasks"])) == (reply.json["job_id"], 1)
    judged.complete(runner, job["job_id"], make_report(((100, 1),)))
    assert (judged.show(sid)["verdict"], judged.show(sid)["score"]) == ("AC", 100)


def test_a_job_is_judged_by_the_version_it_was_made_for(judged: Site) -> None:
    """New test data in the middle of judging does not change the shape a report must have."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    judged.put_problem(package=make_package(((100, 1),)))
    path = f"/problem/p1/testdata?checksum={job['testdata_checksum']}"
    assert judged.http.get(path, headers=runner.headers).data == make_package()
    assert judged.complete(runner, job["job_id"], make_report()).status_code == 204


def test_cancel(judged: Site) -> None:
    """202 while it has not landed, also twice; 409 afterwards; a cancelled one can be rejudged."""
    sid = judged.submit()["submission_id"]
    path = f"/submissions/{sid}"
    for _ in range(2):
        assert judged.http.delete(path, headers=judged.admin).status_code == 202
    assert judged.show(sid)["state"] == "cancelled"
    assert judged.parts.queue.depth() == 0
    assert judged.http.post(f"{path}/rejudge", headers=judged.admin).status_code == 202
    runner = judged.register()
    judged.complete(runner, judged.pull(runner)["job_id"], make_report())
    reply = judged.http.delete(path, headers=judged.admin)
    assert (reply.status_code, reply.json["code"]) == (409, "conflict")


def test_the_results_feed(judged: Site) -> None:
    """In order of landing; whoever remembers the cursor misses none and sees none twice."""
    landed = [land(judged, status=status) for status in (0, 1, 0)]
    page = judged.http.get("/results", headers=judged.admin).json
    assert [entry["submission_id"] for entry in page["results"]] == landed
    assert [entry["verdict"] for entry in page["results"]] == ["AC", "WA", "AC"]
    assert [entry["score"] for entry in page["results"]] == [100, 0, 100]
    after = page["results"][0]["cursor"]
    rest = judged.http.get(f"/results?after={after}", headers=judged.admin).json
    assert [entry["submission_id"] for entry in rest["results"]] == landed[1:]
    assert rest["next"] == page["next"]
    none = judged.http.get(f"/results?after={page['next']}", headers=judged.admin).json
    assert none == {"results": [], "next": page["next"]}


@pytest.mark.parametrize("after", ["x", "-1", "1-", "9" * 20, "9" * 30, "٣", "0\n", "$", "("])
def test_bad_cursors(judged: Site, after: str) -> None:
    """A cursor Redis could not take is 400, not an outage."""
    land(judged)
    reply = judged.http.get("/results", query_string={"after": after}, headers=judged.admin)
    assert (reply.status_code, reply.json["code"]) == (400, "bad_request")
    assert [fault["field"] for fault in reply.json["errors"]] == ["after"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rate_limit": {"limit": -1}}, "rate_limit.limit"),
        ({"rate_limit": {"window_sec": 0}}, "rate_limit.window_sec"),
        ({"judges": []}, "judges"),
    ],
)
def test_bad_config(site: Site, body: dict[str, Any], field: str) -> None:
    """Nothing but the rate limit lives there; a refused one changes nothing."""
    reply = site.http.put("/config", json=body, headers=site.admin)
    assert reply.status_code == 400
    assert [fault["field"] for fault in reply.json["errors"]] == [field]
    unchanged = site.http.get("/config", headers=site.admin).json
    assert unchanged == {"rate_limit": {"limit": 0, "window_sec": 60}}


def test_the_queue_view(judged: Site) -> None:
    """Depth per language and priority, leases with attempt k of n, last landed."""
    sid = land(judged)
    held = judged.submit(language=1)
    runner = judged.register(name="beta")
    judged.pull(runner)
    judged.submit(priority=9)
    judged.submit()
    queue = judged.http.get("/queue", headers=judged.admin).json
    assert queue["depth"] == 2
    assert {(line["language"], line["priority"], line["depth"]) for line in queue["pending"]} == {
        (0, 9, 1),
        (0, 0, 1),
    }
    (lease,) = queue["leases"]
    assert (lease["job_id"], lease["runner_name"]) == (held["job_id"], "beta")
    assert (lease["attempts"], lease["max_attempts"]) == (1, 3)
    assert 0 < lease["time_left_s"] <= 30
    assert [entry["submission_id"] for entry in queue["landed"]] == [sid]


def test_a_result_whose_detail_is_gone(judged: Site) -> None:
    """A lost result file costs the detail, not the verdict."""
    sid = land(judged)
    for blob in (judged.parts.blobs.root / "results").rglob("jb_*"):
        blob.unlink()
    view = judged.show(sid)
    assert (view["verdict"], view["score"], view["tasks"]) == ("AC", 100, [])


def test_retention(tmp_path: Path) -> None:
    """What has landed expires with the retention; what has not never does."""
    site = make_site(tmp_path / "data", retention_s=600)
    site.put_problem()
    sid = land(site)
    waiting = site.submit()["submission_id"]
    redis = site.parts.redis
    ttls = {name: redis.ttl(f"{{noj}}:submission:{name}") for name in (sid, waiting)}
    assert 0 < ttls[sid] <= 600
    assert ttls[waiting] == -1
