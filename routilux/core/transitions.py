"""Makes the commits that end a step.

Invariants:
- The commit is a pure function of the plan, the job, the step, its outcome and the time.
- The commit of a step creates one numbered task for each emission and connection, and a gather's
  task behind each task that begins the scope of the gather.
- A failed attempt is retried, or its task fails or is dropped. Its emissions are not delivered; the
  engine's own event `error` is delivered if the routine declares it. A task that reports a failure
  emits no `error` itself: a cycle of such events would have no end.
- The step that leaves no task to do completes the job.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from routilux.clocks.durations import exact_text
from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.gathering import Scope, child_id
from routilux.core.parts import RoutineStatus
from routilux.errors import FlowDefinitionError
from routilux.graph.messages import Emission, ErrorInfo, StepOutcome, Task
from routilux.graph.patches import ABSENT, misfit
from routilux.retry.error_handler import ErrorStrategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux.core.parts import PendingTask
    from routilux.core.state import JobState
    from routilux.graph.messages import StepInput, Writes
    from routilux.graph.plan import Plan
    from routilux.retry.error_handler import ErrorHandler

# A module global costs less than a look-up at the enum, which is as slow as a call.
_DONE = CommitKind.DONE
_RETRY = CommitKind.RETRY
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED
_RETRIES = ErrorStrategy.RETRY


def step_commit(kind: CommitKind, job: JobState, step: StepInput, now: int) -> Commit:
    """Make a step's commit with the job's present status."""
    task = step.task
    return Commit(
        job.seq + 1,
        kind,
        now,
        job.status,
        task.task_id,
        task.routine_id,
        step.attempt,
        step.started_ns,
        step.worker,
    )


def commit_of_outcome(
    plan: Plan, job: JobState, step: StepInput, outcome: StepOutcome, now: int
) -> Commit:
    """Return the commit that ends `step` with `outcome`.

    The caller has checked that no other step changed shared data that this step read.
    """
    if outcome.error_type is not None:
        return _failure(plan, job, step, outcome, outcome.error_type, now)
    task = step.task
    emissions = tuple(outcome.emissions)
    tasks: tuple[Task, ...] = ()
    try:
        if outcome.state is not None and outcome.state.patches:
            _check_patches(job.routine_states[task.routine_id].kept, outcome.state)
        if outcome.shared is not None and outcome.shared.patches:
            _check_patches(job._shared, outcome.shared)
        if emissions:
            tasks = _fan_out(plan, job, task, emissions, job._pending[task.task_id].children)
    except FlowDefinitionError as error:
        failed = StepOutcome(step.number, [], error=ErrorInfo.of(error))
        return _failure(plan, job, step, failed, FlowDefinitionError, now)
    status = job.status
    if not tasks and status is _RUNNING and len(job._pending) == 1:
        status = _COMPLETED
    return Commit(  # as one call: this is the hottest path
        job.seq + 1,
        _DONE,
        now,
        status,
        task.task_id,
        task.routine_id,
        step.attempt,
        step.started_ns,
        step.worker,
        emissions,
        tasks,
        outcome.state,
        outcome.shared,
    )


def _check_patches(values: Mapping[str, object], writes: Writes) -> None:
    """Refuse an accumulator whose value another step has meanwhile replaced by one of another type.

    All other patches fit: they were made from a value that no other step has changed since.
    """
    for key, patches in writes.patches.items():
        problem = misfit(values.get(key, ABSENT), patches)
        if problem is not None:
            raise FlowDefinitionError(f"can't {patches[0].kind} to {key!r}: {problem}")


def _fan_out(
    plan: Plan, job: JobState, parent: Task, emissions: tuple[Emission, ...], first: int
) -> tuple[Task, ...]:
    # `first` tasks were created by earlier failures of the parent.
    tasks: list[Task] = []
    parent_id = parent.task_id
    index = -1
    for emission in emissions:
        index += 1
        payload = emission.payload
        for route in plan.routes.get((parent.routine_id, emission.event), ()):
            if len(payload) < route.fields and not route.required.issubset(payload):
                missing = ", ".join(sorted(repr(n) for n in route.required - set(payload)))
                raise FlowDefinitionError(
                    f"{parent.routine_id} emitted {emission.event!r} without {missing}, which"
                    f" {route.target}.{route.slot} needs"
                )
            mapping = route.mapping
            tasks.append(
                Task(
                    child_id(parent_id, first + len(tasks)),
                    route.target,
                    route.slot,
                    payload
                    if mapping is None
                    else {mapping.get(name, name): v for name, v in payload.items()},
                    emission.flat,
                    index,
                )
            )
    if plan.gathers is not None:
        return tuple(Scope.around(plan.gathers, parent, job._pending).placed(tasks))
    return tuple(tasks)


def _failure(
    plan: Plan,
    job: JobState,
    step: StepInput,
    outcome: StepOutcome,
    error_type: type[BaseException],
    now: int,
) -> Commit:
    task, error = step.task, outcome.error
    handler = plan.handlers[task.routine_id]
    strategy = handler.strategy
    if strategy is _RETRIES:
        left = not (step.final and outcome.spends)
        if left and handler.is_retryable(error_type, outcome.leaf_types):
            pending = job._pending[task.task_id]
            delay = _retry_delay(pending, handler, step, outcome)
            deadline = handler.deadline_ns
            if deadline is None or not _is_past(deadline, pending, step, now + delay):
                commit = step_commit(_RETRY, job, step, now)
                commit.error, commit.delay_ns, commit.due_ns = outcome.error, delay, now + delay
                if not outcome.spends:
                    commit.detail = {"spends": False}
                return commit
            if error is not None:
                wait, limit = exact_text(delay), exact_text(deadline)
                why = (
                    f"(not retried: the next wait of {wait} s would pass the deadline of {limit} s)"
                )
                error = replace(error, notes=(*error.notes, why))
        strategy = handler.on_exhausted
    stops = strategy is ErrorStrategy.STOP
    commit = step_commit(CommitKind.FAILED if stops else CommitKind.DROPPED, job, step, now)
    pending = job._pending[task.task_id]
    if error is not None:
        _report(plan, job, commit, pending, error)
    if not stops:
        skipped = strategy is ErrorStrategy.SKIP
        as_ = RoutineStatus.SKIPPED if skipped else RoutineStatus.ERROR_CONTINUED
        commit.detail = {"as": as_.value}
        if job.status is _RUNNING and not commit.tasks and len(job._pending) == 1:
            commit.status = _COMPLETED
    return commit


def _retry_delay(
    pending: PendingTask, handler: ErrorHandler, step: StepInput, outcome: StepOutcome
) -> int:
    delay = outcome.retry_after_ns
    if delay is None:
        retry = pending.retries + 1
        draw = None
        if handler.jitter:
            seed = f"{step.job_id}/{step.task.task_id}/jitter/{retry}".encode()
            draw = int.from_bytes(hashlib.sha256(seed).digest()[:7]) >> 3
        delay = handler.delay_ns(retry, draw)
    return delay


def _is_past(deadline: int, pending: PendingTask, step: StepInput, due: int) -> bool:
    """Return whether a retry at `due` would begin after the deadline of its task."""
    first = pending.first_started_ns
    return due > (step.started_ns if first is None else first) + deadline


def failed_task(
    plan: Plan, job: JobState, pending: PendingTask, error: ErrorInfo, now: int
) -> Commit:
    """Return the commit that fails a task which the engine does not run again."""
    task = pending.task
    commit = Commit(
        job.seq + 1,
        CommitKind.FAILED,
        now,
        job.status,
        task.task_id,
        task.routine_id,
        pending.attempt,
    )
    _report(plan, job, commit, pending, error)
    return commit


def _report(
    plan: Plan, job: JobState, commit: Commit, pending: PendingTask, error: ErrorInfo
) -> None:
    """Add the error of a task that is given up to its commit, and the event `error`."""
    task = pending.task
    commit.error = error
    declared = plan.routines[task.routine_id].events.get("error")
    if declared is None or pending.reports:
        return
    known = {
        "error_type": error.type,
        "message": error.text,
        "task_id": task.task_id,
        "slot": task.slot,
        "attempt": pending.attempt,
        "payload": task.payload,
    }
    payload = {name: known[name] for name in declared.fields}
    commit.emissions = (Emission("error", payload, "payload" not in payload),)
    commit.tasks = _fan_out(plan, job, task, commit.emissions, pending.children)
