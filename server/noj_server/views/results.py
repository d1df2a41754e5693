"""The feed of landed results: a backend that remembers its cursor misses none."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from noj_server.auth import require_role
from noj_server.errors import ApiError
from noj_server.job_queue import FeedEntry
from noj_server.replies import model, parked
from noj_server.services import services
from noj_server.submissions import result_entry
from noj_server.waiting import RESULTS_TOPIC
from noj_shared.ids import new_request_id
from noj_shared.problem import ErrorCode, FieldFault
from noj_shared.wire import ApiKeyRole, ResultsPage

blueprint = Blueprint("results", __name__)

PAGE = 100
_CURSOR = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")
"""A stream id; its parts have 64 bits, and Redis refuses more."""


@blueprint.get("/results")
@require_role(ApiKeyRole.BACKEND)
def results() -> Response:
    """What landed after the cursor, oldest first; `Prefer: wait` parks until something does."""
    after = request.args.get("after", "0")
    if not _CURSOR.fullmatch(after):
        fault = FieldFault(field="after", message="not a cursor of this feed; 0 is its beginning")
        raise ApiError(400, ErrorCode.BAD_REQUEST, "bad cursor", errors=[fault])

    def page() -> list[FeedEntry] | None:
        return services().queue.results(after, PAGE) or None

    found = parked(page, topics=[RESULTS_TOPIC], owner=f"results:{new_request_id()}")
    entries = [] if isinstance(found, Response) else found
    reply = ResultsPage(
        results=tuple(result_entry(entry) for entry in entries),
        next=entries[-1].cursor if entries else after,
    )
    response = model(reply)
    if isinstance(found, Response) and "Retry-After" in found.headers:  # no room to park
        response.headers["Retry-After"] = found.headers["Retry-After"]
    return response
