"""The simulated step whose handler runs now, and the clock of its simulation.

Invariants:
- A simulation has one thread; time passes in it only where a handler sleeps or the driver waits.
- `running` names the step and the clock only while a handler of the simulation runs.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, final

from routilux import Clock, ClockStalledError, Signal
from routilux.clocks.durations import from_ns, signed_ns

if TYPE_CHECKING:
    from datetime import datetime

    from routilux import StepInput
    from routilux.clocks.clock import Key
    from routilux.engine.driver import Driven

__all__ = ["Flight", "SimClock", "running"]


class _SimSignal(Signal):
    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set


@final
class SimClock(Clock):
    """Time as one thread makes it pass: whoever waits, waits at once."""

    def __init__(self, start_ns: int, mono: int = 0) -> None:
        self.wall = start_ns - mono  # what the wall clock showed at monotonic 0
        self.mono = mono
        self._thread = threading.get_ident()

    def now_ns(self) -> int:
        return self.wall + self.mono

    def monotonic_ns(self) -> int:
        return self.mono

    def now(self) -> datetime:
        """Return the wall clock's time as an aware UTC datetime."""
        return from_ns(self.now_ns())

    def jump(self, seconds: float) -> None:
        """Set the wall clock by `seconds`, which may be negative; no time passes."""
        self.wall += signed_ns(seconds)

    def signal(self) -> Signal:
        return _SimSignal()

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        # Only a job that a handler executes waits here; the simulated one waits in the driver.
        if signal is not None and signal.is_set():
            return True
        if until is None:
            raise ClockStalledError(f"{who} waits for what nobody will do: a simulation is alone")
        self.mono = max(self.mono, until)
        return False

    def runs_here(self) -> bool:
        """Return whether the calling thread is the one of the simulation."""
        return threading.get_ident() == self._thread


class Flight:
    """A step whose handler was run; its outcome and effects are held back until their instants."""

    __slots__ = ("driven", "effects", "events", "step")

    def __init__(self, driven: Driven, step: StepInput) -> None:
        self.driven = driven
        self.step = step
        self.effects = 0
        self.events: deque[tuple[int, Any]] = deque()

    @property
    def key(self) -> Key:
        return (self.driven.ordinal, *self.step.order)


class running:  # noqa: N801 - it reads as what it is: running.flight
    """The step of a simulation whose handler runs at this moment, and its clock."""

    flight: Flight | None = None
    clock: SimClock | None = None
