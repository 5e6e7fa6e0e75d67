"""Turns of threads on virtual time: one thread runs at a time; time moves when none can run.

Invariants:
- A thread keeps its turn until it waits or ends; then the next ready thread gets the turn. So a
  program that waits only through the clock is deterministic, and its waits overlap in virtual time.
- Time moves only when no thread can run: to the earliest instant that a thread waits for. It wakes
  one thread, the first by (instant, key). What that thread causes happens before the next wakes.
- Time moves by itself only while a thread waits for a result; between two calls of a test it stays.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import Key, Party, Signal, thread_cpu_ns
from routilux.clocks.durations import SECOND, from_ns
from routilux.errors import ClockStalledError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Turn", "TurnParty", "TurnSignal", "Turns"]

_LAST_KEY: Final = (float("inf"),)
_FEW: Final = 64  # ended waits that the heap may hold before they are removed


@dataclass(slots=True, eq=False)
class TurnParty(Party):
    """A thread that takes turns: that of a loop, of a step, or one that waits for a result.

    `result` says that it waits for a result, `outside` that it takes no turns and only waits.
    """

    turns: Turns
    who: str
    key: Key
    result: bool
    outside: bool = False
    thread: int = field(default_factory=threading.get_ident)
    gate: threading.Lock = field(default_factory=threading.Lock)  # opened when its turn comes
    before: TurnParty | None = None  # the party of the same thread in whose turn it runs
    ticket: int = 0  # of its wait; 0 if it does not wait
    stalled: str | None = None  # why its wait can't end
    lost: BaseException | None = None  # why it lost its turn

    def __post_init__(self) -> None:
        self.gate.acquire()

    def start(self) -> None:
        self.turns.enter(self)

    def stop(self) -> None:
        self.turns.leave(self)

    def nesting(self) -> Iterator[TurnParty]:
        """Yield this party, then the one in whose turn it runs, and so on."""
        party: TurnParty | None = self
        while party is not None:
            yield party
            party = party.before


@dataclass(frozen=True, slots=True)
class Turn:
    """The party that has the turn, its thread, and the monotonic instant.

    `cpu_ns` is the CPU time of that thread so far; None if the system can't report it.
    """

    party: TurnParty
    thread: int
    at_ns: int
    cpu_ns: int | None

    @property
    def who(self) -> str:
        """The name of the step, job or loop that may run."""
        return self.party.who


class TurnSignal(Signal):
    """A signal for parties that take turns."""

    __slots__ = ("parties", "raised", "turns")

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.raised = False
        self.parties: list[tuple[TurnParty, int]] = []  # each with the ticket of its wait

    def set(self) -> None:
        self.turns.raise_signal(self)

    def clear(self) -> None:
        self.raised = False

    def is_set(self) -> bool:
        return self.raised


class Turns:
    """The threads that take turns, and the virtual time on which they wait.

    `now` is monotonic, in nanoseconds; `wall` is what the wall clock shows at 0 of it.
    """

    def __init__(self, wall: int, autojump: bool) -> None:
        self.wall = wall
        self.now = 0
        self.autojump = autojump
        self.lock = threading.Lock()
        self._all_wait = threading.Condition(self.lock)
        self._current: TurnParty | None = None
        self._ready: deque[TurnParty] = deque()
        self._sleepers: list[tuple[int, Key, int, TurnParty]] = []
        self._waiting: dict[int, tuple[TurnParty, int | None]] = {}
        self._tickets = count(1)
        self._results = 0  # threads that wait for a result: time may move by itself
        self._moving = False  # a test moves the time by hand
        self._refusal: BaseException | None = None  # why it can't move the time any further
        self._here = threading.local()
        self._owner = threading.get_ident()

    def here(self) -> TurnParty | None:
        """Return the party of the calling thread."""
        party: TurnParty | None = getattr(self._here, "party", None)
        return party

    def announce(self, party: TurnParty) -> None:
        """Add a party that gets its first turn after those that are ready now."""
        with self.lock:
            self._ready.append(party)

    def advance(self, length: int) -> None:
        """Let time pass, and return when all threads wait that this woke."""
        with self.lock:
            self._moving = True
            try:
                target = self.now + length
                while True:
                    while self._current is not None or self._ready:
                        self._all_wait.wait()
                    if self._refusal is not None:
                        raise self._refusal
                    entry = self._first_sleeper()
                    if entry is None or entry[0] > target:
                        break
                    self._wake_first(entry)
                    self._pass_turn()
                self.now = target
            finally:
                self._moving = False
                self._refusal = None
                self._pass_turn()

    def turn(self) -> Turn | None:
        """Return the turn of the party that may run; None if none may."""
        with self.lock:  # which keeps the thread alive
            party = self._current
            if party is None:
                return None
            return Turn(party, party.thread, self.now, thread_cpu_ns(party.thread))

    def revoke(self, turn: Turn, error: BaseException) -> bool:
        """Take the turn from a thread that will not end it; return whether it still had it."""
        with self.lock:
            if self._current is not turn.party:
                return False
            for party in turn.party.nesting():
                party.lost = error
            self._current = None
            if self._moving:
                self._refusal = error
            self._pass_turn()
        return True

    def raise_signal(self, signal: TurnSignal) -> None:
        """Set a signal and make the parties ready that wait for it."""
        with self.lock:
            signal.raised = True
            for party, ticket in signal.parties:
                if party.ticket == ticket:
                    self._wake(party)
            signal.parties.clear()
            self._pass_turn()

    def wait(self, signal: TurnSignal | None, until: int | None, key: Key, who: str) -> bool:
        """Wait for a signal or an instant; see `Clock.wait`."""
        party = self.here()
        if party is not None and party.lost is not None:
            raise ClockStalledError(str(party.lost))
        ticket = 0
        try:
            with self.lock:
                if signal is not None and signal.raised:
                    return True
                if until is not None and until <= self.now:
                    return False
                if party is None:
                    party = TurnParty(self, who, _LAST_KEY, result=True, outside=True)
                    self._results += 1
                elif until is not None and self._wakes_first(until, key or party.key):
                    self.now = until
                    return False
                else:
                    self._current = None
                party.who = who or party.who
                party.ticket = ticket = next(self._tickets)
                self._waiting[ticket] = (party, until)
                if until is not None:
                    self._add_sleeper(until, (not party.outside and key) or party.key, party)
                if signal is not None:
                    signal.parties = [p for p in signal.parties if p[0].ticket == p[1]]
                    signal.parties.append((party, ticket))
                self._pass_turn()
            party.gate.acquire()
        except BaseException:
            if party is not None:
                self._interrupt(party, ticket)
            raise
        if party.stalled is not None:
            reason, party.stalled = party.stalled, None
            raise ClockStalledError(reason)
        return signal is not None and signal.raised

    def enter(self, party: TurnParty) -> None:
        """Let the calling thread work as `party`; return when it has its first turn."""
        party.before = before = self.here()
        party.thread = threading.get_ident()
        self._here.party = party
        with self.lock:
            if party.result:
                self._results += 1
            if before is not None and self._current is before:
                # A job inside a handler keeps the turn of that handler.
                self._ready.remove(party)
                self._current = party
                return
            self._pass_turn()
        try:
            party.gate.acquire()
        except BaseException:  # Ctrl-C
            with self.lock:
                if self._current is party:
                    self._current = None
                else:
                    self._ready.remove(party)
                if party.result:
                    self._results -= 1
                self._here.party = before
                self._pass_turn()
            raise

    def leave(self, party: TurnParty) -> None:
        """End the work of the calling thread, and pass its turn on."""
        with self.lock:
            if party.result:
                self._results -= 1
            self._here.party = before = party.before
            if party.lost is None:
                self._current = None if before is None or before.lost is not None else before
            self._pass_turn()

    def _interrupt(self, party: TurnParty, ticket: int) -> None:
        # Ctrl-C in a wait or next to it: a party that takes turns cleans up in its own turn.
        with self.lock:
            if ticket and party.ticket == ticket:
                self._wake(party)
                self._pass_turn()
            if party.outside:
                return
            if self._current is None and party not in self._ready:
                self._current = party
            if self._current is party:
                party.gate.acquire(blocking=False)
                return
        party.gate.acquire()

    # --- called with the lock held ----------------------------------------------------------------

    def _wakes_first(self, until: int, key: Key) -> bool:
        # A party that would wake at once need not wait; one that sleeps already wakes before it.
        if self._ready or self._moving or not self._results or not self.autojump:
            return False
        first = self._first_sleeper()
        return first is None or (until, key) < first[:2]

    def _add_sleeper(self, until: int, key: Key, party: TurnParty) -> None:
        heapq.heappush(self._sleepers, (until, key, party.ticket, party))
        if len(self._sleepers) > 2 * len(self._waiting) + _FEW:
            self._sleepers = [s for s in self._sleepers if s[3].ticket == s[2]]
            heapq.heapify(self._sleepers)

    def _first_sleeper(self) -> tuple[int, Key, int, TurnParty] | None:
        sleepers = self._sleepers
        while sleepers and sleepers[0][3].ticket != sleepers[0][2]:
            heapq.heappop(sleepers)
        return sleepers[0] if sleepers else None

    def _wake_first(self, entry: tuple[int, Key, int, TurnParty]) -> None:
        heapq.heappop(self._sleepers)
        self.now = entry[0]
        self._wake(entry[3])

    def _wake(self, party: TurnParty) -> None:
        del self._waiting[party.ticket]
        party.ticket = 0
        if party.outside:
            self._results -= 1
            party.gate.release()
        else:
            self._ready.append(party)

    def _pass_turn(self) -> None:
        while self._current is None:
            if self._ready:
                self._current = self._ready.popleft()
                self._current.gate.release()
                return
            if self._moving or not self._results:
                self._all_wait.notify_all()
                return
            entry = self._first_sleeper() if self.autojump else None
            if entry is None:
                self._stall()
                return
            self._wake_first(entry)

    def _stall(self) -> None:
        # If the clock does not jump, another thread may still move it, unless the thread that made
        # the clock waits itself.
        for party, _ in self._waiting.values():
            if party.result and (self.autojump or party.thread == self._owner):
                break
        else:
            return
        waits = "; ".join(
            f"{p.who} waits "
            + ("for a signal" if t is None else f"for {(t - self.now) / SECOND:g} s more")
            for p, t in self._waiting.values()
        )
        reason = (
            f"no thread will move the clock on from {from_ns(self.wall + self.now).isoformat()}:"
            f" {waits}. Use FakeClock(autojump=True), or call advance() from another thread"
        )
        # The steps inside a job that is given up must not wait for ever either.
        for inner in self._within(party):
            inner.stalled = reason
            self._wake(inner)
        self._pass_turn()

    def _within(self, party: TurnParty) -> list[TurnParty]:
        """Return a waiting party, the steps of its job, the jobs in these, and so on."""
        found = [party]
        jobs = {party.key[:1]}
        rest = [p for p, _ in self._waiting.values() if p is not party and not p.outside]
        while inner := [p for p in rest if any(q.key[:1] in jobs for q in p.nesting())]:
            found += inner
            jobs.update(p.key[:1] for p in inner)
            rest = [p for p in rest if p not in inner]
        return found
