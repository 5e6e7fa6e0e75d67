"""How far a job is: `JobState`, a fold over its commits.

Laws:
- `fold` is the only thing that changes a job. It checks first; a commit that does not fit changes
  nothing and is `IllegalTransitionError`.
- Mappings of state and shared data are replaced, never mutated, so a snapshot is a reference.
- Whatever can be derived (statuses of routines, history) is derived when read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from routilux import codec
from routilux.core.checks import check_unfolded, follow
from routilux.core.parts import DroppedTask, Output, PendingTask, RoutineState, RoutineStatus
from routilux.core.records import (
    Commit,
    CommitKind,
    HistoryRecord,
    JobStatus,
    error_data,
    history_of,
    in_range,
    instant,
    load_error,
    payload,
)
from routilux.errors import CorruptStateError, IllegalTransitionError, JobFailedError
from routilux.values import same_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from routilux.exchange import ErrorInfo, Writes

__all__ = ["JobState"]

# Looking a member up at its enum costs as much as a call.
_START = CommitKind.START
_DONE = CommitKind.DONE
_RETRY = CommitKind.RETRY
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_RESUMED = CommitKind.RESUMED

FINAL: Final = frozenset({JobStatus.COMPLETED, JobStatus.CANCELLED})
_TEXT: Final = frozenset({str})
_STEP_ENDS: Final = frozenset({_DONE, _RETRY, _FAILED, _DROPPED, _CONFLICT})


class JobState:
    """All that one execution knows; equality is by value.

    Instants are UTC; `seq` is the number of the last commit. A job that is being driven changes
    between two looks: `run.job` and observers see it at a commit.

    >>> JobState("job-1").status.value
    'pending'
    """

    __slots__ = (
        "_commits",
        "_pending",
        "clock_ns",
        "dropped",
        "error",
        "flow_id",
        "history_limit",
        "job_id",
        "outputs",
        "recoveries",
        "routine_states",
        "seq",
        "shape",
        "shared_data",
        "started_ns",
        "status",
        "updated_ns",
    )

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.flow_id = ""
        self.shape: tuple[str, ...] = ()
        self.status = JobStatus.PENDING
        self.seq = 0
        self.started_ns = 0
        self.updated_ns = 0
        self.recoveries = 0
        self.routine_states: dict[str, RoutineState] = {}
        self.shared_data: dict[str, object] = {}
        self.outputs: list[Output] = []
        self.dropped: list[DroppedTask] = []
        self.error: ErrorInfo | None = None
        self._pending: dict[str, PendingTask] = {}
        self._commits: list[Commit] = []
        self.history_limit: int | None = None
        # The clock that drives it, so that a saved form can say when it was saved.
        self.clock_ns: Callable[[], int] | None = None

    # --- reading it -----------------------------------------------------------------------------

    @property
    def pending_tasks(self) -> tuple[PendingTask, ...]:
        """The tasks that are not done, the first to run first."""
        return tuple(sorted(self._pending.values(), key=lambda task: task.order))

    @property
    def commits(self) -> Sequence[Commit]:
        """Every commit, oldest first; with a `history_limit` the latest ones."""
        return tuple(self._commits)

    @property
    def execution_history(self) -> list[HistoryRecord]:
        """What the flow did, oldest first; made from the commits."""
        return [record for commit in self._commits for record in history_of(commit)]

    @property
    def is_final(self) -> bool:
        """Whether nothing can ever be added: completed or cancelled."""
        return self.status in FINAL

    def retry_count(self, routine_id: str | None = None) -> int:
        """Return the most retries that any task spent, of one routine or of all."""
        if routine_id is not None:
            return self.routine_states[routine_id].retry_count
        return max((state.retry_count for state in self.routine_states.values()), default=0)

    def at(self, seq: int) -> JobState:
        """Return the job as it stood after commit `seq`; 0 is before the first.

        Raises `ValueError` where there is no such commit, or its history is no longer kept.
        """
        if self._commits and self._commits[0].seq != 1:
            raise ValueError(
                f"job {self.job_id}: the history before commit {self._commits[0].seq} is not kept"
            )
        if not 0 <= seq <= len(self._commits):
            raise ValueError(f"job {self.job_id} has commits 1 to {self.seq}, not {seq}")
        earlier = JobState(self.job_id)
        for commit in self._commits[:seq]:
            earlier.fold(commit)
        return earlier

    def raise_for_status(self) -> None:
        """Raise `JobFailedError` if the job failed; else do nothing."""
        if self.status is not JobStatus.FAILED:
            return
        failed = [task for task in self.pending_tasks if task.failed]
        who = "".join(
            f"; task {task.task_id} of {task.routine_id} failed at attempt {task.attempt - 1}"
            for task in failed
        )
        trace = f"\n{self.error.traceback}" if self.error and self.error.traceback else ""
        raise JobFailedError(f"job {self.job_id} failed: {self.error}{who}{trace}")

    def copy(self) -> JobState:
        """Return a copy that later commits of this one leave alone."""
        twin = JobState(self.job_id)
        twin.flow_id, twin.shape = self.flow_id, self.shape
        twin.status, twin.seq, twin.error = self.status, self.seq, self.error
        twin.started_ns, twin.updated_ns = self.started_ns, self.updated_ns
        twin.recoveries, twin.history_limit = self.recoveries, self.history_limit
        twin.clock_ns = self.clock_ns
        twin.shared_data = self.shared_data
        twin.outputs, twin.dropped = self.outputs.copy(), self.dropped.copy()
        twin._commits = self._commits.copy()
        twin.routine_states = {
            routine_id: RoutineState(*(getattr(old, name) for name in RoutineState.__slots__))
            for routine_id, old in self.routine_states.items()
        }
        twin._pending = {
            task_id: PendingTask(*(getattr(old, name) for name in PendingTask.__slots__))
            for task_id, old in self._pending.items()
        }
        return twin

    def __deepcopy__(self, memo: object) -> JobState:
        return self.copy()

    def __reduce__(self) -> tuple[object, ...]:
        return JobState.deserialize, (self.serialize(),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobState):
            return NotImplemented
        return all(_same(getattr(self, name), getattr(other, name)) for name in _COMPARED)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return (
            f"<JobState {self.job_id} of {self.flow_id}: {self.status.value}, commit {self.seq},"
            f" {len(self._pending)} pending>"
        )

    # --- saving it ------------------------------------------------------------------------------

    def serialize(self) -> dict[str, object]:
        """Return the job as JSON-able data, from which `deserialize` makes an equal one.

        Raises `UnserializableError` with the path of a value that has no saved form.
        """
        data: dict[str, object] = codec.loads(self.dumps(), untag=False)
        return data

    def dumps(self, *, history: bool = True) -> str:
        """Return the job as JSON text; raises `UnserializableError` as `serialize` does.

        Without `history` it has no commits, like a job that no longer keeps any.
        """
        members = {
            "job_id": self.job_id,
            "flow_id": self.flow_id,
            "status": self.status.value,
            "seq": self.seq,
            "started_ns": self.started_ns,
            "updated_ns": self.updated_ns,
            "recoveries": self.recoveries,
            "shape": list(self.shape),
            "routine_states": {
                routine_id: state.serialize(f"$.routine_states[{routine_id!r}]")
                for routine_id, state in self.routine_states.items()
            },
            "shared_data": codec.encode(self.shared_data, "$.shared_data"),
            "pending_tasks": _saved("$.pending_tasks", self.pending_tasks),
            "outputs": _saved("$.outputs", self.outputs),
            "dropped": _saved("$.dropped", self.dropped),
            "error": None if self.error is None else error_data(self.error),
            "commits": [],
        }
        if history:
            commits = enumerate(self._commits)
            members["commits"] = (commit.dumps(f"$.commits[{i}]") for i, commit in commits)
        return codec.dumps_object(members)

    @classmethod
    def deserialize(cls, document: Mapping[str, object]) -> JobState:
        """Make a job from what `serialize` gave; raises `SavedStateError` with the path."""
        return cls.load(codec.decode(document), "$")

    @classmethod
    def load(cls, data: object, path: str) -> JobState:
        """Read a job from decoded data, which it takes over; `path` is where in the document it is.

        Each commit's data makes room for the commit: else the garbage collector has twice as much
        to look at, which costs more than all the rest.
        """
        f = codec.check_fields(data, path, _JOB_FIELDS, {})
        job = cls(cast(str, f["job_id"]))
        job.flow_id = cast(str, f["flow_id"])
        try:
            job.status = JobStatus(cast(str, f["status"]))
        except ValueError as error:
            raise CorruptStateError(f"{path}.status", str(error)) from None
        job.seq = in_range(f["seq"], f"{path}.seq")
        job.started_ns = instant(f["started_ns"], f"{path}.started_ns")
        job.updated_ns = instant(f["updated_ns"], f"{path}.updated_ns")
        job.recoveries = in_range(f["recoveries"], f"{path}.recoveries")
        job.shape = tuple(_texts(f["shape"], f"{path}.shape"))
        job.routine_states = {
            routine_id: RoutineState.load(entry, f"{path}.routine_states[{routine_id!r}]")
            for routine_id, entry in payload(f["routine_states"], f"{path}.routine_states").items()
        }
        job.shared_data = payload(f["shared_data"], f"{path}.shared_data")
        for i, entry in enumerate(cast("list[object]", f["pending_tasks"])):
            pending = PendingTask.load(entry, f"{path}.pending_tasks[{i}]")
            if pending.task_id in job._pending:
                raise CorruptStateError(f"{path}.pending_tasks[{i}].task_id", "stands twice")
            job._pending[pending.task_id] = pending
        job.outputs = [
            Output.load(entry, f"{path}.outputs[{i}]")
            for i, entry in enumerate(cast("list[object]", f["outputs"]))
        ]
        job.dropped = [
            DroppedTask.load(entry, f"{path}.dropped[{i}]")
            for i, entry in enumerate(cast("list[object]", f["dropped"]))
        ]
        job.error = None if f["error"] is None else load_error(f["error"], f"{path}.error")
        commits = cast("list[Any]", f["commits"])
        for i, entry in enumerate(commits):
            commits[i] = Commit.load(entry, f"{path}.commits[{i}]")
        job._commits = commits
        job._check(path)
        return job

    def _check(self, path: str) -> None:
        # What is saved twice must agree: the state is folded anew from the commits.
        commits = self._commits
        if [commit.seq for commit in commits] != list(
            range(self.seq - len(commits) + 1, self.seq + 1)
        ):
            raise CorruptStateError(f"{path}.commits", "their numbers don't lead up to seq")
        if len(commits) < self.seq:
            check_unfolded(self, path)  # a job with a history_limit
            return
        folded = JobState(self.job_id)
        for i, commit in enumerate(commits):
            follow(folded, commit, f"{path}.commits[{i}]")
        for name in _COMPARED:
            if not _same(getattr(folded, name), getattr(self, name)):
                shown = name.removeprefix("_").replace("pending", "pending_tasks")
                raise CorruptStateError(f"{path}.{shown}", "contradicts the job's commits")

    # --- changing it ----------------------------------------------------------------------------

    def fold(self, commit: Commit) -> Sequence[PendingTask]:
        """Add a commit, and return the tasks that it created or that are to be tried again.

        Raises `IllegalTransitionError`, changing nothing, if it can't follow.
        """
        seq = commit.seq
        if seq != self.seq + 1:
            raise IllegalTransitionError(f"commit {seq} can't follow commit {self.seq}")
        task_id = commit.task_id
        if task_id is not None and commit.kind in _STEP_ENDS:
            ready = self._fold_step(commit, task_id)
        else:
            ready = self._fold_rest(commit)
        self.seq = seq
        self.status = commit.status
        self.updated_ns = commit.at_ns
        commits = self._commits
        commits.append(commit)
        limit = self.history_limit
        if limit is not None and len(commits) >= 2 * limit:
            del commits[: len(commits) - limit]
        return ready

    def _fold_rest(self, commit: Commit) -> Sequence[PendingTask]:
        kind = commit.kind
        if kind is _START:
            return self._fold_start(commit)
        if commit.seq == 1:
            raise IllegalTransitionError(f"a job begins with its start, not with {kind.value!r}")
        if kind is _EFFECT:
            self._fold_effect(commit)
        elif kind is _RESUMED:
            self._fold_resumed(commit)
        elif kind in _STEP_ENDS:
            self.error = commit.error
        return ()

    def _fold_start(self, commit: Commit) -> Sequence[PendingTask]:
        detail = commit.detail
        if self.seq or detail is None:
            raise IllegalTransitionError("only the first commit starts a job")
        self.flow_id = str(detail["flow_id"])
        self._take_shape(detail)
        self.started_ns = commit.at_ns
        return self._create(commit)

    def _take_shape(self, detail: Mapping[str, object]) -> None:
        self.shape = tuple(_texts(detail["shape"], "$.shape"))
        for routine_id in _texts(detail["routines"], "$.routines"):
            self.routine_states.setdefault(routine_id, RoutineState())

    def _fold_step(self, commit: Commit, task_id: str) -> Sequence[PendingTask]:
        pending = self._pending.get(task_id)
        if pending is None or pending.attempt != commit.attempt or pending.failed:
            raise IllegalTransitionError(
                f"commit {commit.seq} ends attempt {commit.attempt} of task {task_id},"
                " which is not the next one"
            )
        kind = commit.kind
        routine = self.routine_states[pending.task.routine_id]
        if kind is _DONE:
            del self._pending[task_id]
            routine.attempts += 1
            routine.completed += 1
            self.recoveries = 0
            if commit.state is not None:
                routine.state = _written(routine.state, commit.state)
            if commit.shared is not None:
                self.shared_data = _written(self.shared_data, commit.shared)
            return self._deliver(commit) if commit.emissions else ()
        if kind is _RETRY:
            due = commit.due_ns
            if due is None:
                raise IllegalTransitionError(f"commit {commit.seq} lacks what a retry has")
            pending.due_ns = due
            pending.delay_ns = commit.delay_ns
            pending.attempt += 1
            pending.retries = spent = pending.retries + 1
            if spent > routine.retry_count:
                routine.retry_count = spent
            if pending.first_started_ns is None:
                pending.first_started_ns = commit.started_ns
            routine.attempts += 1
            self.recoveries = 0
            return (pending,)
        if kind is _DROPPED and (commit.error is None or commit.detail is None):
            raise IllegalTransitionError(f"commit {commit.seq} lacks what a dropped task has")
        if pending.first_started_ns is None:
            pending.first_started_ns = commit.started_ns
        if kind is _CONFLICT:
            pending.conflicts += 1
            return (pending,)
        routine.attempts += 1
        self.recoveries = 0
        routine.error = commit.error
        if kind is _FAILED:
            pending.attempt += 1
            pending.failed = True
            pending.delay_ns = None
            routine.failed += 1
            if self.error is None:
                self.error = commit.error
        else:
            self._drop(commit, pending, routine)
        return self._deliver(commit) if commit.emissions else ()

    def _drop(self, commit: Commit, pending: PendingTask, routine: RoutineState) -> None:
        outcome = str(cast("Mapping[str, object]", commit.detail)["as"])
        del self._pending[pending.task.task_id]
        if outcome == RoutineStatus.SKIPPED:
            routine.skipped += 1
        else:
            routine.error_continued += 1
        self.dropped.append(
            DroppedTask(
                commit.seq,
                pending.task.task_id,
                pending.task.routine_id,
                pending.task.slot,
                pending.task.payload,
                commit.attempt,
                outcome,
                cast("ErrorInfo", commit.error),
            )
        )

    def _fold_effect(self, commit: Commit) -> None:
        pending = self._pending.get(commit.task_id or "")
        if pending is None or commit.effect is None or commit.detail is None:
            raise IllegalTransitionError(f"commit {commit.seq} records an effect of no task")
        pending.effects = {**(pending.effects or {}), str(commit.detail["name"]): commit.effect}
        self.recoveries = 0

    def _fold_resumed(self, commit: Commit) -> None:
        detail = commit.detail or {}
        withdrawn = _texts(detail["withdrawn"], "$.withdrawn")
        if not self._pending.keys() >= set(withdrawn):
            raise IllegalTransitionError(f"commit {commit.seq} withdraws a task that is not there")
        recoveries = in_range(detail["recoveries"], "$.recoveries")
        if "shape" in detail:
            self._take_shape(detail)
        self.recoveries = recoveries
        for task_id in withdrawn:
            del self._pending[task_id]
        fresh = bool(detail.get("retry_failed"))
        if fresh:
            self.error = None
        for pending in self._pending.values():
            if fresh and pending.failed:
                pending.failed = False
                pending.retries = 0
                pending.first_started_ns = None
                pending.due_ns = commit.at_ns
                routine = self.routine_states[pending.task.routine_id]
                routine.failed = 0
                routine.error = None
            elif pending.due_ns > commit.at_ns:
                # The rest of the wait, within [0, delay]: a skewed clock can't stretch it.
                left = min(pending.due_ns - commit.at_ns, pending.delay_ns or 0)
                pending.due_ns = commit.at_ns + left

    def _deliver(self, commit: Commit) -> Sequence[PendingTask]:
        if not commit.tasks or len(commit.emissions) > 1:  # else its one emission is delivered
            delivered = {task.emission for task in commit.tasks}
            for index, emission in enumerate(commit.emissions):
                if index not in delivered:
                    self.outputs.append(
                        Output(
                            commit.seq,
                            str(commit.routine_id),
                            emission.event,
                            emission.payload,
                            str(commit.task_id),
                        )
                    )
        return self._create(commit) if commit.tasks else ()

    def _create(self, commit: Commit) -> Sequence[PendingTask]:
        seq = commit.seq
        at_ns = commit.at_ns
        pending = self._pending
        created: list[PendingTask] = []
        for task in commit.tasks:
            new = pending[task.task_id] = PendingTask(task, seq, len(created), at_ns)
            created.append(new)
        return created


_COMPARED: Final = tuple(
    name for name in JobState.__slots__ if name not in ("history_limit", "clock_ns")
)


def _same(a: object, b: object) -> bool:
    # == is faster; what it does not take for equal may be NaN, or of a class without __eq__.
    with suppress(Exception):
        if a == b:
            return True
    return same_value(a, b)


def _saved(path: str, parts: Sequence[PendingTask | Output | DroppedTask]) -> Iterator[str]:
    return (codec.dumps(part.serialize(f"{path}[{i}]")) for i, part in enumerate(parts))


def _written(old: dict[str, object], writes: Writes) -> dict[str, object]:
    new = {**old, **writes.values}
    for key in writes.removed:
        new.pop(key, None)
    return new


def _texts(value: object, path: str) -> list[str]:
    if not isinstance(value, list) or not _TEXT.issuperset(map(type, value)):
        raise CorruptStateError(path, "is no list of texts")
    return value


_JOB_FIELDS: codec.Fields = {
    "job_id": str,
    "flow_id": str,
    "status": str,
    "seq": int,
    "started_ns": int,
    "updated_ns": int,
    "recoveries": int,
    "shape": list,
    "routine_states": dict,
    "shared_data": dict,
    "pending_tasks": list,
    "outputs": list,
    "dropped": list,
    "error": (dict, type(None)),
    "commits": list,
}
