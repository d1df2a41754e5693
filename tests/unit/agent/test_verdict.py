"""The table of verdicts, rule by rule, and which rule wins."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from noj_agent.judge.checker import matches
from noj_agent.judge.verdict import decide, explain
from noj_agent.sandbox.base import MIB, Limits, Outcome, Stop
from noj_shared.verdict import Verdict

LIMITS = Limits(cpu_ms=1000, wall_ms=3000, memory_bytes=64 * MIB)
CLEAN = Outcome(
    exit_code=0,
    signal=None,
    cpu_ms=10,
    wall_ms=20,
    memory_bytes=MIB,
    oom_killed=False,
    stop=None,
    stdout=b"",
    stderr=b"",
)


def ended(code: int | None = None, sig: int | None = None) -> Outcome:
    """A program that ended by itself."""
    return replace(CLEAN, exit_code=code, signal=sig)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (CLEAN, Verdict.AC),
        (ended(1), Verdict.RE),
        (ended(139), Verdict.RE),
        (ended(sig=signal.SIGSEGV), Verdict.RE),
        (replace(CLEAN, exit_code=127, exec_errno=8), Verdict.RE),
        (replace(CLEAN, cpu_ms=1000), Verdict.AC),
        (replace(CLEAN, cpu_ms=1000.1), Verdict.TLE),
        (replace(CLEAN, wall_ms=3000.1), Verdict.TLE),
        (replace(CLEAN, exit_code=None, stop=Stop.CPU), Verdict.TLE),
        (replace(CLEAN, exit_code=None, stop=Stop.WALL), Verdict.TLE),
        (ended(sig=signal.SIGXCPU), Verdict.TLE),
        (ended(sig=signal.SIGXFSZ), Verdict.OLE),
        (replace(CLEAN, exit_code=None, stop=Stop.OUTPUT), Verdict.OLE),
        (replace(CLEAN, exit_code=None, stop=Stop.OOM), Verdict.MLE),
        # a child was killed for memory, its parent printed the right answer and exited with 0
        (replace(CLEAN, oom_killed=True), Verdict.MLE),
        # precedence: MLE, OLE, TLE, RE
        (replace(CLEAN, oom_killed=True, stop=Stop.OUTPUT), Verdict.MLE),
        (replace(CLEAN, oom_killed=True, stop=Stop.CPU, cpu_ms=5000), Verdict.MLE),
        (replace(CLEAN, oom_killed=True, exit_code=None, signal=9), Verdict.MLE),
        (replace(CLEAN, stop=Stop.OUTPUT, cpu_ms=5000), Verdict.OLE),
        (replace(ended(1), cpu_ms=5000), Verdict.TLE),
        # a full memory alone is no MLE: page cache counts in it
        (replace(CLEAN, memory_bytes=64 * MIB), Verdict.AC),
    ],
)
def test_each_rule_and_its_rank(seen: Outcome, verdict: Verdict) -> None:
    """What was observed gives the verdict of the first rule that matches."""
    assert decide(seen, limits=LIMITS, accepted=lambda: True) is verdict


def test_the_checker_is_asked_only_after_a_clean_end() -> None:
    """A wrong output of a clean program is WA; of a crashed one nobody looks at the output."""
    assert decide(CLEAN, limits=LIMITS, accepted=lambda: False) is Verdict.WA

    def never() -> bool:
        raise AssertionError("the checker was asked")

    assert decide(ended(1), limits=LIMITS, accepted=never) is Verdict.RE


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (CLEAN, None),
        (ended(3), "exit code 3"),
        (ended(sig=11), "killed by signal 11 (SIGSEGV)"),
        (replace(CLEAN, stop=Stop.WALL, cpu_ms=1), "idle: 3000 ms of wall time were over"),
        (replace(CLEAN, stop=Stop.WALL, cpu_ms=900), "slow: 3000 ms of wall time were over"),
    ],
)
def test_what_people_are_told(seen: Outcome, words: str | None) -> None:
    """The detail tells exit code, signal and sleeping apart."""
    assert explain(seen, LIMITS) == words


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        (b"1\n", b"1\n", True),
        (b"1", b"1\n", True),
        (b"1\n\n\n", b"1\n", True),
        (b"1  \t\n2\r\n", b"1\n2\n", True),
        (b"", b"\n\n", True),
        (b"1 2", b"1  2", False),
        (b" 1", b"1", False),
        (b"\n1\n", b"1\n", False),
        (b"1\n\n2\n", b"1\n2\n", False),
        (b"1\n2\n", b"1\n", False),
        (b"1\n", b"1\n2\n", False),
        (b"\xff\n", b"\xfe\n", False),
        (b"a", b"A", False),
    ],
)
def test_default_checker(output: bytes, answer: bytes, right: bool) -> None:
    """Trailing blanks and blank lines at the end do not count; all else does."""
    assert matches(output, answer) is right


def test_checker_is_not_flooded() -> None:
    """64 MiB of line ends against a short answer cost no list of 64 million lines."""
    assert not matches(b"x\n" * (32 * MIB), b"x\n" * 10 + b"y\n")
    assert matches(b"\n" * (64 * MIB), b"")
