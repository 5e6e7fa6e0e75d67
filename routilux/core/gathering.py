"""Gathers of a job: who keeps them open, what they receive, and when they are ready.

Invariants:
- A gather's task is pending from the commit on that begins its scope. It becomes ready once: in
  the commit that ends the last task which keeps it open, since it could still deliver.
- A commit holds all that `create` needs, so that a job can be rebuilt without its flow.
- Deliveries are in the order of lineage: each emission in its place, whichever task ended first. A
  task's place passes to its children, so that no path is ever compared.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from routilux.core.commits import CommitKind
from routilux.core.parts import Deliveries, Gathering, PendingTask, Place
from routilux.core.wire.ranges import LONGEST_ID
from routilux.errors import CorruptStateError, IllegalTransitionError
from routilux.graph.messages import GATHER, Collected, DroppedTask, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux.core.commits import Commit
    from routilux.core.parts import Entry
    from routilux.graph.gathers import Gathers

_FAILED = CommitKind.FAILED
_NO_GATHERS: Final[Mapping[int, str]] = {}


def child_id(parent: str, number: int | str) -> str:
    """Return the id of child `number` of the task `parent`.

    >>> child_id("0.1", 2)
    '0.1.2'
    """
    name = f"{parent}.{number}"
    if len(name) <= LONGEST_ID:
        return name
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{number}"


class Scope:
    """The open gathers around a task: the id of each by its number in the flow."""

    __slots__ = ("_gathers", "_ids", "_keeps")

    def __init__(self, gathers: Gathers, ids: Mapping[int, str] = _NO_GATHERS) -> None:
        self._gathers = gathers
        self._ids = ids
        self._keeps: dict[str, tuple[str, ...]] = {}  # by routine: thousands may be alike

    @classmethod
    def around(cls, gathers: Gathers, task: Task, pending: Mapping[str, PendingTask]) -> Scope:
        """Return the scope in which the children of `task` are created."""
        kept = [pending[gather_id].task for gather_id in task.keeps]
        return cls(gathers, {gathers.numbers[g.routine_id, g.slot]: g.task_id for g in kept})

    def placed(self, created: Sequence[Task]) -> list[Task]:
        """Return new tasks, with the gathers whose scope they begin."""
        tasks: list[Task] = []
        for task in created:
            number = self._gathers.numbers.get((task.routine_id, task.slot))
            if number is None:
                self.begin(tasks, task, self._gathers.opened_by.get(task.routine_id, ()))
            else:
                task.into = self._ids[number]  # `entry_checks` lets no task be outside of a scope
                tasks.append(task)
        return tasks

    def begin(self, tasks: list[Task], task: Task, opened: Sequence[int]) -> None:
        """Add a task, and the gathers numbered `opened`, whose scope the task begins."""
        scope = self
        if opened:
            own = {number: child_id(task.task_id, f"g{number}") for number in opened}
            scope = Scope(self._gathers, {**self._ids, **own})
        task.keeps = scope._kept_by(task.routine_id)
        tasks.append(task)
        for number in opened:
            slot = self._gathers.slots[number]
            values: dict[str, object] = {slot.parameter: []}
            gather = Task(own[number], slot.routine_id, slot.slot, values, False, GATHER)
            scope.begin(tasks, gather, self._gathers.opened_by.get(slot.routine_id, ()))

    def _kept_by(self, routine_id: str) -> tuple[str, ...]:
        keeps = self._keeps.get(routine_id)
        if keeps is None:
            upstream = self._gathers.upstream.get(routine_id, ())
            keeps = tuple([gather for number, gather in self._ids.items() if number in upstream])
            self._keeps[routine_id] = keeps
        return keeps


def gathers_in(shape: Sequence[str]) -> bool:
    """Return whether a flow of this shape may have gathers."""
    return "(gathers" in "\n".join(shape)


def create(
    commit: Commit,
    parent: PendingTask | None,
    dropped: DroppedTask | None,
    pending: dict[str, PendingTask],
    reports: dict[str, None] | None,
) -> list[PendingTask]:
    """Add the tasks and the deliveries of a commit to a job whose flow has gathers.

    `parent` is the task that the commit belongs to, `dropped` its record if the commit drops it.
    The new tasks report a failure, and are added to `reports`, unless it is None. Returns the
    tasks to schedule: new ones, and gathers that are now ready.
    """
    created: list[PendingTask] = []
    for task in commit.tasks:
        if task.into is not None:
            continue
        new = PendingTask(task, commit.seq, len(created), commit.at_ns)
        pending[task.task_id] = new
        if task.emission == GATHER:
            new.gathering = Gathering()  # it is not ready, and reports no failure
            continue
        created.append(new)
        if reports is not None:
            new.reports = True
            reports[task.task_id] = None
    return created + _advance(commit, parent, dropped, pending)


def _advance(
    commit: Commit,
    parent: PendingTask | None,
    dropped: DroppedTask | None,
    pending: Mapping[str, PendingTask],
) -> list[PendingTask]:
    """Apply a commit to the open gathers, and return those that are now ready."""
    places: dict[str, Place] = {}  # where the next entry of each gather goes
    kept: tuple[str, ...] = ()
    if parent is not None:
        kept = parent.task.keeps
        places = dict(zip(kept, parent.places, strict=True))
        for place in parent.places:
            place.entry = dropped
    for task in commit.tasks:
        if task.into is not None:
            _deliver(places, commit, task, task.into, pending)
            continue
        for gather in task.keeps:
            _gathering(pending, gather).waits_for += 1
        pending[task.task_id].places = tuple(
            [_enter(places, gather, task.task_id, pending) for gather in task.keeps]
        )
    if parent is not None and commit.kind is _FAILED:  # its children after a retry come last
        parent.places = tuple([_enter(places, g, parent.task_id, pending) for g in kept])
        return []
    ready: list[PendingTask] = []
    for gather in kept:
        gathering = _gathering(pending, gather)
        gathering.waits_for -= 1
        if not gathering.waits_for:
            ended = pending[gather]
            ended.seq, ended.due_ns = commit.seq, commit.at_ns
            ended.position = len(commit.tasks) + len(ready)
            _collect(ended, gathering)
            ready.append(ended)
    return ready


def link(
    pending: Mapping[str, PendingTask], entries: Mapping[str, Sequence[Entry]], path: str
) -> None:
    """Restore the gathers among `pending` from their entries, by the id of the gather.

    Raises `CorruptStateError` if the entries and the tasks do not fit; `path` is that of the tasks.
    """
    places: dict[str, dict[str, Place]] = {}
    for gather, listed in entries.items():
        gathering = _gathering(pending, gather)
        last = gathering.first
        for entry in listed:
            last.next = last = Place(entry)
            if isinstance(entry, str):
                own = places.setdefault(entry, {})
                if gather in own or entry not in pending:
                    reason = "twice" if gather in own else "is not pending"
                    raise CorruptStateError(path, f"gather {gather} waits for {entry}, {reason}")
                own[gather] = last
                gathering.waits_for += 1
            else:
                gathering.deliveries += len(entry.payloads) if isinstance(entry, Deliveries) else 0
    for task in pending.values():
        own, keeps = places.get(task.task_id, {}), task.task.keeps
        if own.keys() != set(keeps):
            other = min(own.keys() ^ set(keeps))
            reason = (
                f"task {task.task_id} and gather {other} do not agree that one waits for the other"
            )
            raise CorruptStateError(path, reason)
        task.places = tuple([own[gather] for gather in keeps])
    for gather in entries:
        gathering = _gathering(pending, gather)
        if not gathering.waits_for:
            _collect(pending[gather], gathering)


def check_gathers(pending: Mapping[str, PendingTask], path: str) -> None:
    """Raise `CorruptStateError` for gathers that wait for each other or have run too early."""
    waits = {t.task_id: t.gathering.waits_for for t in pending.values() if t.gathering is not None}
    ended = [task for task in pending.values() if not waits.get(task.task_id)]
    for task in ended:  # as if each task ended in turn
        for gather in task.task.keeps:
            waits[gather] -= 1
            if not waits[gather]:
                ended.append(pending[gather])
    if len(ended) < len(pending):
        raise CorruptStateError(path, "gathers wait for each other")
    for task in pending.values():
        begun = (task.attempt, task.conflicts, task.failed) != (1, 0, False) or task.effects
        if task.gathers and begun:
            raise CorruptStateError(path, f"gather {task.task_id} has run before it was ready")


def wrong_gathers(commit: Commit, pending: Mapping[str, PendingTask]) -> str | None:
    """Return what is wrong with the gathers in a loaded commit; None if nothing is."""
    parent = pending.get(commit.task_id or "")
    kept = () if parent is None else parent.task.keeps
    known = {gather: pending[gather].task for gather in kept}
    opened = {task.task_id: task for task in commit.tasks if task.emission == GATHER}
    kept_open = {name for task in commit.tasks for name in task.keeps}
    begun: set[str] = set()
    for task in commit.tasks:
        if task.into is not None:
            gather = known.get(task.into)
            if gather is None or task.keeps:
                return f"it delivers to {task.into}, which is not a gather that its task keeps open"
            if (gather.routine_id, gather.slot) != (task.routine_id, task.slot):
                return f"it delivers to {task.into} as {task.routine_id}.{task.slot}"
            continue
        if task.emission == GATHER:
            if task.task_id not in kept_open:
                return f"no task keeps its gather {task.task_id} open"
            begun.add(task.task_id)
        for name in task.keeps:
            if name not in known and (name not in opened or name in begun):
                return f"its task {task.task_id} keeps {name}, which is not an open gather"
    return None


def _collect(ready: PendingTask, gathering: Gathering) -> None:
    """Give a gather that waits for no task what its step needs."""
    payloads: list[dict[str, object]] = []
    sources: list[tuple[str, str]] = []
    dropped: list[DroppedTask] = []
    for entry in gathering.entries():
        if isinstance(entry, Deliveries):
            payloads += entry.payloads
            sources += [(entry.routine_id, entry.event)] * len(entry.payloads)
        elif isinstance(entry, DroppedTask):
            dropped.append(entry)
    task = ready.task
    values: dict[str, object] = dict.fromkeys(task.payload, payloads)
    ready.task = Task(task.task_id, task.routine_id, task.slot, values, False, GATHER, task.keeps)
    gathering.collected = Collected(tuple(dropped), tuple(sources))


def _gathering(pending: Mapping[str, PendingTask], gather: str) -> Gathering:
    gathering = pending[gather].gathering
    if gathering is None:
        raise IllegalTransitionError(f"task {gather} is not a gather")
    return gathering


def _deliver(
    places: dict[str, Place],
    commit: Commit,
    task: Task,
    gather: str,
    pending: Mapping[str, PendingTask],
) -> None:
    _gathering(pending, gather).deliveries += 1
    event = commit.emissions[task.emission].event
    place = places.get(gather)
    last = None if place is None else place.entry
    if isinstance(last, Deliveries) and last.event == event:  # of this commit, as the place is
        last.payloads.append(task.payload)
    else:
        entry = Deliveries(str(commit.routine_id), event, [task.payload])
        _enter(places, gather, entry, pending)


def _enter(
    places: dict[str, Place], gather: str, entry: Entry, pending: Mapping[str, PendingTask]
) -> Place:
    place = places.get(gather)
    if place is None:  # the scope begins
        place = _gathering(pending, gather).first
    if place.entry is not None:
        place.next = place = Place(None, place.next)
    place.entry = entry
    places[gather] = place
    return place
