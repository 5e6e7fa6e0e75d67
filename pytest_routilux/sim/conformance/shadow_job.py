"""What is known of a job from its commits alone: a second account, to hold against the engine's.

Laws:
- It takes nothing from the engine but the commits and the steps that began. Whatever it says can be
  checked by hand, from a list of commits.
- It is right of a job whose laws hold so far: whoever keeps it stops at the first that does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from routilux import JobStatus

if TYPE_CHECKING:
    from routilux import Commit, StepInput
    from routilux.graph.messages import Task, Writes

__all__ = ["MOST_CONFLICTS", "ShadowJob", "ShadowTask"]

MOST_CONFLICTS: Final = 3


@final
class ShadowTask:
    """What is known of one task.

    `attempt` is the next to be made, `spent` the retries so far, `since_resume` those of them that
    were spent since the last host went on, None while there was only one. `due` is when it may run,
    `delay` the wait that it is in; it is there to be begun since `ready`. `ended` says how it did.
    """

    __slots__ = (
        "attempt",
        "conflicts",
        "created",
        "delay",
        "due",
        "ended",
        "failed",
        "first",
        "ready",
        "recorded",
        "resumed",
        "since_resume",
        "spent",
        "task",
    )

    def __init__(self, task: Task, created: int) -> None:
        self.task = task
        self.created = created
        self.due = created
        self.ready = created
        self.delay = 0
        self.attempt = 1
        self.spent = 0
        self.since_resume: int | None = None
        self.resumed = 0
        self.first: int | None = None
        self.conflicts = 0
        self.ended: str | None = None
        self.failed = False
        self.recorded: set[str] = set()

    def __str__(self) -> str:
        return f"{self.task.routine_id} (task {self.task.task_id})"


@final
class ShadowJob:
    """The tasks of a job's tasks, its data, and which of its places to work are taken.

    `free_since` is when a place became free that is free now; `idle_since` when all of them were.
    """

    __slots__ = (
        "aloof",
        "at",
        "attempts",
        "busy",
        "dropped",
        "flights",
        "free_since",
        "idle_since",
        "limits",
        "open",
        "outputs",
        "retries",
        "room_since",
        "shared",
        "start",
        "state",
        "status",
        "tasks",
        "width",
    )

    def __init__(self, width: int, limits: dict[str, int]) -> None:
        self.width = width
        self.limits = limits
        self.status = JobStatus.PENDING
        self.start = 0
        self.at = -(1 << 63)
        self.tasks: dict[str, ShadowTask] = {}
        self.open: dict[str, ShadowTask] = {}
        self.state: dict[str, dict[str, object]] = {}
        self.shared: dict[str, object] = {}
        self.outputs: list[tuple[str, str]] = []
        self.dropped = 0
        self.attempts: dict[str, int] = {}
        self.retries: dict[str, int] = {}  # all that were made, by routine
        self.flights: dict[str, StepInput] = {}
        self.busy: dict[str, int] = {}
        self.aloof = 0  # pending tasks that run alone
        self.free_since = self.idle_since = self.at
        self.room_since: dict[str, int] = {}

    # --- steps ----------------------------------------------------------------------------------

    def began(self, step: StepInput) -> None:
        """Take a place for a step."""
        routine = step.task.routine_id
        self.flights[step.task.task_id] = step
        self.busy[routine] = self.busy.get(routine, 0) + 1

    def left(self, account: ShadowTask, at: int) -> None:
        """Free the place of a step that has ended, if it was seen to begin."""
        if self.flights.pop(account.task.task_id, None) is None:
            return
        routine = account.task.routine_id
        busy = self.busy[routine]
        self.busy[routine] = busy - 1
        if busy == self.limits[routine]:
            self.room_since[routine] = at
        if len(self.flights) == self.width - 1 or self.aloof:
            self.free_since = at
        if not self.flights:
            self.idle_since = at

    # --- commits --------------------------------------------------------------------------------

    def create(self, commit: Commit) -> None:
        """Open the tasks of the tasks that a commit creates."""
        for task in commit.tasks:
            self.tasks[task.task_id] = self.open[task.task_id] = ShadowTask(task, commit.at_ns)

    def close(self, account: ShadowTask, ended: str) -> None:
        """Note that a task is over."""
        account.ended = ended
        if account.conflicts >= MOST_CONFLICTS:
            self.aloof -= 1
        del self.open[account.task.task_id]

    def spend(self, account: ShadowTask, commit: Commit) -> None:
        """Note an attempt that is to be made again after a wait."""
        account.attempt += 1
        account.spent += 1
        if account.since_resume is not None:
            account.since_resume += 1
        account.delay = commit.delay_ns or 0
        account.due = commit.due_ns or 0
        routine = account.task.routine_id
        self.retries[routine] = self.retries.get(routine, 0) + 1

    def conflict(self, account: ShadowTask, at: int) -> None:
        """Note an attempt that is to be made again at once, and in the end alone."""
        account.conflicts += 1
        account.ready = at
        self.aloof += account.conflicts == MOST_CONFLICTS

    def write(self, routine: str, state: Writes | None, shared: Writes | None) -> None:
        """Fold in what an attempt wrote."""
        if state is not None:
            self.state[routine] = _folded(self.state.get(routine, {}), state)
        if shared is not None:
            self.shared = _folded(self.shared, shared)

    def resume(self, commit: Commit) -> None:
        """Let another host go on: nothing is in flight, waits go on, the failed may begin anew."""
        at = commit.at_ns
        detail = commit.detail or {}
        self.flights.clear()
        self.busy.clear()
        self.room_since.clear()
        self.free_since = self.idle_since = at
        withdrawn = detail.get("withdrawn")
        for task_id in withdrawn if isinstance(withdrawn, list) else ():
            if task_id in self.open:
                del self.open[task_id], self.tasks[task_id]
        for account in self.open.values():
            account.resumed = at
            account.since_resume = 0
            if account.failed and detail.get("retry_failed"):
                account.failed = False
                account.spent = 0
                account.first = None
                account.due = at
            elif account.due > at:
                account.due = at + min(account.due - at, account.delay)


def _folded(old: dict[str, object], writes: Writes) -> dict[str, object]:
    kept = {key: value for key, value in old.items() if key not in writes.removed}
    return {**kept, **writes.values}
