"""Rules for the start and the data of a step.

Invariants:
- A step starts only while its job runs, as the next attempt of its task, and not before it is due.
  It gets the committed data.
- It starts only while fewer steps are in flight than the job and its routine allow.
- Where durations are exact, a task that is due starts as soon as the limits allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, final

from pytest_routilux.sim.conformance.retry_rules import fail
from pytest_routilux.sim.conformance.shadow_job import MOST_CONFLICTS
from pytest_routilux.text import seconds
from routilux import JobStatus
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from pytest_routilux.sim.conformance.gather_rules import GatherRules
    from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
    from routilux import StepInput

_MOST_ORDERED: Final = 64  # open tasks; with more, comparing them all would take too long


@final
class StartRules:
    """Checks the start of each step of a job."""

    __slots__ = ("_compared", "_exact", "_gathers", "_job", "overtaken")

    def __init__(self, job: ShadowJob, gathers: GatherRules, *, exact: bool) -> None:
        self._job = job
        self._gathers = gathers
        self._exact = exact
        self.overtaken: tuple[ShadowTask, str] | None = None
        """The first task that started before its turn, and what it overtook."""
        # Equal pairs, by routine. Values are replaced and never changed, so one comparison lasts.
        self._compared: dict[str | None, tuple[object, object]] = {}

    def check(self, step: StepInput) -> None:
        """Check the start of `step`, and record the step as running."""
        job, task, at = self._job, step.task, step.started_ns
        shadow = job.tasks.get(task.task_id)
        if shadow is None:
            what = f"{step.who} starts, but no commit creates its task"
            fail("unknown-task", what, task)
        if job.status is not JobStatus.RUNNING:
            what = f"{step.who} starts although the job is {job.status.value}"
            failed = job.status is JobStatus.FAILED
            fail("ran-after-failure" if failed else "ran-while-stopped", what, task)
        if job.failing and not shadow.reports:
            what = f"{step.who} starts although a task has failed, and it does not report a failure"
            fail("ran-after-failure", what, task)
        if job.interrupted:
            fail("ran-while-stopped", f"{step.who} starts although the run was broken off", task)
        if shadow.ended or shadow.failed or shadow.attempt != step.attempt:
            wrong_attempt(shadow, step.attempt, "starts", at)
        if task.task_id in job.in_flight:
            fail("started-twice", f"{step.who} starts while it is in flight", task)
        if at < job.at:
            what = (
                f"time runs back: {step.who} starts {seconds(job.at - at)} s before the time"
                " of the last commit"
            )
            fail("time-ran-back", what, task)
        if at < shadow.due:
            too_early(shadow, at)
        if self._exact:
            self._check_not_late(shadow, at)
            if len(job.open) <= _MOST_ORDERED:
                self._check_order(shadow)
        self._check_limits(step, shadow)
        self._check_data(step, shadow)
        shadow.step = step.number, step.seq
        job.start_step(step)

    def _check_not_late(self, shadow: ShadowTask, at: int) -> None:
        job = self._job
        if shadow.conflicts >= MOST_CONFLICTS or job.alone:
            ready = max(shadow.due, shadow.ready, job.idle_since)
            if job.in_flight or shadow.conflicts < MOST_CONFLICTS:
                return
        else:
            routine_free = job.routine_free_since.get(shadow.task.routine_id, shadow.due)
            ready = max(shadow.due, shadow.ready, job.free_since, routine_free)
        if at <= ready:
            return
        late = f"{seconds(at - ready)} s"
        if not shadow.delay:
            what = (
                f"attempt {shadow.attempt} of {shadow} starts {late} late, though no limit applied"
            )
            fail("started-late", what, shadow.task)
        retry = f"retry {shadow.retries} of {shadow}"
        if shadow.since_resume == 0 and at == shadow.resumed + shadow.delay:
            what = (
                f"{retry} waits its {seconds(shadow.delay)} s anew after the resume: it starts"
                f" {late} late"
            )
            fail("timer-restarted", what, shadow.task)
        what = f"{retry} starts {late} after it was due, though no limit applied"
        fail("retry-late", what, shadow.task)

    def _check_order(self, shadow: ShadowTask) -> None:
        """Check that no other task that could start now comes first."""
        job = self._job
        if shadow.conflicts >= MOST_CONFLICTS or shadow.gather:
            return
        order = shadow.due, *shadow.created
        for other in job.open.values():
            if (other.due, *other.created) >= order or other.conflicts >= MOST_CONFLICTS:
                continue
            routine = other.task.routine_id
            waits = other.failed or other.gather or other.task.task_id in job.in_flight
            waits |= job.failing and not other.reports
            if not waits and job.in_flight_of.get(routine, 0) < job.limits[routine]:
                what = f"{shadow} starts before {other}, which comes first"
                self.overtaken = self.overtaken or (shadow, what)

    def _check_limits(self, step: StepInput, shadow: ShadowTask) -> None:
        job, task = self._job, step.task
        flying = [job.tasks[task_id] for task_id in job.in_flight]
        alone = next((t for t in (shadow, *flying) if t.conflicts >= MOST_CONFLICTS), None)
        if flying and alone is not None:
            what = f"{step.who} starts, but {alone} must run alone after its conflicts"
            fail("too-many-at-once", what, task)
        if len(job.in_flight) >= job.width:
            what = f"{step.who} starts with {len(job.in_flight)} of {job.width} steps in flight"
            fail("too-many-at-once", what, task)
        in_flight, limit = job.in_flight_of.get(task.routine_id, 0), job.limits[task.routine_id]
        if in_flight >= limit:
            what = (
                f"{step.who} starts with {in_flight} steps of {task.routine_id} in flight;"
                f" its max_concurrency is {limit}"
            )
            fail("too-many-at-once", what, task)

    def _check_data(self, step: StepInput, shadow: ShadowTask) -> None:
        job, task = self._job, step.task
        state = job.state.get(task.routine_id)
        if step.state or state:
            self._compare(step, task.routine_id, state or {}, step.state)
        if step.shared or job.shared:
            self._compare(step, None, job.shared, step.shared)
        payload = shadow.task.payload
        if shadow.gather:
            self._gathers.check_start(step, shadow)
        elif task.payload is not payload and not same(payload, task.payload):
            self._wrong_data(step, "its payload", payload, task.payload)
        if (step.effects or shadow.effects) and set(step.effects or ()) != shadow.effects:
            what = (
                f"{step.who} gets the records of once() {sorted(step.effects or ())},"
                f" but {sorted(shadow.effects)} are committed"
            )
            fail("record-lost", what, task)

    def _compare(
        self, step: StepInput, routine: str | None, committed: object, given: object
    ) -> None:
        """Check that a step gets the saved state of `routine`; `routine=None` means shared data."""
        known = self._compared.get(routine)
        if known is None or known[0] is not given or known[1] is not committed:
            if not same(committed, given):
                name = "the shared data" if routine is None else f"the state of {routine}"
                self._wrong_data(step, name, committed, given)
            self._compared[routine] = given, committed

    def _wrong_data(self, step: StepInput, name: str, committed: object, given: object) -> NoReturn:
        difference = first_difference(committed, given)
        what = f"{step.who} gets values of {name} that differ from the commits: {difference}"
        fail("snapshot-wrong", what, step.task)


def too_early(shadow: ShadowTask, at: int) -> NoReturn:
    """Raise `BrokenRuleError` for an attempt that starts before its task is due."""
    early = f"{seconds(shadow.due - at)} s"
    if not shadow.delay:
        what = f"attempt {shadow.attempt} of {shadow} starts {early} before the task was created"
        fail("time-ran-back", what, shadow.task)
    what = (
        f"retry {shadow.retries} of {shadow} starts {early} before it is due; its wait is"
        f" {seconds(shadow.delay)} s"
    )
    if shadow.since_resume == 0:
        what += ", which the resuming host did not keep"
        fail("timer-lost", what, shadow.task)
    fail("retry-too-early", what, shadow.task)


def wrong_attempt(shadow: ShadowTask, attempt: int, verb: str, at: int) -> NoReturn:
    """Raise `BrokenRuleError` for a repeated or a skipped attempt of a task."""
    what = f"attempt {attempt} of {shadow} {verb}"
    if shadow.ended or shadow.failed:
        what += f" after the task {shadow.ended or 'has failed'}"
        fail("attempt-repeated", what, shadow.task)
    if attempt < shadow.attempt:
        what += f" again; attempt {shadow.attempt} is the next"
        fail("attempt-repeated", what, shadow.task)
    what += f", but attempt {shadow.attempt} is the next"
    fail("attempt-skipped", what, shadow.task)


def same(a: object, b: object) -> bool:
    """Return whether `a` and `b` are equal and have the same type."""
    return a is b or same_value(a, b)
