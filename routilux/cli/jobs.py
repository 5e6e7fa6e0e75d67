"""`routilux jobs`: writes a table of the jobs in a store, with the newest job first.

Invariants:
- A job that can't be read hides no other job: it is named at the end, and the command fails.
- Ids are never cut, because the other commands need the whole id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from routilux.cli import humanize
from routilux.cli.terminal import cells
from routilux.core.commits import JobStatus
from routilux.errors import CorruptStateError, SavedStateError
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
    """The result of `list_jobs`: the selected jobs, the damaged jobs and the ids of flows."""

    jobs: list[Row]
    damaged: dict[str, SavedStateError]
    flows: list[str]

    def data(self, limit: int | None) -> dict[str, object]:
        """Return the data that `routilux jobs --json` writes, with at most `limit` jobs."""
        return {
            "counts": _counts(self.jobs),
            "jobs": [{**job, "held": held_data(job["held"])} for job in self.jobs[:limit]],
            "damaged": [{"job_id": name, "reason": str(why)} for name, why in self.damaged.items()],
        }


def no_commits(job_id: str) -> CorruptStateError:
    """Return the error that job `job_id` is in a store but has no commits there."""
    return CorruptStateError(f"$.{job_id}", "has no commits")


def held(job: JobState, hold: Hold) -> Hold | None:
    """Return `hold` if `job` is pending or running; else return None."""
    return hold if job.status.is_live else None


def held_data(hold: Hold | None) -> dict[str, object] | None:
    """Return `hold` in the form that `--json` writes."""
    return None if hold is None else {"owner": hold.owner, "free_in_ns": hold.free_in_ns}


def list_jobs(store: JobStore, status: str | None, flow: str | None) -> Listing:
    """Read the jobs of a store; select by `status` and by `flow`, where None selects all."""
    journal = Journal(store)
    jobs: list[Row] = []
    damaged: dict[str, SavedStateError] = {}
    flows: set[str] = set()
    for job_id, hold in sorted(store.holders().items()):
        try:
            job = journal.read(job_id, history=False)
        except SavedStateError as error:
            damaged[job_id] = error
            continue
        if job is None:
            damaged[job_id] = no_commits(job_id)
            continue
        flows.add(job.flow_id)
        if status in (None, job.status.value) and flow in (None, job.flow_id):
            jobs.append(_row(job, hold))
    jobs.sort(key=lambda job: (-job["started_ns"], job["job_id"]))
    return Listing(jobs, damaged, sorted(flows))


def show_jobs(page: Page, found: Listing, total: int, limit: int | None, now: int) -> None:
    """Write the table of jobs, then a line that counts the jobs of each status."""
    shown = found.jobs[:limit]
    if shown:
        _table(page, shown, now)
        page.line()
    counts = ", ".join(f"{count:,} {status}" for status, count in _counts(found.jobs).items())
    count = len(found.jobs)
    some = count < total - len(found.damaged)
    what = f"{count:,} of {count_of_jobs(total)}" if some else count_of_jobs(count)
    more = f"; the {len(shown):,} newest are shown" if len(shown) < count else ""
    flows = f"; flows: {', '.join(found.flows)}" if some and not count else ""
    page.line(what, f": {counts}" if counts else "", more, flows)


def _row(job: JobState, hold: Hold) -> Row:
    tasks = job.pending_tasks if job.status.is_live else ()
    return {
        "job_id": job.job_id,
        "flow_id": job.flow_id,
        "status": job.status.value,
        "started_ns": job.started_ns,
        "updated_ns": job.updated_ns,
        "commits": job.seq,
        "retries": job.retry_count(),
        "due_ns": min((task.due_ns for task in tasks if not task.failed), default=None),
        "error": None if job.error is None else str(job.error),
        "held": held(job, hold),
    }


def _counts(jobs: Sequence[Row]) -> Mapping[str, int]:
    found = Counter(job["status"] for job in jobs)
    return {status.value: found[status.value] for status in JobStatus if found[status.value]}


def count_of_jobs(count: int) -> str:
    """Return a number of jobs as a text.

    >>> count_of_jobs(1), count_of_jobs(2_000)
    ('1 job', '2,000 jobs')
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
