"""Data → rich tables. Pure; shared by the commands. Readable at 80 columns and at 160."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from noj_shared.language import Language
from noj_shared.verdict import Verdict
from noj_shared.wire import (
    LeaseView,
    OrphanView,
    QueueReply,
    ResultEntry,
    RunnerState,
    RunnerView,
    SubmissionView,
)

WIDE_COLUMNS = 120
_STATE_STYLE = {
    RunnerState.ONLINE: "green",
    RunnerState.BUSY: "green",
    RunnerState.DRAINING: "yellow",
    RunnerState.PAUSED: "yellow",
    RunnerState.SICK: "bold red",
    RunnerState.LOST: "bold red",
}


def seconds(value: float) -> str:
    """A duration for people: 4.2 s, 3 min, 5 h, 2 d; with its sign."""
    size = abs(value)
    for limit, unit, digits in ((60, "s", 1), (3600, "min", 0), (86_400, "h", 0)):
        if size < limit:
            divisor = {"s": 1, "min": 60, "h": 3600}[unit]
            return f"{value / divisor:.{digits}f} {unit}"
    return f"{value / 86_400:.0f} d"


def short(identifier: str, keep: int = 6) -> str:
    """The end of a long id: its beginning is the time, alike for all of today's."""
    return identifier if len(identifier) <= 12 else f"…{identifier[-keep:]}"


def language_name(number: int) -> str:
    """A language's name, or its number if it has none here."""
    return Language(number).title if number in set(Language) else str(number)


def plain(words: str, style: str = "") -> Text:
    """Somebody else's words as they are: no markup, nothing that moves the cursor."""
    kept = (char if char.isprintable() or char in "\n\t" else "�" for char in words)
    return Text("".join(kept), style=style)


def _add_row(table: Table, cells: Sequence[str | Text], style: str = "") -> None:
    """A row of plain words; rich would take `[x]` in a bare string for markup."""
    table.add_row(*(plain(c) if isinstance(c, str) else c for c in cells), style=style)


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", no_wrap=True, style="none"
        )
    return table


def runners_table(runners: Sequence[RunnerView], *, wide: bool) -> RenderableType:
    """Name, state, last seen, slots, held jobs, version, languages."""
    extra = ("Version", "Languages", *(("Load", "Id") if wide else ()))
    table = _table("Runners", "Name", "State", "Seen", "Slots", "Jobs", *extra, right=("Slots",))
    for runner in runners:
        slots = f"{runner.busy_slots if runner.busy_slots is not None else '?'}/{runner.slots}"
        names = ", ".join(language_name(info.language) for info in runner.languages)
        state = Text(runner.state.value, style=_STATE_STYLE[runner.state])
        if runner.reason:
            state.append_text(plain(f" ({runner.reason})", style="dim"))
        cells: list[str | Text] = [
            runner.name,
            state,
            f"{seconds(runner.last_seen_s)} ago",
            slots if runner.slots is not None else "?",
            ", ".join(map(short, runner.jobs)) or "–",
            runner.version or "?",
            names or "all",
        ]
        if wide:
            load = "?" if runner.load is None else f"{runner.load:.1f}"
            cells += [load, runner.runner_id]
        _add_row(table, cells)
    return table if runners else Text("Runners: none has registered", style="yellow")


def queue_table(queue: QueueReply) -> RenderableType:
    """Depth and oldest wait per language and priority."""
    if not queue.pending:
        return Text("Queue: empty", style="green")
    table = _table(
        f"Queue: {queue.depth} pending",
        *("Language", "Priority", "Depth", "Oldest wait"),
        right=("Priority", "Depth", "Oldest wait"),
    )
    for line in queue.pending:
        table.add_row(
            language_name(line.language),
            str(line.priority),
            str(line.depth),
            seconds(line.oldest_wait_s),
        )
    return table


def leases_table(
    leases: Sequence[LeaseView], lost: frozenset[str], *, wide: bool
) -> RenderableType:
    """Job, runner, age, time left, attempt k of n. Orphans, and jobs of lost runners, in red."""
    if not leases:
        return Text("Leases: none", style="dim")
    extra = ("Submission", "Problem", "Language") if wide else ("Submission",)
    table = _table(
        "Leases", "Job", "Runner", "Age", "Left", "Try", *extra, right=("Age", "Left", "Try")
    )
    for lease in leases:
        orphan = lease.time_left_s < 0
        style = "bold red" if orphan else ("red" if lease.runner_id in lost else "")
        left = "orphan" if orphan else seconds(lease.time_left_s)
        cells: list[str | Text] = [
            lease.job_id if wide else short(lease.job_id),
            lease.runner_name or short(lease.runner_id),
            seconds(lease.age_s),
            left,
            f"{lease.attempts}/{lease.max_attempts}",
            lease.submission_id if wide else short(lease.submission_id),
        ]
        if wide:
            cells += [lease.problem_id, language_name(lease.language)]
        _add_row(table, cells, style)
    return table


def orphans_table(orphans: Sequence[OrphanView]) -> RenderableType:
    """Whose lease expired when, and where the job is now."""
    table = _table("Orphans", "At (UTC)", "Job", "Lost by", "Now")
    for orphan in orphans:
        waits = orphan.state == "pending"
        now = {
            "pending": "waits for another runner",
            "leased": f"reclaimed by {orphan.now_with}",
            "landed": f"landed by {orphan.now_with}",
        }.get(orphan.state, orphan.state)
        table.add_row(
            f"{orphan.at:%H:%M:%S}",
            short(orphan.job_id),
            orphan.lost_by,
            Text(now, style="bold red" if waits else "green"),
        )
    return table


def landed_table(
    landed: Sequence[ResultEntry], names: dict[str, str], *, wide: bool
) -> RenderableType:
    """The last landed results, newest first."""
    if not landed:
        return Text("Landed: nothing yet", style="dim")
    extra = ("Problem", "KB") if wide else ("Problem",)
    table = _table(
        "Last landed",
        *("At (UTC)", "Submission", "Verdict", "Score", "ms", "Runner", "Try"),
        *extra,
        right=("Score", "ms", "Try", "KB"),
    )
    for entry in landed:
        cells: list[str | Text] = [
            f"{entry.landed_at:%H:%M:%S}",
            entry.submission_id if wide else short(entry.submission_id),
            verdict_text(entry.status),
            str(entry.score),
            str(entry.execTime),
            names.get(entry.runner or "", short(entry.runner or "–")),
            str(entry.attempts),
            entry.problem_id,
        ]
        if wide:
            cells.append(str(entry.memoryUsage))
        _add_row(table, cells)
    return table


def verdict_text(verdict: Verdict) -> Text:
    """A verdict in its colour."""
    style = {Verdict.AC: "green", Verdict.JE: "bold red", Verdict.PENDING: "dim"}
    return Text(verdict.name, style=style.get(verdict, "yellow"))


def status_screen(
    runners: Sequence[RunnerView], queue: QueueReply, faults: Sequence[str], width: int
) -> RenderableType:
    """All that `noj-server status` shows."""
    wide = width >= WIDE_COLUMNS
    names = {runner.runner_id: runner.name for runner in runners}
    lost = frozenset(r.runner_id for r in runners if r.state is RunnerState.LOST)
    parts: list[RenderableType] = [
        runners_table(runners, wide=wide),
        Text(),
        queue_table(queue),
        Text(),
        leases_table(queue.leases, lost, wide=wide),
        Text(),
        *([orphans_table(queue.orphans), Text()] if queue.orphans else []),
        landed_table(queue.landed, names, wide=wide),
        Text(),
    ]
    if queue.grace_left_s > 0:
        parts.append(
            Text(
                f"After an outage: no lease expires for {seconds(queue.grace_left_s)} more.",
                style="yellow",
            )
        )
    if faults:
        parts += [plain(f"! {fault}", style="bold red") for fault in faults]
    else:
        parts.append(Text("Nothing needs a person.", style="green"))
    return Group(*parts)


def submission_table(view: SubmissionView) -> RenderableType:
    """One submission: the result, then its cases."""
    head = Text.assemble(
        *("Submission ", view.submission_id, ": "),
        verdict_text(view.status),
        f" ({view.status.title}), score {view.score}, {view.execTime or 0} ms,"
        f" {view.memoryUsage or 0} KB, on {view.runner_name or '–'}, try {view.attempts}",
    )
    parts: list[RenderableType] = [head]
    if view.compile is not None and view.compile.status is not Verdict.AC:
        parts += [plain(view.compile.detail or ""), plain(view.compile.output.rstrip(), "dim")]
        return Group(*parts)
    table = _table("", "Case", "Verdict", "ms", "KB", "Detail", right=("ms", "KB"))
    for t, task in enumerate(view.tasks):
        for c, case in enumerate(task.cases):
            table.add_row(
                f"{t:02d}{c:02d}",
                verdict_text(case.status),
                str(case.execTime),
                str(case.memoryUsage),
                plain(case.detail or ""),
            )
    return Group(head, table)
