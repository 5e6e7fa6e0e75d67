"""Lists the points of a run at which a host can die.

Invariants:
- Points are enumerated from the undisturbed run, in the order of its log.
- A point is named by its task, its attempt and what the attempt does then. So a change elsewhere in
  the flow keeps the name.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from pytest_routilux.sim.simulator.model import ENDED, Call, CrashPoint
from pytest_routilux.text import shorten
from routilux import Commit, CommitKind
from routilux.clocks.durations import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_routilux.sim.simulator.model import Kind, Undisturbed

_LONG: Final = 3600 * SECOND
_LONGEST_PLACE: Final = 32
_OF_STORE: Final = ("store refuses", "store does not answer")


def crash_points(run: Undisturbed, *, documents: bool = True) -> list[CrashPoint]:
    """Return each point of `run` at which a host can die."""
    return list(_Points(run, documents=documents).all())


def new_points(run: Undisturbed, other: Undisturbed) -> list[CrashPoint]:
    """Return the points of `other`, which ran in another order, that `run` has not.

    A point is the same if the same commits and effects came before it, in the same order. Points of
    kinds that test the store or the saved form are left out: no order matters to these.
    """
    known = {_identity(run, point) for point in crash_points(run, documents=False)}
    return [
        point
        for point in crash_points(other, documents=False)
        if point.kind not in _OF_STORE and _identity(other, point) not in known
    ]


def _identity(run: Undisturbed, point: CrashPoint) -> tuple[object, ...]:
    before = run.world.cut(point.commits, point.calls, point.at_ns).log
    events = [
        (what.kind, what.task_id, what.attempt)
        if isinstance(what, Commit)
        else (what.effect, what.task_id, what.attempt)
        for _, _, what in before
        if isinstance(what, Commit | Call)
    ]
    return point.kind, point.name, tuple(events)


_Step: TypeAlias = tuple[str | None, str | None, int]
"""A task, its routine, and the attempt."""


class _Instant(NamedTuple):
    """The number of commits and effect calls at an instant."""

    commits: int
    calls: int
    at_ns: int  # UTC


class _Points:
    def __init__(self, run: Undisturbed, *, documents: bool) -> None:
        self._run = run
        self._documents = documents
        self._entries = [e for e in run.world.log if isinstance(e[2], Commit | Call)]
        self._times = [entry[0] for entry in self._entries]
        self._names: set[str] = set()
        self._pauses = [this.at_ns for this in run.world.awaits]
        self._awaits = 0  # of the run, before the next point
        self._deadlines = {
            name
            for name, handler in run.host.flow.plan().handlers.items()
            if handler.deadline is not None
        }

    def all(self) -> Iterator[CrashPoint]:
        commits = calls = 0
        first = None if self._run.crash is None else self._run.crash[1]
        for at, _, what in self._entries:
            if first is not None and commits + calls < first.commits + first.calls:
                commits += isinstance(what, Commit)
                calls += isinstance(what, Call)
                continue
            yield from self._at_awaits(commits, calls)
            if isinstance(what, Call):
                yield from self._around_effect(what, _Instant(commits, calls, at))
                calls += 1
            elif isinstance(what, Commit):
                yield from self._around_write(what, _Instant(commits, calls, at))
                commits += 1
        yield from self._in_sleeps()

    def _at_awaits(self, commits: int, calls: int) -> Iterator[CrashPoint]:
        """Yield the points at the awaits between two entries of the log."""
        awaits = self._run.world.awaits
        while self._awaits < len(awaits):
            this = awaits[self._awaits]
            if (this.commits, this.calls) != (commits, calls):
                return
            step = (this.task_id, this.routine_id, this.attempt)
            place = f"{this.task_id}@a{this.attempt}.await{this.number}"
            where = shorten(Path(this.where).name, _LONGEST_PLACE, "end")
            text = (
                f"task {this.task_id} {this.routine_id}, attempt {this.attempt}:"
                f" {'after' if this.over else 'in'} await #{this.number} ({where})"
            )
            instant = _Instant(commits, calls, this.at_ns)
            name = f"{place}.after" if this.over else place
            yield self._point(step, "at an await", name, text, instant)
            self._awaits += 1

    def _in_sleeps(self) -> Iterator[CrashPoint]:
        for step, instants in self._run.host.sleeps:
            task, attempt = step.task, step.attempt
            for number, at in enumerate(instants, 1):
                point = self._point(
                    (task.task_id, task.routine_id, attempt),
                    "in a sleep",
                    f"{task.task_id}@a{attempt}.sleep{number}",
                    f"task {task.task_id} {task.routine_id}, attempt {attempt}: in the middle of"
                    f" ctx.sleep #{number}",
                    self._at(at),
                )
                yield replace(point, awaits=bisect_right(self._pauses, at))

    def _at(self, at_ns: int, lo: int = 0) -> _Instant:
        """Return the instant `at_ns`, which is not before entry `lo` of the log."""
        seen = bisect_right(self._times, at_ns, lo=lo)
        known = sum(isinstance(entry[2], Commit) for entry in self._entries[:seen])
        return _Instant(known, seen - known, at_ns)

    def _around_effect(self, call: Call, before: _Instant) -> Iterator[CrashPoint]:
        kind: Kind = "around an effect"
        step = (call.task_id, call.routine_id, call.attempt)
        who = f"task {call.task_id} {call.routine_id}, attempt {call.attempt}"
        place = f"{call.task_id}@a{call.attempt}.effect{call.number}"
        effect = f"effect #{call.number} ({call.effect})"
        after = before._replace(calls=before.calls + 1)
        yield self._point(step, kind, f"{place}.before", f"{who}: before {effect}", before)
        yield self._point(step, kind, place, f"{who}: after {effect}, before its commit", after)
        text = f"{who}: after {effect}; no host runs for an hour"
        yield self._long(step, kind, f"{place}.long", text, after, after.at_ns + _LONG)

    def _around_write(self, commit: Commit, before: _Instant) -> Iterator[CrashPoint]:
        step = (commit.task_id, commit.routine_id, commit.attempt)
        if commit.task_id is None:
            who, place = f"the job's {commit.kind}", str(commit.kind)
        else:
            who = f"task {commit.task_id} {commit.routine_id}, attempt {commit.attempt}"
            place = f"{commit.task_id}@a{commit.attempt}"
        if commit.kind is CommitKind.EFFECT:
            name = str((commit.detail or {})["name"])
            start, end = f"{place}.once-{name}", f"{place}.once-{name}.kept"
            what = f"the record of once({name!r})"
        elif commit.task_id is None:
            start, end, what = f"{place}.write", place, "its commit"
        else:
            start, end, what = f"{place}.end", f"{place}.{commit.kind}", "its commit"
        between = (
            "after its handler's end, before" if commit.task_id and not commit.effect else "before"
        )
        after = before._replace(commits=before.commits + 1)
        yield self._point(step, "before a write", start, f"{who}: {between} {what}", before)
        text = f"{who}: the store refuses {what}"
        yield self._point(step, "store refuses", f"{start}.refused", text, before)
        text = f"{who}: the store keeps {what} and does not answer"
        yield self._point(step, "store does not answer", f"{start}.unanswered", text, before)
        yield self._point(step, "after a write", end, f"{who}: right after {what}", after)
        state = self._run.states[after.commits]
        if state.status in ENDED:
            return
        text = f"{who}: right after {what}, and again when the next host has just resumed"
        yield self._point(step, "in a recovery", f"{end}.recovery", text, after)
        if self._documents:
            text = f"{who}: right after {what}; the next host loads the job from a document"
            yield self._point(step, "by document", f"{end}.document", text, after)
        if commit.due_ns is not None and commit.delay_ns:
            yield from self._in_wait(commit, after, who, step)
        else:
            text = f"{who}: right after {what}; no host runs for an hour"
            yield self._long(step, "no host", f"{end}.long", text, after, after.at_ns + _LONG)

    def _in_wait(
        self, commit: Commit, after: _Instant, who: str, step: _Step
    ) -> Iterator[CrashPoint]:
        start, due = commit.at_ns, commit.due_ns or 0
        place = f"{commit.task_id}@a{commit.attempt}.wait"
        what = f"{who}: in the backoff wait after the attempt"
        for name, at, where in (
            ("start", start, "at the start of the wait"),
            ("mid", (start + due) // 2, "in the middle of the wait"),
            ("late", due - 1, "1 ns before the retry is due"),
        ):
            then = self._at(at, after.commits + after.calls)
            point = self._point(step, "in a wait", f"{place}.{name}", f"{what}, {where}", then)
            yield replace(point, awaits=bisect_right(self._pauses, at, lo=self._awaits))
        then = after._replace(at_ns=start)
        for name, resume, where in (
            ("overdue", due + 1, "until 1 ns after the retry was due"),
            ("long", due + _LONG, "until an hour after the retry was due"),
        ):
            text = f"{what}, at the start of the wait; no host runs {where}"
            yield self._long(step, "in a wait", f"{place}.{name}", text, then, resume)

    def _long(self, step: _Step, *point: Any) -> CrashPoint:
        """Return a point after which no host runs for so long that a deadline may pass."""
        found = self._point(step, *point)
        waiting = {task.routine_id for task in self._run.states[found.commits].pending_tasks}
        return replace(found, outlasts=found.outlasts or bool(self._deadlines & waiting))

    def _point(
        self,
        step: _Step,
        kind: Kind,
        name: str,
        text: str,
        instant: _Instant,
        resume_ns: int | None = None,
    ) -> CrashPoint:
        names = chain([name], (f"{name}~{number}" for number in count(2)))
        unique = next(name for name in names if name not in self._names)
        self._names.add(unique)
        resume_ns = instant.at_ns if resume_ns is None else resume_ns
        order, crash = self._run.order, self._run.crash
        first = None if crash is None else crash[1]
        outlasts = first is not None and first.outlasts
        counted = (*instant, resume_ns, *step, self._awaits)
        return CrashPoint(kind, unique, text, *counted, order, first, outlasts)
