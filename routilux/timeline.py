"""Timeline of a job: describes each commit in lines of text.

Invariants:
- Lines are made from commits alone, so that every host shows the same lines of a job.
- Times count from the job's start and are written from integer nanoseconds.
- Payloads are summarized (counts, first items, keys), never shown in full.
- The plugin's reports and the command line use the same lines. A `thorough` timeline has every
  commit, and adds places, waits and reasons.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from routilux.clocks.durations import exact_text, seconds_text
from routilux.core.commits import CommitKind, JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from routilux.core.commits import Commit
    from routilux.graph.messages import Emission, Task
    from routilux.monitor import ExecutionMonitor, StateChange

Part: TypeAlias = str | tuple[str, str]
"""A text, or a text and the name of its style."""

_Kind: TypeAlias = tuple[CommitKind, str | None, str | None, tuple[tuple[str, ...], ...]]

_Collection: TypeAlias = list[object] | tuple[object, ...] | set[object] | frozenset[object]

_COLLECTIONS: Final = (list, tuple, set, frozenset)
_FIRST_ITEMS: Final = 2
_REQUESTS: Final = {
    CommitKind.RESUMED: "resumed",
    CommitKind.PAUSED: "paused",
    CommitKind.CANCELLED: "cancelled",
}
_COLLAPSED: Final = {
    CommitKind.DONE: ("✅", "done"),
    CommitKind.RETRY: ("💥", "failed and retried"),
    CommitKind.DROPPED: ("💥", "dropped"),
    CommitKind.FAILED: ("💥", "failed for good"),
    CommitKind.CONFLICT: ("💫", "conflicts, runs again"),
    CommitKind.EFFECT: ("📌", "effects recorded"),
}
_LONGEST_ERROR: Final = 400
_LONGEST_VALUE: Final = 120
STATUS_STYLES: Final = {
    "completed": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "error_continued": "yellow",
    "cancelled": "yellow",
    "paused": "yellow",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a timeline.

    A line with empty `mark` and `clock` continues the previous line. A line with `cut` is cut to
    the width of the terminal, not wrapped.
    """

    mark: str
    clock: str
    parts: tuple[Part, ...]
    cut: bool = False


def describe(commit: Commit) -> str:
    """Describe a commit in one line, without routine and task."""
    kind = commit.kind
    if kind is CommitKind.START:
        root = commit.tasks[0]
        return f"the job starts with {root.routine_id}.{root.slot}"
    error, detail = commit.error, commit.detail or {}
    reason = ""
    if error is not None:
        name = error.type.rpartition(".")[2]
        reason = " ".join(f"{name}: {error.text}".split()) if error.text else name
    if kind is CommitKind.INTERRUPTED and commit.routine_id is None:
        return f"the host can't run the job: {reason}"
    if commit.routine_id is None:
        text = f"the job is {_REQUESTS.get(kind, kind.value)}"
        return f"{text}: {reason}" if reason else text
    if kind is CommitKind.RETRY:
        text = f"fails, waits {exact_text(commit.delay_ns or 0)} s: {reason}"
    elif kind is CommitKind.DROPPED:
        text = f"fails, dropped as {detail['as']}: {reason}"
    elif kind is CommitKind.FAILED:
        text = f"fails for good: {reason}"
    elif kind is CommitKind.CONFLICT:
        text = "conflicts, runs again"
    elif kind is CommitKind.INTERRUPTED:
        text = f"is broken off: {reason}"
    elif kind is CommitKind.EFFECT:
        text = f"records once({detail['name']!r})"
    else:
        text = "ok"
    sent: Counter[str] = Counter()
    for number, emission in enumerate(commit.emissions):
        targets = [task.routine_id for task in commit.tasks if task.emission == number]
        sent[f", {emission.event} -> {', '.join(targets) or 'out'}"] += 1
    text += "".join(what if times == 1 else f"{what} x{times}" for what, times in sent.items())
    return f"attempt {commit.attempt} {text}"


class JobTimeline:
    """Builds the lines of a job's timeline."""

    def __init__(
        self,
        monitor: ExecutionMonitor,  # has observed all of `commits`
        job_id: str,
        commits: Sequence[Commit],
        start: int,
        *,
        thorough: bool = False,
        most: int | None = None,
        before: Commit | None = None,
    ) -> None:
        """`most` is the most commits of a kind that get lines of their own; None for any number.

        `before` is the commit before the first of `commits`, if there is one.
        """
        self._start = start
        self._commits = commits
        self._most = sys.maxsize if most is None else most
        self._like: dict[_Kind, list[Commit]] = {}
        if most is not None:
            for commit in commits:
                self._like.setdefault(_kind_of(commit), []).append(commit)
        self.payloads: set[str] = set()  # the ids of the tasks whose payload has a line
        self._thorough = thorough
        self._before = before
        retries = [retry for retry in monitor.retries if retry.job_id == job_id]
        # The number of the retry that each failed attempt led to, and the wait of each attempt.
        self._numbers = {(retry.task_id, retry.attempt): retry.number for retry in retries}
        self._waits = {(r.task_id, r.attempt + 1): r.actual_ns for r in retries}
        self._changes: dict[int, StateChange] = {
            change.seq: change for change in monitor.state_changes if change.job_id == job_id
        }
        self._digits = max((6, *(len(seconds_text(c.at_ns - start)) for c in commits)))

    def lines(self) -> Iterator[Line]:
        """Yield the lines of the timeline, in the order of the commits."""
        for commit in self._commits:
            like = self._like[_kind_of(commit)] if self._like else []
            if len(like) <= self._most or commit.routine_id is None:
                yield from self._commit(commit)
            elif commit is like[0]:
                yield self._collapsed(like)
            self._before = commit
        for commit in self._commits[-1:]:
            if commit.status in (JobStatus.COMPLETED, JobStatus.FAILED):
                status = commit.status.value
                yield self._line("🏁", commit, "job ", (status, STATUS_STYLES[status]))

    def _collapsed(self, commits: Sequence[Commit]) -> Line:
        """Return one line for commits that differ only in task, attempt and payload."""
        first, last = commits[0], commits[-1]
        mark, what = _COLLAPSED[first.kind]
        parts: list[Part] = [f"{first.routine_id} x{len(commits):,}: {what}"]
        if first.error is not None:
            error = one_line(str(first.error), _LONGEST_ERROR)
            parts += [", first with ", (error, "red")]
        sent = Counter(emission.event for commit in commits for emission in commit.emissions)
        facts = [f"{event} x{number:,}" for event, number in sent.items()]
        facts.append(f"until {seconds_text(last.at_ns - self._start)} s")
        return self._line(mark, first, *parts, (f" · {' · '.join(facts)}", "dim"))

    def _commit(self, commit: Commit) -> Iterator[Line]:
        kind = commit.kind
        who = f"{commit.routine_id} attempt {commit.attempt}: "
        if kind is CommitKind.START:
            root = commit.tasks[0]
            yield self._line("🚀", commit, (f"{root.routine_id}.{root.slot}", "bold"))
            self.payloads.add(root.task_id)
            yield from _payload(root.payload)
        elif kind in (CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED):
            yield from self._failure(commit)
        elif kind is CommitKind.CONFLICT:
            yield self._line("💫", commit, who, ("conflict, runs again", "yellow"))
        elif kind is CommitKind.INTERRUPTED:
            error = (one_line(str(commit.error), _LONGEST_ERROR), "red")
            what = "the host can't run it: " if commit.task_id is None else f"{who}broken off: "
            yield self._line("💥", commit, what, error)
        elif kind is CommitKind.EFFECT:
            yield self._effect(commit, who)
        elif kind is CommitKind.RESUMED:
            yield self._resumed(commit)
        elif kind in (CommitKind.PAUSED, CommitKind.CANCELLED):
            yield self._stopped(commit)
        elif self._thorough:
            yield self._done(commit)
        yield from self._emissions(commit)
        change = self._changes.get(commit.seq)
        if change is not None and not self._thorough:
            yield self._change(commit, change)

    def _emissions(self, commit: Commit) -> Iterator[Line]:
        source = commit.routine_id
        if self._thorough:
            yield from self._sent(commit)
            return
        for index, emission in enumerate(commit.emissions):
            yield self._line("📤", commit, (f"{source}.{emission.event}", "bold cyan"))
            yield from _payload(emission.payload)
            for task in commit.tasks:
                if task.emission == index:
                    arrow = f"{source} → {task.routine_id}: "
                    yield self._line("🔀", commit, arrow, (_load(task.payload), "cyan"))

    def _sent(self, commit: Commit) -> Iterator[Line]:
        """Yield one line for each emission with its targets, then its payload unless an output."""
        like: dict[tuple[str, tuple[str, ...]], list[tuple[Emission, list[Task]]]] = {}
        for index, emission in enumerate(commit.emissions):
            tasks = [task for task in commit.tasks if task.emission == index]
            key = emission.event, tuple(task.routine_id for task in tasks)
            like.setdefault(key, []).append((emission, tasks))
        for (event, targets), sent in like.items():
            name = (f"{commit.routine_id}.{event}", "bold cyan")
            to = f" → {', '.join(targets) or 'outputs'}"
            if len(sent) > self._most:
                yield self._line("📤", commit, name, f"{to} x{len(sent):,}")
                continue
            for emission, tasks in sent:
                yield self._line("📤", commit, name, to)
                if tasks:
                    yield from _payload(emission.payload)
                    self.payloads.update(task.task_id for task in tasks)

    def _failure(self, commit: Commit) -> Iterator[Line]:
        error = " ".join(str(commit.error).split())
        if commit.task_id is None:
            yield self._line("💥", commit, "job: ", (error, "red"))
            return
        parts: list[Part] = [f"{commit.routine_id} attempt {commit.attempt}"]
        if commit.kind is CommitKind.RETRY:
            number = self._numbers[commit.task_id, commit.attempt]
            delay = seconds_text(commit.delay_ns or 0, 4)
            parts.append((f" → retry {number} in {delay} s", "yellow"))
        elif commit.kind is CommitKind.DROPPED:
            parts.append((f" → dropped as {(commit.detail or {})['as']}", "yellow"))
        if not self._thorough:
            yield self._line("💥", commit, *parts, ": ", (error, "red"), cut=True)
        else:
            parts += [": ", (one_line(error, _LONGEST_ERROR), "red")]
            yield self._line("💥", commit, *parts, cut=True)
            where = commit.error.where if commit.error is not None else None
            facts = [*([f"at {where}"] if where else []), *self._spent(commit)]
            yield Line("", "", ((f"  {' · '.join(facts)}", "dim"),))

    def _done(self, commit: Commit) -> Line:
        facts = self._spent(commit)
        for name, writes in (("state", commit.state), ("shared", commit.shared)):
            if writes is not None:
                keys = [*writes.values, *writes.patches]
                keys += [f"without {key}" for key in writes.removed]
                facts.append(f"{name}: {', '.join(keys)}")
        who = f"{commit.routine_id} attempt {commit.attempt}: done"
        return self._line("✅", commit, who, (f" · {' · '.join(facts)}", "dim"))

    def _spent(self, commit: Commit) -> list[str]:
        started = commit.at_ns if commit.started_ns is None else commit.started_ns
        facts = [f"ran {seconds_text(commit.at_ns - started, 4)} s"]
        waited = self._waits.get((str(commit.task_id), commit.attempt))
        if waited is not None:
            facts.insert(0, f"waited {seconds_text(waited, 4)} s")
        return facts

    def _effect(self, commit: Commit, who: str) -> Line:
        parts: list[Part] = [who, f"once({(commit.detail or {})['name']!r}) recorded"]
        if self._thorough and commit.effect is not None:
            parts += [": ", (" · ".join(_summary(commit.effect.result)), "cyan")]
        return self._line("📌", commit, *parts)

    def _resumed(self, commit: Commit) -> Line:
        detail, before = commit.detail or {}, self._before
        what = "resumed"
        if commit.status is JobStatus.PENDING and not detail.get("retry_failed"):
            what = "taken over by an operator"
        elif before is not None and before.status is JobStatus.PENDING:
            what = "taken by a host"
        parts: list[Part] = [(what, "bold"), f", job {commit.status.value}"]
        if self._thorough:
            since = self._start if before is None else before.at_ns
            facts = [f"after {seconds_text(commit.at_ns - since)} s"]
            number = detail["recoveries"]
            if number:
                facts.append(f"{number} unclean {'stop' if number == 1 else 'stops'} in a row")
            if detail["retry_failed"]:
                facts.append("a fresh budget for what failed")
            if "shape" in detail:
                facts.append("on a flow of another shape")
            parts.append((f" · {' · '.join(facts)}", "dim"))
        return self._line("⏩", commit, *parts)

    def _stopped(self, commit: Commit) -> Line:
        kind = commit.kind.value
        parts: list[Part] = ["job ", (kind, STATUS_STYLES[kind])]
        if self._thorough and commit.detail is not None:
            parts.append(f": {' '.join(str(commit.detail['reason']).split())}")
        return self._line("🛑", commit, *parts, cut=True)

    def _change(self, commit: Commit, change: StateChange) -> Line:
        after = change.after.value
        parts: list[Part] = [
            f"{change.routine_id}: {change.before.value} → ",
            (after, STATUS_STYLES.get(after, "")),
        ]
        if change.retry_count or change.attempt > 1:
            parts.append(f" (retry_count: {change.retry_count}, attempt: {change.attempt})")
        return self._line("🔄", commit, *parts)

    def _line(self, mark: str, commit: Commit, *parts: Part, cut: bool = False) -> Line:
        clock = f"[{seconds_text(commit.at_ns - self._start):>{self._digits}}s]"
        return Line(mark, clock, parts, cut)


def _kind_of(commit: Commit) -> _Kind:
    """Return a key that is equal for commits that differ only in task, attempt and payload."""
    error = None if commit.error is None else commit.error.type
    targets = {(task.emission, task.routine_id) for task in commit.tasks}
    sent = [
        (emission.event, *sorted(name for number, name in targets if number == index))
        for index, emission in enumerate(commit.emissions)
    ]
    return commit.kind, commit.routine_id, error, tuple(dict.fromkeys(sent))


def _payload(payload: Mapping[str, object]) -> Iterator[Line]:
    widest = max(map(len, payload), default=0)
    for name, value in payload.items():
        for index, text in enumerate(_summary(value)):
            label = name if index == 0 else ""
            yield Line("", "", ((f"  {label:<{widest}}  ", "dim"), text), cut=True)


def _summary(value: object) -> list[str]:
    """Return short texts that summarize `value`: sizes, first items, keys or scalars."""
    if not isinstance(value, Mapping):
        return [
            _items(value)
            if isinstance(value, _COLLECTIONS)
            else one_line(str(value), _LONGEST_VALUE)
        ]
    lists = {name: inner for name, inner in value.items() if isinstance(inner, _COLLECTIONS)}
    if not lists:
        return [f"keys: {', '.join(map(str, value))}" if value else "no keys"]
    rest = [
        f"{name} {'{…}' if isinstance(inner, Mapping) else one_line(str(inner), 24)}"
        for name, inner in value.items()
        if name not in lists
    ]
    return [
        *(_items(inner, str(name)) for name, inner in lists.items()),
        *([" · ".join(rest)] if rest else []),
    ]


def one_line(text: str, longest: int = 48) -> str:
    """Cut `text` to one line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def plain(text: str) -> str:
    """Replace each unprintable character of `text` by an escape sequence.

    >>> plain("a\x1b[2J")
    'a\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _items(items: _Collection, noun: str = "items") -> str:
    if len(items) == 1:
        count = "1 item" if noun == "items" else f"{noun}: 1 item"
    else:
        count = f"{len(items)} {noun}"
    first = [_item(item) for item in list(items)[:_FIRST_ITEMS]]
    more = ["…"] if len(items) > _FIRST_ITEMS else []
    return f"{count}: {', '.join(first + more)}" if first else count


def _item(item: object) -> str:
    if isinstance(item, Mapping):
        item = " ".join(str(v) for v in item.values() if isinstance(v, str | int | float))
    return one_line(str(item), 30)


def _load(payload: Mapping[str, object]) -> str:
    # Summarizes a payload by its first collection, at most one level down.
    for value in payload.values():
        for inner in (value, *(value.values() if isinstance(value, Mapping) else ())):
            if isinstance(inner, _COLLECTIONS):
                return "1 item" if len(inner) == 1 else f"{len(inner)} items"
    return payload_text(payload)


def payload_text(payload: Mapping[str, object]) -> str:
    """Return the names and short values of a payload in one line."""
    return ", ".join(f"{name}={_summary(value)[0]}" for name, value in payload.items()) or "empty"
