"""What operators look at: the tables at 80 and 160 columns, and what needs a person."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from noj_server.cli.status import needs_person
from noj_server.cli.tables import seconds, short, status_screen, submission_table
from noj_shared.ids import new_job_id, new_runner_id, new_submission_id
from noj_shared.verdict import Verdict
from noj_shared.wire import (
    LanguageInfo,
    LeaseView,
    QueueLine,
    QueueReply,
    ResultEntry,
    RunnerState,
    RunnerView,
    SubmissionView,
)

NOW = datetime.now(UTC)


def render(what: RenderableType, width: int) -> str:
    """As a terminal of that width shows it."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def make_runner(name: str, state: RunnerState = RunnerState.ONLINE, **changes: Any) -> RunnerView:
    """A runner as the server tells it."""
    values: dict[str, Any] = {
        "runner_id": new_runner_id(),
        "name": name,
        "state": state,
        "version": "0.1.0",
        "slots": 2,
        "busy_slots": 1,
        "languages": tuple(LanguageInfo(language=n) for n in (0, 1, 2)),
        "registered_at": NOW,
        "last_seen_at": NOW,
        "last_seen_s": 3.2,
        **changes,
    }
    return RunnerView(**values)


def make_lease(runner: RunnerView, *, left_s: float = 20, attempts: int = 1) -> LeaseView:
    """A job that runner holds."""
    return LeaseView(
        job_id=new_job_id(),
        submission_id=new_submission_id(),
        problem_id="demo-sum",
        language=1,
        runner_id=runner.runner_id,
        runner_name=runner.name,
        age_s=12.5,
        time_left_s=left_s,
        attempts=attempts,
        max_attempts=3,
    )


def make_entry(status: Verdict = Verdict.AC, *, ago: timedelta = timedelta()) -> ResultEntry:
    """A landed result."""
    return ResultEntry(
        cursor="1-0",
        submission_id=new_submission_id(),
        job_id=new_job_id(),
        problem_id="demo-primes",
        status=status,
        verdict=status.name,
        score=40,
        execTime=1000,
        memoryUsage=65536,
        attempts=2,
        landed_at=NOW - ago,
    )


@pytest.mark.parametrize("width", [80, 160])
def test_the_screen_keeps_what_matters(width: int) -> None:
    """Names, states, job ids' ends, attempts, orphans, verdicts, faults: whole at any width."""
    good = make_runner("judge-1")
    lost = make_runner("judge-lab-2", RunnerState.LOST, last_seen_s=95)
    busy, orphan = make_lease(good), make_lease(lost, left_s=-1.5, attempts=2)
    lost = lost.model_copy(update={"jobs": (orphan.job_id,)})
    queue = QueueReply(
        pending=(QueueLine(language=2, priority=7, depth=12, oldest_wait_s=200),),
        leases=(orphan, busy),
        landed=(make_entry(Verdict.TLE), make_entry(Verdict.JE)),
        depth=12,
        grace_left_s=4,
    )
    faults = needs_person([good, lost], queue)
    text = render(status_screen([good, lost], queue, faults, width), width)
    for wanted in (
        *("judge-1", "judge-lab-2", "online", "lost", "1/2", "0.1.0", "3.2 s ago", "2 min ago"),
        *("12 pending", "Python 3", "3 min"),
        *("orphan", "2/3", "1/3", "20.0 s", "12.5 s"),
        *(busy.job_id[-6:], orphan.job_id[-6:], busy.submission_id[-6:]),
        *("TLE", "JE", "1000", "40", "demo-primes"),
        *("After an outage", "landed as Judge Error"),
    ):
        assert wanted in text, wanted
    if width == 160:
        for wanted in (good.runner_id, busy.job_id, busy.submission_id, "C11, C++17, Python 3"):
            assert wanted in text


@pytest.mark.parametrize("width", [80, 160])
def test_an_idle_server(width: int) -> None:
    """Nothing to show is said in words, not as empty tables."""
    text = render(status_screen([], QueueReply(), [], width), width)
    for wanted in ("none has registered", "Queue: empty", "Leases: none", "nothing yet"):
        assert wanted in text
    assert "Nothing needs a person." in text


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/bold]x", "a[b]c", "[link=http://x]y"])
def test_a_runners_words_are_only_words(name: str) -> None:
    """What a runner calls itself is shown as it is, and neither styles nor breaks the screen."""
    runner = make_runner(name, RunnerState.SICK, version=name, reason=name)
    queue = QueueReply(leases=(make_lease(runner),))
    text = render(status_screen([runner], queue, needs_person([runner], queue), 160), 160)
    assert text.count(name) >= 4


def test_a_runners_words_do_not_move_the_cursor() -> None:
    """Control characters in what a runner says never reach the terminal."""
    runner = make_runner("n", RunnerState.SICK, version="\x1b[2J", reason="a\nb\x1b]0;x\x07")
    text = render(
        status_screen([runner], QueueReply(), needs_person([runner], QueueReply()), 160), 160
    )
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_submission() -> None:
    """The result in one line, then the cases with the runner's detail."""
    values = {
        "submission_id": "oj-1",
        "problem_id": "p",
        "language": 0,
        "state": "done",
        "status": 5,
        "verdict": "RE",
        "score": 40,
        "job_id": new_job_id(),
        "created_at": NOW,
        "tasks": [
            {
                "status": 5,
                "score": 0,
                "execTime": 7,
                "memoryUsage": 900,
                "cases": [
                    {
                        "status": 5,
                        "exitCode": -1,
                        "execTime": 7,
                        "memoryUsage": 900,
                        "detail": "killed by [SIGSEGV]",
                    }
                ],
            }
        ],
    }
    text = render(submission_table(SubmissionView.model_validate(values)), 80)
    for wanted in ("oj-1", "RE", "score 40", "0000", "killed by [SIGSEGV]"):
        assert wanted in text
    values["compile"] = {"status": 2, "output": "main.c:1: error: [x]", "detail": "gcc [failed]"}
    text = render(submission_table(SubmissionView.model_validate(values)), 80)
    assert "main.c:1: error: [x]" in text
    assert "gcc [failed]" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min"),
        (-3, "-3.0 s"),
        (3600, "1 h"),
        (172_800, "2 d"),
    ],
)
def test_seconds(value: float, shown: str) -> None:
    """Durations for people, with their sign."""
    assert seconds(value) == shown


def test_short_ids() -> None:
    """Long ids by their random end; short ones whole."""
    assert short("sn_01ARZ3NDEKTSV4RRFFQ69G5FAV") == "…9G5FAV"
    assert short("oj-12345") == "oj-12345"


WAITING = QueueReply(
    pending=(QueueLine(language=0, priority=0, depth=3, oldest_wait_s=90),), depth=3
)


@pytest.mark.parametrize(
    ("runners", "queue", "broken", "wanted"),
    [
        ([], QueueReply(), [], []),
        ([make_runner("a")], WAITING, [], []),
        ([make_runner("a", RunnerState.BUSY)], WAITING, [], []),
        ([], WAITING, [], ["3 jobs wait (the oldest 2 min) and no runner is online"]),
        ([make_runner("a", RunnerState.PAUSED)], WAITING, [], ["no runner is online"]),
        ([make_runner("a", RunnerState.DRAINING)], WAITING, [], ["no runner is online"]),
        ([make_runner("a", RunnerState.LOST)], WAITING, [], ["no runner is online"]),
        ([make_runner("a", RunnerState.LOST)], QueueReply(), [], []),
        (
            [make_runner("a", RunnerState.LOST, jobs=(new_job_id(),))],
            QueueReply(),
            [],
            ["runner a is lost (silent for 3.2 s) and still holds 1 job(s)"],
        ),
        (
            [make_runner("a", RunnerState.SICK, reason="no cgroups")],
            QueueReply(),
            [],
            ["runner a is sick: no cgroups"],
        ),
        ([make_runner("a", RunnerState.SICK)], QueueReply(), [], ["no reason given"]),
        ([], QueueReply(), ["disk: full"], ["disk: full"]),
        ([], QueueReply(landed=(make_entry(Verdict.WA),)), [], []),
        ([], QueueReply(landed=(make_entry(Verdict.JE),)), [], ["landed as Judge Error"]),
        ([], QueueReply(landed=(make_entry(Verdict.JE, ago=timedelta(hours=1)),)), [], []),
    ],
)
def test_needs_person(
    runners: list[RunnerView], queue: QueueReply, broken: list[str], wanted: list[str]
) -> None:
    """Only what will not mend itself, each as one sentence."""
    found = needs_person(runners, queue, broken)
    assert len(found) == len(wanted)
    assert all(part in fault for part, fault in zip(wanted, found, strict=True))
