"""What can go wrong in the agent, by who is at fault and what to do about it.

    AgentError
    ├── ConfigError      the operator's settings: exit with code 2 and say which setting
    ├── AuthRejected     the server does not know us: register anew
    ├── Unavailable      network, 408, 425, 429, 5xx: retry
    ├── Rejected         any other 4xx: final, never retried
    ├── LeaseLost        the job is not ours any more: drop it
    ├── JobCancelled     superseded or told to stop: drop it or hand it back
    └── SandboxError     this host failed, never the program: abort the job, retried elsewhere

Errors of libraries are translated at the edge, with `raise … from`.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything the agent raises on purpose."""


class ConfigError(AgentError):
    """A setting is missing or wrong; the message names the setting and the fix."""


class AuthRejected(AgentError):
    """The server answered 401."""


class Unavailable(AgentError):
    """The server cannot answer now; `retry_after_s` is its own wish, if it gave one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(AgentError):
    """The server refused this request for good; `code` is the problem code of RFC 9457."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class LeaseLost(AgentError):
    """Another runner holds the job now, or it is gone."""


class JobCancelled(AgentError):
    """The job was superseded, or this agent was told to stop it."""


class SandboxError(AgentError):
    """The sandbox or this host failed; says nothing about the submission."""
