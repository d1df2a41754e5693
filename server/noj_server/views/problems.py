"""Problems: the backend stores packages, runners fetch test data."""

from __future__ import annotations

from flask import Blueprint, Response, request, send_file

from noj_server.auth import checked_id, require_any_runner, require_role
from noj_server.errors import ApiError, not_found
from noj_server.problems import TESTDATA, ProblemVersion
from noj_server.replies import model
from noj_server.services import services
from noj_shared.ids import is_problem_id
from noj_shared.problem import ErrorCode, FieldFault
from noj_shared.wire import (
    ApiKeyRole,
    ProblemChecksumReply,
    ProblemMetaReply,
    ProblemStored,
)

blueprint = Blueprint("problems", __name__)


@blueprint.put("/problems/<problem_id>")
@require_role(ApiKeyRole.BACKEND)
def store(problem_id: str) -> Response:
    """Store a package: 201 for a new problem, 200 for a new (or the same) version of one."""
    checked_id(problem_id, is_problem_id, "problem")
    upload = request.files.get("testdata")
    if upload is None:
        raise ApiError(
            400,
            ErrorCode.INVALID_BODY,
            "send the package as multipart/form-data",
            errors=[FieldFault(field="testdata", message="missing: the zip with TTCC.in/.out")],
        )
    meta: bytes | None = None
    if "meta" in request.files:
        meta = request.files["meta"].read()
    elif "meta" in request.form:
        meta = request.form["meta"].encode("utf-8", "replace")
    stored, is_new = services().problems.store(problem_id, upload.stream, meta)
    return model(
        ProblemStored(
            problem_id=problem_id,
            checksum=stored.checksum,
            version=stored.version,
            tasks=len(stored.meta.tasks),
            cases=stored.cases,
        ),
        201 if is_new else 200,
    )


def _current(problem_id: str) -> ProblemVersion:
    checked_id(problem_id, is_problem_id, "problem")
    return services().problems.current(problem_id)


@blueprint.get("/problem/<problem_id>/meta")
@require_any_runner
def meta(problem_id: str) -> Response:
    """Tasks and limits of the current version."""
    return model(ProblemMetaReply(data=_current(problem_id).meta))


@blueprint.get("/problem/<problem_id>/checksum")
@require_any_runner
def checksum(problem_id: str) -> Response:
    """SHA-256 of the current test data zip."""
    return model(ProblemChecksumReply(data=_current(problem_id).checksum))


@blueprint.get("/problem/<problem_id>/testdata")
@require_any_runner
def testdata(problem_id: str) -> Response:
    """The zip, with ranges and an ETag. `?checksum=` asks for the version a job names."""
    wanted = request.args.get("checksum")
    current = _current(problem_id)
    digest = current.checksum
    if wanted is not None and wanted != digest:
        if not _is_digest(wanted) or not services().blobs.exists(TESTDATA, wanted):
            raise not_found("version of the test data")
        digest = wanted
    return send_file(
        services().blobs.path(TESTDATA, digest).absolute(),
        mimetype="application/zip",
        etag=digest,
        conditional=True,
    )


def _is_digest(value: str) -> bool:
    return len(value) == 64 and all(char in "0123456789abcdef" for char in value)
