"""Bugs to be planted in the engine, each by the sentence of what it breaks, and flows to show them.

A bug is planted by patching the engine while a block runs. None of them is in the flow: without the
patch the same flow, with the same budget, is clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_routilux.faults.faults import ClockJump, Fault
from routilux import (
    Commit,
    CommitKind,
    ErrorHandler,
    Flow,
    JobState,
    JobStatus,
    RetryAfter,
    Routine,
)
from routilux.codec import encoding
from routilux.core import transitions
from routilux.core.machine import Machine
from routilux.core.schedule import Schedule
from routilux.engine import step
from routilux.engine.drive import Drive
from routilux.engine.loop import Loop
from routilux.graph import context, routine
from routilux.graph.context import active
from routilux.graph.messages import StepOutcome
from routilux.retry import error_handler

Patch = pytest.MonkeyPatch


class GatewayDown(Exception):
    """The gateway does not answer."""


class GatewaySlow(GatewayDown):
    """The gateway answers too late."""


class CardRefused(GatewayDown):
    """No use to ask again."""


class GatewayBusy(RetryAfter):
    """The gateway says when to come again."""


# --- flows ----------------------------------------------------------------------------------------


class Orders(Routine):
    """Sends out so many orders, all alike but for their number."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count
        self.define_slot("trigger", handler=self.order)
        self.define_event("output", ["number", "items"])

    def order(self) -> None:
        for number in range(self.count):
            self.emit("output", number=number, items={(7, "pen"): [number]})


ERRORS = {kind.__name__: kind for kind in (GatewayDown, GatewaySlow, CardRefused, GatewayBusy)}


class Charge(Routine):
    """Leaves its mark wherever it can, and then fails, as often as `fails` says of an order."""

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
    """Takes what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.book)
        self.define_slot("told", handler=self.told)

    def book(self, number: int, items: dict[object, list[int]]) -> None:
        self.ctx.sleep(0.02)
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + number  # type: ignore[operator]

    def told(self, message: str) -> None:
        self.ctx.state["told"] = message


def shop(
    error: type[Exception] = GatewayDown,
    fails: tuple[int, ...] = (3,),
    *,
    workers: int = 1,
    charge: type[Charge] = Charge,
    **options: Any,
) -> Callable[[], Flow]:
    """orders -> charge -> book, and orders -> audit; charge is retried, by default 4 times."""
    handler = {
        "strategy": "retry",
        "max_retries": 4,
        "retry_delay": 0.3,
        "retry_backoff": 1.5,
        "retryable_exceptions": GatewayDown,
        **options,
    }

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
        flow.connect("charge", "error", "book", "told")
        flow.routines["charge"].set_error_handler(ErrorHandler(**handler))
        return flow

    return build


# --- bugs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A bug of the engine, the flow that shows it, and what must be said of it."""

    plant: Callable[[Patch], None]
    build: Callable[[], Flow]
    kind: str
    routine: str | None
    says: tuple[str, ...]
    points: str | None
    faults: tuple[Fault, ...]


BUGS: dict[str, Bug] = {}


def bug(
    what: str,
    kind: str,
    *says: str,
    build: Callable[[], Flow] | None = None,
    routine: str | None = "charge",
    points: str | None = None,
    faults: tuple[Fault, ...] = (),
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a bug; `points` names the kind of crash points at which alone it shows."""

    def keep(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS[what] = Bug(plant, build or shop(), kind, routine, says, points, faults)
        return plant

    return keep


def after(patch: Patch, owner: Any, name: str, then: Callable[..., Any]) -> None:
    """Let `then(result, self, *args)` have the last word on what a method returns."""
    original = getattr(owner, name)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return then(original(self, *args, **kwargs), self, *args, **kwargs)

    patch.setattr(owner, name, patched)


def waiting(job: JobState) -> list[Any]:
    return [task for task in job._pending.values() if task.delay_ns and not task.failed]


# Backoff and budget.


@bug(
    "the exponent of the backoff is one too high",
    "backoff-wrong",
    "retry 1 of charge (task 0.0): expected 0.3 s, waited 0.45 s",
)
def _(patch: Patch) -> None:
    original = error_handler.backoff_ns
    patch.setattr(
        error_handler, "backoff_ns", lambda delay, growth, retry: original(delay, growth, retry + 1)
    )


@bug(
    "the longest delay is no limit",
    "backoff-wrong",
    "retry 3 of charge (task 0.0): expected 0.5 s, waited 0.675 s",
    build=shop(max_delay=0.5),
)
def _(patch: Patch) -> None:
    original = error_handler.backoff_ns
    patch.setattr(
        error_handler.ErrorHandler, "delay_ns", lambda self, k, draw=None: original(0.3, 1.5, k)
    )


@bug(
    "jitter goes twice as far as it may",
    "backoff-wrong",
    "retry 1 of charge (task 0.0): expected 0.27 to 0.33 s, waited 0.24 s",
    build=shop(jitter=0.1),
)
def _(patch: Patch) -> None:
    patch.setattr(error_handler.ErrorHandler, "delay_ns", lambda self, k, draw=None: 240_000_000)


@bug(
    "a handler that asks for a delay gets the backoff",
    "backoff-wrong",
    "retry 1 of charge (task 0.0): expected 1.5 s, waited 0.3 s",
    build=shop(GatewayBusy),
)
def _(patch: Patch) -> None:
    def forget(delay: int, pending: Any, handler: Any, *_: Any) -> int:
        return int(handler.delay_ns(1))

    after(patch, transitions, "_retry_delay", forget)


@bug(
    "one retry too many is made",
    "retry-too-many",
    "charge (task 0.0) is retried",
    "GatewayDown at attempt 5, but its 4 retries are spent",
    build=shop(fails=(9,)),
)
def _(patch: Patch) -> None:
    def later(step: Any, self: Machine, pending: Any, now: int) -> Any:
        step.final = pending.retries > self.plan.handlers[step.task.routine_id].most_retries
        return step

    after(patch, Machine, "begin", later)


@bug(
    "one retry too few is made",
    "given-up-early",
    "charge (task 0.0) is given up after GatewayDown at attempt 4, with 3 of 4 retries spent",
    build=shop(fails=(4,)),
)
def _(patch: Patch) -> None:
    def earlier(step: Any, self: Machine, pending: Any, now: int) -> Any:
        step.final = pending.retries + 1 >= self.plan.handlers[step.task.routine_id].most_retries
        return step

    after(patch, Machine, "begin", earlier)


@bug(
    "the retry budget is reset on resume",
    "budget-reset",
    "of charge (task 0.0): expected 0.45 s, waited 0.3 s",
    "the retries before another host resumed the job are forgotten",
)
def _(patch: Patch) -> None:
    def forget(result: None, self: JobState, commit: Commit) -> None:
        for task in self._pending.values():
            task.retries = 0

    after(patch, JobState, "_fold_resumed", forget)


@bug(
    "the retry budget is reset on resume, where all delays are alike",
    "budget-reset",
    "charge (task 0.0) is retried after",
    "but its 4 retries are spent; 3 of them since another host resumed the job",
    build=shop(fails=(9,), retry_backoff=1),
)
def _(patch: Patch) -> None:
    BUGS["the retry budget is reset on resume"].plant(patch)


def _count_for_all(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
    if commit.kind is CommitKind.RETRY:
        spent = self._pending[task_id]
        for task in self._pending.values():
            if task.routine_id == spent.routine_id:
                task.retries = spent.retries
    return ready


@bug(
    "the tasks of a routine share one count of retries",
    "budget-shared",
    "retry 1 of charge (task 0.2): expected 0.3 s, waited 0.45 s, as before retry 2",
    "retries of other tasks of charge are counted",
    build=shop(fails=(2, 2)),
)
def _(patch: Patch) -> None:
    after(patch, JobState, "_fold_step", _count_for_all)


@bug(
    "the tasks of a routine share one budget, where all delays are alike",
    "budget-shared",
    "is given up after GatewayDown at attempt 3, with 2 of 4 retries spent",
    "all tasks of charge together have spent 4",
    build=shop(fails=(3, 3), retry_backoff=1),
)
def _(patch: Patch) -> None:
    after(patch, JobState, "_fold_step", _count_for_all)


@bug(
    "an error that is not retryable is retried",
    "non-retryable-retried",
    "charge (task 0.0) is retried after",
    "CardRefused at attempt 1, which is not retryable",
    build=shop(CardRefused, non_retryable_exceptions=CardRefused),
)
def _(patch: Patch) -> None:
    patch.setattr(error_handler.ErrorHandler, "is_retryable", lambda self, kind: True)


@bug(
    "a subclass of a retryable error is not retried",
    "subclass-not-retried",
    "charge (task 0.0) is given up after GatewaySlow at attempt 1, with 0 of 4 retries spent",
    build=shop(GatewaySlow),
)
def _(patch: Patch) -> None:
    patch.setattr(
        error_handler.ErrorHandler,
        "is_retryable",
        lambda self, kind: kind in self.retryable_exceptions,
    )


@bug(
    "a task is retried past its deadline",
    "deadline-crossed",
    "charge (task 0.0) is retried after",
    "after its deadline",
    build=shop(deadline=1.0),
)
def _(patch: Patch) -> None:
    def endless(delay: Any, pending: Any, handler: Any, *_: Any) -> Any:
        return handler.delay_ns(pending.retries + 1)

    after(patch, transitions, "_retry_delay", endless)


@bug(
    "what is to be skipped fails the job",
    "strategy-wrong",
    "charge (task 0.0) is failed, but its handler's strategy is SKIP",
    build=shop(fails=(9,), max_retries=1, on_exhausted="skip"),
)
def _(patch: Patch) -> None:
    def fail(commit: Commit, *_: Any) -> Commit:
        if commit.kind is CommitKind.DROPPED:
            commit.kind, commit.detail = CommitKind.FAILED, None
            commit.status = JobStatus.FAILED
        return commit

    after(patch, transitions, "_failure", fail)


def _continues() -> Flow:
    flow = shop(fails=(9,))()
    flow.routines["charge"].set_error_handler(ErrorHandler("continue"))
    return flow


@bug(
    "what is to be dropped is retried",
    "retried-unexpectedly",
    "charge (task 0.0) is retried after",
    "GatewayDown at attempt 1, but its strategy is CONTINUE",
    build=_continues,
)
def _(patch: Patch) -> None:
    def again(commit: Commit, _: Any, job: JobState, flown: Any, *rest: Any) -> Any:
        if commit.kind is CommitKind.DROPPED and flown.attempt == 1:
            now = rest[-1]
            commit.kind, commit.status = CommitKind.RETRY, job.status
            commit.emissions, commit.tasks, commit.detail = (), (), None
            commit.delay_ns, commit.due_ns = 300_000_000, now + 300_000_000
        return commit

    after(patch, transitions, "_failure", again)


@bug(
    "an attempt that a crash cut off is counted",
    "attempt-skipped",
    "attempt 2 of orders (task 0) starts, but attempt 1 is the next",
    routine="orders",
)
def _(patch: Patch) -> None:
    def count_it(_: None, self: JobState, commit: Commit) -> None:
        for task in self._pending.values():
            task.attempt += 1

    after(patch, JobState, "_fold_resumed", count_it)


# Timers.


def _on_resume(change: Callable[[Any, Commit, int], int]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = JobState._fold_resumed

        def patched(self: JobState, commit: Commit) -> None:
            due = {task.task_id: task.due_ns for task in waiting(self)}
            original(self, commit)
            for task in waiting(self):
                task.due_ns = change(task, commit, due[task.task_id])

        patch.setattr(JobState, "_fold_resumed", patched)

    return plant


bug(
    "a timer is lost on resume",
    "timer-lost",
    "retry 1 of charge (task 0.0) starts",
    "before it is due; its wait is 0.3 s, which the resuming host did not keep",
)(_on_resume(lambda task, commit, due: commit.at_ns))

bug(
    "a timer starts anew on resume",
    "timer-restarted",
    "retry 1 of charge (task 0.0) waits its 0.3 s anew after the resume: it starts 0.15 s late",
)(_on_resume(lambda task, commit, due: commit.at_ns + task.delay_ns))


@bug(
    "a due time is kept by the monotonic clock of the host that set it",
    "timer-lost",
    "retry 1 of charge (task 0.0) starts",
    "which the resuming host did not keep",
)
def _(patch: Patch) -> None:
    offsets: list[int] = []
    after(patch, Drive, "__init__", lambda _, self, *args: offsets.append(self.offset))

    def translated(task: Any, commit: Commit, due: int) -> int:
        return due - offsets[-2] + offsets[-1] if len(offsets) > 1 else due

    _on_resume(translated)(patch)


@bug(
    "of two tasks that are due at one instant one is forgotten",
    "wake-up-lost",
    "attempt 2 of charge (task 0.2) never starts, though it is due 0.37 s after the start",
    build=shop(fails=(1, 1), workers=2, charge=Wide),
)
def _(patch: Patch) -> None:
    original = Schedule.add

    def add(self: Schedule, pending: Any) -> None:
        known = [*self._queue, *(entry[3] for entry in self._heap)]
        if not (pending.delay_ns and any(task.due_ns == pending.due_ns for task in known)):
            original(self, pending)

    patch.setattr(Schedule, "add", add)


@bug(
    "of two tasks that are due at one instant one starts when the other has ended",
    "retry-late",
    "retry 1 of charge (task 0.2) starts 0.05 s after it was due: no limit",
    build=shop(fails=(1, 1), workers=4, charge=Wide),
)
def _(patch: Patch) -> None:
    def one_at_a_time(task: Any, self: Machine) -> Any:
        return None if task is not None and task.delay_ns and self._flights else task

    after(patch, Machine, "next_task", one_at_a_time)


@bug(
    "two steps of one routine run at a time",
    "too-many-at-once",
    "attempt 1 of charge (task 0.2) starts with 1 steps of charge in flight",
    build=shop(fails=(1, 1), workers=4),
)
def _(patch: Patch) -> None:
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
    "what a failed attempt emitted is delivered",
    "failed-attempt-emitted",
    "attempt 1 of charge (task 0.0) did not succeed, but what it emitted is kept: output",
)
def _(patch: Patch) -> None:
    _leaky(patch)

    def deliver(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        if commit.kind is CommitKind.RETRY:
            commit.emissions = tuple(outcome.emissions)
            commit.tasks = transitions._fan_out(plan, flown.task, commit.emissions)
        return commit

    def create(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
        if commit.kind is CommitKind.RETRY and commit.tasks:
            return [*ready, *self._deliver(commit)]
        return ready

    after(patch, transitions, "_failure", deliver)
    after(patch, JobState, "_fold_step", create)


@bug(
    "the state of a failed attempt is kept",
    "failed-attempt-wrote",
    "attempt 1 of charge (task 0.0) did not succeed, but its state 'seen' is kept",
)
def _(patch: Patch) -> None:
    _leaky(patch)

    def keep(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        commit.state = outcome.state
        return commit

    after(patch, transitions, "_failure", keep)


@bug(
    "the state of a failed attempt is kept in memory alone",
    "snapshot-wrong",
    "attempt 2 of charge (task 0.0) gets the state of charge otherwise than committed",
)
def _(patch: Patch) -> None:
    _leaky(patch)

    def keep(commit: Commit, plan: Any, job: Any, flown: Any, outcome: Any, *_: Any) -> Commit:
        if outcome.state is not None:
            job.routine_states[flown.task.routine_id].state = outcome.state.values
        return commit

    after(patch, transitions, "_failure", keep)


@bug(
    "nobody is told of a task that fails for good",
    "error-not-emitted",
    "attempt 5 of charge (task 0.0) fails for good, and its event 'error' is not emitted",
    build=shop(fails=(9,)),
)
def _(patch: Patch) -> None:
    patch.setattr(transitions, "_error_event", lambda plan, step, outcome: ())


@bug(
    "the branches of a flow share one payload",
    "payload-changed",
    "an attempt of charge (task 0.0, attempt 1) changes commit 2 of orders",
    "(7, 'pen')",
)
def _(patch: Patch) -> None:
    patch.setattr(step, "copy_value", lambda value: value)
    patch.setattr(routine, "copied_payload", lambda payload, place: payload)


@bug(
    "a handler gets the state itself in place of a copy",
    "payload-changed",
    "an attempt of charge (task 0.2, attempt 1) changes commit",
    "of charge after it was written (it went to book): $.state.values.seen",
    build=shop(fails=(0, 3)),
)
def _(patch: Patch) -> None:
    patch.setattr(context, "copy_value", lambda value: value)
    patch.setattr(context, "copied_payload", lambda payload, place: payload)


# Commits.


@bug(
    "a commit is folded in before it is written",
    "folded-before-written",
    "commit 3 (retry of charge) was folded into the job before it was written",
)
def _(patch: Patch) -> None:
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


@bug(
    "a commit is folded in twice",
    "attempts-miscounted",
    "orders counts 2 attempts; its commits end 1",
    routine="orders",
)
def _(patch: Patch) -> None:
    def again(ready: Any, self: JobState, commit: Commit, task_id: str) -> Any:
        if commit.kind is CommitKind.DONE:
            state = self.routine_states[str(commit.routine_id)]
            state.attempts += 1
            state.completed += 1
        return ready

    after(patch, JobState, "_fold_step", again)


@bug(
    "an outcome that comes twice is committed twice",
    "attempt-repeated",
    "attempt 1 of orders (task 0) is committed after the task was done",
    routine="orders",
)
def _(patch: Patch) -> None:
    original = Machine.finish

    def finish(self: Machine, flown: Any, outcome: Any, now: int) -> Any:
        self._flights.setdefault(flown.task.task_id, flown)
        return original(self, flown, outcome, now)

    end = Loop._end_durably

    def twice(self: Loop, ended: Any, now: int, journal: Any) -> None:
        end(self, ended, now, journal)
        end(self, ended, now, journal)

    patch.setattr(Machine, "finish", finish)
    patch.setattr(Loop, "_end_durably", twice)


@bug(
    "after a resume tasks are numbered from 0 again",
    "task-id-twice",
    "task 1 that commit",
    "creates has the id 0.0; by its lineage it is 0.0.0",
)
def _(patch: Patch) -> None:
    original = transitions.child_id
    resumed: list[int] = []
    after(patch, JobState, "_fold_resumed", lambda _, self, commit: resumed.append(0))
    after(patch, Drive, "__init__", lambda _, self, *args: resumed.clear())

    def child_id(parent: str, number: int) -> str:
        return f"0.{number}" if resumed else original(parent, number)

    patch.setattr(transitions, "child_id", child_id)


@bug(
    "a job is completed while a retry waits",
    "completed-too-early",
    "but charge (task 0.0) waits for its retry 1",
)
def _(patch: Patch) -> None:
    def complete(commit: Commit | None, self: Machine, *_: Any) -> Commit | None:
        others = [t for t in self.job._pending.values() if commit and t.task_id != commit.task_id]
        ends = commit is not None and commit.kind is CommitKind.DONE and not commit.tasks
        if commit and ends and all(task.delay_ns for task in others):
            commit.status = JobStatus.COMPLETED
        return commit

    after(patch, Machine, "finish", complete)


@bug(
    "work goes on after the job has failed",
    "ran-after-failure",
    "attempt 1 of audit (task 0.1) starts although the job is failed",
    build=shop(CardRefused, non_retryable_exceptions=CardRefused),
    routine="audit",
)
def _(patch: Patch) -> None:
    original = Machine.next_task

    def next_task(self: Machine) -> Any:
        status = self.job.status
        if status is JobStatus.FAILED:
            self.job.status = JobStatus.RUNNING
        task = original(self)
        self.job.status = status
        return task

    patch.setattr(Machine, "next_task", next_task)
    patch.setattr(
        Machine, "stopped", property(lambda self: not self._flights and not self._schedule.first())
    )


@bug(
    "an edge is missing after a flow was loaded",
    "edge-missing",
    "charge emits 'output' in commit",
    "no task is created for book.input, which is connected to it",
    points="by document",
)
def _(patch: Patch) -> None:
    original = Flow.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[Flow], document: object, path: str, shape: Any = ()) -> Flow:
        flow: Flow = original(cls, document, path, shape)
        flow.plan()
        assert flow._graph is not None
        flow._graph[1].pop(("charge", "output"), None)
        return flow

    patch.setattr(Flow, "load", classmethod(load))


@bug(
    "keys that are tuples become texts when they are saved",
    "changed-by-saving",
    "commit 2 of orders is changed by saving and loading it",
    routine="orders",
)
def _(patch: Patch) -> None:
    original = encoding._encode_dict

    def encode(value: dict[Any, Any], depth: int) -> Any:
        named = {k if type(k) is str else str(k): item for k, item in value.items()}
        return original(named, depth)

    patch.setitem(encoding._ENCODERS, dict, encode)  # type: ignore[arg-type]


@bug(
    "after a resume time runs back where the clock was set back",
    "time-ran-back",
    "time runs back by",
    "(resumed)",
    routine=None,
    faults=(ClockJump(-3600),),
)
def _(patch: Patch) -> None:
    def plain(_: None, self: Drive, *args: Any) -> None:
        clock = self.environment.clock
        self.offset = clock.now_ns() - clock.monotonic_ns()

    after(patch, Drive, "__init__", plain)
