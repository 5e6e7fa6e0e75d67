"""Bugs to plant in the engine, each by a sentence that says what breaks, and flows that show them.

A patch of the engine plants a bug. The flow has none: without the patch it has no finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest

from pytest_routilux.faults.faults import ClockJump, Fault
from routilux import (
    Commit,
    CommitKind,
    ErrorHandler,
    Flow,
    Gathered,
    JobState,
    JobStatus,
    RetryAfter,
    Routine,
)
from routilux.codec import encoding
from routilux.core import fold, transitions
from routilux.core import gathering as gathers
from routilux.core.fold import FoldedJob
from routilux.core.machine import Machine
from routilux.core.schedule import Schedule
from routilux.engine import step
from routilux.engine.drive import Drive
from routilux.engine.loop import Loop
from routilux.graph import routine, view
from routilux.graph.context import active
from routilux.graph.growing import plain
from routilux.graph.messages import StepOutcome
from routilux.retry import error_handler

Patch = pytest.MonkeyPatch


class GatewayDown(Exception):
    pass


class GatewaySlow(GatewayDown):
    pass


class CardRefused(GatewayDown):
    pass


class CardsRefused(ExceptionGroup[Exception]):
    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls, "2 cards", [GatewayDown(), CardRefused()])


class GatewayBusy(RetryAfter):
    pass


# --- flows ----------------------------------------------------------------------------------------


class Orders(Routine):
    """Emits so many orders."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count
        self.define_slot("trigger", handler=self.order)
        self.define_event("output", ["number", "items"])

    def order(self) -> None:
        for number in range(self.count):
            self.emit("output", number=number, items={(7, "pen"): [number]})


ERRORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (GatewayDown, GatewaySlow, CardRefused, CardsRefused, GatewayBusy)
}


class Charge(Routine):
    """Writes wherever it can, and then fails in the first attempts: `fails` of them by order."""

    def __init__(self, error: str = "GatewayDown", fails: tuple[int, ...] = (3,)) -> None:
        super().__init__()
        self.error = ERRORS[error]
        self.fails = fails
        self.define_slot("input", handler=self.charge)
        self.define_event("output", ["number", "items"])
        self.define_event("error", ["message"])

    def charge(self, number: int, items: dict[object, list[int]]) -> None:
        self.ctx.sleep(0.05)
        self.ctx.state.setdefault("seen", []).append(self.ctx.attempt)  # type: ignore[attr-defined]
        items[7, "pen"].append(99)
        self.emit("output", number=number, items=items)
        if self.ctx.attempt <= self.fails[number]:
            raise self.error(1.5)


class Wide(Charge):
    """Charges several orders at a time, and keeps no state."""

    max_concurrency = 4

    def charge(self, number: int, items: dict[object, list[int]]) -> None:
        self.ctx.sleep(0.05)
        if self.ctx.attempt <= self.fails[number]:
            raise self.error(1.5)
        self.emit("output", number=number, items=items)


class Book(Routine):
    """Adds up the orders that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.book)
        self.define_slot("failed", handler=self.note_failure)

    def book(self, number: int, items: dict[object, list[int]]) -> None:
        self.ctx.sleep(0.02)
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + number  # type: ignore[operator]
        self.ctx.state.append("booked", number)

    def note_failure(self, message: str) -> None:
        self.ctx.state["failure"] = message


def shop(
    error: type[Exception] = GatewayDown,
    fails: tuple[int, ...] = (3,),
    *,
    workers: int = 1,
    charge: type[Charge] = Charge,
    handler: ErrorHandler | None = None,
    **options: Any,
) -> Callable[[], Flow]:
    """Make a flow: orders -> charge -> book, and orders -> audit; charge is retried 4 times."""
    retry: dict[str, Any] = {"max_retries": 4, "retry_delay": 0.3, "retry_backoff": 1.5}
    retry |= {"retryable_exceptions": GatewayDown, **options}

    def build() -> Flow:
        flow = Flow(
            "shop",
            execution_strategy="concurrent" if workers > 1 else "sequential",
            max_workers=workers,
        )
        flow.add_routine(Orders(len(fails)), "orders")
        flow.add_routine(charge(error.__name__, fails), "charge")
        flow.add_routine(Book(), "book")
        flow.add_routine(Book(), "audit")
        flow.connect("orders", "output", "charge", "input")
        flow.connect("orders", "output", "audit", "input")
        flow.connect("charge", "output", "book", "input")
        flow.connect("charge", "error", "book", "failed")
        flow.routines["charge"].set_error_handler(handler or ErrorHandler("retry", **retry))
        return flow

    return build


class Total(Routine):
    """Gathers the charged orders."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("charged", handler=self.add_up, gather=True)
        self.define_event("output", ["message"])

    def add_up(self, charged: Gathered) -> None:
        numbers = [order["number"] for order in charged]
        self.emit("output", message=f"{numbers} and {len(charged.dropped)} dropped")


def gathering(*, workers: int = 1) -> Flow:
    """Make a shop whose charges are gathered per order list; the last charge is dropped."""
    flow = shop(fails=(1, 0, 9), workers=workers, charge=Wide, on_exhausted="continue")()
    flow.add_routine(Total(), "total", gather_per="orders")
    flow.connect("charge", "output", "total", "charged")
    flow.connect("total", "output", "audit", "failed")
    return flow


# --- bugs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A bug of the engine, the flow that shows it, and the finding that is expected."""

    plant: Callable[[Patch], None]
    build: Callable[[], Flow]
    kind: str
    routine: str | None
    says: tuple[str, ...]
    points: str | None
    faults: tuple[Fault, ...]


BUGS: dict[str, Bug] = {}


def bug(
    kind: str,
    *says: str,
    build: Callable[[], Flow] | None = None,
    routine: str | None = "charge",
    points: str | None = None,
    faults: tuple[Fault, ...] = (),
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a bug by its sentence; `points` is the only kind of crash points that shows it."""

    def keep(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS[plant.__name__.replace("_", " ")] = Bug(
            plant, build or shop(), kind, routine, says, points, faults
        )
        return plant

    return keep


def after(patch: Patch, owner: Any, name: str, then: Callable[..., Any]) -> None:
    """Make a method return `then(result, self, *args)`."""
    original = getattr(owner, name)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return then(original(self, *args, **kwargs), self, *args, **kwargs)

    patch.setattr(owner, name, patched)


def waiting(job: JobState) -> list[Any]:
    return [task for task in job._pending.values() if task.delay_ns and not task.failed]


# Backoff and budget.


@bug("backoff-wrong", "retry 1 of charge (task 0.0): expected 0.3 s, waited 0.45 s")
def the_exponent_of_the_backoff_is_one_too_high(patch: Patch) -> None:
    original = error_handler.backoff_ns
    patch.setattr(
        error_handler, "backoff_ns", lambda delay, growth, retry: original(delay, growth, retry + 1)
    )


@bug(
    "backoff-wrong",
    "retry 3 of charge (task 0.0): expected 0.5 s, waited 0.675 s",
    build=shop(max_delay=0.5),
)
def the_longest_delay_is_no_limit(patch: Patch) -> None:
    original = error_handler.backoff_ns
    patch.setattr(ErrorHandler, "delay_ns", lambda self, k, draw=None: original(0.3, 1.5, k))


@bug(
    "backoff-wrong",
    "retry 1 of charge (task 0.0): expected 0.27 to 0.33 s, waited 0.24 s",
    build=shop(jitter=0.1),
)
def jitter_goes_twice_as_far_as_it_may(patch: Patch) -> None:
    patch.setattr(ErrorHandler, "delay_ns", lambda self, k, draw=None: 240_000_000)


@bug(
    "backoff-wrong",
    "retry 1 of charge (task 0.0): expected 1.5 s, waited 0.3 s",
    build=shop(GatewayBusy),
)
def a_handler_that_asks_for_a_delay_gets_the_backoff(patch: Patch) -> None:
    def forget(delay: int, pending: Any, handler: Any, *_: Any) -> int:
        return int(handler.delay_ns(1))

    after(patch, transitions, "_retry_delay", forget)


@bug(
    "retry-too-many",
    "GatewayDown at attempt 5, but its 4 retries are spent",
    build=shop(fails=(9,)),
)
def one_retry_too_many_is_made(patch: Patch) -> None:
    def later(step: Any, self: Machine, pending: Any, now: int) -> Any:
        step.final = pending.retries > self.plan.handlers[step.task.routine_id].most_retries
        return step

    after(patch, Machine, "begin", later)


@bug(
    "given-up-early",
    "charge (task 0.0) is given up after GatewayDown at attempt 4, with 3 of 4 retries spent",
    build=shop(fails=(4,)),
)
def one_retry_too_few_is_made(patch: Patch) -> None:
    def earlier(step: Any, self: Machine, pending: Any, now: int) -> Any:
        step.final = pending.retries + 1 >= self.plan.handlers[step.task.routine_id].most_retries
        return step

    after(patch, Machine, "begin", earlier)


@bug(
    "budget-reset",
    "of charge (task 0.0): expected 0.45 s, waited 0.3 s",
    "the retries before another host resumed the job are forgotten",
)
def the_retry_budget_is_reset_on_resume(patch: Patch) -> None:
    def forget(result: None, self: JobState, commit: Commit) -> None:
        for task in self._pending.values():
            task.retries = 0

    after(patch, JobState, "_fold_resumed", forget)


@bug(
    "budget-reset",
    "but its 4 retries are spent; 3 of them since another host resumed the job",
    build=shop(fails=(9,), retry_backoff=1),
)
def the_retry_budget_is_reset_on_resume_where_all_delays_are_alike(patch: Patch) -> None:
    the_retry_budget_is_reset_on_resume(patch)


def _count_for_all(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
    if commit.kind is CommitKind.RETRY:
        spent = self._pending[task_id]
        for task in self._pending.values():
            if task.routine_id == spent.routine_id:
                task.retries = spent.retries
    return ready


@bug(
    "budget-shared",
    "retry 1 of charge (task 0.2): expected 0.3 s, waited 0.45 s, the wait before retry 2",
    "retries of other tasks of charge are counted",
    build=shop(fails=(2, 2)),
)
def the_tasks_of_a_routine_share_one_count_of_retries(patch: Patch) -> None:
    after(patch, JobState, "_fold_step", _count_for_all)


@bug(
    "budget-shared",
    "is given up after GatewayDown at attempt 3, with 2 of 4 retries spent",
    "all tasks of charge together have spent 4",
    build=shop(fails=(3, 3), retry_backoff=1),
)
def the_tasks_of_a_routine_share_one_budget_where_all_delays_are_alike(patch: Patch) -> None:
    after(patch, JobState, "_fold_step", _count_for_all)


@bug(
    "non-retryable-retried",
    "CardRefused at attempt 1, but the error is not retryable",
    build=shop(CardRefused, non_retryable_exceptions=CardRefused),
)
def an_error_that_is_not_retryable_is_retried(patch: Patch) -> None:
    patch.setattr(ErrorHandler, "is_retryable", lambda self, kind, leaves=(): True)


@bug(
    "non-retryable-retried",
    "CardsRefused at attempt 1, but the error is not retryable",
    build=shop(CardsRefused, retryable_exceptions=Exception, non_retryable_exceptions=CardRefused),
)
def an_exception_group_is_judged_by_its_own_class_only(patch: Patch) -> None:
    original = ErrorHandler.is_retryable
    patch.setattr(ErrorHandler, "is_retryable", lambda self, kind, leaves=(): original(self, kind))


@bug(
    "subclass-not-retried",
    "charge (task 0.0) is given up after GatewaySlow at attempt 1, with 0 of 4 retries spent",
    build=shop(GatewaySlow),
)
def a_subclass_of_a_retryable_error_is_not_retried(patch: Patch) -> None:
    patch.setattr(
        ErrorHandler, "is_retryable", lambda self, k, leaves=(): k in self.retryable_exceptions
    )


@bug(
    "deadline-crossed",
    "GatewayDown at attempt 3, but the retry is due 0.575 s after the deadline",
    build=shop(deadline=1.0),
)
def a_task_is_retried_past_its_deadline(patch: Patch) -> None:
    patch.setattr(transitions, "_is_past", lambda *_: None)


@bug(
    "strategy-wrong",
    "charge (task 0.0) is failed, but its handler's strategy is SKIP",
    build=shop(fails=(9,), max_retries=1, on_exhausted="skip"),
)
def a_task_to_skip_fails_the_job(patch: Patch) -> None:
    def fail(commit: Commit, *_: Any) -> Commit:
        if commit.kind is CommitKind.DROPPED:
            commit.kind, commit.detail = CommitKind.FAILED, None
            commit.status = JobStatus.FAILED
        return commit

    after(patch, transitions, "_failure", fail)


@bug(
    "retried-unexpectedly",
    "GatewayDown at attempt 1, but its handler's strategy is CONTINUE",
    build=shop(fails=(9,), handler=ErrorHandler("continue")),
)
def a_task_to_drop_is_retried(patch: Patch) -> None:
    def again(commit: Commit, _: Any, job: JobState, flown: Any, *rest: Any) -> Any:
        if commit.kind is CommitKind.DROPPED and flown.attempt == 1:
            now = rest[-1]
            commit.kind, commit.status = CommitKind.RETRY, job.status
            commit.emissions, commit.tasks, commit.detail = (), (), None
            commit.delay_ns, commit.due_ns = 300_000_000, now + 300_000_000
        return commit

    after(patch, transitions, "_failure", again)


@bug(
    "attempt-skipped",
    "attempt 2 of orders (task 0) starts, but attempt 1 is the next",
    routine="orders",
)
def an_attempt_that_a_crash_cut_off_is_counted(patch: Patch) -> None:
    def count_it(_: None, self: JobState, commit: Commit) -> None:
        for task in self._pending.values():
            task.attempt += 1

    after(patch, JobState, "_fold_resumed", count_it)


# Timers.


def set_due_on_resume(patch: Patch, due_of: Callable[[Any, Commit, int], int]) -> None:
    original = JobState._fold_resumed

    def patched(self: JobState, commit: Commit) -> None:
        due = {task.task_id: task.due_ns for task in waiting(self)}
        original(self, commit)
        for task in waiting(self):
            task.due_ns = due_of(task, commit, due[task.task_id])

    patch.setattr(JobState, "_fold_resumed", patched)


@bug(
    "timer-lost",
    "retry 1 of charge (task 0.0) starts",
    "before it is due; its wait is 0.3 s, which the resuming host did not keep",
)
def a_timer_is_lost_on_resume(patch: Patch) -> None:
    set_due_on_resume(patch, lambda task, commit, due: commit.at_ns)


@bug(
    "timer-restarted",
    "retry 1 of charge (task 0.0) waits its 0.3 s anew after the resume: it starts 0.15 s late",
)
def a_timer_starts_anew_on_resume(patch: Patch) -> None:
    set_due_on_resume(patch, lambda task, commit, due: commit.at_ns + task.delay_ns)


@bug("timer-lost", "retry 1 of charge (task 0.0) starts", "which the resuming host did not keep")
def a_due_time_is_kept_by_the_monotonic_clock_of_the_host_that_set_it(patch: Patch) -> None:
    offsets: list[int] = []
    after(patch, Drive, "__init__", lambda _, self, *args: offsets.append(self.offset))

    def translated(task: Any, commit: Commit, due: int) -> int:
        return due - offsets[-2] + offsets[-1] if len(offsets) > 1 else due

    set_due_on_resume(patch, translated)


@bug(
    "wake-up-lost",
    "attempt 2 of charge (task 0.0) never starts, though it is due 0.35 s after the start",
    build=shop(fails=(1, 1), workers=2, charge=Wide),
)
def of_two_tasks_that_are_due_at_one_instant_one_is_forgotten(patch: Patch) -> None:
    original = Schedule.add

    def add(self: Schedule, pending: Any) -> None:
        known = [*self._queue[self._queued :], *(entry[3] for entry in self._heap)]
        if not (pending.delay_ns and any(task.due_ns == pending.due_ns for task in known)):
            original(self, pending)

    patch.setattr(Schedule, "add", add)


@bug(
    "retry-late",
    "retry 1 of charge (task 0.2) starts 0.05 s after it was due, though no limit applied",
    build=shop(fails=(1, 1), workers=4, charge=Wide),
)
def of_two_tasks_that_are_due_at_one_instant_one_starts_when_the_other_has_ended(
    patch: Patch,
) -> None:
    def one_at_a_time(task: Any, self: Machine) -> Any:
        return None if task is not None and task.delay_ns and self._flights else task

    after(patch, Machine, "next_task", one_at_a_time)


@bug(
    "too-many-at-once",
    "charge (task 0.2, attempt 1) starts with 1 steps of charge in flight",
    build=shop(fails=(1, 1), workers=4),
)
def two_steps_of_one_routine_run_at_a_time(patch: Patch) -> None:
    from routilux.core.schedule import _Lane

    after(patch, _Lane, "__init__", lambda _, self, limit: setattr(self, "limit", 9))


# Failed attempts.


def _leaky(patch: Patch) -> None:
    def outcome(number: int, emissions: Any, *rest: Any, **named: Any) -> StepOutcome:
        context = active.get()
        made = StepOutcome(number, emissions, *rest, **named)
        if context is not None and made.error is not None:
            made.emissions = context.outbox
            made.state, _ = context.writes(state_allowed=True)
        return made

    patch.setattr(step, "StepOutcome", outcome)


@bug(
    "failed-attempt-emitted",
    "attempt 1 of charge (task 0.0) did not succeed, but what it emitted is kept: output",
)
def what_a_failed_attempt_emitted_is_delivered(patch: Patch) -> None:
    _leaky(patch)

    def deliver(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        if commit.kind is CommitKind.RETRY:
            commit.emissions = tuple(outcome.emissions)
            commit.tasks = transitions._fan_out(plan, job, flown.task, commit.emissions, 0)
        return commit

    def create(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
        if commit.kind is CommitKind.RETRY and commit.tasks:
            return [*ready, *self._deliver(commit, self._pending[task_id], False)]
        return ready

    after(patch, transitions, "_failure", deliver)
    after(patch, JobState, "_fold_step", create)


@bug(
    "failed-attempt-wrote",
    "attempt 1 of charge (task 0.0) did not succeed, but its state 'seen' is kept",
)
def the_state_of_a_failed_attempt_is_kept(patch: Patch) -> None:
    _leaky(patch)

    def keep(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        commit.state = outcome.state
        return commit

    after(patch, transitions, "_failure", keep)


@bug(
    "snapshot-wrong",
    "charge (task 0.0, attempt 2) gets values of the state of charge that differ from the commits",
)
def the_state_of_a_failed_attempt_is_kept_in_memory_alone(patch: Patch) -> None:
    _leaky(patch)

    def keep(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        if outcome.state is not None:
            job.routine_states[flown.task.routine_id].kept = outcome.state.values
        return commit

    after(patch, transitions, "_failure", keep)


@bug(
    "snapshot-wrong",
    "audit (task 0.3, attempt 1) gets values of the state of audit that differ from the commits",
    "$.booked[1]: 0 was added",
    build=shop(fails=(0, 0, 0)),
    routine="audit",
)
def what_a_step_adds_is_added_twice(patch: Patch) -> None:
    original = fold.patched
    patch.setattr(fold, "patched", lambda old, added, *_: original(original(old, added), added))


@bug(
    "error-not-emitted",
    "attempt 5 of charge (task 0.0) fails for good, and its event 'error' is not emitted",
    build=shop(fails=(9,)),
)
def a_task_that_fails_for_good_emits_no_error_event(patch: Patch) -> None:
    def forget(_: None, plan: Any, job: Any, commit: Commit, *__: Any) -> None:
        commit.emissions = commit.tasks = ()

    after(patch, transitions, "_report", forget)


@bug(
    "failed-too-early",
    "the job is failed after commit 3 (failed of charge, task 0.0, attempt 1), but book",
    build=shop(CardRefused, non_retryable_exceptions=CardRefused),
)
def a_job_is_failed_before_its_error_event_is_handled(patch: Patch) -> None:
    def rest(_: None, self: Machine, commit: Commit) -> None:
        commit.status = JobStatus.FAILED

    after(patch, Machine, "_set_status", rest)


@bug(
    "payload-changed",
    "a handler changes commit 2 of orders",
    "(7, 'pen')",
    routine="orders",
)
def the_branches_of_a_flow_share_one_payload(patch: Patch) -> None:
    patch.setattr(step, "copy_value", lambda value: value)
    patch.setattr(routine, "copied_payload", lambda payload, place: payload)


@bug(
    "payload-changed",
    "a handler changes commit",
    "of charge after the write (its tasks are for book): $.state.values.seen",
    build=shop(fails=(0, 3)),
)
def a_handler_gets_the_state_itself_in_place_of_a_copy(patch: Patch) -> None:
    patch.setattr(view, "copy_value", lambda value: value)
    patch.setattr(view, "private_copy", plain)


# Commits.


@bug(
    "folded-before-written",
    "commit 3 (retry of charge) changed the job before the commit was written",
)
def a_commit_is_folded_in_before_it_is_written(patch: Patch) -> None:
    def fold(commit: Commit | None, self: Drive, *_: Any) -> Commit | None:
        if commit is not None and commit.kind is CommitKind.RETRY:
            self.machine.accept(commit)
        return commit

    apply = Drive.apply

    def once(self: Drive, commit: Commit) -> None:
        if commit.seq > self.machine.job.seq:
            apply(self, commit)

    after(patch, Drive, "take_outcome", fold)
    patch.setattr(Drive, "apply", once)


@bug("attempts-miscounted", "orders counts 2 attempts, but its commits show 1", routine="orders")
def a_commit_is_folded_in_twice(patch: Patch) -> None:
    def again(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
        if commit.kind is CommitKind.DONE:
            state = self.routine_states[str(commit.routine_id)]
            state.attempts += 1
            state.completed += 1
        return ready

    after(patch, JobState, "_fold_step", again)


@bug(
    "attempt-repeated",
    "attempt 1 of charge (task 0.0) is committed again; attempt 2 is the next",
)
def an_outcome_that_comes_twice_is_committed_twice(patch: Patch) -> None:
    original = Machine.finish

    def finish(self: Machine, flown: Any, outcome: Any, now: int) -> Any:
        self._flights.setdefault(flown.task.task_id, flown)
        return original(self, flown, outcome, now)

    end = Loop._end

    def twice(self: Loop, group: Any, now: int) -> None:
        end(self, group, now)
        end(self, group, now)

    patch.setattr(Machine, "finish", finish)
    patch.setattr(Loop, "_end", twice)


@bug("task-id-twice", "task 1 that commit", "creates has the id 0.0, but the id must be 0.0.0")
def after_a_resume_tasks_are_numbered_from_0_again(patch: Patch) -> None:
    original = transitions.child_id
    resumed: list[int] = []
    after(patch, JobState, "_fold_resumed", lambda _, self, commit: resumed.append(0))
    after(patch, Drive, "__init__", lambda _, self, *args: resumed.clear())

    def child_id(parent: str, number: int) -> str:
        return f"0.{number}" if resumed else original(parent, number)

    patch.setattr(transitions, "child_id", child_id)


@bug("completed-too-early", "but charge (task 0.0) waits for its retry 1")
def a_job_is_completed_while_a_retry_waits(patch: Patch) -> None:
    def complete(commit: Commit | None, self: Machine, *_: Any) -> Commit | None:
        others = [t for t in self.job._pending.values() if commit and t.task_id != commit.task_id]
        ends = commit is not None and commit.kind is CommitKind.DONE and not commit.tasks
        if commit and ends and all(task.delay_ns for task in others):
            commit.status = JobStatus.COMPLETED
        return commit

    after(patch, Machine, "finish", complete)


@bug(
    "ran-after-failure",
    "audit (task 0.1, attempt 1) starts although a task has failed",
    build=shop(CardRefused, non_retryable_exceptions=CardRefused),
    routine="audit",
)
def a_step_starts_after_the_job_has_failed(patch: Patch) -> None:
    def tasks_to_run(self: JobState) -> Any:
        return [task for task in self.pending_tasks if not task.failed]

    patch.setattr(FoldedJob, "tasks_to_run", tasks_to_run)


@bug(
    "edge-missing",
    "charge emits 'output' in commit",
    "no task is created for the connected slot book.input",
    points="by document",
)
def an_edge_is_missing_after_a_flow_was_loaded(patch: Patch) -> None:
    original = Flow.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[Flow], document: object, path: str, shape: Any = ()) -> Flow:
        flow: Flow = original(cls, document, path, shape)
        flow.plan()
        assert flow._graph is not None
        flow._graph[1].pop(("charge", "output"), None)
        return flow

    patch.setattr(Flow, "load", classmethod(load))


@bug(
    "changed-by-saving", "commit 2 of orders differs after it is saved and loaded", routine="orders"
)
def keys_that_are_tuples_become_texts_when_they_are_saved(patch: Patch) -> None:
    original = encoding._encode_dict

    def encode(value: dict[Any, Any], depth: int) -> Any:
        named = {k if type(k) is str else str(k): item for k, item in value.items()}
        return original(named, depth)

    patch.setitem(encoding._ENCODERS, dict, encode)  # type: ignore[arg-type]


@bug("time-ran-back", "time runs back by", "(resumed)", routine=None, faults=(ClockJump(-3600),))
def after_a_resume_time_runs_back_where_the_clock_was_set_back(patch: Patch) -> None:
    def plain(_: None, self: Drive, *args: Any) -> None:
        clock = self.environment.clock
        self.offset = clock.now_ns() - clock.monotonic_ns()

    after(patch, Drive, "__init__", plain)


# Gathers.


@bug(
    "gather-early",
    "gather total (task 0.g0) starts, but charge (task 0.0) could still deliver to it",
    build=gathering,
    routine="total",
)
def a_gather_starts_before_its_last_delivery(patch: Patch) -> None:
    def early(ready: list[Any], commit: Commit, parent: Any, _: Any, pending: Any) -> list[Any]:
        gather = pending.get("0.g0")
        if gather is None or gather.gathering.collected or gather.gathering.deliveries < 1:
            return ready
        gathers._collect(gather, gather.gathering)
        return [*ready, gather]

    original = gathers._advance
    patch.setattr(gathers, "_advance", lambda *args: early(original(*args), *args))


@bug(
    "attempt-repeated",
    "attempt 1 of total (task 0.g0) starts after the task was done",
    build=gathering,
    routine="total",
)
def a_gather_starts_twice(patch: Patch) -> None:
    original = gathers._advance
    patch.setattr(gathers, "_advance", lambda *args: original(*args) * 2)


@bug(
    "gather-never",
    "gather total (task 0.g0) never starts, though no task can deliver to it any more",
    build=gathering,
    routine="total",
)
def a_gather_never_starts(patch: Patch) -> None:
    original = gathers._advance
    patch.setattr(gathers, "_advance", lambda *args: original(*args) * 0)


@bug("gather-wrong", "dropped", build=gathering, routine="total")
def a_gather_gets_no_dropped_tasks(patch: Patch) -> None:
    original = gathers.Collected
    patch.setattr(gathers, "Collected", lambda dropped, sources: original((), sources))


@bug("gather-wrong", "does not get what its scope delivered", build=gathering, routine="total")
def a_gather_gets_its_deliveries_in_the_order_of_their_arrival(patch: Patch) -> None:
    original = gathers._enter

    def enter(places: Any, gather: str, entry: Any, pending: Any) -> Any:
        if isinstance(entry, gathers.Deliveries):  # in a place of its own, behind all others
            last = pending[gather].gathering.first
            while last.next is not None:
                last = last.next
            last.next = gathers.Place(entry)
            return last.next
        return original(places, gather, entry, pending)

    patch.setattr(gathers, "_enter", enter)


@bug(
    "gather-missing",
    "creates task 0, the scope of a gather at total.charged, but no task of that gather",
    build=gathering,
    routine=None,
)
def a_scope_begins_without_its_gather(patch: Patch) -> None:
    original = Machine.start

    def start(self: Machine, *args: Any, **kwargs: Any) -> Commit:
        commit = original(self, *args, **kwargs)
        commit.tasks = commit.tasks[:1]
        commit.tasks[0].keeps = ()
        return commit

    patch.setattr(Machine, "start", start)
