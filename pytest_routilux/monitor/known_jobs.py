"""Recorded jobs, and checks of the names in assertions.

Invariants:
- The names are those of the flow, as the job recorded it, whether or not a routine has run.
- An unknown name raises `FlowDefinitionError` with the names that are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_routilux.text import listed
from routilux import FlowDefinitionError
from routilux.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from routilux import Commit, JobState


@dataclass(slots=True)
class KnownJob:
    """A recorded job with its commits and started attempts."""

    job: JobState
    commits: list[Commit] = field(default_factory=list)
    started: list[tuple[str, str, int]] = field(default_factory=list)  # routine, task, attempt

    @property
    def connections(self) -> list[str]:
        """The flow's connections, each as `source.event -> target.slot`."""
        return self._shape("connection ")

    def events(self, routine: str) -> list[str]:
        """Return the names of a routine's events."""
        return [line.partition("(")[0] for line in self._shape(f"event {routine}.")]

    def _shape(self, head: str) -> list[str]:
        return [line.removeprefix(head) for line in self.job.shape if line.startswith(head)]

    def connections_to(self, routine: str) -> list[str]:
        """Return the connections that lead to a routine."""
        return [line for line in self.connections if f" -> {routine}." in line]

    def ended(self, routine: str) -> bool:
        """Return whether any attempt of a routine has ended."""
        return any(commit.routine_id == routine for commit in self.commits)

    def attempt(self, task_id: str, attempt: int) -> Commit:
        """Return the commit that ended attempt number `attempt` of a task."""
        return next(
            commit
            for commit in self.commits
            if (commit.task_id, commit.attempt) == (task_id, attempt) and commit.kind.ends_attempt
        )

    def last_attempt(self, task_id: str) -> Commit:
        """Return the commit that ended the last attempt of a task."""
        return next(
            commit
            for commit in reversed(self.commits)
            if commit.task_id == task_id and commit.kind.ends_attempt
        )


def known_name(name: str, names: Iterable[str], what: str) -> str:
    """Return `name` if `names` contains it, else raise `FlowDefinitionError`."""
    __tracebackhide__ = True
    names = list(dict.fromkeys(names))
    if name in names:
        return name
    raise FlowDefinitionError(
        f"unknown {what}: {name!r}; known: {', '.join(map(repr, names)) or 'none'}"
        f"{nearest(name, names)}"
    )


def jobs_with(jobs: Sequence[KnownJob], *routines: str) -> list[KnownJob]:
    """Return the jobs that have all `routines`, else raise `FlowDefinitionError`."""
    __tracebackhide__ = True
    for routine in routines:
        names = [name for known in jobs for name in known.job.routine_states]
        known_name(routine, names, "routine of the flow")
    found = [known for known in jobs if not {*routines} - {*known.job.routine_states}]
    if not found:
        raise FlowDefinitionError(
            f"no recorded job has all of these routines: {', '.join(routines)}; use one assertion"
            " per flow"
        )
    return found


def check_connected(jobs: Sequence[KnownJob], source: str, target: str) -> None:
    """Raise `FlowDefinitionError` if no connection leads from `source` to `target`."""
    __tracebackhide__ = True
    leading = [line for known in jobs for line in known.connections_to(target)]
    if not any(line.startswith(f"{source}.") for line in leading):
        lines = dict.fromkeys(line for known in jobs for line in known.connections)
        raise FlowDefinitionError(
            f"no connection leads from {source!r} to {target!r}; known:"
            f" {', '.join(lines) or 'none'}"
        )


def last_commit(jobs: Sequence[KnownJob], routine: str) -> tuple[KnownJob, Commit]:
    """Return the pair (job, commit) for the last commit of `routine`.

    Without such a commit, return a job that has the routine, and the last commit of that job.
    """
    for known in jobs:
        for commit in reversed(known.commits):
            if commit.routine_id == routine:
                return known, commit
    known = next((one for one in jobs if routine in one.job.routine_states), jobs[0])
    return known, known.commits[-1]


def reason_of_silence(known: KnownJob, routine: str) -> str:
    """Return advice about a routine without emissions or retries."""
    if known.ended(routine):
        return f"the error of {routine}: only an attempt that succeeds emits"
    connections = listed(known.connections_to(routine)) or "none"
    return f"why no attempt of {routine} ended; connections to {routine}: {connections}"
