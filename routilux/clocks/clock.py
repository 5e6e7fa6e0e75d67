"""The interface `Clock` and the machine's clock, `SystemClock`.

Invariants:
- Only this module uses `time`; all other code asks a `Clock`.
- All waits use monotonic time. The wall clock only names instants; setting it moves no wait.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from routilux.clocks.durations import SECOND

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_LONGEST_WAIT: Final = threading.TIMEOUT_MAX  # that the system accepts; 292 years on most

# The real functions, even when tests patch `time` later.
_time_ns = time.time_ns
_monotonic_ns = time.monotonic_ns
real_sleep = time.sleep
_boot_ns: Final = (
    partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic_ns
)
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

Key = tuple[float, ...]


class Signal(ABC):
    """A thread-safe flag that `Clock.wait` can wait for.

    >>> clock = SystemClock()
    >>> signal = clock.signal()
    >>> signal.set()
    >>> clock.wait(signal, until=None)
    True
    """

    @abstractmethod
    def set(self) -> None:
        """Set the flag, and wake all waiting threads."""

    @abstractmethod
    def clear(self) -> None:
        """Unset the flag, so that later waits block."""

    @abstractmethod
    def is_set(self) -> bool:
        """Return whether the flag is set."""


class Party:
    """A thread that a clock may schedule.

    A party is created where the work is handed out, before its thread runs. The thread that does
    the work calls `start` and `stop`. This base class, for real time, does nothing.
    """

    __slots__ = ()

    def start(self) -> None:
        """Register the calling thread as this party's thread."""

    def stop(self) -> None:
        """Report that this party's thread has finished; may be called twice."""

    def cancel(self) -> None:
        """Report that this party's thread may never start."""


_UNKNOWN_PARTY: Final = Party()


class Clock(ABC):
    """A clock that the engine reads and waits on.

    A custom clock implements the four abstract methods. Instants are nanoseconds.

    >>> class Ahead(Clock):
    ...     "A clock that is an hour ahead."
    ...     def __init__(self):
    ...         self.real = SystemClock()
    ...     def now_ns(self):
    ...         return self.real.now_ns() + 3_600 * 10**9
    ...     def monotonic_ns(self):
    ...         return self.real.monotonic_ns()
    ...     def signal(self):
    ...         return self.real.signal()
    ...     def wait(self, signal, until, key=(), who=""):
    ...         return self.real.wait(signal, until)
    >>> Ahead().now_ns() > SystemClock().now_ns()
    True
    """

    @abstractmethod
    def now_ns(self) -> int:
        """Return the wall clock's time in nanoseconds since 1970 (UTC)."""

    @abstractmethod
    def monotonic_ns(self) -> int:
        """Return monotonic time: nanoseconds since an arbitrary instant."""

    @abstractmethod
    def signal(self) -> Signal:
        """Return a new signal for this clock's `wait`."""

    @abstractmethod
    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        """Wait for the signal, at most until the monotonic instant `until`.

        Returns whether the signal is set. `key` orders waits for the same instant; `who` names
        the waiting party in errors.
        """

    def party(self, who: str, key: Key = (), *, result: bool = False) -> Party:
        """Return a party for a thread; with `result` it waits for a job's result."""
        return _UNKNOWN_PARTY

    def serves(self, event_loop: AbstractEventLoop) -> bool:
        """Return whether jobs of this clock can be awaited on an event loop."""
        return True

    def record_wait(self, who: str, length: int) -> None:  # noqa: B027 - optional
        """Record that `who` asked for a wait of `length` nanoseconds."""

    def new_event_loop(self) -> AbstractEventLoop:
        """Return a new event loop of asyncio, whose timers pass this clock's time.

        Here it is a loop of the machine's time; a clock with another time returns a loop of its
        own.

        >>> loop = SystemClock().new_event_loop()
        >>> loop.close()
        """
        import asyncio  # 40 ms at import, and only async handlers need it

        return asyncio.new_event_loop()


class _SystemSignal(Signal):
    """A flag with one lock, called gate, per waiting thread.

    `set` raises the flag before it reads the gates; `wait` adds its gate before it reads the flag.
    So either `set` finds the gate, or that thread finds the flag. It has no lock of its own, so
    that an exception such as Ctrl-C can leave none held, and a forked child needs no new one.
    """

    __slots__ = ("_gates", "_raised")

    def __init__(self) -> None:
        self._raised = False
        self._gates: list[threading.Lock] = []

    def set(self) -> None:
        self._raised = True
        for gate in self._gates.copy():
            with suppress(RuntimeError):  # another thread was faster
                gate.release()

    def clear(self) -> None:
        self._raised = False

    def is_set(self) -> bool:
        return self._raised

    def wait(self, seconds: float = -1) -> bool:
        """Return whether the signal is set within `seconds`."""
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        try:
            return self._raised or gate.acquire(timeout=seconds)
        finally:
            self._gates.remove(gate)


@final
class SystemClock(Clock):
    """The machine's clock, even when tests patch `time`.

    >>> SystemClock().now_ns() > 1_700_000_000 * 10**9
    True
    """

    # The functions themselves: a method around each would double its cost.
    now_ns = staticmethod(_time_ns)
    monotonic_ns = staticmethod(_monotonic_ns)

    def signal(self) -> Signal:
        return _SystemSignal()

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        if signal is None:
            if until is None:
                raise ValueError(
                    "wait() without a signal or an instant never ends; pass at least one of the two"
                )
            while (left := until - _monotonic_ns()) > 0:
                real_sleep(min(left / SECOND, _LONGEST_WAIT))
            return False
        if not isinstance(signal, _SystemSignal):
            raise TypeError("the signal belongs to another clock; use this clock's signal()")
        if until is None:
            return signal.wait()
        while (left := until - _monotonic_ns()) > 0:
            if signal.wait(min(left / SECOND, _LONGEST_WAIT)):
                return True
        return signal.is_set()


def boot_ns() -> int:
    """Return nanoseconds since this machine was started.

    Nobody can set this time, and all processes read the same. Where the system does not count
    the time of a suspended machine, that time is missing.
    """
    return _boot_ns()


def boot_id() -> str:
    """Return the id of this machine's last start; empty if unknown."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def thread_busy_ns(thread: int) -> int | None:
    """Return how long a live thread has been busy, in nanoseconds; None if unknown.

    This is its CPU time, and a quarter of the time in which it waited for a processor: a thread
    with a quarter of a processor counts as busy all the time. That wait is known on Linux alone.
    """
    try:
        computed = time.clock_gettime_ns(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):
        return None
    native = next((one.native_id for one in threading.enumerate() if one.ident == thread), None)
    try:
        queued = int(Path(f"/proc/self/task/{native}/schedstat").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        queued = 0
    return computed + queued // 4
