"""Our identity at the server: kept on disk, renewed when the server does not know it any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TypeVar

from noj_agent.api import Identity, ServerApi
from noj_agent.errors import AuthRejected, LeaseLost, Rejected, Unavailable
from noj_agent.retry import Outage, patiently
from noj_agent.settings import ENV_PREFIX, AgentSettings
from noj_agent.state import StateDir, read_json, write_json
from noj_shared.wire import PROTOCOL, LanguageInfo, RegisterRunnerBody, RunnerConfig

log = logging.getLogger(__name__)

T = TypeVar("T")
STRIKES = 2
"""So many 401 in a row mean that the server has forgotten us (its Redis was wiped)."""


class RegistrationRefusedError(AuthRejected):
    """The registration token is wrong: only a person can help."""


class Session:
    """Who we are, and the server's wishes. Thread-safe."""

    def __init__(
        self,
        settings: AgentSettings,
        state: StateDir,
        api: ServerApi,
        outage: Outage,
        languages: list[LanguageInfo],
    ) -> None:
        self._settings = settings
        self._state = state
        self._api = api
        self._languages = languages
        self._lock = threading.Lock()
        self._strikes = 0
        self._identity: Identity | None = None
        self.outage = outage
        self.config = RunnerConfig()
        self.contact_at: float | None = None
        """Wall time of the last answer, for display."""

    @property
    def runner_id(self) -> str | None:
        """Our id, once we have one."""
        identity = self._identity
        return identity.runner_id if identity is not None else None

    def open(self, stop: threading.Event) -> None:
        """Resume the stored identity, or register; patiently.

        Raises RegistrationRefusedError, or Unavailable when stopped meanwhile.
        """
        stored = read_json(self._state.identity)
        if isinstance(stored, dict) and stored.get("server_url") == self._settings.server_url:
            self._identity = Identity(stored["runner_id"], stored["token"])
            log.info("resuming as runner %s", self._identity.runner_id)
            return
        for attempt in patiently(stop, self.outage):
            with attempt, self._lock:
                self._register()

    def call(self, request: Callable[[Identity], T]) -> T:
        """One request under our identity; registers anew at the second 401 in a row.

        Raises Unavailable then too, so that the caller tries again as the new runner.
        """
        identity = self._identity
        if identity is None:
            raise Unavailable("not registered yet")
        try:
            answer = request(identity)
        except AuthRejected as error:
            self._rejected(identity)
            raise Unavailable(f"401: {error}", retry_after_s=0) from error
        except Unavailable as error:
            self.outage.opened(error)
            raise
        except (LeaseLost, Rejected):  # an answer, too
            self._in_contact()
            raise
        self._in_contact()
        return answer

    def _in_contact(self) -> None:
        self._strikes = 0
        self.contact_at = time.time()
        self.outage.closed()

    def _rejected(self, identity: Identity) -> None:
        with self._lock:
            if identity is not self._identity:
                return  # another thread has registered anew meanwhile
            self._strikes += 1
            if self._strikes >= STRIKES:
                log.warning("the server does not know us any more: registering anew")
                self._register()

    def _register(self) -> None:
        token = self._settings.read_registration_token().get_secret_value()
        body = RegisterRunnerBody(
            registration_token=token,
            name=self._settings.name,
            version=version("noj-agent"),
            protocol=PROTOCOL,
            slots=self._settings.slots,
            languages=tuple(self._languages),
            tags=self._settings.tags or None,
        )
        try:
            reply = self._api.register(body)
        except AuthRejected as error:
            raise RegistrationRefusedError(
                f"the server refuses to register us: {error}. Check {ENV_PREFIX}REGISTRATION_TOKEN"
                " against NOJ_SERVER_REGISTRATION_TOKEN"
            ) from error
        self._identity = Identity(reply.runner_id, reply.token)
        self.config = reply.config
        self._in_contact()
        write_json(
            self._state.identity,
            {
                "server_url": self._settings.server_url,
                "runner_id": reply.runner_id,
                "token": reply.token,
            },
        )
        log.info("registered as runner %s", reply.runner_id)
