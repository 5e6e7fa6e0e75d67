"""Checks that a starting or resumed job fits the flow, and that a worker can use its arguments.

Invariants:
- A check comes before any commit; a refusal leaves the job and the flow as they were.
- An error names the part that does not fit, and what would fit or what to do.
- A job starts with a copy of its parameters: the caller may change its own later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from routilux.clocks.durations import SECOND, to_ns
from routilux.errors import FlowDefinitionError, FlowMismatchError, nearest, short_repr
from routilux.graph.diff import mismatch, tasks_without_slot
from routilux.graph.messages import copied_payload
from routilux.graph.plan import gather_line

if TYPE_CHECKING:
    from datetime import timedelta

    from routilux.core.parts import PendingTask
    from routilux.core.state import JobState
    from routilux.graph.plan import Plan

_RESUME_CURE: Final = "resume the job on the old flow, or pass allow_changed_flow=True"
_WORKER_CURE: Final = (
    "pass the old flow to the worker too, which then runs each job on the flow of its shape, or"
    " allow changed flows by Worker(..., allow_changed_flow=True)"
)
_LONGEST_DELAY: Final = 100 * 366 * 86_400 * SECOND  # a store counts in 64 bits
_LONGEST_LEASE: Final = 366 * 86_400 * SECOND
_LONGEST_ID: Final = 255  # characters; an index of PostgreSQL holds 2,700 bytes


def check_job_id(job_id: object) -> None:
    """Raise `FlowDefinitionError` unless every store can hold `job_id`."""
    if (
        not isinstance(job_id, str)
        or not 1 <= len(job_id) <= _LONGEST_ID
        or "\0" in job_id
        or not (job_id.isascii() or job_id.encode("utf-8", "replace").decode() == job_id)
    ):
        raise FlowDefinitionError(
            f"a job's id must be a string of 1 to {_LONGEST_ID} characters, without NUL and lone"
            f" surrogates, not {short_repr(job_id)}"
        )


def checked_delay(delay: float | timedelta) -> int:
    """Return the delay of a job's start in nanoseconds, or raise `FlowDefinitionError`."""
    try:
        length = to_ns(delay)
    except ValueError:
        length = -1
    if not 0 <= length <= _LONGEST_DELAY:
        raise FlowDefinitionError(
            f"delay must be 0 s or more and at most 100 years, not {short_repr(delay)}"
        )
    return length


def checked_lease(lease: float | timedelta) -> int:
    """Return the length of a lease in nanoseconds, or raise `FlowDefinitionError`."""
    try:
        length = to_ns(lease)
    except ValueError:
        length = 0
    if not 0 < length <= _LONGEST_LEASE:
        raise FlowDefinitionError(f"lease must be more than 0 s and at most a year, not {lease!r}")
    return length


def checked_concurrency(concurrency: int | None) -> int | None:
    """Return the concurrency of a worker, or raise `FlowDefinitionError`."""
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise FlowDefinitionError(
            "concurrency must be an int of 1 or more, or None for as many jobs as the runtime has"
            f" threads, not {concurrency!r}"
        )
    return concurrency


def checked_flag(name: str, flag: object) -> bool:
    """Return `flag` if it is a bool, or raise `FlowDefinitionError`."""
    if not isinstance(flag, bool):
        raise FlowDefinitionError(f"{name} must be True or False, not {short_repr(flag)}")
    return flag


def checked_params(
    plan: Plan, entry: str, slot: str, params: Mapping[str, object] | None
) -> dict[str, object]:
    """Return a checked copy of a new job's parameters.

    Raises `FlowDefinitionError` for an entry, a slot or parameters that the flow does not have.
    """
    if not isinstance(entry, str) or entry not in plan.routines:
        raise FlowDefinitionError(
            f"flow {plan.flow_id!r} has no routine {entry!r} to start with; its routines:"
            f" {', '.join(map(repr, plan.routines)) or 'none'}{nearest(entry, plan.routines)}"
        )
    slots = plan.routines[entry].slots
    if not isinstance(slot, str) or slot not in slots:
        raise FlowDefinitionError(
            f"routine {entry!r} has no slot {slot!r} to start with; its slots:"
            f" {', '.join(map(repr, slots)) or 'none'}{nearest(slot, slots)}"
        )
    if slots[slot].gather:
        raise FlowDefinitionError(
            f"{entry}.{slot} is a gather slot, so no job can start with it; start with a routine"
            " upstream of it"
        )
    uncovered = None if plan.gathers is None else plan.gathers.uncovered(entry)
    if uncovered is not None:
        raise FlowDefinitionError(
            f"a job that starts with {entry!r} could deliver to the gather {uncovered} outside of a"
            f" task of {uncovered.split!r}, the gather_per of {uncovered.routine_id!r}; start with"
            f" {uncovered.split!r} or a routine upstream of it"
        )
    if params is not None and (
        not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params)
    ):
        raise FlowDefinitionError(
            f"params for {entry}.{slot} must map parameter names to values, not {params!r}"
        )
    given = dict(params or {})
    binding = slots[slot].binding
    missing = sorted(binding.required - given.keys())
    unknown = [] if binding.takes_rest else sorted(given.keys() - binding.names)
    if missing or unknown:
        takes = ", ".join(map(repr, sorted(binding.names))) or "nothing"
        trouble = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        extra = f"has {', '.join(map(repr, unknown))}, which the handler does not take"
        trouble += [extra] * bool(unknown)
        meant = nearest(unknown[0], binding.names - given.keys()) if unknown else ""
        raise FlowDefinitionError(
            f"params for {entry}.{slot}: the handler takes {takes}; the mapping"
            f" {' and '.join(trouble)}{meant}"
        )
    return copied_payload(given, f"params for {entry}.{slot}")


def fitting_plan(plans: Sequence[Plan], job: JobState, *, allow_changed: bool) -> Plan:
    """Return the plan of the job's shape; else, with `allow_changed`, the first plan that fits.

    Raises the `FlowMismatchError` of the first plan if a worker can't resume the job on any plan.
    """
    same = [plan for plan in plans if plan.shape == job.shape]
    refused: list[FlowMismatchError] = []
    for plan in same or plans:
        try:
            check_same_flow(plan, job, allow_changed=allow_changed, cure=_WORKER_CURE)
        except FlowMismatchError as error:
            refused.append(error)
        else:
            return plan
    raise refused[0]


def check_same_flow(
    plan: Plan, job: JobState, *, allow_changed: bool, cure: str = _RESUME_CURE
) -> None:
    """Raise `FlowMismatchError` if a job can't be resumed on the flow of `plan`.

    With `allow_changed` the flow may have changed, if every pending task still has its slot, the
    payload has what the handler requires, and the gathers of the task are as before.
    """
    if not allow_changed and job.shape != plan.shape:
        raise FlowMismatchError(
            "$.job_state.shape",
            mismatch(
                f"flow {plan.flow_id!r} has changed since job {job.job_id} was started",
                cure,
                job.shape,
                plan.shape,
            ),
        )
    lost: dict[str, list[str]] = {}
    for task in job.pending_tasks:
        routine = plan.routines.get(task.routine_id)
        if routine is None or task.slot not in routine.slots:
            lost.setdefault(f"{task.routine_id}.{task.slot}", []).append(task.task_id)
    if lost:
        raise FlowMismatchError(
            "$.job_state.pending_tasks",
            f"job {job.job_id}: {tasks_without_slot(lost)}; flow {plan.flow_id!r} has no such"
            " slot; add the slot, or resume the job on the flow that started it",
        )
    for task in job.pending_tasks:
        reason = _changed_gather(plan, job, task)
        if reason is not None:
            raise FlowMismatchError(
                "$.job_state.pending_tasks",
                f"job {job.job_id}: {reason}; keep the gather slots that the job has begun, or"
                " resume the job on the flow that started it",
            )
        if task.gathering is not None:
            continue  # its handler takes one parameter of any name
        slot = f"{task.routine_id}.{task.slot}"
        lacks = plan.slot(task.routine_id, task.slot).binding.required - task.payload.keys()
        if lacks:
            raise FlowMismatchError(
                "$.job_state.pending_tasks",
                f"job {job.job_id}: the payload of task {task.task_id} has no {min(lacks)!r}, which"
                f" the handler of {slot} requires; give this parameter a default, or resume the"
                " job on the flow that started it",
            )


def _changed_gather(plan: Plan, job: JobState, task: PendingTask) -> str | None:
    """Return how the gathers that a pending task concerns have changed; None if they have not."""
    slot = f"{task.routine_id}.{task.slot}"
    gather = plan.slot(task.routine_id, task.slot).gather
    if gather is not (task.gathering is not None):
        was, now = (
            ("gathers", "does not") if task.gathering is not None else ("does not", "gathers")
        )
        return f"slot {slot} of task {task.task_id} {was} in the job, but {now} in the flow"
    gathers = plan.gathers
    if gathers is None:
        return None
    if gather:
        split = gathers.slots[gathers.numbers[task.routine_id, task.slot]].split
        if gather_line(task.routine_id, task.slot, split) not in job.shape:
            scope = "the job" if split is None else f"each task of {split!r}"
            return f"the scope of gather {slot} (task {task.task_id}) is now {scope}"
    kept = [job._pending[gather_id].task for gather_id in task.task.keeps]
    fresh = gathers.upstream.get(task.routine_id, set()) - {
        gathers.numbers.get((gather.routine_id, gather.slot)) for gather in kept
    }
    if not fresh:
        return None
    return (
        f"task {task.task_id} of {task.routine_id} can now deliver to the gather"
        f" {gathers.slots[min(fresh)]}, whose scope began without it"
    )
