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

    Commits come in order, one at a time. The optional method `on_step(job, step)` gets the
    `StepInput` of each step that starts; steps are not durable. An observer's error is logged and
    counted in `Runtime.observer_failures`; nothing else changes.

    >>> from routilux import Flow, Routine, Runtime
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["greeting"] = "hello"
    >>> class Printer:
    ...     def on_commit(self, job, commit):
    ...         print(commit.seq, commit.kind.value, job.status.value)
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> _ = flow.execute("hello", runtime=Runtime(observers=[Printer()]))
    1 start running
    2 done completed
    """

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Handle a durable commit without changing `job`."""


@dataclass(slots=True)
class DataFlow:
    """One delivery of an event from a routine to a slot; see `ExecutionMonitor.data_flows`."""

    job_id: str
    """The job."""
    seq: int
    """The number of the commit that emitted the event."""
    at_ns: int
    """The time of that commit, in UTC nanoseconds."""
    source: str
    """The routine that emitted it."""
    event: str
    """The name of the event."""
    target: str
    """The routine that receives it."""
    slot: str
    """The slot that receives it."""
    payload: Mapping[str, object]
    """The payload, as the handler gets it."""
    task_id: str
    """The task that the delivery created."""


@dataclass(slots=True)
class StateChange:
    """A change of a routine's status; see `ExecutionMonitor.state_changes`."""

    job_id: str
    """The job."""
    seq: int
    """The number of the commit that changed the status."""
    at_ns: int
    """The time of that commit, in UTC nanoseconds."""
    routine_id: str
    """The routine."""
    before: RoutineStatus
    """The status before."""
    after: RoutineStatus
    """The status after."""
    attempt: int
    """The attempt that caused the change; 0 for a resumption."""
    retry_count: int
    """The retries that its task had spent; 0 for a resumption."""


@dataclass(slots=True)
class Retry:
    """One retry of a task, with planned and actual times; see `ExecutionMonitor.retries`."""

    job_id: str
    """The job."""
    task_id: str
    """The task."""
    routine_id: str
    """Its routine."""
    number: int
    """The number of the retry, from 1."""
    attempt: int
    """The attempt that failed."""
    failed_ns: int
    """When it failed, in UTC nanoseconds."""
    delay_ns: int
    """The planned wait, in nanoseconds."""
    due_ns: int
    """When the next attempt was due, in UTC nanoseconds."""
    error: ErrorInfo | None
    """The error of the attempt."""
    started_ns: int | None = None
    """When the next attempt started, in UTC nanoseconds; None until it has ended."""

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

    Pass it to a `Runtime` as an observer, or make one of a job's commits:

    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["greeting"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> monitor = ExecutionMonitor.of(flow.execute("hello"))
    >>> monitor.summary()
    {'events': 1, 'data_flows': 0, 'state_changes': 1}
    >>> monitor.state_changes[0].after.value
    'completed'
    """

    def __init__(self) -> None:
        self.commits: list[tuple[str, Commit]] = []
        """All commits, each with the id of its job, in their order."""
        self.events: list[HistoryRecord] = []
        """The records of the jobs' history."""
        self.data_flows: list[DataFlow] = []
        """The deliveries of events."""
        self.state_changes: list[StateChange] = []
        """The changes of routines' statuses."""
        self.retries: list[Retry] = []
        """The retries, with planned and actual waits."""
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
