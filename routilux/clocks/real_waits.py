"""`RealWait`: what an event loop waits for in real time while it waits on a fake clock.

Invariants:
- Virtual time does not move while real work of a loop is under way. To an instant that is D away it
  moves when D has passed in real time, or when the patience with the work is over.
- Real work that ends first wakes its loop before the time moves.
- Without an instant to move to, a loop that another thread or a file may wake has the patience of
  its clock, then it is stalled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable
from typing import Final

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND

real_ns: Final = SystemClock.monotonic_ns
PATIENCE_NS: Final = 5 * SECOND
_TICK_NS: Final = 5_000_000  # between two checks of work that is under way


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


class RealWait(ABC):
    """The real side of one wait of an event loop.

    The clock calls `poll` and `wake` with its lock held, from any thread.
    """

    def __init__(self) -> None:
        self.hold_ns = 0
        """For how long work that is under way may keep virtual time from moving."""
        self.stall_ns = 0
        """For how long the loop waits if no timer is set on the clock."""
        self.looks_ns = 0
        """The time between two looks at threads that the loop has called; 0 if there are none."""
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
            return min(left, _TICK_NS) / SECOND
        return self.looks_ns / SECOND if self.looks_ns else None
