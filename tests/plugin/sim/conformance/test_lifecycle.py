"""Bugs in requests, in what a user reads, and in the refusal of damaged data are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_routilux.sim.conformance import refusals
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case, Finding
from routilux import Flow, JobState, JobStatus
from routilux.core import replay, state, transitions
from routilux.core.commits import history_of
from routilux.core.fold import FoldedJob
from routilux.core.machine import Machine
from routilux.core.schedule import Schedule
from tests.plugin.sim.conformance.engine_bugs import CardRefused, Patch, after, shop
from tests.plugin.sim.mutants.flows import conflicts, fails, fan
from tests.plugin.sim.steps import START
from tests.soak import sampled


def found(build: Callable[[], Flow], entry: str = "orders", **params: object) -> Finding | None:
    refusals._known.clear()  # of the engine without the bug
    result = explore(Case(build, entry, params or None), START, Checks(isolated=False))
    return result.reference.finding or next((f.finding for f in result.failures), None)


def recoveries_are_not_counted(patch: Patch) -> None:
    original = Machine.resume
    patch.setattr(Machine, "resume", lambda s, *a, **k: original(s, *a, **{**k, "clean": True}))


def a_poisoned_job_runs_on(patch: Patch) -> None:
    def fail(commit: Any, *_: Any) -> Any:
        commit.status = JobStatus.RUNNING
        return commit

    after(patch, Machine, "fail", fail)


def a_paused_job_has_a_task_to_start(patch: Patch) -> None:
    def next_task(self: Machine) -> Any:
        return None if self.in_flight else self._schedule.first()

    patch.setattr(Machine, "next_task", next_task)


def a_late_outcome_is_accepted(patch: Patch) -> None:
    original = Machine.finish

    def finish(self: Machine, step: Any, outcome: Any, now: int) -> Any:
        outcome.number = step.number
        return original(self, step, outcome, now)

    patch.setattr(Machine, "finish", finish)


def a_failed_task_keeps_its_spent_retries(patch: Patch) -> None:
    original = FoldedJob._fold_resumed

    def fold(self: Any, commit: Any) -> None:
        spent = {task.task_id: task.retries for task in self.pending_tasks}
        original(self, commit)
        for task in self.pending_tasks:
            task.retries = spent[task.task_id]

    patch.setattr(FoldedJob, "_fold_resumed", fold)


def the_history_has_no_errors(patch: Patch) -> None:
    original = history_of
    patch.setattr(state, "history_of", lambda c: [r for r in original(c) if not c.error])


def retries_are_counted_twice(patch: Patch) -> None:
    after(patch, JobState, "retry_count", lambda count, *_: 2 * count)


def a_conflict_is_missed(patch: Patch) -> None:
    patch.setattr(Machine, "_changed", lambda *_: False)


def the_last_task_starts_first(patch: Patch) -> None:
    def first(task: Any, self: Schedule) -> Any:
        waiting = [*self._queue, *(entry[3] for entry in self._heap)]
        return None if task is None else max(waiting, key=lambda other: other.order)

    after(patch, Schedule, "first", first)


def the_event_error_names_another_task(patch: Patch) -> None:
    original = transitions._report

    def report(plan: Any, job: Any, commit: Any, pending: Any, error: Any) -> None:
        original(plan, job, commit, pending, error)
        for emission in commit.emissions:
            emission.payload["message"] = "?"

    patch.setattr(transitions, "_report", report)


def time_may_run_back_in_saved_commits(patch: Patch) -> None:
    patch.setattr(replay, "_wrong_time", lambda *_: None)


def another_error_than_ours_escapes(patch: Patch) -> None:
    original = replay._wrong_task

    def wrong(job: Any, commit: Any) -> Any:
        if commit.task_id == "0.77":
            raise ZeroDivisionError
        return original(job, commit)

    patch.setattr(replay, "_wrong_task", wrong)


FAILING = shop(CardRefused, fails=(9, 0), non_retryable_exceptions=CardRefused)
BUGS: list[tuple[Callable[[Patch], None], Callable[[], Flow], str, str, str]] = [
    (recoveries_are_not_counted, shop(), "orders", "lifecycle-wrong", "recoveries"),
    (a_poisoned_job_runs_on, shop(), "orders", "lifecycle-wrong", "poisoned"),
    (a_paused_job_has_a_task_to_start, shop(), "orders", "lifecycle-wrong", "queued job"),
    (a_late_outcome_is_accepted, shop(), "orders", "lifecycle-wrong", "outcome of another step"),
    (
        a_failed_task_keeps_its_spent_retries,
        shop(fails=(9, 0)),
        "orders",
        "lifecycle-wrong",
        "gives charge (task 0.0) no fresh budget",
    ),
    (the_history_has_no_errors, FAILING, "orders", "reading-wrong", "execution_history"),
    (retries_are_counted_twice, shop(), "orders", "reading-wrong", "retry_count()"),
    (
        a_conflict_is_missed,
        shop(fails=(2, 1, 0), workers=3),
        "orders",
        "conflict-missed",
        "read shared 'sum'",
    ),
    (the_last_task_starts_first, shop(fails=(0, 0)), "orders", "started-out-of-order", "comes"),
    (
        the_event_error_names_another_task,
        fan(fails, workers=1),
        "split",
        "error-misreported",
        "message='?'",
    ),
    (time_may_run_back_in_saved_commits, shop(), "orders", "corruption-accepted", "before the"),
    (another_error_than_ours_escapes, shop(), "orders", "corruption-accepted", "no SavedState"),
]


@pytest.mark.parametrize(
    ("plant", "build", "entry", "kind", "words"),
    sampled(BUGS, [BUGS[0], BUGS[5], BUGS[7], BUGS[8], BUGS[10]]),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bug_is_found(
    plant: Callable[[Patch], None],
    build: Callable[[], Flow],
    entry: str,
    kind: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        finding = found(build, entry)
    assert finding is not None
    assert (kind, True) == (finding.kind, words in finding.what), finding.what
    refusals._known.clear()


@pytest.mark.parametrize(
    ("build", "entry"),
    [(FAILING, "orders"), (fan(conflicts), "split"), (shop(fails=(0, 0)), "orders")],
)
def test_without_a_bug_nothing_is_found(build: Callable[[], Flow], entry: str) -> None:
    assert found(build, entry) is None
