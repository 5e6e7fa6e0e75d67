"""The threads of a fake clock, their turns, and the signals that wake them.

Invariants:
- The clock changes them with its lock held.
- The clock decides who gets the turn; a party only lets its thread run or wait.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from routilux.clocks.clock import Key, Party, Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routilux.clocks.real_waits import RealWait


class TurnClock(Protocol):
    """The methods of `FakeClock` that its parties and signals call."""

    def _enter(self, party: ClockParty) -> None: ...

    def _leave(self, party: ClockParty) -> None: ...

    def _cancel(self, party: ClockParty) -> None: ...

    def _raise(self, signal: FakeSignal) -> None: ...


@dataclass(slots=True, eq=False)
class ClockParty(Party):
    """A thread that a fake clock schedules.

    `result`: the thread waits for a job's result. `outside`: it takes no turns and only waits.
    """

    clock: TurnClock
    who: str
    key: Key
    result: bool
    outside: bool = False
    thread: int = field(default_factory=threading.get_ident)
    gate: threading.Lock = field(default_factory=threading.Lock)  # opened when its turn comes
    opened: bool = False  # the gate was opened since the party last waited
    entered: bool = False  # its thread has come
    before: ClockParty | None = None  # the party of the same thread in whose turn it runs
    ticket: int = 0  # of its wait; 0 if it does not wait
    stalled: str | None = None  # why its wait can't end
    lost: BaseException | None = None  # why it lost its turn
    blocks: bool = False  # it may block in real time: then it runs without a turn
    real: RealWait | None = None  # what it waits for in real time too

    def __post_init__(self) -> None:
        self.gate.acquire()

    def start(self) -> None:
        self.clock._enter(self)

    def stop(self) -> None:
        self.clock._leave(self)

    def cancel(self) -> None:
        self.clock._cancel(self)

    def open(self) -> None:
        """Let the party's thread run."""
        if not self.opened:
            self.opened = True  # no exception can come between this line and the next call
            self.gate.release()
            if self.real is not None and self.thread != threading.get_ident():
                self.real.wake()

    def shut(self) -> None:
        """Make the party's thread wait at the gate again."""
        self.gate.acquire(blocking=False)
        self.opened = False

    def nesting(self) -> Iterator[ClockParty]:
        """Yield this party, then each enclosing party of the same thread."""
        party: ClockParty | None = self
        while party is not None:
            yield party
            party = party.before


@dataclass(frozen=True, slots=True)
class Turn:
    """The right of one party to run on a fake clock.

    `at_ns` is monotonic. `busy_ns` is how long that thread has been busy; None if unknown.
    """

    party: ClockParty
    thread: int
    at_ns: int
    busy_ns: int | None

    @property
    def who(self) -> str:
        """The name of the step, job or loop that has this turn."""
        return self.party.who


class FakeSignal(Signal):
    """A signal of a fake clock."""

    __slots__ = ("clock", "parties", "raised")

    def __init__(self, clock: TurnClock) -> None:
        self.clock = clock
        self.raised = False
        self.parties: list[tuple[ClockParty, int]] = []  # each with the ticket of its wait

    def set(self) -> None:
        self.clock._raise(self)

    def clear(self) -> None:
        self.raised = False

    def is_set(self) -> bool:
        return self.raised
