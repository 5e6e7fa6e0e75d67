"""`JobState`: the state of one job, for users to read, copy and save.

Invariants:
- A job changes only by the commits that `FoldedJob.fold` adds.
- Statuses of routines and the history are derived when they are read.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from routilux import codec
from routilux.core.commits import HistoryRecord, JobStatus, history_of
from routilux.core.fold import FoldedJob
from routilux.core.gathering import link
from routilux.core.parts import Gathering, PendingTask, RoutineState
from routilux.core.saved import job_members, load
from routilux.errors import JobFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from routilux.core.parts import Output
    from routilux.graph.messages import DroppedTask, ErrorInfo

# Measured: a copy of a job by these takes half as long as one by getattr and each name.
_values_of: Final = attrgetter(*FoldedJob.__slots__)
_values_of_routine: Final = attrgetter(*RoutineState.__slots__)
_values_of_task: Final = attrgetter(*PendingTask.__slots__)


class JobState(FoldedJob):
    """The state of a job, which is one execution of a flow.

    `==` compares by value. Each commit changes a job that a host runs: read it between two
    commits, through `run.job` or in an observer.

    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...         self.define_event("output", ["text"])
    ...     def hello(self, name):
    ...         self.emit("output", text=f"hello {name}")
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> job = flow.execute("hello", {"name": "world"})
    >>> job.status.value, job.outputs[0].data
    ('completed', {'text': 'hello world'})
    >>> [record.event for record in job.execution_history]
    ['start', 'output']
    >>> job.at(1).status.value
    'running'
    """

    __slots__ = ()

    job_id: str
    """The id of the job."""
    flow_id: str
    """The id of its flow."""
    status: JobStatus
    """The status after the last commit."""
    seq: int
    """The number of the last commit; 0 before the first."""
    started_ns: int
    """The time of the first commit, in UTC nanoseconds."""
    updated_ns: int
    """The time of the last commit, in UTC nanoseconds."""
    routine_states: dict[str, RoutineState]
    """The saved data and the task counts of each routine, by its id."""
    outputs: list[Output]
    """The emitted events that no connection takes, in order."""
    dropped: list[DroppedTask]
    """The failed tasks that CONTINUE or SKIP dropped, in order."""
    error: ErrorInfo | None
    """The error that failed the job."""
    shape: tuple[str, ...]
    """The graph of its flow, as `Flow.shape`."""
    recoveries: int
    """The resumptions in a row after an unclean stop without progress."""
    stops: tuple[str, ...]
    """What ended each run that `recoveries` counts, the last ten."""
    interruption: ErrorInfo | None
    """The error from outside the flow that ended the last run, until the job is resumed."""
    interrupted_task: str | None
    """The task whose attempt that error interrupted."""
    history_limit: int | None
    """The `history_limit` of the runtime that runs or loaded it."""
    clock_ns: Callable[[], int] | None
    """The clock of its runtime: a saved form says when it was saved."""
    store: object | None
    """The `JobStore` that keeps it; None for a job of a saved form, or of `at`.

    Only a runtime with this store can resume the job.
    """

    # --- reading it -----------------------------------------------------------------------------

    @property
    def execution_history(self) -> list[HistoryRecord]:
        """The job's start, emissions and errors, oldest first."""
        return [record for commit in self._commits for record in history_of(commit)]

    @property
    def is_final(self) -> bool:
        """Whether the job is completed or cancelled."""
        return self.status.is_final

    def retry_count(self, routine_id: str | None = None) -> int:
        """Return the most retries that one task (of `routine_id`) has used."""
        if routine_id is not None:
            return self.routine_states[routine_id].retry_count
        return max((state.retry_count for state in self.routine_states.values()), default=0)

    def at(self, seq: int) -> JobState:
        """Return the job's state after commit `seq`; 0 means no commit.

        Raises `ValueError` if there is no such commit, or if older commits are no longer kept.
        """
        if self._commits and self._commits[0].seq != 1:
            raise ValueError(
                f"job {self.job_id} no longer has the commits before {self._commits[0].seq}"
            )
        if not 0 <= seq <= len(self._commits):
            raise ValueError(f"job {self.job_id} has commits 1 to {self.seq}, but no commit {seq}")
        earlier = JobState(self.job_id)
        earlier._replaying = {}
        for commit in self._commits[:seq]:
            earlier.fold(commit)
        earlier._replaying = None
        return earlier

    def raise_for_status(self) -> None:
        """Raise `JobFailedError` if the job failed, with each failed task and its error.

        Its cause is the exception of the handler, if it was raised in this process.
        """
        if self.status is not JobStatus.FAILED:
            return
        failed = [task for task in self.pending_tasks if task.failed]
        who = "".join(
            f"; task {task.task_id} of {task.routine_id} failed at attempt {task.attempt - 1}"
            f"{self._other_error(task)}"
            for task in failed
        )
        error = self.error
        cause = None if error is None else error.exception
        trace = f"\n{error.traceback}" if error and error.traceback and cause is None else ""
        raise JobFailedError(f"job {self.job_id} failed: {error}{who}{trace}") from cause

    def _other_error(self, task: PendingTask) -> str:
        """Return the error of a failed task for a message if it is not the error of the job."""
        return "" if task.error == self.error else f": {' '.join(str(task.error).split())}"

    def copy(self) -> JobState:
        """Return a copy that later commits of this job do not change."""
        twin = JobState(self.job_id)
        for name, value in zip(FoldedJob.__slots__, _values_of(self), strict=True):
            setattr(twin, name, value)
        twin.outputs, twin.dropped = self.outputs.copy(), self.dropped.copy()
        twin._commits = self._commits.copy()
        twin._failed, twin._waiting = self._failed.copy(), self._waiting.copy()
        twin._reports = self._reports.copy()
        twin.routine_states = {
            routine_id: RoutineState(*_values_of_routine(old))
            for routine_id, old in self.routine_states.items()
        }
        twin._pending = {
            task_id: PendingTask(*_values_of_task(old)) for task_id, old in self._pending.items()
        }
        gathers = {
            t.task_id: t.gathering for t in self._pending.values() if t.gathering is not None
        }
        if gathers:
            for task_id in gathers:
                twin._pending[task_id].gathering = Gathering()
            entries = {task_id: list(gather.entries()) for task_id, gather in gathers.items()}
            link(twin._pending, entries, "$.pending_tasks")
        return twin

    def __deepcopy__(self, memo: object) -> JobState:
        return self.copy()

    def __reduce__(self) -> tuple[object, ...]:
        return JobState.deserialize, (self.serialize(),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobState):
            return NotImplemented
        return self._first_difference(other) is None

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return (
            f"<JobState {self.job_id} of {self.flow_id}: {self.status.value}, commit {self.seq},"
            f" {len(self._pending)} pending>"
        )

    # --- saving it ------------------------------------------------------------------------------

    def serialize(self) -> dict[str, object]:
        """Return the job as data for JSON.

        Raises `UnserializableError` with the path of a value that can't be saved.
        """
        data: dict[str, object] = codec.loads(self.dumps(), untag=False)
        return data

    def dumps(self, *, history: bool = True) -> str:
        """Return the job as JSON text.

        Without `history` the text has no commits. Raises the same errors as `serialize`.
        """
        return codec.dumps_object(job_members(self, history=history))

    @classmethod
    def deserialize(cls, document: Mapping[str, object]) -> JobState:
        """Make a job from a result of `serialize`, or raise `SavedStateError`."""
        return cls.load(codec.decode(document), "$")

    @classmethod
    def load(cls, data: object, path: str) -> JobState:
        """Make a job from decoded data, without copying the data.

        `path` is the job's path in the document. Raises `CorruptStateError` with the path.
        """
        return load(cls, data, path)
