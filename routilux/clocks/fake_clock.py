"""`FakeClock`: time that is moved, by a test or by itself when nobody can run.

Laws:
- It gives one thread at a time its turn: a step runs until it waits or ends, then the next that is
  ready runs. So whatever waits only through the clock is deterministic, and still overlaps in
  virtual time.
- Time moves only when nobody can run: to the earliest instant that is waited for, waking one
  waiter, the first by (instant, key). What that one causes happens before the next one wakes.
- It moves by itself only while somebody waits for a result; between two calls of a test it stands.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Final, final

from routilux.clocks.clock import Clock, Key, Party, Signal, thread_cpu_ns
from routilux.clocks.durations import SECOND, from_ns, instant_ns, signed_ns, to_ns
from routilux.errors import ClockStalledError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FakeClock", "Turn", "Wait"]

_LAST_KEY: Final = (float("inf"),)
_FEW: Final = 64  # ended waits that may lie about before they are swept


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


class _FakeParty(Party):
    """One who takes turns on a fake clock: a loop, a step, or a thread that waits for a result."""

    __slots__ = (
        "before",
        "clock",
        "gate",
        "key",
        "lost",
        "outside",
        "result",
        "stalled",
        "thread",
        "ticket",
        "who",
    )

    def __init__(
        self, clock: FakeClock, who: str, key: Key, *, result: bool, outside: bool
    ) -> None:
        self.clock = clock
        self.who = who
        self.key = key
        self.result = result
        self.outside = outside
        self.thread = threading.get_ident()
        self.stalled: str | None = None
        self.lost: BaseException | None = None  # why its turn was taken away
        self.ticket = 0  # of the wait it is in; 0: it waits for nothing
        self.before: _FakeParty | None = None
        self.gate = threading.Lock()
        self.gate.acquire()

    def start(self) -> None:
        self.clock._enter(self)

    def line(self) -> Iterator[_FakeParty]:
        """Yield this party, then the one in whose turn it runs, and so on."""
        party: _FakeParty | None = self
        while party is not None:
            yield party
            party = party.before

    def stop(self) -> None:
        self.clock._leave(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is on a fake clock: who, in which thread, at which monotonic instant.

    `cpu_ns` is how long that thread has computed so far; None where the system does not tell.
    """

    party: _FakeParty
    thread: int
    at_ns: int
    cpu_ns: int | None

    @property
    def who(self) -> str:
        """The step, the job or the loop that may run."""
        return self.party.who


class _FakeSignal(Signal):
    __slots__ = ("clock", "parties", "raised")

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.raised = False
        self.parties: list[tuple[_FakeParty, int]] = []

    def set(self) -> None:
        with self.clock._lock:
            self.raised = True
            for party, ticket in self.parties:
                if party.ticket == ticket:
                    self.clock._wake(party)
            self.parties.clear()
            self.clock._turn()

    def clear(self) -> None:
        self.raised = False

    def is_set(self) -> bool:
        return self.raised


@final
class FakeClock(Clock):
    """A clock for tests: it stands still until all wait, then jumps to the next instant.

    `start` is the first instant (aware datetime or ISO text; naive means UTC). With `autojump`
    the time jumps by itself while somebody waits for a result; without it, only `advance` and
    `move_to` move it, and a job that waits in the thread that made the clock is
    `ClockStalledError`.

    >>> clock = FakeClock(start="2026-01-01")
    >>> clock.advance(1.5)
    >>> clock.now().isoformat()
    '2026-01-01T00:00:01.500000+00:00'
    """

    def __init__(self, start: datetime | str = "2026-01-01", *, autojump: bool = True) -> None:
        self.autojump = autojump
        self._lock = threading.Lock()
        self._rested = threading.Condition(self._lock)
        self._wall = instant_ns(start)  # what the wall clock showed at monotonic 0
        self._mono = 0
        self._current: _FakeParty | None = None
        self._ready: deque[_FakeParty] = deque()
        self._sleepers: list[tuple[int, Key, int, _FakeParty]] = []
        self._waiting: dict[int, tuple[_FakeParty, int | None]] = {}
        self._tickets = count(1)
        self._results = 0  # parties and outsiders that wait for a result: the time may jump
        self._moving = False  # somebody moves the time by hand
        self._refusal: BaseException | None = None  # why whoever moves it can't go on
        self._here = threading.local()
        self._owner = threading.get_ident()
        self._waits: list[tuple[str, int, int]] = []

    # --- reading it -----------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self._wall + self._mono

    def monotonic_ns(self) -> int:
        return self._mono

    def now(self) -> datetime:
        """Return the wall clock's time as an aware UTC datetime."""
        return from_ns(self.now_ns())

    def runs_here(self) -> bool:
        """Return whether the calling thread takes turns on this clock, as that of a step does."""
        return self._party_here() is not None

    @property
    def waits(self) -> tuple[Wait, ...]:
        """Every wait that was asked for, in order: sleeps of handlers and delays of retries."""
        return tuple(Wait(*asked) for asked in self._waits)

    # --- moving it ------------------------------------------------------------------------------

    def advance(self, seconds: float | timedelta) -> None:
        """Let `seconds` pass, and return when all that this woke has come to rest.

        Called inside a step it is a sleep of that step.
        """
        self._advance(to_ns(seconds))

    def _advance(self, length: int) -> None:
        if self._party_here() is not None:
            self.record_wait("advance", length)
            self.wait(None, self._mono + length, who="advance")
            return
        with self._lock:
            self._moving = True
            try:
                target = self._mono + length
                while True:
                    while self._current is not None or self._ready:
                        self._rested.wait()
                    if self._refusal is not None:
                        raise self._refusal
                    entry = self._first_sleeper()
                    if entry is None or entry[0] > target:
                        break
                    self._wake_first(entry)
                    self._turn()
                self._mono = target
            finally:
                self._moving = False
                self._refusal = None
                self._turn()

    def move_to(self, instant: datetime | str) -> None:
        """Let time pass until the wall clock shows `instant`; it must not be past."""
        length = instant_ns(instant) - self.now_ns()
        if length < 0:
            raise ValueError(
                f"{instant} is {-length / SECOND} s before {self.now().isoformat()}; time passes"
                " forwards only: jump() sets the wall clock back without passing time"
            )
        self._advance(length)

    def jump(self, seconds: float) -> None:
        """Set the wall clock by `seconds`, which may be negative; no time passes, no wait ends."""
        step = signed_ns(seconds)
        with self._lock:
            self._wall += step

    # --- whose turn it is -----------------------------------------------------------------------

    def turn(self) -> Turn | None:
        """Return whose turn it is; None where all wait or nobody is there. From any thread."""
        with self._lock:  # which keeps the thread alive
            party = self._current
            if party is None:
                return None
            return Turn(party, party.thread, self._mono, thread_cpu_ns(party.thread))

    def revoke(self, turn: Turn, error: BaseException) -> bool:
        """Take the turn from a thread that will not end it; return whether it still had it.

        Others go on. Whoever moves the time by hand gets `error`; that thread, when it comes back,
        `ClockStalledError` with the same text. Whoever calls this fails its job first.
        """
        with self._lock:
            if self._current is not turn.party:
                return False
            for party in turn.party.line():
                party.lost = error
            self._current = None
            if self._moving:
                self._refusal = error
            self._turn()
        return True

    # --- waiting on it --------------------------------------------------------------------------

    def signal(self) -> Signal:
        return _FakeSignal(self)

    def record_wait(self, who: str, length: int) -> None:
        self._waits.append((who, self._wall + self._mono, length))

    def party(self, who: str, key: Key = (), *, result: bool = False) -> Party:
        party = _FakeParty(self, who, key, result=result, outside=False)
        with self._lock:
            self._ready.append(party)
        return party

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        if signal is not None and not isinstance(signal, _FakeSignal):
            raise TypeError(f"a {type(signal).__name__} is another clock's signal")
        party = self._party_here()
        if party is not None and party.lost is not None:
            raise ClockStalledError(str(party.lost))
        ticket = 0
        try:
            with self._lock:
                if signal is not None and signal.raised:
                    return True
                if until is not None and until <= self._mono:
                    return False
                if party is None:
                    party = _FakeParty(self, who, _LAST_KEY, result=True, outside=True)
                    self._results += 1
                elif until is not None and self._wakes_first(until, key or party.key):
                    self._mono = until
                    return False
                else:
                    self._current = None
                ticket = next(self._tickets)
                self._queue(party, ticket, signal, until, key, who)
                self._turn()
            party.gate.acquire()
        except BaseException:
            if party is not None:
                self._interrupt(party, ticket)
            raise
        if party.stalled is not None:
            reason, party.stalled = party.stalled, None
            raise ClockStalledError(reason)
        return signal is not None and signal.raised

    # --- taking turns: the lock is held, except in _party_here, _enter and _leave -----------------

    def _party_here(self) -> _FakeParty | None:
        party: _FakeParty | None = getattr(self._here, "party", None)
        return party

    def _enter(self, party: _FakeParty) -> None:
        party.before = before = self._party_here()
        party.thread = threading.get_ident()
        self._here.party = party
        with self._lock:
            if party.result:
                self._results += 1
            if before is not None and self._current is before:
                # A job inside a handler goes on with the turn that its handler has.
                self._ready.remove(party)
                self._current = party
                return
            self._turn()
        try:
            party.gate.acquire()
        except BaseException:
            self._withdraw(party)
            raise

    def _withdraw(self, party: _FakeParty) -> None:
        # Ctrl-C while it waits for its first turn.
        with self._lock:
            if self._current is party:
                self._current = None
            else:
                self._ready.remove(party)
            if party.result:
                self._results -= 1
            self._here.party = party.before
            self._turn()

    def _leave(self, party: _FakeParty) -> None:
        with self._lock:
            if party.result:
                self._results -= 1
            self._here.party = before = party.before
            if party.lost is None:
                self._current = None if before is None or before.lost is not None else before
            self._turn()

    def _wakes_first(self, until: int, order: Key) -> bool:
        # Whoever would be woken at once need not lie down; one that sleeps already goes first.
        if self._ready or self._moving or not self._results or not self.autojump:
            return False
        first = self._first_sleeper()
        return first is None or (until, order) < first[:2]

    def _queue(
        self,
        party: _FakeParty,
        ticket: int,
        signal: _FakeSignal | None,
        until: int | None,
        key: Key,
        who: str,
    ) -> None:
        party.who = who or party.who
        self._waiting[ticket] = (party, until)
        party.ticket = ticket
        if until is not None:
            order = _LAST_KEY if party.outside else key or party.key
            heapq.heappush(self._sleepers, (until, order, ticket, party))
            if len(self._sleepers) > 2 * len(self._waiting) + _FEW:
                self._sleepers = [s for s in self._sleepers if s[3].ticket == s[2]]
                heapq.heapify(self._sleepers)
        if signal is not None:
            if signal.parties:
                signal.parties = [p for p in signal.parties if p[0].ticket == p[1]]
            signal.parties.append((party, ticket))

    def _interrupt(self, party: _FakeParty, ticket: int) -> None:
        # Ctrl-C in a wait, or just beside it: whoever takes turns cleans up in its own.
        with self._lock:
            if ticket and party.ticket == ticket:
                self._wake(party)
                self._turn()
            if party.outside:
                return
            if self._current is None and party not in self._ready:
                self._current = party
            if self._current is party:
                party.gate.acquire(blocking=False)
                return
        party.gate.acquire()

    def _wake(self, party: _FakeParty) -> None:
        del self._waiting[party.ticket]
        party.ticket = 0
        if party.outside:
            self._results -= 1
            party.gate.release()
        else:
            self._ready.append(party)

    def _turn(self) -> None:
        while self._current is None:
            if self._ready:
                self._current = self._ready.popleft()
                self._current.gate.release()
                return
            if self._moving or not self._results:
                self._rested.notify_all()
                return
            entry = self._first_sleeper() if self.autojump else None
            if entry is None:
                self._stall()
                return
            self._wake_first(entry)

    def _first_sleeper(self) -> tuple[int, Key, int, _FakeParty] | None:
        sleepers = self._sleepers
        while sleepers and sleepers[0][3].ticket != sleepers[0][2]:
            heapq.heappop(sleepers)
        return sleepers[0] if sleepers else None

    def _wake_first(self, entry: tuple[int, Key, int, _FakeParty]) -> None:
        heapq.heappop(self._sleepers)
        self._mono = entry[0]
        self._wake(entry[3])

    def _stall(self) -> None:
        # With a stopped clock another thread may still move it, unless the one that made the
        # clock is among those that wait.
        for party, _ in self._waiting.values():
            if party.result and (self.autojump or party.thread == self._owner):
                lines = [
                    f"{p.who} waits "
                    + ("for a signal" if t is None else f"for {(t - self._mono) / SECOND:g} s more")
                    for p, t in self._waiting.values()
                ]
                reason = (
                    f"nobody will move the clock on from {self.now().isoformat()}: "
                    + "; ".join(lines)
                    + ". Use FakeClock(autojump=True), or call advance() from another thread"
                )
                # What runs within a job that is given up must not wait for ever either.
                for other in self._within(party):
                    other.stalled = reason
                    self._wake(other)
                self._turn()
                return

    def _within(self, party: _FakeParty) -> list[_FakeParty]:
        """Return a waiting party, the steps of its job, the jobs in these, and so on."""
        found = [party]
        jobs = {party.key[:1]}
        rest = [p for p, _ in self._waiting.values() if p is not party and not p.outside]
        while inner := [p for p in rest if any(line.key[:1] in jobs for line in p.line())]:
            found += inner
            jobs.update(p.key[:1] for p in inner)
            rest = [p for p in rest if p not in inner]
        return found
