"""Records of a job's changes (`Commit`) and history (`HistoryRecord`).

Invariants:
- A commit is atomic and complete: the whole state of a job can be rebuilt from its commits.
- One table lists the required and optional fields of each kind of commit; reading checks them.
- A commit is written and read field by field: it is on the path of each step, and a table of
  fields is slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from routilux import codec
from routilux.clocks.durations import from_ns
from routilux.codec import quoted
from routilux.codec.schema import check_fields, fits
from routilux.core.wire.errors import effect_data, error_data, load_effect, load_error
from routilux.core.wire.ranges import duration, in_range, instant
from routilux.core.wire.tasks import emissions_text, load_emissions, load_tasks, tasks_text
from routilux.core.wire.writes import load_writes, writes_text
from routilux.errors import CorruptStateError
from routilux.graph.messages import (
    GATHER,
    Emission,
    ErrorInfo,
    RecordedEffect,
    Task,
    Writes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


class JobStatus(StrEnum):
    """The status of a job; equal to its value as a text.

    >>> JobStatus.COMPLETED == "completed", JobStatus.COMPLETED.is_final
    (True, True)
    """

    PENDING = "pending"
    """Stored or taken over: a worker may take it, or `resume` runs it."""
    RUNNING = "running"
    """A host runs it; or the host has died, and the job can be resumed."""
    PAUSED = "paused"
    """Stopped by `pause`; `resume` continues it."""
    COMPLETED = "completed"
    """No task is left. Final."""
    FAILED = "failed"
    """A task failed for good; `resume` with `retry_failed` gives it a fresh budget."""
    CANCELLED = "cancelled"
    """Stopped by `cancel`. Final."""

    def __init__(self, value: str) -> None:
        self.is_final = value in ("completed", "cancelled")
        """Whether no commit can follow."""
        self.is_live = value in ("pending", "running")
        """Whether a host runs the job, or a worker may take it."""


class CommitKind(StrEnum):
    """What a commit records; equal to its value as a text.

    >>> CommitKind("retry").ends_attempt, CommitKind("paused").ends_attempt
    (True, False)
    """

    START = "start"
    """The job was created, with its first task."""
    DONE = "done"
    """An attempt succeeded; its emissions and writes are in this commit."""
    RETRY = "retry"
    """An attempt failed, and the task waits for its next one."""
    FAILED = "failed"
    """An attempt failed for good, and so will the job."""
    DROPPED = "dropped"
    """An attempt failed, and CONTINUE or SKIP dropped the task."""
    CONFLICT = "conflict"
    """An attempt had read shared data that another step changed; it runs again."""
    EFFECT = "effect"
    """`ctx.once` recorded the result of an effect."""
    INTERRUPTED = "interrupted"
    """An error from outside the flow ended the run, such as a broken executor."""
    RESUMED = "resumed"
    """A host resumed the job, or an operator set it free."""
    PAUSED = "paused"
    """The job was paused."""
    CANCELLED = "cancelled"
    """The job was cancelled."""

    def __init__(self, value: str) -> None:
        self.ends_attempt = value in ("done", "retry", "failed", "dropped")
        """Whether the commit is how an attempt of a task succeeded or failed."""


# A module global costs less than a look-up at the enum, which is as slow as a call.
_START = CommitKind.START
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED


@dataclass(slots=True)
class Commit:
    """A record of what one step or request changes in a job; see `JobState.commits`.

    A field without a value is None, or an empty tuple.
    """

    seq: int
    """The number of the commit in its job, from 1."""
    kind: CommitKind
    """What happened."""
    at_ns: int
    """The time of the commit, in UTC nanoseconds by the job's clock."""
    status: JobStatus
    """The status of the job after the commit."""
    task_id: str | None = None
    """The task of the attempt; None in a commit about the whole job."""
    routine_id: str | None = None
    """The routine of the task."""
    attempt: int = 0
    """The number of the attempt, from 1; 0 in a commit about the whole job."""
    started_ns: int | None = None
    """When the attempt started, in UTC nanoseconds; None if none ran."""
    worker: int = 0
    """The number of the step among those of the job that ran at the same time, from 0."""
    emissions: tuple[Emission, ...] = ()
    """The events that the attempt emitted, in order."""
    tasks: tuple[Task, ...] = ()
    """The tasks that the commit created."""
    state: Writes | None = None
    """The changes to the routine's `ctx.state`."""
    shared: Writes | None = None
    """The changes to `ctx.shared`."""
    error: ErrorInfo | None = None
    """The error that ended the attempt or the run."""
    delay_ns: int | None = None
    """The planned wait before the next attempt, in nanoseconds."""
    due_ns: int | None = None
    """When that wait ends, in UTC nanoseconds."""
    detail: Mapping[str, object] | None = None
    """Further facts of this kind of commit; see the saved format."""
    effect: RecordedEffect | None = None
    """The digest of the arguments, and the result, of a recorded effect."""

    @property
    def started_at(self) -> datetime | None:
        """The UTC time of the attempt's start; None without an attempt."""
        return None if self.started_ns is None else from_ns(self.started_ns)

    @property
    def finished_at(self) -> datetime:
        """The UTC time of the commit."""
        return from_ns(self.at_ns)

    def dumps(self, path: str = "$") -> str:
        """Return the commit as JSON text.

        Raises `UnserializableError` with the path (below `path`) of a value that can't be saved.
        """
        # Joined as text: encoding a dict takes twice as long.
        text = (
            f'{{"seq":{self.seq},"kind":"{self.kind._value_}","at_ns":{self.at_ns}'
            f',"status":"{self.status._value_}"'  # `value` takes five times as long
        )
        if self.task_id is not None:
            text += f',"task_id":{quoted(self.task_id)}'
        if self.routine_id is not None:
            text += f',"routine_id":{quoted(self.routine_id)}'
        if self.attempt:
            text += f',"attempt":{self.attempt}'
        if self.started_ns is not None:
            text += f',"started_ns":{self.started_ns}'
        if self.worker:
            text += f',"worker":{self.worker}'
        if self.emissions:
            text += f',"emissions":{emissions_text(self.emissions, f"{path}.emissions")}'
        if self.tasks:
            text += f',"tasks":{tasks_text(self.tasks, self.emissions, f"{path}.tasks")}'
        if self.state is not None:
            text += f',"state":{writes_text(self.state, f"{path}.state")}'
        if self.shared is not None:
            text += f',"shared":{writes_text(self.shared, f"{path}.shared")}'
        if self.error is not None:
            text += f',"error":{codec.dumps(error_data(self.error))}'
        if self.delay_ns is not None:
            text += f',"delay_ns":{self.delay_ns}'
        if self.due_ns is not None:
            text += f',"due_ns":{self.due_ns}'
        if self.detail is not None:
            text += f',"detail":{codec.value_text(self.detail, f"{path}.detail")}'
        if self.effect is not None:
            text += f',"effect":{codec.dumps(effect_data(self.effect, f"{path}.effect"))}'
        return codec.bounded(f"{text}}}", path)

    @classmethod
    def load(cls, data: object, path: str) -> Commit:
        """Make a commit from decoded data.

        Raises `CorruptStateError` with the path (below `path`) of a wrong value.
        """
        try:
            return cls._load(data)
        except CorruptStateError as error:
            raise CorruptStateError(f"{path}{error.path}", error.reason) from None

    @classmethod
    def _load(cls, data: object) -> Commit:
        # Paths start at the commit, so that they are built on failure only.
        form = None
        if type(data) is dict and type(data.get("kind")) is str:
            form = _FORMS.get(data["kind"])
        fitting = form is not None and fits(cast("dict[str, Any]", data), *form)
        f = cast("dict[str, Any]", data) if fitting else check_fields(data, "", _COMMON, _OTHERS)
        kind, status = _KINDS.get(f["kind"]), _STATUSES.get(f["status"])
        if kind is None or status is None:
            known = CommitKind if kind is None else JobStatus
            name = f["kind"] if kind is None else f["status"]
            raise CorruptStateError("", f"{name!r} is not a valid {known.__name__}")
        emissions: tuple[Emission, ...] = ()
        if "emissions" in f:
            emissions = load_emissions(f["emissions"])
        tasks: tuple[Task, ...] = ()
        if "tasks" in f:
            tasks = load_tasks(f["tasks"], emissions)
        if not fitting:
            _check_form(kind, f)
        if "detail" in f:
            check_fields(f["detail"], ".detail", *_DETAILS[kind])
        _check_tasks(kind, tasks)
        return cls(
            in_range(f["seq"], ".seq", least=1),
            kind,
            instant(f["at_ns"], ".at_ns"),
            status,
            f.get("task_id"),
            f.get("routine_id"),
            in_range(f["attempt"], ".attempt", least=1) if "attempt" in f else 0,
            instant(f["started_ns"], ".started_ns") if "started_ns" in f else None,
            in_range(f["worker"], ".worker") if "worker" in f else 0,
            emissions,
            tasks,
            load_writes(f["state"], ".state") if "state" in f else None,
            load_writes(f["shared"], ".shared") if "shared" in f else None,
            load_error(f["error"], ".error") if "error" in f else None,
            duration(f["delay_ns"], ".delay_ns") if "delay_ns" in f else None,
            instant(f["due_ns"], ".due_ns") if "due_ns" in f else None,
            f.get("detail"),
            load_effect(f["effect"], ".effect") if "effect" in f else None,
        )


@dataclass(slots=True)
class HistoryRecord:
    """One event in a job's history, such as a start or an emission.

    >>> HistoryRecord(1, 0, "fetch", "start", {"id": 7}, "0", 1).at.year
    1970
    """

    seq: int
    """The number of the commit that records this event."""
    at_ns: int
    """The time of that commit, in UTC nanoseconds."""
    routine_id: str
    """The routine."""
    event: str
    """`start`, an emitted event, `error`, `error_continued` or `skipped`."""
    data: Mapping[str, object]
    """The payload of the event, or the type and message of the error."""
    task_id: str
    """The task."""
    attempt: int
    """The number of the attempt, from 1."""

    @property
    def at(self) -> datetime:
        """The UTC time of the commit that records this event."""
        return from_ns(self.at_ns)


def history_of(commit: Commit) -> list[HistoryRecord]:
    """Return the events that a commit adds to the job's history."""
    kind = commit.kind
    task_id, routine_id, attempt = commit.task_id, commit.routine_id, commit.attempt
    events: list[tuple[str, Mapping[str, object]]] = []
    if kind is _START:
        root = commit.tasks[0]
        task_id, routine_id, attempt = root.task_id, root.routine_id, 1
        events.append(("start", root.payload))
    else:
        if commit.error is not None and kind in (_FAILED, _DROPPED):
            event = "error" if kind is _FAILED else cast(str, (commit.detail or {})["as"])
            events.append((event, {"type": commit.error.type, "message": commit.error.text}))
        events += [(emission.event, emission.payload) for emission in commit.emissions]
    if task_id is None or routine_id is None:
        return []
    return [
        HistoryRecord(commit.seq, commit.at_ns, routine_id, event, data, task_id, attempt)
        for event, data in events
    ]


def history_length(commit: Commit) -> int:
    """Return `len(history_of(commit))` without making the records."""
    kind = commit.kind
    if kind is _START:
        return 1
    if commit.task_id is None or commit.routine_id is None:
        return 0
    ends_by_error = commit.error is not None and kind in (_FAILED, _DROPPED)
    return len(commit.emissions) + ends_by_error


# --- fields of each kind of commit --------------------------------------------------------------

_COMMON: codec.Fields = {"seq": int, "kind": str, "at_ns": int, "status": str}
_OTHERS: codec.Fields = {
    **dict.fromkeys(("task_id", "routine_id"), str),
    **dict.fromkeys(("attempt", "started_ns", "worker", "delay_ns", "due_ns"), int),
    **dict.fromkeys(("emissions", "tasks"), list),
    **dict.fromkeys(("state", "shared", "error", "detail", "effect"), dict),
}


def _form(*required: str, optional: Sequence[str] = ()) -> tuple[codec.Fields, codec.Fields]:
    return (
        {**_COMMON, **{name: _OTHERS[name] for name in required}},
        {name: _OTHERS[name] for name in optional},
    )


_STEP: Final = ("task_id", "routine_id", "attempt", "started_ns")
_CREATED: Final = ("worker", "emissions", "tasks")
# The required and the optional fields of each kind of commit.
_FORMS: Final[Mapping[str, tuple[codec.Fields, codec.Fields]]] = {
    "start": _form("tasks", "detail"),
    "done": _form(*_STEP, optional=(*_CREATED, "state", "shared")),
    "retry": _form(*_STEP, "error", "delay_ns", "due_ns", optional=("worker", "detail")),
    "failed": _form(*_STEP[:3], "error", optional=("started_ns", *_CREATED)),
    "dropped": _form(*_STEP, "error", "detail", optional=_CREATED),
    "conflict": _form(*_STEP, optional=("worker",)),
    "effect": _form(*_STEP, "detail", "effect", optional=("worker",)),
    "interrupted": _form(*_STEP, "error", optional=("worker",)),
    "resumed": _form("detail"),
    "paused": _form(optional=("detail",)),
    "cancelled": _form(optional=("detail",)),
}
# Of the job as a whole, not one of its tasks.
_OF_THE_JOB: Final = {"interrupted": _form("error")}
_SHAPE: codec.Fields = {"shape": list, "routines": list}
_DETAILS: Final[Mapping[CommitKind, tuple[codec.Fields, codec.Fields]]] = {
    CommitKind.START: ({"flow_id": str, **_SHAPE}, {}),
    CommitKind.DROPPED: ({"as": str}, {}),
    CommitKind.RETRY: ({"spends": bool}, {}),
    CommitKind.EFFECT: ({"name": str}, {}),
    CommitKind.RESUMED: ({"recoveries": int, "retry_failed": bool}, _SHAPE),
    CommitKind.PAUSED: ({"reason": object}, {}),
    CommitKind.CANCELLED: ({"reason": object}, {}),
}
_KINDS: Final[Mapping[str, CommitKind]] = {kind.value: kind for kind in CommitKind}
_STATUSES: Final[Mapping[str, JobStatus]] = {status.value: status for status in JobStatus}


def _check_form(kind: CommitKind, found: Mapping[str, object]) -> None:
    of_the_job = "task_id" not in found and kind.value in _OF_THE_JOB
    required, optional = (_OF_THE_JOB if of_the_job else _FORMS)[kind.value]
    for name in sorted(required.keys() - found):
        raise CorruptStateError(f".{name}", f"is missing in a commit of kind {kind.value!r}")
    for name in sorted(found.keys() - required.keys() - optional.keys()):
        raise CorruptStateError(f".{name}", f"is not a field of a commit of kind {kind.value!r}")


def _check_tasks(kind: CommitKind, tasks: Sequence[Task]) -> None:
    first = kind is _START
    others = sum(task.emission != GATHER for task in tasks)
    if first and others != 1:
        raise CorruptStateError(".tasks", f"must hold 1 task in a 'start' commit, not {others}")
    for i, task in enumerate(tasks):
        if task.emission == GATHER and i:
            if len(task.payload) != 1 or task.into is not None:
                reason = "must be a gather with 1 parameter"
                raise CorruptStateError(f".tasks[{i}]", reason)
        elif (task.emission < 0) is not (first and not i):
            reason = "must be -1 in the first task of a job, and 0 or more in any other task"
            raise CorruptStateError(f".tasks[{i}].emission", f"{reason} except a gather")
