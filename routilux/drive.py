"""One job that is being driven: its machine, its time, and how it commits.

Laws:
- Write, then believe: a commit is folded in only after the store has accepted it, and observers
  hear of it only then, each in the order of the commits.
- Everything that changes a job happens under the runtime's lock; no handler runs under it.
- A job's time is UTC when it began or was resumed, plus monotonic progress, and never before its
  last commit. So a wall clock that is set moves no wait, and no history runs back.
"""

from __future__ import annotations

import logging
import sys
from itertools import count
from typing import TYPE_CHECKING, Protocol

from routilux.errors import (
    LeaseLostError,
    NoActiveStepError,
    NotResumableError,
    UnserializableError,
)
from routilux.exchange import ErrorInfo, StepInput, StepOutcome
from routilux.persist.journal import SNAPSHOT_EVERY
from routilux.step import timed_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.context import Context
    from routilux.core.machine import Machine, Request
    from routilux.core.records import Commit
    from routilux.core.state import JobState
    from routilux.environment import Environment
    from routilux.exchange import Effect
    from routilux.persist.journal import Journal
    from routilux.persist.store import Append

__all__ = ["Drive"]

_log = logging.getLogger("routilux")
_ordinals = count(1)


class DrivingLoop(Protocol):
    """The loop that drives a job, as far as the job knows it."""

    def look(self, drive: Drive) -> None:
        """Look at a job again after a change from outside (under the environment's lock)."""

    def fail(self, drive: Drive, error: BaseException) -> None:
        """Stop driving a job that something outside of it has broken (under the lock)."""


class Drive:
    """A job under way in this process: its machine, its time, and how it commits.

    It is the host of the job's steps. `rested` is set when nothing is in flight and nothing will
    start by itself; `error` is what ended it from outside: a broken store, an interrupt.
    """

    __slots__ = (
        "_journal",
        "_open",
        "_snapshot_at",
        "environment",
        "error",
        "leased_until",
        "leaving",
        "limit",
        "loop",
        "machine",
        "offset",
        "on_rest",
        "on_wait",
        "ordinal",
        "plan",
        "ready",
        "rested",
        "run_step",
        "timer",
    )

    def __init__(self, environment: Environment, machine: Machine) -> None:
        clock = environment.clock
        self.environment = environment
        self.machine = machine
        self.plan = machine.plan
        self.run_step = environment.run_step
        self.ordinal = next(_ordinals)
        self.offset = max(clock.now_ns(), machine.job.updated_ns) - clock.monotonic_ns()
        self.rested = clock.signal()
        self.error: BaseException | None = None
        self.leased_until: int | None = None  # by the clock's monotonic time; others may come then
        self.leaving = False
        # Called under the runtime's lock: it rests, or nothing of it runs before an instant comes.
        self.on_rest: Callable[[Drive], object] | None = None
        self.on_wait: Callable[[Drive], object] | None = None
        self.loop: DrivingLoop | None = None
        self.ready = False
        self.timer: int | None = None  # when a task of it is looked for
        self.limit: int | None = None  # when its steps are looked at for their timeouts
        self._open: dict[int, Context] = {}
        self._journal = environment.journal
        self._snapshot_at = sys.maxsize
        if (
            environment.store is not None
        ):  # a job that was loaded keeps the commits since its snapshot
            self._snapshot_at = machine.job.seq - len(machine.job._commits) + SNAPSHOT_EVERY
        machine.job.clock_ns = clock.now_ns

    # --- the host of its steps ------------------------------------------------------------------

    def now_ns(self) -> int:
        """Return the job's time."""
        return self.environment.clock.monotonic_ns() + self.offset

    def sleep(self, step: StepInput, length: int) -> None:
        """Wait, at the longest until the attempt's timeout."""
        clock = self.environment.clock
        clock.asked(step.task.routine_id, length)
        until = self.now_ns() + length
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns)
        key = (self.ordinal, *step.order)
        if clock.wait(self.rested, until - self.offset, key, step.who):
            # It rests with this step in flight: it broke, and nobody waits for the step.
            raise _given_up(step)

    def check(self, step: StepInput) -> None:
        """Raise where it is known, or found, that nothing of the step can be recorded any more."""
        until = self.leased_until
        if (
            self.error is None
            and until is not None
            and until <= self.environment.clock.monotonic_ns()
        ):
            self._check_owner()
        if isinstance(self.error, LeaseLostError):
            raise LeaseLostError(str(self.error))
        if self.error is not None:
            raise _given_up(step)

    def _check_owner(self) -> None:
        # This host stood still, or could not renew its lease: others may have the job by now.
        job_id, store = self.machine.job.job_id, self.environment.store
        error: Exception
        try:
            hold = None if store is None else store.holders(job_id).get(job_id)
            if hold is None or hold.owner == self.environment.owner:
                return
            error = LeaseLostError(f"job {job_id!r} is {hold} now; what it does here is refused")
        except OSError as broken:
            error = broken
        with self.environment.lock:
            if self.loop is not None:
                self.loop.fail(self, error)

    def record(self, step: StepInput, name: str, effect: Effect) -> None:
        """Commit the result of an effect, from the step's own thread."""
        with self.environment.lock:
            self.check(step)
            commit = self.machine.effect(step, name, effect, self.now_ns())
            if commit is None:
                raise _given_up(step)
            try:
                self.commit(commit)
            except UnserializableError:
                raise
            except BaseException as error:
                # The store's trouble is not the handler's failure.
                if self.loop is not None:
                    self.loop.fail(self, error)
                raise

    def opened(self, context: Context) -> None:
        """Remember a context whose step may have to be given up; refuses one that was already."""
        step = context.step
        if step is None:
            return
        with self.environment.lock:
            if all(flying.number != step.number for flying in self.machine.flights):
                raise _given_up(step)
            self._open[step.number] = context

    # --- its commits (under the runtime's lock) -------------------------------------------------

    def commit(self, commit: Commit, *, claims: bool = False, acquired: bool = False) -> None:
        """Write a commit, fold it in, and tell the observers.

        The first one of a resume claims the job, or goes on with one that was acquired.
        """
        if self._journal is not None:
            job_id = self.machine.job.job_id
            owner = self.environment.owner
            self._journal.write(job_id, commit, owner, claims=claims, acquired=acquired)
        self.believe(commit)
        if claims or acquired:
            for task in self.machine.job.pending_tasks:
                if task.due_ns > commit.at_ns:
                    left = task.due_ns - commit.at_ns
                    self.environment.clock.asked(f"retry of {task.routine_id}", left)
        if self.environment.audience.observers:
            self.tell(commit)

    def believe(self, commit: Commit) -> None:
        """Fold in a commit that is written."""
        self.machine.accept(commit)
        if commit.seq >= self._snapshot_at:
            self._keep_snapshot()
        if commit.delay_ns:
            self.environment.clock.asked(f"retry of {commit.routine_id}", commit.delay_ns)

    def tell(self, commit: Commit) -> None:
        """Tell the observers of a commit that is folded in."""
        self.environment.audience.tell(self.machine.job, commit)

    def _keep_snapshot(self) -> None:
        job = self.machine.job
        self._snapshot_at = job.seq + SNAPSHOT_EVERY
        if self._journal is None:
            return
        try:
            self._snapshot_at = self._journal.keep(job)
        except Exception as error:
            # Every commit is in the store: loading the job takes longer, and that is all.
            _log.warning("no snapshot of job %s at commit %d: %s", job.job_id, job.seq, error)

    def end(self, step: StepInput, outcome: StepOutcome, now: int) -> None:
        """Commit what the end of a step changes; a late or doubled outcome changes nothing."""
        if outcome.effects:
            for name, effect in outcome.effects.items():
                at = max(now, self.machine.job.updated_ns)
                recorded = self.machine.effect(step, name, effect, at)
                if recorded is not None:
                    self.commit(recorded)
        commit = self._ending(step, outcome, now)
        if commit is None:
            return
        try:
            self.commit(commit)
        except UnserializableError as error:
            self.commit(self._unsaved(step, error, commit.at_ns))

    def ending(
        self, step: StepInput, outcome: StepOutcome, now: int, journal: Journal
    ) -> tuple[Commit, Append] | None:
        """Return what `end` would commit, and its row, to be written with those of other jobs."""
        commit = self._ending(step, outcome, now)
        if commit is None:
            return None
        job_id, owner = self.machine.job.job_id, self.environment.owner
        try:
            return commit, journal.appending(job_id, commit, owner)
        except UnserializableError as error:
            commit = self._unsaved(step, error, commit.at_ns)
            return commit, journal.appending(job_id, commit, owner)

    def _ending(self, step: StepInput, outcome: StepOutcome, now: int) -> Commit | None:
        if step.timeout_ns is not None:
            self._open.pop(step.number, None)
        updated = self.machine.job.updated_ns
        # Never before the last commit: an observer may have made one since `now` was read.
        return self.machine.finish(step, outcome, now if now > updated else updated)

    def _unsaved(self, step: StepInput, error: UnserializableError, now: int) -> Commit:
        # Nothing was written: it is the handler's attempt that fails, by what it emitted.
        info = ErrorInfo.of(error)
        outcome = StepOutcome(step.number, [], error=info, error_type=UnserializableError)
        commit = self.machine.finish(step, outcome, now)
        if commit is None:
            raise error  # it was given up meanwhile, which takes a commit: so it can't be
        return commit

    def give_up(self, now: int) -> None:
        """End the steps whose timeout has come while their handlers still run."""
        for step in self.machine.flights:
            if step.timeout_ns is not None and step.started_ns + step.timeout_ns <= now:
                context = self._open.pop(step.number, None)
                if context is not None:
                    context.close()
                self.end(step, timed_out(step), now)

    def request(self, kind: Request, reason: str | None = None) -> None:
        """Commit a pause or a cancellation, and let the loop look again."""
        with self.environment.lock:
            if self.error is not None:
                raise NotResumableError(
                    f"job {self.machine.job.job_id} broke off here ({type(self.error).__name__}:"
                    f" {self.error}); load it again and resume it"
                )
            now = max(self.now_ns(), self.machine.job.updated_ns)
            self.commit(self.machine.request(kind, now, reason))
            if self.loop is not None:
                self.loop.look(self)

    def leave(self) -> None:
        """Start no more steps, and rest as soon as those in flight have committed."""
        with self.environment.lock:
            self.leaving = True
            if self.loop is not None:
                self.loop.look(self)

    def snapshot(self) -> JobState:
        """Return a copy of the job as of its last commit."""
        with self.environment.lock:
            return self.machine.job.copy()


def _given_up(step: StepInput) -> NoActiveStepError:
    return NoActiveStepError(
        f"attempt {step.attempt} of {step.task.routine_id} was given up, so nothing that it does"
        " can be recorded any more"
    )
