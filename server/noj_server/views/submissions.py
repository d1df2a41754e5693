"""Submissions: the backend hands them in and asks what came of them."""

from __future__ import annotations

from flask import Blueprint, Response, request

from noj_server.auth import checked_id, require_role
from noj_server.errors import ApiError, json_body, not_found, parse
from noj_server.job_queue import Cancel, SubmissionRecord
from noj_server.replies import empty, model
from noj_server.services import services
from noj_shared.ids import is_submission_id
from noj_shared.package import CODE_LIMITS
from noj_shared.problem import ErrorCode, FieldFault
from noj_shared.wire import (
    ApiKeyRole,
    CreateSubmissionBody,
    CreateSubmissionForm,
    SubmissionCreated,
)

blueprint = Blueprint("submissions", __name__)

CODE_UPLOAD_BYTES = 2 * CODE_LIMITS.total_bytes


def _found(submission_id: str) -> SubmissionRecord:
    checked_id(submission_id, is_submission_id, "submission")
    record = services().queue.submission(submission_id)
    if record is None:
        raise not_found("submission")
    return record


@blueprint.post("/submissions")
@require_role(ApiKeyRole.BACKEND)
def create() -> Response:
    """Take a submission: 202, also when it was taken before; 429 over the user's limit."""
    form, code = _from_multipart() if _is_multipart() else _from_json()
    if form.submission_id is not None:
        known = services().queue.submission(form.submission_id)
        if known is not None:
            return model(_created(form.submission_id, known.job_id), 202)
    checked = services().submissions.check(form, code)
    # Only what can be judged counts: a forgotten main.c shall not cost a student the next try.
    retry_after_s = services().config.admit(form.user) if form.user else 0
    if retry_after_s:
        raise ApiError(
            429,
            ErrorCode.RATE_LIMITED,
            f"too many submissions of this user; try again in {retry_after_s} s",
            headers={"Retry-After": str(retry_after_s)},
        )
    submission_id, enqueued = services().submissions.create(checked)
    return model(_created(submission_id, enqueued.job_id), 202)


def _created(submission_id: str, job_id: str) -> SubmissionCreated:
    return SubmissionCreated(submission_id=submission_id, job_id=job_id)


def _is_multipart() -> bool:
    return request.mimetype == "multipart/form-data"


def _from_json() -> tuple[CreateSubmissionForm, bytes]:
    body = parse(CreateSubmissionBody, json_body(CODE_UPLOAD_BYTES))
    return body, body.source.encode()


def _from_multipart() -> tuple[CreateSubmissionForm, bytes]:
    request.max_content_length = CODE_UPLOAD_BYTES
    fields = request.form.to_dict()
    source = fields.pop("code", None)  # a part without a file name is a field
    form = parse(CreateSubmissionForm, fields)
    upload = request.files.get("code")
    if upload is None and source is not None:
        return form, source.encode()
    if upload is None:
        raise ApiError(
            400,
            ErrorCode.INVALID_BODY,
            "the form has no file `code`",
            errors=[FieldFault(field="code", message="missing: a zip or the bare source file")],
        )
    return form, upload.stream.read()


@blueprint.get("/submissions/<submission_id>")
@require_role(ApiKeyRole.BACKEND)
def show(submission_id: str) -> Response:
    """Where it stands, and its result once it has landed."""
    return model(services().submissions.view(_found(submission_id)))


@blueprint.get("/submissions/<submission_id>/output/<int:task>/<int:case>")
@require_role(ApiKeyRole.BACKEND)
def output(submission_id: str, task: int, case: int) -> Response:
    """What the program printed in one case (zero-based numbers)."""
    found = services().submissions.output(_found(submission_id), task, case)
    if found is None:
        raise not_found("output: it has not landed yet, or has no such task and case")
    return model(found)


@blueprint.get("/submissions/<submission_id>/code")
def code(submission_id: str) -> Response:
    """The code zip, for the bearer of a signed token only."""
    checked_id(submission_id, is_submission_id, "submission")
    services().code_urls.check(submission_id, request.args.get("token", ""))
    record = _found(submission_id)
    try:
        content = services().submissions.code(record)
    except FileNotFoundError as error:
        raise not_found("source code: the data directory has lost it") from error
    return Response(content, content_type="application/zip")


@blueprint.post("/submissions/<submission_id>/rejudge")
@require_role(ApiKeyRole.BACKEND)
def rejudge(submission_id: str) -> Response:
    """A new job on the problem's newest version; the old one is superseded at once."""
    job_id = services().submissions.rejudge(_found(submission_id))
    return model(_created(submission_id, job_id), 202)


@blueprint.delete("/submissions/<submission_id>")
@require_role(ApiKeyRole.BACKEND)
def cancel(submission_id: str) -> Response:
    """Cancel what has not landed yet; 409 if it has."""
    _found(submission_id)
    if services().queue.cancel_submission(submission_id) is Cancel.DONE:
        raise ApiError(409, ErrorCode.CONFLICT, "this submission has landed; nothing to cancel")
    return empty(202)
