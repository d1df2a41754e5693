"""The runner side of the wire, call by call, on the embedded Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from noj_http import SHAPE, make_case, make_report

from noj_server import keys
from noj_server.job_queue import JobQueue, Landing
from noj_shared.ids import new_job_id, new_request_id
from tests.unit.server.conftest import make_site

if TYPE_CHECKING:
    from tests.unit.server.conftest import Runner, Site

REPRESENTATION = {"Prefer": "return=representation"}


def beat(site: Site, runner: Runner, *jobs: str, **extra: Any) -> dict[str, Any]:
    """A heartbeat's representation."""
    reply = site.http.post(
        f"{runner.path}/heartbeat",
        json={"active_job_ids": jobs, **extra},
        headers={**runner.headers, **REPRESENTATION},
    )
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json
    return body


def abort(site: Site, runner: Runner, job_id: str, **body: Any) -> tuple[int, str]:
    """Give a job back; status, and the outcome or error code."""
    path = f"{runner.path}/jobs/{job_id}/abort"
    reply = site.http.put(path, json=body, headers=runner.headers)
    return reply.status_code, reply.json.get("outcome") or reply.json["code"]


def expire(site: Site, job_id: str) -> None:
    """Let a lease run out, and the sweeper see it."""
    site.parts.redis.zadd(keys.LEASED, {job_id: 1}, xx=True)
    site.parts.redis.set(keys.TICK, site.parts.queue.now_ms() - 1000)
    assert site.parts.queue.sweep().ticked


def test_registration_tells_the_settings(tmp_path: Path) -> None:
    """The config is what the server was set to; whole seconds stay whole."""
    site = make_site(
        tmp_path / "data", lease_ttl_s=12.5, heartbeat_interval_s=4, max_concurrent_jobs=3
    )
    reply = site.http.post(
        "/runners/register",
        json={"registration_token": "the registration token", "name": "n", "protocol": 99},
    )
    assert '"heartbeat_interval_sec":4,' in reply.text
    assert reply.json["config"] == {
        "heartbeat_interval_sec": 4,
        "poll_interval_sec": 3,
        "max_concurrent_jobs": 3,
        "lease_ttl_sec": 12.5,
    }


def test_heartbeats(judged: Site) -> None:
    """204 without a preference; with it what to drop, the pause and the config."""
    runner = judged.register()
    plain = judged.http.post(
        f"{runner.path}/heartbeat", json={"active_job_ids": []}, headers=runner.headers
    )
    assert (plain.status_code, plain.data) == (204, b"")
    cancelled, lost = judged.submit(), judged.submit()
    assert [judged.pull(runner)["job_id"] for _ in range(2)] == [
        cancelled["job_id"],
        lost["job_id"],
    ]
    judged.http.delete(f"/submissions/{cancelled['submission_id']}", headers=judged.admin)
    expire(judged, lost["job_id"])
    assert judged.pull(judged.register())["job_id"] == lost["job_id"]
    judged.http.post(f"{runner.path}/pause", headers=judged.admin)
    reply = beat(judged, runner, cancelled["job_id"], lost["job_id"])
    assert (reply["cancel"], reply["lost"]) == ([cancelled["job_id"]], [lost["job_id"]])
    assert reply["paused"] is True
    assert reply["config"]["lease_ttl_sec"] == 30
    assert beat(judged, runner, new_job_id())["lost"] != []


def test_a_heartbeat_renews_leases(judged: Site) -> None:
    """INV2: a listed job's deadline moves; one under an old lease does not."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    redis = judged.parts.redis
    redis.zadd(keys.LEASED, {job["job_id"]: 1})
    assert beat(judged, runner, job["job_id"], leases={job["job_id"]: "old"})["lost"]
    assert redis.zscore(keys.LEASED, job["job_id"]) == 1
    assert not beat(judged, runner, job["job_id"], leases={job["job_id"]: job["lease"]})["lost"]
    assert (redis.zscore(keys.LEASED, job["job_id"]) or 0) > judged.parts.queue.now_ms()


def test_no_job(judged: Site) -> None:
    """An empty queue is 204 at once, without a preference and with a wait of nothing."""
    runner = judged.register()
    for prefer in (None, "wait=0", "wait=soon", "wait", "respond-async"):
        headers = {**runner.headers, **({"Prefer": prefer} if prefer else {})}
        reply = judged.http.get(f"{runner.path}/next-job", headers=headers)
        assert (reply.status_code, reply.data) == (204, b"")


def test_next_job_again_with_the_same_key(judged: Site) -> None:
    """A repeat whose reply was lost gets the same job under the same lease, not a second one."""
    judged.submit()
    judged.submit()
    runner = judged.register()
    headers = {**runner.headers, "Idempotency-Key": new_request_id()}
    first, second = (
        judged.http.get(f"{runner.path}/next-job", headers=headers).json for _ in range(2)
    )
    first.pop("code_url")
    second.pop("code_url")
    assert first == second
    assert judged.parts.queue.depth() == 1


@pytest.mark.parametrize("key", ["", "x", "0" * 27, "rn_01ARZ3NDEKTSV4RRFFQ69G5FAV"])
def test_bad_idempotency_keys(judged: Site, key: str) -> None:
    """A key that is no ULID is 400; nothing is leased."""
    judged.submit()
    runner = judged.register()
    reply = judged.http.get(
        f"{runner.path}/next-job", headers={**runner.headers, "Idempotency-Key": key}
    )
    assert (reply.status_code, reply.json["code"]) == (400, "bad_request")
    assert judged.parts.queue.depth() == 1


def test_languages_are_matched(judged: Site) -> None:
    """A runner gets only what it can judge; one that names no languages gets all."""
    judged.submit(language=2)
    only_c = judged.register(languages=[{"language": 0, "version": "gcc 12"}])
    path = f"{only_c.path}/next-job"
    assert judged.http.get(path, headers=only_c.headers).status_code == 204
    assert judged.pull(judged.register())["language"] == 2


def test_a_paused_runner_gets_nothing(judged: Site) -> None:
    """Pause stops new jobs, resume brings them back. It is sent home, not parked."""
    judged.submit()
    runner = judged.register()
    headers = {**runner.headers, "Prefer": "wait=20"}
    for action, status in (("pause", 204), ("resume", 200)):
        done = judged.http.post(f"{runner.path}/{action}", headers=judged.admin)
        assert done.status_code == 204
        reply = judged.http.get(f"{runner.path}/next-job", headers=headers)
        assert (reply.status_code, reply.headers.get("Retry-After")) == (
            status,
            "3" if status == 204 else None,
        )


def test_a_look_at_the_headers_leases_nothing(judged: Site) -> None:
    """HEAD would be a GET whose job nobody sees."""
    judged.submit()
    runner = judged.register()
    reply = judged.http.open(f"{runner.path}/next-job", method="HEAD", headers=runner.headers)
    assert reply.status_code == 405
    assert judged.parts.queue.depth() == 1


def test_revoked_while_its_poll_was_parked_elsewhere(
    judged: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim script knows; the runner is told to register again."""
    runner = judged.register()
    registry = judged.parts.registry
    known = registry.get(runner.runner_id)
    monkeypatch.setattr(type(registry), "verify_token", lambda *_: True)
    monkeypatch.setattr(type(registry), "get", lambda *_: known)
    registry.sign_off(runner.runner_id)
    reply = judged.http.get(f"{runner.path}/next-job", headers=runner.headers)
    assert (reply.status_code, reply.json["code"]) == (401, "unauthorized")


def test_a_runner_holds_no_more_than_the_cap(tmp_path: Path) -> None:
    """max_concurrent_jobs bounds what one runner can take from the others."""
    site = make_site(tmp_path / "data", max_concurrent_jobs=2)
    site.put_problem()
    for _ in range(3):
        site.submit()
    greedy = site.register()
    for _ in range(2):
        site.pull(greedy)
    headers = {**greedy.headers, "Prefer": "wait=20"}
    reply = site.http.get(f"{greedy.path}/next-job", headers=headers)
    assert (reply.status_code, reply.headers["Retry-After"]) == (204, "3")
    assert site.pull(site.register())


def test_complete_lands_once(judged: Site) -> None:
    """INV3: 204 landed, 204 for a repeat, 409 for another runner, one entry in the feed."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    report = {**make_report(), "lease": job["lease"]}
    for _ in range(2):
        reply = judged.complete(runner, job["job_id"], report)
        assert (reply.status_code, reply.data) == (204, b"")
    other = judged.complete(judged.register(), job["job_id"], make_report())
    assert (other.status_code, other.json["code"]) == (409, "lease_lost")
    assert len(judged.http.get("/results", headers=judged.admin).json["results"]) == 1
    assert judged.show(created["submission_id"])["verdict"] == "AC"


def test_complete_under_an_old_lease(judged: Site) -> None:
    """INV3: a report under a lease that is not the present one is 409 and changes nothing."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    late = judged.complete(runner, job["job_id"], {**make_report(), "lease": "another"})
    assert late.status_code == 409
    assert judged.show(created["submission_id"])["state"] == "judging"
    assert not list((judged.parts.blobs.root / "results").rglob("jb_*"))


def test_complete_after_the_deadline(judged: Site) -> None:
    """INV3: late is fine as long as nobody reclaimed; afterwards it is 409."""
    first, second = judged.submit(), judged.submit()
    slow = judged.register()
    jobs = [judged.pull(slow) for _ in range(2)]
    expire(judged, first["job_id"])
    assert judged.complete(slow, first["job_id"], make_report()).status_code == 204
    expire(judged, second["job_id"])
    reclaimed = judged.pull(judged.register())
    assert reclaimed["job_id"] == jobs[1]["job_id"]
    assert reclaimed["attempts"] == 2
    assert judged.complete(slow, second["job_id"], make_report()).status_code == 409


def test_complete_of_a_superseded_job(judged: Site) -> None:
    """INV4: 204, and the old result changes nothing."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    path = f"/submissions/{created['submission_id']}/rejudge"
    assert judged.http.post(path, headers=judged.admin).status_code == 202
    assert judged.complete(runner, job["job_id"], make_report(status=1)).status_code == 204
    assert judged.show(created["submission_id"])["state"] == "pending"
    assert abort(judged, runner, job["job_id"], reason="drain") == (202, "stale")


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (SHAPE[:1], {"tasks"}),
        ((*SHAPE, (0, 1)), {"tasks"}),
        (((60, 1), (40, 1)), {"tasks.0"}),
        (((60, 3), (40, 2)), {"tasks.0", "tasks.1"}),
    ],
)
def test_a_report_of_another_shape(
    judged: Site, shape: tuple[tuple[int, int], ...], fields: set[str]
) -> None:
    """400 that says which task has how many cases; the lease stays."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    reply = judged.complete(runner, job["job_id"], make_report(shape))
    assert (reply.status_code, reply.json["code"]) == (400, "shape_mismatch")
    assert {fault["field"] for fault in reply.json["errors"]} == fields
    assert judged.complete(runner, job["job_id"], make_report()).status_code == 204


def test_a_repeated_landing_keeps_its_detail(judged: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV1: redis-py repeats a command whose reply was lost; the landed result stays readable."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    once = JobQueue.complete_job

    def twice(self: JobQueue, *args: Any) -> Landing:
        once(self, *args)
        return once(self, *args)

    monkeypatch.setattr(JobQueue, "complete_job", twice)
    assert judged.complete(runner, job["job_id"], make_report()).status_code == 204
    path = f"/submissions/{created['submission_id']}/output/0/0"
    assert judged.http.get(path, headers=judged.admin).json == {"stdout": "3\n", "stderr": ""}


def test_aborts(judged: Site) -> None:
    """202 requeued until the attempts are used up, then 202 judge_error; drain is free (INV5)."""
    created = judged.submit()
    job_id = created["job_id"]
    runner = judged.register()
    for reason, outcome in (
        ("drain", "requeued"),
        ("prep_failed", "requeued"),
        ("drain", "requeued"),
        ("rejected", "requeued"),
        ("prep_failed", "judge_error"),
    ):
        job = judged.pull(runner)
        body = {"reason": reason, "lease": job["lease"], "detail": "why\nso"}
        assert abort(judged, runner, job_id, **body) == (202, outcome)
        assert abort(judged, runner, job_id, **body) == (202, outcome)
    view = judged.show(created["submission_id"])
    assert (view["state"], view["verdict"], view["score"]) == ("done", "JE", 0)
    assert [item["reason"] for item in view["history"]] == [
        *("drain", "prep_failed", "drain", "rejected", "prep_failed")
    ]
    assert {item["detail"] for item in view["history"]} == {"why so"}
    assert {item["runner_name"] for item in view["history"]} == {"alpha"}


def test_abort_of_what_is_not_yours(judged: Site) -> None:
    """409 for another runner and for another lease; 400 for an unknown reason."""
    job_id = judged.submit()["job_id"]
    runner = judged.register()
    judged.pull(runner)
    assert abort(judged, judged.register(), job_id, reason="drain") == (409, "lease_lost")
    assert abort(judged, runner, job_id, reason="drain", lease="old") == (409, "lease_lost")
    assert abort(judged, runner, job_id, reason="bored") == (400, "invalid_body")


def test_sign_off_leaves_the_job_to_its_lease(judged: Site) -> None:
    """INV2: a runner that signs off loses its identity at once; its job waits for the deadline."""
    job_id = judged.submit()["job_id"]
    runner = judged.register()
    judged.pull(runner)
    assert judged.http.delete(runner.path, headers=runner.headers).status_code == 204
    assert judged.complete(runner, job_id, make_report()).status_code == 401
    other = judged.register()
    path = f"{other.path}/next-job"
    assert judged.http.get(path, headers=other.headers).status_code == 204
    expire(judged, job_id)
    assert judged.pull(other)["job_id"] == job_id


def test_outputs_are_cut(judged: Site) -> None:
    """A runner of another make may send more than the cap; the rest is dropped."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    report = make_report()
    report["tasks"][0][1] = make_case(stdout="x" * 200_000, stderr="a" + "é" * 70_000)
    report["compile"] = {"status": 0, "output": "w" * 200_000}
    judged.complete(runner, job["job_id"], report)
    path = f"/submissions/{created['submission_id']}/output/0/1"
    output = judged.http.get(path, headers=judged.admin).json
    assert output["stdout"] == "x" * 65536
    assert output["stderr"] == "a" + "é" * 32767
    assert judged.show(created["submission_id"])["compile"]["output"] == "w" * 65536


def test_fractions_and_extras_in_a_report(judged: Site) -> None:
    """Fractions of ms are rounded; optional fields come back in the view."""
    created = judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    report = make_report()
    report["tasks"][0][0] = make_case(
        status=5, exitCode=-1, execTime=12.6, memoryUsage=1024.2, signal=11, detail="SIGSEGV"
    )
    report["compile"] = {"status": 0, "output": "warning: x"}
    assert judged.complete(runner, job["job_id"], report).status_code == 204
    view = judged.show(created["submission_id"])
    case = view["tasks"][0]["cases"][0]
    assert (case["execTime"], case["memoryUsage"], case["signal"]) == (13, 1024, 11)
    assert (view["verdict"], view["score"]) == ("RE", 40)
    assert view["compile"]["output"] == "warning: x"


def test_what_an_operator_sees_of_a_runner(judged: Site) -> None:
    """States follow what the runner says and does: online, busy, draining, sick, paused, lost."""
    runner = judged.register(
        version="1.2", slots=4, languages=[{"language": 0, "version": "gcc"}], tags=["ssd"]
    )

    def seen() -> dict[str, Any]:
        (view,) = judged.http.get("/runners", headers=judged.admin).json["runners"]
        found: dict[str, Any] = view
        return found

    first = seen()
    assert (first["state"], first["version"], first["slots"]) == ("online", "1.2", 4)
    assert (first["languages"], first["tags"]) == ([{"language": 0, "version": "gcc"}], ["ssd"])
    job_id = judged.submit()["job_id"]
    judged.pull(runner)
    assert (seen()["state"], seen()["jobs"]) == ("busy", [job_id])
    judged.http.post(f"{runner.path}/pause", headers=judged.admin)
    assert seen()["state"] == "paused"
    beat(judged, runner, state="draining", busy_slots=1, load=0.25, disk_free_bytes=5, outbox=2)
    view = seen()
    assert (view["state"], view["busy_slots"], view["load"]) == ("draining", 1, 0.25)
    assert (view["disk_free_bytes"], view["outbox"]) == (5, 2)
    beat(judged, runner, state="sick", reason="no cgroups")
    assert (seen()["state"], seen()["reason"]) == ("sick", "no cgroups")
    beat(judged, runner, state="ready")
    assert seen()["reason"] is None
    judged.parts.redis.delete(keys.runner(runner.runner_id, "alive"))
    assert seen()["state"] == "lost"


def test_tokens_are_nowhere(judged: Site, caplog: pytest.LogCaptureFixture) -> None:
    """INV8: no log line and no view holds a runner's token."""
    caplog.set_level("DEBUG")
    runner = judged.register()
    judged.submit()
    judged.pull(runner)
    for path in ("/runners", "/queue", "/keys"):
        reply = judged.http.get(path, headers=judged.admin)
        assert runner.token not in reply.text
        assert json.loads(reply.text)
    assert runner.token not in caplog.text
