"""`Loop`: runs any number of jobs with one driver.

Invariants:
- Cycle: pick a ready task, run it, commit, apply, notify. The loop waits for an outcome, a due
  instant or a poke; it never polls.
- An error that ends the run of one job is kept in its `Drive`, and affects no other job.
- One write of the store commits the steps of several jobs that end at the same time, one step of
  each job. During the write more steps end, so the more jobs run, the more share a write.
- A job changes only under the runtime's lock; no handler runs under it.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import BrokenExecutor
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

from routilux.core.commits import JobStatus
from routilux.engine.driver import StepNotRunError
from routilux.engine.step import CLEANUP, failure, log_given_up
from routilux.errors import StepLimitError
from routilux.graph.messages import ErrorInfo
from routilux.retry.raised import is_cancellation

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from routilux.clocks.clock import Key
    from routilux.core.commits import Commit
    from routilux.core.parts import PendingTask
    from routilux.engine.drive import Drive
    from routilux.engine.driver import Driver, Ended
    from routilux.engine.environment import Environment
    from routilux.graph.messages import StepInput
    from routilux.persist.journal import Journal
    from routilux.persist.store import Append

    Awaited = tuple[int | None, Key, str]
    """What a loop waits for besides the end of a step: see `Driver.next`."""

_CANCELLED = JobStatus.CANCELLED
_RUNNING = JobStatus.RUNNING
_TURN: Final = 64  # steps that are started before others get their turn
_FEW: Final = 16  # so many timers of ended jobs may stay in the heap
_NO_TIMER: Final = (None, (), "the loop")
_timer_numbers = count()


class Loop:
    """Runs the job of one `execute` call, or all background jobs."""

    def __init__(self, environment: Environment, driver: Driver) -> None:
        self._environment = environment
        self._clock = environment.clock
        self._journal = environment.journal
        self._driver = driver
        self._ready: deque[Drive] = deque()
        self._without_room: deque[Drive] = deque()  # ready, but the driver had no room for them
        self._timers: list[tuple[int, int, Drive, StepInput | None]] = []
        self.drives: set[Drive] = set()

    def add(self, drive: Drive) -> None:
        """Add a job; the caller holds the lock."""
        self.drives.add(drive)
        drive.loop = self
        self._mark(drive)  # if the loop runs, the caller also calls `look`

    def block(self, change: int) -> bool:
        """Note that a step begins (1) or ends (-1) to wait for a job; the caller holds the lock.

        Returns whether other steps had no thread left before.
        """
        return self._driver.block(change)

    @property
    def has_ready(self) -> bool:
        """Whether it can start more steps at once, if its driver has room."""
        return bool(self._ready or (self._without_room and self._driver.room))

    def look(self, drive: Drive) -> None:
        """Check a job that another thread changed; the caller holds the lock."""
        self._mark(drive)
        self._driver.poke()

    def run(self) -> None:
        """Run until all jobs have stopped."""
        next_ended = self._driver.next
        try:
            turns = self.turns()
            wait = next(turns, None)
            while wait is not None:
                wait = turns.send(next_ended(*wait))
        except StopIteration:
            pass
        except BaseException as error:
            self.fail_all(error)

    def fail_all(self, error: BaseException) -> None:
        """End the runs of all jobs because of `error`; raise an interrupt that ended no job."""
        with self._environment.lock:
            failed = list(self.drives)
            for drive in failed:
                self.fail(drive, error)
        if not failed and not isinstance(error, Exception):
            raise error  # an interrupt after the last job had stopped

    def turns(self) -> Generator[Awaited, Ended | None, None]:
        """Run all jobs: yield what to wait for, get the next ended step, or None.

        Ends when all jobs have stopped.
        """
        lock = self._environment.lock
        monotonic_ns = self._clock.monotonic_ns
        driver = self._driver
        ready, without_room = self._ready, self._without_room
        durable = self._journal is not None
        ended: Ended | None = None
        while True:
            with lock:
                now = monotonic_ns()  # read under the lock, so that commits are in order
                if ended is not None:
                    self._end((ended, *driver.others(ended)) if durable else (ended,), now)
                if self._timers:
                    self._ring(now)
                begun = 0
                while ready or (without_room and driver.room):
                    # Jobs that wait for a thread come first, in the order in which they came.
                    if without_room and driver.room:
                        drive = without_room.popleft()
                        drive.waits_for_room = False
                    else:
                        drive = ready.popleft()
                        drive.ready = False
                    if drive.loop is self:  # else it failed while it waited for room
                        try:
                            self._begin(drive, now)
                        except BaseException as error:
                            self.fail(drive, error)
                    if ready:
                        begun += 1
                        if begun >= _TURN and driver.pauses:
                            break
                if not self.drives:
                    self._timers.clear()  # of ended jobs, which they would keep in memory
                    return
                wait = self._first_timer() if self._timers else _NO_TIMER
            ended = yield wait

    def _begin(self, drive: Drive, now: int) -> None:
        machine = drive.machine
        if drive.leaving:
            if not machine.in_flight:
                self.drop(drive)
            elif drive.tasks:
                self._cancel_steps(drive, now + drive.offset)
            return
        now += drive.offset
        if now <= machine.job.updated_ns:
            now = machine.job.updated_ns  # also if equal: the history keeps one int object
        task = machine.next_task()
        if task is None or task.due_ns > now:
            if task is not None:
                self._watch(drive, task)
            elif machine.in_flight and machine.job.status is _CANCELLED:
                self._cancel_steps(drive, now)
            if drive.on_wait is not None and not machine.in_flight:
                drive.on_wait(drive)
            return
        environment = self._environment
        if environment.max_steps is not None and self._over(drive, task, environment.max_steps):
            self._mark(drive)
            return
        if not (self._driver.room or self._driver.takes(drive, task.task)):
            if not drive.waits_for_room:
                self._without_room.append(drive)
                drive.waits_for_room = True
            return
        step = machine.begin(task, now)
        if environment.observers.of_steps:
            environment.observers.notify_step(machine.job, step)
        if step.timeout_ns is not None:
            self._watch_limit(drive, step)
        try:
            self._driver.start(drive, step)
        except Exception as error:  # the executor refuses the step, or no thread can be started
            self.interrupt(drive, error)
            return
        if drive.plan.width > 1:
            self._mark(drive)

    def _over(self, drive: Drive, task: PendingTask, limit: int) -> bool:
        if task.reports:
            limit *= 2  # the tasks that report a failure have steps of their own
        job = drive.machine.job
        if job.seq + drive.machine.in_flight < limit:
            return False  # each attempt that was made has its commit
        made = sum(state.attempts for state in job.routine_states.values())
        if made + drive.machine.in_flight < limit:
            return False
        error = StepLimitError(
            f"job {job.job_id} made {made} attempt{'s' * (made != 1)}, the runtime's max_steps;"
            " check that each cycle of its flow ends, or raise max_steps"
        )
        now = max(drive.now_ns(), job.updated_ns)
        drive.commit(drive.machine.fail(task, ErrorInfo.of(error), now))
        return True

    def _end(self, group: Sequence[Ended], now: int) -> None:
        """Commit several jobs' ended steps with one write."""
        endings: list[tuple[Drive, Commit]] = []
        rows: list[Append] = []
        journal = self._journal
        for drive, step, outcome in group:
            if drive.error is not None:
                continue
            try:
                if isinstance(outcome, BaseException):
                    if not is_cancellation(type(outcome)):
                        if drive.loop is self and drive.machine.is_in_flight(step):
                            self._break_off(drive, step, outcome)
                        continue  # the engine has already ended the step, or the job
                    outcome = failure(step.number, outcome)  # its handler has not begun
                commit = drive.take_outcome(step, outcome, now + drive.offset)
                if commit is not None:
                    if journal is not None:
                        commit, row = drive.row(step, commit, journal)
                        rows.append(row)
                    endings.append((drive, commit))
            except BaseException as error:
                self.fail(drive, error)
        if rows and journal is not None:
            endings = self._written(endings, rows, journal)
        for drive, commit in endings:
            try:
                drive.apply(commit)
            except BaseException as error:
                self.fail(drive, error)
        observers = self._environment.observers
        if observers.registered:  # all are applied: an observer may use any of these jobs
            observers.notify([(d.machine.job, commit) for d, commit in endings if d.error is None])
        for drive, _, _ in group:
            self._mark(drive)

    def _written(
        self, endings: list[tuple[Drive, Commit]], rows: Sequence[Append], journal: Journal
    ) -> list[tuple[Drive, Commit]]:
        refusals: Sequence[BaseException | None]
        try:
            refusals = journal.append_all(rows)
        except BaseException as error:
            refusals = [error] * len(rows)
        if refusals.count(None) == len(rows):
            return endings
        for (drive, _), refusal in zip(endings, refusals, strict=True):
            if refusal is not None:
                self.fail(drive, refusal)
        return [ending for ending in endings if ending[0].error is None]

    def _break_off(self, drive: Drive, step: StepInput, error: BaseException) -> None:
        if isinstance(error, StepNotRunError):
            if drive.machine.job.status is _CANCELLED:
                drive.machine.abandon(step)  # it was withdrawn
            else:
                self.interrupt(drive, error.reason)
        elif isinstance(error, Exception) and not isinstance(error, BrokenExecutor):
            self.fail(drive, error)  # of the engine
        else:
            self.interrupt(drive, error, step)

    def interrupt(self, drive: Drive, error: BaseException, step: StepInput | None = None) -> None:
        """Record and end a job's run that `step` or, without a step, the host broke off."""
        if drive.error is None:
            drive.interrupt(step, error)
        self.fail(drive, error)

    def fail(self, drive: Drive, error: BaseException) -> None:
        """End a job's run because of `error`; the caller holds the lock.

        Only the first error of a job counts. A second call completes one that was interrupted.
        """
        if drive.error is None:
            drive.error = error
        self.drop(drive)
        self._driver.poke()

    def drop(self, drive: Drive) -> None:
        """Remove a job from the loop."""
        self.drives.discard(drive)
        self._environment.forget(drive.machine)
        drive.loop = None
        if drive.tasks:
            drive.cancel_steps()
        drive.stopped.set()
        if drive.on_stop is not None:
            drive.on_stop(drive)
        if len(self._timers) > 2 * len(self.drives) + _FEW:
            # The timers of ended jobs would keep these jobs in memory.
            self._timers = [timer for timer in self._timers if timer[2].loop is self]
            heapify(self._timers)

    def _mark(self, drive: Drive) -> None:
        if drive.loop is not self:
            return
        machine = drive.machine
        if machine.job.status is not _RUNNING and machine.stopped:
            self.drop(drive)  # at once: the driver may have no room for a long time
        elif not drive.ready:
            self._ready.append(drive)
            drive.ready = True  # not before: an interrupt between them would stop the job for ever

    def _watch(self, drive: Drive, task: PendingTask) -> None:
        due = task.due_ns - drive.offset
        drive.timer_key = drive.ordinal, task.seq, task.position
        if drive.timer is None or due < drive.timer:
            drive.timer = due
            heappush(self._timers, (due, next(_timer_numbers), drive, None))

    def _watch_limit(self, drive: Drive, step: StepInput) -> None:
        limit, limits = drive.limit_ns(step), drive.limits
        if limit is not None:
            heappush(limits, (limit, step.number, step))
            if len(limits) > 2 * drive.machine.in_flight + _FEW:
                # Most steps end long before their limits, which would keep them in memory.
                is_in_flight = drive.machine.is_in_flight
                drive.limits = limits = [entry for entry in limits if is_in_flight(entry[2])]
                heapify(limits)
            self._set_limit_timer(drive)

    def _set_limit_timer(self, drive: Drive) -> None:
        # One timer per job, for its earliest limit.
        limit, _, step = drive.limits[0]
        due = limit - drive.offset
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
        return due, drive.timer_key, f"job {job_id} (next retry)"

    def _ring(self, now: int) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            due, _, drive, step = heappop(timers)
            if drive.loop is not self:
                continue
            if step is not None:
                if due == drive.limit:
                    drive.limit = None
                    self._end_overdue(drive, now)
            elif due == drive.timer:
                drive.timer = None
                self._mark(drive)
                if drive.on_wait is not None:
                    drive.on_wait(drive)

    def _end_overdue(self, drive: Drive, now: int) -> None:
        at, limits, is_in_flight = now + drive.offset, drive.limits, drive.machine.is_in_flight
        while limits and (limits[0][0] <= at or not is_in_flight(limits[0][2])):
            limit, _, step = heappop(limits)
            if not is_in_flight(step) or limit != drive.limit_ns(step):
                continue  # it has ended, or was cancelled and has a later limit
            if step.timeout_ns is not None and step.started_ns + step.timeout_ns <= limit:
                drive.close_step(step)
            if drive.cancel_step(step, at):
                heappush(limits, (at + CLEANUP, step.number, step))
            else:
                self._give_up(drive, step, now)
        if limits and drive.error is None:
            self._set_limit_timer(drive)

    def _cancel_steps(self, drive: Drive, now: int) -> None:
        """Cancel the async handlers of a job that is cancelled, or that this host gives back."""
        if drive.cancelling:
            return
        drive.cancelling = True
        for step in drive.machine.flights:
            if drive.cancel_step(step, now):
                self._watch_limit(drive, step)
            elif drive.machine.job.status is _CANCELLED:
                self._driver.withdraw(step)

    def _give_up(self, drive: Drive, step: StepInput, now: int) -> None:
        """End a step that outlived its timeout or its cancellation."""
        drive.close_step(step)
        self._driver.give_up(step)
        if step.number in drive.tasks:
            log_given_up(step)
        self._end(((drive, step, drive.given_up(step, now + drive.offset)),), now)
