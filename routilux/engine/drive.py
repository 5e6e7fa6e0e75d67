"""`Drive`: a job that runs in this process.

Invariants:
- A commit is applied only after the store has accepted it. Observers are notified only then, in the
  order of the commits.
- A job changes only under the runtime's lock; no handler runs under it.
- Before an effect the store is asked whether this host still owns the job. So a host that has lost
  the job runs no further effect, except the one that it had already begun.
- The context variables of the code that starts a job reach its handlers: they are copied once a
  job. What a handler sets in them ends with its step.
- A job's time is UTC when it started or was resumed, plus monotonic progress, and never before its
  last commit. So a wall clock that is set changes no wait, and time in the history never decreases.
"""

from __future__ import annotations

import logging
import sys
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from routilux.clocks.durations import SECOND
from routilux.core.commits import CommitKind, JobStatus
from routilux.core.requests import request
from routilux.engine.step import CLEANUP, failure, timed_out
from routilux.errors import (
    LeaseLostError,
    NoActiveStepError,
    NotResumableError,
    UnserializableError,
)
from routilux.graph.messages import ErrorInfo
from routilux.persist.journal import SNAPSHOT_EVERY
from routilux.persist.store import POLL, lost

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine, Mapping

    from routilux.clocks.clock import Key
    from routilux.core.commits import Commit
    from routilux.core.machine import Machine
    from routilux.core.requests import Request
    from routilux.core.state import JobState
    from routilux.engine.async_steps import AsyncStep, EventLoopQueue
    from routilux.engine.environment import Environment
    from routilux.graph.context import Context
    from routilux.graph.messages import RecordedEffect, StepInput, StepOutcome
    from routilux.persist.journal import Journal
    from routilux.persist.store import Append, JobStore

_log = logging.getLogger("routilux")
_ordinals = count(1)
_RESUMED = CommitKind.RESUMED
_CANCELLED = JobStatus.CANCELLED
_RUNNING = JobStatus.RUNNING


class DrivingLoop(Protocol):
    """The methods of `Loop` that a `Drive` calls."""

    def block(self, change: int) -> bool: ...

    def look(self, drive: Drive) -> None: ...

    def drop(self, drive: Drive) -> None: ...

    def fail(self, drive: Drive, error: BaseException) -> None: ...


class Drive:
    """A job that runs in this process.

    It is the `Host` of the job's steps. `stopped` is set when no step is in flight and none will
    start; `error` is set if something outside the flow ended the run, such as a failing store.
    `trouble` says that this host could not run a step, as with a broken executor.
    """

    __slots__ = (
        "_journal",
        "_look_at",
        "_open",
        "_snapshot_at",
        "_waits",
        "_warned",
        "cancelling",
        "context",
        "environment",
        "error",
        "lease_ns",
        "leaving",
        "limit",
        "limits",
        "loop",
        "machine",
        "offset",
        "on_stop",
        "on_wait",
        "ordinal",
        "plan",
        "queue",
        "ready",
        "run_async_step",
        "run_step",
        "stopped",
        "tasks",
        "timer",
        "timer_key",
        "trouble",
        "waits_for_room",
    )

    def __init__(
        self, environment: Environment, machine: Machine, context: contextvars.Context
    ) -> None:
        clock = environment.clock
        self.environment = environment
        self.machine = machine
        self.context = context  # each step runs in a copy of it
        self.plan = machine.plan
        self.run_step, self.run_async_step = environment.run_step, environment.run_async_step
        self.ordinal = next(_ordinals)
        self.offset = max(clock.now_ns(), machine.job.updated_ns) - clock.monotonic_ns()
        self.stopped = clock.signal()
        self.error: BaseException | None = None
        self.trouble = False
        self.lease_ns: int | None = None  # None if the job is held without a lease
        self.leaving = False
        self.cancelling = False  # whether its async handlers were cancelled
        # Called under the runtime's lock: when the job has stopped; when all its tasks wait, and
        # when such a wait ends (then `ready` is set).
        self.on_stop: Callable[[Drive], object] | None = None
        self.on_wait: Callable[[Drive], object] | None = None
        self.loop: DrivingLoop | None = None
        self.queue: EventLoopQueue | None = None  # of the event loop that awaits the job
        self.tasks: dict[int, AsyncStep] = {}  # steps that run on an event loop, by number
        self.ready = False
        self.waits_for_room = False  # its next step needs a thread, and none is free
        self.timer: int | None = None  # when its next task is due
        self.timer_key: Key = ()  # of that task, to order it among others that are due then
        self.limit: int | None = None  # when the first of its steps reaches its limit
        self.limits: list[tuple[int, int, StepInput]] = []  # a heap of these; ended steps stay
        self._open: dict[int, Context] = {}
        self._waits: dict[int, int] = {}  # for other jobs, by the number of the step
        self._warned: tuple[str, ...] = ()  # routines that took the last thread for a wait
        self._look_at = 0  # when to ask the store next whether the job is lost
        self._journal = environment.journal
        self._snapshot_at = sys.maxsize
        if environment.store is not None:  # a loaded job has the commits since its snapshot
            self._snapshot_at = machine.job.seq - len(machine.job._commits) + SNAPSHOT_EVERY
        machine.job.clock_ns, machine.job.store = clock.now_ns, environment.store

    @property
    def can_start(self) -> bool:
        """Whether a step of it may start, now or when a thread is free."""
        return self.ready or self.waits_for_room

    # --- the host of its steps ------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, or this host runs the job no longer."""
        if self.environment.store is not None and self.lease_ns is None:
            self._look_for_loss(self.environment.store)
        return self.machine.job.status is _CANCELLED or self.error is not None

    def _look_for_loss(self, store: JobStore) -> None:
        """End the run if this host has lost the job; a renewal of a lease would tell."""
        now = self.environment.clock.monotonic_ns()
        if now < self._look_at or self.error is not None or self.machine.job.status is not _RUNNING:
            return
        self._look_at = now + int(POLL * SECOND)
        try:
            self._check_owner(store)
        except LeaseLostError as error:
            with self.environment.lock:
                if self.loop is not None:
                    self.loop.fail(self, error)
        except Exception as error:  # the next commit meets it again
            _log.warning(
                "job %s: can't ask the store for its owner: %s", self.machine.job.job_id, error
            )

    def now_ns(self) -> int:
        """Return the job's current time in UTC nanoseconds."""
        return self.environment.clock.monotonic_ns() + self.offset

    def sleep(self, step: StepInput, length: int) -> None:
        """Wait for `length` nanoseconds, at most until the attempt's timeout."""
        clock = self.environment.clock
        clock.record_wait(step.task.routine_id, length)
        until = self.now_ns() + length
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns)
        key = (self.ordinal, *step.order)
        if clock.wait(self.stopped, until - self.offset, key, step.who):
            # An error ended the job while this step was in flight; its outcome is ignored.
            raise _given_up(step)

    def run(self, step: StepInput) -> StepOutcome:
        """Run one attempt in this thread, and return the outcome."""
        task, plan = step.task, self.plan
        routine_id = task.routine_id
        routine = plan.routines[routine_id]
        slot = routine._slots[task.slot]
        handler = plan.handlers[routine_id]
        return self.context.copy().run(self.run_step, step, routine, slot, handler, self)

    def start_async(
        self, step: StepInput, report: Callable[[StepOutcome | BaseException], None]
    ) -> None:
        """Run one attempt on an event loop, and `report` the outcome in the loop's thread."""
        task, plan = step.task, self.plan
        routine = plan.routines[task.routine_id]
        slot, handler = routine._slots[task.slot], plan.handlers[task.routine_id]
        coroutine = self.run_async_step(step, routine, slot, handler, self)
        self.tasks[step.number] = self.environment.async_steps.start(
            step, coroutine, report, self.context.copy(), self.queue
        )

    async def asleep(self, step: StepInput, length: int) -> None:
        """Wait for `length` nanoseconds; the engine cancels the step at its timeout."""
        self.environment.clock.record_wait(step.task.routine_id, length)
        await sys.modules["asyncio"].sleep(length / SECOND)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        """Call `check` or `record`, in another thread if that may wait for a store."""
        if self.environment.store is None:
            function(*args)
        else:
            await self.environment.async_steps.call(function, *args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run a coroutine on the job's event loop, and wait in this thread for its end."""
        ended = self.environment.clock.signal()
        results: list[object] = []

        def report(result: object) -> None:
            results.append(result)
            ended.set()

        with self.environment.lock:
            task = self.tasks[step.number] = self.environment.async_steps.start(
                step, coroutine, report, copy_context(), self.queue
            )
        clock, key, until = self.environment.clock, (self.ordinal, *step.order), None
        if step.timeout_ns is not None:  # in the thread of `execute` no loop limits the step
            until = step.started_ns + step.timeout_ns - self.offset
        if not clock.wait(ended, until, key, step.who):
            task.cancel(logs=True)
            if not clock.wait(ended, clock.monotonic_ns() + CLEANUP, key, step.who):
                raise _given_up(step)
        result = results.pop()
        if isinstance(result, BaseException):
            try:
                raise result
            finally:
                del result  # so that no frame keeps the exception
        return result

    def check(self, step: StepInput) -> None:
        """Raise an error unless this host still runs the job."""
        store = self.environment.store
        if store is not None and self.error is None:
            try:
                self._check_owner(store)
            except Exception as error:
                # An error of the store is not a failure of the handler.
                with self.environment.lock:
                    if self.loop is not None:
                        self.loop.fail(self, error)
                if self.error is None:
                    raise
        self._check_error(step)

    def _check_owner(self, store: JobStore) -> None:
        job_id, owner = self.machine.job.job_id, self.environment.owner
        hold = store.holders(job_id).get(job_id)
        if hold is not None and hold.owner == owner:
            if self.lease_ns is None or hold.free_in_ns != 0:
                return
            # This host was suspended for longer than its lease. If no other host took the job
            # meanwhile, none can take it at once when the effect begins.
            if job_id in store.renew(owner, self.lease_ns):
                return
            hold = store.holders(job_id).get(job_id)
        raise lost(job_id, hold)

    def _check_error(self, step: StepInput) -> None:
        if isinstance(self.error, LeaseLostError):
            raise LeaseLostError(str(self.error))
        if self.error is not None:
            raise _given_up(step)

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        """Commit the result of an effect."""
        with self.environment.lock:  # the caller is a thread of the step
            self._check_error(step)
            commit = self.machine.effect(step, name, effect, self.now_ns())
            if commit is None:
                raise _given_up(step)
            try:
                self.commit(commit)
            except UnserializableError:
                raise
            except BaseException as error:
                # An error of the store is not a failure of the handler.
                if self.loop is not None:
                    self.loop.fail(self, error)
                raise

    def recorded(self, step: StepInput) -> Mapping[str, RecordedEffect]:
        """Return the effects that are recorded for the task of a step, by name."""
        pending = self.machine.job._pending.get(step.task.task_id)
        return (pending and pending.effects) or {}

    def record_first(self, step: StepInput, name: str, effect: RecordedEffect) -> RecordedEffect:
        """Record an effect unless another run of the step has done so; return the record."""
        with self.environment.lock:
            found = self.recorded(step).get(name) if self.machine.is_in_flight(step) else None
            if found is None:
                self.record(step, name, effect)
            return found or effect

    def opened(self, context: Context) -> None:
        """Keep the open context of a step that may be given up."""
        step = context.step
        if step is None:
            return
        with self.environment.lock:
            if not self.machine.is_in_flight(step):
                raise _given_up(step)
            self._open[step.number] = context

    # --- its commits (under the runtime's lock) -------------------------------------------------

    def commit(self, commit: Commit, *, claims: bool = False, after_ns: int = 0) -> None:
        """Write a commit, apply it to the job, and notify the observers.

        A commit that resumes a job `claims` the job, unless this host has acquired the job. A
        queued job is free `after_ns` after its first commit.
        """
        if self._journal is not None:
            self._journal.write(
                self.machine.job.job_id,
                commit,
                self.environment.owner,
                claims=claims,
                after_ns=after_ns,
            )
        self.apply(commit)
        if self.environment.observers.registered:
            self.notify(commit)

    def apply(self, commit: Commit) -> None:
        """Apply a commit to the job."""
        self.machine.accept(commit)
        if commit.kind is _RESUMED:
            for task in self.machine.job.tasks_to_run():
                if task.due_ns > commit.at_ns:
                    left = task.due_ns - commit.at_ns
                    self.environment.clock.record_wait(f"retry of {task.routine_id}", left)
        if commit.seq >= self._snapshot_at:
            self._keep_snapshot()
        if commit.delay_ns:
            self.environment.clock.record_wait(f"retry of {commit.routine_id}", commit.delay_ns)

    def notify(self, commit: Commit) -> None:
        """Notify the observers of an applied commit."""
        self.environment.observers.notify([(self.machine.job, commit)])

    def _keep_snapshot(self) -> None:
        job = self.machine.job
        self._snapshot_at = job.seq + SNAPSHOT_EVERY
        if self._journal is None:
            return
        try:
            self._snapshot_at = self._journal.write_snapshot(job)
        except Exception as error:
            # Every commit is in the store; without the snapshot, loading takes longer.
            _log.warning("job %s: no snapshot kept at commit %d: %s", job.job_id, job.seq, error)

    # --- the ends of its steps (under the runtime's lock) ---------------------------------------

    def take_outcome(self, step: StepInput, outcome: StepOutcome, now: int) -> Commit | None:
        """Return the commit that ends a step; None if the step has ended, or is abandoned.

        A step that was cancelled because this host leaves counts only if it succeeds.
        """
        if self._open:
            self._open.pop(step.number, None)
        if self.tasks:
            task = self.tasks.pop(step.number, None)
            if task is not None and task.abandoned and outcome.error is not None:
                self.machine.abandon(step)
                return None
        updated = self.machine.job.updated_ns
        # Never before the last commit: an observer may have made one since `now` was read.
        return self.machine.finish(step, outcome, now if now > updated else updated)

    def row(self, step: StepInput, commit: Commit, journal: Journal) -> tuple[Commit, Append]:
        """Return the commit that ends a step, and the commit's row.

        If `commit` can't be saved, the attempt fails, and the commit of that failure is returned.
        """
        job_id, owner = self.machine.job.job_id, self.environment.owner
        try:
            return commit, journal.row(job_id, commit, owner)
        except UnserializableError as error:
            failed = self.machine.finish(step, failure(step.number, error), commit.at_ns)
            if failed is None:
                raise
            return failed, journal.row(job_id, failed, owner)

    def interrupt(self, step: StepInput | None, error: BaseException) -> None:
        """Commit what ends the run: an error of `step`, or without a step the host's trouble."""
        self.trouble = step is None
        job = self.machine.job
        now = max(self.now_ns(), job.updated_ns)
        try:
            self.commit(self.machine.interrupt(step, ErrorInfo.of(error), now))
        except Exception as refused:
            _log.warning("job %s: what ended its run is not recorded: %s", job.job_id, refused)

    def limit_ns(self, step: StepInput) -> int | None:
        """Return when the engine acts on a step that has not ended by then, in the job's time."""
        task = self.tasks.get(step.number)
        if task is not None and task.give_up_ns is not None:
            return task.give_up_ns
        return None if step.timeout_ns is None else step.started_ns + step.timeout_ns

    def cancel_step(self, step: StepInput, now: int) -> bool:
        """Cancel a step that runs on an event loop; False if it does not, or was cancelled."""
        task = self.tasks.get(step.number)
        if task is None or task.give_up_ns is not None:
            return False
        task.give_up_ns = now + CLEANUP
        task.abandoned = self.leaving and self.machine.job.status is _RUNNING
        task.cancel(logs=False)
        return True

    def given_up(self, step: StepInput, now: int) -> StepOutcome:
        """Return the outcome of a step that did not end in time."""
        if step.timeout_ns is not None and step.started_ns + step.timeout_ns <= now:
            return timed_out(step)
        text = f"the handler did not end within {CLEANUP / SECOND:g} s of its cancellation"
        return failure(step.number, sys.modules["asyncio"].CancelledError(text))

    def close_step(self, step: StepInput) -> None:
        """Refuse what a step does from now on."""
        context = self._open.pop(step.number, None)
        if context is not None:
            context.close()

    def cancel_steps(self) -> None:
        """Cancel all steps that run on an event loop, since this host runs the job no more."""
        for task in self.tasks.values():
            task.cancel(logs=True)

    @property
    def has_cleaned_up(self) -> bool:
        """Whether no async handler of it runs any more."""
        return all(task.ended for task in self.tasks.values())

    def wait_for_cleanup(self, until: int | None = None) -> None:
        """Wait for the async handlers of a job that was broken off.

        At most until the monotonic instant `until`, by default for a second.
        """
        if not self.tasks:
            return
        clock = self.environment.clock
        until = clock.monotonic_ns() + CLEANUP if until is None else until
        ended = clock.signal()
        for task in self.tasks.values():
            task.when_ended(ended.set)
        while not self.has_cleaned_up and clock.monotonic_ns() < until:
            clock.wait(ended, until, (self.ordinal,), f"job {self.machine.job.job_id}")
            ended.clear()

    # --- requests -------------------------------------------------------------------------------

    def request(self, kind: Request, reason: str | None = None) -> None:
        """Commit a request to pause or cancel the job."""
        with self.environment.lock:
            if self.error is not None:
                raise NotResumableError(
                    f"an error ended the run of job {self.machine.job.job_id}"
                    f" ({type(self.error).__name__}: {self.error}); load and resume the job"
                )
            now = max(self.now_ns(), self.machine.job.updated_ns)
            commit = request(self.machine.job, kind, now, reason)
            try:
                self.commit(commit)
                if self.loop is not None:
                    self.loop.look(self)
            except Exception:
                raise
            except BaseException as error:
                # An interrupt: whether the store has the commit is unknown.
                if self.loop is not None:
                    self.loop.fail(self, error)
                raise

    def leave(self) -> None:
        """End the run when the steps in flight have committed."""
        with self.environment.lock:
            self.leaving = True
            loop = self.loop
            if loop is not None:
                if not self.machine.in_flight:
                    loop.drop(self)  # at once: the driver may have no room for a long time
                loop.look(self)

    def warn_of_wait(self, routine_id: str) -> None:
        """Log, once per routine, that a step which waits for a job took the last thread."""
        if routine_id not in self._warned:
            self._warned = (*self._warned, routine_id)
            _log.warning(
                "job %s: %s waits for another job and holds the last free thread of its runtime, so"
                " a thread is added for the time of the wait; let an event start what comes next,"
                " or give the runtime more threads",
                self.machine.job.job_id,
                routine_id,
            )

    def snapshot(self) -> JobState:
        """Return a copy of the job as of the last commit."""
        with self.environment.lock:
            return self.machine.job.copy()


def _given_up(step: StepInput) -> NoActiveStepError:
    return NoActiveStepError(
        f"the engine no longer waits for attempt {step.attempt} of {step.task.routine_id}, so the"
        " attempt can record nothing more; let its handler return"
    )
