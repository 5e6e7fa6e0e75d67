"""`HostLoop`: the event loop on which a simulated host runs its async handlers.

Invariants:
- A host has one event loop, made for its first async handler. It ends with the host, and no later
  host uses it.
- The loop runs in the thread of the simulation, until nothing on it can run before the next event
  of the driver. The driver moves the time between the loop's timers and the other steps.
- Real work, such as a socket or a call in a thread, is waited for in real time before time moves.
- On a loop whose host has died no coroutine of a handler continues: no `finally` and no `except` of
  it runs, also not when Python frees it.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Coroutine
from dataclasses import dataclass
from heapq import heapify
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.simulator.awaits import WatchedCoroutine, watched_task
from pytest_routilux.sim.simulator.model import NORMAL_PACE, HostCrash
from pytest_routilux.sim.simulator.scheduler import FIFO
from pytest_routilux.virtual_time.freeze import on_async_sleep, simulated_patience_ns
from pytest_routilux.virtual_time.simulated_step import running
from routilux import ClockStalledError, Signal
from routilux.clocks.clock import Party
from routilux.clocks.durations import SECOND
from routilux.clocks.real_waits import Addresses, real_ns
from routilux.clocks.virtual_loop import VirtualLoop
from routilux.engine.step import CLEANUP, log_given_up
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from pytest_routilux.sim.simulator.model import Pace
    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from pytest_routilux.virtual_time.simulated_step import Flight, SimClock
    from routilux.clocks.clock import Key
    from routilux.clocks.real_waits import RealWait

_TICK: Final = 0.005  # seconds between two checks of real work


class _LoopSignal(Signal):
    """A flag that ends a real wait of its loop."""

    __slots__ = ("_loop", "_raised")

    def __init__(self, loop: HostLoop) -> None:
        self._loop = loop
        self._raised = False

    def set(self) -> None:
        self._raised = True
        if self._loop.blocked is not None:
            self._loop.blocked.wake()

    def clear(self) -> None:
        self._raised = False

    def is_set(self) -> bool:
        return self._raised


class _Work(Party):
    """A call in a thread, for which the loop waits in real time."""

    __slots__ = ("_work",)

    def __init__(self, work: set[_Work]) -> None:
        self._work = work
        work.add(self)

    def stop(self) -> None:
        self._work.discard(self)

    cancel = stop


@dataclass(frozen=True, slots=True)
class LoopTurn:
    """Something that an event loop may do next, at an instant of its clock.

    `group` is what continues, see `_group_of`; None means all that is ready.
    """

    at: int
    group: object = None


def _group_of(handle: asyncio.Handle) -> object:
    """Return the step that a callback belongs to, or else the id of the callback's context."""
    context = handle._context  # type: ignore[attr-defined]  # has no type there
    step = context.get(active)
    flight = None if step is None else getattr(step._host, "flight", None)
    return id(context) if flight is None else flight


class HostLoop:
    """The event loop of one simulated host, and the clock of that loop.

    The time of the loop is that of `clock`, but slower by `pace`.
    """

    autojump = False  # the driver moves the time
    addresses: Addresses  # set with the event loop

    def __init__(
        self,
        clock: SimClock,
        pace: Pace = NORMAL_PACE,
        scheduler: Scheduler = FIFO,
        dies_at: int | None = None,
    ) -> None:
        self._clock = clock
        self.patience_ns = simulated_patience_ns()
        """For how long the loop waits for real work."""
        self.on_sleep: Callable[[float, FrameType | None], bool] | None = on_async_sleep
        """What the setting `routilux_sleep` does to each `asyncio.sleep`."""
        self.dies_at = dies_at
        """The number of awaits, in the world, at the next of which the host dies."""
        self._percent = pace.percent
        self._scheduler = scheduler
        self._event_loop: VirtualLoop | None = None
        self._work: set[_Work] = set()
        self._horizon: float = -1  # how far `run` may move the time
        self._latest = clock.mono  # of any step, see `run`
        self._last: int | None = None  # how far `result_of` may move the time
        self._task: asyncio.Task[Any] | None = None  # of `result_of`
        self._moves = False  # in `result_of`
        self.waiting: dict[Flight, str] = {}
        """The steps in flight, each with the line of the await in which it was last suspended."""
        self.blocked: RealWait | None = None
        """The real wait of the loop's thread."""
        self.dead = False
        """Whether the host has died."""

    @classmethod
    def of_user(cls, clock: SimClock) -> VirtualLoop:
        """Return an event loop that a handler runs itself, and that moves the time."""
        loop = cls(clock)
        loop._moves = True
        loop.addresses = Addresses()
        return VirtualLoop(loop, 0)

    @property
    def event_loop(self) -> VirtualLoop:
        """The event loop."""
        if self._event_loop is None:
            self.addresses = Addresses()
            self._event_loop = VirtualLoop(self, 0)
            self._event_loop.set_task_factory(watched_task)  # type: ignore[arg-type]  # any options
        return self._event_loop

    @property
    def open(self) -> bool:
        """Whether the host has an event loop, and lives."""
        return self._event_loop is not None and not self.dead

    def owns(self, pool: object) -> bool:
        """Return whether a thread pool is the event loop's own."""
        loop = self._event_loop
        return loop is not None and pool is loop._default_executor

    # --- the clock of the loop ------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        return self._clock.mono * 100 // self._percent

    def signal(self) -> Signal:
        return _LoopSignal(self)

    def party(
        self, who: str, key: Key = (), *, result: bool = False, blocks: bool = False
    ) -> Party:
        return _Work(self._work)

    def check_thread(self) -> None:
        """Do nothing: the simulation watches no thread."""

    @property
    def has_real_threads(self) -> bool:
        return bool(self._work)

    @property
    def mono(self) -> int:
        """The monotonic time of the simulation."""
        return self._clock.mono

    def now_ns(self) -> int:
        """Return the wall clock's time of the simulation."""
        return self._clock.now_ns()

    def catch_up(self) -> None:
        """Move the time to that of the latest step, since commits are in the order of time."""
        self._clock.mono = max(self._clock.mono, self._latest)

    def runs_here(self) -> bool:
        return True

    def yield_turn(self) -> None:
        if not self._moves:
            self.event_loop.stop()

    def wait(
        self,
        signal: Signal | None,
        until: int | None,
        key: Key = (),
        who: str = "",
        real: RealWait | None = None,
    ) -> bool:
        assert signal is not None, "the loop has one"
        if signal.is_set():
            return True
        instant = None if until is None else self._of_clock(until)
        if not self._moves and (instant is None or instant > self._horizon):
            self.event_loop.stop()
            return False
        last = self._last
        if last is not None and (instant is None or instant > last):
            instant = last
        if real is not None and self._real_work(signal, instant, real):
            return signal.is_set()
        if instant is None:
            raise ClockStalledError(
                "an event loop of a handler waits for something that nothing in the simulation can"
                " send; set a timeout"
            )
        self._clock.mono = max(self._clock.mono, instant)
        if instant == last:
            self.event_loop.stop()
        return False

    def _real_work(self, signal: Signal, target: int | None, real: RealWait) -> bool:
        """Wait for real work before time moves to `target`; return whether some has ended."""
        begun, calls = real_ns(), len(self._work)
        real.begin(self._clock.mono)
        self.blocked = real
        try:
            while not signal.is_set() and not real.poll() and len(self._work) == calls:
                left = real.left_ns(target)
                if self._work:
                    left = max(left, begun + self.patience_ns - real_ns())
                if left <= 0:
                    return False
                real.block(min(left / SECOND, _TICK))
        finally:
            self.blocked = None
        return True

    def _of_clock(self, instant: int) -> int:
        return -(-instant * self._percent // 100)

    # --- running --------------------------------------------------------------------------------

    def due(self) -> int | None:
        """Return when the loop has something to run; None if nothing will ever run."""
        loop = self._event_loop
        if loop is None or self.dead:
            return None
        if loop._ready or loop._signal.is_set():
            return self._clock.mono
        instant = loop._next_instant()
        return None if instant is None else self._of_clock(instant)

    def has_real_work(self, target: int | None) -> bool:
        """Wait for real work before time moves to `target`; return whether some has ended."""
        loop = self._event_loop
        if loop is None or self.dead:
            return False
        real = loop._real.of_now(has_timer=target is not None)
        return real is not None and self._real_work(loop._signal, target, real)

    def turns(self) -> list[LoopTurn]:
        """Return what the loop may do next: continue a step that is ready or has a timer."""
        loop = self._event_loop
        if loop is None or self.dead:
            return []
        loop._signal.clear()  # all callbacks that were added until here are ready
        found: dict[object, LoopTurn] = {}
        for handle in loop._ready:
            group = _group_of(handle)
            found.setdefault(group, LoopTurn(self._clock.mono, group))
        for instant, _, timer in sorted(loop._timers, key=itemgetter(0, 1)):
            if not timer.cancelled():
                group = _group_of(timer)
                found.setdefault(group, LoopTurn(self._of_clock(instant), group))
        return list(found.values())

    def run(self, turn: LoopTurn, horizon: float) -> None:
        """Run until nothing can run, or nothing of the turn's step; raise `HostCrash` at a crash.

        A turn without a step may move the time to `horizon`. The time of a step does not depend on
        when the scheduler continues other steps.
        """
        loop, clock, group = self.event_loop, self._clock, turn.group
        if group is None:
            clock.mono = max(clock.mono, turn.at)
            self._horizon = horizon
            self._run()
            self._horizon = -1
            return
        self._latest = clock.mono
        clock.mono = turn.at
        others = [entry for entry in loop._timers if _group_of(entry[2]) != group]
        loop._timers[:] = [entry for entry in loop._timers if _group_of(entry[2]) == group]
        heapify(loop._timers)
        try:
            loop._add_due_timers()
            while any(_group_of(handle) == group for handle in loop._ready):
                waiting = [handle for handle in loop._ready if _group_of(handle) != group]
                for handle in waiting:
                    loop._ready.remove(handle)
                loop.stop()  # after one round
                self._run()
                loop._ready.extendleft(reversed(waiting))
        finally:
            loop._timers += others
            heapify(loop._timers)
            clock.mono = max(self._latest, clock.mono)

    def result_of(
        self, coroutine: Coroutine[Any, Any, Any], flight: Flight, limit: int | None = None
    ) -> object:
        """Run a coroutine to its end, move the time for it, and return its result.

        At the instant `limit` it is cancelled; a second later it is given up, with a
        `CancelledError`.
        """
        flight.loop = self
        task = self.event_loop.create_task(_ended(WatchedCoroutine(coroutine, flight)))
        self._task = task
        self._run_until(task, limit)
        if not task.done() and limit is not None:
            task.cancel()
            self._run_until(task, limit + CLEANUP)
        if not task.done():
            log_given_up(flight.step)
            raise asyncio.CancelledError
        result, error = task.result()
        if error is not None:
            try:
                raise error
            finally:
                del error  # so that no frame keeps the exception
        return result

    def cancel(self) -> None:
        """Cancel the coroutine of `result_of`."""
        assert self._task is not None, "it runs"
        self._task.cancel()

    def _run_until(self, task: asyncio.Task[Any], last: int | None) -> None:
        loop, clock = self.event_loop, self._clock
        outer = self._moves, self._last
        self._moves, self._last = True, last
        task.add_done_callback(lambda _: loop.stop())
        try:
            while not task.done() and (last is None or clock.mono < last):
                self._run()
        finally:
            self._moves, self._last = outer

    def _run(self) -> None:
        outer = running.flight, running.clock
        running.flight, running.clock = None, self._clock
        try:
            self.event_loop.run_forever()
        finally:
            running.flight, running.clock = outer
        if self.dead:
            raise HostCrash

    def die(self) -> None:
        """Let no coroutine of a handler continue."""
        self.dead = True
        self.event_loop.stop()

    def stop(self) -> None:
        """Let `run` return at once."""
        self.event_loop.stop()

    def never(self) -> asyncio.Future[Any]:
        """Return what a coroutine of a dead host waits for."""
        future = self.event_loop.create_future()
        future._asyncio_future_blocking = True
        return future

    def close(self) -> None:
        """End the loop with its host."""
        loop, self._event_loop = self._event_loop, None
        if loop is None:
            return
        self.dead = True
        transports = list(loop._transports.values())
        for transport in transports:
            transport.abort()  # as the system closes the connections of a dead process
        if transports:
            loop.stop()  # after one round
            loop.run_forever()
        left = asyncio.all_tasks(loop)
        if left:
            _bury(left)
        loop.close()


async def _ended(coroutine: Coroutine[Any, Any, Any]) -> tuple[object, BaseException | None]:
    try:
        return await coroutine, None
    except BaseException as error:  # else an interrupt would also leave the event loop
        return None, error


# --- the dead -------------------------------------------------------------------------------------

_buried: Final[list[object]] = []


def _bury(tasks: set[asyncio.Task[Any]]) -> None:
    """Keep suspended tasks for ever: Python runs the `finally` of a coroutine that it frees."""
    if not _buried:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_buried))  # also when the interpreter ends
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as above
        _buried.append(task)
        _buried.append(task.get_coro())
