"""Values that the engine and a step exchange.

Invariants:
- They are values: they can be pickled, delayed, dropped or delivered twice.
- They never change. They are not frozen, because that costs 70 % more on the hottest path.
- An error is kept as data, not as an exception, which would keep its frames in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from routilux.codec import registry
from routilux.codec.copying import copy_value
from routilux.errors import UnserializableError
from routilux.retry.raised import leaves_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, TracebackType

_LONGEST_MESSAGE: Final = 10_000
_MOST_CAUSES: Final = 10
_MOST_FRAMES: Final = 40
_MOST_LEAVES: Final = 20
_MOST_NOTES: Final = 20
_type_names: dict[type[BaseException], str] = {}


def _type_name(error_type: type[BaseException]) -> str:
    module = error_type.__module__
    name = error_type.__qualname__
    if module != "builtins":
        name = f"{module}.{name}"
    _type_names[error_type] = name
    return name


def error_class(name: str) -> type[BaseException] | None:
    """Return the class with this name, if an error of the class was recorded in this process."""
    return next((kind for kind, known in _type_names.items() if known == name), None)


@dataclass(slots=True)
class ErrorInfo:
    """The data of an exception: type name, message, place (file:line) and traceback.

    `notes` are those of `add_note`. `leaves` are the first 20 leaves of an exception group. Only
    the error of a failed or dropped task has a traceback, with the traceback of each leaf.
    `exception` is the exception that failed a job, in the process where it was raised; it is not
    saved.

    >>> ErrorInfo.of(ValueError("no stock")).type
    'ValueError'
    >>> ErrorInfo.of(ExceptionGroup("2 calls", [OSError("lost"), ValueError("bad")])).text
    '2 calls (2 sub-exceptions): OSError: lost; ValueError: bad'
    """

    type: str
    message: str
    where: str | None = None
    traceback: str | None = None
    notes: tuple[str, ...] = ()
    leaves: tuple[ErrorInfo, ...] = ()
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        # An exception may hold frames, which can't be copied or sent to another process.
        parts = (self.type, self.message, self.where, self.traceback, self.notes, self.leaves)
        return ErrorInfo, parts

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Convert an exception to data, without its traceback."""
        try:
            message = str(error)
        except Exception as broken:
            message = f"<its str() raised {type(broken).__name__}>"
        trace = error.__traceback__
        kind = type(error)
        info = cls(
            _type_names.get(kind) or _type_name(kind),
            _bounded(message),
            None if trace is None else _place(trace),
        )
        if hasattr(error, "__notes__"):
            info.notes = _notes(error)
        if isinstance(error, BaseExceptionGroup):
            info.leaves = tuple(map(cls.of, islice(leaves_of(error), _MOST_LEAVES)))
        return info

    @property
    def text(self) -> str:
        """The message, with the notes and the leaves."""
        text = self.message
        if self.leaves:
            text += f": {'; '.join(map(str, self.leaves))}"
        return "\n".join((text, *self.notes)) if self.notes else text

    def __str__(self) -> str:
        text = self.text
        return f"{self.type}: {text}" if text else self.type


def _bounded(text: str) -> str:
    if len(text) > _LONGEST_MESSAGE:
        text = text[:_LONGEST_MESSAGE] + "…"
    return text if text.isascii() else _without_surrogates(text)


def _notes(error: BaseException) -> tuple[str, ...]:
    notes: object = error.__notes__
    if not isinstance(notes, list | tuple):  # a program may set any value
        notes = [notes]
    return tuple(_bounded(note) for note in notes[:_MOST_NOTES] if isinstance(note, str))


_last_place: tuple[CodeType | None, int, str] = None, 0, ""


def _place(trace: TracebackType) -> str:
    global _last_place
    while (inner := trace.tb_next) is not None:
        trace = inner
    code, offset = trace.tb_frame.f_code, trace.tb_lasti
    last_code, last_offset, where = _last_place
    # Attempts often fail at the same line; finding its number costs four times as much.
    if code is not last_code or offset != last_offset:
        where = _without_surrogates(f"{code.co_filename}:{trace.tb_lineno}")
        _last_place = code, offset, where
    return where


def traceback_of(error: BaseException, skip: int = 0) -> str:
    """Return the tracebacks of an exception and its causes as text.

    The causes come first. After a group come its leaves. There are no source lines, which take 20
    times as long to read. `skip` is the number of outermost frames to leave out: those of the
    engine.
    """
    return _without_surrogates("".join(_traceback_parts(error, skip, set())))


def _traceback_parts(error: BaseException, skip: int, known: set[int]) -> list[str]:
    parts: list[str] = []
    groups: list[BaseExceptionGroup[BaseException]] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 2 * _MOST_CAUSES and id(seen) not in known:
        known.add(id(seen))
        if isinstance(seen, BaseExceptionGroup):
            groups.append(seen)
        lines = ["Traceback (most recent call last):"]
        place = seen.__traceback__
        while place is not None and seen is error and skip:
            place, skip = place.tb_next, skip - 1
        while place is not None:
            code = place.tb_frame.f_code
            lines.append(f'  File "{code.co_filename}", line {place.tb_lineno}, in {code.co_name}')
            place = place.tb_next
        if len(lines) > _MOST_FRAMES:
            lines[_MOST_FRAMES // 2 : -_MOST_FRAMES // 2] = ["  …"]
        lines.append(str(ErrorInfo.of(seen)))
        if parts:
            parts.append("\n\nwhich led to\n\n")
        parts.append("\n".join(lines))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    parts.reverse()
    for group in groups:
        for leaf in islice(leaves_of(group), _MOST_LEAVES):
            if len(known) >= _MOST_LEAVES + _MOST_CAUSES:
                break
            of_leaf = _traceback_parts(leaf, 0, known)
            if of_leaf:
                parts += [f"\n\nin this {type(group).__name__}\n\n", *of_leaf]
    return parts


def _without_surrogates(text: str) -> str:
    # A lone surrogate has no UTF-8 form, and an error must never keep a job from being saved.
    return text.encode("utf-8", "replace").decode()


def copied_payload(payload: Mapping[str, object], place: str) -> dict[str, object]:
    """Return a private copy of a payload.

    Raises `UnserializableError` with a path below `place` for a value that can't be copied.

    >>> copied_payload({"items": [1]}, "$")
    {'items': [1]}
    """
    copied: dict[str, object] = {}
    for name, value in payload.items():
        try:
            copied[name] = copy_value(value)
        except Exception as error:
            raise UnserializableError(
                f"{place}.{name}",
                f"{registry.type_name(type(value))} can't be copied"
                f" ({registry.failure_text(error)}); use plain data, since each reader gets a copy",
            ) from None
    return copied


@dataclass(slots=True)
class Emission:
    """An emitted event and its payload."""

    event: str
    payload: dict[str, object]
    flat: bool  # the payload has only scalars


ROOT: Final = -1
"""The `emission` of the task that a job starts with."""
GATHER: Final = -2
"""The `emission` of a gather's task, which is created when the gather's scope begins."""


@dataclass(slots=True)
class Task:
    """A unit of work: one payload for one slot of one routine.

    `emission` is the index, in the commit that created the task, of the emission that it
    delivers; `ROOT` (-1) for the task that a job starts with, `GATHER` (-2) for a gather. `keeps`
    are the ids of the open gathers that the task, or a task that descends from it, can still
    deliver to. A task with `into` is only a delivery to the gather of this id: it never runs.
    """

    task_id: str
    routine_id: str
    slot: str
    payload: dict[str, object]
    flat: bool
    emission: int
    keeps: tuple[str, ...] = ()
    into: str | None = None


@dataclass(slots=True)
class DroppedTask:
    """A failed task that strategy `CONTINUE` or `SKIP` dropped.

    `outcome` is `error_continued` for `CONTINUE`, and `skipped` for `SKIP`.
    """

    seq: int
    task_id: str
    routine_id: str
    slot: str
    payload: Mapping[str, object]
    attempt: int
    outcome: str
    error: ErrorInfo


@dataclass(slots=True)
class Collected:
    """What the step of a gather gets beside its payloads.

    `dropped` are the dropped tasks of the scope; `sources` the routine and the event of each
    payload.
    """

    dropped: tuple[DroppedTask, ...]
    sources: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class RecordedEffect:
    """The recorded result of an external effect."""

    arguments: str  # the digest of the effect's arguments
    result: object


@dataclass(slots=True)
class StepInput:
    """The input of one attempt: the task and the job's data.

    `number` is unique in this process. `state` and `shared` are snapshots and must not be changed;
    `seq` is the last commit that they include. Times are nanoseconds of the job's clock.
    `timeout_ns` limits the attempt; `worker` is its number among the steps of the job that run at
    the same time; `order` says when the task was created (commit, position); `final` says that a
    failure can't be retried. `collected` is set for a gather only.
    """

    number: int
    task: Task
    attempt: int
    job_id: str
    state: dict[str, object]
    shared: dict[str, object]
    seq: int
    effects: dict[str, RecordedEffect] | None
    started_ns: int
    timeout_ns: int | None
    worker: int
    order: tuple[int, int]
    final: bool
    collected: Collected | None = None

    @property
    def who(self) -> str:
        """The routine, task and attempt of the step, as text for messages."""
        return f"{self.task.routine_id} (task {self.task.task_id}, attempt {self.attempt})"


@dataclass(slots=True)
class Writes:
    """A step's changes to state or to shared data."""

    values: dict[str, object]
    removed: tuple[str, ...] = ()


@dataclass(slots=True)
class StepOutcome:
    """The outcome of one attempt: emissions and writes, or an error.

    `shared_reads` are the shared keys that it read; None means all keys. `effects` are effects that
    were not recorded at once, because the step ran in another process. `leaf_types` are the types
    of an exception group's leaves. `spends`: a retry after this error spends one of the budget.
    """

    number: int
    emissions: list[Emission]
    state: Writes | None = None
    shared: Writes | None = None
    shared_reads: frozenset[str] | None = frozenset()
    error: ErrorInfo | None = None
    error_type: type[BaseException] | None = None
    retry_after_ns: int | None = None
    effects: dict[str, RecordedEffect] | None = None
    leaf_types: tuple[type[BaseException], ...] = ()
    spends: bool = True
