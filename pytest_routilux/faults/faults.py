"""Injected faults of handlers, clocks and stores.

Invariants:
- A fault names its routine as the user does. A fault that names no routine is refused before the
  run.
- A fault counts how often it struck. A fault that never struck is an error, never a pass.
- A fault is a value except for this count: it does the same in every run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from routilux import FlowDefinitionError, Slot, SystemClock
from routilux.clocks.durations import SECOND, signed_ns, to_ns
from routilux.errors import nearest
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from routilux import Clock, Commit, Context, Flow, Runtime, StepInput

NEVER_STRUCK: Final = (
    "{} was never injected, since the test made no such attempt or write; name one that happens"
)


class Fault:
    """Base class of the faults that a test injects; `FlowFaults` makes them.

    >>> from pytest_routilux import FlowFaults
    >>> FlowFaults().raises("charge", ConnectionError, attempts=[1, 2]).struck
    0
    """

    struck: int = 0
    """How often the fault struck."""
    may_miss: bool = False
    """Whether it need not strike, as a fault that a strategy has drawn."""
    used: bool = False
    """Whether a simulation has the fault."""

    def begin(self, writes: int) -> None:
        """Prepare for a run whose store already holds `writes` commits."""

    def check(self, flow: Flow) -> None:
        """Raise `FlowDefinitionError` if `flow` lacks this fault's routine."""

    def unfit(self, runtime: Runtime) -> str | None:
        """Return why this fault can't work on `runtime`, with a fix."""
        return None

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        """Return `slot` or a copy with a faulty handler."""
        return slot

    def before_write(self, commit: Commit) -> None:
        """Raise `OSError` to fail a write that the store does not keep."""

    def after_write(self, commit: Commit) -> None:
        """Raise `OSError` to fail a write that the store has kept."""


class OfRoutine(Fault):
    """A fault in attempts of one routine; `attempts=None` means all attempts."""

    def __init__(self, routine: str, attempts: Iterable[int] | None) -> None:
        self.routine = routine
        if attempts is not None and not isinstance(attempts, Iterable):
            raise FlowDefinitionError(
                f"a fault of {routine!r} got attempts={attempts!r}; give a list:"
                f" attempts=[{attempts!r}]"
            )
        self.attempts = None if attempts is None else frozenset(attempts)
        if self.attempts is not None and not (
            self.attempts and all(type(n) is int and n >= 1 for n in self.attempts)
        ):
            raise FlowDefinitionError(
                f"a fault of {routine!r} got attempts {sorted(map(repr, self.attempts))};"
                " give at least one number, and only whole numbers of 1 or more"
            )

    def check(self, flow: Flow) -> None:
        __tracebackhide__ = True
        if self.routine not in flow.routines:
            raise FlowDefinitionError(self.misnamed(f"flow {flow.flow_id!r}", list(flow.routines)))

    def misnamed(self, where: str, routines: Sequence[str]) -> str:
        """Return the error message for a fault of an unknown routine."""
        known = ", ".join(map(repr, routines)) or "none"
        hint = nearest(self.routine, routines)
        return f"{self!r} names no routine of {where}; known: {known}{hint}"

    def _hits(self, step: StepInput) -> bool:
        if step.task.routine_id != self.routine:
            return False
        if self.attempts is not None and step.attempt not in self.attempts:
            return False
        self.struck += 1
        return True

    def _when(self) -> str:
        return "" if self.attempts is None else f", attempts={sorted(self.attempts)}"


class Raises(OfRoutine):
    """A fault that raises an error instead of running a routine's handler, or after its end."""

    def __init__(
        self,
        routine: str,
        error: Exception | type[Exception],
        attempts: Iterable[int] | None = None,
        *,
        after: bool = False,
    ) -> None:
        super().__init__(routine, attempts)
        kind = error if isinstance(error, type) else type(error)
        if not issubclass(kind, Exception):
            raise FlowDefinitionError(
                f"raises({routine!r}, {error!r}): the error must be an Exception class or instance"
            )
        if isinstance(error, type):
            try:
                error()
            except TypeError as why:
                raise FlowDefinitionError(
                    f"raises({routine!r}, {kind.__name__}): {kind.__name__} can't be made without"
                    f" arguments ({why}); give an instance of the exception"
                ) from None
        self.error = error
        self.after = after

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        if not self._hits(step):
            return slot
        if not self.after:
            return replace(slot, handler=self._raise)

        def lost(**payload: object) -> object:
            result = slot.handler(**payload)
            if not inspect.isawaitable(result):
                self._raise()
            return lost_async(result)

        async def lost_async(result: Any) -> None:
            await result
            self._raise()

        return replace(slot, handler=lost)

    def _raise(self, **_: object) -> NoReturn:
        # The same instance each time, since its `args` may not be its constructor's arguments;
        # without the frames and causes that it has collected before.
        error = self.error
        if isinstance(error, type):
            raise error
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None)

    def __repr__(self) -> str:
        shown = self.error.__name__ if isinstance(self.error, type) else repr(self.error)
        return f"raises({self.routine!r}, {shown}{self._when()}{', after=True' * self.after})"


class Slow(OfRoutine):
    """A fault that delays a routine's handler by `seconds`."""

    def __init__(
        self, routine: str, seconds: float | timedelta, attempts: Iterable[int] | None = None
    ) -> None:
        super().__init__(routine, attempts)
        try:
            self.length = to_ns(seconds)
        except ValueError as why:
            raise FlowDefinitionError(f"slow({routine!r}, {seconds!r}): {why}") from None
        self._seconds = seconds

    def unfit(self, runtime: Runtime) -> str | None:
        if isinstance(runtime.clock, SystemClock):
            return "would sleep in real time; give the runtime a FakeClock, as flow_runtime has"
        return None

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        if not self._hits(step):
            return slot

        def late(**payload: object) -> object:
            self._context().sleep(self._seconds)
            return slot.handler(**payload)

        async def late_async(**payload: object) -> object:
            await self._context().asleep(self._seconds)
            result: Any = slot.handler(**payload)
            return await result if inspect.isawaitable(result) else result

        return replace(slot, handler=late_async if slot.is_async else late)

    def _context(self) -> Context:
        context = active.get()
        assert context is not None, "a handler runs"
        return context

    def __repr__(self) -> str:
        return f"slow({self.routine!r}, {self.length / SECOND:g}{self._when()})"


class ClockJump(Fault):
    """A fault that moves each host's wall clock at the first step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise FlowDefinitionError(f"clock_jump({seconds!r}): seconds must be a number")
        if not signed_ns(seconds):
            raise FlowDefinitionError("clock_jump(0) does nothing; give seconds other than 0")
        self._set: set[Clock] = set()

    def begin(self, writes: int) -> None:
        self._set.clear()

    def unfit(self, runtime: Runtime) -> str | None:
        clock = runtime.clock
        if hasattr(clock, "jump"):
            return None
        return f"can't set a {type(clock).__name__}; give the runtime a FakeClock"

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        if clock not in self._set:  # each host has its own
            self._set.add(clock)
            cast(Any, clock).jump(self.seconds)  # `unfit` refuses other clocks
            self.struck += 1
        return slot

    def __repr__(self) -> str:
        return f"clock_jump({self.seconds:g})"


class StoreFails(Fault):
    """A fault that makes write number `write` raise `OSError`.

    The writes of all hosts count, from 1. With `durable` the store keeps the commit, and only the
    acknowledgement fails.
    """

    def __init__(self, write: int, *, durable: bool = False) -> None:
        if type(write) is not int or write < 1:
            raise FlowDefinitionError(
                f"store_fails({write!r}): write must be a whole number of 1 or more"
            )
        self.write = write
        self.durable = durable
        self._writes = 0

    def begin(self, writes: int) -> None:
        self._writes = writes

    def unfit(self, runtime: Runtime) -> str | None:
        if runtime.store is None:
            return (
                "needs a store, and this runtime has none; use"
                " flow_faults.on(Runtime(clock=flow_clock, store=MemoryStore()))"
            )
        return None

    def before_write(self, commit: Commit) -> None:
        self._writes += 1
        if self._writes == self.write and not self.durable:
            self.struck += 1
            raise OSError(f"write {self.write} to the store failed (injected by store_fails)")

    def after_write(self, commit: Commit) -> None:
        if self._writes == self.write and self.durable:
            self.struck += 1
            raise OSError(
                f"write {self.write} to the store was kept, but failed (injected by store_fails)"
            )

    def __repr__(self) -> str:
        return f"store_fails({self.write}{', durable=True' * self.durable})"


def slot_with_faults(faults: Iterable[Fault], step: StepInput, slot: Slot, clock: Clock) -> Slot:
    """Apply `faults` to a step, and return the slot to run."""
    for fault in faults:
        slot = fault.affect(step, slot, clock)
    return slot


@contextmanager
def failing_write(faults: Sequence[Fault], commit: Commit) -> Iterator[None]:
    """Return a context manager in which `faults` can fail a write."""
    # A stack calls all of them, even if one raises: every fault counts every write.
    with ExitStack() as before:
        for fault in faults:
            before.callback(fault.before_write, commit)
    yield
    with ExitStack() as after:
        for fault in faults:
            after.callback(fault.after_write, commit)
