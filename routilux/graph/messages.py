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
from routilux.graph.growing import plain_values
from routilux.graph.patches import Patch
from routilux.retry.raised import leaves_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, TracebackType

_LONGEST_MESSAGE: Final = 10_000
_MOST_CAUSES: Final = 10
_MOST_FRAMES: Final = 40
_MOST_LEAVES: Final = 20
_MOST_NOTES: Final = 20
_MOST_CLASSES: Final = 1_000
_classes: dict[str, type[BaseException]] = {}  # the last ones that were recorded, by their names


def _name_of(kind: type[BaseException]) -> str:
    module, name = kind.__module__, kind.__qualname__
    if module != "builtins":
        name = f"{module}.{name}"
    if _classes.get(name) is not kind:
        _remember(name, kind)
    return name


def _remember(name: str, kind: type[BaseException]) -> None:
    # Bounded: a program may make a class for each error.
    if len(_classes) >= _MOST_CLASSES and name not in _classes:
        for oldest in list(_classes)[: _MOST_CLASSES // 10]:
            _classes.pop(oldest, None)  # another thread may be faster
    _classes[name] = kind


def error_class(name: str) -> type[BaseException] | None:
    """Return the class with this name, if an error of it was recorded lately in this process."""
    return _classes.get(name)


@dataclass(slots=True)
class ErrorInfo:
    """An exception as data, which can be saved.

    >>> ErrorInfo.of(ValueError("no stock")).type
    'ValueError'
    >>> ErrorInfo.of(ExceptionGroup("2 calls", [OSError("lost"), ValueError("bad")])).text
    '2 calls (2 sub-exceptions): OSError: lost; ValueError: bad'
    """

    type: str
    """The name of the type; outside of builtins with its module."""
    message: str
    """Its message, at most 10,000 characters."""
    where: str | None = None
    """The place that raised it, as file:line; None if it was not raised."""
    traceback: str | None = None
    """The traceback, also of each leaf; only of the error of a failed or dropped task."""
    notes: tuple[str, ...] = ()
    """The texts of `add_note`, at most 20; then, at a deadline, why no retry was made."""
    leaves: tuple[ErrorInfo, ...] = ()
    """The leaves of an exception group, at most 20."""
    exception: BaseException | None = field(default=None, compare=False, repr=False)
    """The exception that failed a job, in the process where it was raised; never saved."""

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
        info = cls(
            _name_of(type(error)),
            message
            if message.isascii() and len(message) <= _LONGEST_MESSAGE
            else _bounded(message),
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
            raise uncopied(f"{place}.{name}", value, error) from None
    return copied


def uncopied(place: str, value: object, error: Exception) -> UnserializableError:
    """Return the error for a value that can't be copied."""
    return UnserializableError(
        place,
        f"{registry.type_name(type(value))} can't be copied"
        f" ({registry.failure_text(error)}); use plain data, since each reader gets a copy",
    )


@dataclass(slots=True)
class Emission:
    """An emitted event and its payload; see `Commit.emissions`."""

    event: str
    """The name of the event."""
    payload: dict[str, object]
    """The fields of the payload by name."""
    flat: bool
    """Whether all values are scalars."""


ROOT: Final = -1
"""The `emission` of the task that a job starts with."""
GATHER: Final = -2
"""The `emission` of a gather's task, which is created when the gather's scope begins."""


@dataclass(slots=True)
class Task:
    """A unit of work: one payload for one slot of one routine; see `Commit.tasks`."""

    task_id: str
    """The id, from its lineage: `0` is the first, `0.1` the second task that it created."""
    routine_id: str
    """The routine that handles it."""
    slot: str
    """The slot that receives the payload."""
    payload: dict[str, object]
    """The fields by name."""
    flat: bool
    """Whether all values are scalars."""
    emission: int
    """The index of the delivered emission in the commit; `ROOT` (-1) for the first task of a job,
    `GATHER` (-2) for a gather."""
    keeps: tuple[str, ...] = ()
    """The ids of the open gathers that it, or a task that descends from it, can deliver to."""
    into: str | None = None
    """The gather that receives the payload: the task is only a delivery, and never runs."""


@dataclass(slots=True)
class DroppedTask:
    """A failed task that strategy CONTINUE or SKIP dropped; see `JobState.dropped`."""

    seq: int
    """The number of the commit that dropped the task."""
    task_id: str
    """The id of the task."""
    routine_id: str
    """Its routine."""
    slot: str
    """The slot that received its payload."""
    payload: Mapping[str, object]
    """The payload; of a gather the list of its payloads, under the handler's parameter."""
    attempt: int
    """The number of the attempt that failed."""
    outcome: str
    """`error_continued` under CONTINUE, `skipped` under SKIP."""
    error: ErrorInfo
    """The error of that attempt."""


@dataclass(slots=True)
class Collected:
    """What the step of a gather gets beside its payloads; see `Gathered`."""

    dropped: tuple[DroppedTask, ...]
    """The dropped tasks of the scope."""
    sources: tuple[tuple[str, str], ...]
    """The routine and the event of each payload."""


@dataclass(slots=True)
class RecordedEffect:
    """The recorded result of an external effect."""

    arguments: str
    """The SHA-256 digest of its arguments."""
    result: object
    """What it returned."""


@dataclass(slots=True)
class StepInput:
    """The input of one attempt: the task and the job's data; see `Observer`."""

    number: int
    """The number of the step, unique in this process."""
    task: Task
    """The task."""
    attempt: int
    """The number of the attempt, from 1."""
    job_id: str
    """The id of the job."""
    kept_state: dict[str, object]
    """A snapshot of the routine's state, as the engine keeps it; `state` is for users."""
    kept_shared: dict[str, object]
    """A snapshot of the shared data, as the engine keeps it; `shared` is for users."""
    seq: int
    """The number of the last commit that the snapshots include."""
    effects: dict[str, RecordedEffect] | None
    """The effects that earlier attempts recorded, by name."""
    started_ns: int
    """When it starts, in UTC nanoseconds by the job's clock."""
    timeout_ns: int | None
    """The limit of the attempt, in nanoseconds; None for no limit."""
    worker: int
    """Its number among the steps of the job that run at the same time, from 0."""
    order: tuple[int, int]
    """When the task was created: the commit's number, and the position in it."""
    final: bool
    """Whether a failure can't be retried."""
    collected: Collected | None = None
    """What a gather gets beside its payloads; None for other tasks."""

    @property
    def state(self) -> dict[str, object]:
        """The routine's own data when the step began."""
        return plain_values(self.kept_state)

    @property
    def shared(self) -> dict[str, object]:
        """The shared data when the step began."""
        return plain_values(self.kept_shared)

    @property
    def who(self) -> str:
        """The routine, task and attempt of the step, as text for messages."""
        return f"{self.task.routine_id} (task {self.task.task_id}, attempt {self.attempt})"


@dataclass(slots=True)
class Writes:
    """A step's changes to state or to shared data."""

    values: dict[str, object]
    """The changed and the new keys, with their values."""
    removed: tuple[str, ...] = ()
    """The deleted keys, sorted."""
    patches: dict[str, list[Patch]] = field(default_factory=dict)
    """The keys of which a part has changed, or to which something was added."""

    @property
    def keys(self) -> list[str]:
        """The keys that the step changed; each is in one of the three."""
        return [*self.values, *self.removed, *self.patches]


@dataclass(slots=True)
class StepOutcome:
    """The outcome of one attempt: emissions and writes, or an error."""

    number: int
    """The number of the step."""
    emissions: list[Emission]
    """The emitted events, in order."""
    state: Writes | None = None
    """The changes to the routine's state."""
    shared: Writes | None = None
    """The changes to the shared data."""
    shared_reads: frozenset[str] | None = frozenset()
    """The shared keys that it read; None means all keys."""
    error: ErrorInfo | None = None
    """What the handler raised; None if it returned."""
    error_type: type[BaseException] | None = None
    """The type of that error."""
    retry_after_ns: int | None = None
    """The wait that a `RetryAfter` asks for, in nanoseconds."""
    leaf_types: tuple[type[BaseException], ...] = ()
    """The types of an exception group's leaves."""
    spends: bool = True
    """Whether a retry after this error spends one of the budget."""
