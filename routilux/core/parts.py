"""Parts of a job's state, such as pending tasks and outputs.

Invariants:
- Only `FoldedJob.fold` changes a part. Values that can be derived from it are properties.
- A saved part is plain JSON with integer nanoseconds. Reading checks every field and refuses a part
  that this module could not have written.
- Parts are written and read field by field: one table for both takes 40 % longer to write and 12 %
  longer to read.
- `_serialize` returns data for JSON; `_load` reads decoded data. Their errors name `path`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from routilux import codec
from routilux.clocks.durations import from_ns
from routilux.codec.copying import is_flat
from routilux.core.wire.errors import effect_data, error_data, load_effect, load_error
from routilux.core.wire.ranges import duration, in_range, instant, load_keeps, payload, task_id
from routilux.errors import CorruptStateError
from routilux.graph.growing import plain_values
from routilux.graph.messages import GATHER, DroppedTask, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from routilux.graph.messages import Collected, ErrorInfo, RecordedEffect

_COUNTS: Final = ("attempts", "retry_count", "completed", "skipped", "error_continued", "failed")


class RoutineStatus(StrEnum):
    """The worst outcome of a routine's tasks in a job; equal to its value as a text.

    >>> RoutineStatus.SKIPPED == "skipped"
    True
    """

    PENDING = "pending"
    """None of its tasks has ended."""
    COMPLETED = "completed"
    """All tasks that ended were successful."""
    SKIPPED = "skipped"
    """Strategy SKIP dropped a task."""
    ERROR_CONTINUED = "error_continued"
    """Strategy CONTINUE dropped a task."""
    FAILED = "failed"
    """A task failed for good."""


DROPPED_AS: Final = (RoutineStatus.SKIPPED, RoutineStatus.ERROR_CONTINUED)


@dataclass(slots=True)
class RoutineState:
    """The saved data and the task counts of one routine; see `JobState.routine_states`.

    >>> RoutineState(attempts=3, completed=1, skipped=1).status.value
    'skipped'
    """

    kept: dict[str, object] = field(default_factory=dict)
    """What its handlers keep in `ctx.state`, as the engine keeps it; `state` is for users."""
    attempts: int = 0
    """The attempts that ended, over all tasks."""
    retry_count: int = 0
    """The most retries that one task has used."""
    completed: int = 0
    """The tasks that were successful."""
    skipped: int = 0
    """The tasks that strategy SKIP dropped."""
    error_continued: int = 0
    """The tasks that strategy CONTINUE dropped."""
    failed: int = 0
    """The tasks that failed for good."""
    error: ErrorInfo | None = None
    """The last error of a task that was dropped or failed."""

    @property
    def state(self) -> dict[str, object]:
        """The routine's own data, by key."""
        return plain_values(self.kept)

    def seen(self) -> RoutineState:
        """Return a copy that can be compared by value."""
        return replace(self, kept=self.state)

    @property
    def status(self) -> RoutineStatus:
        """The worst outcome of the routine's tasks; `pending` if none ended."""
        if self.failed:
            return RoutineStatus.FAILED
        if self.error_continued:
            return RoutineStatus.ERROR_CONTINUED
        if self.skipped:
            return RoutineStatus.SKIPPED
        return RoutineStatus.COMPLETED if self.completed else RoutineStatus.PENDING

    def _serialize(self, path: str) -> dict[str, object]:
        return {
            "status": self.status.value,
            **{name: getattr(self, name) for name in _COUNTS},
            "state": codec.encode(self.state, f"{path}.state"),
            "error": None if self.error is None else error_data(self.error),
        }

    @classmethod
    def _load(cls, data: object, path: str) -> RoutineState:
        f = codec.check_fields(data, path, _ROUTINE_STATE)
        state = cls(
            payload(f["state"], f"{path}.state"),
            error=None if f["error"] is None else load_error(f["error"], f"{path}.error"),
            **{name: in_range(f[name], f"{path}.{name}") for name in _COUNTS},
        )
        ended = state.completed + state.skipped + state.error_continued
        if state.attempts < max(ended, state.retry_count):
            raise CorruptStateError(
                f"{path}.attempts", "must be at least retry_count and the number of tasks that ran"
            )
        if state.status != f["status"]:
            raise CorruptStateError(
                f"{path}.status",
                f"is {f['status']!r}, but the counts of tasks give {state.status.value!r}",
            )
        return state


@dataclass(slots=True)
class Deliveries:
    """Payloads that a gather has received from one step, with the routine and the event.

    They are one object: each further object of a delivery would cost the garbage collector time.
    """

    routine_id: str
    event: str
    payloads: list[dict[str, object]]

    def serialize(self, path: str) -> dict[str, object]:
        return {
            "routine_id": self.routine_id,
            "event": self.event,
            "payloads": codec.encode(self.payloads, f"{path}.payloads"),
        }


Entry = Deliveries | DroppedTask | str
"""What is at a place of a gather: deliveries, a dropped task, or the id of a pending task."""


class Place:
    """A place in the lineage of a gather's scope. Without an entry it is vacant."""

    __slots__ = ("entry", "next")

    def __init__(self, entry: Entry | None = None, next_: Place | None = None) -> None:
        self.entry = entry
        self.next = next_


class Gathering:
    """What a gather has received and still waits for; see `PendingTask.gathering`.

    The places are linked, in the order of lineage: a task that ends is replaced by its children in
    constant time. `collected` is set when no place holds a pending task any more.
    """

    __slots__ = ("collected", "deliveries", "first", "waits_for")

    waits_for: int
    """The number of pending tasks that could still deliver."""
    deliveries: int
    """The number of payloads that it has received."""

    def __init__(self) -> None:
        self.waits_for = 0
        self.deliveries = 0
        self.collected: Collected | None = None
        self.first = Place()

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the places, in the order of lineage."""
        place: Place | None = self.first
        while place is not None:
            if place.entry is not None:
                yield place.entry
            place = place.next

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gathering):
            return NotImplemented
        return list(self.entries()) == list(other.entries())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __str__(self) -> str:
        tasks = "1 task" if self.waits_for == 1 else f"{self.waits_for:,} tasks"
        deliveries = "1 delivery" if self.deliveries == 1 else f"{self.deliveries:,} deliveries"
        return f"waits for {tasks}, has {deliveries}"

    def __repr__(self) -> str:
        return f"<Gathering: {self}>"


@dataclass(slots=True)
class PendingTask:
    """A task that is ready, waits for a retry or has failed; see `JobState.pending_tasks`."""

    task: Task
    """The id, the routine, the slot and the payload, which are properties here too."""
    seq: int
    """The number of the commit that created the task."""
    position: int
    """Its index among the tasks of that commit."""
    due_ns: int
    """The earliest time at which it may run, in UTC nanoseconds."""
    attempt: int = 1
    """The number of the next attempt, from 1; never reset."""
    retries: int = 0
    """The retries that were spent of the current budget."""
    delay_ns: int | None = None
    """The planned wait before the next attempt, in nanoseconds; None without a wait."""
    first_started_ns: int | None = None
    """When its first attempt started, in UTC nanoseconds; None before."""
    conflicts: int = 0
    """How often an attempt ended in a conflict; after three the task runs alone."""
    error: ErrorInfo | None = None
    """The error that failed it for good; None if it has not failed."""
    effects: dict[str, RecordedEffect] | None = None
    """The effects that `ctx.once` recorded, by name."""
    children: int = 0
    """The tasks that its own failures created."""
    reports: bool = False
    """Whether it, or an ancestor, handles an event `error`: it runs while the job fails."""
    gathering: Gathering | None = None
    """What a gather waits for and has, as `str` says; None for other tasks."""
    places: tuple[Place, ...] = field(default=(), compare=False, repr=False)
    """Its places in the gathers that it keeps open."""

    @property
    def gathers(self) -> bool:
        """Whether the task is a gather that still waits for other tasks."""
        return self.gathering is not None and self.gathering.waits_for > 0

    @property
    def failed(self) -> bool:
        """Whether it failed for good."""
        return self.error is not None

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self.task.task_id

    @property
    def routine_id(self) -> str:
        """The id of the routine that handles the task."""
        return self.task.routine_id

    @property
    def slot(self) -> str:
        """The slot that receives the task's payload."""
        return self.task.slot

    @property
    def payload(self) -> Mapping[str, object]:
        """The payload that the task passes to its handler."""
        return self.task.payload

    @property
    def due_at(self) -> datetime:
        """The earliest UTC time at which the task may run."""
        return from_ns(self.due_ns)

    @property
    def delay(self) -> timedelta | None:
        """The planned wait before the next attempt; None if no wait is planned."""
        return None if self.delay_ns is None else from_ns(self.delay_ns) - from_ns(0)

    @property
    def order(self) -> tuple[int, int, int]:
        """The sort key of the task; the smallest runs first."""
        return self.due_ns, self.seq, self.position

    def _serialize(self, path: str) -> dict[str, object]:
        task, gathering = self.task, self.gathering
        values = task.payload
        special: dict[str, object] = {}
        if self.error is not None:
            special["error"] = error_data(self.error)
        if self.children:
            special["children"] = self.children
        if self.reports:
            special["reports"] = True
        if task.keeps:
            special["keeps"] = list(task.keeps)
        if gathering is not None:
            values = {parameter: [] for parameter in values}  # the deliveries are saved once
            special["gathering"] = [
                _entry_data(entry, f"{path}.gathering[{i}]")
                for i, entry in enumerate(gathering.entries())
            ]
        return {
            "task_id": task.task_id,
            "routine_id": task.routine_id,
            "slot": task.slot,
            "payload": codec.encode(values, f"{path}.payload"),
            "emission": task.emission,
            "seq": self.seq,
            "position": self.position,
            "due_ns": self.due_ns,
            "attempt": self.attempt,
            "retries": self.retries,
            "delay_ns": self.delay_ns,
            "first_started_ns": self.first_started_ns,
            "conflicts": self.conflicts,
            "effects": codec.encoded_object(
                {
                    name: effect_data(effect, f"{path}.effects[{name!r}]")
                    for name, effect in (self.effects or {}).items()
                }
            ),
            **special,
        }

    @classmethod
    def _load(cls, data: object, path: str) -> PendingTask:
        f = codec.check_fields(data, path, _PENDING_TASK, _SPECIAL)
        values = payload(f["payload"], f"{path}.payload")
        delay, first = f["delay_ns"], f["first_started_ns"]
        if f["retries"] >= f["attempt"]:
            raise CorruptStateError(
                f"{path}.retries", "must be less than attempt (the number of the next attempt)"
            )
        if "error" in f and delay is not None:
            raise CorruptStateError(f"{path}.delay_ns", "must be null in a failed task")
        if (f["emission"] == GATHER) is not ("gathering" in f):
            raise CorruptStateError(
                f"{path}.gathering", "must be in a gather, and in no other task"
            )
        return cls(
            Task(
                task_id(f["task_id"], f"{path}.task_id"),
                f["routine_id"],
                f["slot"],
                values,
                is_flat(values),
                in_range(f["emission"], f"{path}.emission", least=GATHER),
                load_keeps(f, path),
            ),
            in_range(f["seq"], f"{path}.seq", least=1),
            in_range(f["position"], f"{path}.position"),
            instant(f["due_ns"], f"{path}.due_ns"),
            in_range(f["attempt"], f"{path}.attempt", least=1),
            in_range(f["retries"], f"{path}.retries"),
            None if delay is None else duration(delay, f"{path}.delay_ns"),
            None if first is None else instant(first, f"{path}.first_started_ns"),
            in_range(f["conflicts"], f"{path}.conflicts"),
            load_error(f["error"], f"{path}.error") if "error" in f else None,
            {
                name: load_effect(effect, f"{path}.effects[{name!r}]")
                for name, effect in f["effects"].items()
            }
            or None,
            in_range(f.get("children", 0), f"{path}.children"),
            f.get("reports", False),
            Gathering() if "gathering" in f else None,
        )


@dataclass(slots=True)
class Output:
    """A result of a job: an emitted event that no connection takes; see `JobState.outputs`."""

    seq: int
    """The number of the commit that emitted the event."""
    routine_id: str
    """The routine that emitted it."""
    event: str
    """The name of the event."""
    data: Mapping[str, object]
    """The payload."""
    task_id: str
    """The task whose attempt emitted it."""

    def _serialize(self, path: str) -> dict[str, object]:
        return {
            "seq": self.seq,
            "routine_id": self.routine_id,
            "event": self.event,
            "data": codec.encode(self.data, f"{path}.data"),
            "task_id": self.task_id,
        }

    @classmethod
    def _load(cls, data: object, path: str) -> Output:
        f = codec.check_fields(data, path, _OUTPUT)
        in_range(f["seq"], f"{path}.seq", least=1)
        payload(f["data"], f"{path}.data")
        return cls(**f)


def _entry_data(entry: Entry, path: str) -> object:
    if isinstance(entry, str):
        return entry
    return entry.serialize(path) if isinstance(entry, Deliveries) else {"dropped": entry.task_id}


def load_entries(
    data: Sequence[object], dropped: Mapping[str, DroppedTask], path: str
) -> list[Entry]:
    """Make the entries of a gather; `dropped` are the job's dropped tasks by id."""
    entries: list[Entry] = []
    for i, entry in enumerate(data):
        place = f"{path}[{i}]"
        if isinstance(entry, str):
            entries.append(entry)
        elif isinstance(entry, dict) and "dropped" in entry:
            task_id = codec.check_fields(entry, place, {"dropped": str})["dropped"]
            if task_id not in dropped:
                raise CorruptStateError(f"{place}.dropped", f"{task_id!r} is no dropped task")
            entries.append(dropped[task_id])
        else:
            f = codec.check_fields(entry, place, _DELIVERIES)
            for k, values in enumerate(f["payloads"]):
                if type(values) is not dict:
                    raise CorruptStateError(f"{place}.payloads[{k}]", "must be a JSON object")
                payload(values, f"{place}.payloads[{k}]")
            if not f["payloads"]:
                raise CorruptStateError(f"{place}.payloads", "is empty")
            entries.append(Deliveries(**f))
    return entries


def dropped_data(task: DroppedTask, path: str) -> dict[str, object]:
    """Return the saved form of a dropped task."""
    return {
        "seq": task.seq,
        "task_id": task.task_id,
        "routine_id": task.routine_id,
        "slot": task.slot,
        "payload": codec.encode(task.payload, f"{path}.payload"),
        "attempt": task.attempt,
        "outcome": task.outcome,
        "error": error_data(task.error),
    }


def load_dropped(data: object, path: str) -> DroppedTask:
    """Make a `DroppedTask` from its saved form."""
    f = codec.check_fields(data, path, _DROPPED_TASK)
    if f["outcome"] not in DROPPED_AS:
        raise CorruptStateError(
            f"{path}.outcome", f"{f['outcome']!r} is not a valid outcome of a dropped task"
        )
    in_range(f["seq"], f"{path}.seq", least=1)
    in_range(f["attempt"], f"{path}.attempt", least=1)
    payload(f["payload"], f"{path}.payload")
    return DroppedTask(**{**f, "error": load_error(f["error"], f"{path}.error")})


_MAYBE_INT: Final = (int, type(None))
_ROUTINE_STATE: codec.Fields = {
    "status": str,
    **dict.fromkeys(_COUNTS, int),
    "state": dict,
    "error": (dict, type(None)),
}
_PENDING_TASK: codec.Fields = {
    **dict.fromkeys(("task_id", "routine_id", "slot"), str),
    **dict.fromkeys(("emission", "seq", "position", "due_ns"), int),
    **dict.fromkeys(("attempt", "retries", "conflicts"), int),
    **dict.fromkeys(("delay_ns", "first_started_ns"), _MAYBE_INT),
    **dict.fromkeys(("payload", "effects"), dict),
}
_SPECIAL: codec.Fields = {
    "error": dict,
    "children": int,
    "reports": bool,
    "keeps": list,
    "gathering": list,
}
_DELIVERIES: codec.Fields = {"routine_id": str, "event": str, "payloads": list}
_OUTPUT: codec.Fields = {"seq": int, "routine_id": str, "event": str, "data": dict, "task_id": str}
_DROPPED_TASK: codec.Fields = {
    **dict.fromkeys(("task_id", "routine_id", "slot", "outcome"), str),
    **dict.fromkeys(("seq", "attempt"), int),
    **dict.fromkeys(("payload", "error"), dict),
}
