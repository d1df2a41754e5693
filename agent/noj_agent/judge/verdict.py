"""What was observed of a case → its verdict. Pure; the table of design.md §7, in its order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from noj_agent.sandbox.base import Limits, Outcome, Stop
from noj_shared.verdict import Verdict


def decide(seen: Outcome, *, limits: Limits, accepted: Callable[[], bool]) -> Verdict:
    """The verdict of one case, first match wins.

    `accepted` runs the checker, and is asked only when the program ended clean. A failure of the
    sandbox never gets here: it is a SandboxError, and the job is judged elsewhere.
    """
    if seen.oom_killed or seen.stop is Stop.OOM:
        return Verdict.MLE
    if seen.stop is Stop.OUTPUT or seen.signal == signal.SIGXFSZ:
        return Verdict.OLE
    if (
        seen.stop in (Stop.CPU, Stop.WALL)
        or seen.cpu_ms > limits.cpu_ms
        or seen.wall_ms > limits.wall_ms
        or seen.signal == signal.SIGXCPU
    ):
        return Verdict.TLE
    if seen.exec_errno is not None or seen.signal is not None or seen.exit_code != 0:
        return Verdict.RE
    return Verdict.AC if accepted() else Verdict.WA


def explain(seen: Outcome, limits: Limits) -> str | None:
    """One line about how the program ended, where the verdict alone leaves it open."""
    if seen.stop is Stop.WALL:
        idle = seen.cpu_ms < limits.cpu_ms / 2
        return f"{'idle' if idle else 'slow'}: {limits.wall_ms} ms of wall time were over"
    if seen.exec_errno is not None:
        return f"the program could not be started: {os.strerror(seen.exec_errno)}"
    if seen.signal is not None:
        return f"killed by signal {seen.signal} ({signal_name(seen.signal)})"
    if seen.exit_code:
        return f"exit code {seen.exit_code}"
    return None


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11; `signal 40` for the nameless ones."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
