"""Runs the steps of a simulation: virtual time, one thread, what is done held back until its time.

Invariants:
- A handler runs to its end as soon as its step begins, against its snapshot. What it did on the way
  (effects, results of `once`, its end) is held back, each until its instant comes. So steps overlap
  as they would on threads, and what was held back when a host dies has never happened.
- Who is due at the same instant goes on in the order of the thread driver: whoever need not wait
  before whoever slept, sleepers by (task's creating commit, position).
- With another scheduler than FIFO a duration and a delay are lower bounds: any step in flight may
  continue next.
- No real time passes, and no thread is started.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_routilux.faults.faults import slot_with_faults
from pytest_routilux.sim.simulator.model import Call, World
from pytest_routilux.sim.simulator.scheduler import FIFO
from pytest_routilux.virtual_time.simulated_step import Flight, SimClock, running
from routilux import ClockStalledError, NoActiveStepError, StepInput, StepOutcome
from routilux.engine.step import run_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.faults.faults import Fault
    from pytest_routilux.sim.simulator.model import Host, Pace
    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from routilux import Context, Routine, Slot
    from routilux.clocks.clock import Key
    from routilux.engine.driver import Driven, Ended
    from routilux.graph.messages import Effect
    from routilux.retry.error_handler import ErrorHandler

__all__ = ["OUTCOMES", "SimDriver", "threads_started"]

OUTCOMES: Final = (KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception)
"""What is not the simulated host's end, but the test's: it passes through."""


@contextmanager
def threads_started(clock: SimClock) -> Iterator[list[threading.Thread]]:
    """Yield a list of the threads that handlers start, and those threads, until the block ends.

    Others come and go beside a simulation: a test may have a server, with a thread for each call.
    """
    started: list[threading.Thread] = []
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if clock.runs_here() or threading.current_thread() in started:
            started.append(thread)
        real(thread)

    threading.Thread.start = start  # type: ignore[method-assign, assignment]  # undone below
    try:
        yield started
    finally:
        threading.Thread.start = real  # type: ignore[method-assign]  # as it was


# --- steps ----------------------------------------------------------------------------------------


def _named(option: Ended | Flight | None) -> str:
    if option is None:
        return "time passes"
    step = option[1] if isinstance(option, tuple) else option.step
    return f"{step.task.task_id} {step.task.routine_id} attempt {step.attempt}"


class _StepHost:
    """The host of one step: its sleeps pass at once, its records are held back."""

    __slots__ = ("_clock", "_driven", "_flight", "_pace")

    def __init__(self, clock: SimClock, flight: Flight, pace: Pace) -> None:
        self._clock = clock
        self._flight = flight
        self._driven: Any = flight.driven
        self._pace = pace

    def now_ns(self) -> int:
        return self._clock.mono + int(self._driven.offset)

    def sleep(self, step: StepInput, length: int) -> None:
        until = self._clock.mono + length * self._pace.percent // 100
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns - self._driven.offset)
        self._clock.mono = max(self._clock.mono, until)

    def check(self, step: StepInput) -> None:
        """Do nothing: a host that dies runs no step any more."""

    def record(self, step: StepInput, name: str, effect: Effect) -> None:
        self._flight.events.append((self._clock.mono, (name, effect)))

    def opened(self, context: Context) -> None:
        """Do nothing: no step runs on after its timeout."""


class SimDriver:
    """Runs the handlers, and hands back what comes next."""

    room = True

    def __init__(
        self,
        clock: SimClock,
        world: World,
        host: Host,
        scheduler: Scheduler,
        faults: Sequence[Fault],
        pace: Pace,
        job_id: str,
        started: list[threading.Thread],
    ) -> None:
        self._clock = clock
        self._world = world
        self._host = host
        self._scheduler = scheduler
        self._faults = faults
        self._pace = pace
        self._job_id = job_id
        self._fresh: list[Flight] = []
        self._ended: deque[Ended] = deque()
        self._broke = False
        self._asleep: list[tuple[int, Key, int, Flight]] = []
        self._numbers = 0
        self._started = started

    def start(self, driven: Driven, step: StepInput) -> None:
        """Take a step."""
        self._fresh.append(Flight(driven, step))
        if step.job_id == self._job_id:  # else of a job that a handler executes
            world, task = self._world, step.task
            self._host.steps.append((len(world.commits), step))
            start = (task.task_id, task.routine_id, step.attempt)
            world.log.append((step.started_ns, world.host_number, start))

    def others(self, than: Ended) -> list[Ended]:
        """Return none: which step ends first is chosen one by one."""
        return []

    def poke(self) -> None:
        """Do nothing: `next` never waits."""

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return the step that ends next; None where time has come to `until`, or a job broke."""
        clock = self._clock
        if not self._ended:
            if until is not None and until <= clock.mono:
                return None
            # A thread runs when the loop waits, which it does not while it has ended steps.
            fresh, self._fresh = self._fresh, []
            for flight in fresh:
                self._perform(flight)
                self._go_on(flight)
        while True:
            chosen = self._choose(until, key)
            if isinstance(chosen, Flight):
                if not chosen.events:
                    self._perform(chosen)
                clock.mono = max(clock.mono, chosen.events[0][0])
                self._go_on(chosen)
            elif chosen is not None:
                return chosen
            elif until is not None:
                clock.mono = max(clock.mono, until)
                return None
            else:
                raise ClockStalledError(
                    "nothing is in flight and no time will bring a task, but the job does not"
                    " rest: a wake-up was lost"
                )
            if self._broke:
                self._broke = False
                return None

    def _choose(self, until: int | None, key: Key) -> Ended | Flight | None:
        """Return a step that is over, else one that is to go on; None where time passes first."""
        ended, fresh, asleep = self._ended, self._fresh, self._asleep
        if self._scheduler is FIFO:
            if ended:
                return ended.popleft()
            if asleep and (until is None or asleep[0][:2] <= (until, key)):
                return heappop(asleep)[3]
            return None
        asleep.sort()  # which leaves it a heap
        options: list[Ended | Flight | None] = [*ended, *fresh, *(entry[3] for entry in asleep)]
        if until is not None:
            sooner = sum(entry[:2] <= (until, key) for entry in asleep)
            options.insert(len(ended) + len(fresh) + sooner, None)
        if not options:
            return None
        index = 0
        if len(options) > 1:
            index = self._scheduler.choose("commit", [_named(option) for option in options])
        chosen = options[index]
        if isinstance(chosen, tuple):
            ended.remove(chosen)
        elif chosen in fresh:
            fresh.remove(chosen)
        elif chosen is not None:
            self._asleep = [entry for entry in asleep if entry[3] is not chosen]
        return chosen

    def _go_on(self, flight: Flight) -> None:
        """Let happen what is held back of a step, up to its next sleep or its end."""
        events = flight.events
        clock = self._clock
        while events[0][0] <= clock.mono:
            _, what = events.popleft()
            if isinstance(what, Call):
                self._world.add_call(what)
            elif isinstance(what, tuple):
                try:
                    flight.driven.record(flight.step, *what)
                except NoActiveStepError:
                    return  # it was given up, and so is what it would have done
                except BaseException:
                    self._broke = True  # the store's trouble: the loop knows, and drops the job
                    return
            else:
                if isinstance(what, StepOutcome) and what.error_type is not None:
                    self._note_error(flight.step, what, what.error_type)
                self._ended.append((flight.driven, flight.step, what))
                return
        self._numbers += 1
        heappush(self._asleep, (events[0][0], flight.key, self._numbers, flight))

    def _note_error(self, step: StepInput, ended: StepOutcome, kind: type[BaseException]) -> None:
        if step.job_id != self._job_id:
            return
        attempt = step.task.task_id, step.attempt
        self._host.errors[attempt] = kind
        if ended.retry_after_ns is not None:
            self._host.retry_after[attempt] = ended.retry_after_ns

    def _perform(self, flight: Flight) -> None:
        step = flight.step
        clock = self._clock
        task = step.task
        plan = flight.driven.plan
        routine = plan.routines[task.routine_id]
        slot = plan.slot(task.routine_id, task.slot)
        begun = clock.mono
        slot = slot_with_faults(self._faults, step, slot, clock)
        outer = running.flight, running.clock
        running.flight, running.clock = flight, clock
        try:
            outcome: StepOutcome | BaseException = self._run(
                step, routine, slot, plan.handlers[task.routine_id], flight
            )
        finally:
            running.flight, running.clock = outer
        if step.timeout_ns is None:
            clock.mono += self._pace.more_ns
        flight.events.append((clock.mono, outcome))
        clock.mono = begun

    def _run(
        self, step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, flight: Flight
    ) -> StepOutcome | BaseException:
        host = _StepHost(self._clock, flight, self._pace)
        try:
            return run_step(step, routine, slot, handler, host)
        except OUTCOMES:
            raise
        except BaseException as error:
            return error
        finally:
            if self._started:
                outlive = [thread.name for thread in self._started if thread.is_alive()]
                self._host.leaked_threads += [(step.task.routine_id, name) for name in outlive]
                self._started.clear()
