"""`VirtualLoop`: an event loop of asyncio whose timers pass the virtual time of a clock.

Invariants:
- Timers are kept in integer nanoseconds. Of two timers for one instant the first that was set runs
  first.
- While the loop runs, its thread is a party of the clock, which waits only when no callback is
  ready. So time never passes a loop that can run, and two loops on one clock never run at once.
- A callback from any thread wakes the loop, also from a thread that the clock does not know.
- A call in a thread pool is a party of the clock too. All other real work, such as I/O, is waited
  for in real time while virtual time does not move.
"""

from __future__ import annotations

import _thread
import asyncio
import heapq
import math
import sys
import threading
import warnings
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from routilux.clocks.durations import SECOND, signed_ns
from routilux.clocks.loop_files import LoopFiles, LoopSelector
from routilux.clocks.thread_calls import Call, calls_of

if TYPE_CHECKING:
    import selectors
    import socket
    from collections import deque
    from collections.abc import Callable
    from contextvars import Context
    from types import CodeType, FrameType
    from weakref import WeakValueDictionary

    from routilux.clocks.clock import Key, Party, Signal
    from routilux.clocks.real_waits import Addresses, RealWait

_NEVER: Final = 2**80  # the instant of a timer that is infinitely far away
_FEW: Final = 64  # cancelled timers that the heap may hold before they are removed
_UNFAIR: Final = 64  # rounds that a loop may run in its turn while other threads are ready
_SLEEP: Final[CodeType] = asyncio.sleep.__code__
_AFTER_STEPS: Final = math.inf  # a loop of user code wakes after the steps of the same instant


class LoopClock(Protocol):
    """What a `VirtualLoop` needs of its clock."""

    autojump: bool
    patience_ns: int
    on_sleep: Callable[[float, FrameType | None], bool] | None
    addresses: Addresses

    def monotonic_ns(self) -> int: ...
    def signal(self) -> Signal: ...
    def wait(
        self,
        signal: Signal | None,
        until: int | None,
        key: Key = (),
        who: str = "",
        real: RealWait | None = None,
    ) -> bool: ...
    def party(
        self, who: str, key: Key = (), *, result: bool = False, blocks: bool = False
    ) -> Party: ...
    def runs_here(self) -> bool: ...
    def yield_turn(self) -> None: ...
    def check_thread(self) -> None: ...
    @property
    def has_real_threads(self) -> bool: ...


class _Timer(asyncio.TimerHandle):
    """A timer of asyncio; its private attribute has no type there."""

    __slots__ = ()

    _scheduled: bool


@final
class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a fake clock; `FakeClock.new_event_loop` makes it."""

    _ready: deque[asyncio.Handle]
    _process_events: Callable[[list[tuple[selectors.SelectorKey, int]]], None]
    _check_closed: Callable[[], None]
    _check_default_executor: Callable[[], None]
    _check_thread: Callable[[], None]
    _check_callback: Callable[[object, str], None]
    _default_executor: ThreadPoolExecutor | None
    _thread_id: int | None
    _clock_resolution: float
    _internal_fds: int
    _ssock: socket.socket
    _signal_handlers: dict[int, asyncio.Handle]
    _transports: WeakValueDictionary[int, asyncio.Transport]
    _executor_shutdown_called: bool

    def __init__(self, clock: LoopClock, number: int) -> None:
        self.clock = clock
        """The clock whose time its timers pass."""
        self._number = number
        self._signal = clock.signal()
        self._timers: list[tuple[int, int, _Timer]] = []
        self._timer_numbers = count()
        self._cancelled = 0  # of the timers
        self._waits = False  # the thread of the loop waits on the clock
        self._rounds = 0  # since it last waited
        self._call_numbers = count()
        selector = LoopSelector(self, clock)
        self._real = LoopFiles(self, clock, selector)
        super().__init__(selector)
        self._clock_resolution = 1 / SECOND

    # --- time -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.monotonic_ns() / SECOND

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if delay is None:
            raise TypeError("delay must not be None")
        length = _length(delay)
        on_sleep = self.clock.on_sleep
        if on_sleep is not None:
            frame = sys._getframe(1)
            if frame.f_code is _SLEEP and on_sleep(delay, frame.f_back):
                timer = self._timer(self.time() + delay, callback, args, context)
                self._real.add_timer(length, timer)
                return timer
        return self._set_timer(self.clock.monotonic_ns() + length, callback, args, context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if when is None:
            raise TypeError("when cannot be None")
        now = self.clock.monotonic_ns()
        return self._set_timer(now + _length_until(now, when), callback, args, context)

    def _set_timer(
        self, instant: int, callback: Callable[..., object], args: Any, context: Context | None
    ) -> asyncio.TimerHandle:
        when = math.inf if instant >= _NEVER else instant / SECOND
        timer = self._timer(when, callback, args, context)
        heapq.heappush(self._timers, (instant, next(self._timer_numbers), timer))
        timer._scheduled = True
        return timer

    def _timer(
        self, when: float, callback: Callable[..., object], args: Any, context: Context | None
    ) -> _Timer:
        self._check_closed()
        if self.get_debug():
            self._check_thread()
            self._check_callback(callback, "call_at")
        return _Timer(when, callback, args, self, context)

    def _timer_handle_cancelled(self, timer: _Timer) -> None:
        if not timer._scheduled:
            return
        self._cancelled += 1
        if self._cancelled > _FEW and 2 * self._cancelled > len(self._timers):
            # The timer that is cancelled now does not say so yet.
            kept = [entry for entry in self._timers if entry[2] is not timer]
            self._timers[:] = [entry for entry in kept if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _next_instant(self) -> int | None:
        """Return the instant of the first timer; None if no timer will ever run."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0][0] if timers and timers[0][0] < _NEVER else None

    def _add_due_timers(self) -> None:
        now = self.clock.monotonic_ns()
        while (instant := self._next_instant()) is not None and instant <= now:
            timer = heapq.heappop(self._timers)[2]
            timer._scheduled = False
            self._ready.append(timer)
        self._ready.extend(self._real.due_timers())

    # --- running --------------------------------------------------------------------------------

    def run_forever(self) -> None:
        self._check_closed()
        if self.clock.runs_here():
            super().run_forever()
            return
        who = f"the event loop of thread {threading.current_thread().name!r}"
        party = self.clock.party(who, (_AFTER_STEPS, self._number), result=True)
        party.start()
        try:
            super().run_forever()
        finally:
            party.stop()

    def close(self) -> None:
        super().close()
        self._timers.clear()

    def collect(self, poll: Callable[[], list[Any]], *, idle: bool) -> None:
        """Make ready what can run now; with `idle`, wait for the first such callback."""
        events = poll()
        if not idle or events:
            self._rounds += 1
            if self._rounds % _UNFAIR == 0:
                self.clock.yield_turn()
        else:
            self._rounds = 0
            self._wait()
            events = poll()
        self._process_events(events)
        self._add_due_timers()

    def _wait(self) -> None:
        self._waits = True
        try:
            until = self._next_instant()
            real = self._real.of_now(has_timer=until is not None)
            self.clock.wait(self._signal, until, real=real)
        finally:
            self._waits = False
        self._signal.clear()  # all callbacks that have been added until here run in this round

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self.clock.check_thread()
        return super().call_soon_threadsafe(callback, *args, context=context)

    def _write_to_self(self) -> None:
        if self._thread_id != threading.get_ident():
            self._signal.set()
        elif self._waits:
            # A signal handler runs in the wait, perhaps while the clock's lock is held here.
            _thread.start_new_thread(self._signal.set, ())

    def interrupt(self) -> None:
        """End a blocking call of the selector, from any thread."""
        super()._write_to_self()  # type: ignore[misc]

    # --- threads --------------------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        self._check_closed()
        if self.get_debug():
            self._check_callback(func, "run_in_executor")
        if executor is None:
            self._check_default_executor()
            executor = self._default_executor
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self._default_executor = executor
        if not isinstance(executor, ThreadPoolExecutor):
            foreign = asyncio.wrap_future(executor.submit(func, *args), loop=self)
            self._real.add_call(foreign)
            return foreign
        key = (_AFTER_STEPS, self._number, next(self._call_numbers))
        call = Call(self.clock, key, func, args)
        future = asyncio.wrap_future(call.result, loop=self)
        calls_of(executor).submit(executor, call)
        self._real.add_thread(future)
        return future

    async def _make_subprocess_transport(self, *args: Any, **options: Any) -> Any:
        process = await super()._make_subprocess_transport(*args, **options)  # type: ignore[misc]
        self._real.add_process(process)
        return process

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in asyncio
        self._executor_shutdown_called = True
        executor = self._default_executor
        if executor is None:
            return
        try:
            async with asyncio.timeout(timeout):  # its calls may wait for virtual time
                await asyncio.wrap_future(calls_of(executor).all_ended(), loop=self)
        except TimeoutError:
            warnings.warn(
                f"the calls in the event loop's threads have not ended within {timeout} seconds",
                RuntimeWarning,
                stacklevel=2,
            )
            executor.shutdown(wait=False)
        else:
            executor.shutdown()  # no thread of it works


def _length(delay: float) -> int:
    if isinstance(delay, int):
        return int(delay) * SECOND
    if math.isinf(delay):
        return _NEVER if delay > 0 else 0
    return signed_ns(float(delay))


def _length_until(now: int, when: float) -> int:
    """Return the nanoseconds from the instant `now` to `when`, a sum of `time()` and a delay.

    The sum of floats has an error, which is rounded away: after 24 days the delay is read to 10 ns,
    after 280 days to 100 ns.
    """
    if math.isinf(when):
        return _NEVER if when > 0 else 0
    unit, error = 1, 2 * math.ulp(max(abs(when), now / SECOND)) * SECOND
    while unit < error:
        unit *= 10
    return round((when - now / SECOND) * SECOND / unit) * unit
