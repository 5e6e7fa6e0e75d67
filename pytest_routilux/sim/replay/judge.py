"""Compares what attempts did with what they would do today.

Invariants:
- Values count, not the form in which a commit keeps them: a patch and the whole list are equal.
- A value that changes with the clock or with random numbers of the process is no input of the job.
  It is left out, and counted.
- Line numbers, tracebacks and the status of the job, which depends on other steps, do not count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import definition_of
from pytest_routilux.sim.oracle import masked, trie_of, varying
from pytest_routilux.sim.replay.steps import Repeated, repeat
from pytest_routilux.text import count, error_text, seconds, shown, without_addresses
from routilux import Commit, CommitKind, JobState
from routilux.codec.equality import first_difference, same_value
from routilux.graph.diff import shape_changes
from routilux.graph.growing import plain_values

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from routilux import Flow
    from routilux.graph.messages import Writes

Row = tuple[str, str, str]
"""What differs: its name, what was recorded, and what happens today."""

_ABSENT: Final = "nothing"
_NO_FIELD: Final = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """The first attempt of a job that would do something else today."""

    place: str
    job: JobState
    commit: Commit
    rows: Sequence[Row]
    equal: Sequence[str]
    where: str
    changes: Sequence[str]


@dataclass(slots=True)
class Replay:
    """What `FlowSim.replay` has compared.

    >>> print(Replay(jobs=2, steps=9))
    9 steps of 2 jobs do what was recorded
    """

    jobs: int = 0
    """The jobs of which at least one step was compared."""
    steps: int = 0
    """The steps, that is attempts, that were run again and do what was recorded."""
    not_compared: Counter[str] = field(default_factory=Counter)
    """How many steps were not compared, by the reason."""
    varying: Counter[str] = field(default_factory=Counter)
    """The values that were not compared in compared steps, since they change with the clock."""

    def __str__(self) -> str:
        return f"{self.compared} do what was recorded{self.left_out}"

    @property
    def compared(self) -> str:
        """How many steps of how many jobs were run again, in words."""
        return f"{count(self.steps, 'step')} of {count(self.jobs, 'job')}"

    @property
    def left_out(self) -> str:
        """What was not compared, in words; "" if there is nothing."""
        text = ""
        for reason, times in self.not_compared.most_common():
            text += f"; {times} not compared: {reason}"
        if self.varying:
            names = ", ".join(self.varying)
            text += f"; values of the clock or of random numbers not compared: {names}"
        return text


def first_other_step(flow: Flow, job: JobState, place: str, replay: Replay) -> Difference | None:
    """Run each attempt of a job again, and return the first that differs.

    Adds to `replay` what was compared.
    """
    if job.flow_id != flow.flow_id:
        replay.not_compared[f"a job of flow {job.flow_id!r}, not of {flow.flow_id!r}"] += 1
        return None
    if not job.commits or job.commits[0].seq != 1:
        replay.not_compared["a job without its first commits (it has a history_limit)"] += 1
        return None
    walk = _Walk(flow, job, place, replay)
    before = replay.steps
    difference = next(walk.differences(), None)
    replay.jobs += replay.steps > before or difference is not None
    return difference


class _Walk:
    """Folds the commits of one job again, and judges each attempt on the way."""

    def __init__(self, flow: Flow, job: JobState, place: str, replay: Replay) -> None:
        self._plan = flow.plan()
        self._recorded = job
        self._place = place
        self._replay = replay
        self._job = JobState(job.job_id)
        self._made: dict[tuple[str | None, int], set[str]] = {}
        # The states of each routine, with the time of the commit that wrote it.
        self._states: dict[str, list[tuple[int, dict[str, object]]]] = {}

    def differences(self) -> Iterator[Difference]:
        for commit in self._recorded.commits:
            attempt = commit.task_id, commit.attempt
            if commit.kind is CommitKind.EFFECT:
                name = str((commit.detail or {}).get("name"))
                self._made.setdefault(attempt, set()).add(name)
            elif commit.kind.ends_attempt:
                difference = self._judge(commit, self._made.pop(attempt, set()))
                if difference is not None:
                    yield difference
            self._job.fold(commit)
            routine = commit.routine_id
            if routine is not None and commit.state is not None:
                kept = self._job.routine_states[routine].kept
                self._states.setdefault(routine, []).append((commit.at_ns, kept))

    def _judge(self, commit: Commit, made: Collection[str]) -> Difference | None:
        reason = _unknown(commit)
        if reason:
            self._replay.not_compared[reason] += 1
            return None
        pending = self._job._pending[commit.task_id or ""]
        routine = self._plan.routines.get(pending.routine_id)
        if routine is None or pending.slot not in routine.slots:
            what = f"{pending.routine_id}.{pending.slot}"
            return self._difference(commit, [(f"slot {what}", "there", "not in the flow")], [])
        found, rows, equal = self._best(commit, made)
        if not rows:
            self._replay.steps += 1
            return None
        if found.unknown:
            self._replay.not_compared[f"{pending.routine_id}: {found.unknown}"] += 1
            return None
        self._replay.steps += 1
        return self._difference(commit, rows, equal)

    def _best(self, commit: Commit, made: Collection[str]) -> tuple[Repeated, list[Row], list[str]]:
        """Run an attempt with each state that it can have begun with; return the first that fits.

        A routine of several steps at a time may have read its state before another step wrote it.
        """
        first: tuple[Repeated, list[Row], list[str]] | None = None
        for state in self._states_at_start(commit):
            found = repeat(self._plan, self._job, commit, state, made)
            rows, equal = self._rows(commit, found)
            if rows and found.commit is not None:
                late = repeat(self._plan, self._job, commit, state, made, late=True)
                rows, equal = self._rows(commit, found, late)
            if not rows:
                return found, rows, equal
            first = first or (found, rows, equal)
        assert first is not None
        return first

    def _states_at_start(self, commit: Commit) -> Iterator[dict[str, object]]:
        routine = commit.routine_id or ""
        yield self._job.routine_states[routine].kept
        if self._plan.routines[routine].max_concurrency > 1:
            begun = commit.started_ns or 0
            known = [(0, {}), *self._states.get(routine, [])]
            for (_, state), (until, _) in zip(known[-2::-1], known[:0:-1], strict=True):
                if until < begun:
                    return
                yield state

    def _rows(
        self, commit: Commit, found: Repeated, late: Repeated | None = None
    ) -> tuple[list[Row], list[str]]:
        """Return what differs, and the names of the parts that are equal."""
        if found.new_effect:
            return [(f"once({found.new_effect!r})", "not called", "called")], []
        if found.left_out:
            return [(f"once({found.left_out!r})", "called", "not called")], []
        if found.commit is None:
            return [("", "", "")], []
        both = commit, found.commit
        was, is_ = self._view(commit, both), self._view(found.commit, both)
        if late is not None and late.commit is not None:
            mask = varying(is_, [self._view(late.commit, both)], ordered=True)
            trie = trie_of(mask)
            was, is_ = masked(was, trie), masked(is_, trie)
            if same_value(was, is_):
                names = {".".join((commit.routine_id or "", *path[:1])) for path in mask}
                self._replay.varying.update(names)
        rows = [
            _row(part, was.get(part, _NO_FIELD), is_.get(part, _NO_FIELD))
            for part in {**was, **is_}
            if not same_value(was.get(part), is_.get(part))
        ]
        equal = [part for part in was if was[part] and same_value(was[part], is_.get(part))]
        return rows, equal

    def _view(self, commit: Commit, both: Sequence[Commit]) -> dict[str, Any]:
        """Return what an attempt did, by names for people; `both` may write other keys."""
        routine = commit.routine_id or ""
        view: dict[str, Any] = {"ends as": commit.kind.value}
        if commit.error is not None:
            view["error"] = without_addresses(error_text(commit.error))
        for emission in commit.emissions:
            view.setdefault(emission.event, []).append(emission.payload)
        view["tasks"] = [
            {"task": task.task_id, "slot": f"{task.routine_id}.{task.slot}", "sent": task.payload}
            for task in commit.tasks
        ]
        job = self._job
        kept, states = job.routine_states[routine].kept, [each.state for each in both]
        view |= self._written("ctx.state", kept, commit.state, states)
        shared = [each.shared for each in both]
        view |= self._written("ctx.shared", job._shared, commit.shared, shared)
        if commit.delay_ns is not None:
            view["waits"] = f"{seconds(commit.delay_ns)} s"
        return view

    def _written(
        self,
        name: str,
        old: dict[str, object],
        writes: Writes | None,
        both: Sequence[Writes | None],
    ) -> Mapping[str, object]:
        new = plain_values(old if writes is None else self._job._written(old, writes))
        keys = dict.fromkeys(key for each in both if each is not None for key in each.keys)
        return {f"{name}[{key!r}]": new.get(key, _ABSENT) for key in keys}

    def _difference(self, commit: Commit, rows: Sequence[Row], equal: Sequence[str]) -> Difference:
        plan = self._plan
        routine = plan.routines.get(commit.routine_id or "")
        slot = None
        if routine is not None:
            slot = routine.slots.get(self._job._pending[commit.task_id or ""].slot)
        where = "" if slot is None else definition_of(slot.handler)
        shape = self._recorded.shape
        changes = [] if shape == plan.shape else shape_changes(shape, plan.shape)
        return Difference(self._place, self._recorded, commit, rows, equal, where, changes)


def _unknown(commit: Commit) -> str:
    """Return why what an attempt would do can't be known; "" if it can."""
    if commit.started_ns is None:
        return "attempts that the engine failed without running them"
    if commit.error is not None and commit.error.type == "routilux.StepTimeoutError":
        return "attempts that their timeout cut off"
    return ""


def _row(part: str, was: object, is_: object) -> Row:
    difference = None
    if was is not _NO_FIELD and is_ is not _NO_FIELD and type(was) is not str:
        difference = first_difference(was, is_, part)
    if difference is None:
        return part, _text(was), _text(is_)
    return (
        difference.path,
        _ABSENT if difference.what == "added" else shown(difference.expected),
        _ABSENT if difference.what == "missing" else shown(difference.actual),
    )


def _text(value: object) -> str:
    if value is _NO_FIELD:
        return _ABSENT
    return value if isinstance(value, str) else shown(value)
