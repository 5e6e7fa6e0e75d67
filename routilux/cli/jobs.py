"""`routilux jobs`: writes a table of the jobs in a store, with the newest job first.

Invariants:
- A job that can't be read hides no other job: it is named at the end, and the command fails.
- Only the rows of the jobs that are shown are read; all else is in the entries of the jobs.
- Ids are never cut, because the other commands need the whole id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from routilux.cli import humanize
from routilux.cli.terminal import cells
from routilux.core.commits import JobStatus
from routilux.errors import SavedStateError
from routilux.persist.journal import Journal
from routilux.timeline import STATUS_STYLES, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux.cli.terminal import Page
    from routilux.core.state import JobState
    from routilux.persist.store import Hold, JobStore
    from routilux.timeline import Part

_HEAD: Final = ("job", "flow", "status", "age", "commits", "retries", "next due, UTC", "held by")
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
    if found.jobs:
        _table(page, found.jobs, now)
        page.line()
    counts = ", ".join(f"{count:,} {status}" for status, count in found.counts.items())
    count = sum(found.counts.values())
    some = count < found.total - len(found.damaged)
    what = f"{count:,} of {job_count(found.total)}" if some else job_count(count)
    shown = len(found.jobs)
    more = f"; the {shown:,} newest are shown, --limit shows more" if shown < count else ""
    flows = f"; flows: {', '.join(found.flows)}" if some and not count else ""
    page.line(what, f": {counts}" if counts else "", more, flows)


def _row(job: JobState, hold: Hold, now: int) -> Row:
    tasks = job.pending_tasks if job.status.is_live else ()
    due_ns = min((task.due_ns for task in tasks if not task.failed), default=None)
    if job.status is JobStatus.PENDING and due_ns is not None and hold.free_in_ns:
        due_ns = max(due_ns, now + hold.free_in_ns)  # it was submitted with a delay
    return {
        "job_id": job.job_id,
        "flow_id": job.flow_id,
        "status": job.status.value,
        "started_ns": job.started_ns,
        "updated_ns": job.updated_ns,
        "commits": job.seq,
        "retries": job.retry_count(),
        "due_ns": due_ns,
        "error": None if job.error is None else str(job.error),
        "held": held(job, hold),
    }


def job_count(count: int) -> str:
    """Return a number of jobs as text.

    >>> job_count(1), job_count(1000)
    ('1 job', '1,000 jobs')
    """
    return f"{count:,} job" if count == 1 else f"{count:,} jobs"


def _table(page: Page, jobs: Sequence[Row], now: int) -> None:
    rows = [_HEAD, *(_texts(job, now) for job in jobs)]
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    cut = page.width is None or widths[0] < page.width
    for row in rows:
        parts: list[Part] = []
        for name, text, width in zip(_HEAD, row, widths, strict=True):
            gap = " " * (width - cells(text))
            style = STATUS_STYLES.get(text, "") if name == "status" else ""
            padded = f"{gap}{text}  " if name in _NUMBERS else f"{text}{gap}  "
            parts.append((padded, "bold" if row is _HEAD else style))
        page.line(*parts, cut=cut)


def _texts(job: Row, now: int) -> tuple[str, ...]:
    wait, due_ns = "–", job["due_ns"]
    if due_ns is not None:
        wait = f"{humanize.due(due_ns, now)}, {humanize.at(due_ns, now)}"
    return (
        plain(job["job_id"]),
        plain(job["flow_id"]),
        job["status"],
        humanize.length(now - job["started_ns"]),
        f"{job['commits']:,}",
        str(job["retries"]),
        wait,
        plain(_holder(job["held"])),
    )


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
    return f"{where}, lease for {humanize.length(hold.free_in_ns)}"
