"""A data directory that lost its files while the queue is still there: clear errors, no loops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noj_http import make_report

if TYPE_CHECKING:
    from tests.unit.server.conftest import Site


def lose_files(site: Site, data_dir: Path) -> None:
    """A disk replaced by an empty one."""
    for path in data_dir.rglob("*"):
        if path.is_file():
            path.unlink()
    site.parts.problems._version.cache_clear()


def test_inv5_a_job_of_a_lost_version(judged: Site, tmp_path: Path) -> None:
    """INV5: it blocks no runner and nobody behind it; it lands as JE, and says why."""
    lost = judged.submit()["submission_id"]
    lose_files(judged, tmp_path / "data")
    judged.put_problem("p2")
    other = judged.submit(problem_id="p2")["submission_id"]
    runner = judged.register()
    polls = [
        judged.http.get(f"{runner.path}/next-job", headers=runner.headers).status_code
        for _ in range(3)
    ]
    assert polls == [204, 204, 204]
    view = judged.show(lost)
    assert (view["state"], view["verdict"], view["attempts"]) == ("done", "JE", 3)
    assert "has lost the version of problem: p1" in view["history"][-1]["detail"]
    assert judged.pull(runner)["submission_id"] == other


def test_a_report_of_a_lost_version(judged: Site, tmp_path: Path) -> None:
    """404, final: it cannot be checked any more."""
    judged.submit()
    runner = judged.register()
    job = judged.pull(runner)
    lose_files(judged, tmp_path / "data")
    reply = judged.complete(runner, job["job_id"], make_report())
    assert (reply.status_code, reply.json["code"]) == (404, "not_found")


def test_what_landed_before(judged: Site, tmp_path: Path) -> None:
    """Verdict and score stay; details, code and a rejudge are gone, and say so."""
    submission = judged.submit()["submission_id"]
    runner = judged.register()
    job = judged.pull(runner)
    assert judged.complete(runner, job["job_id"], make_report()).status_code == 204
    lose_files(judged, tmp_path / "data")
    view = judged.show(submission)
    assert (view["state"], view["verdict"], view["score"], view["tasks"]) == ("done", "AC", 100, [])
    code = judged.http.get(job["code_url"])
    assert (code.status_code, "has lost it" in code.json["detail"]) == (404, True)
    again = judged.http.post(f"/submissions/{submission}/rejudge", headers=judged.admin)
    assert (again.status_code, "PUT /problems/p1 first" in again.json["detail"]) == (404, True)
