"""Errors on the wire: RFC 9457 `application/problem+json` with a stable `code`."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

CONTENT_TYPE = "application/problem+json"


class ErrorCode(StrEnum):
    """What went wrong, for programs. The numbers are HTTP's; these names never change."""

    INVALID_BODY = "invalid_body"  # 400: not JSON, or a field is wrong; `errors` names it
    INVALID_ID = "invalid_id"  # 400: an id in the path has the wrong form
    INVALID_PACKAGE = "invalid_package"  # 400: a zip breaks the rules; every fault in `errors`
    SHAPE_MISMATCH = "shape_mismatch"  # 400: tasks × cases differ from the job's
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403: the key's role does not allow this
    NOT_FOUND = "not_found"  # 404
    METHOD_NOT_ALLOWED = "method_not_allowed"  # 405
    REQUEST_TIMEOUT = "request_timeout"  # 408: the rest of the body did not come; try again
    LEASE_LOST = "lease_lost"  # 409: the job is not this runner's any more
    CONFLICT = "conflict"  # 409
    GONE = "gone"  # 410: a signed URL has expired
    TOO_LARGE = "too_large"  # 413
    UNSUPPORTED_MEDIA = "unsupported_media"  # 415
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"  # 416
    RATE_LIMITED = "rate_limited"  # 429, with Retry-After
    BAD_REQUEST = "bad_request"  # any other 400
    INTERNAL = "internal"  # 500
    UNAVAILABLE = "unavailable"  # 503: Redis is away or the disk full, with Retry-After


class FieldFault(BaseModel):
    """One thing that is wrong: where (`tasks.0.1.status`, or a file in a zip), and what."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class ProblemDetails(BaseModel):
    """The body of every error answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str | None = None
    errors: list[FieldFault] = []
