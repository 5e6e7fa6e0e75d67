"""What a job did, line by line, as rich texts: emissions, deliveries, failed attempts, changes.

Laws:
- Lines are made from commits alone, so that any host tells the same story of the same job.
- Times count from the job's start and are written from integer nanoseconds.
- Payloads are told by what they hold (counts, first items, keys), never in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

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

_LONGEST_SCALAR: Final = 48
_FIRST_ITEMS: Final = 3
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


def timeline(source: JobState | ExecutionMonitor) -> Text:
    """Return the story of a job, or of each job that a monitor has watched."""
    monitor = monitor_of(source)
    jobs = stories(monitor)
    lines: list[Text] = []
    for job_id, commits in jobs.items():
        if len(jobs) > 1:
            lines.append(Text.assemble("🧵 ", (job_id, "bold")))
        start = source.started_ns if isinstance(source, JobState) else commits[0].at_ns
        changes = {
            change.seq: change for change in monitor.state_changes if change.job_id == job_id
        }
        lines += _Story(start, commits, retry_facts(monitor, job_id), changes).lines()
    if not lines:
        lines.append(Text("nothing has happened", style="dim"))
    return Text("\n").join(lines)


def retry_facts(monitor: ExecutionMonitor, job_id: str) -> dict[tuple[str, int], int]:
    """Return which retry, from 1, each failed attempt (task id, attempt) of a job led to."""
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

    def lines(self) -> Iterator[Text]:
        for commit in self._commits:
            yield from self._told(commit)

    def _told(self, commit: Commit) -> Iterator[Text]:
        kind = commit.kind
        who = f"{commit.routine_id}"
        if kind is CommitKind.START:
            root = commit.tasks[0]
            yield self._line("🚀", commit, (f"{root.routine_id}.{root.slot}", "bold"))
            yield from self._payload(root.payload)
        elif kind in (CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED):
            yield self._failure(commit)
        elif kind is CommitKind.CONFLICT:
            yield self._line("💫", commit, f"{who} attempt {commit.attempt}: conflict, runs again")
        elif kind is CommitKind.EFFECT:
            name = (commit.detail or {})["name"]
            yield self._line(
                "📌", commit, f"{who} attempt {commit.attempt}: once {name!r} recorded"
            )
        elif kind is CommitKind.RESUMED:
            yield self._line("⏩", commit, ("resumed", "bold"))
        elif kind in (CommitKind.PAUSED, CommitKind.CANCELLED):
            yield self._line("🛑", commit, (kind.value, "bold yellow"))
        yield from self._emissions(commit)
        change = self._changes.get(commit.seq)
        if change is not None:
            yield self._change(commit, change)
        if commit.status in (JobStatus.COMPLETED, JobStatus.FAILED) and commit is self._commits[-1]:
            style = STATUS_STYLES[commit.status.value]
            yield self._line("🏁", commit, "job ", (commit.status.value, style))

    def _emissions(self, commit: Commit) -> Iterator[Text]:
        source = commit.routine_id
        for index, emission in enumerate(commit.emissions):
            yield self._line("📤", commit, (f"{source}.{emission.event}", "bold cyan"))
            yield from self._payload(emission.payload)
            for task in commit.tasks:
                if task.emission == index:
                    arrow = f"{source} → {task.routine_id}: "
                    yield self._line("🔀", commit, arrow, (_load(task.payload), "cyan"))

    def _failure(self, commit: Commit) -> Text:
        parts: list[str | tuple[str, str]] = [
            f"{commit.routine_id} attempt {commit.attempt}: ",
            (shortened(str(commit.error)), "red"),
        ]
        if commit.kind is CommitKind.RETRY:
            number = self._retries[str(commit.task_id), commit.attempt]
            delay = seconds_text(commit.delay_ns or 0, 4)
            parts.append((f" → retry {number} in {delay} s", "yellow"))
        elif commit.kind is CommitKind.DROPPED:
            parts.append((f" → dropped as {(commit.detail or {})['as']}", "yellow"))
        return self._line("💥", commit, *parts)

    def _change(self, commit: Commit, change: StateChange) -> Text:
        style = STATUS_STYLES.get(change.after.value, "")
        parts: list[str | tuple[str, str]] = [
            f"{change.routine_id}: {change.before.value} → ",
            (change.after.value, style),
        ]
        if change.retry_count or change.attempt > 1:
            parts.append(f" (retry_count: {change.retry_count}, attempt: {change.attempt})")
        return self._line("🔄", commit, *parts)

    def _line(self, mark: str, commit: Commit, *parts: str | tuple[str, str]) -> Text:
        clock = f"[{seconds_text(commit.at_ns - self._start):>{self._digits}}s]"
        return Text.assemble(f"{mark} ", (clock, "dim"), " ", *parts)

    def _payload(self, payload: Mapping[str, object]) -> Iterator[Text]:
        facts = [(name, told(value)) for name, value in payload.items()]
        widest = max((len(name) for name, _ in facts), default=0)
        for name, text in facts:
            indent = " " * (self._digits + 7)
            yield Text.assemble(indent, (f"{name:<{widest}}  ", "dim"), text)


def told(value: object) -> str:
    """Return what a value holds, in a few words: counts, first items, keys, short scalars."""
    if isinstance(value, Mapping):
        if any(isinstance(inner, list | tuple) for inner in value.values()):
            return " · ".join(f"{name}: {told(inner)}" for name, inner in value.items())
        return f"keys: {', '.join(map(str, value))}" if value else "no keys"
    if isinstance(value, list | tuple | set | frozenset):
        first = ", ".join(_item(item) for item in list(value)[:_FIRST_ITEMS])
        more = ", …" if len(value) > _FIRST_ITEMS else ""
        return f"{_count(len(value), 'item')} [{first}{more}]"
    return shortened(str(value))


def shortened(text: str, longest: int = _LONGEST_SCALAR) -> str:
    """Return a text on one line, cut where it is longer than `longest`."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _item(item: object) -> str:
    if isinstance(item, Mapping):
        return " ".join(str(v) for v in item.values() if isinstance(v, str | int | float))
    return shortened(str(item), 20)


def _load(payload: Mapping[str, object]) -> str:
    # What a delivery carries, by its first collection, at most one level down.
    for value in payload.values():
        for inner in (value, *(value.values() if isinstance(value, Mapping) else ())):
            if isinstance(inner, list | tuple | set | frozenset):
                return _count(len(inner), "item")
    return ", ".join(f"{name}={told(value)}" for name, value in payload.items()) or "empty"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
