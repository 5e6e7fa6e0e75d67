"""Applies commits to the state of a job.

Invariants:
- `fold` is the only method that changes a job. It checks a commit first; a commit that does not fit
  changes nothing and raises `IllegalTransitionError`.
- The mappings of state and shared data are replaced, never mutated, so a snapshot is a reference.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from routilux.codec.equality import same_value
from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.gathering import create, gathers_in
from routilux.core.parts import Output, PendingTask, RoutineState, RoutineStatus
from routilux.core.wire.ranges import in_range, texts
from routilux.errors import IllegalTransitionError
from routilux.graph.growing import plain_values
from routilux.graph.messages import DroppedTask
from routilux.graph.patches import ABSENT, Owned, PatchError, patched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from routilux.graph.messages import ErrorInfo, Writes

# A module global costs less than a look-up at the enum, which is as slow as a call.
_START = CommitKind.START
_DONE = CommitKind.DONE
_RETRY = CommitKind.RETRY
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_INTERRUPTED = CommitKind.INTERRUPTED
_RESUMED = CommitKind.RESUMED
_PENDING = JobStatus.PENDING

_STEP_ENDS: Final = frozenset({_DONE, _RETRY, _FAILED, _DROPPED, _CONFLICT})
_MOST_STOPS: Final = 10


class FoldedJob:
    """A job's data, computed from the job's commits."""

    __slots__ = (
        "_commits",
        "_failed",
        "_gathers",
        "_pending",
        "_replaying",
        "_reports",
        "_shared",
        "_waiting",
        "clock_ns",
        "dropped",
        "error",
        "flow_id",
        "history_limit",
        "interrupted_task",
        "interruption",
        "job_id",
        "outputs",
        "recoveries",
        "routine_states",
        "seq",
        "shape",
        "started_ns",
        "status",
        "stops",
        "store",
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
        # What ended each run that `recoveries` counts, the last ten.
        self.stops: tuple[str, ...] = ()
        # What ended the last run, until the job is resumed. Without a task it was the host's
        # trouble, which is no unclean stop.
        self.interruption: ErrorInfo | None = None
        self.interrupted_task: str | None = None
        self.routine_states: dict[str, RoutineState] = {}
        self._shared: dict[str, object] = {}  # as the engine keeps it; `shared_data` is plain
        self.outputs: list[Output] = []
        self.dropped: list[DroppedTask] = []
        self.error: ErrorInfo | None = None
        self._pending: dict[str, PendingTask] = {}
        # The ids of pending tasks. An empty dict takes 64 bytes, an empty set 216.
        self._failed: dict[str, None] = {}
        self._reports: dict[str, None] = {}  # they report a failure
        self._waiting: dict[str, None] = {}  # they got a due time since the last resume
        self._gathers = False  # whether its flow has gathers: all others take the short way
        # While commits are replayed: the values that the replay has made. Nothing else refers to
        # them or to the mappings of the job, so that all are changed in place.
        self._replaying: Owned | None = None
        self._commits: list[Commit] = []
        self.history_limit: int | None = None
        # The clock of its runtime; a saved form says when it was saved.
        self.clock_ns: Callable[[], int] | None = None
        # Only a runtime with this store can resume the job; a saved form is of no store.
        self.store: object | None = None

    @property
    def shared_data(self) -> dict[str, object]:
        """What handlers keep in `ctx.shared`, by key."""
        return plain_values(self._shared)

    @property
    def pending_tasks(self) -> tuple[PendingTask, ...]:
        """The ready, waiting and failed tasks, sorted by `order`; gathers that wait come last."""
        return tuple(sorted(self._pending.values(), key=lambda task: (task.gathers, task.order)))

    def tasks_to_run(self) -> Sequence[PendingTask]:
        """Return the pending tasks that may still run.

        Once a task has failed, only the tasks that report a failure run; then the job is failed.
        """
        if not self._pending:
            return ()
        if self._failed:
            return [task for task in self.pending_tasks if task.task_id in self._reports]
        return [task for task in self.pending_tasks if not task.gathers]

    def reports_after(self, commit: Commit) -> int:
        """Return how many tasks that report a failure are left after a commit of a step."""
        pending = self._pending.get(commit.task_id or "")
        own = pending is not None and pending.reports
        ends = commit.kind in (_DONE, _FAILED, _DROPPED)
        created = 0
        if own or commit.kind is not _DONE:
            created = sum(task.emission >= 0 and task.into is None for task in commit.tasks)
        return len(self._reports) - (own and ends) + created

    @property
    def commits(self) -> Sequence[Commit]:
        """The commits that the job still keeps, oldest first."""
        return tuple(self._commits)

    def _first_difference(self, other: FoldedJob) -> str | None:
        return next((n for n in _COMPARED if not _same(self._seen(n), other._seen(n))), None)

    def _seen(self, name: str) -> object:
        """Return an attribute as a user sees it."""
        if name == "routine_states":
            return {key: state.seen() for key, state in self.routine_states.items()}
        return getattr(self, name)

    def fold(self, commit: Commit) -> Sequence[PendingTask]:
        """Apply a commit to the job, and return the tasks to schedule.

        Raises `IllegalTransitionError`, changing nothing, if the commit can't follow the last.
        """
        seq = commit.seq
        if seq != self.seq + 1:
            raise IllegalTransitionError(
                f"commit {seq} can't follow commit {self.seq}; commit {self.seq + 1} is next"
            )
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
            raise IllegalTransitionError(
                f"a job's first commit must be of kind 'start', not {kind.value!r}"
            )
        if kind is _EFFECT:
            self._fold_effect(commit)
        elif kind is _INTERRUPTED:
            self._fold_interrupted(commit)
        elif kind is _RESUMED:
            self._fold_resumed(commit)
        elif kind in _STEP_ENDS:
            self.error = commit.error
        return ()

    def _fold_start(self, commit: Commit) -> Sequence[PendingTask]:
        detail = commit.detail
        if self.seq or detail is None:
            raise IllegalTransitionError("a 'start' commit must be the first and have a detail")
        self.flow_id = str(detail["flow_id"])
        self._take_shape(detail)
        self.started_ns = commit.at_ns
        if self._gathers:
            return create(commit, None, None, self._pending, None)
        return self._create(commit)

    def _take_shape(self, detail: Mapping[str, object]) -> None:
        self.shape = tuple(texts(detail["shape"], "$.shape"))
        self._gathers = self._gathers or gathers_in(self.shape)
        for routine_id in texts(detail["routines"], "$.routines"):
            self.routine_states.setdefault(routine_id, RoutineState())

    def _fold_step(self, commit: Commit, task_id: str) -> Sequence[PendingTask]:
        pending = self._pending.get(task_id)
        if pending is None or pending.attempt != commit.attempt or pending.error is not None:
            raise IllegalTransitionError(
                f"commit {commit.seq} ends attempt {commit.attempt} of task {task_id},"
                " but no such attempt is pending"
            )
        kind = commit.kind
        routine = self.routine_states[pending.task.routine_id]
        if pending.reports and kind is not _RETRY and kind is not _CONFLICT:
            self._reports.pop(task_id, None)
        if kind is _DONE:
            state = None if commit.state is None else self._written(routine.kept, commit.state)
            if commit.shared is not None:
                self._shared = self._written(self._shared, commit.shared)
            if state is not None:
                routine.kept = state
            del self._pending[task_id]
            self._waiting.pop(task_id, None)
            routine.attempts += 1
            routine.completed += 1
            if self.recoveries:
                self._note_progress()
            if commit.emissions:
                return self._deliver(commit, pending, pending.reports)
            return create(commit, pending, None, self._pending, None) if pending.places else ()
        if kind is _RETRY:
            due = commit.due_ns
            if due is None:
                raise IllegalTransitionError(f"commit {commit.seq} of kind 'retry' has no due_ns")
            pending.due_ns = due
            pending.delay_ns = commit.delay_ns
            self._waiting[task_id] = None
            pending.attempt += 1
            spends = commit.detail is None or bool(commit.detail["spends"])
            pending.retries = spent = pending.retries + spends
            if spent > routine.retry_count:
                routine.retry_count = spent
            if pending.first_started_ns is None:
                pending.first_started_ns = commit.started_ns
            routine.attempts += 1
            if self.recoveries:
                self._note_progress()
            return (pending,)
        if kind is _DROPPED and (commit.error is None or commit.detail is None):
            raise IllegalTransitionError(
                f"commit {commit.seq} drops a task, so it must have an error and a detail"
            )
        if kind is _FAILED and commit.error is None:
            raise IllegalTransitionError(f"commit {commit.seq} of kind 'failed' has no error")
        if pending.first_started_ns is None:
            pending.first_started_ns = commit.started_ns
        if kind is _CONFLICT:
            pending.conflicts += 1
            return (pending,)
        routine.attempts += commit.started_ns is not None
        if self.recoveries:
            self._note_progress()
        routine.error = commit.error
        if kind is _FAILED:
            self.interruption = self.interrupted_task = None  # of a poisoned job
            pending.attempt += 1
            pending.error = commit.error
            pending.delay_ns = None
            pending.children += sum(task.emission >= 0 for task in commit.tasks)
            self._failed[task_id] = self._waiting[task_id] = None
            routine.failed += 1
            if self.error is None:
                self.error = commit.error
        else:
            self._drop(commit, pending, routine)
        return self._deliver(commit, pending, True) if commit.emissions or pending.places else ()

    def _drop(self, commit: Commit, pending: PendingTask, routine: RoutineState) -> None:
        outcome = str(cast("Mapping[str, object]", commit.detail)["as"])
        del self._pending[pending.task.task_id]
        self._waiting.pop(pending.task.task_id, None)
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
            raise IllegalTransitionError(
                f"commit {commit.seq} must hold an effect with a name, and belong to a pending task"
            )
        name = str(commit.detail["name"])
        if self._replaying is not None and pending.effects is not None:
            pending.effects[name] = commit.effect
        else:
            pending.effects = {**(pending.effects or {}), name: commit.effect}
        if self.recoveries:
            self._note_progress()

    def _note_progress(self) -> None:
        self.recoveries, self.stops = 0, ()

    def _fold_interrupted(self, commit: Commit) -> None:
        task_id = commit.task_id
        if commit.error is None or (task_id is not None and task_id not in self._pending):
            raise IllegalTransitionError(
                f"commit {commit.seq} must have an error, and belong to a pending task or to none"
            )
        self.interruption, self.interrupted_task = commit.error, task_id

    def last_stop(self, by: JobStatus) -> str:
        """Return what ended the last run of a job that a host (or an operator) now resumes."""
        if self.interruption is not None:
            where = self.interruption.where
            return f"{self.interruption}{(where and f' ({where})') or ''}"
        return "an operator took the job over" if by is _PENDING else "its process ended"

    def _fold_resumed(self, commit: Commit) -> None:
        detail = commit.detail or {}
        recoveries = in_range(cast(int, detail["recoveries"]), "$.recoveries")
        if "shape" in detail:
            self._take_shape(detail)
        if recoveries > self.recoveries:
            self.stops = (*self.stops, self.last_stop(commit.status))[-_MOST_STOPS:]
        elif not recoveries:
            self.stops = ()
        self.recoveries = recoveries
        self.interruption = self.interrupted_task = None
        if detail.get("retry_failed"):
            self.error = None
            for task_id in self._failed:
                pending = self._pending[task_id]
                if pending.reports:
                    self._reports[task_id] = None
                pending.error = None
                pending.retries = 0
                pending.first_started_ns = None
                pending.due_ns = commit.at_ns
                routine = self.routine_states[pending.task.routine_id]
                routine.failed = 0
                routine.error = None
            self._failed.clear()
        # Since the time of commits never goes back, a wait is shortened by one resume at most.
        for task_id in self._waiting:
            pending = self._pending[task_id]
            if pending.due_ns > commit.at_ns:
                # The remaining wait is at most the delay, even if a clock was wrong.
                left = min(pending.due_ns - commit.at_ns, pending.delay_ns or 0)
                pending.due_ns = commit.at_ns + left
        self._waiting.clear()

    def _deliver(self, commit: Commit, parent: PendingTask, reports: bool) -> Sequence[PendingTask]:
        if not commit.tasks or len(commit.emissions) > 1:  # else its only emission is delivered
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
        if self._gathers:
            return create(
                commit,
                parent,
                self.dropped[-1] if commit.kind is _DROPPED else None,
                self._pending,
                self._reports if reports else None,
            )
        return self._create(commit, reports) if commit.tasks else ()

    def _create(self, commit: Commit, reports: bool = False) -> Sequence[PendingTask]:
        seq = commit.seq
        at_ns = commit.at_ns
        pending = self._pending
        created: list[PendingTask] = []
        for task in commit.tasks:
            new = pending[task.task_id] = PendingTask(task, seq, len(created), at_ns)
            created.append(new)
            if reports:
                new.reports = True
                self._reports[task.task_id] = None
        return created

    def _written(self, old: dict[str, object], writes: Writes) -> dict[str, object]:
        new = {**old} if self._replaying is None else old
        new.update(writes.values)
        for key in writes.removed:
            new.pop(key, None)
        for key, patches in writes.patches.items():
            try:
                new[key] = patched(new.get(key, ABSENT), patches, self._replaying)
            except PatchError as error:
                raise PatchError(f"its patch of {key!r} does not fit: {error}") from None
        return new


_DERIVED: Final = (
    *("_failed", "_gathers", "_replaying", "_reports", "_waiting"),
    *("history_limit", "clock_ns", "store"),
)
_COMPARED: Final = tuple(
    name.replace("_shared", "shared_data") for name in FoldedJob.__slots__ if name not in _DERIVED
)


def _same(a: object, b: object) -> bool:
    # == is faster. Values that it calls unequal may be NaN, or of a class without __eq__.
    with suppress(Exception):
        if a == b:
            return True
    return same_value(a, b)
