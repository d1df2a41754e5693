"""Small things every view needs: models as responses, `Prefer`, and parking a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from flask import Response, request
from pydantic import BaseModel
from werkzeug.http import parse_dict_header

from noj_server.services import services
from noj_server.waiting import ParkingFullError, client_gone

T = TypeVar("T")
FULL_RETRY_AFTER_S = 1


def model(body: BaseModel, status: int = 200) -> Response:
    """A model as JSON."""
    return Response(body.model_dump_json(), status=status, content_type="application/json")


def empty(status: int = 204, **headers: str) -> Response:
    """No content."""
    response = Response(status=status)
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def preferences() -> dict[str, str | None]:
    """The `Prefer` header (RFC 7240) as names and values; a client may send none."""
    return parse_dict_header(request.headers.get("Prefer", ""))


def preferred_wait_s() -> float:
    """`Prefer: wait=N` in seconds; 0 without it or with nonsense."""
    value = preferences().get("wait") or ""
    return float(value) if value.isascii() and value.isdecimal() else 0.0


def parked(attempt: Callable[[], T | None], *, topics: Iterable[str], owner: str) -> T | Response:
    """What `attempt` gives within the preferred wait, or the 204 to answer with."""
    try:
        found = services().parking.wait(
            attempt,
            topics=topics,
            owner=owner,
            wait_s=preferred_wait_s(),
            gone=client_gone(request.environ),
        )
    except ParkingFullError:
        return empty(Retry_After=str(FULL_RETRY_AFTER_S))
    return empty() if found is None else found
