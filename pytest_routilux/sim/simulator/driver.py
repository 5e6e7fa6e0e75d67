"""`SimDriver`: runs the steps of a simulated host in virtual time.

Invariants:
- A handler runs to its end as soon as its step starts, against its snapshot; with another scheduler
  than FIFO it pauses before each call of a double that other calls may change. Its events (effects,
  results of `once`, its end) are held back, each until its instant. So steps overlap as they would
  on threads, and an event that is still held back when the host dies has never happened.
- Steps that are due at the same instant continue in the order of the thread driver: a step that
  need not wait comes before one that slept; sleepers come by (task's creating commit, position).
- With another scheduler than FIFO, durations and delays are lower bounds: any step in flight may
  continue next.
- An async handler runs on the event loop of its host, by and by. It is suspended at its awaits,
  while other steps continue. At one instant the event loop comes first, as with a fake clock.
- No real time passes, except for real work of an async handler, and no thread is started.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import pytest

from pytest_routilux.faults.faults import slot_with_faults
from pytest_routilux.frames import outwards, users_frame
from pytest_routilux.sim.simulator.async_steps import SimAsyncSteps, note_leaked_threads
from pytest_routilux.sim.simulator.handler_thread import HandlerThread
from pytest_routilux.sim.simulator.host_loop import HostLoop, LoopTurn
from pytest_routilux.sim.simulator.model import Call, World
from pytest_routilux.sim.simulator.scheduler import FIFO, TIME
from pytest_routilux.virtual_time.simulated_step import Flight, Pause, SimClock, running
from routilux import ClockStalledError, NoActiveStepError, StepInput, StepOutcome
from routilux.clocks.durations import SECOND
from routilux.engine.step import run_step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from pytest_routilux.sim.simulator.model import Case, Host, Pace
    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from pytest_routilux.sim.simulator.transitions import Trace
    from routilux import Context
    from routilux.clocks.clock import Key
    from routilux.engine.driver import Driven, Ended
    from routilux.engine.environment import Environment
    from routilux.graph.messages import RecordedEffect, Task

_Turn: TypeAlias = "tuple[tuple[Any, ...], Flight | LoopTurn | None]"
"""Something that may happen next: when, and what; None lets time pass."""
TEST_OUTCOMES: Final = (KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception)
"""Exceptions that end the test and not only the simulated host."""


_flights: Final[WeakKeyDictionary[threading.Thread, tuple[Flight, str]]] = WeakKeyDictionary()
"""The step whose handler has started a thread, or a thread that did so, and the user's line."""


@contextmanager
def simulation(clock: SimClock) -> Iterator[None]:
    """In the `with` block, let the handlers of this thread run as on a host with `clock`.

    Threads that a handler starts are kept in its `Flight`, also those that these threads start.
    Other threads are not: a test may have a server that starts a thread for each call. Of a thread
    pool only the work is kept, since its idle threads do no harm. New event loops of asyncio pass
    the time of `clock`. The event loop of an async test, if it runs here, is set aside.
    """
    real_start, real_loop = threading.Thread.start, asyncio.new_event_loop
    real_submit = ThreadPoolExecutor.submit

    def starter() -> tuple[Flight, str] | None:
        here = running.clock is not None and running.clock.runs_here()
        if here and running.flight is None:
            return None
        outer = _flights.get(threading.current_thread())
        if not here and outer is None:
            return None
        frame = users_frame(outwards(sys._getframe(2)))
        where = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if here:
            assert running.flight is not None
            return running.flight, where
        assert outer is not None
        return outer[0], where or outer[1]

    def start(thread: threading.Thread) -> None:
        found = starter()
        if found is not None:
            _flights[thread] = found
        real_start(thread)
        if found is not None and not _of_pool(thread):
            found[0].threads.append((thread, found[1]))

    def submit(pool: ThreadPoolExecutor, /, *args: Any, **kwargs: Any) -> Any:
        future = real_submit(pool, *args, **kwargs)
        found = starter()
        if found is not None and not _of_loop(found[0], pool):
            found[0].threads.append((future, found[1]))
        return future

    def new_event_loop() -> asyncio.AbstractEventLoop:
        return HostLoop.of_user(clock) if clock.runs_here() else real_loop()

    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    threading.Thread.start = start  # type: ignore[method-assign, assignment]  # undone below
    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign, assignment]  # undone below
    asyncio.new_event_loop = asyncio.events.new_event_loop = new_event_loop
    try:
        yield
    finally:
        threading.Thread.start = real_start  # type: ignore[method-assign]  # as it was
        ThreadPoolExecutor.submit = real_submit  # type: ignore[method-assign]  # as it was
        asyncio.new_event_loop = asyncio.events.new_event_loop = real_loop
        asyncio._set_running_loop(outer)


def _of_pool(thread: threading.Thread) -> bool:
    """Return whether an executor of `concurrent.futures` has started a thread."""
    target = getattr(thread, "_target", None)  # gone when the thread has ended
    owner = type(thread) if target is None else target
    return str(getattr(owner, "__module__", "")).startswith("concurrent.futures.")


def _of_loop(flight: Flight, pool: ThreadPoolExecutor) -> bool:
    return flight.loop is not None and flight.loop.owns(pool)


class _StepHost:
    """Implements `ctx` for one step in virtual time."""

    __slots__ = ("_clock", "_driven", "_loop", "_pace", "_trace", "flight")

    def __init__(
        self,
        clock: SimClock,
        flight: Flight,
        pace: Pace,
        loop: HostLoop,
        trace: Trace | None = None,
    ) -> None:
        self._trace = trace
        self._clock = clock
        self._loop = loop
        self.flight = flight
        self._driven: Any = flight.driven
        self._pace = pace

    cancelled = False  # no simulated job is

    def now_ns(self) -> int:
        if self._trace is not None:
            self._trace.blind = True
        return self._clock.mono + int(self._driven.offset)

    def sleep(self, step: StepInput, length: int) -> None:
        clock = self._clock
        until = clock.mono + length * self._pace.percent // 100
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns - self._driven.offset)
        if until > clock.mono:
            self.flight.sleeps += (clock.wall + (clock.mono + until) // 2,)
            clock.mono = until

    async def asleep(self, step: StepInput, length: int) -> None:
        await asyncio.sleep(length / SECOND)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        limit = None
        if step.timeout_ns is not None:
            limit = step.started_ns + step.timeout_ns - self._driven.offset
        return self._loop.result_of(coroutine, self.flight, limit)

    def check(self, step: StepInput) -> None:
        """Do nothing: a host that has died runs no step."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self.flight.events.append((self._clock.mono, (name, effect)))

    def opened(self, context: Context) -> None:
        """Do nothing: no step runs longer than its timeout."""


def _task_of(option: Ended | Flight | LoopTurn | None) -> str:
    """Return the id of the task that an option continues."""
    if option is None:
        return TIME
    if isinstance(option, tuple):
        return option[1].task.task_id
    flight = option.group if isinstance(option, LoopTurn) else option
    return flight.step.task.task_id if isinstance(flight, Flight) else "callbacks"


class SimDriver:
    """Runs the handlers of one simulated host."""

    room = True
    pauses = False

    def takes(self, driven: Driven, task: Task) -> bool:
        return False  # it always has room

    def give_up(self, step: StepInput) -> None:
        """Do nothing: no step outlives its timeout."""

    def withdraw(self, step: StepInput) -> None:
        """Do nothing: its steps run in this process."""

    def __init__(
        self,
        clock: SimClock,
        world: World,
        host: Host,
        scheduler: Scheduler,
        case: Case,
        pace: Pace,
        loop: HostLoop,
        environment: Environment,
        handlers: list[HandlerThread],
    ) -> None:
        self._clock = clock
        self._environment = environment
        self._world = world
        self._host = host
        self._scheduler = scheduler
        self._case = case
        self._pace = pace
        self._loop = loop
        self._handlers = handlers
        self._fresh: list[Flight] = []
        self._ended: deque[Ended] = deque()
        self._asleep: list[tuple[int, Key, int, Flight]] = []
        self._sleeps = 0
        self._dropped = False  # whether the loop has dropped the job
        self._test_outcome: BaseException | None = None  # of an async handler

    def start(self, driven: Driven, step: StepInput) -> None:
        flight = Flight(driven, step)
        if driven.plan.has_async and driven.plan.is_async(step.task):
            if not self._loop.open:
                self._environment.async_steps = SimAsyncSteps(self._loop)
            driven.start_async(step, partial(self._end_async, flight))
        else:
            self._fresh.append(flight)
        if step.job_id == self._case.job_id:  # else a handler executes the job
            world, task = self._world, step.task
            self._host.steps.append((len(world.commits), step))
            start = (task.task_id, task.routine_id, step.attempt)
            world.log.append((step.started_ns, world.host_number, start))

    def _end_async(self, flight: Flight, outcome: StepOutcome | BaseException) -> None:
        self._loop.stop()
        if isinstance(outcome, TEST_OUTCOMES):
            self._test_outcome = outcome
            return
        at = self._clock.mono
        if flight.step.timeout_ns is None:
            at += self._pace.more_ns
        flight.events.append((at, outcome))
        self._continue(flight)

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
        if not self._ended and until is not None and until <= clock.mono:
            return None
        if self._fresh and (not self._ended or self._scheduler is not FIFO):
            # Threads run while the loop waits, and the loop does not wait while steps have ended.
            fresh, self._fresh = self._fresh, []
            for flight in fresh:
                self._begin(flight)
        while True:
            if self._ended and self._scheduler is FIFO:
                return self._ended.popleft()
            chosen = self._choose(until, key)
            if type(chosen) is tuple:
                return chosen
            if isinstance(chosen, Flight):
                if chosen.events:
                    clock.mono = max(clock.mono, chosen.events[0][0])
                    self._continue(chosen)
                else:
                    self._advance(chosen)
            elif isinstance(chosen, LoopTurn):
                self._loop.run(chosen, self._horizon(until))
                if self._test_outcome is not None:
                    raise self._test_outcome
            elif until is not None:
                clock.mono = max(clock.mono, until)
                return None
            elif self._loop.open and self._loop.waiting:
                waits = ", ".join(
                    f"{flight.step.task.routine_id} ({where})"
                    for flight, where in self._loop.waiting.items()
                )
                raise ClockStalledError(
                    f"nothing in the simulation will end the await of {waits}; set a timeout, or"
                    " let another handler or a thread send what it waits for"
                )
            else:
                raise ClockStalledError(
                    "no step is in flight and no task becomes due, but the job has not stopped:"
                    " the engine lost a wake-up"
                )
            if self._dropped:
                self._dropped = False
                return None

    def _horizon(self, until: int | None) -> float:
        """Return when something else than the event loop is due."""
        if self._scheduler is not FIFO:
            return -1
        if self._asleep and (until is None or self._asleep[0][0] < until):
            return self._asleep[0][0]
        return math.inf if until is None else until

    def _choose(self, until: int | None, key: Key) -> Ended | Flight | LoopTurn | None:
        """Return the next step that ends or continues; None if `until` comes first."""
        ended, asleep, loop = self._ended, self._asleep, self._loop
        if self._scheduler is FIFO:
            if loop.open:
                due = loop.due()
                later = [
                    at for at in (due, until, asleep[0][0] if asleep else None) if at is not None
                ]
                target = min(later, default=None)
                if due == target and due is not None and due <= self._clock.mono:
                    return LoopTurn(due)
                if loop.has_real_work(target):
                    return LoopTurn(self._clock.mono)
                if due is not None and due == target:
                    return LoopTurn(due)
            if asleep and (until is None or asleep[0][:2] <= (until, key)):
                return heappop(asleep)[3]
            return None
        turns: list[_Turn]
        turns = [(entry[:3], entry[3]) for entry in asleep]
        if loop.open:
            turns += [((turn.at, ()), turn) for turn in loop.turns()]
        if until is not None:
            turns.append(((until, key, math.inf), None))
        turns = self._within_limits(sorted(turns, key=itemgetter(0)))
        options: list[Ended | Flight | LoopTurn | None]
        options = [*ended, *(option for _, option in turns)]
        if loop.open and not ended:
            target = turns[0][0][0] if turns else None
            if (target is None or target > self._clock.mono) and loop.has_real_work(target):
                return LoopTurn(self._clock.mono)
        if not options:
            return None
        index, trace = 0, self._scheduler.trace
        if len(options) > 1 or trace is not None:
            index = self._scheduler.choose([_task_of(option) for option in options])
        chosen = options[index]
        if trace is not None:
            trace.next(_task_of(chosen), alone=isinstance(chosen, LoopTurn))
        if isinstance(chosen, tuple):
            ended.remove(chosen)
        elif isinstance(chosen, Flight):
            self._asleep = [entry for entry in asleep if entry[3] is not chosen]
            heapify(self._asleep)
        return chosen

    def _within_limits(self, turns: list[_Turn]) -> list[_Turn]:
        """Return the turns after which no step in flight is over its timeout.

        A step that an order holds back is not slow: only its own length may be over its timeout.
        """
        flying = [entry[3] for entry in self._asleep]
        steps = [(one.driven, one.step) for one in flying] + [end[:2] for end in self._ended]
        limits = [
            step.started_ns + step.timeout_ns - int(driven.offset)
            for driven, step in steps
            if step.timeout_ns is not None
        ]
        if not limits:
            return turns
        last = min(limits)
        within = [turn for turn in turns if turn[0][0] < last or (turn[0][0] == last and turn[1])]
        return within if within or self._ended else turns

    def _begin(self, flight: Flight) -> None:
        """Run a handler to its end, or to its first pause."""
        if self._scheduler is FIFO or flight.step.task.routine_id not in self._case.pausing:
            self._run_handler(flight)
            self._continue(flight)
            return
        trace = self._scheduler.trace
        if trace is not None:
            trace.read_all()  # what it will have read is not known yet
        flight.at = self._clock.mono
        run = partial(self._run_handler, flight)
        flight.handler = HandlerThread(run, flight, self._clock)
        self._handlers.append(flight.handler)
        self._advance(flight, calls=False)

    def _advance(self, flight: Flight, *, calls: bool = True) -> None:
        """Run a paused handler to its next pause, or to its end; `calls`: with a double first."""
        clock, trace = self._clock, self._scheduler.trace
        if trace is not None and calls:
            trace.call_double()
        begun = clock.mono = max(clock.mono, flight.at)
        flight.handler.advance()
        flight.at, clock.mono = clock.mono, begun
        self._continue(flight)

    def _continue(self, flight: Flight) -> None:
        """Deliver the events of a step until the step sleeps or ends."""
        events = flight.events
        clock = self._clock
        while events and events[0][0] <= clock.mono:
            _, what = events.popleft()
            kind = type(what)
            if kind is Call:
                self._world.add_call(what)
                if self._scheduler.trace is not None:
                    self._scheduler.trace.deliver_call()
            elif kind is Pause:
                self._world.add_await(clock.now_ns(), flight.step, what)
            elif kind is tuple:
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
                    if flight.sleeps:
                        self._host.sleeps.append((step, flight.sleeps))
                    if what.error_type is not None:
                        self._host.errors[attempt] = (what.error_type, *what.leaf_types)
                    if what.retry_after_ns is not None:
                        self._host.retry_after[attempt] = what.retry_after_ns
                    if not what.spends:
                        self._host.unspent.add(attempt)
                    if what.shared_reads is None or what.shared_reads:
                        self._host.reads[step.number] = what.shared_reads
                ended = flight.driven, flight.step, what
                self._ended += [ended] * (1 + self._pace.twice)
                return
        self._sleeps += 1
        at = events[0][0] if events else flight.at
        heappush(self._asleep, (at, flight.key, self._sleeps, flight))

    def _run_handler(self, flight: Flight) -> None:
        driven, step, clock = flight.driven, flight.step, self._clock
        plan, task = driven.plan, step.task
        begun = clock.mono
        routine, handler = plan.routines[task.routine_id], plan.handlers[task.routine_id]
        slot = routine._slots[task.slot]
        if self._case.faults:
            slot = slot_with_faults(self._case.faults, step, slot, clock)
        host = _StepHost(clock, flight, self._pace, self._loop, self._scheduler.trace)
        outer_flight, outer_clock = running.flight, running.clock
        running.flight, running.clock = flight, clock
        outcome: StepOutcome | BaseException
        try:
            outcome = driven.context.copy().run(run_step, step, routine, slot, handler, host)
        except TEST_OUTCOMES:
            raise
        except BaseException as error:
            outcome = error
        finally:
            running.flight, running.clock = outer_flight, outer_clock
            if flight.threads:
                note_leaked_threads(self._host, flight)
        if flight.doubles:
            self._case.pausing.add(task.routine_id)
        if self._scheduler.trace is not None:
            self._scheduler.trace.handled(step, outcome)
        if step.timeout_ns is None:
            clock.mono += self._pace.more_ns
        flight.events.append((clock.mono, outcome))
        if flight.handler is None:
            clock.mono = begun
