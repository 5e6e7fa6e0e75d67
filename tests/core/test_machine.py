"""The machine of one job: the tasks that may start, conflicts, recoveries, resume."""

from __future__ import annotations

import pytest

from routilux.core.commits import CommitKind, JobStatus
from routilux.core.machine import MOST_CONFLICTS
from routilux.core.state import JobState
from routilux.errors import IllegalTransitionError
from routilux.graph.messages import RecordedEffect
from tests.core.stories import Stage, Story, Wide, alone, broken, done, fan, flow_of
from tests.routines import SECOND, retrying


def test_a_job_is_its_root_task_and_completes_with_its_last_task():
    story = Story(flow_of({"a": Stage("out"), "b": Stage("out")}, "a.out -> b"))
    assert story.pending() == ["0"]
    assert story.run("out").status is JobStatus.RUNNING
    assert story.pending() == ["0.0"]
    assert story.run("out").status is JobStatus.COMPLETED
    assert story.pending() == []
    assert [(o.routine_id, o.event, o.task_id) for o in story.job.outputs] == [("b", "out", "0.0")]


def test_a_job_starts_once():
    story = Story(alone())
    with pytest.raises(IllegalTransitionError, match="job job was already started"):
        story.machine.start("a", "trigger", {}, 0)


def test_a_queued_job_waits_until_it_is_resumed():
    story = Story(alone())
    story.machine = type(story.machine)(story.plan, JobState("job"))
    story.accept(story.machine.start("a", "trigger", {}, 0, queued=True))
    assert story.job.status is JobStatus.PENDING
    assert story.startable() == []
    assert story.due() is None
    story.resume()
    assert story.startable() == ["0"]
    assert story.job.recoveries == 0


def test_order_is_due_time_then_commit_then_position():
    handler = retrying(retry_delay=1, retry_backoff=1)
    story = Story(fan(4, b=Wide(handler=handler), d=Wide(handler=handler)))
    story.run("out", "out")
    assert story.startable() == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    story.fail(task_id="0.3")
    story.fail(task_id="0.2")
    story.run(task_id="0.1")
    story.now += SECOND
    # Both are due later than the others, and at the same time: 0.2 was created before 0.3.
    assert story.startable() == ["0.0", "0.4", "0.5", "0.2", "0.3"]


def test_a_step_takes_the_lowest_free_worker_number():
    story = Story(fan(3))
    story.run("out")
    steps = [story.begin() for _ in range(3)]
    assert [step.worker for step in steps] == [0, 1, 2]
    story.end(steps[1], done(steps[1]))
    assert story.end(steps[2], broken(steps[2])).worker == 2


def test_after_three_conflicts_a_task_runs_alone():
    handler = retrying(retry_delay=5, max_retries=None)
    story = Story(fan(3, b=Wide(handler=handler), c=Wide(), d=Wide()))
    story.run(*["out"] * (MOST_CONFLICTS + 1))
    busy = story.begin("0.2")
    for number in range(MOST_CONFLICTS):
        assert story.startable()[0] == "0.0"
        unlucky, other = story.begin("0.0"), story.begin(f"0.{1 + 3 * number}")
        story.end(other, done(other, shared={"total": number}))
        assert story.end(unlucky, done(unlucky, reads=["total"])).kind is CommitKind.CONFLICT
    # 0.0 comes first, but it waits for the other steps to end.
    assert story.job.pending_tasks[0].task_id == "0.0"
    assert (story.startable(), story.due()) == ([], None)
    story.end(busy, done(busy))
    assert story.startable() == ["0.0"]
    step = story.begin()
    assert story.startable() == []
    story.end(step, broken(step))
    story.now += 5 * SECOND
    # It is due, but not first: nothing may start it while another step is in flight.
    busy = story.begin("0.3")
    assert "0.0" not in story.startable()
    story.end(busy, done(busy))
    assert "0.0" in story.startable()


def test_a_job_that_is_recovered_too_often_without_progress_is_poisoned():
    story = Story(fan(2))
    story.run("out")
    for number in (1, 2, 3):
        story.begin()
        story.crash()
        story.resume()
        assert story.job.recoveries == number
    story.crash()
    commit = story.resume()
    assert (commit.kind, commit.status, commit.task_id) == ("failed", "failed", "0.0")
    assert str(story.job.error) == (
        "routilux.PoisonJobError: the job was recovered 3 times without progress; each time its run"
        " ended while one of these tasks was ready to run: b (task 0.0, attempt 1), c (task 0.1,"
        " attempt 1), d (task 0.2, attempt 1); what ended the runs: 4 times: its process ended"
    )
    assert story.startable() == []
    story.resume(retry_failed=True)
    assert story.job.recoveries == 0
    assert story.startable() == ["0.0", "0.1", "0.2"]


def test_an_outcome_that_is_late_or_a_duplicate_is_ignored():
    story = Story(alone(retrying(retry_delay=0)))
    first = story.begin()
    story.end(first, broken(first))
    assert story.machine.finish(first, broken(first), story.now) is None
    second = story.begin()
    assert story.machine.finish(first, done(first), story.now) is None
    assert story.machine.effect(first, "charge", RecordedEffect("arguments", 1), story.now) is None
    assert story.end(second, done(second)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("end", ["done", "retry", "effect"])
def test_progress_resets_the_recoveries(end):
    story = Story(alone(retrying(retry_delay=0)))
    for number in (1, 2):
        story.crash()
        story.resume()
        assert story.job.recoveries == number
    step = story.begin()
    if end == "effect":
        story.record(step, "charge", None)
    else:
        story.end(step, done(step) if end == "done" else broken(step))
    assert story.job.recoveries == 0


def test_a_job_that_was_given_back_counts_no_recovery_and_forgets_none():
    story = Story(alone())
    for number in (1, 2):
        story.crash()
        story.resume()
        story.crash()
        story.resume(most=2, clean=True)
        assert (story.job.status, story.job.recoveries) == (JobStatus.RUNNING, number)
    story.crash()
    assert story.resume(most=2).status is JobStatus.FAILED


def test_effects_are_kept_through_failures_and_crashes():
    story = Story(alone(retrying(retry_delay=0)))
    step = story.begin()
    story.record(step, "charge", "ch_1")
    story.end(step, broken(step))
    story.record(story.begin(), "mail", 7)
    story.crash()
    story.resume()
    effects = story.begin().effects
    assert {name: e.result for name, e in effects.items()} == {"charge": "ch_1", "mail": 7}


def test_max_recoveries_none_never_poisons():
    story = Story(alone())
    for _ in range(50):
        story.crash()
        story.resume(most=None)
    assert story.job.status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("crashes", "left"),
    [([0], 10), ([4], 6), ([1, 1, 1, 1], 6), ([10], 0), ([99], 0), ([-3600], 10)],
    ids=["at once", "in the wait", "often", "just then", "long after", "a clock an hour behind"],
)
def test_a_resumed_job_waits_the_remaining_time(crashes, left):
    story = Story(alone(retrying(retry_delay=10)), now=7200 * SECOND)
    story.fail()
    for after in crashes:
        story.crash()
        story.now += after * SECOND
        story.resume()
        assert story.job.recoveries == (left == 0)
    due = story.due()
    assert due is not None
    assert max(0, due - story.now) == left * SECOND


def test_a_changed_flow_is_taken_over_by_the_resume_that_allows_it():
    story = Story(alone())
    story.plan = flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b").plan()
    story.crash()
    assert story.job.shape != story.plan.shape
    story.resume()
    assert story.job.shape == story.plan.shape
    assert list(story.job.routine_states) == ["a", "b"]
    assert [t.routine_id for t in story.run("out").tasks] == ["b"]
