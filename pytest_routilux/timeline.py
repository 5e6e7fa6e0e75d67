"""What a job did, line by line, as rich texts: emissions, deliveries, failed attempts, changes.

Laws:
- Lines are made from commits alone, so that any host tells the same story of the same job.
- Times count from the job's start and are written from integer nanoseconds.
- Payloads are told by what they hold (counts, first items, keys), never in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from rich.table import Table
from rich.text import Text

from routilux.core.records import CommitKind, JobStatus
from routilux.core.state import JobState
from routilux.instants import seconds_text
from routilux.monitor import ExecutionMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routilux.core.records import Commit
    from routilux.monitor import StateChange

__all__ = ["STATUS_STYLES", "monitor_of", "shortened", "stories", "timeline"]

_Part: TypeAlias = str | tuple[str, str]
_Row: TypeAlias = tuple[str | Text, Text]
_Collection: TypeAlias = list[object] | tuple[object, ...] | set[object] | frozenset[object]

_COLLECTIONS: Final = (list, tuple, set, frozenset)
_FIRST_ITEMS: Final = 2
STATUS_STYLES: Final = {
    "completed": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "error_continued": "yellow",
    "cancelled": "yellow",
    "paused": "yellow",
}


def monitor_of(source: JobState | ExecutionMonitor) -> ExecutionMonitor:
    """Return a monitor: the one given, or the one that would have watched the job."""
    return ExecutionMonitor.of(source) if isinstance(source, JobState) else source


def stories(monitor: ExecutionMonitor) -> dict[str, list[Commit]]:
    """Return the commits of each job by job id, in their order."""
    jobs: dict[str, list[Commit]] = {}
    for job_id, commit in monitor.commits:
        jobs.setdefault(job_id, []).append(commit)
    return jobs


def timeline(source: JobState | ExecutionMonitor) -> Table:
    """Return the story of a job, or of each job that a monitor has watched."""
    monitor = monitor_of(source)
    jobs = stories(monitor)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for job_id, commits in jobs.items():
        if len(jobs) > 1:
            table.add_row("🧵", Text(job_id, style="bold"))
        start = source.started_ns if isinstance(source, JobState) else commits[0].at_ns
        changes = {
            change.seq: change for change in monitor.state_changes if change.job_id == job_id
        }
        for row in _Story(start, commits, _retry_numbers(monitor, job_id), changes).rows():
            table.add_row(*row)
    if not jobs:
        table.add_row("", Text("nothing has happened", style="dim"))
    return table


def _retry_numbers(monitor: ExecutionMonitor, job_id: str) -> dict[tuple[str, int], int]:
    # Which retry, from 1, each failed attempt (task id, attempt) of a job led to.
    return {
        (retry.task_id, retry.attempt): retry.number
        for retry in monitor.retries
        if retry.job_id == job_id
    }


class _Story:
    """The lines of one job."""

    def __init__(
        self,
        start: int,
        commits: list[Commit],
        retries: dict[tuple[str, int], int],
        changes: dict[int, StateChange],
    ) -> None:
        self._start = start
        self._commits = commits
        self._retries = retries
        self._changes = changes
        self._digits = max(6, *(len(seconds_text(c.at_ns - start)) for c in commits))

    def rows(self) -> Iterator[_Row]:
        for commit in self._commits:
            yield from self._told(commit)

    def _told(self, commit: Commit) -> Iterator[_Row]:
        kind = commit.kind
        who = f"{commit.routine_id} attempt {commit.attempt}: "
        if kind is CommitKind.START:
            root = commit.tasks[0]
            yield self._row("🚀", commit, (f"{root.routine_id}.{root.slot}", "bold"))
            yield from _payload(root.payload)
        elif kind in (CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED):
            yield self._failure(commit)
        elif kind is CommitKind.CONFLICT:
            yield self._row("💫", commit, who, ("conflict, runs again", "yellow"))
        elif kind is CommitKind.EFFECT:
            yield self._row("📌", commit, who, f"once({(commit.detail or {})['name']!r}) recorded")
        elif kind is CommitKind.RESUMED:
            yield self._row("⏩", commit, ("resumed", "bold"), f", job {commit.status.value}")
        elif kind in (CommitKind.PAUSED, CommitKind.CANCELLED):
            yield self._row("🛑", commit, "job ", (kind.value, STATUS_STYLES[kind.value]))
        yield from self._emissions(commit)
        change = self._changes.get(commit.seq)
        if change is not None:
            yield self._change(commit, change)
        if commit is self._commits[-1] and commit.status in (JobStatus.COMPLETED, JobStatus.FAILED):
            status = commit.status.value
            yield self._row("🏁", commit, "job ", (status, STATUS_STYLES[status]))

    def _emissions(self, commit: Commit) -> Iterator[_Row]:
        source = commit.routine_id
        for index, emission in enumerate(commit.emissions):
            yield self._row("📤", commit, (f"{source}.{emission.event}", "bold cyan"))
            yield from _payload(emission.payload)
            for task in commit.tasks:
                if task.emission == index:
                    arrow = f"{source} → {task.routine_id}: "
                    yield self._row("🔀", commit, arrow, (_load(task.payload), "cyan"))

    def _failure(self, commit: Commit) -> _Row:
        parts: list[_Part] = [f"{commit.routine_id} attempt {commit.attempt}"]
        if commit.kind is CommitKind.RETRY:
            number = self._retries[str(commit.task_id), commit.attempt]
            delay = seconds_text(commit.delay_ns or 0, 4)
            parts.append((f" → retry {number} in {delay} s", "yellow"))
        elif commit.kind is CommitKind.DROPPED:
            parts.append((f" → dropped as {(commit.detail or {})['as']}", "yellow"))
        clock, line = self._row(
            "💥", commit, *parts, ": ", (" ".join(str(commit.error).split()), "red")
        )
        line.no_wrap, line.overflow = True, "ellipsis"  # one line a failure, whatever it says
        return clock, line

    def _change(self, commit: Commit, change: StateChange) -> _Row:
        after = change.after.value
        parts: list[_Part] = [
            f"{change.routine_id}: {change.before.value} → ",
            (after, STATUS_STYLES.get(after, "")),
        ]
        if change.retry_count or change.attempt > 1:
            parts.append(f" (retry_count: {change.retry_count}, attempt: {change.attempt})")
        return self._row("🔄", commit, *parts)

    def _row(self, mark: str, commit: Commit, *parts: _Part) -> _Row:
        clock = f"[{seconds_text(commit.at_ns - self._start):>{self._digits}}s]"
        return Text.assemble(f"{mark} ", (clock, "dim")), Text.assemble(*parts)


def _payload(payload: Mapping[str, object]) -> Iterator[_Row]:
    widest = max(map(len, payload), default=0)
    for name, value in payload.items():
        for index, text in enumerate(told(value)):
            label = name if index == 0 else ""
            yield (
                "",
                Text.assemble(
                    (f"  {label:<{widest}}  ", "dim"), text, no_wrap=True, overflow="ellipsis"
                ),
            )


def told(value: object) -> list[str]:
    """Return what a value holds, in a few words each: counts, first items, keys, scalars."""
    if not isinstance(value, Mapping):
        return [_items(value) if isinstance(value, _COLLECTIONS) else shortened(str(value))]
    lists = {name: inner for name, inner in value.items() if isinstance(inner, _COLLECTIONS)}
    if not lists:
        return [f"keys: {', '.join(map(str, value))}" if value else "no keys"]
    rest = [
        f"{name} {'{…}' if isinstance(inner, Mapping) else shortened(str(inner), 24)}"
        for name, inner in value.items()
        if name not in lists
    ]
    return [
        *(_items(inner, str(name)) for name, inner in lists.items()),
        *([" · ".join(rest)] if rest else []),
    ]


def shortened(text: str, longest: int = 48) -> str:
    """Return a text on one line, cut where it is longer than `longest`."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _items(items: _Collection, noun: str = "items") -> str:
    count = f"1 {noun.removesuffix('s')}" if len(items) == 1 else f"{len(items)} {noun}"
    first = [_item(item) for item in list(items)[:_FIRST_ITEMS]]
    more = ["…"] if len(items) > _FIRST_ITEMS else []
    return f"{count}: {', '.join(first + more)}" if first else count


def _item(item: object) -> str:
    if isinstance(item, Mapping):
        item = " ".join(str(v) for v in item.values() if isinstance(v, str | int | float))
    return shortened(str(item), 30)


def _load(payload: Mapping[str, object]) -> str:
    # What a delivery carries, by its first collection, at most one level down.
    for value in payload.values():
        for inner in (value, *(value.values() if isinstance(value, Mapping) else ())):
            if isinstance(inner, _COLLECTIONS):
                return "1 item" if len(inner) == 1 else f"{len(inner)} items"
    return ", ".join(f"{name}={told(value)[0]}" for name, value in payload.items()) or "empty"
