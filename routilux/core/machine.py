"""State machine of one job: starts tasks and makes commits.

Invariants:
- It has no clock, no threads, no files and no randomness. The same calls give the same commits.
- Methods that return a commit are pure: a commit that the store refuses changes nothing.
- Only `accept` changes the job and removes a step from the steps in flight.
- An outcome counts only if its step is in flight: one that is late or a duplicate is ignored.
- A step that read a shared key which another step changed meanwhile is a conflict, whether it
  succeeded or failed; after MOST_CONFLICTS conflicts its task runs alone.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count, groupby
from typing import TYPE_CHECKING, Final

from routilux.codec.copying import is_flat
from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.gathering import Scope
from routilux.core.parts import PendingTask
from routilux.core.requests import ready_tasks, resumed
from routilux.core.schedule import Schedule
from routilux.core.state import JobState
from routilux.core.transitions import commit_of_outcome, failed_task, step_commit
from routilux.errors import IllegalTransitionError, NotResumableError
from routilux.graph.messages import ROOT, ErrorInfo, StepInput, StepOutcome, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.graph.messages import RecordedEffect
    from routilux.graph.plan import Plan

MOST_CONFLICTS: Final = 3
_NAMED: Final = 10  # tasks in the message of a poisoned job
_numbers = count(1)

# A module global costs less than a look-up at the enum, which is as slow as a call.
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_INTERRUPTED = CommitKind.INTERRUPTED
_FAILED = CommitKind.FAILED
_RESUMED = CommitKind.RESUMED
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED


class Machine:
    """The state machine of one job."""

    __slots__ = (
        "__weakref__",
        "_alone",
        "_flights",
        "_free_workers",
        "_schedule",
        "_shared_seq",
        "_shared_when",
        "_width",
        "job",
        "plan",
    )

    def __init__(self, plan: Plan, job: JobState) -> None:
        self.plan = plan
        self.job = job
        self._width = plan.width
        self._flights: dict[str, StepInput] = {}
        self._free_workers: list[int] = []  # a heap of the numbers below the largest one in use
        self._alone = False
        self._shared_when: dict[str, int] = {}  # shared key -> the commit that changed it
        self._shared_seq = 0  # the last commit that changed any
        self._reschedule()

    def _reschedule(self) -> None:
        flights = self._flights
        waiting = [task for task in self.job.tasks_to_run() if task.task_id not in flights]
        self._schedule = Schedule(self.plan.routines if self._width > 1 else None, waiting)
        for step in flights.values():
            self._schedule.occupy(step.task.routine_id)

    # --- tasks that may run ---------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of steps that have started but have not ended."""
        return len(self._flights)

    @property
    def flights(self) -> Sequence[StepInput]:
        """The steps that have started but not ended, in start order."""
        return list(self._flights.values())

    def is_in_flight(self, step: StepInput) -> bool:
        """Return whether the engine still waits for the end of `step`."""
        flying = self._flights.get(step.task.task_id)
        return flying is not None and flying.number == step.number

    @property
    def stopped(self) -> bool:
        """Whether no step is in flight and the job's status is not `running`."""
        return not self._flights and self.job.status is not _RUNNING

    def next_task(self) -> PendingTask | None:
        """Return the task to start next, due or not.

        Returns None if no task can start before the next commit.
        """
        flights = self._flights
        full = flights and (self._alone or len(flights) >= self._width)
        if full or self.job.status is not _RUNNING:
            return None
        first = self._schedule.first()
        return None if first is None or (first.conflicts and self._must_wait(first)) else first

    def startable(self, now: int) -> list[PendingTask]:
        """Return the tasks that may start at time `now`, in start order."""
        first = self.next_task()
        if first is None or first.due_ns > now:
            return []
        if first.conflicts >= MOST_CONFLICTS:
            return [first]
        return [task for task in self._schedule.ready(now) if not self._must_wait(task)]

    def _must_wait(self, pending: PendingTask) -> bool:
        # A task that must run alone waits until the other steps have ended.
        return pending.conflicts >= MOST_CONFLICTS and bool(self._flights)

    def begin(self, pending: PendingTask, now: int) -> StepInput:
        """Mark a task as started, and return the step to run."""
        task = pending.task
        job = self.job
        routine_id = task.routine_id
        handler = self.plan.handlers[routine_id]
        free = self._free_workers
        worker = heappop(free) if free else len(self._flights)
        step = StepInput(
            next(_numbers),
            task,
            pending.attempt,
            job.job_id,
            job.routine_states[routine_id].kept,
            job._shared,
            job.seq,
            pending.effects,
            now,
            handler.timeout_ns,
            worker,
            (pending.seq, pending.position),
            pending.retries >= handler.most_retries,
            None if pending.gathering is None else pending.gathering.collected,
        )
        if pending.conflicts >= MOST_CONFLICTS:
            self._alone = True
        self._schedule.start(pending)
        self._flights[task.task_id] = step
        return step

    # --- commits --------------------------------------------------------------------------------

    def start(
        self, entry: str, slot: str, params: dict[str, object], now: int, *, queued: bool = False
    ) -> Commit:
        """Return the first commit of a new job.

        It creates the root task `0`, and the gathers of the whole job. A queued job is `pending`
        until a worker resumes it.
        """
        if self.job.seq:
            raise IllegalTransitionError(f"job {self.job.job_id} was already started; resume it")
        detail = {"flow_id": self.plan.flow_id, **self._shape()}
        root = Task("0", entry, slot, params, is_flat(params), ROOT)
        tasks = [root]
        gathers = self.plan.gathers
        if gathers is not None:
            tasks.clear()
            opened = [*gathers.opened_at_start(entry), *gathers.opened_by.get(entry, ())]
            Scope(gathers).begin(tasks, root, sorted(opened))
        status = JobStatus.PENDING if queued else _RUNNING
        return Commit(1, CommitKind.START, now, status, tasks=tuple(tasks), detail=detail)

    def _shape(self) -> dict[str, object]:
        return {"shape": list(self.plan.shape), "routines": list(self.plan.routines)}

    def finish(self, step: StepInput, outcome: StepOutcome, now: int) -> Commit | None:
        """Return the commit for an outcome; None if late or duplicate."""
        flying = self._flights.get(step.task.task_id)
        if flying is None or flying.number != outcome.number:
            return None
        if self._shared_seq > step.seq and self._changed(step, outcome.shared_reads):
            commit = step_commit(_CONFLICT, self.job, step, now)
        else:
            commit = commit_of_outcome(self.plan, self.job, step, outcome, now)
        if self.job._failed or commit.kind is _FAILED:
            self._set_status(commit)
        return commit

    def _set_status(self, commit: Commit) -> None:
        """Set the status of a job with a failed task: `failed` if nothing is left to run."""
        status = _RUNNING if self.job.status is JobStatus.PENDING else self.job.status
        others = len(self._flights) - (commit.task_id in self._flights)
        if not (status.is_final or others or self.job.reports_after(commit)):
            status = JobStatus.FAILED
        commit.status = status

    def _changed(self, step: StepInput, reads: frozenset[str] | None) -> bool:
        if reads is None:
            return True
        when = self._shared_when
        return any(when.get(key, 0) > step.seq for key in reads)

    def effect(self, step: StepInput, name: str, effect: RecordedEffect, now: int) -> Commit | None:
        """Return the commit that records an effect; None after the step's end."""
        if not self.is_in_flight(step):
            return None
        commit = step_commit(_EFFECT, self.job, step, now)
        commit.detail, commit.effect = {"name": name}, effect
        return commit

    def abandon(self, step: StepInput) -> None:
        """Forget a step in flight without a commit, as if this host had died; its task stays."""
        if self.is_in_flight(step):
            del self._flights[step.task.task_id]
            self._free(step)

    def _free(self, step: StepInput) -> None:
        """Let another step have the worker number of a step that has ended."""
        if self._flights:
            heappush(self._free_workers, step.worker)
        else:
            self._free_workers.clear()

    def interrupt(self, step: StepInput | None, error: ErrorInfo, now: int) -> Commit:
        """Return the commit that records what ended the run of the job.

        Its tasks stay pending. If `step` broke off the run, the run ended uncleanly; without a step
        the trouble was the host's, and the next resume is no recovery.
        """
        if step is None:
            return Commit(self.job.seq + 1, _INTERRUPTED, now, self.job.status, error=error)
        commit = step_commit(_INTERRUPTED, self.job, step, now)
        commit.error = error
        return commit

    def resume(
        self, now: int, *, retry_failed: bool, max_recoveries: int | None, clean: bool = False
    ) -> Commit:
        """Return the commit that resumes a loaded, paused, interrupted or failed job.

        `clean` says that the last host released the job, so this is no recovery. After too many
        recoveries without progress the commit fails the job. Raises `NotResumableError` if the
        job's status does not allow it, or steps are in flight.
        """
        job = self.job
        if self._flights:
            raise NotResumableError(
                f"job {job.job_id} still has steps in flight (tasks"
                f" {', '.join(self._flights)}); resume the job when these steps have ended"
            )
        if job.is_final:
            raise NotResumableError(
                f"job {job.job_id} is {job.status.value}, which is final; start a new job"
            )
        failed = [task for task in job.pending_tasks if task.failed]
        fresh = retry_failed and bool(failed)
        if job.status is JobStatus.FAILED and not retry_failed:
            who = ", ".join(f"{t.routine_id} (task {t.task_id})" for t in failed) or str(job.error)
            raise NotResumableError(
                f"job {job.job_id} failed at {who}; to retry with a fresh retry budget, call"
                " resume(job, retry_failed=True)"
            )
        recoveries = job.recoveries
        clean |= job.interruption is not None and job.interrupted_task is None
        ready = ready_tasks(job, now)
        if ready and (job.status is JobStatus.PENDING or (job.status is _RUNNING and not clean)):
            recoveries += job.status is _RUNNING  # a pending job was counted by its operator
            if max_recoveries is not None and recoveries > max_recoveries:
                stops = job.stops
                if job.status is _RUNNING:
                    stops = (*stops, job.last_stop(_RUNNING))
                killer = next((t for t in ready if t.task_id == job.interrupted_task), ready[0])
                return self.fail(killer, _poison(recoveries - 1, ready, stops), now)
        status = _RUNNING
        if not fresh and not job.tasks_to_run():
            status = JobStatus.FAILED if failed else _COMPLETED
        changed = job.shape != self.plan.shape
        return resumed(
            job,
            now,
            status,
            recoveries=0 if fresh else recoveries,
            retry_failed=fresh,
            **(self._shape() if changed else {}),
        )

    def fail(self, pending: PendingTask, error: ErrorInfo, now: int) -> Commit:
        """Return the commit that fails a task without running it again."""
        commit = failed_task(self.plan, self.job, pending, error, now)
        self._set_status(commit)
        return commit

    # --- changing the job -----------------------------------------------------------------------

    def accept(self, commit: Commit) -> None:
        """Apply a commit to the job, and schedule the commit's tasks."""
        ready = self.job.fold(commit)
        kind = commit.kind
        if kind is _RESUMED:
            self._reschedule()
            return
        task_id = commit.task_id
        if task_id is not None and kind is not _EFFECT and kind is not _INTERRUPTED:
            step = self._flights.pop(task_id, None)
            if step is not None:
                self._alone = False
                if self._width > 1:
                    self._free(step)
                    self._schedule.end(step.task.routine_id)
            shared = commit.shared
            if shared is not None:
                self._shared_seq = commit.seq
                self._shared_when.update(dict.fromkeys(shared.keys, commit.seq))
        if not self.job._failed:
            for pending in ready:
                self._schedule.add(pending)
        elif kind is _FAILED:
            self._reschedule()
        else:
            for pending in ready:
                if pending.reports:
                    self._schedule.add(pending)


def _poison(recoveries: int, ready: Sequence[PendingTask], stops: Sequence[str]) -> ErrorInfo:
    names = [f"{t.routine_id} (task {t.task_id}, attempt {t.attempt})" for t in ready[:_NAMED]]
    more = f" and {len(ready) - _NAMED} more" if len(ready) > _NAMED else ""
    counted = [(stop, len(list(equal))) for stop, equal in groupby(stops)]
    why = "; ".join(stop if times == 1 else f"{times} times: {stop}" for stop, times in counted)
    return ErrorInfo(
        "routilux.PoisonJobError",
        f"the job was recovered {recoveries} time{'s' * (recoveries != 1)} without progress; each"
        f" time its run ended while one of these tasks was ready to run: {', '.join(names)}{more};"
        f" what ended the runs: {why}",
    )
