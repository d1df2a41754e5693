"""Every error answer is RFC 9457 `application/problem+json` with a stable code."""

from __future__ import annotations

import errno
import http
import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from pydantic import BaseModel, ValidationError
from redis import RedisError
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from noj_server.problems import UnknownProblemError
from noj_shared.package import PackageError
from noj_shared.problem import CONTENT_TYPE, ErrorCode, FieldFault, ProblemDetails

log = logging.getLogger(__name__)

REDIS_RETRY_AFTER_S = 2
DISK_RETRY_AFTER_S = 10
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
FAULTS_SHOWN = 50
_FIELD_SHOWN = 200
Model = TypeVar("Model", bound=BaseModel)

_BY_STATUS = {
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.TOO_LARGE,
    415: ErrorCode.UNSUPPORTED_MEDIA,
    416: ErrorCode.RANGE_NOT_SATISFIABLE,
}


class ApiError(Exception):
    """Answer this request with an error."""

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        detail: str,
        *,
        errors: Iterable[FieldFault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = list(errors)
        self.headers = dict(headers or {})


def not_found(what: str) -> ApiError:
    """404 that says what is not there."""
    return ApiError(404, ErrorCode.NOT_FOUND, f"no such {what}")


def parse(model: type[Model], data: Any) -> Model:
    """Validate a body; 400 with every wrong field named, the first FAULTS_SHOWN of them."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = _own_faults(error)
        more = f"; {len(faults)} faults, the first {FAULTS_SHOWN} are listed"
        raise ApiError(
            400,
            ErrorCode.INVALID_BODY,
            "the request body is not as it should be" + more * (len(faults) > FAULTS_SHOWN),
            errors=[
                FieldFault(
                    field=(".".join(map(str, item["loc"])) or "body")[:_FIELD_SHOWN],
                    message=item["msg"].removeprefix("Value error, "),
                )
                for item in faults[:FAULTS_SHOWN]
            ],
        ) from error


def _own_faults(error: ValidationError) -> list[Any]:
    """Its items, without those that only follow from others: a list whose items were all refused
    is "too short", too."""
    items = error.errors(include_url=False, include_input=False, include_context=False)
    above = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    return [item for item in items if item["type"] != "too_short" or item["loc"] not in above]


def json_body(limit_bytes: int) -> Any:
    """The request's JSON; 400 when it is none, 413 when it is over the limit."""
    request.max_content_length = limit_bytes
    data = request.get_data(cache=False)
    if request.content_length is None and len(data) >= limit_bytes:
        raise RequestEntityTooLarge  # chunked: what came after the limit was left unread
    try:
        # Flask's parser, without its content-type check: bare clients may not send one.
        return request.json_module.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400,
            ErrorCode.INVALID_BODY,
            "the request body is not JSON",
            errors=[FieldFault(field="body", message=str(error)[:200])],
        ) from error


def respond(error: ApiError) -> Response:
    """The error as a response."""
    body = ProblemDetails(
        title=http.HTTPStatus(error.status).phrase,
        status=error.status,
        code=error.code,
        detail=str(error),
        errors=error.errors,
    )
    response = Response(body.model_dump_json(), status=error.status, content_type=CONTENT_TYPE)
    response.headers.update(error.headers)
    return response


def _package(error: PackageError) -> Response:
    detail = f"the zip breaks {len(error.faults)} rule(s)"
    return respond(ApiError(400, ErrorCode.INVALID_PACKAGE, detail, errors=error.faults))


def _unknown_problem(error: UnknownProblemError) -> Response:
    return respond(not_found(str(error)))


def _redis_away(error: RedisError) -> Response:
    log.warning("Redis is away: %s", error)
    headers = {"Retry-After": str(REDIS_RETRY_AFTER_S)}
    return respond(
        ApiError(
            503, ErrorCode.UNAVAILABLE, "Redis does not serve this now; try again", headers=headers
        )
    )


def _os(error: OSError) -> Response:
    """The data directory's disk is full or broken: whoever asks may ask again later."""
    if error.errno not in _DISK_ERRORS:
        return _unexpected(error)
    log.error("the data directory cannot be written: %s", error)
    detail = "the server's disk takes nothing now; try again"
    headers = {"Retry-After": str(DISK_RETRY_AFTER_S)}
    return respond(ApiError(503, ErrorCode.UNAVAILABLE, detail, headers=headers))


def _cut_off(_error: ClientDisconnected) -> Response:
    detail = "the body ended, or paused, before all of it had come; send it again"
    headers = {"Connection": "close"}
    return respond(ApiError(408, ErrorCode.REQUEST_TIMEOUT, detail, headers=headers))


def _misframed(error: ParseException) -> Response:
    detail = f"the body is not framed as HTTP wants it: {error}"
    headers = {"Connection": "close"}
    return respond(ApiError(400, ErrorCode.BAD_REQUEST, detail, headers=headers))


def _http(error: HTTPException) -> Response:
    if isinstance(error, RequestEntityTooLarge):
        detail = (
            f"the request body is over the limit of {request.max_content_length} bytes,"
            f" or its fields without files over {request.max_form_memory_size}"
        )
    else:
        detail = error.description or ""
    status = error.code or 500
    code = _BY_STATUS.get(status, ErrorCode.BAD_REQUEST)
    # What belongs to the status: Allow of a 405, Content-Range of a 416.
    headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
    return respond(ApiError(status, code, detail, headers=headers))


def _unexpected(error: Exception) -> Response:
    log.exception("unexpected error in %s %s", request.method, request.path, exc_info=error)
    detail = "the server failed; its log says where"
    return respond(ApiError(500, ErrorCode.INTERNAL, detail))


def install(app: Flask) -> None:
    """Translate everything a view may raise."""
    app.register_error_handler(ApiError, respond)
    app.register_error_handler(PackageError, _package)
    app.register_error_handler(UnknownProblemError, _unknown_problem)
    app.register_error_handler(RedisError, _redis_away)
    app.register_error_handler(OSError, _os)
    app.register_error_handler(ClientDisconnected, _cut_off)
    app.register_error_handler(ParseException, _misframed)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)
