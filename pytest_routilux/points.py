"""Where a host can die.

Invariants:
- Points are enumerated from the undisturbed run, in the order of its world.
- A point's name is in the user's terms and stays when the flow around it changes: task, attempt,
  place.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from pytest_routilux.world import Call
from routilux import Commit, CommitKind, JobStatus
from routilux.instants import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_routilux.crash import Undisturbed

__all__ = ["RESTING", "CrashPoint", "crash_points"]

Kind = Literal[
    "around an effect",
    "before a write",
    "after a write",
    "in a wait",
    "in a recovery",
    "by document",
    "store refuses",
    "store does not answer",
]
"""The kinds of crash points, the simplest to understand first."""
_KINDS: Final = get_args(Kind)
RESTING: Final = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""What a job is that no host goes on with."""
_LONG: Final = 3600 * SECOND


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """One place to die at.

    `commits` and `calls` are how many of the undisturbed run's are in the world then; `at_ns` is
    when the host dies, `resume_ns` when the next one goes on (UTC). `name` is for reproducers,
    `text` for people.
    """

    kind: Kind
    name: str
    text: str
    commits: int
    calls: int
    at_ns: int
    resume_ns: int
    task_id: str | None = None
    routine_id: str | None = None
    attempt: int = 0

    @property
    def simplicity(self) -> tuple[int, int]:
        """What crash points are sorted by to find the simplest: the kind, then the time."""
        return _KINDS.index(self.kind), self.at_ns


def crash_points(run: Undisturbed, *, documents: bool = True) -> list[CrashPoint]:
    """Return every point of an undisturbed run at which a host can die, in their order."""
    return list(_Points(run, documents=documents).all())


class _Points:
    def __init__(self, run: Undisturbed, *, documents: bool) -> None:
        self._run = run
        self._documents = documents
        self._entries = [e for e in run.world.log if isinstance(e[2], Commit | Call)]
        self._times = [entry[0] for entry in self._entries]
        self._names: set[str] = set()
        self._deadlines = {
            name
            for name, handler in run.life.flow.plan().handlers.items()
            if handler.deadline is not None
        }

    def all(self) -> Iterator[CrashPoint]:
        commits = calls = 0
        for at, _, what in self._entries:
            if isinstance(what, Call):
                yield from self._around_effect(what, commits, calls, at)
                calls += 1
            elif isinstance(what, Commit):
                yield from self._around_write(what, commits, calls, at)
                commits += 1

    def _around_effect(self, call: Call, commits: int, calls: int, at: int) -> Iterator[CrashPoint]:
        who = f"task {call.task_id} {call.routine_id}, attempt {call.attempt}"
        step = (call.task_id, call.routine_id, call.attempt)
        place = f"{call.task_id}@a{call.attempt}.effect{call.number}"
        effect = f"effect #{call.number} ({call.effect})"
        yield self._point(
            "around an effect",
            f"{place}.before",
            f"{who}: before {effect}",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "around an effect",
            place,
            f"{who}: after {effect}, before its commit",
            commits,
            calls + 1,
            at,
            step=step,
        )
        if call.routine_id not in self._deadlines:
            yield self._point(
                "around an effect",
                f"{place}.long",
                f"{who}: after {effect}; no host is there for an hour",
                commits,
                calls + 1,
                at,
                at + _LONG,
                step=step,
            )

    def _around_write(
        self, commit: Commit, commits: int, calls: int, at: int
    ) -> Iterator[CrashPoint]:
        step = (commit.task_id, commit.routine_id, commit.attempt)
        if commit.task_id is None:
            who, place = f"the job's {commit.kind}", str(commit.kind)
        else:
            who = f"task {commit.task_id} {commit.routine_id}, attempt {commit.attempt}"
            place = f"{commit.task_id}@a{commit.attempt}"
        if commit.kind is CommitKind.EFFECT:
            name = str((commit.detail or {})["name"])
            before, after = f"{place}.once-{name}", f"{place}.once-{name}.kept"
            what = f"the record of once({name!r})"
        elif commit.task_id is None:
            before, after, what = f"{place}.write", place, "its commit"
        else:
            before, after, what = f"{place}.end", f"{place}.{commit.kind}", "its commit"
        between = (
            "after its handler's end, before" if commit.task_id and not commit.effect else "before"
        )
        yield self._point(
            "before a write", before, f"{who}: {between} {what}", commits, calls, at, step=step
        )
        yield self._point(
            "store refuses",
            f"{before}.refused",
            f"{who}: the store refuses {what}",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "store does not answer",
            f"{before}.unanswered",
            f"{who}: the store keeps {what} and does not answer",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "after a write", after, f"{who}: right after {what}", commits + 1, calls, at, step=step
        )
        if self._run.states[commits + 1].status in RESTING:
            return
        yield self._point(
            "in a recovery",
            f"{after}.recovery",
            f"{who}: right after {what}, and again when the next host has just gone on",
            commits + 1,
            calls,
            at,
            step=step,
        )
        if self._documents:
            yield self._point(
                "by document",
                f"{after}.document",
                f"{who}: right after {what}; the next host has a document of it",
                commits + 1,
                calls,
                at,
                step=step,
            )
        if commit.due_ns is not None and commit.delay_ns:
            yield from self._in_wait(commit, commits + 1, calls, who, step)

    def _in_wait(
        self,
        commit: Commit,
        commits: int,
        calls: int,
        who: str,
        step: tuple[str | None, str | None, int],
    ) -> Iterator[CrashPoint]:
        start, due = commit.at_ns, commit.due_ns or 0
        place = f"{commit.task_id}@a{commit.attempt}.wait"
        what = f"{who}: in the backoff wait after it"
        for name, at, where in (
            ("start", start, "at its start"),
            ("mid", (start + due) // 2, "in the middle of it"),
            ("late", due - 1, "1 ns before it is due"),
        ):
            seen = bisect_right(self._times, at, lo=commits + calls)
            past = self._entries[:seen]
            known = sum(isinstance(entry[2], Commit) for entry in past)
            yield self._point(
                "in a wait",
                f"{place}.{name}",
                f"{what}, {where}",
                known,
                len(past) - known,
                at,
                step=step,
            )
        if commit.routine_id in self._deadlines:
            return  # a deadline runs on while no host is alive
        for name, resume, where in (
            ("overdue", due + 1, "until 1 ns after it was due"),
            ("long", due + _LONG, "until an hour after it was due"),
        ):
            yield self._point(
                "in a wait",
                f"{place}.{name}",
                f"{what}, at its start; no host is there {where}",
                commits,
                calls,
                start,
                resume,
                step=step,
            )

    def _point(
        self,
        kind: Kind,
        name: str,
        text: str,
        commits: int,
        calls: int,
        at: int,
        resume: int | None = None,
        *,
        step: tuple[str | None, str | None, int],
    ) -> CrashPoint:
        unique = name
        number = 2
        while unique in self._names:
            unique = f"{name}~{number}"
            number += 1
        self._names.add(unique)
        return CrashPoint(
            kind, unique, text, commits, calls, at, at if resume is None else resume, *step
        )
