"""`run_remote`: runs a step in a process of an executor.

Invariants:
- A call and its result are plain data that every pickle carries. What may fail to unpickle is
  opened here, where the error can be handled: it costs one attempt and never breaks the executor.
- A process with another version of routilux or of the flow refuses the step. So does a process that
  can't build the routine, or that `ctx` could not ask. This is trouble of the host, not of the job.
- An attempt fails by `UnserializableError` if its input or its outcome can't be sent.
- `ctx.once`, `ctx.key` and `ctx.cancelled` ask the process that runs the job. An effect is
  recorded there before the handler continues.
- The step's time is that of its job: when it was sent, and monotonic progress since it arrived. So
  a host with a wrong wall clock does no harm.
- An async handler runs on an event loop of its own, and is cancelled at its timeout.
"""

from __future__ import annotations

import pickle
import socket
import sys
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, cast

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.engine.remote.channel import ask
from routilux.engine.remote.errors import SentError, SentType, pickled, text_of
from routilux.engine.remote.rebuild import rebuilt
from routilux.engine.step import failure, run_step
from routilux.errors import LeaseLostError, NoActiveStepError, RoutiluxError, UnserializableError
from routilux.graph.messages import ErrorInfo, RecordedEffect
from routilux.persist.store import POLL
from routilux.persist.versions import PACKAGE
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from routilux.engine.remote.channel import Address, Message
    from routilux.engine.remote.rebuild import RoutineForm
    from routilux.graph.context import Context
    from routilux.graph.messages import StepInput, StepOutcome

Variables = tuple[tuple[tuple[tuple[str, str], ...], bytes], ...]
"""The context variables of a step: the modules and names of each, and its pickled value."""
Reply = tuple[str, Any, Any]
"""What a process returns: `outcome`, `raised` or `refused`, and the data of it."""

CURE: Final = "use plain data, or a class whose instances can be pickled and unpickled"
_ERRORS: Final[dict[str, type[RoutiluxError]]] = {
    kind.__name__: kind for kind in (NoActiveStepError, LeaseLostError, UnserializableError)
}
_JUDGED_THERE: Final = ErrorHandler()  # the process that runs the job knows the policy


class _RemoteHost:
    """The host of a step in a process of an executor."""

    __slots__ = ("_ask_at", "_cancelled", "_channel", "_clock", "_number", "_offset", "trouble")

    def __init__(self, step: StepInput, channel: Address) -> None:
        self._clock = SystemClock()
        self._offset = step.started_ns - self._clock.monotonic_ns()
        self._channel = channel
        self._number = step.number
        self._cancelled = False
        self._ask_at = 0
        self.trouble: str | None = None
        """Why this host can't run the step."""

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled or lost; asked once in a while, as of a store."""
        now = self._clock.monotonic_ns()
        if not self._cancelled and now >= self._ask_at:
            self._ask_at = now + int(POLL * SECOND)
            self._cancelled = bool(self._ask("cancelled")["cancelled"])
        return self._cancelled

    def now_ns(self) -> int:
        return self._clock.monotonic_ns() + self._offset

    def sleep(self, step: StepInput, length: int) -> None:
        until = self.now_ns() + length
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns)
        self._clock.wait(None, until - self._offset)

    async def asleep(self, step: StepInput, length: int) -> None:
        await sys.modules["asyncio"].sleep(length / SECOND)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        await sys.modules["asyncio"].to_thread(function, *args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        import asyncio  # 40 ms at import, and only async handlers need it

        async def limited() -> object:
            left = None
            if step.timeout_ns is not None:
                left = (step.started_ns + step.timeout_ns - self.now_ns()) / SECOND
            async with asyncio.timeout(left):
                return await coroutine

        return asyncio.run(limited())

    def check(self, step: StepInput) -> None:
        """Raise unless the step may record an effect; learn what another run of it recorded."""
        known = step.effects or {}
        new = self._ask("check", known=sorted(known))["effects"]
        if new:
            step.effects = known | {name: RecordedEffect(*data) for name, data in new.items()}

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        data = [effect.arguments, effect.result]
        reply = self._ask("record", name=name, effect=data)
        if "effect" in reply:
            effect.arguments, effect.result = reply["effect"]

    def _ask(self, what: str, **details: object) -> Message:
        request = {"step": self._number, "ask": what, **details}
        try:
            reply = ask(self._channel, request)
        except UnserializableError:
            raise
        except Exception as error:
            host, port, _ = self._channel
            raise self._refusal(
                f"ctx.{_ASKERS[what]} on {socket.gethostname()} must ask the process that runs the"
                f" job, and can't reach it at {host}:{port} ({text_of(error)}); let the hosts of"
                " the executor connect to that host, or leave out the executor"
            ) from None
        if "trouble" in reply:
            raise self._refusal(f"the process that runs the job can't answer: {reply['trouble']}")
        if "error" in reply:
            raise _ERRORS[reply["error"]](*reply["args"])
        return reply

    def _refusal(self, text: str) -> RoutiluxError:
        self.trouble = text
        return RoutiluxError(text)

    def opened(self, context: Context) -> None:
        """Do nothing: the engine can't close contexts in other processes."""


_ASKERS: Final = {"check": "once or ctx.key", "record": "once", "cancelled": "cancelled"}


def run_remote(
    version: str,
    number: int,
    form: RoutineForm,
    step: bytes,
    variables: Variables,
    channel: Address,
    sent: int,
) -> Reply:
    """Run one step in a process of an executor.

    `number` is that of the step, and `sent` counts its submits: no two calls have equal arguments,
    since Dask would run only one of them.
    """
    if version != PACKAGE:
        reason = (
            f"the process on {socket.gethostname()} has routilux {PACKAGE}, and the job runs with"
            f" routilux {version}; install the same version on every host that runs steps"
        )
        return "refused", reason, None
    try:
        routine = rebuilt(form)
    except BaseException as error:
        return "refused", str(error) if isinstance(error, RoutiluxError) else text_of(error), None
    context = copy_context()
    try:
        received: StepInput = pickle.loads(step)
        context.run(_set_variables, variables)
    except BaseException as error:
        reason = f"the step can't be loaded in the executor's process: {text_of(error)}; {CURE}"
        return _reply(failure(number, UnserializableError("$", reason)))
    received.final = True  # so that the outcome has a traceback, which the other side may drop
    host = _RemoteHost(received, channel)
    slot = routine.slots[received.task.slot]
    try:
        outcome = context.run(run_step, received, routine, slot, _JUDGED_THERE, host)
    except BaseException as error:
        error.add_note(f"raised in another process at {ErrorInfo.of(error).where}")
        return "raised", pickle.dumps(SentError.of(error)), None
    return _reply(outcome) if host.trouble is None else ("refused", host.trouble, None)


def _set_variables(variables: Variables) -> None:
    """Set the context variables that a module of this process has."""
    for places, value in variables:
        for module, name in places:
            variable = getattr(sys.modules.get(module), name, None)
            if isinstance(variable, ContextVar):
                variable.set(pickle.loads(value))
                break


def _reply(outcome: StepOutcome) -> Reply:
    kinds = None
    if outcome.error_type is not None:
        types = tuple(map(SentType.of, (outcome.error_type, *outcome.leaf_types)))
        kinds = pickle.dumps(types)
        outcome.error_type, outcome.leaf_types = None, ()
    try:
        return "outcome", pickle.dumps(outcome), kinds
    except BaseException as error:
        places = [(f"{sent.event}.", sent.payload) for sent in outcome.emissions]
        for name, writes in (("state.", outcome.state), ("shared.", outcome.shared)):
            if writes is not None:
                places += [(name, writes.values), (name, cast("dict[str, object]", writes.patches))]
        reason = f"can't be sent back from the executor's process: {text_of(error)}; {CURE}"
        return _reply(failure(outcome.number, UnserializableError(culprit(places), reason)))


def culprit(places: Iterable[tuple[str, dict[str, object]]]) -> str:
    """Return the path of the first value that can't be pickled."""
    for place, values in places:
        for name, value in values.items():
            if pickled(value) is None:
                return f"$.{place}{name}"
    return "$"
