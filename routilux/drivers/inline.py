"""Runs steps in the thread of the loop itself, one at a time.

Laws:
- `start` only takes the step; `next` runs it.
- With nothing to run, `next` waits for the instant that the loop names, or a poke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routilux.clock import Clock, Key
    from routilux.drivers import Driven, Ended
    from routilux.exchange import StepInput

__all__ = ["InlineDriver"]


class InlineDriver:
    """The driver of a sequential flow that is executed; it has room for one step at a time."""

    __slots__ = ("_clock", "_poked", "_taken", "room")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._poked = clock.signal()
        self._taken: tuple[Driven, StepInput] | None = None
        self.room = True

    def start(self, driven: Driven, step: StepInput) -> None:
        """Take a step, to be run by `next`."""
        self._taken = driven, step
        self.room = False

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Run the step that was taken; without one, wait."""
        taken = self._taken
        if taken is None:
            self._clock.wait(self._poked, until, key, who)
            self._poked.clear()
            return None
        self._taken = None
        self.room = True
        driven, step = taken
        task = step.task
        plan = driven.plan
        routine_id = task.routine_id
        routine = plan.routines[routine_id]
        slot = routine._slots[task.slot]
        handler = plan.handlers[routine_id]
        return driven, step, driven.run_step(step, routine, slot, handler, driven)

    def others(self, than: Ended) -> list[Ended]:
        """Return none: it runs one step at a time."""
        return []

    def poke(self) -> None:
        """Make `next` return at once; from any thread."""
        self._poked.set()
