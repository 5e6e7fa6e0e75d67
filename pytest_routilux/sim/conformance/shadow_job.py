"""A second model of a job, independent of the engine.

Invariants:
- Its only input is the commits and the steps that started. A reader can check each value by hand
  from a list of commits.
- It is valid only until the first broken rule; the checker stops there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from routilux import JobStatus

if TYPE_CHECKING:
    from routilux import Commit, StepInput
    from routilux.graph.messages import Task, Writes
    from routilux.graph.patches import Patch

MOST_CONFLICTS: Final = 3
_NEVER: Final = -(1 << 63)
Path = tuple[tuple[int, int], ...]


@final
@dataclass(slots=True)
class ShadowTask:
    """The state of one task of a `ShadowJob`.

    `attempt` is the next attempt, `retries` the number of retries so far, and `since_resume` those
    since the last resume, None before the first one. `due` is when the task may start, `delay` the
    wait before it, `ready` when it last became pending, `first` when its first attempt started.
    `ended` says how the task ended. `children` counts the tasks that its failures created.
    `created` is the commit that created it and its place there, `step` the number of its last step
    and of the last commit before it. `reports`: an event `error` of the engine created the task or
    an ancestor. `number` is its place among the children of `parent`: gathers come last. A gather
    `waits` until no task can deliver to it; `deliveries` are (path, payload, source), `dropped`
    (path, task id).
    """

    task: Task
    due: int
    ready: int
    delay: int = 0
    attempt: int = 1
    retries: int = 0
    since_resume: int | None = None
    resumed: int = 0
    first: int | None = None
    conflicts: int = 0
    ended: str | None = None
    failed: bool = False
    effects: set[str] = field(default_factory=set)
    children: int = 0
    reports: bool = False
    parent: ShadowTask | None = None
    number: tuple[int, int] = (0, 0)
    created: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (0, 0)
    gather: bool = False
    waits: bool = False
    deliveries: list[tuple[Path, dict[str, object], tuple[str, str]]] = field(default_factory=list)
    dropped: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The numbers of the first task, of its child, and so on, up to this task."""
        numbers, shadow = [self.number], self.parent
        while shadow is not None:
            numbers.append(shadow.number)
            shadow = shadow.parent
        return tuple(reversed(numbers))

    def __str__(self) -> str:
        return f"{self.task.routine_id} (task {self.task.task_id})"


@final
@dataclass(slots=True)
class ShadowJob:
    """A model of one job: tasks, data and steps in flight.

    `width` bounds the steps in flight, `limits` those of each routine. `free_since` is when the
    last step ended that left room for another one, `idle_since` when the last of all ended, and
    `routine_free_since` when a routine last left its limit. `alone` counts the pending tasks that
    run with no other step in flight, since they conflicted too often. `interrupted` says that the
    run was broken off, so nothing happens until a host resumes the job; `failing` that a task has
    failed, so that only tasks which report a failure start. `in_flight` is by task;
    `attempts`, `retries` and `in_flight_of` count by routine. `written` is the last commit that
    changed each shared key.
    """

    width: int
    limits: dict[str, int]
    status: JobStatus = JobStatus.PENDING
    start: int = 0
    at: int = _NEVER
    free_since: int = _NEVER
    idle_since: int = _NEVER
    alone: int = 0
    dropped: int = 0
    interrupted: bool = False
    failing: bool = False
    shared: dict[str, object] = field(default_factory=dict)
    state: dict[str, dict[str, object]] = field(default_factory=dict)
    tasks: dict[str, ShadowTask] = field(default_factory=dict)
    open: dict[str, ShadowTask] = field(default_factory=dict)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    in_flight: dict[str, StepInput] = field(default_factory=dict)
    in_flight_of: dict[str, int] = field(default_factory=dict)
    routine_free_since: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)

    # --- steps ----------------------------------------------------------------------------------

    def start_step(self, step: StepInput) -> None:
        routine = step.task.routine_id
        self.in_flight[step.task.task_id] = step
        self.in_flight_of[routine] = self.in_flight_of.get(routine, 0) + 1

    def end_step(self, shadow: ShadowTask, at: int) -> None:
        """Remove a task's step from the steps in flight."""
        if self.in_flight.pop(shadow.task.task_id, None) is None:
            return
        routine = shadow.task.routine_id
        if self.in_flight_of[routine] == self.limits[routine]:
            self.routine_free_since[routine] = at
        self.in_flight_of[routine] -= 1
        if len(self.in_flight) == self.width - 1 or self.alone:
            self.free_since = at
        if not self.in_flight:
            self.idle_since = at

    # --- commits --------------------------------------------------------------------------------

    def create(self, commit: Commit, number: int = 0, *, reports: bool = False) -> None:
        """Add the new tasks of `commit`; its task has created `number` tasks before."""
        parent = self.tasks.get(commit.task_id or "")
        for place, task in enumerate(commit.tasks):
            if task.into is None:
                shadow = ShadowTask(task, commit.at_ns, commit.at_ns, reports=reports)
                shadow.created = commit.seq, place
                self.tasks[task.task_id] = self.open[task.task_id] = shadow
                if parent is not None:
                    shadow.parent, shadow.number = parent, (0, number)
            number += task.emission >= 0

    def close(self, shadow: ShadowTask, ended: str) -> None:
        shadow.ended = ended
        if shadow.conflicts >= MOST_CONFLICTS:
            self.alone -= 1
        del self.open[shadow.task.task_id]

    def retry(self, shadow: ShadowTask, commit: Commit) -> None:
        shadow.attempt += 1
        spends = commit.detail is None
        shadow.retries += spends
        if shadow.since_resume is not None:
            shadow.since_resume += spends
        shadow.delay = commit.delay_ns or 0
        shadow.due = commit.due_ns or 0
        routine = shadow.task.routine_id
        self.retries[routine] = self.retries.get(routine, 0) + spends

    def conflict(self, shadow: ShadowTask, at: int) -> None:
        """Count a conflict of a task."""
        shadow.conflicts += 1
        shadow.ready = at
        self.alone += shadow.conflicts == MOST_CONFLICTS

    def write(
        self, routine: str, state: Writes | None, shared: Writes | None, seq: int = 0
    ) -> None:
        if state is not None:
            self.state[routine] = _written(self.state.get(routine, {}), state)
        if shared is not None:
            self.shared = _written(self.shared, shared)
            self.written.update(dict.fromkeys(shared.keys, seq))

    def begin_host(self, at: int) -> None:
        """Forget the steps in flight of the host before."""
        self.interrupted = False
        self.in_flight.clear()
        self.in_flight_of.clear()
        self.routine_free_since.clear()
        self.free_since = self.idle_since = at

    def resume(self, commit: Commit) -> None:
        """Apply a commit in which a new host resumes the job."""
        at = commit.at_ns
        detail = commit.detail or {}
        self.begin_host(at)
        if detail.get("retry_failed"):
            self.failing = False
        for shadow in self.open.values():
            shadow.resumed = at
            shadow.since_resume = 0
            if shadow.failed and detail.get("retry_failed"):
                shadow.failed = False
                shadow.retries = 0
                shadow.first = None
                shadow.due = at
            elif shadow.due > at:
                shadow.due = at + min(shadow.due - at, shadow.delay)


def _written(old: dict[str, object], writes: Writes) -> dict[str, object]:
    kept = {key: value for key, value in old.items() if key not in writes.removed}
    new = {**kept, **writes.values}
    for key, patches in writes.patches.items():
        for patch in patches:
            new[key] = _after(patch, new[key]) if key in new else patch.operand
    return new


def _after(patch: Patch, old: Any) -> Any:
    """Return a value after a patch, by the words of the rules and not by the engine's code."""
    new = patch.operand
    match patch.kind:
        case "add":
            return old + new
        case "extend":
            return [*old, *new]
        case "union":
            return {*old, *new}
        case "maximum":
            return max(old, new)
        case "minimum":
            return min(old, new)
        case "splice":
            at, removed, items = new
            return [*old[:at], *items, *old[at + removed :]]
    values, removed, inside = new
    pairs = dict(enumerate(old)) if type(old) is list else old
    kept = {key: value for key, value in pairs.items() if key not in removed}
    kept |= {key: _after(each, pairs[key]) for key, each in inside.items()}
    kept |= values
    return [*kept.values()] if type(old) is list else kept
