"""What happened, as typed records: `ExecutionMonitor`, fed by commits.

Laws:
- A monitor knows commits and nothing else, so it can be rebuilt from a job on any host.
- Its times are the job's, exact, in nanoseconds.
- An observer is told after a commit is durable; it can't change it and can't break the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from routilux.clocks.durations import from_ns
from routilux.core.commits import Commit, CommitKind, HistoryRecord, history_length, history_of
from routilux.core.parts import RoutineState, RoutineStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from routilux.core.state import JobState
    from routilux.graph.messages import ErrorInfo, Task

__all__ = ["DataFlow", "ExecutionMonitor", "Observer", "Retry", "StateChange"]

# Looking a member up at its enum costs as much as a call.
_CONFLICT = CommitKind.CONFLICT
_DONE = CommitKind.DONE
_EFFECT = CommitKind.EFFECT
_FAILED = CommitKind.FAILED
_RESUMED = CommitKind.RESUMED
_RETRY = CommitKind.RETRY
_START = CommitKind.START


class Observer(Protocol):
    """Hears of every commit of a runtime's jobs, in order, one at a time.

    A method `on_step(job, step)`, if there is one, hears of each step that starts; that is not
    durable. What an observer raises is logged and counted, and changes nothing.
    """

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Hear of a commit that was accepted; `job` must not be changed."""


@dataclass(slots=True)
class DataFlow:
    """One delivery: an event of `source` to a slot of `target`, as task `task_id`."""

    job_id: str
    seq: int
    at_ns: int
    source: str
    event: str
    target: str
    slot: str
    payload: Mapping[str, object]
    task_id: str


@dataclass(slots=True)
class StateChange:
    """A routine's status changed, by the end of attempt `attempt` with `retry_count` retries."""

    job_id: str
    seq: int
    at_ns: int
    routine_id: str
    before: RoutineStatus
    after: RoutineStatus
    attempt: int
    retry_count: int


@dataclass(slots=True)
class Retry:
    """One retry of a task: its number from 1, the planned delay, and when it really began.

    `failed_ns` is when attempt `attempt` failed, `due_ns` when the next was due, `started_ns`
    when it began; None while it has not ended.
    """

    job_id: str
    task_id: str
    routine_id: str
    number: int
    attempt: int
    failed_ns: int
    delay_ns: int
    due_ns: int
    error: ErrorInfo | None
    started_ns: int | None = None

    @property
    def delay(self) -> timedelta:
        """The planned delay."""
        return from_ns(self.delay_ns) - from_ns(0)

    @property
    def due_at(self) -> datetime:
        """When the next attempt was due (UTC)."""
        return from_ns(self.due_ns)

    @property
    def actual_ns(self) -> int | None:
        """How long it really waited, in nanoseconds; None while the next attempt has not ended."""
        return None if self.started_ns is None else self.started_ns - self.failed_ns


def _delivered(commit: Commit) -> Sequence[Task]:
    return () if commit.kind is _START else commit.tasks


class ExecutionMonitor:
    """An observer that keeps what happened as typed records.

    `events` are history records, `data_flows` deliveries, `state_changes` those of routines,
    `retries` planned and actual waits, `commits` all commits in the order in which they came.

    >>> ExecutionMonitor().summary()
    {'events': 0, 'data_flows': 0, 'state_changes': 0}
    """

    def __init__(self) -> None:
        self.commits: list[tuple[str, Commit]] = []
        self.events: list[HistoryRecord] = []
        self.data_flows: list[DataFlow] = []
        self.state_changes: list[StateChange] = []
        self.retries: list[Retry] = []
        self._states: dict[tuple[str, str], RoutineState] = {}
        self._last: dict[tuple[str, str], Retry] = {}  # of each task that spent any

    @classmethod
    def of(cls, job: JobState) -> ExecutionMonitor:
        """Return the monitor that would have watched a job from its first commit."""
        monitor = cls()
        for commit in job.commits:
            monitor.on_commit(job, commit)
        return monitor

    def summary(self) -> dict[str, int]:
        """Return how many events, data flows and state changes there were."""
        return {
            "events": len(self.events),
            "data_flows": len(self.data_flows),
            "state_changes": len(self.state_changes),
        }

    @classmethod
    def summary_of(cls, job: JobState) -> dict[str, int]:
        """Return the summary of the monitor `of` a job; events and data flows are only counted."""
        monitor = cls()
        events = data_flows = 0
        for commit in job.commits:
            monitor._follow(job.job_id, commit)
            events += history_length(commit)
            data_flows += len(_delivered(commit))
        state_changes = len(monitor.state_changes)
        return {"events": events, "data_flows": data_flows, "state_changes": state_changes}

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Add what a commit tells."""
        job_id = job.job_id
        self.events += history_of(commit)
        for task in _delivered(commit):
            self.data_flows.append(
                DataFlow(
                    job_id,
                    commit.seq,
                    commit.at_ns,
                    cast(str, commit.routine_id),
                    commit.emissions[task.emission].event,
                    task.routine_id,
                    task.slot,
                    task.payload,
                    task.task_id,
                )
            )
        self._follow(job_id, commit)

    def _follow(self, job_id: str, commit: Commit) -> None:
        self.commits.append((job_id, commit))
        kind = commit.kind
        if kind is _RESUMED:
            self._resumed(job_id, commit)
            return
        task_id, routine_id = commit.task_id, commit.routine_id
        if task_id is None or routine_id is None:
            return
        if kind is not _EFFECT and kind is not _CONFLICT:
            self._attempted(job_id, task_id, routine_id, commit)

    def _attempted(self, job_id: str, task_id: str, routine_id: str, commit: Commit) -> None:
        task = job_id, task_id
        last = self._last.get(task)
        spent = 0
        if last is not None:
            spent = last.number
            if last.started_ns is None:
                last.started_ns = commit.started_ns
        kind = commit.kind
        if kind is _RETRY:
            retry = self._last[task] = Retry(
                job_id,
                task_id,
                routine_id,
                spent + 1,
                commit.attempt,
                commit.at_ns,
                commit.delay_ns or 0,
                commit.due_ns or commit.at_ns,
                commit.error,
            )
            self.retries.append(retry)
            return
        state = self._states.setdefault((job_id, routine_id), RoutineState())
        before = state.status
        if kind is _DONE:
            state.completed += 1
        elif kind is _FAILED:
            state.failed += 1
        elif (commit.detail or {})["as"] == RoutineStatus.SKIPPED:
            state.skipped += 1
        else:
            state.error_continued += 1
        if state.status is not before:
            self.state_changes.append(
                StateChange(
                    job_id,
                    commit.seq,
                    commit.at_ns,
                    routine_id,
                    before,
                    state.status,
                    commit.attempt,
                    spent,
                )
            )

    def _resumed(self, job_id: str, commit: Commit) -> None:
        for (job, _), retry in self._last.items():
            if job == job_id and retry.started_ns is None and retry.due_ns > commit.at_ns:
                retry.due_ns = commit.at_ns + min(retry.due_ns - commit.at_ns, retry.delay_ns)
        if not (commit.detail or {}).get("retry_failed"):
            return
        for (job, routine_id), state in self._states.items():
            if job == job_id and state.failed:
                before = state.status
                state.failed = 0
                self.state_changes.append(
                    StateChange(
                        job_id, commit.seq, commit.at_ns, routine_id, before, state.status, 0, 0
                    )
                )
        for key in [key for key in self._last if key[0] == job_id]:
            if self._failed_last(key):
                del self._last[key]

    def _failed_last(self, key: tuple[str, str]) -> bool:
        job_id, task_id = key
        for job, commit in reversed(self.commits):
            if job == job_id and commit.task_id == task_id:
                return commit.kind is _FAILED
        return False
