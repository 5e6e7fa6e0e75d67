"""`RealWait`: what an event loop waits for in real time while it waits on a fake clock.

Invariants:
- Virtual time does not move while real work of a loop is under way. To an instant that is D away it
  moves when D has passed in real time, or when the patience with the work is over.
- Real work that ends first wakes its loop before the time moves.
- A thread without a turn, and a thread that the clock does not schedule, hold time in the same way.
- Without an instant to move to, a loop that another thread or a file may wake has the patience of
  its clock, then it is stalled.
"""

from __future__ import annotations

import gc
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND

if TYPE_CHECKING:
    import threading
    from types import FrameType

real_ns: Final = SystemClock.monotonic_ns
PATIENCE_NS: Final = 5 * SECOND
TICK_NS: Final = 5_000_000  # between two checks of work that is under way
SETTLE_NS: Final = 50_000_000
# A thread in one of these modules waits for another thread or for a client, ...
_IDLE: Final = frozenset(
    {"concurrent", "multiprocessing", "queue", "routilux", "selectors", "threading"}
)
# ... unless it begins or ends.
_AT_WORK: Final = frozenset({"_bootstrap", "_bootstrap_inner", "run"})
BLOCKED_NS: Final = 40_000_000
"""After how long a call in a thread that computes less than `COMPUTES` of the time is blocked."""
COMPUTES: Final = 1 / 20  # less than the share of a thread on a busy machine


Ends = tuple[int, Hashable, Hashable]
"""The kind of a socket, its own address and the remote one; None for any remote address."""


class Addresses:
    """The addresses of the sockets in the loops of one clock."""

    def __init__(self) -> None:
        self._connected: Counter[Hashable] = Counter()  # (local, remote)
        self._open: Counter[Hashable] = Counter()  # (local, None): for any remote address

    def add(self, ends: Ends, change: int) -> None:
        """Add the ends of a socket, or remove them with `change` -1."""
        kind, local, remote = ends
        if remote is None:
            self._open[kind, local] += change
        else:
            self._connected[kind, local, remote] += change

    def has_other_end(self, ends: Ends) -> bool:
        """Return whether a loop of the clock serves the other end of a connection."""
        kind, local, remote = ends
        if self._connected[kind, remote, local] > 0 or self._open[kind, remote] > 0:
            return True
        return isinstance(remote, tuple) and self._open[kind, ("", remote[1])] > 0


class RealWork:
    """Work of a thread that takes no turns.

    Virtual time waits for it for the patience of the clock, and then for `SETTLE_NS` after each
    move, since the thread may have waited for what then happened.
    """

    def __init__(self, now_ns: int) -> None:
        self._since_ns = self._moved_ns = real_ns()
        self._virtual_ns = self._now_ns = now_ns

    def left_ns(self, now_ns: int, target: int | None, patience_ns: int) -> int:
        """Return for how long the work keeps time from moving from `now_ns` to `target`."""
        real = real_ns()
        if now_ns != self._now_ns:
            self._now_ns, self._moved_ns = now_ns, real
        most, settles = patience_ns, SETTLE_NS
        if target is not None:
            most, settles = min(most, target - self._virtual_ns), min(settles, target - now_ns)
        return max(0, self._since_ns + most - real, self._moved_ns + settles - real)

    def is_late(self, target: int | None, patience_ns: int) -> bool:
        """Return whether time moves to `target` only because the patience is over."""
        return target is None or target - self._virtual_ns > patience_ns


class WatchedThread:
    """A thread that the clock does not schedule, started by a thread that it schedules.

    Virtual time waits for it as for real I/O, while it does anything but wait for other threads.
    """

    def __init__(self, thread: threading.Thread, place: str, now_ns: int) -> None:
        self.thread = thread
        self.place = place
        """The line that started it."""
        self.lost = False
        """Whether time has moved without it."""
        self._work = RealWork(now_ns)

    def left_ns(
        self, now_ns: int, target: int | None, patience_ns: int, frame: FrameType | None
    ) -> int:
        """Return for how long the thread, which is in `frame`, keeps time from moving."""
        if self.lost or frame is None:
            return 0
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module in _IDLE and frame.f_code.co_name not in _AT_WORK:
            self._work = RealWork(now_ns)
            return 0
        left = self._work.left_ns(now_ns, target, patience_ns)
        self.lost = not left and self._work.is_late(target, patience_ns)
        return left


class RealWait(ABC):
    """The real side of one wait of an event loop.

    The clock calls `poll` and `wake` with its lock held, from any thread.
    """

    def __init__(self) -> None:
        self.hold_ns = 0
        """For how long work that is under way may keep virtual time from moving."""
        self.stall_ns = 0
        """For how long the loop waits if no timer is set on the clock."""
        self.has_threads = False
        """Whether the loop must check threads that may block in real time."""
        self._since_ns = 0
        self._virtual_ns = 0

    @abstractmethod
    def poll(self) -> bool:
        """Return whether a file is ready."""

    @abstractmethod
    def block(self, seconds: float | None) -> None:
        """Block the loop's thread for `seconds`, or until a file is ready or `wake` is called."""

    @abstractmethod
    def wake(self) -> None:
        """End the call of `block`, or the next one."""

    def begin(self, now_ns: int) -> None:
        """Begin a wait at the virtual instant `now_ns`."""
        self._since_ns, self._virtual_ns = real_ns(), now_ns

    def left_ns(self, target: int | None) -> int:
        """Return for how long time may not move to `target`, 0 if it may now.

        Without a target this is the time until the loop is stalled.
        """
        most = max(self.hold_ns, self.stall_ns)
        if target is not None:
            most = min(self.hold_ns, target - self._virtual_ns)
        return max(0, self._since_ns + most - real_ns()) if most > 0 else 0

    def next_look(self, target: int | None) -> float | None:
        """Return the seconds until the loop's thread must look at its clock again."""
        left = self.left_ns(target)
        if left:
            return min(left, TICK_NS) / SECOND
        return TICK_NS / SECOND if self.has_threads else None


def frames_of_threads() -> dict[int, FrameType]:
    """Return the frame of each thread by its number."""
    # Before 3.12 a garbage collection in this call can wait for ever for a lock that it holds.
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()
