"""Our identity: kept, resumed, made anew when the server has forgotten it."""

from __future__ import annotations

import logging
import threading
import time

import httpx
import pytest
from noj_machine import FakeServer, make_settings, refusal
from noj_testing import wait_until

from noj_agent.api import Identity, ServerApi
from noj_agent.errors import AuthRejected, ConfigError, LeaseLost, Rejected, Unavailable
from noj_agent.retry import Outage
from noj_agent.session import RegistrationRefusedError, Session
from noj_agent.state import StateDir, read_json, write_json
from noj_shared.wire import HeartbeatBody, LanguageInfo


def beat(session: Session, api: ServerApi) -> None:
    """Any authorised call."""
    session.call(lambda me: api.heartbeat(me, HeartbeatBody(active_job_ids=())))


def test_registering(server: FakeServer, state: StateDir, api: ServerApi) -> None:
    """It says what it can do, takes the server's config, and keeps who it is."""
    settings = make_settings(state.root, tags=("ssd",), slots=2)
    languages = [LanguageInfo(language=0, version="gcc 12")]
    session = Session(settings, state, api, Outage(), languages)
    assert session.runner_id is None
    server.config = {"max_concurrent_jobs": 3}
    session.open(threading.Event())
    body = server.seen("register")[0].body
    assert (body["name"], body["slots"], body["tags"]) == ("alpha", 2, ["ssd"])
    assert body["languages"] == [{"language": 0, "version": "gcc 12"}]
    assert session.config.max_concurrent_jobs == 3
    stored = read_json(state.identity)
    assert stored["runner_id"] == session.runner_id
    assert {stored["token"]} == server.tokens
    assert state.identity.stat().st_mode & 0o777 == 0o600


def test_a_restart_resumes(server: FakeServer, state: StateDir, api: ServerApi) -> None:
    """The same runner id, and no second registration."""
    settings = make_settings(state.root)
    first, second = (Session(settings, state, api, Outage(), []) for _ in range(2))
    first.open(threading.Event())
    second.open(threading.Event())
    beat(second, api)
    assert first.runner_id == second.runner_id
    assert len(server.seen("register")) == 1


@pytest.mark.parametrize("stored", [None, [], {"server_url": "http://another.test"}])
def test_losing_the_identity_costs_nothing(
    server: FakeServer, state: StateDir, session: Session, stored: object
) -> None:
    """Damaged, or one of another server: it registers anew."""
    write_json(state.identity, stored)
    session.open(threading.Event())
    assert len(server.seen("register")) == 1


def test_calls_before_the_first_registration(session: Session, api: ServerApi) -> None:
    """Worth another try."""
    with pytest.raises(Unavailable):
        beat(session, api)


def test_two_401_in_a_row_register_anew(
    server: FakeServer, state: StateDir, session: Session, api: ServerApi
) -> None:
    """After a wiped Redis it is a new runner by itself, on the disk too."""
    session.open(threading.Event())
    before = session.runner_id
    server.wipe()
    for _ in range(2):
        with pytest.raises(Unavailable) as error:
            beat(session, api)
        assert error.value.retry_after_s == 0
    assert session.runner_id != before
    assert read_json(state.identity)["runner_id"] == session.runner_id
    beat(session, api)
    assert len(server.seen("register")) == 2


def test_a_single_401_is_forgiven(server: FakeServer, session: Session, api: ServerApi) -> None:
    """An answer in between starts the count anew."""
    session.open(threading.Event())
    for _ in range(3):
        server.answers["heartbeat"] = [refusal(401)]
        with pytest.raises(Unavailable):
            beat(session, api)
        beat(session, api)
    assert len(server.seen("register")) == 1


def test_a_401_for_the_old_identity_does_not_count(
    server: FakeServer, session: Session, api: ServerApi
) -> None:
    """A call that was under way while another thread registered anew changes nothing."""
    session.open(threading.Event())

    def slow(_me: Identity) -> None:
        server.wipe()
        for _ in range(2):
            with pytest.raises(Unavailable):
                beat(session, api)
        raise AuthRejected("the old one")

    for _ in range(2):
        with pytest.raises(Unavailable):
            session.call(slow)
    assert len(server.seen("register")) == 3  # once to begin with, once per wipe


def test_many_threads_register_once(server: FakeServer, session: Session, api: ServerApi) -> None:
    """All threads see the 401 at once; one new runner comes of it."""
    session.open(threading.Event())
    server.wipe()
    gate = threading.Barrier(8, timeout=10)
    unexpected: list[BaseException] = []

    def refused(me: Identity) -> None:
        gate.wait()
        api.heartbeat(me, HeartbeatBody(active_job_ids=()))

    def call() -> None:
        try:
            session.call(refused)
        except Unavailable:
            pass
        except threading.BrokenBarrierError as error:
            unexpected.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert unexpected == []
    assert len(server.seen("register")) == 2
    beat(session, api)


def test_a_wrong_registration_token(state: StateDir, api: ServerApi) -> None:
    """Only a person can help: the error names both settings."""
    settings = make_settings(state.root, registration_token="wrong")
    session = Session(settings, state, api, Outage(), [])
    with pytest.raises(RegistrationRefusedError) as error:
        session.open(threading.Event())
    assert "NOJ_AGENT_REGISTRATION_TOKEN" in str(error.value)
    assert "NOJ_SERVER_REGISTRATION_TOKEN" in str(error.value)
    assert "wrong" not in str(error.value)


def test_a_token_changed_meanwhile(server: FakeServer, session: Session, api: ServerApi) -> None:
    """Refused while running too, when it has to register anew."""
    session.open(threading.Event())
    server.wipe()
    server.answers["register"] = [refusal(401)]
    with pytest.raises(Unavailable):
        beat(session, api)
    with pytest.raises(RegistrationRefusedError):
        beat(session, api)


def test_the_server_is_away_at_start(
    server: FakeServer, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps trying; one line when the outage opens, one when it closes."""
    server.answers["register"] = [
        *(httpx.ConnectError("refused") for _ in range(3)),
        *(refusal(503, Retry_After="0") for _ in range(20)),
    ]
    caplog.set_level(logging.INFO)
    session.open(_Impatient())
    assert len(server.seen("register")) == 24
    outage = [line for line in caplog.messages if "answer" in line]
    assert len(outage) == 2
    assert "does not answer" in outage[0]
    assert "answers again" in outage[1]


class _Impatient(threading.Event):
    """Waits take no time."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def test_stopped_before_the_server_ever_answered(server: FakeServer, session: Session) -> None:
    """A stop event ends the waiting at once."""
    server.answers["register"] = [refusal(503, Retry_After="60") for _ in range(5)]
    stop = threading.Event()
    ended: list[Exception] = []

    def run() -> None:
        try:
            session.open(stop)
        except Unavailable as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: server.seen("register"), what="it tries to register")
    begun = time.monotonic()
    stop.set()
    thread.join(10)
    assert ended
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("error", [LeaseLost("x"), Rejected("x", status=404, code="c")])
def test_final_errors_pass_through(server: FakeServer, session: Session, error: Exception) -> None:
    """They are the caller's."""
    session.open(threading.Event())

    def refuse(_me: Identity) -> None:
        raise error

    with pytest.raises(type(error)):
        session.call(refuse)


def test_a_final_answer_is_contact(server: FakeServer, session: Session, api: ServerApi) -> None:
    """A server that refuses a report does answer: the outage is over, a 401 before is forgiven."""
    session.open(threading.Event())
    server.answers["heartbeat"] = [refusal(503), refusal(401), refusal(409), refusal(401)]
    for expected in (Unavailable, Unavailable, LeaseLost):
        with pytest.raises(expected):
            beat(session, api)
    assert session.outage.since_s is None
    with pytest.raises(Unavailable):
        beat(session, api)
    assert len(server.seen("register")) == 1


def test_an_empty_token_is_a_setting_that_is_wrong(state: StateDir, api: ServerApi) -> None:
    """As Compose passes an unset variable: said as a ConfigError, not as a traceback."""
    settings = make_settings(state.root, registration_token="")
    with pytest.raises(ConfigError, match="REGISTRATION_TOKEN"):
        Session(settings, state, api, Outage(), []).open(threading.Event())


def test_the_token_is_never_logged(
    server: FakeServer, session: Session, api: ServerApi, caplog: pytest.LogCaptureFixture
) -> None:
    """INV8: not at registration, nor when it is lost."""
    caplog.set_level(logging.DEBUG)
    session.open(threading.Event())
    tokens = set(server.tokens)
    server.wipe()
    for _ in range(2):
        with pytest.raises(Unavailable):
            beat(session, api)
    text = "\n".join(caplog.messages)
    assert not any(token in text for token in tokens | server.tokens)
    assert "the registration token" not in text
