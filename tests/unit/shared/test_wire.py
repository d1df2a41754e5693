"""The wire models: the shapes that runners in the field speak, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from noj_shared import ids
from noj_shared.verdict import Verdict, task_score, worst
from noj_shared.wire import (
    AbortJobBody,
    CaseResult,
    CompleteJobBody,
    CreateSubmissionBody,
    HeartbeatBody,
    HeartbeatReply,
    RegisterRunnerBody,
)

CASE = {
    "status": 0,
    "exitCode": 0,
    "execTime": 3,
    "memoryUsage": 900,
    "stdout": "",
    "stderr": "",
}


def fields_at_fault(model: type[Any], body: object) -> set[str]:
    """The dotted places a model complains about."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return {".".join(map(str, item["loc"])) for item in caught.value.errors()}


def test_bare_bodies_are_enough() -> None:
    """A runner that knows none of the optional fields is understood."""
    RegisterRunnerBody.model_validate({"registration_token": "t", "name": "judge-1"})
    HeartbeatBody.model_validate({"active_job_ids": [ids.new_job_id()]})
    CompleteJobBody.model_validate({"tasks": [[CASE]]})
    AbortJobBody.model_validate({"reason": "drain"})


def test_fractions_of_a_millisecond_are_rounded() -> None:
    """Runners that measure in floats are understood; nonsense numbers are not."""
    assert CaseResult.model_validate({**CASE, "execTime": 1.6}).execTime == 2
    for bad in (float("nan"), float("inf"), -1, 10**400, "x", None):
        assert fields_at_fault(CaseResult, {**CASE, "execTime": bad}) == {"execTime"}


def test_lone_surrogates_are_refused_with_the_field() -> None:
    """JSON may spell half a character; it is refused where it stands, not in storage."""
    case = json.loads('{"stdout": "\\ud800"}')
    assert fields_at_fault(CompleteJobBody, {"tasks": [[{**CASE, **case}]]}) >= {"tasks.0.0.stdout"}


@pytest.mark.parametrize(
    ("change", "field"),
    [({"status": 8}, "status"), ({"status": -1}, "status"), ({"extra": 1}, "extra")],
)
def test_wrong_cases_name_the_field(change: dict[str, object], field: str) -> None:
    """An unknown status, a pending one and an unknown field are refused."""
    assert fields_at_fault(CaseResult, {**CASE, **change}) == {field}


def test_unknown_reply_fields_are_ignored() -> None:
    """An older agent reads a newer server's answer."""
    assert HeartbeatReply.model_validate({"news": 1, "paused": True}).paused


def test_numbers_are_taken_as_problem_ids() -> None:
    """Backends that count their problems may send the number."""
    body = {"problem_id": 7, "language": 0, "source": "x"}
    assert CreateSubmissionBody.model_validate(body).problem_id == "7"
    assert fields_at_fault(CreateSubmissionBody, {**body, "language": 3}) == {"language"}
    assert fields_at_fault(CreateSubmissionBody, {**body, "problem_id": "a/b"}) == {"problem_id"}


def test_made_ids_match_their_patterns() -> None:
    """What we mint, we accept; a trailing newline or a slash we do not."""
    assert ids.is_job_id(ids.new_job_id())
    assert ids.is_runner_id(ids.new_runner_id())
    assert ids.is_submission_id(ids.new_submission_id())
    assert ids.is_request_id(ids.new_request_id())
    for bad in ("", "jb_", ids.new_job_id() + "\n", "../x", ids.new_job_id().lower()):
        assert not ids.is_job_id(bad)
    for bad in ("a/b", "a b", "é", "a" * 65, "x\n", "-x"):
        assert not ids.is_submission_id(bad)
        assert not ids.is_problem_id(bad)


def test_inv8_secrets_are_kept_as_digests() -> None:
    """INV8: a digest is 64 hex digits, equal for equal secrets only, and hides the secret."""
    token = ids.new_runner_token()
    assert token not in ids.digest(token)
    assert ids.same_digest(ids.digest(token), ids.digest(token))
    assert not ids.same_digest(ids.digest(token), ids.digest(token + "x"))


def test_worst_and_score() -> None:
    """The largest number wins; a task scores only if all its cases are AC."""
    assert worst([Verdict.AC, Verdict.TLE, Verdict.WA]) is Verdict.TLE
    assert task_score([Verdict.AC, Verdict.AC], 40) == 40
    assert task_score([Verdict.AC, Verdict.WA], 40) == 0
