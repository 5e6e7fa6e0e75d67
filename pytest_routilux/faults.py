"""What goes wrong on purpose: handlers that raise or dawdle, clocks that jump, stores that fail.

Laws:
- A fault says what it hits in the user's names; one that names nothing is refused before the run.
- It counts how often it struck. One that never did is an error, never a pass.
- A fault is a value but for that count: struck anew, it does the same again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux import FlowDefinitionError, Slot
from routilux.instants import SECOND, to_ns

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from pytest_routilux.stepping import SimClock
    from routilux import Commit, Flow, StepInput

__all__ = ["ClockJump", "Fault", "FlowFaults", "Raises", "Slow", "StoreFails"]


class Fault:
    """One fault; `struck` counts how often it hit, `used` says whether a run was given it.

    This one does nothing.
    """

    struck: int = 0
    used: bool = False

    def begin(self, writes: int) -> None:
        """Hear that another run begins, whose store has so many commits already."""

    def check(self, flow: Flow) -> None:
        """Raise `FlowDefinitionError` where it names something that the flow does not have."""

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        """Return the slot whose handler runs for a step, after the time that the fault takes."""
        return slot

    def before_write(self, commit: Commit) -> None:
        """Raise where the store refuses a commit, which is not durable then."""

    def after_write(self, commit: Commit) -> None:
        """Raise where the store fails to acknowledge a commit, which is durable all the same."""


class _OfRoutine(Fault):
    def __init__(self, routine: str, attempts: Iterable[int] | None) -> None:
        self.routine = routine
        self.attempts = None if attempts is None else frozenset(attempts)
        wrong = [n for n in self.attempts or () if type(n) is not int or n < 1]
        if wrong or (attempts is not None and not self.attempts):
            raise FlowDefinitionError(
                f"a fault of {routine!r} hits attempts {sorted(map(repr, self.attempts or ()))};"
                " they are whole numbers from 1, at least one of them"
            )

    def check(self, flow: Flow) -> None:
        if self.routine not in flow.routines:
            raise FlowDefinitionError(
                f"{self!r} names no routine of flow {flow.flow_id!r}; it has"
                f" {', '.join(map(repr, flow.routines)) or 'none'}"
            )

    def _hits(self, step: StepInput) -> bool:
        if step.task.routine_id != self.routine:
            return False
        if self.attempts is not None and step.attempt not in self.attempts:
            return False
        self.struck += 1
        return True

    def _when(self) -> str:
        return "" if self.attempts is None else f", attempts={sorted(self.attempts)}"


class Raises(_OfRoutine):
    """Raises in place of the handler of a routine, in these attempts or in all."""

    def __init__(
        self,
        routine: str,
        error: Exception | type[Exception],
        attempts: Iterable[int] | None = None,
    ) -> None:
        super().__init__(routine, attempts)
        kind = error if isinstance(error, type) else type(error)
        if not issubclass(kind, Exception):
            raise FlowDefinitionError(
                f"raises({routine!r}, {error!r}): give an Exception, as a handler would raise it"
            )
        if isinstance(error, type):
            try:
                error()
            except TypeError as why:
                raise FlowDefinitionError(
                    f"raises({routine!r}, {kind.__name__}): it can't be made without arguments"
                    f" ({why}); give an instance"
                ) from None
        self.error = error

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        if not self._hits(step):
            return slot
        return Slot(slot.name, self._raise, slot.binding)

    def _raise(self, **_: object) -> None:
        # Not made anew: what its `args` hold need not be what it was made of. Without the frames
        # and the causes that it has collected before.
        error = self.error
        if isinstance(error, type):
            raise error
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None)

    def __repr__(self) -> str:
        shown = self.error.__name__ if isinstance(self.error, type) else repr(self.error)
        return f"raises({self.routine!r}, {shown}{self._when()})"


class Slow(_OfRoutine):
    """Lets the handler of a routine begin its work so many seconds late."""

    def __init__(
        self, routine: str, seconds: float | timedelta, attempts: Iterable[int] | None = None
    ) -> None:
        super().__init__(routine, attempts)
        self.length = to_ns(seconds)

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        if self._hits(step):
            clock.mono += self.length
        return slot

    def __repr__(self) -> str:
        return f"slow({self.routine!r}, {self.length / SECOND:g}{self._when()})"


class ClockJump(Fault):
    """Sets the wall clock by so many seconds, also back, when the first step of a host begins."""

    def __init__(self, seconds: float) -> None:
        self.jump = to_ns(seconds) if seconds >= 0 else -to_ns(-seconds)
        if not self.jump:
            raise FlowDefinitionError(
                "clock_jump(0) does nothing; give seconds, also negative ones"
            )
        self._clock: SimClock | None = None

    def begin(self, writes: int) -> None:
        self._clock = None

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        if clock is not self._clock:  # each host has its own
            self._clock = clock
            clock.wall += self.jump
            self.struck += 1
        return slot

    def __repr__(self) -> str:
        return f"clock_jump({self.jump / SECOND:g})"


class StoreFails(Fault):
    """Fails the store's n-th write, counted from 1 over all hosts, with an `OSError`.

    With `durable` the commit is kept all the same: the write was not acknowledged.
    """

    def __init__(self, write: int, *, durable: bool = False) -> None:
        if type(write) is not int or write < 1:
            raise FlowDefinitionError(f"store_fails({write!r}): writes are counted from 1")
        self.write = write
        self.durable = durable
        self._writes = 0

    def begin(self, writes: int) -> None:
        self._writes = writes

    def before_write(self, commit: Commit) -> None:
        self._writes += 1
        if self._writes == self.write and not self.durable:
            self.struck += 1
            raise OSError(f"write {self.write} of the store failed")

    def after_write(self, commit: Commit) -> None:
        if self._writes == self.write and self.durable:
            self.struck += 1
            raise OSError(f"write {self.write} of the store was not acknowledged")

    def __repr__(self) -> str:
        return f"store_fails({self.write}{', durable=True' * self.durable})"


class FlowFaults:
    """Makes faults, to be given to a simulation as `faults=[...]`; the fixture `flow_faults`.

    `attempts` are counted from 1, and are all where they are left out. Raises
    `FlowDefinitionError` for what can't be a fault.

        flow_sim.crash_everywhere(build, "orders", faults=[flow_faults.raises("charge", OSError)])
    """

    def __init__(self) -> None:
        self._made: list[Fault] = []

    def raises(
        self,
        routine: str,
        error: Exception | type[Exception],
        attempts: Iterable[int] | None = None,
    ) -> Fault:
        """Return a fault that raises an error in place of a routine's handler."""
        return self._make(Raises(routine, error, attempts))

    def slow(
        self, routine: str, seconds: float | timedelta, attempts: Iterable[int] | None = None
    ) -> Fault:
        """Return a fault that lets a routine's handler begin its work so much later."""
        return self._make(Slow(routine, seconds, attempts))

    def clock_jump(self, seconds: float) -> Fault:
        """Return a fault that sets the wall clock of each host, once its first step has begun."""
        return self._make(ClockJump(seconds))

    def store_fails(self, write: int, *, durable: bool = False) -> Fault:
        """Return a fault that fails a write of the store, counted from 1.

        With `durable` the commit is kept all the same, only its acknowledgement is lost.
        """
        return self._make(StoreFails(write, durable=durable))

    def _make(self, fault: Fault) -> Fault:
        self._made.append(fault)
        return fault

    @property
    def unused(self) -> list[Fault]:
        """The faults that no simulation was given."""
        return [fault for fault in self._made if not fault.used]
