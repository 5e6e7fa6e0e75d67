"""Crash points, what a dead host leaves, and how the next host resumes the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_routilux.faults.flow_faults import FlowFaults
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case, CrashPoint, Disturbed, Note, Undisturbed
from routilux import CommitKind, FakeClock, Flow
from tests.routines import chain, retrying, saveable

START = FakeClock().now_ns()
SECOND = 1_000_000_000
gateway = Effect("gateway", key="key")


def pay(self: Any, order: str) -> None:
    """Reserves once, then charges; the first attempt fails after that."""
    self.ctx.once("reserve", abs, -1)
    self.ctx.sleep(0.5)
    receipt = gateway(order, key=self.ctx.key("charge"))
    if self.ctx.attempt == 1:
        raise ConnectionError("no answer")
    self.emit("out", receipt=receipt)


def build(deadline: float | None = None) -> Callable[[], Flow]:
    def flow() -> Flow:
        made = chain(pay=saveable(pay, out=["receipt"]))
        made.set_error_handler(retrying(max_retries=2, retry_delay=2, deadline=deadline))
        return made

    return flow


@pytest.fixture(scope="module")
def run() -> Undisturbed:
    return run_undisturbed(Case(build(), "pay", {"order": "A7"}), START)


def at(run: Undisturbed, name: str) -> CrashPoint:
    return next(point for point in crash_points(run) if point.name == name)


def crashed(run: Undisturbed, name: str) -> Disturbed:
    return recover(run, at(run, name))


def test_every_crash_point_has_a_name_in_the_users_terms(run):
    points = [
        f"{(p.at_ns - START) / SECOND:g} {p.name} {p.commits}+{p.calls}" for p in crash_points(run)
    ]
    assert points == [
        "0 start.write 0+0",
        "0 start.write.refused 0+0",
        "0 start.write.unanswered 0+0",
        "0 start 1+0",
        "0 start.recovery 1+0",
        "0 start.document 1+0",
        "0 start.long 1+0",
        "0 0@a1.once-reserve 1+0",
        "0 0@a1.once-reserve.refused 1+0",
        "0 0@a1.once-reserve.unanswered 1+0",
        "0 0@a1.once-reserve.kept 2+0",
        "0 0@a1.once-reserve.kept.recovery 2+0",
        "0 0@a1.once-reserve.kept.document 2+0",
        "0 0@a1.once-reserve.kept.long 2+0",
        "0.5 0@a1.effect1.before 2+0",
        "0.5 0@a1.effect1 2+1",
        "0.5 0@a1.effect1.long 2+1",
        "0.5 0@a1.end 2+1",
        "0.5 0@a1.end.refused 2+1",
        "0.5 0@a1.end.unanswered 2+1",
        "0.5 0@a1.retry 3+1",
        "0.5 0@a1.retry.recovery 3+1",
        "0.5 0@a1.retry.document 3+1",
        "0.5 0@a1.wait.start 3+1",
        "1.5 0@a1.wait.mid 3+1",
        "2.5 0@a1.wait.late 3+1",
        "0.5 0@a1.wait.overdue 3+1",
        "0.5 0@a1.wait.long 3+1",
        "3 0@a2.effect1.before 3+1",
        "3 0@a2.effect1 3+2",
        "3 0@a2.effect1.long 3+2",
        "3 0@a2.end 3+2",
        "3 0@a2.end.refused 3+2",
        "3 0@a2.end.unanswered 3+2",
        "3 0@a2.done 4+2",
        "0.25 0@a1.sleep1 2+0",
        "2.75 0@a2.sleep1 3+1",
    ]


def test_the_text_of_a_crash_point_says_the_task_and_the_attempt(run):
    text = "task 0 pay, attempt 1: after effect #1 (gateway), before its commit"
    assert text == at(run, "0@a1.effect1").text
    points = [point for point in crash_points(run) if point.task_id is not None]
    assert all("task 0 pay, attempt" in point.text for point in points)


def test_in_a_flow_with_a_deadline_a_long_downtime_may_outlast_it():
    limited = run_undisturbed(Case(build(60), "pay", {"order": "A7"}), START)
    points = crash_points(limited)
    longs = [point.name for point in points if point.resume_ns > point.at_ns]
    assert longs == [point.name for point in points if point.outlasts]
    assert {"start.long", "0@a1.effect1.long", "0@a1.wait.overdue", "0@a1.wait.long"} < set(longs)


@pytest.mark.parametrize(
    ("name", "begins"),
    [("start", 2.5), ("mid", 2.5), ("late", 2.5), ("overdue", 2.500000001), ("long", 3602.5)],
)
def test_the_next_host_waits_for_the_remaining_delay_only(name, begins, run):
    disturbed = crashed(run, f"0@a1.wait.{name}")
    [second] = [c for c in disturbed.world.commits if c.attempt == 2]
    assert second.started_ns is not None
    assert begins == (second.started_ns - START) / SECOND
    assert disturbed.executed


def test_a_recorded_effect_runs_once_and_an_unrecorded_one_again(run):
    def records(name: str) -> int:
        kinds = [commit.kind for commit in crashed(run, name).world.commits]
        return kinds.count(CommitKind.EFFECT)

    assert 1 == records("0@a1.once-reserve")
    assert 1 == records("0@a1.once-reserve.kept")
    assert 1 == records("0@a1.effect1")


def test_effects_stay_in_the_world_when_their_host_dies(run):
    def calls(name: str) -> list[int]:
        return [call.attempt for call in crashed(run, name).world.calls]

    assert [1, 2] == calls("0@a1.effect1.before")
    assert [1, 1, 2] == calls("0@a1.effect1")
    assert [1, 1, 2] == calls("0@a1.end")
    assert [1, 2] == calls("0@a1.retry")


@pytest.mark.parametrize("name", ["0@a1.end.refused", "0@a1.end.unanswered"])
def test_a_store_that_fails_ends_the_host_and_the_next_one_resumes(name, run):
    disturbed = crashed(run, name)
    first, last = disturbed.hosts
    assert isinstance(first.error, OSError)
    assert last.error is None
    assert [1, 2, 3] == [c.seq for c in disturbed.world.commits if c.at_ns <= START + SECOND][:3]
    attempts = [c.attempt for c in disturbed.world.commits if c.kind is CommitKind.RETRY]
    assert [1] == attempts
    assert disturbed.executed


def test_a_host_that_dies_in_its_recovery_counts_as_a_recovery(run):
    disturbed = crashed(run, "start.recovery")
    resumed = [c for c in disturbed.world.commits if c.kind is CommitKind.RESUMED]
    assert [1, 2] == [(c.detail or {})["recoveries"] for c in resumed]
    notes = [what.text for _, _, what in disturbed.world.log if isinstance(what, Note)]
    assert "CRASH  again, right after the resume" in notes


def test_a_second_crash_that_does_not_happen_is_not_executed(run, monkeypatch):
    assert crashed(run, "start.recovery").executed
    monkeypatch.delattr("pytest_routilux.sim.recovery._FailsAt.after_write")
    assert not crashed(run, "start.recovery").executed


def test_a_crash_does_not_change_the_world_of_the_undisturbed_run(run):
    before = (list(run.world.commits), list(run.world.calls), len(run.world.log))
    for point in crash_points(run):
        recover(run, point)
    assert before == (list(run.world.commits), list(run.world.calls), len(run.world.log))


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("write", range(1, 8))
def test_every_point_is_executed_also_if_the_test_lets_the_store_fail(write, durable):
    fault = FlowFaults().store_fails(write, durable=durable)
    run = run_undisturbed(Case(build(), "pay", {"order": "A7"}, faults=(fault,)), START)
    points = crash_points(run)
    assert 30 < len(points)
    assert [] == [point.name for point in points if not recover(run, point).executed]


# --- an hour without a host, and a crash in a sleep -----------------------------------------------


def opens(self: Any, order: str) -> None:
    """The offer ends in half an hour."""
    self.emit("out", until=self.ctx.now().timestamp() + 1800)


def pays_in_time(self: Any, until: float) -> None:
    if self.ctx.now().timestamp() > until:
        raise ValueError("the offer has ended")


def naps(self: Any, until: float) -> None:
    self.ctx.sleep(2)


def naps_longer(self: Any, until: float) -> None:
    self.ctx.sleep(10)


def test_a_job_that_no_host_runs_for_an_hour_is_tried_after_every_commit():
    def made() -> Flow:
        return chain(a=saveable(opens, out=["until"]), b=saveable(pays_in_time))

    run = run_undisturbed(Case(made, "a", {"order": "A7"}), START)
    points = [point for point in crash_points(run) if point.kind == "no host"]
    assert ["start.long", "0@a1.done.long"] == [point.name for point in points]
    ends = [recover(run, point).host.job.status.value for point in points]
    assert ["completed", "failed"] == ends  # the second one crosses the end of the offer
    assert {3600 * SECOND} == {point.resume_ns - point.at_ns for point in points}


def test_a_crash_in_a_sleep_has_what_other_steps_have_committed_by_then():
    def made() -> Flow:
        flow = chain(workers=2, a=saveable(opens, out=["until"]), b=saveable(naps))
        flow.add_routine(saveable(naps_longer), "c")
        flow.connect("a", "out", "c", "trigger")
        return flow

    run = run_undisturbed(Case(made, "a", {"order": "A7"}), START)
    points = {p.name: p for p in crash_points(run) if p.kind == "in a sleep"}
    assert ["0.0@a1.sleep1", "0.1@a1.sleep1"] == [*points]
    assert [2, 3] == [point.commits for point in points.values()]  # b has ended by then
    assert [1, 5] == [(point.at_ns - START) / SECOND for point in points.values()]
    for point in points.values():
        assert recover(run, point).host.job.status == "completed"
