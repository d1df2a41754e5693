"""Retry policies: what is tried again, how long between, and what ends it."""

from __future__ import annotations

import logging
import threading

import pytest
from noj_machine import FakeClock
from tenacity import Future, RetryCallState, Retrying

from noj_agent.errors import AgentError, AuthRejected, LeaseLost, Rejected, Unavailable
from noj_agent.retry import CAP_S, RETRY_AFTER_CAP_S, Outage, for_a_while, patiently, wait_s

FINAL = [AuthRejected("x"), LeaseLost("x"), Rejected("x", status=400, code="c"), AgentError("x")]


def failed_state(error: Exception, attempt: int) -> RetryCallState:
    """tenacity's view after `attempt` tries."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    outcome = Future(attempt)
    outcome.set_exception(error)
    state.outcome = outcome
    return state


class StopAfter(threading.Event):
    """A stop event that notes the waits and is set after so many of them, at once."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self._left = waits

    def wait(self, timeout: float | None = None) -> bool:
        """No time passes."""
        self.waits.append(timeout)
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


def fail(policy: Retrying, error: Exception) -> int:
    """How often the policy tried before it let the error out."""
    tries = 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)) as raised:
        policy(attempt)
    assert raised.value is error
    return tries


@pytest.mark.parametrize("attempt", [1, 2, 5, 50, 5000])
def test_waits_grow_with_jitter_up_to_the_cap(attempt: int) -> None:
    """Never over 15 s, nor over 0.5 s × 2^n, also after days of outage."""
    waits = {wait_s(failed_state(Unavailable("x"), attempt)) for _ in range(50)}
    assert all(0 <= wait <= min(CAP_S, 0.5 * 2.0 ** min(attempt - 1, 10)) for wait in waits)
    assert len(waits) > 1


@pytest.mark.parametrize(("wished", "waited"), [(0, 0), (7, 7), (600, RETRY_AFTER_CAP_S)])
def test_retry_after_wins(wished: float, waited: float) -> None:
    """The server's wish is obeyed, up to a minute."""
    assert wait_s(failed_state(Unavailable("x", retry_after_s=wished), 9)) == waited


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_final_errors_are_not_tried_again(error: AgentError) -> None:
    """Only Unavailable is worth another try."""
    assert fail(patiently(threading.Event(), Outage()), error) == 1
    assert fail(for_a_while(threading.Event()), error) == 1


def test_patience_ends_with_the_stop_event() -> None:
    """For ever, but a stop ends the wait, and the error comes out as it was."""
    stop = StopAfter(20)
    assert fail(patiently(stop, Outage()), Unavailable("x")) == 21
    assert len(stop.waits) == 20


def test_a_stop_before_the_first_try() -> None:
    """One try is made, none after it."""
    stop = threading.Event()
    stop.set()
    assert fail(patiently(stop, Outage()), Unavailable("x")) == 1


def test_for_a_while_ends_by_itself() -> None:
    """Past its total it gives up: the job goes back to a better connected runner."""
    assert fail(for_a_while(threading.Event(), total_s=0), Unavailable("x")) == 1
    stop = StopAfter(3)
    assert fail(for_a_while(stop), Unavailable("x")) == 4


def test_an_outage_is_one_line_when_it_opens_and_one_when_it_closes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hundred failures log no more than one."""
    clock = FakeClock()
    outage = Outage(clock)
    with caplog.at_level(logging.INFO):
        outage.closed()
        assert outage.since_s is None
        for _ in range(100):
            outage.opened(Unavailable("connection refused"))
            clock.advance(1)
        assert outage.since_s == 100
        for _ in range(2):
            outage.closed()
    first, second = caplog.messages
    assert "connection refused" in first
    assert "after 100 s" in second
    assert outage.since_s is None
    assert outage.last_contact == clock()


def test_the_policy_opens_the_outage(caplog: pytest.LogCaptureFixture) -> None:
    """patiently says so by itself."""
    outage = Outage()
    fail(patiently(StopAfter(5), outage), Unavailable("gone"))
    assert outage.since_s is not None
    assert len(caplog.messages) == 1
