"""`routilux jobs`: a table of the jobs in a store, the newest first.

Laws:
- A job that can't be read hides no other: it is named at the end, and the command fails.
- Ids are never cut, since they are what the other commands ask for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from routilux.cli import humanize
from routilux.cli.terminal import cells, plain
from routilux.core.commits import JobStatus
from routilux.errors import CorruptStateError, SavedStateError
from routilux.persist.journal import Journal
from routilux.timeline import STATUS_STYLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux.cli.terminal import Page
    from routilux.core.state import JobState
    from routilux.persist.store import Hold, JobStore

__all__ = ["JobRow", "Listing", "due_ns", "held", "held_data", "listing", "no_commits", "show_jobs"]

_HEAD: Final = ("job", "flow", "status", "held by", "age", "commits", "retries", "next due, UTC")
_FLOW, _STATUS = 1, 2
_NUMBERS: Final = ("age", "commits", "retries")  # stand at the right of their columns
_SPARED: Final = ("held by", "commits")  # where it is narrow, the first one first
_SEPARATOR: Final = ", "  # between how long it is until then, and when that is
_SHORTEST_FLOW: Final = 8


@dataclass(frozen=True, slots=True)
class JobRow:
    """What the table tells of one job; the names are those of the JSON."""

    job_id: str
    flow_id: str
    status: str
    started_ns: int
    updated_ns: int
    commits: int
    retries: int
    due_ns: int | None
    error: str | None
    held: Hold | None

    def data(self) -> dict[str, object]:
        """Return it as it stands in the JSON."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "held": held_data(self.held)}


@dataclass(frozen=True, slots=True)
class Listing:
    """The jobs that were asked for, and those that can't be read, with the reason."""

    jobs: list[JobRow]
    damaged: dict[str, SavedStateError]
    flows: list[str]

    def data(self, limit: int | None) -> dict[str, object]:
        """Return it as it stands in the JSON."""
        return {
            "counts": _counts(self.jobs),
            "jobs": [job.data() for job in self.jobs[:limit]],
            "damaged": [{"job_id": name, "reason": str(why)} for name, why in self.damaged.items()],
        }


def no_commits(job_id: str) -> CorruptStateError:
    """Return the error of a job that a store lists, and of which it holds nothing."""
    return CorruptStateError(f"$.{job_id}", "has no commits")


def held(job: JobState, hold: Hold) -> Hold | None:
    """Return who has a job; None where it rests, so that it does not matter."""
    return hold if job.status.is_live else None


def held_data(hold: Hold | None) -> dict[str, object] | None:
    """Return who has a job as it stands in the JSON."""
    return None if hold is None else {"owner": hold.owner, "free_in_ns": hold.free_in_ns}


def due_ns(job: JobState) -> int | None:
    """Return when the job goes on by itself; None where it rests."""
    if not job.status.is_live:
        return None
    return min((task.due_ns for task in job.pending_tasks if not task.failed), default=None)


def listing(store: JobStore, status: str | None, flow: str | None) -> Listing:
    """Read the jobs of a store, of one status and one flow where these are given."""
    journal = Journal(store)
    jobs: list[JobRow] = []
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
    jobs.sort(key=lambda job: (-job.started_ns, job.job_id))
    return Listing(jobs, damaged, sorted(flows))


def show_jobs(page: Page, found: Listing, total: int, limit: int | None, now: int) -> None:
    """Write the table, and a line that counts."""
    shown = found.jobs[:limit]
    if shown:
        _table(page, shown, now)
        page.line()
    counts = ", ".join(f"{count:,} {status}" for status, count in _counts(found.jobs).items())
    count = len(found.jobs)
    some = count < total - len(found.damaged)
    what = f"{count:,} of {_jobs(total)}" if some else _jobs(count)
    more = f"; the {len(shown):,} newest are shown" if len(shown) < count else ""
    flows = f"; flows: {', '.join(found.flows)}" if some and not count else ""
    page.line(what, f": {counts}" if counts else "", more, flows)


def _row(job: JobState, hold: Hold) -> JobRow:
    return JobRow(
        job.job_id,
        job.flow_id,
        job.status.value,
        job.started_ns,
        job.updated_ns,
        job.seq,
        job.retry_count(),
        due_ns(job),
        None if job.error is None else str(job.error),
        held(job, hold),
    )


def _counts(jobs: Sequence[JobRow]) -> Mapping[str, int]:
    found = Counter(job.status for job in jobs)
    return {status.value: found[status.value] for status in JobStatus if found[status.value]}


def _jobs(count: int) -> str:
    return f"{count:,} job" if count == 1 else f"{count:,} jobs"


def _table(page: Page, jobs: Sequence[JobRow], now: int) -> None:
    columns = [
        list(column) for column in zip(_HEAD, *(_texts(job, now) for job in jobs), strict=True)
    ]
    widths = list(map(_width, columns))

    def over() -> int:
        return 0 if page.width is None else sum(widths) + 2 * (len(widths) - 1) - page.width

    if over() > 0:
        columns[-1] = [text.partition(_SEPARATOR)[0] for text in columns[-1]]
        widths[-1] = _width(columns[-1])
    for name in _SPARED:
        if over() > 0:
            place = next(place for place, column in enumerate(columns) if column[0] == name)
            del columns[place], widths[place]
    if over() > 0:
        widths[_FLOW] = max(widths[_FLOW] - over(), _SHORTEST_FLOW)
        columns[_FLOW] = [_cut(text, widths[_FLOW]) for text in columns[_FLOW]]
    rows = list(zip(*columns, strict=True))
    for number, row in enumerate(rows):
        padded = [
            f"{' ' * (width - cells(text))}{text}"
            if rows[0][place] in _NUMBERS
            else f"{text}{' ' * (width - cells(text))}"
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        before, after = "  ".join(padded[:_STATUS]), "  ".join(padded[_STATUS + 1 :]).rstrip()
        status = padded[_STATUS]
        if number:
            page.row(f"{before}  ", (status, STATUS_STYLES.get(row[_STATUS], "")), f"  {after}")
        else:
            page.row((f"{before}  {status}  {after}", "bold"))


def _texts(job: JobRow, now: int) -> tuple[str, ...]:
    wait = "–"
    if job.due_ns is not None:
        wait = f"{humanize.due(job.due_ns, now)}{_SEPARATOR}{humanize.at(job.due_ns, now)}"
    return (
        plain(job.job_id),
        plain(job.flow_id),
        job.status,
        plain(_holder(job.held)),
        humanize.length(now - job.started_ns),
        f"{job.commits:,}",
        str(job.retries),
        wait,
    )


def _holder(hold: Hold | None) -> str:
    if hold is None:
        return "–"
    if hold.owner is None:
        return "nobody"
    where = hold.owner.rpartition(":")[0] or hold.owner  # without what only tells runtimes apart
    if hold.free_in_ns is None:
        return f"{where}, no lease"
    if not hold.free_in_ns:
        return f"{where}, lease over"
    return f"{where}, lease for {humanize.length(hold.free_in_ns)}"


def _width(column: Sequence[str]) -> int:
    plain_ones = all(map(str.isascii, column))
    return max(map(len if plain_ones else cells, column))


def _cut(text: str, longest: int) -> str:
    return text if cells(text) <= longest else f"{text[: longest - 1]}…"
