"""`Outage`: for how long a store that can't be used is borne, and how often it is tried meanwhile.

Laws:
- It is borne for a length of time that whoever uses the store sets, and no longer; the last try
  comes when that is over.
- Tries come at growing distances, so that a store that is just coming back is not run over.
- It is told when it begins and when it ends, however many tries there were.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from routilux.instants import SECOND, seconds_text

if TYPE_CHECKING:
    from routilux.clock import Clock

__all__ = ["Outage"]

_log = logging.getLogger("routilux")
_FIRST_WAIT: Final = SECOND // 20
_LONGEST_WAIT: Final = SECOND


class Outage:
    """What is known of one store that fails now and then; lengths are in nanoseconds."""

    def __init__(self, clock: Clock, patience_ns: int) -> None:
        self._clock = clock
        self._patience = patience_ns
        self._since: int | None = None
        self._next_wait = _FIRST_WAIT

    def bear(self, error: OSError) -> int:
        """Return the instant of the clock's monotonic time at which to try again.

        Raises the error where it has lasted for too long.
        """
        now = self._clock.monotonic_ns()
        if self._since is None:
            self._since, self._next_wait = now, _FIRST_WAIT
            length = seconds_text(self._patience, 1)
            _log.warning("the store can't be used, and is tried again for %s s: %s", length, error)
        until = self._since + self._patience
        if now >= until:
            raise error
        wait, self._next_wait = self._next_wait, min(2 * self._next_wait, _LONGEST_WAIT)
        return min(now + wait, until)

    def end(self) -> None:
        """Note that the store has done what it was asked for."""
        if self._since is not None:
            length = seconds_text(self._clock.monotonic_ns() - self._since, 1)
            _log.info("the store can be used again, after %s s", length)
            self._since = None
