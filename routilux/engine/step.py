"""Runs one attempt of a task: `StepInput` in, `StepOutcome` out.

Invariants:
- What a handler raises becomes an outcome, unless it is an interrupt, which propagates.
- Every attempt gets its own copy of a payload that is not flat.
- When a step has returned, its context is closed: a thread that the handler left adds nothing.
- No frame keeps an exception, since only the collector would free such a cycle; but a job keeps
  the exception that failed it.
"""

from __future__ import annotations

import inspect
import logging
import os
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

from routilux.clocks.durations import SECOND
from routilux.codec.copying import copy_value
from routilux.errors import (
    ClockStalledError,
    FlowDefinitionError,
    StepTimeoutError,
    short_repr,
)
from routilux.graph.context import Context, active
from routilux.graph.gathered import Gathered
from routilux.graph.messages import ErrorInfo, StepInput, StepOutcome, traceback_of
from routilux.retry.error_handler import ErrorHandler, RetryAfter
from routilux.retry.raised import is_cancellation, is_failure, leaves_of, requested_delay_ns

if TYPE_CHECKING:
    from routilux.graph.context import StepHost
    from routilux.graph.gathered import Payloads
    from routilux.graph.routine import Routine, Slot

_log = logging.getLogger("routilux")
CLEANUP: Final = SECOND
"""How long a cancelled async handler may take for its cleanup, in nanoseconds."""


def run_step(
    step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, host: StepHost
) -> StepOutcome:
    """Call a slot's handler for one attempt, and return the outcome."""
    context = Context(step, routine, host)
    token = active.set(context)
    try:
        task = step.task
        arguments: dict[str, Any] = task.payload
        if not (task.flat and slot.binding.names.issuperset(arguments)):
            arguments = _arguments(step, slot)
        if step.timeout_ns is not None:
            host.opened(context)
        result = slot.handler(**arguments)
        if result is not None:
            if inspect.iscoroutine(result):  # of a handler that is not itself async
                context.on_loop = True
                result = host.run_coroutine(step, result)
            _check_result(result, slot)
        if step.timeout_ns is None and not context.touched:
            return StepOutcome(step.number, context.outbox)
        return _success(step, routine, context, host)
    except BaseException as error:
        outcome = _failure(step, handler, context, host, error)
        if outcome is None:
            raise
        return outcome
    finally:
        active.reset(token)
        context.close()


async def run_async_step(
    step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, host: StepHost
) -> StepOutcome:
    """Await a slot's handler for one attempt, and return the outcome; the twin of `run_step`."""
    context = Context(step, routine, host)
    context.on_loop = True
    active.set(context)  # ends with the task's own copy of the context variables
    try:
        task = step.task
        arguments: dict[str, Any] = task.payload
        if not (task.flat and slot.binding.names.issuperset(arguments)):
            arguments = _arguments(step, slot)
        host.opened(context)
        result = slot.handler(**arguments)
        if type(result) is CoroutineType or inspect.isawaitable(result):
            result = await result
        if result is not None:
            _check_result(result, slot)
        if step.timeout_ns is None and not context.touched:
            return StepOutcome(step.number, context.outbox)
        return _success(step, routine, context, host)
    except BaseException as error:
        outcome = _failure(step, handler, context, host, error)
        if outcome is None:
            raise
        return outcome
    finally:
        context.close()


def _arguments(step: StepInput, slot: Slot) -> dict[str, Any]:
    task = step.task
    arguments: dict[str, Any] = task.payload
    if not slot.binding.names.issuperset(arguments):
        arguments = slot.binding.arguments(arguments)
    if not task.flat:
        if step.collected is None:
            arguments = {name: copy_value(value) for name, value in arguments.items()}
        else:
            [payloads] = task.payload.values()
            gathered = Gathered.of(cast("Payloads", copy_value(payloads)), step.collected)
            arguments = {slot.parameter: gathered}
    return arguments


def _success(step: StepInput, routine: Routine, context: Context, host: StepHost) -> StepOutcome:
    if step.timeout_ns is not None and _is_late(step, context, host):
        return timed_out(step, context.charged)
    if not context.touched:
        return StepOutcome(step.number, context.outbox)
    state, shared = context.writes(state_allowed=routine.max_concurrency == 1)
    return StepOutcome(step.number, context.outbox, state, shared, context.shared_reads())


def _failure(
    step: StepInput, handler: ErrorHandler, context: Context, host: StepHost, error: BaseException
) -> StepOutcome | None:
    """Return the outcome of an attempt that raised `error`; None if the error is an interrupt."""
    if isinstance(error, ClockStalledError):
        return None  # not the handler's failure: nothing moves the clock
    if not isinstance(error, Exception) and not is_failure(error):
        return None
    late = step.timeout_ns is not None and _is_late(step, context, host)
    outcome = timed_out(step, context.charged, error) if late else failure(step.number, error)
    kind = StepTimeoutError if late else type(error)
    if step.final or not handler.is_retryable(kind, outcome.leaf_types):
        info = cast("ErrorInfo", outcome.error)
        info.traceback = traceback_of(error, skip=1)
        if not late and handler.fails_jobs and error.__traceback__ is not None:
            # Without the frame of the engine. Only the collector frees the job then.
            info.exception = error.with_traceback(error.__traceback__.tb_next)
    if context.touched and not late:
        outcome.shared_reads = context.shared_reads()
    return outcome


def timed_out(
    step: StepInput, charged: str | None = None, raised: BaseException | None = None
) -> StepOutcome:
    """Return the outcome of a step that timed out.

    `charged` says where it waited in real time, `raised` is what its handler raised at last.
    """
    waited = ""
    if charged is not None:
        waited = f" of real time: it waited at {charged}"
    elif raised is not None and is_cancellation(type(raised)):
        waited = f": it waited at {_waited_at(raised)}"
    outcome = failure(
        step.number,
        StepTimeoutError(
            f"attempt {step.attempt} of {step.task.routine_id} took longer than its timeout of"
            f" {(step.timeout_ns or 0) / SECOND:g} s{waited}"
        ),
    )
    if raised is not None:
        cast("ErrorInfo", outcome.error).where = ErrorInfo.of(raised).where
    return outcome


def _waited_at(cancellation: BaseException) -> str:
    """Return the last line of the handler's own package in which a wait was cancelled."""
    place, own, trace = "an unknown line", "routilux", cancellation.__traceback__
    while trace is not None:
        package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if own == "routilux":
            own = package  # after the frames of the engine comes the handler
        if package == own:
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def failure(number: int, error: BaseException) -> StepOutcome:
    """Return the outcome of a step that failed with `error`."""
    outcome = StepOutcome(number, [], error=ErrorInfo.of(error), error_type=type(error))
    if isinstance(error, BaseExceptionGroup):
        leaves = list(leaves_of(error))
        outcome.leaf_types = tuple(dict.fromkeys(map(type, leaves)))
        outcome.retry_after_ns = requested_delay_ns(leaves)
        outcome.spends = any(not isinstance(x, RetryAfter) or x.spends for x in leaves)
    elif isinstance(error, RetryAfter):
        outcome.retry_after_ns, outcome.spends = error.delay_ns, error.spends
    return outcome


def _is_late(step: StepInput, context: Context, host: StepHost) -> bool:
    limit = step.timeout_ns or 0
    return context.charged is not None or host.now_ns() - step.started_ns >= limit


def _check_result(result: object, slot: Slot) -> None:
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise FlowDefinitionError(
            f"the handler of slot {slot.name!r} is a generator, so its code has not run; use emit"
            " instead of yield"
        )
    if result is not None:
        raise FlowDefinitionError(
            f"the handler of slot {slot.name!r} returned {short_repr(result)}, which no routine"
            " receives; use emit to send it, and return nothing"
        )


def log_given_up(step: StepInput) -> None:
    """Log that a cancelled async handler did not end."""
    _log.warning(
        "job %s: the handler of %s (task %s, attempt %d) was cancelled and did not end within"
        " %g s; it is given up, so let it end when it gets CancelledError",
        step.job_id,
        step.task.routine_id,
        step.task.task_id,
        step.attempt,
        CLEANUP / SECOND,
    )


def end_child(step: StepInput, outcome: object) -> None:
    """End a child process that a handler forked."""
    error = outcome if isinstance(outcome, BaseException) else getattr(outcome, "error", None)
    _log.error(
        "a process that %s forked returned from the handler (%s); let it end by os._exit()",
        step.task.routine_id,
        "without an error" if error is None else error,
    )
    os._exit(1)  # else the child's copy of this thread waits for steps for ever
