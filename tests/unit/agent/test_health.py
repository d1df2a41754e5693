"""Health: when a host stops taking work, what it says, and how it recovers by itself."""

from __future__ import annotations

import logging

import pytest
from noj_machine import FakeClock

from noj_agent.errors import SandboxError
from noj_agent.health import ERRORS_IN_A_ROW, FIRST_TEST_S, LONGEST_TEST_S, Health

MIB = 2**20


class Host:
    """A machine whose disk and sandbox do as they are told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.free = 10 * MIB
        self.disk_error: OSError | None = None
        self.broken: Exception | None = None
        self.tests = 0
        self.health = Health(
            free_bytes=self._free_bytes,
            floor_bytes=MIB,
            self_test=self._self_test,
            clock=self.clock,
        )

    def _free_bytes(self) -> int:
        if self.disk_error is not None:
            raise self.disk_error
        return self.free

    def _self_test(self) -> None:
        self.tests += 1
        if self.broken is not None:
            raise self.broken

    def fail(self, times: int = ERRORS_IN_A_ROW) -> None:
        """So many jobs fail on its account."""
        for number in range(times):
            self.health.failed(SandboxError(f"error {number + 1}"))


@pytest.fixture
def host() -> Host:
    """A healthy one."""
    return Host()


def test_a_healthy_host(host: Host) -> None:
    """Takes work, and does not test itself for nothing."""
    assert host.health.reason() is None
    host.health.try_to_recover()
    assert host.tests == 0


@pytest.mark.parametrize(
    ("free", "sick"), [(MIB, False), (MIB - 1, True), (0, True)], ids=["at the floor", "below", "0"]
)
def test_low_disk(host: Host, free: int, sick: bool) -> None:
    """The floor itself is enough; the reason has both figures; room makes it well again."""
    host.free = free
    reason = host.health.reason()
    assert (reason is not None) == sick
    if reason is not None:
        assert "low disk space: 0 MiB free, 1 MiB needed" in reason
    host.free = 2 * MIB
    assert host.health.reason() is None


def test_a_disk_that_cannot_be_read(host: Host) -> None:
    """Is a sick host, not a crash."""
    host.disk_error = OSError(5, "Input/output error")
    assert "Input/output error" in (host.health.reason() or "")


def test_errors_in_a_row(host: Host) -> None:
    """Two may be chance, three are not; the reason quotes the last."""
    host.fail(ERRORS_IN_A_ROW - 1)
    assert host.health.reason() is None
    host.fail(1)
    assert host.health.reason() == "3 internal errors in a row, the last: error 1"


def test_a_good_job_breaks_the_row(host: Host) -> None:
    """The count starts anew."""
    for _ in range(3):
        host.fail(ERRORS_IN_A_ROW - 1)
        host.health.succeeded()
    assert host.health.reason() is None


def test_it_recovers_by_a_self_test(host: Host) -> None:
    """Not at once, and then by itself."""
    host.fail()
    host.health.try_to_recover()
    assert host.tests == 0
    host.clock.advance(FIRST_TEST_S)
    host.health.try_to_recover()
    assert host.tests == 1
    assert host.health.reason() is None


def test_failed_self_tests_come_less_and_less_often(host: Host) -> None:
    """10 s, 20 s, … up to five minutes; the reason follows what fails now."""
    host.fail()
    host.broken = SandboxError("no cgroup")
    gaps = []
    wait_s = FIRST_TEST_S
    for _ in range(8):
        host.clock.advance(wait_s - 0.5)
        host.health.try_to_recover()
        tests = host.tests
        host.clock.advance(0.5)
        host.health.try_to_recover()
        assert host.tests == tests + 1
        gaps.append(wait_s)
        wait_s = min(2 * wait_s, LONGEST_TEST_S)
    assert gaps == [10, 20, 40, 80, 160, 300, 300, 300]
    assert "no cgroup" in (host.health.reason() or "")
    host.broken = None
    host.clock.advance(LONGEST_TEST_S)
    host.health.try_to_recover()
    assert host.health.reason() is None


def test_jobs_that_fail_late_do_not_put_the_test_off(host: Host) -> None:
    """Jobs of other slots may still fail while it is sick already."""
    host.fail()
    host.clock.advance(FIRST_TEST_S - 1)
    host.fail(2)
    host.clock.advance(1)
    host.health.try_to_recover()
    assert host.tests == 1


def test_each_change_is_logged_once(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it falls ill, one when it is well."""
    caplog.set_level(logging.INFO)
    host.fail()
    for _ in range(5):
        host.health.reason()
    host.health.succeeded()
    for _ in range(5):
        host.health.reason()
    assert len(caplog.messages) == 2
    assert "taking no more work" in caplog.messages[0]
    assert caplog.messages[1] == "taking work again"
