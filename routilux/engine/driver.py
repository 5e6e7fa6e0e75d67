"""`Driver`: the interface of objects that run steps.

Invariants:
- A driver knows nothing of retries, commits or order; it takes steps and hands back outcomes.
- `start` never runs user code in the caller's thread; `next` may. So a loop holds its lock while
  it starts steps, and releases it for `next`.
- With nothing to run, `next` waits for the instant that the loop names, or a poke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from routilux.graph.context import StepHost

if TYPE_CHECKING:
    import contextvars

    from routilux.clocks.clock import Clock, Key
    from routilux.graph.messages import StepInput, StepOutcome
    from routilux.graph.plan import Plan


class Driven(StepHost, Protocol):
    """A running job as seen by a driver."""

    plan: Plan
    ordinal: int
    context: contextvars.Context

    def run(self, step: StepInput) -> StepOutcome:
        """Run one attempt in this thread, and return the outcome."""


class StepNotRunError(Exception):
    """Says why the host could not run a step: a broken executor, a refused submit."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


Ended = tuple[Any, "StepInput", "StepOutcome | BaseException"]
"""The job, the step and the outcome of a step that has ended.

An exception in place of an outcome broke off the step: `StepNotRunError` before it ran, a
`BrokenExecutor` while it ran in another process, a `BaseException` that its handler raised, or an
error of the engine.
"""


class Driver(Protocol):
    """Runs steps for a loop.

    `room` says whether the driver can take a step now.
    """

    @property
    def room(self) -> bool: ...

    def start(self, driven: Driven, step: StepInput) -> None:
        """Accept a step of the job `driven`."""

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Wait for the next ended step; None at `until` or `poke`."""

    def others(self, than: Ended) -> list[Ended]:
        """Return ended steps of other jobs, at most one per job."""

    def poke(self) -> None:
        """Make `next` return at once, from any thread."""

    def block(self, change: int) -> bool:
        """Note that a step begins (1) or ends (-1) to wait for another job.

        Such a step takes up no room. Returns whether there was none before. The caller holds the
        runtime's lock.
        """


class InlineDriver:
    """Runs the steps of one sequential job in the loop's thread."""

    __slots__ = ("_clock", "_poked", "_taken", "room")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._poked = clock.signal()
        self._taken: tuple[Driven, StepInput] | None = None
        self.room = True

    def start(self, driven: Driven, step: StepInput) -> None:
        self._taken = driven, step
        self.room = False

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        taken = self._taken
        if taken is None:
            self._clock.wait(self._poked, until, key, who)
            self._poked.clear()
            return None
        self._taken = None
        self.room = True
        driven, step = taken
        try:
            return driven, step, driven.run(step)
        except BaseException as error:
            return driven, step, error

    def others(self, than: Ended) -> list[Ended]:
        return []

    def poke(self) -> None:
        self._poked.set()

    def block(self, change: int) -> bool:
        """Do nothing: no other step waits for this thread."""
        return False
