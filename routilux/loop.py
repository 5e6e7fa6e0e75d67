"""The loop that drives any number of jobs, with one driver.

Laws:
- One loop, whoever's thread it runs in: startable, begin, driver, finish, append, accept,
  observers, again. It waits for an outcome, a due instant or a poke; it never polls.
- What breaks one job is kept by it, and changes no other.
- Steps of several jobs that are over at the same time are committed by one write of the store, a
  step of each. While it takes, more of them end; so the more jobs there are, the more share it.
- Everything that changes a job happens under the runtime's lock; no handler runs under it.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

from routilux.core.records import JobStatus
from routilux.errors import StepLimitError
from routilux.exchange import ErrorInfo, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.clock import Key
    from routilux.core.records import Commit
    from routilux.drive import Drive
    from routilux.drivers import Driver, Ended
    from routilux.environment import Environment
    from routilux.exchange import StepInput
    from routilux.persist.journal import Journal
    from routilux.persist.store import Append

__all__ = ["Loop"]

_RUNNING = JobStatus.RUNNING
_FEW: Final = 16  # timers that may lie about before they are swept
_NO_TIMER: Final = (None, (), "the loop")
_timer_numbers = count()


class Loop:
    """Drives jobs with one driver: `execute` makes one for a job, a runtime one for all others."""

    def __init__(self, environment: Environment, driver: Driver) -> None:
        self._environment = environment
        self._clock = environment.clock
        self._journal = environment.journal
        self._driver = driver
        self._ready: deque[Drive] = deque()
        self._timers: list[tuple[int, int, Drive, StepInput | None]] = []
        self.drives: set[Drive] = set()

    def add(self, drive: Drive) -> None:
        """Take a job (under the runtime's lock); a loop that runs already has to `look` at it."""
        self.drives.add(drive)
        self._environment.driven[drive.machine.job.job_id] = drive.machine
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
            with self._environment.lock:
                for drive in list(self.drives):
                    self.fail(drive, error)

    def _run(self) -> None:
        lock = self._environment.lock
        monotonic_ns = self._clock.monotonic_ns
        driver = self._driver
        ready = self._ready
        ended: Ended | None = None
        while True:
            with lock:
                now = monotonic_ns()  # under the lock, so that commits are in its order
                if ended is not None:
                    if self._journal is None:
                        self._end(ended, now)
                    else:
                        self._end_durably(ended, now, self._journal)
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
            if drive.on_wait is not None and not machine.in_flight:
                drive.on_wait(drive)
            return
        environment = self._environment
        if environment.max_steps is not None and self._over(drive, environment.max_steps):
            self._mark(drive)
            return
        step = machine.begin(task, now)
        if environment.audience.of_steps:
            environment.audience.tell_step(machine.job, step)
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

    def _end_durably(self, first: Ended, now: int, journal: Journal) -> None:
        together: list[tuple[Drive, StepInput, StepOutcome]] = []
        for drive, step, outcome in (first, *self._driver.others(first)):
            if isinstance(outcome, StepOutcome) and not outcome.effects and drive.error is None:
                together.append((drive, step, outcome))
            else:
                self._end((drive, step, outcome), now)
        if len(together) > 1:
            self._end_together(together, now, journal)
        elif together:
            self._end(together[0], now)

    def _end_together(
        self, ended: Sequence[tuple[Drive, StepInput, StepOutcome]], now: int, journal: Journal
    ) -> None:
        endings: list[tuple[Drive, Commit, Append]] = []
        for drive, step, outcome in ended:
            try:
                ending = drive.ending(step, outcome, now + drive.offset, journal)
            except BaseException as error:
                self.fail(drive, error)
                continue
            if ending is not None:
                endings.append((drive, *ending))
        refusals: Sequence[BaseException | None]
        try:
            refusals = journal.append_all([added for _, _, added in endings])
        except BaseException as error:
            refusals = [error] * len(endings)
        believed: list[tuple[Drive, Commit]] = []
        for (drive, commit, _), refusal in zip(endings, refusals, strict=True):
            try:
                if refusal is not None:
                    raise refusal
                drive.believe(commit)
            except BaseException as error:
                self.fail(drive, error)
            else:
                believed.append((drive, commit))
        # Not before all are folded in: an observer may ask something of any of these jobs.
        if self._environment.audience.observers:
            for drive, commit in believed:
                drive.tell(commit)
        for drive, _, _ in ended:
            self._mark(drive)

    def fail(self, drive: Drive, error: BaseException) -> None:
        """Be done with a job that something outside of it has broken (under the lock)."""
        drive.error = error
        self.drop(drive)
        self._driver.poke()

    def drop(self, drive: Drive) -> None:
        """Be done with a job: it rests, or can't go on."""
        self.drives.discard(drive)
        job_id, driven = drive.machine.job.job_id, self._environment.driven
        if driven.get(job_id) is drive.machine:
            del driven[job_id]
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
