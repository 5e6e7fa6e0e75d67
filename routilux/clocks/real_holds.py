"""`RealHolds`: the real work for which the time of a fake clock waits.

Invariants:
- Time waits for three kinds of work: of event loops that wait for a file or a thread, of threads
  that run without a turn since they are blocked, and of threads that take no turns at all.
- All methods are called with the lock of the clock held. They give no turn and wake no thread: the
  clock does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux.clocks.clock import thread_busy_ns
from routilux.clocks.real_waits import (
    BLOCKED_NS,
    COMPUTES,
    RealWork,
    WatchedThread,
    frames_of_threads,
    real_ns,
)

if TYPE_CHECKING:
    from routilux.clocks.turns import ClockParty


class RealHolds:
    """The event loops and the threads whose real work may keep virtual time from moving."""

    def __init__(self) -> None:
        self.loops: list[ClockParty] = []
        """The waiting event loops that real work may wake."""
        self.free: dict[ClockParty, RealWork] = {}
        """The threads that run without a turn."""
        self.watched: dict[int, WatchedThread] = {}
        """The threads that take no turns, by their number."""
        self._look = 0, 0, 0  # turn, real time and CPU time of the last look

    def __bool__(self) -> bool:
        return bool(self.loops or self.free or self.watched)

    def clear(self) -> None:
        """Forget all of them."""
        self.loops.clear()
        self.free.clear()
        self.watched.clear()

    def has_busy_thread(self, now_ns: int, target: int | None, patience_ns: int) -> bool:
        """Return whether a thread without a turn keeps time from moving to `target`."""
        if any(work.left_ns(now_ns, target, patience_ns) for work in self.free.values()):
            return True
        if not self.watched:
            return False
        frames = frames_of_threads()
        self.watched = {k: w for k, w in self.watched.items() if w.thread.is_alive()}
        left = [
            watched.left_ns(now_ns, target, patience_ns, frames.get(number))
            for number, watched in self.watched.items()
        ]
        return any(left)

    def frees(self, party: ClockParty | None, turn: int, now_ns: int) -> bool:
        """Return whether the thread that has this turn is blocked in real time, and loses it."""
        if party is None or not party.blocks or not party.entered:
            return False
        last_turn, since, before = self._look
        now, computed = real_ns(), thread_busy_ns(party.thread) or 0
        if turn != last_turn or computed - before > (now - since) * COMPUTES:
            self._look = turn, now, computed
            return False
        if now - since < BLOCKED_NS:
            return False
        self.free[party] = RealWork(now_ns)
        party.opened = False
        return True
