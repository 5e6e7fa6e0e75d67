"""One job that is being driven, and the loop that drives any number of them.

Laws:
- Write, then believe: a commit is folded in only after the store has accepted it, and observers
  hear of it only then, each in the order of the commits.
- One loop, whoever's thread it runs in: startable, begin, driver, finish, append, accept,
  observers, again. It waits for an outcome, a due instant or a poke; it never polls.
- Everything that changes a job happens under the runtime's lock; no handler runs under it.
- A job's time is UTC when it began or was resumed, plus monotonic progress, and never before its
  last commit. So a wall clock that is set moves no wait, and no history runs back.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

from routilux.core.records import CommitKind, JobStatus
from routilux.errors import (
    NoActiveStepError,
    NotResumableError,
    StepLimitError,
    UnserializableError,
)
from routilux.exchange import ErrorInfo, StepInput, StepOutcome
from routilux.persist.store import SNAPSHOT_EVERY
from routilux.step import timed_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.clock import Key
    from routilux.context import Context
    from routilux.core.machine import Machine, Request
    from routilux.core.records import Commit
    from routilux.core.state import JobState
    from routilux.drivers import Driver, Ended
    from routilux.exchange import Effect
    from routilux.runtime import Runtime

__all__ = ["Drive", "Loop"]

_log = logging.getLogger("routilux")
_RUNNING = JobStatus.RUNNING
_RESUMED = CommitKind.RESUMED
_ordinals = count(1)
_timer_numbers = count()


class Drive:
    """A job under way in this process: its machine, its time, and how it commits.

    It is the host of the job's steps. `rested` is set when nothing is in flight and nothing will
    start by itself; `error` is what ended it from outside: a broken store, an interrupt.
    """

    __slots__ = (
        "_journal",
        "_open",
        "_snapshot_at",
        "error",
        "leaving",
        "limit",
        "loop",
        "machine",
        "offset",
        "on_rest",
        "ordinal",
        "plan",
        "ready",
        "rested",
        "runtime",
        "timer",
    )

    def __init__(self, runtime: Runtime, machine: Machine) -> None:
        clock = runtime.clock
        self.runtime = runtime
        self.machine = machine
        self.plan = machine.plan
        self.ordinal = next(_ordinals)
        self.offset = max(clock.now_ns(), machine.job.updated_ns) - clock.monotonic_ns()
        self.rested = clock.signal()
        self.error: BaseException | None = None
        self.leaving = False
        self.on_rest: Callable[[Drive], object] | None = None  # called under the runtime's lock
        self.loop: Loop | None = None
        self.ready = False
        self.timer: int | None = None  # when a task of it is looked for
        self.limit: int | None = None  # when its steps are looked at for their timeouts
        self._open: dict[int, Context] = {}
        self._journal = runtime.journal
        self._snapshot_at = sys.maxsize
        if runtime.store is not None:  # a job that was loaded keeps the commits since its snapshot
            self._snapshot_at = machine.job.seq - len(machine.job._commits) + SNAPSHOT_EVERY
        machine.job.clock_ns = clock.now_ns

    # --- the host of its steps ------------------------------------------------------------------

    def now_ns(self) -> int:
        """Return the job's time."""
        return self.runtime.clock.monotonic_ns() + self.offset

    def sleep(self, step: StepInput, length: int) -> None:
        """Wait, at the longest until the attempt's timeout."""
        clock = self.runtime.clock
        clock.asked(step.task.routine_id, length)
        until = self.now_ns() + length
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns)
        key = (self.ordinal, *step.order)
        if clock.wait(self.rested, until - self.offset, key, _sleeper(step)):
            # It rests with this step in flight: it broke, and nobody waits for the step.
            raise _given_up(step)

    def record(self, step: StepInput, name: str, effect: Effect) -> None:
        """Commit the result of an effect, from the step's own thread."""
        with self.runtime.lock:
            commit = None
            if self.error is None:
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
        with self.runtime.lock:
            if all(flying.number != step.number for flying in self.machine.flights):
                raise _given_up(step)
            self._open[step.number] = context

    # --- its commits (under the runtime's lock) -------------------------------------------------

    def commit(self, commit: Commit, *, claims: bool = False) -> None:
        """Write a commit, fold it in, and tell the observers; one that `claims` takes the job."""
        if self._journal is not None:
            job_id = self.machine.job.job_id
            self._journal.write(job_id, commit, self.runtime.owner, claims=claims)
        self.machine.accept(commit)
        if commit.seq >= self._snapshot_at:
            self._keep_snapshot()
        if commit.delay_ns:
            self.runtime.clock.asked(f"retry of {commit.routine_id}", commit.delay_ns)
        elif commit.kind is _RESUMED:
            for task in self.machine.job.pending_tasks:
                if task.due_ns > commit.at_ns:
                    left = task.due_ns - commit.at_ns
                    self.runtime.clock.asked(f"retry of {task.routine_id}", left)
        if self.runtime.observers:
            self.runtime.tell(self.machine.job, commit)

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
        if step.timeout_ns is not None:
            self._open.pop(step.number, None)
        machine = self.machine
        job = machine.job
        # Never before the last commit: an observer may have made one since `now` was read.
        if outcome.effects:
            for name, effect in outcome.effects.items():
                recorded = machine.effect(step, name, effect, max(now, job.updated_ns))
                if recorded is not None:
                    self.commit(recorded)
        if now < job.updated_ns:
            now = job.updated_ns
        commit = machine.finish(step, outcome, now)
        if commit is None:
            return
        try:
            self.commit(commit)
        except UnserializableError as error:
            # Nothing was written: it is the handler's attempt that fails, by what it emitted.
            unsaved = StepOutcome(
                step.number, [], error=ErrorInfo.of(error), error_type=UnserializableError
            )
            commit = machine.finish(step, unsaved, max(now, job.updated_ns))
            if commit is not None:
                self.commit(commit)

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
        with self.runtime.lock:
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
        with self.runtime.lock:
            self.leaving = True
            if self.loop is not None:
                self.loop.look(self)

    def snapshot(self) -> JobState:
        """Return a copy of the job as of its last commit."""
        with self.runtime.lock:
            return self.machine.job.copy()


class Loop:
    """Drives jobs with one driver: `execute` makes one for a job, a runtime one for all others."""

    def __init__(self, runtime: Runtime, driver: Driver) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._driver = driver
        self._ready: deque[Drive] = deque()
        self._timers: list[tuple[int, int, Drive, StepInput | None]] = []
        self.drives: set[Drive] = set()

    def add(self, drive: Drive) -> None:
        """Take a job (under the runtime's lock); a loop that runs already has to `look` at it."""
        self.drives.add(drive)
        drive.loop = self
        self._mark(drive)

    def look(self, drive: Drive) -> None:
        """Look at a job again, which somebody else has changed (under the runtime's lock)."""
        self._mark(drive)
        self._driver.poke()

    def run(self) -> None:
        """Drive the jobs until all of them rest; what breaks one is kept in its `error`."""
        try:
            self._run()
        except BaseException as error:
            with self._runtime.lock:
                for drive in list(self.drives):
                    self.fail(drive, error)

    def _run(self) -> None:
        lock = self._runtime.lock
        monotonic_ns = self._clock.monotonic_ns
        driver = self._driver
        ready = self._ready
        ended: Ended | None = None
        while True:
            with lock:
                now = monotonic_ns()  # under the lock, so that commits are in its order
                if ended is not None:
                    self._end(ended, now)
                if self._timers:
                    self._ring(now)
                while ready and driver.room:
                    drive = ready.popleft()
                    drive.ready = False
                    if drive.loop is self:  # else it broke while it waited for room
                        try:
                            self._begin(drive, now)
                        except BaseException as error:
                            self.fail(drive, error)
                if not self.drives:
                    return
                until, key, who = self._first_timer() if self._timers else _NO_TIMER
            ended = driver.next(until, key, who)

    def _begin(self, drive: Drive, now: int) -> None:
        machine = drive.machine
        if drive.leaving:
            if not machine.in_flight:
                self.drop(drive)
            return
        now += drive.offset
        if now <= machine.job.updated_ns:
            now = machine.job.updated_ns  # also where equal: a history keeps one number, not two
        task = machine.first(now)
        if task is None:
            self._watch(drive)
            return
        runtime = self._runtime
        if runtime.max_steps is not None and self._over(drive, runtime.max_steps):
            self._mark(drive)
            return
        step = machine.begin(task, now)
        if runtime.step_observers:
            runtime.tell_step(machine.job, step)
        if step.timeout_ns is not None:
            self._watch_limit(drive, step, step.timeout_ns)
        self._driver.start(drive, step)
        if drive.plan.width > 1:
            self._mark(drive)

    def _over(self, drive: Drive, limit: int) -> bool:
        job = drive.machine.job
        made = sum(state.attempts for state in job.routine_states.values())
        if made + drive.machine.in_flight < limit:
            return False
        error = StepLimitError(
            f"job {job.job_id} made {made} attempts, the runtime's max_steps; does a cycle of its"
            " flow ever end?"
        )
        drive.commit(drive.machine.fail(ErrorInfo.of(error), drive.now_ns()))
        return True

    def _end(self, ended: Ended, now: int) -> None:
        drive: Drive
        drive, step, outcome = ended
        if drive.error is not None:
            return
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            drive.end(step, outcome, now + drive.offset)
        except BaseException as error:
            self.fail(drive, error)
        self._mark(drive)

    def fail(self, drive: Drive, error: BaseException) -> None:
        """Be done with a job that something outside of it has broken (under the lock)."""
        drive.error = error
        self.drop(drive)
        self._driver.poke()

    def drop(self, drive: Drive) -> None:
        """Be done with a job: it rests, or can't go on."""
        self.drives.discard(drive)
        drive.loop = None
        drive.rested.set()
        if drive.on_rest is not None:
            drive.on_rest(drive)
        if len(self._timers) > 2 * len(self.drives) + _FEW:
            # The timers of jobs that are over must not keep them.
            self._timers = [timer for timer in self._timers if timer[2].loop is self]
            heapify(self._timers)

    def _mark(self, drive: Drive) -> None:
        if drive.loop is not self:
            return
        machine = drive.machine
        if machine.job.status is not _RUNNING and machine.rests:
            self.drop(drive)  # at once: there may be no room for long
        elif not drive.ready:
            drive.ready = True
            self._ready.append(drive)

    def _watch(self, drive: Drive) -> None:
        due = drive.machine.due()
        if due is not None:
            due -= drive.offset
            if drive.timer is None or due < drive.timer:
                drive.timer = due
                heappush(self._timers, (due, next(_timer_numbers), drive, None))

    def _watch_limit(self, drive: Drive, step: StepInput, timeout: int) -> None:
        # One timer for the earliest of a job's limits: most steps are long over at theirs.
        due = step.started_ns + timeout - drive.offset
        if drive.limit is None or due < drive.limit:
            drive.limit = due
            heappush(self._timers, (due, next(_timer_numbers), drive, step))

    def _first_timer(self) -> tuple[int | None, Key, str]:
        timers = self._timers
        while timers and timers[0][2].loop is not self:
            heappop(timers)
        if not timers:
            return _NO_TIMER
        due, _, drive, step = self._timers[0]
        job_id = drive.machine.job.job_id
        if step is not None:
            return due, (drive.ordinal, *step.order), f"job {job_id} (timeout of a step)"
        return due, (drive.ordinal, *drive.machine.head), f"job {job_id} (next retry)"

    def _ring(self, now: int) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            due, _, drive, step = heappop(timers)
            if drive.loop is not self:
                continue
            if step is not None:
                if due == drive.limit:
                    drive.limit = None
                    self._give_up(drive, now + drive.offset)
            elif due == drive.timer:
                drive.timer = None
                self._mark(drive)

    def _give_up(self, drive: Drive, now: int) -> None:
        try:
            drive.give_up(now)
        except BaseException as error:
            self.fail(drive, error)
            return
        for step in drive.machine.flights:
            if step.timeout_ns is not None:
                self._watch_limit(drive, step, step.timeout_ns)
        self._mark(drive)


_FEW: Final = 16  # timers that may lie about before they are swept
_NO_TIMER: Final = (None, (), "the loop")


def _given_up(step: StepInput) -> NoActiveStepError:
    return NoActiveStepError(
        f"attempt {step.attempt} of {step.task.routine_id} was given up, so nothing that it does"
        " can be recorded any more"
    )


def _sleeper(step: StepInput) -> str:
    return f"{step.task.routine_id} (task {step.task.task_id}, attempt {step.attempt})"
