"""`Driver`: the interface of objects that run steps.

Invariants:
- A driver knows nothing of retries, commits or order; it takes steps and hands back outcomes.
- `start` never runs user code in the caller's thread; `next` may. So a loop holds its lock while
  it starts steps, and releases it for `next`.
- With nothing to run, `next` waits for the instant that the loop names, or a poke.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from routilux.graph.context import StepHost

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Mapping

    from routilux.clocks.clock import Clock, Key
    from routilux.graph.messages import RecordedEffect, StepInput, StepOutcome, Task
    from routilux.graph.plan import Plan


class Driven(StepHost, Protocol):
    """A running job as seen by a driver."""

    plan: Plan
    ordinal: int
    context: contextvars.Context

    def run(self, step: StepInput) -> StepOutcome:
        """Run one attempt in this thread, and return the outcome."""

    def start_async(
        self, step: StepInput, report: Callable[[StepOutcome | BaseException], None]
    ) -> None:
        """Run one attempt on an event loop, and `report` the outcome in the loop's thread."""

    def recorded(self, step: StepInput) -> Mapping[str, RecordedEffect]:
        """Return the effects that are recorded for the task of a step, by name."""

    def record_first(self, step: StepInput, name: str, effect: RecordedEffect) -> RecordedEffect:
        """Record an effect unless another run of the step has done so; return the record."""


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
    """Runs steps for a loop."""

    @property
    def room(self) -> bool:
        """Whether the driver can take any step now."""

    @property
    def pauses(self) -> bool:
        """Whether a loop that has started many steps must call `next` before it starts more."""

    def takes(self, driven: Driven, task: Task) -> bool:
        """Return whether the driver can take a step of `task` though it has no room for any."""

    def give_up(self, step: StepInput) -> None:
        """Note that the engine waits no longer for a step, which may run on."""

    def withdraw(self, step: StepInput) -> None:
        """Keep a step of a cancelled job from running, if another process has not begun it."""

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
    """Runs the steps of one sequential job: in the loop's thread, or on an event loop."""

    __slots__ = ("_clock", "_ended", "_poked", "_taken", "room")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._poked = clock.signal()
        self._taken: tuple[Driven, StepInput] | None = None
        self._ended: deque[Ended] = deque()  # of steps that ran on an event loop
        self.room = True

    pauses = False

    def takes(self, driven: Driven, task: Task) -> bool:
        return False

    def start(self, driven: Driven, step: StepInput) -> None:
        if driven.plan.has_async and driven.plan.is_async(step.task):
            driven.start_async(step, partial(self._end, driven, step))
        else:
            self._taken = driven, step
        self.room = False

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        taken = self._taken
        if taken is None:
            return self._next_async(until, key, who)
        self._taken = None
        self.room = True
        driven, step = taken
        try:
            return driven, step, driven.run(step)
        except BaseException as error:
            return driven, step, error

    def _next_async(self, until: int | None, key: Key, who: str) -> Ended | None:
        if not self._ended:
            self._clock.wait(self._poked, until, key, who)
            self._poked.clear()
            if not self._ended:
                return None
        self.room = True
        return self._ended.popleft()

    def _end(self, driven: Driven, step: StepInput, outcome: StepOutcome | BaseException) -> None:
        self._ended.append((driven, step, outcome))
        self._poked.set()

    def others(self, than: Ended) -> list[Ended]:
        return []

    def poke(self) -> None:
        self._poked.set()

    def give_up(self, step: StepInput) -> None:
        """Make room for the next step: only one on an event loop can be given up."""
        self.room = True

    def withdraw(self, step: StepInput) -> None:
        """Do nothing: its steps run in this process."""

    def block(self, change: int) -> bool:
        """Do nothing: no other step waits for this thread."""
        return False
