"""What a job came to, as rich tables: counts by routine, waits by retry, the facts of a save.

Laws:
- Every figure is counted from commits or read from the saved state; none is given by a caller.
- Lengths of time are written from integer nanoseconds, so that 0.3 s is 0.3000 and not near it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pytest_routilux.timeline import STATUS_STYLES, monitor_of, shortened, stories
from routilux.core.records import CommitKind
from routilux.core.state import JobState
from routilux.instants import from_ns, seconds_text

if TYPE_CHECKING:
    import os

    from rich.console import RenderableType

    from routilux.monitor import ExecutionMonitor
    from routilux.persist.document import SavedState

__all__ = ["plain_table", "retries", "saved_state", "status", "summary"]

_ATTEMPTS: Final = (CommitKind.DONE, CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED)


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in the look of all reports; columns in `right` hold figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def status(job: JobState, max_retries: int | None) -> Text:
    """Return where a job stands, in one line."""
    spent = job.retry_count()
    retry = f"{spent}" if max_retries is None else f"{spent}/{max_retries}"
    style = STATUS_STYLES.get(job.status.value, "bold")
    return Text.assemble(
        "📊 Status: ",
        (job.status.value, style),
        f" | Retry: {retry} | History: {len(job.execution_history)} records",
    )


def summary(source: JobState | ExecutionMonitor) -> RenderableType:
    """Return the counts of what happened, and a table of the routines."""
    monitor = monitor_of(source)
    jobs = stories(monitor)
    starts = _starts(source, monitor)
    duration = sum(commits[-1].at_ns - starts[job_id] for job_id, commits in jobs.items())
    counts = monitor.summary()
    head = Text.assemble(
        "📈 ",
        *_figure(counts["events"], "events"),
        *_figure(counts["data_flows"], "data flows"),
        *_figure(counts["state_changes"], "state changes"),
        (seconds_text(duration, 4), "bold"),
        " s",
    )
    right = ("attempts", "failed", "retries", "emitted", "received", "busy s", "waited s")
    table = plain_table("routine", "status", *right, right=right)
    received = [flow.target for flow in monitor.data_flows]
    states: dict[str, str] = {}
    for change in monitor.state_changes:
        states[change.routine_id] = change.after.value
    for routine_id in _routines(source, monitor):
        steps = [
            commit
            for _, commit in monitor.commits
            if commit.routine_id == routine_id and commit.kind in _ATTEMPTS
        ]
        waits = [retry for retry in monitor.retries if retry.routine_id == routine_id]
        state = states.get(routine_id, "pending")
        table.add_row(
            routine_id,
            Text(state, style=STATUS_STYLES.get(state, "dim")),
            *(
                str(figure) if figure else Text("·", style="dim")
                for figure in (
                    len(steps),
                    sum(commit.error is not None for commit in steps),
                    len(waits),
                    sum(len(commit.emissions) for commit in steps),
                    received.count(routine_id),
                )
            ),
            _seconds(sum(c.at_ns - (c.started_ns or c.at_ns) for c in steps)),
            _seconds(sum(retry.actual_ns or 0 for retry in waits)),
        )
    return Group(head, table)


def retries(source: JobState | ExecutionMonitor) -> RenderableType:
    """Return every retry with its planned and its actual wait."""
    monitor = monitor_of(source)
    if not monitor.retries:
        return Text("⏳ no retries", style="dim")
    starts = _starts(source, monitor)
    several = len({(retry.job_id, retry.task_id) for retry in monitor.retries}) > 1
    right = ("retry", "failed at", "planned s", "actual s", "began at")
    columns = ["routine", *(["task"] if several else []), "retry", "failed at", "why"]
    table = plain_table(*columns, "planned s", "actual s", "began at", "", right=right)
    for retry in monitor.retries:
        start = starts[retry.job_id]
        if retry.actual_ns is None or retry.started_ns is None:
            actual, began, exact = "…", "…", Text("waits", style="yellow")
        else:
            actual, began = _seconds(retry.actual_ns), _seconds(retry.started_ns - start)
            off = retry.actual_ns - retry.delay_ns
            exact = Text("exact", style="green") if not off else Text(f"{_seconds(off)} s off")
        table.add_row(
            retry.routine_id,
            *([retry.task_id] if several else []),
            str(retry.number),
            _seconds(retry.failed_ns - start),
            Text(shortened(str(retry.error), 30), style="red"),
            _seconds(retry.delay_ns),
            actual,
            began,
            exact,
        )
    return table


def saved_state(saved: SavedState, path: str | os.PathLike[str] | None) -> RenderableType:
    """Return the facts of a saved state: when, how far, and what waits for what."""
    job = saved.job
    counts = saved.monitor_summary
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    if path is not None:
        file = Path(path)
        table.add_row("file", f"{file.name}, {file.stat().st_size:,} bytes")
    table.add_row("saved at", from_ns(saved.saved_at_ns).isoformat())
    table.add_row("flow, job", f"{saved.flow.flow_id}, {job.job_id}")
    table.add_row("status", f"{job.status.value}, commit {job.seq}, retry {saved.retry_count}")
    table.add_row(
        "monitor",
        f"{counts['events']} events, {counts['data_flows']} data flows,"
        f" {counts['state_changes']} state changes; history {len(job.execution_history)} records",
    )
    for task in job.pending_tasks:
        left = max(task.due_ns - saved.saved_at_ns, 0)
        wait = f", due in {_seconds(left)} of {_seconds(task.delay_ns)} s" if task.delay_ns else ""
        table.add_row(
            "failed" if task.failed else "pending",
            f"task {task.task_id} {task.routine_id}.{task.slot}, next attempt {task.attempt},"
            f" {task.retries} retries spent{wait}",
        )
    return table


def _starts(source: JobState | ExecutionMonitor, monitor: ExecutionMonitor) -> dict[str, int]:
    if isinstance(source, JobState):
        return {source.job_id: source.started_ns}
    return {job_id: commits[0].at_ns for job_id, commits in stories(monitor).items()}


def _routines(source: JobState | ExecutionMonitor, monitor: ExecutionMonitor) -> list[str]:
    known: dict[str, None] = {}
    for _, commit in monitor.commits:
        known |= dict.fromkeys(task.routine_id for task in commit.tasks)
    if isinstance(source, JobState):
        known |= dict.fromkeys(source.routine_states)
    return list(known)


def _figure(count: int, noun: str) -> tuple[tuple[str, str], str]:
    return (f"{count}", "bold"), f" {noun} · "


def _seconds(length: int) -> str:
    return seconds_text(length, 4)
