"""Runs one attempt of a task: `StepInput` in, `StepOutcome` out.

Invariants:
- An `Exception` of a handler becomes an outcome; any other exception propagates.
- Every attempt gets its own copy of a payload that is not flat.
- When a step has returned, its context is closed: a thread that the handler left adds nothing.
- No frame keeps an exception: only the collector would free such a cycle.
"""

from __future__ import annotations

import inspect
import pickle
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.codec.copying import copy_value
from routilux.errors import (
    ClockStalledError,
    FlowDefinitionError,
    StepTimeoutError,
    UnserializableError,
)
from routilux.graph.context import Context, active
from routilux.graph.messages import ErrorInfo, RecordedEffect, StepInput, StepOutcome, traceback_of
from routilux.retry.error_handler import ErrorHandler, RetryAfter

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from routilux.graph.context import StepHost
    from routilux.graph.routine import Routine, Slot

_NO_READS: Final[frozenset[str]] = frozenset()


def run_step(
    step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, host: StepHost
) -> StepOutcome:
    """Call a slot's handler for one attempt, and return the outcome."""
    context = Context(step, routine, host)
    token = active.set(context)
    try:
        task = step.task
        arguments = task.payload
        if not slot.binding.names.issuperset(arguments):
            arguments = slot.binding.arguments(arguments)
        if not task.flat:
            arguments = {name: copy_value(value) for name, value in arguments.items()}
        if step.timeout_ns is not None:
            host.opened(context)
        result = slot.handler(**arguments)
        if result is not None:
            _run_result(result, slot)
        if step.timeout_ns is not None and _is_late(step, host):
            return timed_out(step)
        if not context.touched:
            return StepOutcome(step.number, context.outbox)
        state, shared = context.writes(state_allowed=routine.max_concurrency == 1)
        return StepOutcome(step.number, context.outbox, state, shared, context.shared_reads())
    except ClockStalledError:
        raise  # not the handler's failure: nothing moves the clock
    except Exception as error:
        if step.timeout_ns is not None and _is_late(step, host):
            return timed_out(step)
        kind = type(error)
        info = ErrorInfo.of(error)
        if step.final or not handler.is_retryable(kind):
            info.traceback = traceback_of(error, skip=1)
        reads = context.shared_reads() if context.touched else _NO_READS
        delay = error.delay_ns if isinstance(error, RetryAfter) else None
        return StepOutcome(step.number, [], None, None, reads, info, kind, delay)
    finally:
        active.reset(token)
        context.close()


def timed_out(step: StepInput) -> StepOutcome:
    """Return the outcome of a step that timed out."""
    limit = (step.timeout_ns or 0) / SECOND
    error = StepTimeoutError(
        f"attempt {step.attempt} of {step.task.routine_id} took longer than its timeout of"
        f" {limit:g} s"
    )
    return failure(step.number, error)


def failure(number: int, error: Exception) -> StepOutcome:
    """Return the outcome of a step that failed with `error`."""
    return StepOutcome(number, [], error=ErrorInfo.of(error), error_type=type(error))


def _is_late(step: StepInput, host: StepHost) -> bool:
    return step.timeout_ns is not None and host.now_ns() - step.started_ns >= step.timeout_ns


def _run_result(result: object, slot: Slot) -> None:
    if inspect.iscoroutine(result):
        _run_coroutine(result, slot)
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise FlowDefinitionError(
            f"the handler of slot {slot.name!r} is a generator, so its code has not run; use emit"
            " instead of yield"
        )


def _run_coroutine(coroutine: Coroutine[object, object, object], slot: Slot) -> None:
    import asyncio  # 40 ms at import, and only async handlers need it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    coroutine.close()
    raise FlowDefinitionError(
        f"the handler of slot {slot.name!r} is async, but this thread already runs an event loop;"
        " use 'await flow.aexecute(...)' in this thread"
    )


class _RemoteHost:
    """The host of a step in a worker process.

    An effect is recorded only when the step ends; a crash of the process loses the effect.
    """

    __slots__ = ("_clock", "_offset", "effects")

    def __init__(self, step: StepInput) -> None:
        self._clock = SystemClock()
        self._offset = step.started_ns - self._clock.monotonic_ns()
        self.effects: dict[str, RecordedEffect] = {}

    cancelled = False  # unknown in this process

    def now_ns(self) -> int:
        return self._clock.monotonic_ns() + self._offset

    def sleep(self, step: StepInput, length: int) -> None:
        until = self.now_ns() + length
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns)
        self._clock.wait(None, until - self._offset)

    def check(self, step: StepInput) -> None:
        """Do nothing: the sender has already asked the store."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self.effects[name] = effect

    def opened(self, context: Context) -> None:
        """Do nothing: the engine can't close contexts in other processes."""


def run_remote(step: StepInput, routine: Routine, slot: str, handler: ErrorHandler) -> StepOutcome:
    """Run one step in a worker process."""
    host = _RemoteHost(step)
    outcome = run_step(step, routine, routine.slots[slot], handler, host)
    outcome.effects = host.effects or None
    return _portable(outcome)


def _portable(outcome: StepOutcome) -> StepOutcome:
    # A value that can't be pickled is the handler's fault, not the executor's: the attempt fails.
    if outcome.error_type is not None:
        outcome.error_type = next(filter(_travels, outcome.error_type.__mro__))
    try:
        pickle.dumps(outcome)
    except Exception as error:
        reason = f"the outcome can't be sent back from the executor's process: {error}"
        return failure(outcome.number, UnserializableError("$", reason))
    return outcome


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
