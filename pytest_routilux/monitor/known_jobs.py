"""The jobs that a monitor has watched, and the names that may be asked for.

Laws:
- The names are those of the flow as the job knows it, whether or not anything has run.
- A name that is not known is an error that lists those that are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_routilux.text import listed
from routilux import CommitKind, FlowDefinitionError
from routilux.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from routilux import Commit, JobState

__all__ = [
    "Seen",
    "check_connected",
    "check_event",
    "knowing",
    "known",
    "last_word",
    "why_silent",
]


@dataclass(slots=True)
class Seen:
    """One job that was watched: its state, its commits, and the attempts that began."""

    job: JobState
    commits: list[Commit] = field(default_factory=list)
    begun: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def routines(self) -> list[str]:
        """The ids of the flow's routines."""
        return list(self.job.routine_states)

    @property
    def connections(self) -> list[str]:
        """The flow's connections, in words."""
        head = "connection "
        return [line.removeprefix(head) for line in self.job.shape if line.startswith(head)]

    def events(self, routine: str) -> list[str]:
        """Return the names of the events of a routine."""
        head = f"event {routine}."
        return [
            line.removeprefix(head).partition("(")[0]
            for line in self.job.shape
            if line.startswith(head)
        ]

    def connected(self, source: str, target: str) -> bool:
        """Return whether a connection leads from one routine to the other."""
        return any(line.startswith(f"{source}.") for line in self.feeds(target))

    def feeds(self, routine: str) -> list[str]:
        """Return the connections that lead to a routine."""
        return [line for line in self.connections if f" -> {routine}." in line]

    def state(self, routine: str) -> str:
        """Return the status of a routine."""
        return self.job.routine_states[routine].status.value

    def ended(self, routine: str) -> bool:
        """Return whether an attempt of a routine has ended."""
        return any(commit.routine_id == routine for commit in self.commits)

    def commit(self, seq: int) -> Commit:
        """Return a commit by its number."""
        return next(commit for commit in self.commits if commit.seq == seq)

    def attempt(self, task_id: str, attempt: int) -> Commit:
        """Return the commit that ended an attempt of a task."""
        return next(
            commit
            for commit in self.commits
            if (commit.task_id, commit.attempt) == (task_id, attempt)
            and commit.kind not in (CommitKind.EFFECT, CommitKind.CONFLICT)
        )


def known(name: str, names: Iterable[str], what: str) -> str:
    """Return a name that is known; raises `FlowDefinitionError` with the names that are."""
    __tracebackhide__ = True
    known = list(dict.fromkeys(names))
    if name in known:
        return name
    raise FlowDefinitionError(
        f"{name!r} is no {what}; known: {', '.join(map(repr, known)) or 'none'}"
        f"{nearest(name, known)}"
    )


def knowing(jobs: Sequence[Seen], *routines: str) -> list[Seen]:
    """Return the jobs whose flows have all these routines; raises where there is none."""
    __tracebackhide__ = True
    for routine in routines:
        known(routine, [name for seen in jobs for name in seen.routines], "routine of the flow")
    found = [seen for seen in jobs if not {*routines} - {*seen.routines}]
    if not found:
        raise FlowDefinitionError(f"no job that was watched has all of {', '.join(routines)}")
    return found


def check_event(jobs: Sequence[Seen], routine: str, event: str) -> None:
    """Raise `FlowDefinitionError` unless the routine declares the event."""
    __tracebackhide__ = True
    events = [name for seen in jobs for name in seen.events(routine)]
    known(event, events, f"event of {routine}")


def check_connected(jobs: Sequence[Seen], source: str, target: str) -> None:
    """Raise `FlowDefinitionError` unless a connection leads from one to the other."""
    __tracebackhide__ = True
    if not any(seen.connected(source, target) for seen in jobs):
        lines = dict.fromkeys(line for seen in jobs for line in seen.connections)
        raise FlowDefinitionError(
            f"no connection leads from {source!r} to {target!r}; known:"
            f" {', '.join(lines) or 'none'}"
        )


def last_word(jobs: Sequence[Seen], routine: str) -> tuple[Seen, Commit]:
    """Return the routine's last commit, or the last of its job, where it has none."""
    for seen in jobs:
        for commit in reversed(seen.commits):
            if commit.routine_id == routine:
                return seen, commit
    for seen in jobs:
        if routine in seen.routines:
            return seen, seen.commits[-1]
    return jobs[0], jobs[0].commits[-1]


def why_silent(seen: Seen, routine: str) -> str:
    """Return what to look at where a routine did nothing that counts."""
    if seen.ended(routine):
        return f"the error of {routine}: what an attempt emits counts once it succeeds"
    feeds = seen.feeds(routine)
    if not feeds:
        return f"{routine} never ended an attempt, and no connection leads to it"
    return f"{routine} never ended an attempt; what feeds it: {listed(feeds)}"
