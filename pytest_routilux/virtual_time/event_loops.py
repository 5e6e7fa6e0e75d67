"""Makes the event loops of a test follow its fake clock.

Invariants:
- In the block each new event loop of asyncio is one of the clock, also those of `asyncio.run`,
  of a `Runner` without a factory and of `new_event_loop`. At the end everything is as before.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routilux import FakeClock


@contextmanager
def virtual_loops(clock: FakeClock) -> Iterator[None]:
    """In the `with` block, let new event loops pass the time of `clock`."""
    holders: tuple[Any, ...] = asyncio, asyncio.events
    real = [holder.new_event_loop for holder in holders]
    for holder in holders:
        holder.new_event_loop = clock.new_event_loop
    try:
        yield
    finally:
        for holder, function in zip(holders, real, strict=True):
            holder.new_event_loop = function
