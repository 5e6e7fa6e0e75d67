"""`run_remote`: runs a step in a process of an executor.

Invariants:
- The executor's queues carry bytes, which this module opens where it can handle an error. So a
  value that can't be pickled or unpickled costs one attempt; it never breaks the executor.
- An attempt fails by `UnserializableError` if its input or its outcome can't be sent. Effects that
  can be sent are recorded all the same.
- An exception class that the other process can't find is replaced by a class of the same name
  with the same bases. So the error is recorded and judged as in one process.
- An async handler runs on an event loop of its own, and is cancelled at its timeout.
- An effect is recorded only when the step ends; a crash of the process loses the effect.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.engine.driver import StepNotRunError
from routilux.engine.step import failure, run_step
from routilux.errors import RoutiluxError, UnserializableError
from routilux.graph.messages import ErrorInfo, RecordedEffect, traceback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from routilux.graph.context import Context
    from routilux.graph.messages import StepInput, StepOutcome
    from routilux.graph.routine import Routine
    from routilux.retry.error_handler import ErrorHandler

T = TypeVar("T")
Code = tuple["Routine", str, "ErrorHandler"]
"""What runs the step: the routine, the name of its slot and its error handler."""


class Parcel(Generic[T]):
    """A value that is pickled when the executor sends it, and unpickled by `open`."""

    __slots__ = ("_data", "_value")

    def __init__(self, value: T, data: bytes | None = None) -> None:
        self._value = value
        self._data = data

    def __reduce__(self) -> tuple[object, ...]:
        return _Sealed, (self._pickled() if self._data is None else self._data,)

    def _pickled(self) -> bytes:
        return pickle.dumps(self._value)

    def open(self) -> T:
        """Return the value."""
        return self._value


class StepParcel(Parcel["StepInput"]):
    """A step's input. One that can't be pickled raises `UnserializableError`."""

    __slots__ = ()

    def _pickled(self) -> bytes:
        step = self._value
        try:
            return pickle.dumps(step)
        except BaseException as error:
            places = (("", step.task.payload), ("state.", step.state), ("shared.", step.shared))
            raise UnserializableError(
                _culprit(places),
                f"can't be sent to the executor's process: {_text(error)}; {_CURE}",
            ) from None


class _Sealed(Generic[T]):
    """A `Parcel` in the process that has received it."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self) -> T:
        """Unpickle the value; raises whatever the classes of the value raise."""
        return cast("T", pickle.loads(self._data))


class _RemoteHost:
    """The host of a step in a process of an executor."""

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

    async def asleep(self, step: StepInput, length: int) -> None:
        await sys.modules["asyncio"].sleep(length / SECOND)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

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
        """Do nothing: the sender has already asked the store."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self.effects[name] = effect

    def opened(self, context: Context) -> None:
        """Do nothing: the engine can't close contexts in other processes."""


def run_remote(number: int, step: Parcel[StepInput], code: Parcel[Code]) -> Returned:
    """Run one step in a process of an executor; `number` is that of the step."""
    try:
        routine, slot, handler = code.open()
    except BaseException as error:
        return Returned(refusal=f"the executor's process can't load the routine: {_text(error)}")
    try:
        received = step.open()
    except BaseException as error:
        reason = f"the step can't be loaded in the executor's process: {_text(error)}; {_CURE}"
        return _returned(failure(number, UnserializableError("$", reason)), {})
    host = _RemoteHost(received)
    try:
        outcome = run_step(received, routine, routine.slots[slot], handler, host)
    except BaseException as error:
        error.add_note(f"raised in another process at {ErrorInfo.of(error).where}")
        return Returned(raised=_SentError.of(error))
    return _returned(outcome, host.effects)


def _returned(outcome: StepOutcome, effects: dict[str, RecordedEffect]) -> Returned:
    types: tuple[_SentType, ...] = ()
    if outcome.error_type is not None:
        types = tuple(map(_SentType.of, (outcome.error_type, *outcome.leaf_types)))
        outcome.error_type, outcome.leaf_types = None, ()
    try:
        data = pickle.dumps(outcome)
    except BaseException as error:
        places = [(f"{sent.event}.", sent.payload) for sent in outcome.emissions]
        for name, writes in (("state.", outcome.state), ("shared.", outcome.shared)):
            if writes is not None:
                places += [(name, writes.values), (name, cast("dict[str, object]", writes.patches))]
        reason = f"can't be sent back from the executor's process: {_text(error)}; {_CURE}"
        return _returned(
            failure(outcome.number, UnserializableError(_culprit(places), reason)), effects
        )
    sent = ((name, effect, _pickled(effect)) for name, effect in effects.items())
    parcels = {name: Parcel(effect, data) for name, effect, data in sent if data is not None}
    return Returned(Parcel(outcome, data), parcels, types)


@dataclass(slots=True)
class Returned:
    """What a process of an executor returns: an outcome, or what kept the step from having one.

    `types` are the type of the outcome's error and those of the error's leaves.
    """

    outcome: Parcel[StepOutcome] | None = None
    effects: dict[str, Parcel[RecordedEffect]] | None = None
    types: tuple[_SentType, ...] = ()
    raised: _SentError | None = None
    refusal: str | None = None

    def open(self, number: int) -> StepOutcome | BaseException:
        """Return the outcome of the step `number`, or what broke off the step."""
        if self.refusal is not None:
            return StepNotRunError(RoutiluxError(self.refusal))
        if self.raised is not None:
            return self.raised.open()
        assert self.outcome is not None, "a process returns one of the three"
        try:
            outcome = self.outcome.open()
        except BaseException as error:
            reason = f"the outcome can't be loaded in this process: {_text(error)}; {_CURE}"
            outcome = failure(number, UnserializableError("$", reason))
        else:
            if self.types:
                outcome.error_type, *leaves = (kind.open() for kind in self.types)
                outcome.leaf_types = tuple(leaves)
        for name, parcel in (self.effects or {}).items():
            effect = _opened(parcel)
            if effect is not None:
                outcome.effects = {**(outcome.effects or {}), name: effect}
        return outcome


@dataclass(slots=True)
class _SentType:
    """An exception class by its name, with its bases for a process that can't find the class."""

    data: bytes | None
    module: str
    name: str
    bases: tuple[_SentType, ...]

    @classmethod
    def of(cls, kind: type) -> _SentType:
        bases = () if kind.__module__ == "builtins" else tuple(map(cls.of, kind.__bases__))
        return cls(_pickled(kind), kind.__module__, kind.__qualname__, bases)

    def open(self) -> Any:
        """Return the class, or one of the same name and bases."""
        found = None if self.data is None else _opened(_Sealed[object](self.data))
        if isinstance(found, type) and found.__qualname__ == self.name:
            return found
        bases = [base.open() for base in self.bases]
        return _subclass(self.module, self.name, bases, {})


@dataclass(slots=True)
class _SentError:
    """An exception that ends the run of a job.

    An exception that can't be pickled and unpickled is made anew, with its type, message, notes
    and, in a group, its leaves.
    """

    data: bytes | None
    kind: _SentType
    text: str
    message: str
    notes: tuple[str, ...]
    traceback: str
    code: int | str | None  # of a `SystemExit`
    parts: tuple[_SentError, ...]  # of a group

    @classmethod
    def of(cls, error: BaseException) -> _SentError:
        info = ErrorInfo.of(error)
        code = getattr(error, "code", None) if isinstance(error, SystemExit) else None
        return cls(
            _pickled(error),
            _SentType.of(type(error)),
            str(info),
            info.message,
            info.notes,
            traceback_of(error, skip=2),
            code if isinstance(code, int | str) else None,
            tuple(map(cls.of, error.exceptions)) if isinstance(error, BaseExceptionGroup) else (),
        )

    def open(self) -> BaseException:
        """Return the exception, or one that is made anew; its cause has the traceback."""
        error = None if self.data is None else _opened(_Sealed[object](self.data))
        # Its constructor may make other errors of the same arguments.
        if not isinstance(error, BaseException) or _text(error) != self.text:
            error = self._anew()
        error.__cause__ = RemoteTraceback(self.traceback)
        return error

    def _anew(self) -> BaseException:
        kind = self.kind.open()
        message = self.message
        kind = _subclass(kind.__module__, self.kind.name, [kind], {"__str__": lambda _: message})
        builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        parts = [part.open() for part in self.parts]
        error: BaseException = builtin.__new__(kind, message, *([parts] if parts else []))
        if isinstance(error, SystemExit):
            error.code = self.code
        for note in self.notes:
            error.add_note(note)
        return error


class RemoteTraceback(Exception):  # noqa: N818 - as that of concurrent.futures
    """The cause of an exception from another process: the traceback in that process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _subclass(module: str, name: str, bases: list[type], members: dict[str, object]) -> type:
    members |= {"__module__": module, "__qualname__": name}
    try:
        return type(name, tuple(bases), members)
    except BaseException:  # of a metaclass or of `__init_subclass__`
        errors = [base for base in bases if issubclass(base, BaseException)]
        plain = next(base for base in errors[0].__mro__ if base.__module__ == "builtins")
        return type(name, (plain,), members)


_CURE: Final = "use plain data, or a class whose instances can be pickled and unpickled"


def _culprit(places: Iterable[tuple[str, dict[str, object]]]) -> str:
    """Return the path of the first value that can't be pickled."""
    for place, values in places:
        for name, value in values.items():
            if _pickled(value) is None:
                return f"$.{place}{name}"
    return "$"


def _pickled(value: object) -> bytes | None:
    try:
        return pickle.dumps(value)
    except BaseException:
        return None


def _opened(parcel: Parcel[T] | _Sealed[T]) -> T | None:
    try:
        return parcel.open()
    except BaseException:
        return None


def _text(error: BaseException) -> str:
    return str(ErrorInfo.of(error))
