"""`routilux show`: writes the verdict, the commits and the tasks of one job.

Invariants:
- The first lines say the status of the job, and why it failed.
- A payload is written once: with the emission that carries it, else with the task or the output.
  A failed task shows its payload in any case.
- More than `MOST` like commits or tasks take one line with their number.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from routilux.cli import humanize
from routilux.cli.jobs import due_ns
from routilux.cli.terminal import cells, shortened
from routilux.clocks.durations import from_ns, seconds_text
from routilux.core.commits import JobStatus
from routilux.errors import RoutiluxError, nearest
from routilux.monitor import ExecutionMonitor
from routilux.timeline import STATUS_STYLES, JobTimeline, one_line, payload_text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import TypeVar

    from routilux.cli.terminal import Page
    from routilux.core.parts import Output, PendingTask
    from routilux.core.state import JobState
    from routilux.graph.messages import DroppedTask
    from routilux.persist.store import Hold
    from routilux.timeline import Part

    _T = TypeVar("_T")

MOST: Final = 50
_MOST_LINES: Final = 20  # of a section; --json shows all
_LONGEST_ERROR: Final = 100


def show_job(
    page: Page,
    job: JobState,
    hold: Hold | None,
    now: int,
    *,
    last: int | None = None,
    routine: str | None = None,
) -> None:
    """Write the verdict, the commits, the tasks and the outputs of `job`.

    `last` selects only the last commits, `routine` only what concerns that routine.
    """
    _check_routine(job, routine)
    monitor = ExecutionMonitor.of(job)
    _verdict(page, job, len(monitor.retries), hold, now)
    if hold is not None:
        page.prose(str(hold))
    page.line()
    commits = [commit for commit in job.commits if routine in (None, commit.routine_id)]
    selected = commits if last is None else commits[-last:]
    timeline = JobTimeline(
        monitor,
        job.job_id,
        selected,
        job.started_ns,
        thorough=True,
        most=MOST,
        before=commits[-last - 1] if last is not None and len(commits) > last else None,
    )
    if len(selected) < job.seq:
        which = f" of {routine}" * (routine is not None)
        page.line((f"{len(selected):,} of {job.seq:,} commits{which}", "dim"), cut=True)
    page.lines(list(timeline.lines()))
    tasks = [task for task in job.pending_tasks if routine in (None, task.routine_id)]

    def payload(task: PendingTask | DroppedTask) -> str:
        return "" if task.task_id in timeline.payloads else f": {payload_text(task.payload)}"

    _section(
        page,
        "failed",
        [task for task in tasks if task.failed],
        _failed,
        lambda task: f"{task.routine_id}.{task.slot} failed at attempt {task.attempt - 1}",
    )
    _section(
        page,
        "never run" if job.status.is_final else "pending",
        [task for task in tasks if not task.failed],
        lambda task: _pending(job, task, due_ns(job, task, hold, now), now, payload(task)),
        _name,
    )
    _section(
        page,
        "outputs",
        [output for output in job.outputs if routine in (None, output.routine_id)],
        _output,
        lambda output: f"{output.routine_id}.{output.event}",
    )
    _section(
        page,
        "dropped",
        [task for task in job.dropped if routine in (None, task.routine_id)],
        lambda task: _dropped(task, payload(task)),
        lambda task: f"{task.routine_id}.{task.slot} {task.outcome}",
    )


def _check_routine(job: JobState, routine: str | None) -> None:
    if routine is not None and routine not in job.routine_states:
        known = list(job.routine_states)
        raise RoutiluxError(
            f"job {job.job_id} has no routine {routine}; its routines: {', '.join(known)}"
            f"{nearest(routine, known)}"
        )


def _verdict(page: Page, job: JobState, retries: int, hold: Hold | None, now: int) -> None:
    status = job.status.value
    where, why = _status_of(job, hold, now)
    page.wrapped(
        "job ",
        (job.job_id, "bold"),
        " of flow ",
        (job.flow_id, "bold"),
        ": ",
        (status, STATUS_STYLES.get(status, "bold")),
        *where,
    )
    if why:
        page.prose(*why)
    length = seconds_text(job.updated_ns - job.started_ns, 4)
    page.wrapped(
        f"{retries:,} {'retry' if retries == 1 else 'retries'}"
        f" · {job.seq:,} {'commit' if job.seq == 1 else 'commits'}"
        f" · {length} s from the first commit to the last"
    )
    page.wrapped(
        f"started {from_ns(job.started_ns):%Y-%m-%d %H:%M:%S} UTC,"
        f" {humanize.ago(job.started_ns, now)}; last commit {humanize.ago(job.updated_ns, now)}"
    )


def _status_of(
    job: JobState, hold: Hold | None, now: int
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Return where the job has stopped or which task is next, and why it has stopped."""
    failed = [task for task in job.pending_tasks if task.failed]
    waiting = [task for task in job.pending_tasks if not (task.failed or task.gathers)]
    if job.status is JobStatus.FAILED:
        where = [f" at {task.routine_id} attempt {task.attempt - 1}" for task in failed]
        error = " ".join(str(job.error).split())
        place = f" ({job.error.where})" if job.error is not None and job.error.where else ""
        return tuple(where[:1]), (error + place, "red")
    if job.status is JobStatus.CANCELLED:
        reason = (job.commits[-1].detail or {}).get("reason") if job.commits else None
        return (), () if reason is None else (" ".join(str(reason).split()),)
    if job.status is JobStatus.COMPLETED or not waiting:
        dropped = len(job.dropped)
        return (f", {dropped:,} {'task' if dropped == 1 else 'tasks'} dropped" * bool(dropped),), ()
    task = waiting[0]
    instant = due_ns(job, task, hold, now)
    due = f", due {humanize.due(instant, now)}" if job.status.is_live else ""
    more = f" (+{len(waiting) - 1:,})" if waiting[1:] else ""
    return (f" at {task.routine_id} attempt {task.attempt}{more}{due}",), ()


def _section(
    page: Page,
    name: str,
    entries: Sequence[_T],
    parts: Callable[[_T], tuple[Part, ...]],
    like: Callable[[_T], Hashable],
) -> None:
    if not entries:
        return
    page.line()
    page.line((name, "bold"))
    numbers = Counter(map(like, entries))
    lines: list[tuple[Part, ...]] = [
        (_counted(page, str(kind), f" x{number:,}"),)
        for kind, number in numbers.items()
        if number > MOST
    ]
    alone = [entry for entry in entries if numbers[like(entry)] <= MOST]
    lines += [parts(entry) for entry in alone[:_MOST_LINES]]
    for line in lines:
        page.wrapped("  ", *line, indent="    ")
    if len(alone) > _MOST_LINES:
        page.line((f"  … and {len(alone) - _MOST_LINES:,} more; --json has all", "dim"))


def _name(task: PendingTask) -> str:
    """Return slot and attempt of a pending task."""
    what = "gathers" if task.gathers else f"attempt {task.attempt}"
    return f"{task.routine_id}.{task.slot} {what}"


def _counted(page: Page, kind: str, count: str) -> str:
    if page.width is not None:
        kind = shortened(kind, page.width - 2 - cells(count))
    return kind + count


def _failed(task: PendingTask) -> tuple[Part, ...]:
    return (
        f"{task.routine_id}.{task.slot}",
        (f" at attempt {task.attempt - 1}: ", "red"),
        one_line(str(task.error), _LONGEST_ERROR),
        (f" · task {task.task_id}: {payload_text(task.payload)}", "dim"),
    )


def _pending(
    job: JobState, task: PendingTask, due: int, now: int, payload: str
) -> tuple[Part, ...]:
    wait = ""
    if task.gathers:
        return (
            _name(task),
            (f", {task.gathering}", "yellow"),
            (f" · task {task.task_id}", "dim"),
        )
    if job.status.is_live:
        wait = f", due {humanize.due(due, now)} ({humanize.at(due, now)} UTC)"
    return (
        _name(task),
        (wait, "yellow"),
        (f" · task {task.task_id}{payload}", "dim"),
    )


def _output(output: Output) -> tuple[Part, ...]:
    return (f"{output.routine_id}.{output.event}", "cyan"), f": {payload_text(output.data)}"


def _dropped(task: DroppedTask, payload: str) -> tuple[Part, ...]:
    return (
        f"{task.routine_id}.{task.slot}",
        (f" {task.outcome} at attempt {task.attempt}: ", "yellow"),
        one_line(str(task.error), _LONGEST_ERROR),
        (f" · task {task.task_id}{payload}", "dim"),
    )
