"""The parts of a report, as rich tables.

Invariants:
- Every figure is counted from commits or read from the saved state.
- The lines of a timeline are the engine's own, from `routilux.timeline`.
- Seconds are written from integer nanoseconds: 0.3 s is exactly 0.3000.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pytest_routilux.text import count
from routilux.clocks.durations import from_ns, seconds_text
from routilux.core.commits import CommitKind
from routilux.core.state import JobState
from routilux.monitor import ExecutionMonitor
from routilux.timeline import STATUS_STYLES, JobTimeline

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from routilux.core.commits import Commit
    from routilux.monitor import Retry
    from routilux.saved_state import SavedState

_LONGEST_LANE: Final = 72
_ATTEMPTS: Final = (CommitKind.DONE, CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED)


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in the style of all reports."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def timeline(source: JobState | ExecutionMonitor) -> Table:
    """Return a table with one line for each event."""
    monitor = _monitor_of(source)
    jobs = _commits_by_job(monitor)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for job_id, commits in jobs.items():
        if len(jobs) > 1:
            table.add_row("🧵", Text(job_id, style="bold"))
        start = source.started_ns if isinstance(source, JobState) else commits[0].at_ns
        for line in JobTimeline(monitor, job_id, commits, start).lines():
            text = Text.assemble(*line.parts)
            if line.cut:
                text.no_wrap, text.overflow = True, "ellipsis"
            mark = Text.assemble(f"{line.mark} ", (line.clock, "dim")) if line.mark else ""
            table.add_row(mark, text)
    if not jobs:
        table.add_row("", Text("no job has run", style="dim"))
    return table


def status(job: JobState, max_retries: int | None) -> Text:
    """Return one line with a job's status, retries and record count."""
    spent = job.retry_count()
    retry = f"{spent}" if max_retries is None else f"{spent}/{max_retries}"
    style = STATUS_STYLES.get(job.status.value, "bold")
    return Text.assemble(
        "📊 Status: ",
        (job.status.value, style),
        f" | Retry: {retry} | History: {count(len(job.execution_history), 'record')}",
    )


def summary(source: JobState | ExecutionMonitor) -> RenderableType:
    """Return counts of events above a table of the routines."""
    monitor = _monitor_of(source)
    jobs = _commits_by_job(monitor)
    starts = _starts(source, monitor)
    duration = sum(commits[-1].at_ns - starts[job_id] for job_id, commits in jobs.items())
    counts = monitor.summary()
    head = Text.assemble(
        "📈 ",
        *_figure(counts["events"], "event"),
        *_figure(counts["data_flows"], "data flow"),
        *_figure(counts["state_changes"], "state change"),
        (seconds_text(duration, 4), "bold"),
        " s",
    )
    right = ("attempts", "failed", "retries", "out", "in", "busy", "waited")
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


def retries(source: JobState | ExecutionMonitor, width: int) -> RenderableType:
    """Return a chart of attempts above a table of retries."""
    monitor = _monitor_of(source)
    if not monitor.retries:
        return Text("⏳ no retries", style="dim")
    starts = _starts(source, monitor)
    ended = [retry for retry in monitor.retries if retry.actual_ns is not None]
    exact = sum(retry.actual_ns == retry.delay_ns for retry in ended)
    head = Text.assemble(
        "⏳ ",
        *_figure(len(monitor.retries), "retry", "retries"),
        f"{exact} of {len(ended)} waits as planned, to the nanosecond",
        *_why_longer(monitor, starts),
    )
    several = len({(retry.job_id, retry.task_id) for retry in monitor.retries}) > 1
    right = ("retry", "failed at", "planned", "due at", "start", "waited")
    columns = ["routine", *(["task"] if several else []), "retry", "failed at", "error"]
    table = plain_table(*columns, "planned", "due at", "start", "waited", right=right)
    for retry in monitor.retries:
        start = starts[retry.job_id]
        actual, began = Text("waits", style="yellow"), Text("…", style="dim")
        if retry.actual_ns is not None and retry.started_ns is not None:
            style = "green" if retry.actual_ns == retry.delay_ns else "yellow"
            actual = Text(_seconds(retry.actual_ns), style=style)
            began = Text(_seconds(retry.started_ns - start))
        table.add_row(
            retry.routine_id,
            *([retry.task_id] if several else []),
            str(retry.number),
            _seconds(retry.failed_ns - start),
            Text(retry.error.type if retry.error else "", style="red"),
            _seconds(retry.delay_ns),
            _seconds(retry.due_ns - start),
            began,
            actual,
        )
    if len(starts) == 1:
        return Group(head, _lanes(monitor, next(iter(starts.values())), width), table)
    return Group(head, table)


def _why_longer(monitor: ExecutionMonitor, starts: Mapping[str, int]) -> Iterator[str]:
    """Yield for each cause how many waits it made longer than planned, and until when."""
    found: dict[str, list[int]] = {}
    jobs = _commits_by_job(monitor)
    for retry in monitor.retries:
        began = retry.started_ns
        if began is not None and began > retry.due_ns:
            cause = _cause(jobs[retry.job_id], retry, began)
            found.setdefault(cause, []).append(began - starts[retry.job_id])
    for cause, instants in found.items():
        yield f" · {len(instants)} longer, because {cause} (until {_seconds(max(instants))} s)"


def _cause(commits: Sequence[Commit], retry: Retry, began: int) -> str:
    if any(c.kind is CommitKind.RESUMED and retry.due_ns < c.at_ns <= began for c in commits):
        return "the job was resumed later"
    steps = [c for c in commits if c.started_ns is not None and c.task_id != retry.task_id]
    before = [c for c in steps if (c.started_ns or 0) < began <= c.at_ns]
    freed = {c.routine_id for c in before if c.at_ns == began}
    if not freed:
        return "the clock woke the job later"
    if len(before) > max(commit.worker for commit in commits) or freed != {retry.routine_id}:
        return "all workers were busy"
    return "the routine was busy"


def _lanes(monitor: ExecutionMonitor, start: int, width: int) -> Table:
    # One line for each routine; each cell is a slice of the job's time.
    steps = [c for _, c in monitor.commits if c.kind in _ATTEMPTS and c.started_ns is not None]
    names = list(dict.fromkeys(str(commit.routine_id) for commit in steps))
    size = min(_LONGEST_LANE, max(width - max(map(len, names)) - 6, 10))
    length = max(commit.at_ns for _, commit in monitor.commits) - start
    lanes = {name: [" "] * size for name in names}

    def cells(begin: int, end: int) -> range:
        first = min((begin - start) * size // (length or 1), size - 1)
        return range(first, min(-(-(end - start) * size // (length or 1)), size))

    for retry in monitor.retries:
        until = start + length if retry.started_ns is None else retry.started_ns
        for cell in cells(retry.failed_ns, until):
            lanes[retry.routine_id][cell] = "░"
    for commit in steps:
        run = cells(commit.started_ns or 0, commit.at_ns)
        run = range(run.start, max(run.stop, run.start + 1))  # an attempt without length is visible
        lane = lanes[str(commit.routine_id)]
        for cell in run:
            lane[cell] = "█"
        if commit.error is not None:
            lane[run[-1]] = "✗"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    styles = {"█": "green", "░": "yellow", "✗": "bold red", " ": ""}
    for name, lane in lanes.items():
        table.add_row(name, Text.assemble(*((cell, styles[cell]) for cell in lane)))
    table.add_row("", Text(f"█ runs  ✗ fails  ░ waits; the width is {_seconds(length)} s", "dim"))
    return table


def saved_state(saved: SavedState, path: str | os.PathLike[str] | None) -> RenderableType:
    """Return a table about a saved state."""
    job = saved.job
    counts = saved.monitor_summary
    name = Path(path).name if path is not None else "in memory"
    size = f"{Path(path).stat().st_size:,} bytes · " if path is not None else ""
    when = from_ns(saved.saved_at_ns).isoformat()
    head = Text.assemble("💾 ", (name, "bold"), f" · {size}saved at {when}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("job", f"{job.job_id} of flow {saved.flow.flow_id}, commit {job.seq}")
    table.add_row("status", f"{job.status.value}, {count(saved.retry_count, 'retry', 'retries')}")
    recorded = (
        count(counts["events"], "event"),
        count(counts["data_flows"], "data flow"),
        count(counts["state_changes"], "state change"),
    )
    records = count(len(job.execution_history), "record")
    table.add_row("history", f"{records}; monitor: {', '.join(recorded)}")
    for task in job.pending_tasks:
        left = max(task.due_ns - saved.saved_at_ns, 0)
        text = f"{task.routine_id}.{task.slot}, attempt {task.attempt}"
        if task.gathers:
            text = f"{task.routine_id}.{task.slot} gathers: {task.gathering}"
        if task.delay_ns:
            text += f" due in {_seconds(left)} s of a wait of {_seconds(task.delay_ns or 0)} s"
        table.add_row("failed" if task.failed else "pending", text)
    return Group(head, Padding(table, (0, 0, 0, 3)))


def _monitor_of(source: JobState | ExecutionMonitor) -> ExecutionMonitor:
    return ExecutionMonitor.of(source) if isinstance(source, JobState) else source


def _commits_by_job(monitor: ExecutionMonitor) -> dict[str, list[Commit]]:
    jobs: dict[str, list[Commit]] = {}
    for job_id, commit in monitor.commits:
        jobs.setdefault(job_id, []).append(commit)
    return jobs


def _starts(source: JobState | ExecutionMonitor, monitor: ExecutionMonitor) -> dict[str, int]:
    if isinstance(source, JobState):
        return {source.job_id: source.started_ns}
    return {job_id: commits[0].at_ns for job_id, commits in _commits_by_job(monitor).items()}


def _routines(source: JobState | ExecutionMonitor, monitor: ExecutionMonitor) -> list[str]:
    known: dict[str, None] = {}
    for _, commit in monitor.commits:
        known |= dict.fromkeys(task.routine_id for task in commit.tasks)
    if isinstance(source, JobState):
        known |= dict.fromkeys(source.routine_states)
    return list(known)


def _figure(many: int, noun: str, plural: str | None = None) -> tuple[tuple[str, str], str]:
    number, noun = count(many, noun, plural).split(" ", 1)
    return (number, "bold"), f" {noun} · "


def _seconds(length: int) -> str:
    return seconds_text(length, 4)
