"""`FakeClock`: a clock for tests, with virtual time.

Invariants:
- A thread keeps its turn until it waits or ends; then the next ready thread gets the turn. So a
  program that waits only through the clock is deterministic, and its waits overlap in virtual time.
- Time moves only when no thread can run: to the earliest instant that a thread waits for. It wakes
  one thread, the first by (instant, key). What that thread causes happens before the next wakes.
- Time moves by itself only while a thread waits for a result; between two calls of a test it stays.
- A change of who may run can be repeated. If an exception such as Ctrl-C interrupts the change, it
  is repeated, so no thread waits for a turn that was lost.
"""

from __future__ import annotations

import _thread
import heapq
import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Final, final

from routilux.clocks.clock import Clock, Key, Party, Signal, real_sleep, thread_busy_ns
from routilux.clocks.durations import SECOND, from_ns, instant_ns, signed_ns, to_ns
from routilux.clocks.forks import begin_in_children
from routilux.clocks.real_holds import RealHolds
from routilux.clocks.real_waits import PATIENCE_NS, TICK_NS, Addresses, WatchedThread
from routilux.clocks.turns import ClockParty, FakeSignal, Turn
from routilux.errors import ClockStalledError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from types import FrameType

    from routilux.clocks.real_waits import RealWait

__all__ = ["FakeClock", "Wait"]

_LAST_KEY: Final = (float("inf"),)
_FEW: Final = 64  # ended waits that the heap may hold before they are removed


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait that a step or a job requested from a fake clock; see `FakeClock.waits`.

    >>> Wait("charge", 0, 500_000_000).length
    datetime.timedelta(microseconds=500000)
    """

    who: str
    """The step or the job that asked for the wait."""
    at_ns: int
    """When it asked, in UTC nanoseconds."""
    length_ns: int
    """For how long, in nanoseconds."""

    @property
    def length(self) -> timedelta:
        """The requested length, rounded down to microseconds."""
        return timedelta(microseconds=self.length_ns // 1000)


@final
class FakeClock(Clock):
    """A clock for tests, with virtual time.

    `start` is the first instant (aware datetime or ISO text; naive means UTC). With `autojump`
    the time jumps to the end of the first wait when all threads wait, one of them for a result.
    Without it only `advance` and `move_to` move the time, and a job that waits in the thread that
    made the clock raises `ClockStalledError`.

    >>> clock = FakeClock(start="2026-01-01")
    >>> clock.advance(1.5)
    >>> clock.now().isoformat()
    '2026-01-01T00:00:01.500000+00:00'
    """

    def __init__(self, start: datetime | str = "2026-01-01", *, autojump: bool = True) -> None:
        self.autojump: bool = autojump
        """Whether the time jumps when all threads wait, one of them for a result."""
        self._wall = instant_ns(start)  # what the wall clock shows at monotonic instant 0
        self._now = 0
        self._waits: list[tuple[str, int, int]] = []
        self._movers: dict[int, threading.Lock] = {}  # of tests that move the time by hand
        self._current: ClockParty | None = None
        self._ready: deque[ClockParty] = deque()
        self._sleepers: list[tuple[int, Key, int, ClockParty]] = []
        self._waiting: dict[int, tuple[ClockParty, int | None]] = {}
        self._tickets = count(1)
        self.patience_ns = PATIENCE_NS
        """For how long virtual time waits for real I/O, threads and processes; nanoseconds."""
        self._real = RealHolds()
        self.on_sleep: Callable[[float, FrameType | None], bool] | None = None
        """Called for each `asyncio.sleep` with its seconds and the frame of its caller.

        Returns whether the sleep passes real time; an exception refuses it. None: virtual time.
        """
        self.addresses = Addresses()
        """The addresses of the sockets in its event loops; for these loops."""
        self._loops = count()  # each event loop has a number, which orders its wakes
        self._results: set[ClockParty] = set()  # wait for a result, so time may move by itself
        self._turns = 0  # that were given
        self._ticks = False  # a thread looks whether the time may move
        self.on_lost_thread: Callable[[WatchedThread], None] | None = None
        """Called when a thread wakes an event loop after time has moved without the thread."""
        self._refusal: BaseException | None = None  # why it can't move the time any further
        self._local = threading.local()
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        begin_in_children(self._begin_process)

    def _begin_process(self) -> None:
        """Forget all threads except the calling thread."""
        self._lock = threading.Lock()
        self._ready.clear()
        self._waiting.clear()
        self._sleepers.clear()
        self._movers.clear()
        self._real.clear()
        self._ticks = False
        self._current = here = self._here()
        self._results = set() if here is None else {here}
        self.autojump = True  # no other thread can move the time

    def now_ns(self) -> int:
        return self._wall + self._now

    def monotonic_ns(self) -> int:
        return self._now

    def now(self) -> datetime:
        """Return the wall clock's time as an aware UTC datetime."""
        return from_ns(self.now_ns())

    @property
    def waits(self) -> tuple[Wait, ...]:
        """All waits that steps and jobs requested, in order."""
        return tuple(Wait(*asked) for asked in self._waits)

    def record_wait(self, who: str, length: int) -> None:
        self._waits.append((who, self.now_ns(), length))

    # --- a test moves it ------------------------------------------------------------------------

    def advance(self, seconds: float | timedelta) -> None:
        """Move time forward by `seconds`.

        Returns when each step that wakes has ended or waits again. Inside a step, this is a sleep.
        """
        self._advance(to_ns(seconds))

    def move_to(self, instant: datetime | str) -> None:
        """Move time forward until the wall clock shows `instant`."""
        length = instant_ns(instant) - self.now_ns()
        if length < 0:
            raise ValueError(
                f"move_to() can't move time back: {instant} is {-length / SECOND} s before"
                f" {self.now().isoformat()}; call jump() to set the wall clock back"
            )
        self._advance(length)

    def jump(self, seconds: float) -> None:
        """Shift only the wall clock by positive or negative `seconds`."""
        step = signed_ns(seconds)
        with self._lock:
            self._wall += step

    # --- threads take turns on it -----------------------------------------------------------------

    def runs_here(self) -> bool:
        """Return whether this clock schedules the calling thread."""
        return self._here() is not None

    def party(
        self, who: str, key: Key = (), *, result: bool = False, blocks: bool = False
    ) -> Party:
        party = ClockParty(self, who, key, result, blocks=blocks)
        if not result:  # such a party is that of the calling thread, which starts it at once
            try:
                with self._lock:
                    self._ready.append(party)
            except BaseException:
                self._cancel(party)
                raise
        return party

    def signal(self) -> Signal:
        return FakeSignal(self)

    def new_event_loop(self) -> AbstractEventLoop:
        """Return a new event loop of asyncio, whose timers pass this clock's virtual time.

        While it runs in a thread, time jumps as it does for a job: when nothing can run.

        >>> import asyncio
        >>> clock = FakeClock()
        >>> with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
        ...     runner.run(asyncio.sleep(3600))
        >>> clock.now().isoformat()
        '2026-01-01T01:00:00+00:00'
        """
        from routilux.clocks.virtual_loop import VirtualLoop  # imports asyncio, which is slow

        return VirtualLoop(self, next(self._loops))

    def serves(self, event_loop: AbstractEventLoop) -> bool:
        """Return whether `new_event_loop` of this clock made an event loop."""
        return getattr(event_loop, "clock", None) is self

    @property
    def has_real_threads(self) -> bool:
        """Whether threads run without a turn, and time may have to wait for them."""
        return bool(self._real.free or self._real.watched)

    def watch(self, thread: threading.Thread, place: str) -> None:
        """Let time wait for a thread that was started at `place` and takes no turns."""
        if thread.ident is not None:
            with self._lock:
                self._real.watched[thread.ident] = WatchedThread(thread, place, self._now)

    def check_thread(self) -> None:
        """Report the calling thread if time has moved without it."""
        watched = self._real.watched.get(threading.get_ident())
        if watched is not None and watched.lost and self.on_lost_thread is not None:
            self.on_lost_thread(watched)

    def yield_turn(self) -> None:
        """Let all other ready threads run before the calling thread continues."""
        party = self._here()
        if party is None or not self._ready:
            return
        try:
            with self._lock:
                if self._current is not party or not self._ready:
                    return
                self._current = None
                party.opened = False
                self._ready.append(party)
                self._pass_turn()
            party.gate.acquire()
        except BaseException:
            self._interrupt(party)
            raise

    def _here(self) -> ClockParty | None:
        """Return the calling thread's party; None if there is none."""
        party: ClockParty | None = getattr(self._local, "party", None)
        return party

    def _advance(self, length: int) -> None:
        if self.runs_here():
            self.record_wait("advance", length)
            self.wait(None, self._now + length, who="advance")
            return
        mover, gate = threading.get_ident(), threading.Lock()
        target = self._now + length
        try:
            try:
                while not self._moved(mover, gate, target):
                    gate.acquire()
            finally:
                self._stop_moving(mover)
        except BaseException:
            self._stop_moving(mover)
            raise

    def _moved(self, mover: int, gate: threading.Lock, target: int) -> bool:
        """Move the time forward; return whether `target` is reached."""
        with self._lock:
            self._movers[mover] = gate
            while self._current is None and not self._ready:
                if self._refusal is not None:
                    raise self._refusal
                entry = self._first_sleeper()
                if self._is_held(target if entry is None else min(entry[0], target)):
                    self._pass_turn()
                    break
                if entry is None or entry[0] > target:
                    self._now = target
                    return True
                self._wake_first(entry)
                self._pass_turn()
            gate.acquire(blocking=False)
            return False

    def _stop_moving(self, mover: int) -> None:
        with self._lock:
            self._movers.pop(mover, None)
            if not self._movers:
                self._refusal = None
            self._pass_turn()

    def turn(self) -> Turn | None:
        """Return the current turn; None if all threads wait."""
        with self._lock:  # which keeps the thread alive
            party = self._current
            if party is None:
                return None
            return Turn(party, party.thread, self._now, thread_busy_ns(party.thread))

    def revoke(self, turn: Turn, error: BaseException) -> bool:
        """Take the turn from a blocked thread.

        Returns False if `turn` has ended. Other threads run on. A test that moves the time by hand
        gets `error`, the returning thread `ClockStalledError`. The caller fails the job first.
        """
        with self._lock:
            if self._current is not turn.party:
                return False
            for party in turn.party.nesting():
                party.lost = error
            self._current = None
            if self._movers:
                self._refusal = error
            self._pass_turn()
        return True

    def _raise(self, signal: FakeSignal) -> None:
        """Set `signal`, and wake the waiting parties."""
        with self._lock:
            try:
                self._wake_all(signal)
            except BaseException:
                self._wake_all(signal)
                raise

    def wait(
        self,
        signal: Signal | None,
        until: int | None,
        key: Key = (),
        who: str = "",
        real: RealWait | None = None,
    ) -> bool:
        if signal is not None and not isinstance(signal, FakeSignal):
            raise TypeError("the signal belongs to another clock; use this clock's signal()")
        party = self._here()
        if party is not None and party.lost is not None:
            raise ClockStalledError(str(party.lost))
        ticket = next(self._tickets)
        try:
            with self._lock:
                if signal is not None and signal.raised:
                    return True
                if until is not None and until <= self._now:
                    return False
                if party is None:
                    party = ClockParty(self, who, _LAST_KEY, result=True, outside=True)
                    self._results.add(party)
                elif (
                    until is not None
                    and real is None
                    and self._wakes_first(until, key or party.key)
                ):
                    self._now = until
                    return False
                else:
                    if self._current is party:
                        self._current = None
                    party.opened = False  # no exception can come between the two
                    self._real.free.pop(party, None)
                party.who = who or party.who
                party.ticket = ticket
                self._waiting[ticket] = (party, until)
                if real is not None:
                    party.real = real
                    real.begin(self._now)
                    if party not in self._real.loops:
                        self._real.loops.append(party)
                if until is not None:
                    self._add_sleeper(until, (not party.outside and key) or party.key, party)
                if signal is not None:
                    signal.parties = [p for p in signal.parties if p[0].ticket == p[1]]
                    signal.parties.append((party, ticket))
                self._pass_turn()
            if real is not None:
                self._block(party, real)
            party.gate.acquire()
        except BaseException:
            if party is not None:
                self._interrupt(party)
            raise
        party.real = None
        if party.stalled is not None:
            reason, party.stalled = party.stalled, None
            raise ClockStalledError(reason)
        return signal is not None and signal.raised

    def _block(self, party: ClockParty, real: RealWait) -> None:
        """Wait in real time until the party has its turn."""
        while not party.opened:
            with self._lock:
                entry = self._first_sleeper()
                seconds = real.next_look(None if entry is None else entry[0])
            real.block(seconds)
            with self._lock:
                if party.ticket and real.poll():
                    self._wake(party)
                if real.has_threads and self._real.frees(self._current, self._turns, self._now):
                    # The others run while the thread that had the turn is blocked in real time.
                    self._current = None
                self._pass_turn()

    def _enter(self, party: ClockParty) -> None:
        """Bind the calling thread to `party`, and wait for the first turn."""
        with self._lock:
            party.entered = True
            party.before = before = self._here()
            party.thread = threading.get_ident()
            self._local.party = party
            if party.result:
                self._results.add(party)
            if before is not None and self._current is before:
                # A job inside a handler keeps the turn of that handler.
                if party in self._ready:
                    self._ready.remove(party)
                self._current = party
                party.opened = True
                return
            if self._current is not party and party not in self._ready:
                self._ready.append(party)
            self._pass_turn()
        party.gate.acquire()

    def _leave(self, party: ClockParty) -> None:
        """Unregister `party`, and give the turn to the next party."""
        with self._lock:
            self._results.discard(party)
            self._real.free.pop(party, None)
            if not party.entered:
                return
            before = party.before
            if self._here() is party:
                self._local.party = before
            if party in self._ready:
                self._ready.remove(party)
            if self._current is party:
                self._current = None if before is None or before.lost is not None else before
                if before is not None:
                    self._real.free.pop(before, None)
            self._pass_turn()

    def _cancel(self, party: ClockParty) -> None:
        """Forget a party whose thread may never start."""
        with self._lock:
            if party.entered:
                return
            if party in self._ready:
                self._ready.remove(party)
            if self._current is party:
                party.shut()
                self._current = None
            self._pass_turn()

    def _interrupt(self, party: ClockParty) -> None:
        # Ctrl-C in a wait or next to it: a party that takes turns cleans up in its own turn.
        with self._lock:
            if party.outside:
                self._waiting.pop(party.ticket, None)
                party.ticket = 0
                self._results.discard(party)
                self._pass_turn()
                return
            if party.ticket in self._waiting:
                self._wake(party)
            elif self._current is not party and party not in self._ready:
                self._real.free.pop(party, None)
                self._ready.append(party)
            self._pass_turn()
            if self._current is party:
                party.gate.acquire(blocking=False)
                return
        party.gate.acquire()

    # --- called with the lock held ----------------------------------------------------------------

    def _wakes_first(self, until: int, key: Key) -> bool:
        # A party that would wake at once need not wait; one that sleeps already wakes before it.
        if self._ready or self._movers or not self._results or not self.autojump:
            return False
        if self._real:
            return False
        first = self._first_sleeper()
        return first is None or (until, key) < first[:2]

    def _add_sleeper(self, until: int, key: Key, party: ClockParty) -> None:
        heapq.heappush(self._sleepers, (until, key, party.ticket, party))
        if len(self._sleepers) > 2 * len(self._waiting) + _FEW:
            self._sleepers = [s for s in self._sleepers if s[3].ticket == s[2]]
            heapq.heapify(self._sleepers)

    def _first_sleeper(self) -> tuple[int, Key, int, ClockParty] | None:
        sleepers = self._sleepers
        while sleepers and sleepers[0][3].ticket != sleepers[0][2]:
            heapq.heappop(sleepers)
        return sleepers[0] if sleepers else None

    def _wake_first(self, entry: tuple[int, Key, int, ClockParty]) -> None:
        self._now = entry[0]  # its entry stays: the ended wait makes it void
        self._wake(entry[3])

    def _wake_all(self, signal: FakeSignal) -> None:
        signal.raised = True
        for party, ticket in signal.parties:
            if party.ticket == ticket:
                self._wake(party)
        signal.parties.clear()
        self._pass_turn()

    def _wake(self, party: ClockParty) -> None:
        # No exception can come between these lines and the next call.
        del self._waiting[party.ticket]
        party.ticket = 0
        if party.outside:
            party.open()
            self._results.discard(party)
        else:
            self._ready.append(party)
        if party in self._real.loops:
            self._real.loops.remove(party)

    def _pass_turn(self) -> None:
        """Give the turn to the next party if no party runs."""
        while self._current is None:
            if self._ready:
                self._current = self._ready[0]
            elif self._movers or not self._results:
                for gate in self._movers.values():
                    if gate.locked():
                        gate.release()
                return
            else:
                entry = self._first_sleeper() if self.autojump else None
                if self._is_held(None if entry is None else entry[0]):
                    if self._ready:
                        continue
                    return
                if entry is None:
                    self._stall()
                    return
                self._wake_first(entry)
        if self._ready and self._ready[0] is self._current:
            self._ready.popleft()
            self._turns += 1
        self._current.open()

    def _is_held(self, target: int | None) -> bool:
        """Return whether real work keeps the time from moving to `target`.

        An event loop with a file that is ready is woken.
        """
        waiting = [party for party in self._real.loops if party.ticket]
        ready = [party for party in waiting if party.real is not None and party.real.poll()]
        for party in sorted(ready, key=attrgetter("key")):
            self._wake(party)
        if ready or any(party.real is not None and party.real.left_ns(target) for party in waiting):
            return True  # the thread of that loop looks again
        if not self._real.has_busy_thread(self._now, target, self.patience_ns):
            return False
        if not self._ticks:
            self._ticks = True
            _thread.start_new_thread(self._tick, ())
        return True

    def _tick(self) -> None:
        """Look again and again whether the time may move, in a thread that does only this."""
        while self._ticks:
            real_sleep(TICK_NS / SECOND)
            with self._lock:
                self._ticks = self._current is None and not self._ready
                self._pass_turn()
                self._ticks = self._ticks and self._current is None and self.has_real_threads

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
            + ("for a signal" if t is None else f"for {(t - self._now) / SECOND:g} s more")
            for p, t in self._waiting.values()
        )
        reason = (
            f"no thread will move the clock on from {from_ns(self._wall + self._now).isoformat()}:"
            f" {waits}. Use FakeClock(autojump=True), or call advance() from another thread"
        )
        # The steps inside a job that is given up must not wait for ever either.
        for inner in self._within(party):
            inner.stalled = reason
            self._wake(inner)
        self._pass_turn()

    def _within(self, party: ClockParty) -> list[ClockParty]:
        """Return all waiting parties of `party`'s job and its nested jobs."""
        found = [party]
        jobs = {party.key[:1]}
        rest = [p for p, _ in self._waiting.values() if p is not party and not p.outside]
        while inner := [p for p in rest if any(q.key[:1] in jobs for q in p.nesting())]:
            found += inner
            jobs.update(p.key[:1] for p in inner)
            rest = [p for p in rest if p not in inner]
        return found
