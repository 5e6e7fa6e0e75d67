"""Model of one job: its tasks, counts and recoveries, compared with the job after each move."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from hypothesis.stateful import RuleBasedStateMachine, invariant

from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.machine import MOST_CONFLICTS, Machine
from routilux.core.parts import PendingTask
from routilux.core.requests import take_over
from routilux.core.state import JobState
from routilux.flow import Flow
from routilux.graph.messages import ErrorInfo, StepInput, StepOutcome
from routilux.graph.routine import Routine
from routilux.retry.error_handler import ErrorHandler, ErrorStrategy
from tests.core.stories import (
    Collect,
    Stage,
    Wide,
    by_document,
    by_folding,
    by_text,
    flow_of,
    text_of,
)
from tests.routines import SECOND, retrying

MOST_TASKS: Final = 40
MOST_RECOVERIES: Final = 3
RESTORED_BY: Final = {"document": by_document, "text": by_text, "folding": by_folding}
TELL: Final = ("shy", "loud", "herald")  # they declare `error`
FINAL: Final = (JobStatus.COMPLETED, JobStatus.CANCELLED)

HANDLERS: Final[dict[str, ErrorHandler]] = {
    "source": retrying(max_retries=2, retry_delay=0.3, retry_backoff=1.5),
    "wide": retrying(max_retries=3, retry_delay=0.1, retry_backoff=3, max_delay=0.5,
                     non_retryable_exceptions=(LookupError,)),
    "shy": retrying(max_retries=2, retry_delay=1, jitter=0.25, on_exhausted="continue"),
    "hasty": retrying(max_retries=None, retry_delay=0, retry_backoff=1),
    "late": retrying(max_retries=9, retry_delay=1, retry_backoff=1, deadline=4,
                     on_exhausted="skip"),
    "loud": ErrorHandler("stop"),
    "herald": retrying(max_retries=1, retry_delay=1),
    "round": ErrorHandler("skip"),
    "join": ErrorHandler("continue"),
}  # fmt: skip


def every_shape(width: int) -> Flow:
    """A flow with fan-out, fan-in, a cycle, an `error` event, and an event without connection."""
    routines: dict[str, Routine] = {
        "source": Stage("out", "extra", handler=HANDLERS["source"]),
        "wide": Wide("out", "extra", handler=HANDLERS["wide"]),
        "shy": Stage("out", "error", handler=HANDLERS["shy"]),
        "hasty": Stage("out", handler=HANDLERS["hasty"]),
        "late": Stage("out", handler=HANDLERS["late"]),
        "loud": Stage("out", "error", handler=HANDLERS["loud"]),
        "herald": Collect("out", "error", handler=HANDLERS["herald"]),
        "round": Stage("out", "extra", handler=HANDLERS["round"]),
        "join": Collect("extra", handler=HANDLERS["join"]),
    }
    return flow_of(
        routines,
        "source.out -> wide", "source.out -> shy", "source.out -> hasty", "source.out -> round",
        "wide.out -> join", "shy.out -> join", "shy.error -> join", "hasty.out -> late",
        "source.out -> loud", "loud.out -> join", "loud.error -> herald", "herald.out -> join",
        "herald.error -> herald",
        "late.out -> join", "round.out -> round", "round.out -> wide",
        width=width,
    )  # fmt: skip


def most_retries(handler: ErrorHandler) -> float:
    if handler.strategy is not ErrorStrategy.RETRY:
        return 0
    return math.inf if handler.max_retries is None else handler.max_retries


@dataclass
class Known:
    """A task in the model: its place, its attempts, its recorded effects.

    It reports a failure if an event `error` created it or an ancestor.
    """

    routine: str
    place: str = "pending"
    attempts: int = 0
    poisoned: int = 0  # of the attempts; the engine ended them without running one
    spent: int = 0
    conflicts: int = 0
    failed: bool = False
    reports: bool = False
    effects: dict[str, object] = field(default_factory=dict)


class JobModel(RuleBasedStateMachine):
    """A machine, the model of its job, and what must be true of both after each move."""

    seen: ClassVar[Counter[str]] = Counter()

    def prepare(self, width: int, queued: bool, start: int) -> None:
        """Start the job, and the model of it."""
        self.plan = every_shape(width).plan()
        self.now = start * SECOND
        self.machine = Machine(self.plan, JobState("job"))
        self.known: dict[str, Known] = {}
        self.ended: list[tuple[StepInput, StepOutcome]] = []
        self.numbers: set[int] = set()
        self.snapshots = [self.machine.job.copy()]
        self.incremented = 0  # how many committed steps added one to shared["total"]
        self.counted: Counter[str] = Counter()  # … and to state["total"], by routine
        self.extras = 0
        self.jitters: dict[tuple[str, int], int] = {}
        self.recoveries = 0
        self.final: JobStatus | None = None
        self.accept(self.machine.start("source", "trigger", {"n": 1}, self.now, queued=queued))
        if queued:
            self.restart(False)

    @property
    def job(self) -> JobState:
        return self.machine.job

    def accept(self, commit: Commit) -> None:
        assert commit.seq == self.job.seq + 1
        self.machine.accept(commit)
        reports = commit.kind in (CommitKind.FAILED, CommitKind.DROPPED) or (
            commit.task_id is not None and self.known[commit.task_id].reports
        )
        for task in commit.tasks:
            assert task.task_id not in self.known, f"{task.task_id} was created twice"
            self.known[task.task_id] = Known(task.routine_id, reports=reports)
        self.extras += sum(e.event == "extra" for e in commit.emissions)
        self.snapshots.append(self.job.copy())
        self.seen[f"{commit.kind} -> {commit.status}"] += 1

    def pure(self, ask: Any) -> Any:
        """Ask the machine for a commit twice: the same answer, and the job is unchanged."""
        before, due = text_of(self.job), self.machine.next_task()
        once, twice = ask(), ask()
        assert repr(once) == repr(twice)  # repr, because NaN is not equal to itself
        assert (text_of(self.job), self.machine.next_task()) == (before, due)
        return once

    @property
    def failing(self) -> bool:
        return any(known.failed for known in self.known.values())

    def may_run(self) -> list[PendingTask]:
        """The tasks that may still run: once one has failed, those that report a failure."""
        known, failing = self.known, self.failing
        return [
            task
            for task in self.job.pending_tasks
            if not known[task.task_id].failed and (not failing or known[task.task_id].reports)
        ]

    def free(self) -> list[PendingTask]:
        """The tasks that may run and whose routine is not busy, in order."""
        flying = {step.task.task_id for step in self.machine.flights}
        busy = Counter(step.task.routine_id for step in self.machine.flights)
        return [
            task
            for task in self.may_run()
            if task.task_id not in flying
            and busy[task.routine_id] < self.plan.routines[task.routine_id].max_concurrency
        ]

    def open(self) -> bool:
        """Whether a step may start at all."""
        flights = self.machine.flights
        alone = any(self.known[s.task.task_id].conflicts >= MOST_CONFLICTS for s in flights)
        return self.job.status is JobStatus.RUNNING and len(flights) < self.plan.width and not alone

    @staticmethod
    def total(data: dict[str, object]) -> int:
        total = data.get("total", 0)
        assert isinstance(total, int)
        return total

    def end(self, step: StepInput, outcome: StepOutcome, after: int, *, adds: bool = False) -> None:
        self.now += after
        job = self.job
        task_id, routine = step.task.task_id, step.task.routine_id
        known = self.known[task_id]
        changed = {
            key
            for commit in job.commits[step.seq :]
            if commit.shared is not None
            for key in (*commit.shared.values, *commit.shared.removed)
        }
        reads = outcome.shared_reads
        conflict = bool(changed) if reads is None else bool(changed & reads)
        left = len(self.places("pending")) - 1
        commit = self.pure(lambda: self.machine.finish(step, outcome, self.now))
        before = job.copy()
        self.accept(commit)
        self.ended.append((step, outcome))

        assert (commit.kind is CommitKind.CONFLICT) is conflict
        assert (commit.task_id, commit.attempt, commit.at_ns, commit.started_ns) == (
            task_id, step.attempt, self.now, step.started_ns,
        )  # fmt: skip
        if conflict:
            known.conflicts += 1
            assert (commit.emissions, commit.tasks, commit.error) == ((), (), None)
        else:
            known.attempts += 1
            self.recoveries = 0
            if outcome.error is None:
                self.succeeded(commit, outcome, known, adds)
            else:
                self.failed(commit, step, outcome, known, before)
        if before.status is JobStatus.RUNNING and job.status is not JobStatus.FAILED:
            empty = left + (known.place == "pending") + len(commit.tasks) == 0
            assert (job.status is JobStatus.COMPLETED) is empty
        assert routine == commit.routine_id

    def succeeded(self, commit: Commit, outcome: StepOutcome, known: Known, adds: bool) -> None:
        assert commit.kind is CommitKind.DONE
        assert list(commit.emissions) == outcome.emissions
        routes = [
            (index, route.target)
            for index, emitted in enumerate(outcome.emissions)
            for route in self.plan.routes.get((known.routine, emitted.event), ())
        ]
        assert [(task.emission, task.routine_id) for task in commit.tasks] == routes
        known.place = "done"
        self.incremented += adds
        if outcome.state is not None:
            self.counted[known.routine] += 1

    def failed(
        self, commit: Commit, step: StepInput, outcome: StepOutcome, known: Known, before: JobState
    ) -> None:
        assert outcome.error_type is not None
        handler = HANDLERS[known.routine]
        retries = known.spent < most_retries(handler) and not issubclass(
            outcome.error_type, handler.non_retryable_exceptions
        )
        (error_event,) = commit.emissions or (None,)
        tells = known.routine in TELL and not known.reports
        assert error_event is None or (tells and error_event.event == "error")
        assert (commit.state, commit.shared) == (None, None)
        assert (self.job.shared_data, len(self.job.outputs)) == (
            before.shared_data, len(before.outputs),
        )  # fmt: skip
        assert self.job.routine_states[known.routine].state == before.routine_states[
            known.routine
        ].state  # fmt: skip
        if commit.kind is CommitKind.RETRY:
            assert retries
            assert error_event is None
            known.spent += 1
            delay = commit.delay_ns
            assert delay is not None
            assert commit.due_ns == self.now + delay
            planned = handler.delay_ns(known.spent)
            if outcome.retry_after_ns is not None:
                assert delay == outcome.retry_after_ns
            elif handler.jitter:
                assert self.jitters.setdefault((step.task.task_id, known.spent), delay) == delay
                assert abs(delay - planned) <= planned // 4
            else:
                assert delay == planned
            assert self.job._pending[step.task.task_id].due_ns == commit.due_ns
            return
        assert not retries or handler.deadline is not None
        assert (error_event is not None) is tells
        last = handler.on_exhausted if handler.strategy.value == "retry" else handler.strategy
        if last.value == "stop":
            assert commit.kind is CommitKind.FAILED
            known.failed = True
        else:
            assert commit.kind is CommitKind.DROPPED
            known.place = "dropped"

    def interrupt(self, how: str) -> None:
        """End the run by what a handler raised, or by the trouble of the host."""
        flights = self.machine.flights
        step = flights[0] if flights and how == "broke off" else None
        error = ErrorInfo("SystemExit", how)
        before = list(self.job.pending_tasks)
        self.accept(self.pure(lambda: self.machine.interrupt(step, error, self.now)))
        assert before == list(self.job.pending_tasks)
        assert list(flights) == list(self.machine.flights)
        assert error == self.job.interruption

    def restart(self, retry_failed: bool, how: str = "died") -> None:
        job = self.job
        was = job.status
        if how == "taken over" and was is JobStatus.RUNNING:
            self.accept(self.pure(lambda: take_over(job, self.now)))
            assert job.status is JobStatus.PENDING
        waits = {task.task_id: task.due_ns for task in job.pending_tasks}
        fresh = retry_failed and self.failing
        ready = [t for t in self.may_run() if t.due_ns <= self.now]
        killers = [t for t in ready if t.task_id == job.interrupted_task] or ready
        if how == "broke off" and job.interrupted_task is None:
            how = "trouble"  # no step was in flight
        commit = self.pure(
            lambda: self.machine.resume(
                self.now,
                retry_failed=retry_failed,
                max_recoveries=MOST_RECOVERIES,
                clean=how == "given back",
            )
        )
        self.accept(commit)
        assert job.interruption is None
        if was is JobStatus.RUNNING and ready and how not in ("given back", "trouble"):
            self.recoveries += 1
            if self.recoveries > MOST_RECOVERIES:
                killer = self.known[killers[0].task_id]
                assert (commit.kind, commit.task_id) == (CommitKind.FAILED, killers[0].task_id)
                assert commit.error is not None
                assert commit.error.type == "routilux.PoisonJobError"
                assert bool(commit.emissions) is (killer.routine in TELL and not killer.reports)
                killer.failed = True
                killer.attempts += 1
                killer.poisoned += 1
                self.recoveries = 0
                return
        if fresh:
            self.recoveries = 0
            for task_id, known in self.known.items():
                if known.failed:
                    known.failed, known.spent = False, 0
                    waits[task_id] = self.now
            assert job.error is None
        left = JobStatus.RUNNING if self.may_run() else JobStatus.FAILED
        assert job.status is (left if waits else JobStatus.COMPLETED)
        for task in job.pending_tasks:
            # The clock never runs back here, so the due time is unchanged.
            assert task.due_ns == waits[task.task_id]

    def places(self, place: str) -> set[str]:
        return {task_id for task_id, known in self.known.items() if known.place == place}

    @invariant()
    def no_task_is_lost_or_doubled(self) -> None:
        ended = [c.task_id for c in self.job.commits if c.kind is CommitKind.DONE]
        dropped = [task.task_id for task in self.job.dropped]
        pending = [task.task_id for task in self.job.pending_tasks]
        for place, found in (("done", ended), ("dropped", dropped), ("pending", pending)):
            assert len(found) == len(set(found)), f"a task is {place} twice"
            assert set(found) == self.places(place), f"other tasks are {place}"
        assert len(self.job.outputs) == self.extras

    @invariant()
    def budgets_and_attempts_are_kept(self) -> None:
        for task in self.job.pending_tasks:
            known = self.known[task.task_id]
            assert (task.attempt, task.retries, task.conflicts, task.failed) == (
                known.attempts + 1, known.spent, known.conflicts, known.failed,
            )  # fmt: skip
            assert task.retries <= most_retries(HANDLERS[known.routine])
        for routine, state in self.job.routine_states.items():
            tasks = [known for known in self.known.values() if known.routine == routine]
            tried = sum(known.attempts - known.poisoned for known in tasks)
            assert state.attempts >= tried

    @invariant()
    def no_update_is_lost(self) -> None:
        assert self.total(self.job.shared_data) == self.incremented
        for routine, state in self.job.routine_states.items():
            assert self.total(state.state) == self.counted[routine]

    @invariant()
    def the_history_is_ordered(self) -> None:
        commits = self.job.commits
        assert [commit.seq for commit in commits] == list(range(1, self.job.seq + 1))
        assert [c.at_ns for c in commits] == sorted(c.at_ns for c in commits)
        history = [record.seq for record in self.job.execution_history]
        assert history == sorted(history)

    @invariant()
    def the_tasks_with_room_may_start_in_order(self) -> None:
        flights = self.machine.flights
        assert len(flights) <= self.plan.width
        busy = Counter(step.task.routine_id for step in flights)
        for routine, number in busy.items():
            assert number <= self.plan.routines[routine].max_concurrency
        free = self.free() if self.open() else []
        ready = [task for task in free if task.due_ns <= self.now]
        if free and free[0].conflicts >= MOST_CONFLICTS:
            expected = [] if flights else ready[:1]
            first = None if flights else free[0]
        else:
            expected = [t for t in ready if not (flights and t.conflicts >= MOST_CONFLICTS)]
            first = free[0] if free else None
        assert self.machine.startable(self.now) == expected
        assert self.machine.next_task() is first
        assert self.machine.stopped is (not flights and self.job.status is not JobStatus.RUNNING)

    @invariant()
    def the_status_agrees_with_the_tasks(self) -> None:
        status = self.job.status
        if status is JobStatus.COMPLETED:
            assert not self.job.pending_tasks
        if status is JobStatus.RUNNING:
            assert self.job.pending_tasks
        if self.failing and status not in FINAL:
            reports = [task for task in self.may_run() if self.known[task.task_id].reports]
            assert (status is JobStatus.FAILED) is not (reports or self.machine.in_flight != 0)
        assert self.final in (None, status), "a final status has changed"
        if status in FINAL:
            self.final = status
        # A take-over may exceed the limit by one; the resume then fails the job.
        most = MOST_RECOVERIES + (status in (JobStatus.FAILED, JobStatus.CANCELLED))
        assert self.job.recoveries == self.recoveries <= most

    def teardown(self) -> None:
        for seq, snapshot in enumerate(getattr(self, "snapshots", ())):
            assert self.job.at(seq) == snapshot, f"commit {seq} is not what the job was then"
        for restore in RESTORED_BY.values():
            if self.job.seq:
                assert restore(self.job) == self.job
