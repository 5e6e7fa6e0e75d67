"""`routilux show`: writes the commits, pending tasks, outputs and status of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from routilux.cli import humanize
from routilux.clocks.durations import from_ns, seconds_text
from routilux.monitor import ExecutionMonitor
from routilux.timeline import STATUS_STYLES, JobTimeline, one_line, payload_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from routilux.cli.terminal import Page
    from routilux.core.parts import DroppedTask, Output, PendingTask
    from routilux.core.state import JobState
    from routilux.persist.store import Hold
    from routilux.timeline import Part

    _T = TypeVar("_T")

_MOST: Final = 20  # entries of a section; --json shows all
_LONGEST_ERROR: Final = 100


def show_job(page: Page, job: JobState, hold: Hold | None, now: int) -> None:
    """Write the commits, pending tasks, outputs, dropped tasks and status of `job`."""
    page.line("job ", (job.job_id, "bold"), " of flow ", (job.flow_id, "bold"))
    page.line(
        f"started {from_ns(job.started_ns):%Y-%m-%d %H:%M:%S} UTC,"
        f" {humanize.ago(job.started_ns, now)}; last commit {humanize.ago(job.updated_ns, now)}"
    )
    if hold is not None:
        page.line(str(hold))
    page.line()
    monitor = ExecutionMonitor.of(job)
    timeline = JobTimeline(monitor, job.job_id, job.commits, job.started_ns, thorough=True)
    page.lines(list(timeline.lines()))
    _section(page, "pending", job.pending_tasks, lambda task: _pending(job, task, now))
    _section(page, "outputs", job.outputs, _output)
    _section(page, "dropped", job.dropped, _dropped)
    page.line()
    status = job.status.value
    retries = job.retry_count()
    length = seconds_text(job.updated_ns - job.started_ns, 4)
    page.line(
        "status ",
        (status, STATUS_STYLES.get(status, "bold")),
        f" · {retries} {'retry' if retries == 1 else 'retries'}"
        f" · {job.seq:,} {'commit' if job.seq == 1 else 'commits'}"
        f" · {length} s from the first commit to the last",
    )


def _section(
    page: Page, name: str, entries: Sequence[_T], parts: Callable[[_T], tuple[Part, ...]]
) -> None:
    if not entries:
        return
    page.line()
    page.line((name, "bold"))
    for entry in entries[:_MOST]:
        page.line("  ", *parts(entry))
    if len(entries) > _MOST:
        page.line((f"  … and {len(entries) - _MOST:,} more; --json has all", "dim"))


def _pending(job: JobState, task: PendingTask, now: int) -> tuple[Part, ...]:
    name = f"{task.routine_id}.{task.slot}"
    if task.failed:
        error = job.routine_states[task.routine_id].error or job.error
        return (
            name,
            (f" failed at attempt {task.attempt - 1}: ", "red"),
            one_line(str(error), _LONGEST_ERROR),
            (f" · task {task.task_id}", "dim"),
        )
    wait = ""
    if job.status.is_live:
        wait = f", due {humanize.due(task.due_ns, now)} ({humanize.at(task.due_ns, now)} UTC)"
    return (
        f"{name} attempt {task.attempt}",
        (wait, "yellow"),
        f": {payload_text(task.payload)}",
        (f" · task {task.task_id}", "dim"),
    )


def _output(output: Output) -> tuple[Part, ...]:
    return (f"{output.routine_id}.{output.event}", "cyan"), f": {payload_text(output.data)}"


def _dropped(task: DroppedTask) -> tuple[Part, ...]:
    return (
        f"{task.routine_id}.{task.slot}",
        (f" {task.outcome} at attempt {task.attempt}: ", "yellow"),
        one_line(str(task.error), _LONGEST_ERROR),
        (f" · task {task.task_id}, {payload_text(task.payload)}", "dim"),
    )
