"""Who may call what: runner tokens, API keys with roles, the registration token.

Secrets are compared by digest in constant time and never logged (INV8).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import request

from noj_server.api_keys import unauthorized
from noj_server.errors import ApiError
from noj_server.services import services
from noj_server.settings import ServerSettings
from noj_shared.ids import digest, is_runner_id, same_digest
from noj_shared.problem import ErrorCode
from noj_shared.wire import ApiKeyRole

P = ParamSpec("P")
R = TypeVar("R")


def registration_allowed(settings: ServerSettings, token: str) -> bool:
    """Whether this is the registration token; never, while none is set."""
    wanted = settings.registration_token
    if wanted is None or not wanted.get_secret_value():
        return False
    return same_digest(digest(wanted.get_secret_value()), digest(token))


def bearer() -> str:
    """The request's Bearer token, or ''."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def checked_id(value: str, valid: Callable[[str], bool], what: str) -> str:
    """An id out of a path, checked before it touches Redis or the disk; else 400."""
    if not valid(value):
        raise ApiError(400, ErrorCode.INVALID_ID, f"this is no {what} id")
    return value


def require_runner_token(view: Callable[P, R]) -> Callable[P, R]:
    """The Bearer token must be that of the runner in the path (`runner_id`); else 401."""

    @wraps(view)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        runner_id = checked_id(str(kwargs["runner_id"]), is_runner_id, "runner")
        if not services().registry.verify_token(runner_id, bearer()):
            raise unauthorized("this is not the token of that runner; register again")
        return view(*args, **kwargs)

    return checked


def require_any_runner(view: Callable[P, R]) -> Callable[P, R]:
    """Any registered runner's token, as Bearer or `?token=`; else 401."""

    @wraps(view)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        token = bearer() or request.args.get("token", "")
        if not token or services().registry.verify_any_token(token) is None:
            raise unauthorized("this is not a registered runner's token")
        return view(*args, **kwargs)

    return checked


def require_role(role: ApiKeyRole) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """An API key of that role; an operator's key opens everything a backend's does."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            has = services().api_keys.role_of(bearer()) if bearer() else None
            if has is None:
                raise unauthorized("an API key (ak_…) is needed, as Authorization: Bearer")
            if has is not role and has is not ApiKeyRole.OPERATOR:
                raise ApiError(403, ErrorCode.FORBIDDEN, f"this needs a key of the role {role}")
            return view(*args, **kwargs)

        return checked

    return decorate
