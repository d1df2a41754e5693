"""Identifiers and secrets: how they are made, what they look like, how they are checked.

Ids of ours are a prefix and a ULID (sortable by the time they were made, 26 characters of
Crockford's base 32). A backend may bring its own submission and problem ids. Every id that
comes from outside is checked against its pattern before it is used as part of a key or path.
Must not do I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Annotated

from pydantic import StringConstraints
from ulid import ULID

_ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_JOB = rf"^jb_{_ULID}$"
_RUNNER = rf"^rn_{_ULID}$"
_OUTSIDE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_LEASE = r"^[A-Za-z0-9_-]{1,64}$"
_DIGEST = r"^[0-9a-f]{64}$"

JobId = Annotated[str, StringConstraints(pattern=_JOB)]
RunnerId = Annotated[str, StringConstraints(pattern=_RUNNER)]
SubmissionId = Annotated[str, StringConstraints(pattern=_OUTSIDE)]
ProblemId = Annotated[str, StringConstraints(pattern=_OUTSIDE)]
LeaseId = Annotated[str, StringConstraints(pattern=_LEASE)]
Sha256Hex = Annotated[str, StringConstraints(pattern=_DIGEST)]


def new_job_id() -> str:
    """A fresh `jb_…` id."""
    return f"jb_{ULID()}"


def new_runner_id() -> str:
    """A fresh `rn_…` id."""
    return f"rn_{ULID()}"


def new_submission_id() -> str:
    """A fresh `sn_…` id, for a backend that brings none of its own."""
    return f"sn_{ULID()}"


def new_request_id() -> str:
    """A bare ULID, for `Idempotency-Key` and request ids."""
    return str(ULID())


def new_lease_id() -> str:
    """A random lease id: the fencing token of one claim, never a counter (128 bits)."""
    return secrets.token_urlsafe(16)


def new_runner_token() -> str:
    """A runner's secret, `rk_…` (256 bits)."""
    return f"rk_{secrets.token_urlsafe(32)}"


def new_api_key() -> str:
    """A backend's or operator's secret, `ak_…` (256 bits)."""
    return f"ak_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """SHA-256 of a secret in hex: the only form in which a secret is stored (INV8).

    Our secrets carry 256 random bits, so a slow password hash would add nothing.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def same_digest(a: str, b: str) -> bool:
    """Compare two digests in constant time (INV8)."""
    return hmac.compare_digest(a.encode(), b.encode())


def _matches(pattern: str, value: str) -> bool:
    # fullmatch: `$` alone would let a trailing newline pass.
    return re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value) is not None


def is_job_id(value: str) -> bool:
    """Whether `value` has the form of a job id."""
    return _matches(_JOB, value)


def is_runner_id(value: str) -> bool:
    """Whether `value` has the form of a runner id."""
    return _matches(_RUNNER, value)


def is_submission_id(value: str) -> bool:
    """Whether `value` may be a submission id: ours, or the backend's own."""
    return _matches(_OUTSIDE, value)


def is_problem_id(value: str) -> bool:
    """Whether `value` may be a problem id (the backend's own)."""
    return _matches(_OUTSIDE, value)


def is_request_id(value: str) -> bool:
    """Whether `value` is a bare ULID, as `Idempotency-Key` must be."""
    return _matches(f"^{_ULID}$", value)
