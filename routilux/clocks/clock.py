"""Where time comes from: what a clock is, and the system's.

Laws:
- This is the only module that touches `time`; everything else asks a `Clock`.
- All waiting is by monotonic time. The wall clock names instants; being set, it moves no wait.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import Final, final

from routilux.clocks.durations import SECOND

__all__ = ["Clock", "Key", "Party", "Signal", "SystemClock", "real_sleep", "thread_cpu_ns"]

_LONGEST_WAIT: Final = threading.TIMEOUT_MAX  # what the system takes; 292 years on most

# The real functions, whatever is patched later.
_time_ns = time.time_ns
_monotonic_ns = time.monotonic_ns
real_sleep = time.sleep

Key = tuple[float, ...]


class Signal(ABC):
    """Something that may happen: set by any thread, waited for with `Clock.wait`."""

    @abstractmethod
    def set(self) -> None:
        """Let everybody who waits for it go on, and everybody who comes later."""

    @abstractmethod
    def clear(self) -> None:
        """Make later waits wait again."""

    @abstractmethod
    def is_set(self) -> bool:
        """Return whether it was set since it was last cleared."""


class Party:
    """A thread of work that a clock may have to know of; this one knows nothing.

    Made where the work is handed out, before its thread runs; `start` and `stop` are called in
    the thread that does the work.
    """

    __slots__ = ()

    def start(self) -> None:
        """Begin to work in the calling thread."""

    def stop(self) -> None:
        """Have done all work."""


_UNKNOWN_PARTY: Final = Party()


class Clock(ABC):
    """A source of time: what it is, and how to wait for an instant or a signal.

    A clock of your own implements the four abstract methods; instants are nanoseconds.
    """

    @abstractmethod
    def now_ns(self) -> int:
        """Return the wall clock's time: nanoseconds since 1970, UTC."""

    @abstractmethod
    def monotonic_ns(self) -> int:
        """Return nanoseconds since some instant; never runs back, whatever sets the wall clock."""

    @abstractmethod
    def signal(self) -> Signal:
        """Return a new signal that can be waited for with this clock."""

    @abstractmethod
    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        """Wait for a signal or a monotonic instant, whichever comes first.

        Returns whether the signal is set. `key` orders waits for the same instant, `who` names
        the waiter in errors.
        """

    def party(self, who: str, key: Key = (), *, result: bool = False) -> Party:
        """Announce a thread of work; `result`: its thread is one that waits for a result."""
        return _UNKNOWN_PARTY

    def record_wait(self, who: str, length: int) -> None:  # noqa: B027 - a clock need not listen
        """Hear of a wait that was asked for, in nanoseconds."""


_making: Final = threading.Lock()


class _SystemSignal(Signal):
    """A `threading.Event` whose condition is made by the first who waits: for most, nobody does.

    The flag is set before the condition is looked for, and looked at after the condition was put
    there; so whoever sets it finds the one who waits, or the one who waits finds it set.
    """

    __slots__ = ("_condition", "_raised")

    def __init__(self) -> None:
        self._raised = False
        self._condition: threading.Condition | None = None

    def set(self) -> None:
        self._raised = True
        condition = self._condition
        if condition is not None:
            with condition:
                condition.notify_all()

    def clear(self) -> None:
        self._raised = False

    def is_set(self) -> bool:
        return self._raised

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, for so long at most; return whether it was."""
        with _making:
            condition = self._condition
            if condition is None:
                condition = self._condition = threading.Condition(threading.Lock())
        with condition:
            return self._raised or condition.wait(seconds)


@final
class SystemClock(Clock):
    """The machine's own clock, with the real functions of `time` even where they are patched.

    >>> SystemClock().now_ns() > 1_700_000_000 * 10**9
    True
    """

    # The functions themselves: a method around one would cost as much again.
    now_ns = staticmethod(_time_ns)
    monotonic_ns = staticmethod(_monotonic_ns)

    def signal(self) -> Signal:
        return _SystemSignal()

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        if signal is None:
            if until is None:
                raise ValueError("a wait needs a signal or an instant, else it never ends")
            while (left := until - _monotonic_ns()) > 0:
                real_sleep(min(left / SECOND, _LONGEST_WAIT))
            return False
        if not isinstance(signal, _SystemSignal):
            raise TypeError(f"a {type(signal).__name__} is another clock's signal")
        if until is None:
            return signal.wait()
        while (left := until - _monotonic_ns()) > 0:
            if signal.wait(min(left / SECOND, _LONGEST_WAIT)):
                return True
        return signal.is_set()


def thread_cpu_ns(thread: int) -> int | None:
    """Return the CPU time of a living thread (nanoseconds); None where the system does not tell."""
    try:
        return time.clock_gettime_ns(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):
        return None
