"""Verdicts with the backend's numbers, and how cases add up to tasks and submissions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum


class Verdict(IntEnum):
    """The outcome of a case, a task or a submission; the number is the one on the wire."""

    PENDING = -1
    AC = 0
    WA = 1
    CE = 2
    TLE = 3
    MLE = 4
    RE = 5
    JE = 6
    OLE = 7

    @property
    def title(self) -> str:
        """The words a person reads, e.g. "Time Limit Exceeded"."""
        return _TITLES[self]


_TITLES = {
    Verdict.PENDING: "Pending",
    Verdict.AC: "Accepted",
    Verdict.WA: "Wrong Answer",
    Verdict.CE: "Compile Error",
    Verdict.TLE: "Time Limit Exceeded",
    Verdict.MLE: "Memory Limit Exceeded",
    Verdict.RE: "Runtime Error",
    Verdict.JE: "Judge Error",
    Verdict.OLE: "Output Limit Exceeded",
}


def worst(statuses: Iterable[Verdict]) -> Verdict:
    """A task's status from its cases', a submission's from its tasks': the largest number.

    Raises ValueError when there is none.
    """
    return max(statuses)


def task_score(cases: Sequence[Verdict], full_score: int) -> int:
    """What a task earns: all of `full_score` if every case is AC, else nothing."""
    return full_score if all(case is Verdict.AC for case in cases) else 0
