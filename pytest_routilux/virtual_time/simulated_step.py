"""The clock of a simulation, and the step that runs now.

Invariants:
- A simulation has one thread. Its time passes only while a handler sleeps or the driver waits.
- `running` holds the step and the clock only while a handler of the simulation runs.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from routilux import Clock, ClockStalledError, SystemClock
from routilux.clocks.durations import from_ns, signed_ns

if TYPE_CHECKING:
    from concurrent.futures import Future
    from datetime import datetime

    from routilux import Signal, StepInput
    from routilux.clocks.clock import Key
    from routilux.engine.driver import Driven

_signal: Final = SystemClock().signal  # nothing waits for it, so it is only a flag


@final
class SimClock(Clock):
    """The clock of a simulation, on which waits take no real time."""

    def __init__(self, start_ns: int, mono: int = 0) -> None:
        self.wall = start_ns - mono  # what the wall clock showed at monotonic 0
        self.mono = mono
        self.thread = threading.get_ident()
        """The thread that runs now: that of the simulation, or of a handler."""

    def now_ns(self) -> int:
        return self.wall + self.mono

    def monotonic_ns(self) -> int:
        return self.mono

    def now(self) -> datetime:
        """Return the wall clock's time as a UTC `datetime`."""
        return from_ns(self.now_ns())

    def jump(self, seconds: float) -> None:
        """Move the wall clock, not the monotonic clock, by `seconds`."""
        self.wall += signed_ns(seconds)

    def signal(self) -> Signal:
        return _signal()

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        # Only a job that a handler executes waits here. The simulated job waits in the driver.
        if signal is not None and signal.is_set():
            return True
        if until is None:
            raise ClockStalledError(
                f"{who} waits for a signal without a timeout, but in a simulation no other thread"
                " can send the signal; give a timeout"
            )
        self.mono = max(self.mono, until)
        return False

    def runs_here(self) -> bool:
        """Return whether the current thread runs the simulation or a handler of it."""
        return threading.get_ident() == self.thread


class Flight:
    """A step whose handler has run, and the events still to deliver.

    `loop` is the event loop on which it runs a coroutine; `awaits` counts the awaits that suspended
    one. `doubles`: it has called a double whose result may depend on other calls. `handler` is the
    thread of a handler that runs in parts, paused at the instant `at`.
    """

    __slots__ = (
        "at",
        "awaits",
        "doubles",
        "driven",
        "effects",
        "events",
        "handler",
        "loop",
        "sleeps",
        "step",
        "threads",
    )

    def __init__(self, driven: Driven, step: StepInput, loop: Any = None) -> None:
        self.driven = driven
        self.step = step
        self.effects = 0
        self.sleeps: tuple[int, ...] = ()
        self.awaits = 0
        self.doubles = False
        self.handler: Any = None
        self.at = 0
        self.loop = loop
        self.events: deque[tuple[int, Any]] = deque()
        self.threads: list[tuple[threading.Thread | Future[Any], str]] = []
        """The threads and the pools' work that its handler has started, with the user's line."""

    def call_double(self) -> None:
        """Note a call of a double whose result may depend on other calls; let other steps run."""
        self.doubles = True
        if self.handler is not None:
            self.handler.pause()

    def add_call(self, at: int, call: object) -> None:
        """Add a call of an effect at a monotonic instant."""
        self.events.append((at, call))

    def suspended(self, pause: Pause, waited: object) -> None:
        """Note that an await for `waited` suspends a coroutine."""
        self.events.append((self.loop.mono, pause))

    def continues(self, pause: Pause) -> BaseException | None:
        """Note that the coroutine continues; return an exception to raise in it, or None."""
        self.events.append((self.loop.mono, pause))
        return None

    @property
    def key(self) -> Key:
        return (self.driven.ordinal, *self.step.order)


class Pause(NamedTuple):
    """An await that suspends a coroutine: its number in the attempt, and the line of the user.

    `over`: the coroutine is about to continue.
    """

    number: int
    where: str
    over: bool = False


class Running:
    """The step and the clock of the handler that runs now."""

    flight: Flight | None = None
    clock: SimClock | None = None


running: Final = Running()
