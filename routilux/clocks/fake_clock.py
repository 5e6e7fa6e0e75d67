"""`FakeClock`: a clock for tests, whose time a test moves or which jumps when no thread can run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import final

from routilux.clocks.clock import Clock, Key, Party, Signal
from routilux.clocks.durations import SECOND, from_ns, instant_ns, signed_ns, to_ns
from routilux.clocks.turns import Turn, TurnParty, Turns, TurnSignal

__all__ = ["FakeClock", "Turn", "Wait"]


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait that was asked of a fake clock.

    `who` asked, `at_ns` is when (UTC nanoseconds), `length_ns` how long it was to last.
    """

    who: str
    at_ns: int
    length_ns: int

    @property
    def length(self) -> timedelta:
        """The length as a `timedelta` (whole microseconds)."""
        return timedelta(microseconds=self.length_ns // 1000)


@final
class FakeClock(Clock):
    """A clock for tests: its time stays until all threads wait, then jumps to the next instant.

    `start` is the first instant (aware datetime or ISO text; naive means UTC). With `autojump`
    the time jumps by itself while a thread waits for a result. Without it only `advance` and
    `move_to` move the time, and a job that waits in the thread that made the clock raises
    `ClockStalledError`.

    >>> clock = FakeClock(start="2026-01-01")
    >>> clock.advance(1.5)
    >>> clock.now().isoformat()
    '2026-01-01T00:00:01.500000+00:00'
    """

    def __init__(self, start: datetime | str = "2026-01-01", *, autojump: bool = True) -> None:
        self._turns = Turns(instant_ns(start), autojump)
        self._waits: list[tuple[str, int, int]] = []

    @property
    def autojump(self) -> bool:
        """Whether the time jumps by itself; a test may change it."""
        return self._turns.autojump

    @autojump.setter
    def autojump(self, autojump: bool) -> None:
        self._turns.autojump = autojump

    def now_ns(self) -> int:
        return self._turns.wall + self._turns.now

    def monotonic_ns(self) -> int:
        return self._turns.now

    def now(self) -> datetime:
        """Return the wall clock's time as an aware UTC datetime."""
        return from_ns(self.now_ns())

    @property
    def waits(self) -> tuple[Wait, ...]:
        """Every wait that was asked for, in order: sleeps of handlers and delays of retries."""
        return tuple(Wait(*asked) for asked in self._waits)

    def record_wait(self, who: str, length: int) -> None:
        self._waits.append((who, self.now_ns(), length))

    # --- a test moves it ------------------------------------------------------------------------

    def advance(self, seconds: float | timedelta) -> None:
        """Let `seconds` pass, and return when all steps that this woke have ended or wait.

        Called inside a step it is a sleep of that step.
        """
        self._advance(to_ns(seconds))

    def _advance(self, length: int) -> None:
        if self.runs_here():
            self.record_wait("advance", length)
            self.wait(None, self._turns.now + length, who="advance")
        else:
            self._turns.advance(length)

    def move_to(self, instant: datetime | str) -> None:
        """Let time pass until the wall clock shows `instant`; it must not be past."""
        length = instant_ns(instant) - self.now_ns()
        if length < 0:
            raise ValueError(
                f"{instant} is {-length / SECOND} s before {self.now().isoformat()}, and time only"
                " passes forwards; call jump() to set the wall clock back"
            )
        self._advance(length)

    def jump(self, seconds: float) -> None:
        """Set the wall clock by `seconds`, which may be negative; no time passes, no wait ends."""
        step = signed_ns(seconds)
        with self._turns.lock:
            self._turns.wall += step

    # --- threads take turns on it -----------------------------------------------------------------

    def runs_here(self) -> bool:
        """Return whether the calling thread takes turns on this clock, as that of a step does."""
        return self._turns.here() is not None

    def turn(self) -> Turn | None:
        """Return the turn of the thread that may run; None if all wait. From any thread."""
        return self._turns.turn()

    def revoke(self, turn: Turn, error: BaseException) -> bool:
        """Take the turn from a thread that will not end it; return whether it still had it.

        Other threads run on. A test that moves the time by hand gets `error`. When the thread
        returns, it gets `ClockStalledError` with the same text. The caller fails its job first.
        """
        return self._turns.revoke(turn, error)

    def party(self, who: str, key: Key = (), *, result: bool = False) -> Party:
        party = TurnParty(self._turns, who, key, result)
        self._turns.announce(party)
        return party

    def signal(self) -> Signal:
        return TurnSignal(self._turns)

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        if signal is not None and not isinstance(signal, TurnSignal):
            raise TypeError("the signal belongs to another clock; make it with this one's signal()")
        return self._turns.wait(signal, until, key, who)
