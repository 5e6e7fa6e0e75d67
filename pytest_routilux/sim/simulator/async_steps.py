"""Runs the async handlers of a simulated host.

Invariants:
- They run as the engine runs them, but on the event loop of the host, in the simulation's thread.
- Their effects and commits happen at once: nothing is held back.
- A host that dies in a commit ends the handler at its next await; no error reaches the handler.
"""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from pytest_routilux.faults.faults import slot_with_faults
from pytest_routilux.sim.simulator.awaits import WatchedCoroutine
from pytest_routilux.sim.simulator.model import HostCrash
from pytest_routilux.virtual_time.simulated_step import Flight
from routilux import SystemClock
from routilux.clocks.durations import SECOND
from routilux.engine.async_steps import AsyncSteps, EventLoopQueue
from routilux.engine.pool import AsyncDriver
from routilux.engine.step import run_async_step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pytest_routilux.sim.simulator.host_loop import HostLoop
    from pytest_routilux.sim.simulator.model import Call, Case, Host, World
    from pytest_routilux.virtual_time.simulated_step import Pause, SimClock
    from routilux import ErrorHandler, Routine, Slot, StepInput, StepOutcome
    from routilux.engine.driver import Driven
    from routilux.engine.environment import RunAsyncStep
    from routilux.graph.context import StepHost
    from routilux.graph.messages import RecordedEffect

_GRACE: Final = 0.05  # seconds of real time for a thread that has done its work, to end


class SimAsyncSteps(AsyncSteps):
    """The tasks on the event loop of a simulated host."""

    def __init__(self, host_loop: HostLoop) -> None:
        super().__init__(SystemClock())  # which it does not use: it starts no thread
        self._host_loop = host_loop

    def close(self) -> None:
        """Do nothing: the event loop ends with its host."""

    def _opened(self) -> EventLoopQueue:
        event_loop = self._host_loop.event_loop
        queue = self._queues[event_loop] = EventLoopQueue(event_loop)
        return queue


class SimAsyncDriver(AsyncDriver):
    """Runs the jobs that an async handler awaits, in the simulation's thread.

    A plain handler of such a job runs to its end at once, and its end is held back until its
    instant.
    """

    def start(self, driven: Driven, step: StepInput) -> None:
        if self._on_loop(driven, step.task):
            super().start(driven, step)
            return
        self._flying += 1
        self._queue.put(partial(self._run, driven, step))

    def _run(self, driven: Driven, step: StepInput) -> None:
        clock = cast("SimClock", self._clock)
        begun = clock.mono
        outcome: StepOutcome | BaseException
        try:
            outcome = driven.run(step)
        except BaseException as error:
            outcome = error
        length, clock.mono = clock.mono - begun, begun
        event_loop = self._queue.event_loop()
        event_loop.call_later(length / SECOND, self._end, driven, step, outcome)


class _AsyncFlight(Flight):
    """A step whose handler runs on the event loop of its host, and whose events happen at once."""

    __slots__ = ("_world",)

    def __init__(self, driven: Driven, step: StepInput, loop: HostLoop, world: World) -> None:
        super().__init__(driven, step, loop)
        self._world = world

    def add_call(self, at: int, call: object) -> None:
        if not self.loop.dead:
            self._world.add_call(cast("Call", call))

    def suspended(self, pause: Pause, waited: object) -> None:
        self.loop.waiting[self] = pause.where
        self._pause(pause)

    def continues(self, pause: Pause) -> BaseException | None:
        self._pause(pause)
        return None

    def _pause(self, pause: Pause) -> None:
        world = self._world
        if len(world.awaits) == self.loop.dies_at:
            self.loop.die()
        elif not self.loop.dead:
            world.add_await(self.loop.now_ns(), self.step, pause)


class _AsyncStepHost:
    """Implements `ctx` for one step on an event loop: as the engine does, but a host may die."""

    __slots__ = ("_drive", "flight")

    def __init__(self, flight: _AsyncFlight) -> None:
        self._drive = flight.driven
        self.flight = flight

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drive, name)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        loop: HostLoop = self.flight.loop
        loop.catch_up()
        try:
            self._drive.record(step, name, effect)
        except HostCrash:
            loop.die()  # no `except` of the handler may see it: the handler ends at its next await


def async_steps(
    case: Case, world: World, host: Host, clock: SimClock, loop: HostLoop
) -> RunAsyncStep:
    """Return the function that runs an attempt of an async handler on `loop`."""

    def run(
        step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, driven: Driven
    ) -> Coroutine[Any, Any, StepOutcome]:
        flight = _AsyncFlight(driven, step, loop, world)
        return WatchedCoroutine(run_on(flight, routine, slot, handler), flight)

    async def run_on(
        flight: _AsyncFlight, routine: Routine, slot: Slot, handler: ErrorHandler
    ) -> StepOutcome:
        step = flight.step
        slot = slot_with_faults(case.faults, step, slot, clock)
        step_host = cast("StepHost", _AsyncStepHost(flight))
        try:
            return await run_async_step(step, routine, slot, handler, step_host)
        finally:
            loop.waiting.pop(flight, None)
            if flight.threads:
                note_leaked_threads(host, flight)

    return run


def note_leaked_threads(host: Host, flight: Flight) -> None:
    """Note the threads, and the work of thread pools, that outlive a step."""
    for work, where in flight.threads:
        if isinstance(work, Future):
            wait_for([work], _GRACE)
            what, alive = "hands work to a thread pool that", not work.done()
        else:
            work.join(_GRACE)
            what, alive = f"starts the thread {work.name!r}, which", work.is_alive()
        if alive:
            host.leaked_threads.append((flight.step.task.routine_id, what, where))
    flight.threads.clear()
