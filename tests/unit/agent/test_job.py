"""Judging a job: what goes into the report. Runs in real sandboxes are tested in integration."""

from __future__ import annotations

import pytest

from noj_agent.judge.compile import report_text
from noj_agent.judge.job import output_limit_bytes
from noj_shared.verdict import Verdict
from noj_shared.wire import MAX_CASES, MAX_TASKS, CaseResult, CompileResult, CompleteJobBody

TAKEN_BYTES = 32 * 1024 * 1024
"""NOJ_SERVER_REPORT_LIMIT_BYTES' default."""


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"x", b'"'])
@pytest.mark.parametrize(("tasks", "cases"), [(1, 1), (8, 8), (10, 100), (MAX_TASKS, MAX_CASES)])
def test_no_report_is_too_large(tasks: int, cases: int, byte: bytes) -> None:
    """Whatever a program prints: a report that nobody takes would be a Judge Error."""
    text = report_text(byte * 2**20, output_limit_bytes(tasks * cases))
    case = CaseResult(
        status=Verdict.RE,
        exitCode=-(2**31),
        signal=64,
        execTime=2**40,
        memoryUsage=2**40,
        wallTime=2**40,
        stdout=text,
        stderr=text,
        detail="\0" * 200,
    )
    report = CompleteJobBody(
        tasks=((case,) * cases,) * tasks,
        compile=CompileResult(status=Verdict.AC, output="\0" * 2**16, detail="\0" * 200),
    )
    assert len(report.model_dump_json()) < TAKEN_BYTES


def test_few_cases_are_reported_at_length() -> None:
    """64 KiB of each stream as long as there is room."""
    assert output_limit_bytes(1) == output_limit_bytes(16) == 64 * 1024
    assert output_limit_bytes(MAX_TASKS * MAX_CASES) >= 100
