"""`SimDriver`: runs the steps of a simulated host in virtual time.

Invariants:
- A handler runs to its end as soon as its step starts, against its snapshot. Its events (effects,
  results of `once`, its end) are held back, each until its instant. So steps overlap as they would
  on threads, and an event that is still held back when the host dies has never happened.
- Steps that are due at the same instant continue in the order of the thread driver: a step that
  need not wait comes before one that slept; sleepers come by (task's creating commit, position).
- With another scheduler than FIFO, durations and delays are lower bounds: any step in flight may
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
    from collections.abc import Callable, Coroutine, Iterator

    from pytest_routilux.sim.simulator.model import Case, Host, Pace
    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from routilux import Context
    from routilux.clocks.clock import Key
    from routilux.engine.driver import Driven, Ended
    from routilux.graph.messages import RecordedEffect, Task

TEST_OUTCOMES: Final = (KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception)
"""Exceptions that end the test and not only the simulated host."""


@contextmanager
def record_started_threads(clock: SimClock) -> Iterator[list[threading.Thread]]:
    """Yield a list of the threads that handlers start.

    Threads that these threads start are added, too. Other threads are not: a test may have a server
    that starts a thread for each call.
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


class _StepHost:
    """Implements `ctx` for one step in virtual time."""

    __slots__ = ("_clock", "_driven", "_flight", "_pace")

    def __init__(self, clock: SimClock, flight: Flight, pace: Pace) -> None:
        self._clock = clock
        self._flight = flight
        self._driven: Any = flight.driven
        self._pace = pace

    cancelled = False  # no simulated job is

    def now_ns(self) -> int:
        return self._clock.mono + int(self._driven.offset)

    def sleep(self, step: StepInput, length: int) -> None:
        until = self._clock.mono + length * self._pace.percent // 100
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns - self._driven.offset)
        self._clock.mono = max(self._clock.mono, until)

    async def asleep(self, step: StepInput, length: int) -> None:
        self.sleep(step, length)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        import asyncio

        return asyncio.run(coroutine)

    def check(self, step: StepInput) -> None:
        """Do nothing: a host that has died runs no step."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self._flight.events.append((self._clock.mono, (name, effect)))

    def opened(self, context: Context) -> None:
        """Do nothing: no step runs longer than its timeout."""


class SimDriver:
    """Runs the handlers of one simulated host."""

    room = True
    pauses = False

    def takes(self, driven: Driven, task: Task) -> bool:
        return True

    def give_up(self, step: StepInput) -> None:
        """Do nothing: no step outlives its timeout."""

    def __init__(
        self,
        clock: SimClock,
        world: World,
        host: Host,
        scheduler: Scheduler,
        case: Case,
        pace: Pace,
        started: list[threading.Thread],
    ) -> None:
        self._clock = clock
        self._world = world
        self._host = host
        self._scheduler = scheduler
        self._case = case
        self._pace = pace
        self._started = started
        self._fresh: list[Flight] = []
        self._ended: deque[Ended] = deque()
        self._asleep: list[tuple[int, Key, int, Flight]] = []
        self._sleeps = 0
        self._dropped = False  # whether the loop has dropped the job

    def start(self, driven: Driven, step: StepInput) -> None:
        self._fresh.append(Flight(driven, step))
        if step.job_id == self._case.job_id:  # else a handler executes the job
            world, task = self._world, step.task
            self._host.steps.append((len(world.commits), step))
            start = (task.task_id, task.routine_id, step.attempt)
            world.log.append((step.started_ns, world.host_number, start))

    def others(self, than: Ended) -> list[Ended]:
        """Return an empty list, since `next` returns one step at a time."""
        return []

    def poke(self) -> None:
        """Do nothing: `next` never waits."""

    def block(self, change: int) -> bool:
        """Do nothing: there is one thread, and it never waits."""
        return False

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return the next step that ends; None if `until` comes first."""
        clock = self._clock
        if not self._ended:
            if until is not None and until <= clock.mono:
                return None
            # Threads run while the loop waits, and the loop does not wait while steps have ended.
            fresh, self._fresh = self._fresh, []
            for flight in fresh:
                self._run_handler(flight)
                self._continue(flight)
        while True:
            chosen = self._choose(until, key)
            if isinstance(chosen, Flight):
                if not chosen.events:
                    self._run_handler(chosen)
                clock.mono = max(clock.mono, chosen.events[0][0])
                self._continue(chosen)
            elif chosen is not None:
                return chosen
            elif until is not None:
                clock.mono = max(clock.mono, until)
                return None
            else:
                raise ClockStalledError(
                    "no step is in flight and no task becomes due, but the job has not stopped:"
                    " the engine lost a wake-up"
                )
            if self._dropped:
                self._dropped = False
                return None

    def _choose(self, until: int | None, key: Key) -> Ended | Flight | None:
        """Return the next step that ends or continues; None if `until` comes first."""
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
        chosen = options[self._scheduler.choose(len(options)) if len(options) > 1 else 0]
        if isinstance(chosen, tuple):
            ended.remove(chosen)
        elif chosen in fresh:
            fresh.remove(chosen)
        elif chosen is not None:
            self._asleep = [entry for entry in asleep if entry[3] is not chosen]
        return chosen

    def _continue(self, flight: Flight) -> None:
        """Deliver the events of a step until the step sleeps or ends."""
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
                    return  # the step was given up, with all events that it still has
                except BaseException:
                    self._dropped = True  # the store failed, and the loop has seen it
                    return
            else:
                step = flight.step
                if isinstance(what, StepOutcome) and step.job_id == self._case.job_id:
                    attempt = step.task.task_id, step.attempt
                    if what.error_type is not None:
                        self._host.errors[attempt] = (what.error_type, *what.leaf_types)
                    if what.retry_after_ns is not None:
                        self._host.retry_after[attempt] = what.retry_after_ns
                self._ended.append((flight.driven, flight.step, what))
                return
        self._sleeps += 1
        heappush(self._asleep, (events[0][0], flight.key, self._sleeps, flight))

    def _run_handler(self, flight: Flight) -> None:
        step, clock = flight.step, self._clock
        plan, task = flight.driven.plan, step.task
        begun = clock.mono
        slot = plan.slot(task.routine_id, task.slot)
        slot = slot_with_faults(self._case.faults, step, slot, clock)
        host = _StepHost(clock, flight, self._pace)
        outer = running.flight, running.clock
        running.flight, running.clock = flight, clock
        outcome: StepOutcome | BaseException
        try:
            routine, handler = plan.routines[task.routine_id], plan.handlers[task.routine_id]
            context = flight.driven.context.copy()
            outcome = context.run(run_step, step, routine, slot, handler, host)
        except TEST_OUTCOMES:
            raise
        except BaseException as error:
            outcome = error
        finally:
            running.flight, running.clock = outer
            if self._started:
                alive = [thread.name for thread in self._started if thread.is_alive()]
                self._host.leaked_threads += [(task.routine_id, name) for name in alive]
                self._started.clear()
        if step.timeout_ns is None:
            clock.mono += self._pace.more_ns
        flight.events.append((clock.mono, outcome))
        clock.mono = begun
