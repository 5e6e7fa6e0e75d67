"""Rules for gathers: when they run, and what they get.

Invariants:
- A gather is known by its slot and the task of its scope. Whether a task belongs to the scope is
  read from its ancestors; nothing of the engine's places and counts is used.
- A gather is ready when no open task of its scope could still deliver to it, by the graph.
- It gets every delivery of its scope once, sorted by the numbers in the paths of the tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from pytest_routilux.sim.conformance.retry_rules import commit_text, fail
from pytest_routilux.sim.conformance.spec import child_id
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
    from pytest_routilux.sim.conformance.spec import FlowSpec, SlotName
    from routilux import Commit, StepInput


@final
class GatherRules:
    """Checks the gathers of a job."""

    __slots__ = ("_gathers", "_job", "_spec")

    def __init__(self, spec: FlowSpec, job: ShadowJob) -> None:
        self._spec = spec
        self._job = job
        self._gathers: dict[tuple[SlotName, str], ShadowTask] = {}  # by slot and task of the scope

    def check_commit(self, commit: Commit) -> None:
        """Check the gathers and the deliveries that a commit creates, and record them.

        The job has the new tasks of the commit already, and still the task that the commit ends.
        """
        if not self._spec.gathers:
            return
        missing: list[tuple[SlotName, str]] = []
        for task in commit.tasks:
            slot = task.routine_id, task.slot
            if slot in self._spec.gathers and task.emission >= 0:
                self._deliver(commit, slot)
                continue
            if slot in self._spec.gathers:
                self._open(commit, missing, task.task_id, slot)
            opened = self._spec.opened_by(task.routine_id, first=task.emission == -1)
            missing += [(other, task.task_id) for other in opened]
        for slot, task_id in missing:
            what = (
                f"{commit_text(commit)} creates task {task_id}, the scope of a gather at"
                f" {'.'.join(slot)}, but no task of that gather"
            )
            fail("gather-missing", what, commit)

    def _open(
        self,
        commit: Commit,
        missing: list[tuple[SlotName, str]],
        task_id: str,
        slot: SlotName,
    ) -> None:
        name = task_id.rpartition(".")[2]
        scopes = [s for other, s in missing if other == slot and child_id(s, name) == task_id]
        if not scopes:
            what = (
                f"{commit_text(commit)} creates the gather {task_id} at {'.'.join(slot)}, which is"
                " not needed or exists"
            )
            fail("gather-twice", what, commit)
        missing.remove((slot, scopes[0]))
        gather, scope = self._job.tasks[task_id], self._job.tasks[scopes[0]]
        gather.gather = True
        gather.waits = True
        gather.reports = False
        gather.parent = scope
        gather.number = 1, len(self._gathers)
        self._gathers[slot, scopes[0]] = gather

    def _deliver(self, commit: Commit, slot: SlotName) -> None:
        """Check the deliveries of a commit to a slot. They are recorded by `deliver`."""
        sender = self._job.tasks[commit.task_id or ""]
        gather = self._around(sender, slot)
        if gather is None or gather.ended or not gather.waits:
            what = (
                f"{commit_text(commit)} delivers to {'.'.join(slot)}, but no gather of its scope"
                " waits"
            )
            fail("gather-early", what, commit)

    def deliver(self, commit: Commit, sender: ShadowTask, numbered: int) -> None:
        """Record the deliveries of a commit; `numbered` tasks of the sender came before."""
        for task in commit.tasks:
            if task.emission < 0:
                continue
            slot = task.routine_id, task.slot
            if slot in self._spec.gathers:
                gather = self._around(sender, slot)
                assert gather is not None  # `check_commit` has reported it
                if task.into != gather.task.task_id:
                    what = (
                        f"{commit_text(commit)} delivers to {'.'.join(slot)} of gather {task.into};"
                        f" the gather of its scope is {gather.task.task_id}"
                    )
                    fail("gather-wrong", what, commit)
                source = sender.task.routine_id, commit.emissions[task.emission].event
                path = (*sender.path, (0, numbered))
                gather.deliveries.append((path, task.payload, source))
            numbered += 1

    def drop(self, shadow: ShadowTask) -> None:
        """Record a dropped task in the gathers that it could have delivered to."""
        for slot in self._spec.gathers:
            gather = self._around(shadow, slot)
            if gather is not None and self._spec.delivers(shadow.task.routine_id, slot):
                gather.dropped.append((shadow.path, shadow.task.task_id))

    def settle(self, at: int) -> None:
        """Note which gathers wait for no task any more, after a commit at the instant `at`."""
        for gather in self._gathers.values():
            if gather.waits and next(self._waited_for(gather), None) is None:
                gather.waits = False
                gather.due = gather.ready = at

    def check_start(self, step: StepInput, gather: ShadowTask) -> None:
        """Check that a gather starts when it is ready, with what its scope delivered."""
        shadow = next(self._waited_for(gather), None)
        if shadow is not None:
            what = f"gather {gather} starts, but {shadow} could still deliver to it"
            fail("gather-early", what, gather.task)
        collected = step.collected
        [(parameter, payloads)] = step.task.payload.items()
        deliveries = sorted(gather.deliveries, key=lambda delivery: delivery[0])
        expected = {
            parameter: [payload for _, payload, _ in deliveries],
            "sources": [source for _, _, source in deliveries],
            "dropped": [task_id for _, task_id in sorted(gather.dropped)],
        }
        given = {
            parameter: payloads,
            "sources": list(collected.sources) if collected is not None else None,
            "dropped": [task.task_id for task in collected.dropped] if collected else None,
        }
        if not same_value(expected, given):
            what = (
                f"gather {gather} does not get what its scope delivered:"
                f" {first_difference(expected, given)}"
            )
            fail("gather-wrong", what, gather.task)

    def _waited_for(self, gather: ShadowTask) -> Iterator[ShadowTask]:
        slot = gather.task.routine_id, gather.task.slot
        for shadow in self._job.open.values():
            if (
                shadow is not gather
                and self._spec.delivers(shadow.task.routine_id, slot)
                and self._around(shadow, slot) is gather
            ):
                yield shadow

    def _around(self, shadow: ShadowTask, slot: SlotName) -> ShadowTask | None:
        """Return the gather at `slot` in whose scope a task is."""
        split = self._spec.gathers[slot]
        scope: ShadowTask | None = shadow
        while scope is not None and not (
            scope.parent is None if split is None else scope.task.routine_id == split
        ):
            scope = scope.parent
        return None if scope is None else self._gathers.get((slot, scope.task.task_id))
