"""`routilux jobs`: writes a table of the jobs in a store, with the newest job first.

Invariants:
- A job that can't be read hides no other job: it is named at the end, and the command fails.
- Only the rows of the jobs that are shown are read; all else is in the entries of the jobs.
- Ids are never cut, because the other commands need the whole id. An id for which the terminal is
  too narrow gets a line of its own.
- No line is wider than the terminal. The last line names the columns that were left out for that.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from routilux.cli import humanize
from routilux.cli.terminal import cells
from routilux.clocks.durations import length_text
from routilux.core.commits import JobStatus
from routilux.errors import SavedStateError
from routilux.persist.journal import Journal
from routilux.timeline import STATUS_STYLES, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux.cli.terminal import Page
    from routilux.core.parts import PendingTask
    from routilux.core.state import JobState
    from routilux.persist.store import Hold, JobStore
    from routilux.timeline import Part

_HEAD: Final = (
    "job",
    "flow",
    "status",
    "age",
    "commits",
    "retries",
    "next due",
    "held by",
    "at step, or why",
)
_LEFT_OUT: Final = ("commits", "retries", "held by", "flow", "next due", "age")  # in this order
_LAST: Final = 24  # the least width of the last column
Row: TypeAlias = "dict[str, Any]"
"""The members of one job in the JSON output, but with a `Hold` object as `held`."""

_NUMBERS: Final = ("age", "commits", "retries")  # aligned at the right


@dataclass(frozen=True, slots=True)
class Listing:
    """The selected jobs of a store that are shown, and facts about all jobs of the store.

    `total` counts all jobs, `counts` the selected jobs of each status, and `damaged` holds the
    error of each job that can't be read.
    """

    jobs: list[Row]
    total: int
    counts: Mapping[str, int]
    damaged: dict[str, SavedStateError]
    flows: list[str]

    def data(self) -> dict[str, object]:
        """Return the members that `routilux jobs --json` writes."""
        return {
            "counts": self.counts,
            "jobs": [{**job, "held": held_data(job["held"])} for job in self.jobs],
            "damaged": [{"job_id": name, "reason": str(why)} for name, why in self.damaged.items()],
        }


def held(job: JobState, hold: Hold) -> Hold | None:
    """Return `hold` if `job` is pending or running; else return None."""
    return hold if job.status.is_live else None


def held_data(hold: Hold | None) -> dict[str, object] | None:
    """Return `hold` in the form that `--json` writes."""
    return None if hold is None else {"owner": hold.owner, "free_in_ns": hold.free_in_ns}


def list_jobs(
    store: JobStore, status: str | None, flow: str | None, limit: int, now: int
) -> Listing:
    """Read the newest `limit` jobs of a store that have this status and flow, if they are given."""
    journal = Journal(store)
    entries = store.entries()
    damaged: dict[str, SavedStateError] = {
        entry.job_id: entry.damage for entry in entries if entry.damage is not None
    }
    intact = [entry for entry in entries if entry.damage is None]
    selected = [
        entry
        for entry in intact
        if status in (None, entry.status) and flow in (None, entry.flow_id)
    ]
    jobs: list[Row] = []
    for entry in selected[:limit]:
        try:
            job = journal.read(entry.job_id, history=False)
        except SavedStateError as error:
            damaged[entry.job_id] = error
            continue
        if job is not None:
            jobs.append(_row(job, entry.hold, now))
    jobs.sort(key=lambda job: (-job["started_ns"], job["job_id"]))
    found = Counter(entry.status for entry in selected if entry.job_id not in damaged)
    counts = {status.value: found[status.value] for status in JobStatus if found[status.value]}
    flows = sorted({entry.flow_id for entry in intact})
    return Listing(jobs, len(entries), counts, dict(sorted(damaged.items())), flows)


def show_jobs(page: Page, found: Listing, now: int) -> None:
    """Write the table of jobs, then a line with the number of jobs of each status."""
    left_out = _table(page, found.jobs, now) if found.jobs else []
    if found.jobs:
        page.line()
    counts = ", ".join(f"{count:,} {status}" for status, count in found.counts.items())
    count = sum(found.counts.values())
    some = count < found.total - len(found.damaged)
    what = f"{count:,} of {job_count(found.total)}" if some else job_count(count)
    shown = len(found.jobs)
    more = f"; the {shown:,} newest are shown, --limit shows more" if shown < count else ""
    flows = f"; flows: {', '.join(found.flows)}" if some and not count else ""
    page.prose(f"{what}{': ' * bool(counts)}{counts}{more}{flows}")
    if left_out:
        page.prose(f"left out to fit {page.width} columns: {', '.join(left_out)}")


def _row(job: JobState, hold: Hold, now: int) -> Row:
    tasks = job.pending_tasks if job.status.is_live else ()
    due = (due_ns(job, task, hold, now) for task in tasks if not (task.failed or task.gathers))
    return {
        "job_id": job.job_id,
        "flow_id": job.flow_id,
        "status": job.status.value,
        "started_ns": job.started_ns,
        "updated_ns": job.updated_ns,
        "commits": job.seq,
        "retries": job.retry_count(),
        "due_ns": min(due, default=None),
        "error": None if job.error is None else str(job.error),
        "task": _task(job),
        "reason": _reason(job),
        "held": held(job, hold),
    }


def job_count(count: int) -> str:
    """Return a number of jobs as text.

    >>> job_count(1), job_count(1000)
    ('1 job', '1,000 jobs')
    """
    return f"{count:,} job" if count == 1 else f"{count:,} jobs"


def due_ns(job: JobState, task: PendingTask, hold: Hold | None, now: int) -> int:
    """Return the instant from which a task may run; a job may have been submitted with a delay."""
    if job.status is JobStatus.PENDING and hold is not None and hold.free_in_ns:
        return max(task.due_ns, now + hold.free_in_ns)
    return task.due_ns


def _task(job: JobState) -> dict[str, object] | None:
    """Return the task at which the job failed, or the task that is next."""
    others = [task for task in job.pending_tasks if not task.gathers]
    tasks = [task for task in others if task.failed] or others
    if not tasks:
        return None
    task = tasks[0]
    return {
        "task_id": task.task_id,
        "routine_id": task.routine_id,
        "slot": task.slot,
        "attempt": task.attempt - task.failed,
        "error": None if task.error is None else str(task.error),
        "more": len(others) - 1,
    }


def _reason(job: JobState) -> str | None:
    """Return the reason that an operator or a program gave for cancelling the job."""
    if job.status is not JobStatus.CANCELLED or not job.commits:
        return None
    reason = (job.commits[-1].detail or {}).get("reason")
    return None if reason is None else str(reason)


def _table(page: Page, jobs: Sequence[Row], now: int) -> list[str]:
    """Write the table, and return the names of the columns that were left out."""
    rows = [_HEAD, *(_texts(job, now) for job in jobs)]
    widths = dict(
        zip(_HEAD, (max(map(cells, column)) for column in zip(*rows, strict=True)), strict=True)
    )
    job, last = _HEAD[0], _HEAD[-1]
    room = sys.maxsize if page.width is None else page.width
    alone = widths[job] + 2 + widths["status"] + 2 + _LAST > room
    taken = {name: width + 2 for name, width in widths.items() if not (alone and name == job)}
    taken[last] = min(widths[last], _LAST)
    left_out = []
    for name in _LEFT_OUT:
        if sum(taken.values()) + 2 * alone <= room:
            break
        left_out.append(name)
        del taken[name]
    for row in rows:
        parts: list[Part] = []
        if alone:
            page.line((row[0], "bold" if row is _HEAD else ""))
            parts.append("  ")
        for name, text in zip(_HEAD, row, strict=True):
            if name in taken:
                gap = " " * (widths[name] - cells(text))
                style = STATUS_STYLES.get(text, "") if name == "status" else ""
                padded = f"{gap}{text}  " if name in _NUMBERS else f"{text}{gap}  "
                parts.append((padded, "bold" if row is _HEAD else style))
        page.line(*parts, cut=True)
    return left_out


def _texts(job: Row, now: int) -> tuple[str, ...]:
    due_ns = job["due_ns"]
    return (
        plain(job["job_id"]),
        plain(job["flow_id"]),
        job["status"],
        length_text(now - job["started_ns"]),
        f"{job['commits']:,}",
        str(job["retries"]),
        "–" if due_ns is None else humanize.due(due_ns, now),
        plain(_holder(job["held"])),
        plain(" ".join(_why(job).split())),
    )


def _why(job: Row) -> str:
    """Return at which step a job is, or why it failed or was cancelled."""
    task = job["task"]
    if job["status"] == JobStatus.CANCELLED:
        return job["reason"] or "–"
    error = job["error"] or (task and task["error"])
    parts = [] if error is None else [error]
    if task is not None:
        attempt = f" attempt {task['attempt']}" if task["attempt"] > 1 else ""
        more = f" (+{task['more']:,})" if task["more"] else ""
        parts.insert(0, f"{task['routine_id']}{attempt}{more}")
    return ": ".join(parts) or "–"


def _holder(hold: Hold | None) -> str:
    if hold is None:
        return "–"
    if hold.owner is None:
        return "nobody"
    where = hold.owner.rpartition(":")[0] or hold.owner  # without the part that differs by runtime
    if hold.free_in_ns is None:
        return f"{where}, no lease"
    if not hold.free_in_ns:
        return f"{where}, lease over"
    return f"{where}, lease for {length_text(hold.free_in_ns)}"
