"""`ExecutionMonitor`: records the events, data flows, state changes and retries of jobs.

Invariants:
- A monitor reads only commits, so it can be rebuilt from a job on any host.
- Its times are those of the job, exact, in nanoseconds.
- An observer gets a commit after it is durable; it can't change the commit or break the job.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from routilux.clocks.durations import from_ns
from routilux.core.commits import Commit, CommitKind, HistoryRecord, history_length, history_of
from routilux.core.parts import RoutineState, RoutineStatus
from routilux.errors import RoutiluxError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from routilux.core.state import JobState
    from routilux.graph.messages import ErrorInfo, Task

# To look up a member of an enum costs as much as a call.
_DONE = CommitKind.DONE
_FAILED = CommitKind.FAILED
_RESUMED = CommitKind.RESUMED
_RETRY = CommitKind.RETRY
_START = CommitKind.START


class Observer(Protocol):
    """An object that receives each commit of a runtime's jobs.

    Commits come in order, one at a time. The optional `on_step(job, step)` gets each step that
    starts; steps are not durable. An observer's error is logged and counted; nothing else changes.
    """

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Handle a durable commit without changing `job`."""


@dataclass(slots=True)
class DataFlow:
    """One delivery of an event from a routine to a slot."""

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
    """A change of a routine's status from `before` to `after`.

    `attempt` and `retry_count` are those of the task that caused the change; 0 for a resumption.
    """

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
    """One retry of a task, with planned and actual times.

    Attempt `attempt` failed at `failed_ns`; the next attempt was due at `due_ns` and started at
    `started_ns`, which is None until that attempt has ended. `number` counts retries from 1.
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
        """The planned wait between the failure and the next attempt."""
        return from_ns(self.delay_ns) - from_ns(0)

    @property
    def due_at(self) -> datetime:
        """The UTC time when the next attempt was due."""
        return from_ns(self.due_ns)

    @property
    def actual_ns(self) -> int | None:
        """The nanoseconds from the failure to the next attempt; None until that attempt ends."""
        return None if self.started_ns is None else self.started_ns - self.failed_ns


class _Followed:
    """A monitor's record of one job's routines and tasks."""

    __slots__ = ("failed_routines", "failed_tasks", "last", "states", "waiting")

    def __init__(self) -> None:
        self.states: dict[str, RoutineState] = {}
        self.failed_routines: dict[str, RoutineState] = {}
        self.failed_tasks: set[str] = set()
        self.last: dict[str, Retry] = {}  # the last retry of each task
        self.waiting: dict[str, Retry] = {}  # those that a resume may shorten


def _delivered(commit: Commit) -> Sequence[Task]:
    return [task for task in commit.tasks if task.emission >= 0]


class ExecutionMonitor:
    """An observer that records the events, data flows, state changes and retries of jobs.

    `events` are history records, `data_flows` deliveries, `state_changes` those of routines,
    `retries` planned and actual waits, `commits` all commits in their order.

    >>> ExecutionMonitor().summary()
    {'events': 0, 'data_flows': 0, 'state_changes': 0}
    """

    def __init__(self) -> None:
        self.commits: list[tuple[str, Commit]] = []
        self.events: list[HistoryRecord] = []
        self.data_flows: list[DataFlow] = []
        self.state_changes: list[StateChange] = []
        self.retries: list[Retry] = []
        self._followed: defaultdict[str, _Followed] = defaultdict(_Followed)

    @classmethod
    def of(cls, job: JobState) -> ExecutionMonitor:
        """Return a monitor that has observed all commits of a job.

        Raises `RoutiluxError` if the job does not have its first commits any more.
        """
        if job.commits and job.commits[0].seq > 1:
            raise RoutiluxError(
                f"job {job.job_id} has only its commits from {job.commits[0].seq} on; load the job"
                " with load(job_id, history=True)"
            )
        monitor = cls()
        for commit in job.commits:
            monitor.on_commit(job, commit)
        return monitor

    def summary(self) -> dict[str, int]:
        """Return the numbers of recorded events, data flows and state changes."""
        return {
            "events": len(self.events),
            "data_flows": len(self.data_flows),
            "state_changes": len(self.state_changes),
        }

    @classmethod
    def summary_of(cls, job: JobState) -> dict[str, int]:
        """Return the same counts as `of(job).summary()`, but use less memory."""
        monitor = cls()
        events = data_flows = 0
        for commit in job.commits:
            monitor._follow(job.job_id, commit)
            events += history_length(commit)
            data_flows += len(_delivered(commit))
        state_changes = len(monitor.state_changes)
        return {"events": events, "data_flows": data_flows, "state_changes": state_changes}

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Record the events, data flows, state changes and retries of `commit`."""
        job_id = job.job_id
        self.events += history_of(commit)
        source = job_id, commit.seq, commit.at_ns, cast(str, commit.routine_id)
        for task in _delivered(commit):
            event = commit.emissions[task.emission].event
            target = task.routine_id, task.slot, task.payload, task.task_id
            self.data_flows.append(DataFlow(*source, event, *target))
        self._follow(job_id, commit)

    def _follow(self, job_id: str, commit: Commit) -> None:
        self.commits.append((job_id, commit))
        kind = commit.kind
        if kind is _RESUMED:
            self._resumed(job_id, commit)
        elif commit.task_id is not None and kind.ends_attempt:
            self._attempted(job_id, commit.task_id, cast(str, commit.routine_id), commit)

    def _attempted(self, job_id: str, task_id: str, routine_id: str, commit: Commit) -> None:
        job = self._followed[job_id]
        last = job.last.get(task_id)
        spent = 0
        if last is not None:
            spent = last.number
            if last.started_ns is None:
                last.started_ns = commit.started_ns
                job.waiting.pop(task_id, None)
        kind = commit.kind
        if kind is _RETRY:
            delay, due = commit.delay_ns or 0, commit.due_ns or commit.at_ns
            number, attempt, failed = spent + 1, commit.attempt, commit.at_ns
            retry = Retry(
                job_id, task_id, routine_id, number, attempt, failed, delay, due, commit.error
            )
            job.last[task_id] = job.waiting[task_id] = retry
            self.retries.append(retry)
            return
        state = job.states.setdefault(routine_id, RoutineState())
        before = state.status
        if kind is _DONE:
            state.completed += 1
        elif kind is _FAILED:
            state.failed += 1
            job.failed_routines[routine_id] = state
            job.failed_tasks.add(task_id)
        elif (commit.detail or {})["as"] == RoutineStatus.SKIPPED:
            state.skipped += 1
        else:
            state.error_continued += 1
        if state.status is not before:
            self._changed(job_id, commit, routine_id, before, state.status, commit.attempt, spent)

    def _changed(self, job_id: str, commit: Commit, *change: Any) -> None:
        self.state_changes.append(StateChange(job_id, commit.seq, commit.at_ns, *change))

    def _resumed(self, job_id: str, commit: Commit) -> None:
        job = self._followed[job_id]
        # Since the time of commits never goes back, a wait is shortened by one resume at most.
        for retry in job.waiting.values():
            if retry.due_ns > commit.at_ns:
                retry.due_ns = commit.at_ns + min(retry.due_ns - commit.at_ns, retry.delay_ns)
        job.waiting.clear()
        if not (commit.detail or {}).get("retry_failed"):
            return
        for routine_id, state in job.failed_routines.items():
            before = state.status
            state.failed = 0
            self._changed(job_id, commit, routine_id, before, state.status, 0, 0)
        for task_id in job.failed_tasks:
            job.last.pop(task_id, None)
        job.failed_routines.clear()
        job.failed_tasks.clear()
