"""Drivers run the steps of jobs: the protocol, and the driver that uses the loop's own thread.

Invariants:
- A driver knows nothing of retries, commits or order; it takes steps and hands back outcomes.
- `start` never runs user code in the caller's thread; `next` may. So a loop holds its lock while
  it starts steps, and releases it for `next`.
- With nothing to run, `next` waits for the instant that the loop names, or a poke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from routilux.graph.context import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.clocks.clock import Clock, Key
    from routilux.graph.messages import StepInput, StepOutcome
    from routilux.graph.plan import Plan
    from routilux.graph.routine import Routine, Slot
    from routilux.retry.error_handler import ErrorHandler

__all__ = ["Driven", "Driver", "Ended", "InlineDriver", "RunStep"]


class Driven(Host, Protocol):
    """A job as a driver sees it: the host of its steps, its plan, its place among the jobs.

    `run_step` runs each attempt; what it raises breaks the job off.
    """

    plan: Plan
    ordinal: int
    run_step: RunStep


RunStep: TypeAlias = "Callable[[StepInput, Routine, Slot, ErrorHandler, Driven], StepOutcome]"
"""Runs one attempt: `run_step`, or a function that a runtime calls in its place."""

Ended = tuple[Any, "StepInput", "StepOutcome | BaseException"]
"""A step that is over, as the loop started it, and its outcome.

A `BaseException` in place of an outcome is not the handler's failure.
"""


class Driver(Protocol):
    """Takes steps and hands back one outcome at a time.

    `room` says whether it can take a step now; only `start` and `next` change it.
    """

    room: bool

    def start(self, driven: Driven, step: StepInput) -> None:
        """Take a step."""

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return a step that is over; None if the instant `until` (monotonic) or a poke came."""

    def others(self, than: Ended) -> list[Ended]:
        """Return steps of other jobs that are over too, one of each, without waiting for any."""

    def poke(self) -> None:
        """Make `next` return at once; from any thread."""


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
