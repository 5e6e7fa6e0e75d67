"""Stories of one job: the tasks that may start, the commits of steps, and refused requests."""

from __future__ import annotations

import pytest

from routilux.core.commits import CommitKind, JobStatus
from routilux.core.machine import MOST_CONFLICTS
from routilux.core.requests import request, requeue, take_over
from routilux.core.state import JobState
from routilux.core.transitions import child_id
from routilux.errors import IllegalTransitionError, NotResumableError
from routilux.flow import Flow
from routilux.graph.messages import StepInput
from routilux.retry.error_handler import ErrorHandler
from tests.core.stories import (
    Collect,
    Stage,
    Story,
    Strict,
    Wide,
    broken,
    done,
    emission,
    flow_of,
    text_of,
)
from tests.routines import SECOND, retrying


def fan(width: int = 1, **others: Stage) -> Flow:
    """a.out goes to b, c and d, in this order; any of them can be replaced."""
    routines: dict[str, Stage] = {"a": Stage("out"), "b": Stage(), "c": Stage(), "d": Stage()}
    return flow_of({**routines, **others}, "a.out -> b", "a.out -> c", "a.out -> d", width=width)


def alone(handler: ErrorHandler | None = None, *events: str) -> Flow:
    return flow_of({"a": Stage(*events, handler=handler)})


# --- from start to end ----------------------------------------------------------------------------


def test_a_job_is_its_root_task_and_completes_with_its_last_task() -> None:
    story = Story(flow_of({"a": Stage("out"), "b": Stage("out")}, "a.out -> b"))
    assert story.pending() == ["0"]
    assert story.run("out").status is JobStatus.RUNNING
    assert story.pending() == ["0.0"]
    assert story.run("out").status is JobStatus.COMPLETED
    assert story.pending() == []
    assert [(o.routine_id, o.event, o.task_id) for o in story.job.outputs] == [("b", "out", "0.0")]


def test_a_job_starts_once() -> None:
    story = Story(alone())
    with pytest.raises(IllegalTransitionError, match="job job is already started"):
        story.machine.start("a", "trigger", {}, 0)


def test_a_queued_job_waits_until_it_is_resumed() -> None:
    story = Story(alone())
    story.machine = type(story.machine)(story.plan, JobState("job"))
    story.accept(story.machine.start("a", "trigger", {}, 0, queued=True))
    assert story.job.status is JobStatus.PENDING
    assert story.startable() == []
    assert story.due() is None
    story.resume()
    assert story.startable() == ["0"]
    assert story.job.recoveries == 0


def test_a_mapping_renames_the_fields_of_one_connection_only() -> None:
    class Other(Stage):
        def take(self, m: int) -> None:  # type: ignore[override]
            raise AssertionError

    flow = flow_of({"a": Stage("out"), "b": Stage(), "c": Other()}, "a.out -> b")
    flow.connect("a", "out", "c", "trigger", {"n": "m"})
    story = Story(flow)
    assert [task.payload for task in story.run(emission("out", n=7)).tasks] == [{"n": 7}, {"m": 7}]


def test_an_emission_without_a_required_field_fails_the_task_that_emitted_it() -> None:
    handler = retrying(retry_delay=0, on_exhausted="continue")
    flow = flow_of({"a": Stage("out", handler=handler), "b": Strict()}, "a.out -> b")
    commit = Story(flow).run(emission("out"))
    assert commit.kind is CommitKind.DROPPED
    assert commit.error is not None
    assert commit.error.type == "routilux.FlowDefinitionError"
    assert commit.error.message == "a emitted 'out' without 'n', which b.trigger needs"
    assert not commit.emissions


# --- ids (rule 10) --------------------------------------------------------------------------------


def test_children_are_numbered_over_emissions_and_connections() -> None:
    commit = Story(fan()).run("out", "out")
    assert [(t.task_id, t.routine_id, t.emission) for t in commit.tasks] == [
        ("0.0", "b", 0),
        ("0.1", "c", 0),
        ("0.2", "d", 0),
        ("0.3", "b", 1),
        ("0.4", "c", 1),
        ("0.5", "d", 1),
    ]


def test_children_have_the_same_ids_after_a_retry_and_on_another_host() -> None:
    story = Story(fan(a=Stage("out", handler=retrying(retry_delay=0))))
    story.fail()
    story.crash()
    story.resume()
    assert [t.task_id for t in story.run("out").tasks] == ["0.0", "0.1", "0.2"]


def test_a_lineage_of_more_than_64_characters_is_shortened_to_a_digest() -> None:
    long = "0" + ".1" * 31
    assert child_id(long[:-2], 1) == long
    assert len(long) == 63
    one, ten = child_id(long, 1), child_id(long, 10)
    assert one.startswith("~")
    assert (one[-2:], ten[-3:]) == (".1", ".10")
    assert one[:-1] == ten[:-2]
    assert one[:-1] != child_id("1" + long[1:], 1)[:-1]

    name, seen = "0", {"0"}
    for _ in range(500):
        name = child_id(name, 1)
        assert name not in seen
        assert len(name) <= 64
        seen.add(name)


# --- order (rule 11) ------------------------------------------------------------------------------


def test_order_is_due_time_then_commit_then_position() -> None:
    handler = retrying(retry_delay=1, retry_backoff=1)
    story = Story(fan(4, b=Wide(handler=handler), d=Wide(handler=handler)))
    story.run("out", "out")
    assert story.startable() == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    story.fail(task_id="0.3")
    story.fail(task_id="0.2")
    story.run(task_id="0.1")
    assert story.startable() == ["0.0", "0.4", "0.5"]
    story.now += SECOND
    # Both are due later than the others, and at the same time: 0.2 was created before 0.3.
    assert story.startable() == ["0.0", "0.4", "0.5", "0.2", "0.3"]


# --- actors and width (rules 5 and 12) ------------------------------------------------------------


def test_a_routine_runs_one_step_at_a_time_and_its_waiting_tasks_delay_no_others() -> None:
    story = Story(fan(4))
    story.run("out", "out")
    step = story.begin()
    assert step.task.task_id == "0.0"
    assert story.startable() == ["0.1", "0.2", "0.4", "0.5"]
    story.end(step, done(step))
    assert story.startable() == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_a_sequential_flow_has_one_step_in_flight_and_a_concurrent_one_max_workers() -> None:
    for width in (1, 2):
        story = Story(fan(width))
        story.run("out")
        for _ in range(width):
            story.begin()
        assert story.startable() == []
        assert story.due() is None


def test_a_step_takes_the_lowest_free_worker_number() -> None:
    story = Story(fan(3))
    story.run("out")
    steps = [story.begin() for _ in range(3)]
    assert [step.worker for step in steps] == [0, 1, 2]
    story.end(steps[1], done(steps[1]))
    assert story.end(steps[2], broken(steps[2])).worker == 2


def test_a_task_whose_routine_is_busy_is_not_due() -> None:
    handler = retrying(retry_delay=5)
    story = Story(fan(4, b=Stage(handler=handler), c=Stage(handler=retrying(retry_delay=7))))
    story.run("out", "out")
    story.fail(task_id="0.0")
    story.fail(task_id="0.1")
    for task_id in ("0.3", "0.2", "0.4"):
        story.begin(task_id)
    # 0.0 waits for the end of 0.3, 0.1 for 0.4, and 0.5 for 0.2: none of them has a due time.
    assert story.startable() == []
    assert story.due() is None


# --- conflicts (rule 4) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "conflicts"),
    [(["total"], True), (["gone"], True), (None, True), (["other"], False), ([], False)],
)
def test_a_step_conflicts_only_by_keys_that_it_read_or_by_reading_all(
    reads: list[str] | None, conflicts: bool
) -> None:
    story = Story(fan(2))
    step = story.begin()
    story.end(step, done(step, "out", shared={"gone": 0}))
    late, early = story.begin(), story.begin()
    outcome = done(early, shared={"total": 1})
    assert outcome.shared is not None
    outcome.shared.removed = ("gone",)
    story.end(early, outcome)
    assert story.job.shared_data == {"total": 1}
    commit = story.end(late, done(late, reads=reads))
    assert (commit.kind is CommitKind.CONFLICT) is conflicts


def contended(*, delay: int) -> tuple[Story, StepInput]:
    """A job whose task 0.0 has just conflicted for the last time, and a step still in flight."""
    handler = retrying(retry_delay=delay, max_retries=None)
    story = Story(fan(3, b=Wide(handler=handler), c=Wide(), d=Wide()))
    story.run(*["out"] * (MOST_CONFLICTS + 1))
    busy = story.begin("0.2")
    for number in range(MOST_CONFLICTS):
        assert story.startable()[0] == "0.0"
        unlucky, other = story.begin("0.0"), story.begin(f"0.{1 + 3 * number}")
        story.end(other, done(other, shared={"total": number}))
        assert story.end(unlucky, done(unlucky, reads=["total"])).kind is CommitKind.CONFLICT
    return story, busy


def test_after_three_conflicts_a_task_runs_alone() -> None:
    story, busy = contended(delay=5)
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


# --- failures (rules 1, 6, 7, 8, 9) ---------------------------------------------------------------


def test_retries_wait_as_the_handler_says_and_then_the_job_fails() -> None:
    story = Story(alone(retrying(max_retries=4, retry_delay=0.3, retry_backoff=1.5)))
    waits = []
    while story.fail().kind is CommitKind.RETRY:
        waits.append(story.wait())
    assert waits == [300_000_000, 450_000_000, 675_000_000, 1_012_500_000]
    assert story.job.status is JobStatus.FAILED
    (task,) = story.job.pending_tasks
    assert (task.failed, task.attempt, task.retries) == (True, 6, 4)
    assert story.startable() == []


def test_on_exhausted_decides_when_retries_are_spent_and_when_none_is_allowed() -> None:
    handler = retrying(
        max_retries=1, retry_delay=0, non_retryable_exceptions=(KeyError,), on_exhausted="skip"
    )
    story = Story(alone(handler))
    assert story.fail(KeyError("x")).kind is CommitKind.DROPPED
    assert story.job.status is JobStatus.COMPLETED
    story = Story(alone(handler))
    assert [story.fail().kind for _ in range(2)] == [CommitKind.RETRY, CommitKind.DROPPED]
    assert story.job.dropped[0].outcome == "skipped"


def test_retry_after_sets_the_next_delay_as_it_is_and_spends_a_retry() -> None:
    handler = retrying(max_retries=2, retry_delay=1, retry_backoff=3, max_delay=2, jitter=1)
    story = Story(alone(handler))
    step = story.begin()
    story.end(step, broken(step, after_ns=77 * SECOND))
    assert story.wait() == 77 * SECOND
    assert story.job.retry_count("a") == 1
    story.fail()
    assert 0 <= story.wait() <= 2 * SECOND
    step = story.begin()
    assert story.end(step, broken(step, after_ns=SECOND)).kind is CommitKind.FAILED


def test_a_task_is_not_retried_if_its_delay_would_cross_the_deadline() -> None:
    handler = retrying(max_retries=None, retry_delay=2, retry_backoff=1, deadline=10)
    story = Story(alone(handler), now=50)
    kinds = []
    while not kinds or kinds[-1] is CommitKind.RETRY:
        kinds.append(story.fail().kind)
        if kinds[-1] is CommitKind.RETRY:
            story.wait()
    # Attempts at 0, 2, 4, 6, 8 and 10 s: one more would start at 12 s.
    assert kinds == [CommitKind.RETRY] * 5 + [CommitKind.FAILED]
    assert story.now == 50 + 10 * SECOND


def test_the_deadline_counts_from_the_first_start_even_if_that_met_a_conflict() -> None:
    handler = retrying(retry_delay=2, deadline=10)
    story = Story(fan(2, b=Stage(handler=handler)))
    story.run("out")
    unlucky, other = story.begin(), story.begin()
    story.now = 9 * SECOND
    story.end(other, done(other, shared={"total": 1}))
    story.end(unlucky, done(unlucky, reads=["total"]))
    assert story.fail(task_id="0.0").kind is CommitKind.FAILED


def test_retry_failed_gives_a_fresh_budget_and_deadline_but_does_not_reset_the_attempts() -> None:
    story = Story(alone(retrying(max_retries=1, retry_delay=2, deadline=10)))
    story.fail()
    story.wait()
    assert story.fail().kind is CommitKind.FAILED
    story.now += 60 * SECOND
    story.resume(retry_failed=True)
    assert story.job.error is None
    assert story.job.routine_states["a"].status == "pending"
    step = story.begin()
    assert (step.attempt, step.final) == (3, False)
    assert story.end(step, broken(step)).kind is CommitKind.RETRY
    assert story.wait() == 2 * SECOND


def test_jitter_is_drawn_from_the_task_and_the_same_on_every_host() -> None:
    handler = retrying(retry_delay=1, retry_backoff=1, max_retries=None, jitter=0.1)

    def waits(job_id: str, *, crash: bool) -> list[int]:
        story = Story(alone(handler), job_id=job_id, now=SECOND * crash)
        found = []
        for _ in range(20):
            found.append(story.fail().delay_ns or 0)
            if crash:
                story.crash()
                story.resume()
            story.wait()
        return found

    here = waits("one", crash=False)
    assert waits("one", crash=True) == here
    assert waits("two", crash=False) != here
    assert len(set(here)) == 20
    assert all(SECOND * 9 // 10 <= delay <= SECOND * 11 // 10 for delay in here)


def test_a_failure_stops_the_job_but_steps_in_flight_commit_and_their_children_stay() -> None:
    flow = flow_of(
        {"a": Stage("out"), "b": Stage(), "c": Stage("out"), "d": Stage()},
        "a.out -> b",
        "a.out -> c",
        "c.out -> d",
        width=2,
    )
    story = Story(flow)
    story.run("out")
    failing, other = story.begin(), story.begin()
    assert story.end(failing, broken(failing)).status is JobStatus.FAILED
    assert not story.machine.stopped
    assert story.end(other, done(other, "out", shared={"n": 1})).status is JobStatus.FAILED
    assert story.machine.stopped
    assert story.startable() == []
    assert story.due() is None
    assert story.job.shared_data == {"n": 1}
    assert [(t.task_id, t.failed) for t in story.job.pending_tasks] == [
        ("0.0", True),
        ("0.1.0", False),
    ]


def test_the_first_failure_is_the_jobs_error() -> None:
    story = Story(fan(2))
    story.run("out")
    one, two = story.begin(), story.begin()
    story.end(one, broken(one, ValueError("first")))
    story.end(two, broken(two, ValueError("second")))
    assert story.job.error is not None
    assert story.job.error.message == "first"
    with pytest.raises(NotResumableError, match=r"failed at b \(task 0.0\), c \(task 0.1\)"):
        story.resume()


@pytest.mark.parametrize(
    ("strategy", "outcome", "status"),
    [("continue", "error_continued", "error_continued"), ("skip", "skipped", "skipped")],
)
def test_a_dropped_task_has_its_outcome(strategy: str, outcome: str, status: str) -> None:
    story = Story(fan(1, b=Stage(handler=ErrorHandler(strategy))))
    story.run("out")
    story.fail(task_id="0.0")
    (dropped,) = story.job.dropped
    assert (dropped.task_id, dropped.routine_id, dropped.outcome) == ("0.0", "b", outcome)
    assert dropped.error.message == "broken"
    assert story.job.routine_states["b"].status == status
    assert [r.event for r in story.job.execution_history] == ["start", "out", outcome]
    assert story.job.error is None
    story.run()
    assert story.run().status is JobStatus.COMPLETED


def reporting(handler: ErrorHandler, limit: int | None = None) -> Story:
    """b and d run at the same time; b fails, and c takes its event `error`."""
    flow = flow_of(
        {
            "a": Stage("out"),
            "b": Stage("error", "out", handler=handler),
            "c": Collect(),
            "d": Wide("out"),
            "e": Stage(),
        },
        "a.out -> b",
        "a.out -> d",
        "b.error -> c",
        "b.out -> e",
        "d.out -> e",
        width=9,
    )
    story = Story(flow, limit=limit)
    story.run("out")
    return story


def test_an_error_event_reports_a_dropped_task_downstream_so_that_joins_can_finish() -> None:
    story = reporting(ErrorHandler("continue"))
    commit = story.fail(task_id="0.0")
    (task,) = commit.tasks
    assert (task.task_id, task.routine_id) == ("0.0.0", "c")
    assert task.payload == {"task_id": "0.0", "message": "broken"}
    story.run(task_id="0.1")
    assert story.run(task_id="0.0.0").status is JobStatus.COMPLETED


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_the_error_event_of_a_failure_is_withdrawn_when_the_task_is_retried(
    limit: int | None,
) -> None:
    story = reporting(ErrorHandler(), limit)
    failing, other = story.begin("0.0"), story.begin("0.1")
    story.end(failing, broken(failing))
    story.end(other, done(other, "out"))
    assert story.pending() == ["0.0", "0.0.0", "0.1.0"]
    commit = story.resume(retry_failed=True)
    assert commit.detail is not None
    assert commit.detail["withdrawn"] == ["0.0.0"]
    assert story.pending() == ["0.0", "0.1.0"]
    # The withdrawn task never ran, so a child that a success creates may have its id.
    assert [(t.task_id, t.routine_id) for t in story.run("out", task_id="0.0").tasks] == [
        ("0.0.0", "e")
    ]


def test_a_failed_job_that_is_requeued_without_its_flow_resumes_on_a_host_with_the_flow() -> None:
    story = reporting(ErrorHandler())
    failing, other = story.begin("0.0"), story.begin("0.1")
    story.end(failing, broken(failing))
    story.end(other, done(other, "out"))
    commit = requeue(story.job, story.now)
    assert commit.detail == {"recoveries": 0, "retry_failed": True, "withdrawn": ["0.0.0"]}
    story.accept(commit)
    assert (story.job.status, story.startable()) == (JobStatus.PENDING, [])
    story.crash()
    with pytest.raises(NotResumableError, match="is pending; only a failed job"):
        requeue(story.job, story.now)
    resumed = story.resume()
    assert resumed.detail == {"recoveries": 0, "retry_failed": False, "withdrawn": []}
    assert story.pending() == ["0.0", "0.1.0"]
    story.run(task_id="0.0")
    assert story.run(task_id="0.1.0").status is JobStatus.COMPLETED


# --- recovery (rule 15) ---------------------------------------------------------------------------


def test_a_job_that_is_recovered_too_often_without_progress_is_poisoned() -> None:
    story = Story(fan(2))
    story.run("out")
    for number in (1, 2, 3):
        story.begin()
        story.crash()
        story.resume()
        assert story.job.recoveries == number
    story.crash()
    commit = story.resume()
    assert (commit.kind, commit.status, commit.task_id) == (
        CommitKind.FAILED,
        JobStatus.FAILED,
        None,
    )
    assert str(story.job.error) == (
        "routilux.PoisonJobError: recovered 3 times without progress; each time the process"
        " ended while one of these was ready to run: b (task 0.0, attempt 1), c (task 0.1, attempt"
        " 1), d (task 0.2, attempt 1)"
    )
    assert story.startable() == []
    story.resume(retry_failed=True)
    assert story.job.recoveries == 0
    assert story.startable() == ["0.0", "0.1", "0.2"]


def test_a_job_that_is_taken_over_counts_once_and_is_poisoned_where_it_is_resumed() -> None:
    story = Story(alone())
    for number in (1, 2, 3):
        commit = story.accept(take_over(story.job, story.now))
        assert commit.detail == {"recoveries": number, "retry_failed": False, "withdrawn": []}
        assert (story.job.status, story.startable()) == (JobStatus.PENDING, [])
        story.crash()
        resumed = story.resume(most=2)
        assert resumed.status is (JobStatus.RUNNING if number < 3 else JobStatus.FAILED)
    assert "recovered 2 times without progress" in str(story.job.error)
    with pytest.raises(NotResumableError, match="is failed; only a pending or running job"):
        take_over(story.job, story.now)


def test_taking_over_a_waiting_or_pending_job_counts_no_recovery() -> None:
    story = Story(alone(retrying(retry_delay=3600)))
    story.fail()
    for _ in range(2):
        story.accept(take_over(story.job, story.now))
        assert (story.job.status, story.job.recoveries) == (JobStatus.PENDING, 0)
    story.crash()
    story.resume(most=0)
    assert story.due() == 3600 * SECOND


def test_max_recoveries_none_never_poisons() -> None:
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
def test_a_resumed_job_waits_the_remaining_time_and_counts_no_recovery(
    crashes: list[int], left: int
) -> None:
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


def test_a_changed_flow_is_taken_over_by_the_resume_that_allows_it() -> None:
    story = Story(alone())
    story.plan = flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b").plan()
    story.crash()
    assert story.job.shape != story.plan.shape
    story.resume()
    assert story.job.shape == story.plan.shape
    assert list(story.job.routine_states) == ["a", "b"]
    assert [t.routine_id for t in story.run("out").tasks] == ["b"]


# --- pause and cancel (rule 12) -------------------------------------------------------------------


def test_a_paused_job_lets_its_steps_commit_and_keeps_their_children() -> None:
    story = Story(flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b"))
    step = story.begin()
    assert story.request("pause").status is JobStatus.PAUSED
    assert not story.machine.stopped
    assert story.end(step, done(step, "out")).status is JobStatus.PAUSED
    assert story.machine.stopped
    assert story.startable() == []
    assert story.due() is None
    assert story.resume().detail == {"recoveries": 0, "retry_failed": False, "withdrawn": []}
    assert story.startable() == ["0.0"]


@pytest.mark.parametrize(
    ("how", "ended", "resumed"), [("done", "paused", "completed"), ("fail", "failed", "running")]
)
def test_a_paused_job_completes_when_resumed_and_fails_at_once(
    how: str, ended: str, resumed: str
) -> None:
    story = Story(alone())
    step = story.begin()
    story.request("pause")
    assert story.end(step, done(step) if how == "done" else broken(step)).status == ended
    assert story.resume(retry_failed=True).status == resumed


@pytest.mark.parametrize("how", ["done", "fail"])
def test_a_cancelled_job_lets_its_steps_commit_and_stays_cancelled(how: str) -> None:
    story = Story(alone(None, "out"))
    step = story.begin()
    commit = story.accept(request(story.job, "cancel", 0, "no longer wanted"))
    assert commit.detail == {"reason": "no longer wanted"}
    outcome = done(step, "out") if how == "done" else broken(step)
    assert story.end(step, outcome).status is JobStatus.CANCELLED
    assert story.machine.stopped
    assert len(story.job.outputs) == (how == "done")


def test_a_job_with_steps_in_flight_is_not_resumed_under_them() -> None:
    story = Story(fan(2))
    story.run("out")
    step = story.begin()
    story.request("pause")
    with pytest.raises(NotResumableError, match=r"steps in flight, of tasks 0\.0; resume it when"):
        story.resume()
    story.end(step, done(step))
    story.resume()
    assert story.startable() == ["0.1", "0.2"]


# --- what is refused changes nothing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "asked", "message"),
    [
        ("completed", "pause", "completed; it can't be paused any more"),
        ("completed", "cancel", "completed; it can't be cancelled any more"),
        ("completed", "resume", "completed, which is final; start a new job"),
        ("cancelled", "pause", "cancelled; it can't be paused any more"),
        ("cancelled", "cancel", "cancelled; it can't be cancelled any more"),
        ("cancelled", "resume", "cancelled, which is final; start a new job"),
        ("paused", "pause", "paused; it can't be paused any more"),
        ("failed", "pause", "failed; it can't be paused any more"),
        ("failed", "resume", r"resume\(job, retry_failed=True\) tries again"),
    ],
)
def test_a_request_that_the_status_does_not_allow_is_refused_and_changes_nothing(
    status: str, asked: str, message: str
) -> None:
    story = Story(alone())
    if status == "completed":
        story.run()
    elif status == "failed":
        story.fail()
    else:
        story.request({"paused": "pause", "cancelled": "cancel"}[status])
    assert story.job.status == status
    before = text_of(story.job)
    with pytest.raises(NotResumableError, match=message):
        story.request(asked)
    assert text_of(story.job) == before
