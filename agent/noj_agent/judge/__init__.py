"""Judging: from a job and its files to a report. Knows the sandbox and the wire's models,
nothing of HTTP, leases or the state directory."""

from __future__ import annotations

from noj_agent.judge.job import judge_job
from noj_agent.judge.selftest import self_test
from noj_agent.judge.slots import SlotPool

__all__ = ["SlotPool", "judge_job", "self_test"]
