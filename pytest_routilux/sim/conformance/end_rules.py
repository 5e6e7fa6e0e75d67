"""Rules for what a user reads of a job: history, outputs, dropped tasks, counts, errors.

Invariants:
- Everything is counted a second time, from the commits alone and by the words of the rules.
- The counts of a routine, its worst outcome and its most retries are those of its tasks.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, final

from pytest_routilux.sim.conformance.retry_rules import fail
from routilux import CommitKind, ErrorInfo
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux import Commit, JobState

_WORST_FIRST: Final = ("failed", "error_continued", "skipped", "completed")


@final
class _Reading:
    """What the commits of a job say to a user."""

    def __init__(self) -> None:
        self.history: list[tuple[object, ...]] = []
        self.outputs: list[tuple[object, ...]] = []
        self.dropped: list[tuple[object, ...]] = []
        self.counts: dict[str, Counter[str]] = {}
        self.most_retries: Counter[str] = Counter()
        self.errors: dict[str, ErrorInfo | None] = {}
        self.error: ErrorInfo | None = None
        self.recoveries = 0
        self._tasks: dict[str, tuple[str, str, object]] = {}  # routine, slot, payload
        self._retries: Counter[str] = Counter()
        self._failed: set[str] = set()

    def read(self, commit: Commit) -> None:
        kind, task_id, routine = commit.kind, commit.task_id, commit.routine_id
        data = commit.seq, commit.at_ns
        if kind is CommitKind.START:
            root = commit.tasks[0]
            names = root.task_id, 1
            self.history.append((*data, root.routine_id, "start", root.payload, *names))
        elif kind is CommitKind.RESUMED:
            self._resume(commit.detail or {})
        elif task_id is not None and routine is not None:
            self._end(commit, task_id, routine)
            events: list[tuple[str, object]] = []
            if kind in (CommitKind.FAILED, CommitKind.DROPPED) and commit.error is not None:
                name = "error" if kind is CommitKind.FAILED else str((commit.detail or {})["as"])
                what = {"type": commit.error.type, "message": commit.error.text}
                events.append((name, what))
            events += [(emission.event, emission.payload) for emission in commit.emissions]
            self.history += [
                (*data, routine, event, what, task_id, commit.attempt) for event, what in events
            ]
        elif kind is CommitKind.FAILED:
            self.error = commit.error
        delivered = {task.emission for task in commit.tasks}
        self.outputs += [
            (commit.seq, routine, emission.event, emission.payload, task_id)
            for index, emission in enumerate(commit.emissions)
            if index not in delivered
        ]
        for task in commit.tasks:
            self._tasks[task.task_id] = task.routine_id, task.slot, task.payload

    def _resume(self, detail: Any) -> None:
        self.recoveries = detail["recoveries"]
        if not detail["retry_failed"]:
            return
        self.error = None
        for task_id in self._failed:
            routine = self._tasks[task_id][0]
            self._retries[task_id] = 0
            self.counts[routine]["failed"] = 0
            self.errors[routine] = None
        self._failed.clear()

    def _end(self, commit: Commit, task_id: str, routine: str) -> None:
        kind = commit.kind
        counts = self.counts.setdefault(routine, Counter())
        if kind.ends_attempt or kind is CommitKind.EFFECT:
            self.recoveries = 0
        if kind is CommitKind.DONE:
            counts["completed"] += 1
        elif kind is CommitKind.RETRY:
            self._retries[task_id] += commit.detail is None
            self.most_retries[routine] = max(self.most_retries[routine], self._retries[task_id])
        elif kind is CommitKind.FAILED:
            counts["failed"] += 1
            self._failed.add(task_id)
            self.errors[routine] = commit.error
            self.error = self.error or commit.error
        elif kind is CommitKind.DROPPED:
            outcome = str((commit.detail or {})["as"])
            counts[outcome] += 1
            self.errors[routine] = commit.error
            owner, slot, payload = self._tasks[task_id]
            self.dropped.append(
                (commit.seq, task_id, owner, slot, payload, commit.attempt, outcome, commit.error)
            )


def _plain(value: object) -> object:
    """Return an error in a record as texts, which can be compared."""
    if isinstance(value, ErrorInfo):
        return value.type, value.text, value.where
    if isinstance(value, list):
        return [tuple(map(_plain, entry)) for entry in value]
    return value


def check_reading(commits: Sequence[Commit], job: JobState) -> None:
    """Check that `job` says what its commits say; raise `BrokenRuleError` if not."""
    known = _Reading()
    for commit in commits:
        known.read(commit)
    history = [
        (r.seq, r.at_ns, r.routine_id, r.event, r.data, r.task_id, r.attempt)
        for r in job.execution_history
    ]
    outputs = [(o.seq, o.routine_id, o.event, o.data, o.task_id) for o in job.outputs]
    dropped: list[tuple[object, ...]] = [
        (d.seq, d.task_id, d.routine_id, d.slot, d.payload, d.attempt, d.outcome, d.error)
        for d in job.dropped
    ]
    gathers = {task.task_id for commit in commits for task in commit.tasks if task.emission == -2}
    if gathers:  # the payload of a gather is what it has collected, which no task carries
        dropped, known.dropped = (
            [(*entry[:4], None, *entry[5:]) if entry[1] in gathers else entry for entry in each]
            for each in (dropped, known.dropped)
        )
    of_job: list[tuple[str, object, object]] = [
        ("execution_history", known.history, history),
        ("outputs", known.outputs, outputs),
        ("dropped", known.dropped, dropped),
        ("error", known.error, job.error),
        ("recoveries", known.recoveries, job.recoveries),
        ("retry_count()", max(known.most_retries.values(), default=0), job.retry_count()),
        ("started_ns", commits[0].at_ns, job.started_ns),
        ("updated_ns", commits[-1].at_ns, job.updated_ns),
        ("seq", commits[-1].seq, job.seq),
    ]
    for name, mine, its in of_job:
        _check(name, None, mine, its)
    for routine, state in job.routine_states.items():
        counts = known.counts.get(routine, Counter())
        worst = next((name for name in _WORST_FIRST if counts[name]), "pending")
        of_routine: list[tuple[str, object, object]] = [
            *((name, counts[name], getattr(state, name)) for name in _WORST_FIRST),
            ("status", worst, state.status.value),
            ("retry_count", known.most_retries[routine], state.retry_count),
            ("error", known.errors.get(routine), state.error),
        ]
        for name, mine, its in of_routine:
            _check(name, routine, mine, its)


def _check(name: str, routine: str | None, mine: object, its: object) -> None:
    mine, its = _plain(mine), _plain(its)
    if same_value(mine, its):
        return
    whose = "the job" if routine is None else routine
    difference = first_difference(mine, its, name)
    what = f"{whose} says another {name} than its commits: {difference}"
    fail("reading-wrong", what, None, routine)
