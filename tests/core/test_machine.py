"""Stories of one job: the tasks that may start, the commits of steps, and refused requests."""

from __future__ import annotations

import pytest

from routilux.core.commits import CommitKind, JobStatus
from routilux.core.machine import MOST_CONFLICTS
from routilux.core.requests import request, requeue, take_over
from routilux.core.state import JobState
from routilux.core.transitions import child_id
from routilux.errors import FlowDefinitionError, IllegalTransitionError, NotResumableError
from routilux.flow import Flow
from routilux.graph.messages import StepInput
from routilux.retry.error_handler import ErrorHandler
from tests.core.stories import (
    SECOND,
    Collect,
    Stage,
    Strict,
    Tale,
    Wide,
    broken,
    done,
    emission,
    flow_of,
    retrying,
    text_of,
)


def fan(width: int = 1, **others: Stage) -> Flow:
    """a.out goes to b, c and d, in this order; any of them can be replaced."""
    routines: dict[str, Stage] = {"a": Stage("out"), "b": Stage(), "c": Stage(), "d": Stage()}
    return flow_of({**routines, **others}, "a.out -> b", "a.out -> c", "a.out -> d", width=width)


def alone(handler: ErrorHandler | None = None, *events: str) -> Flow:
    return flow_of({"a": Stage(*events, handler=handler)})


# --- from start to end ----------------------------------------------------------------------------


def test_a_job_is_its_root_task_and_completes_with_its_last_task() -> None:
    tale = Tale(flow_of({"a": Stage("out"), "b": Stage("out")}, "a.out -> b"))
    assert tale.pending() == ["0"]
    assert tale.run("out").status is JobStatus.RUNNING
    assert tale.pending() == ["0.0"]
    assert tale.run("out").status is JobStatus.COMPLETED
    assert tale.pending() == []
    assert [(o.routine_id, o.event, o.task_id) for o in tale.job.outputs] == [("b", "out", "0.0")]


def test_a_job_starts_once() -> None:
    tale = Tale(alone())
    with pytest.raises(IllegalTransitionError, match="job job is already started"):
        tale.machine.start("a", "trigger", {}, 0)


def test_a_queued_job_waits_until_it_is_resumed() -> None:
    tale = Tale(alone())
    tale.machine = type(tale.machine)(tale.plan, JobState("job"))
    tale.accept(tale.machine.start("a", "trigger", {}, 0, queued=True))
    assert tale.job.status is JobStatus.PENDING
    assert tale.startable() == []
    assert tale.due() is None
    tale.resume()
    assert tale.startable() == ["0"]
    assert tale.job.recoveries == 0


def test_a_mapping_renames_the_fields_of_one_connection_only() -> None:
    class Other(Stage):
        def take(self, m: int) -> None:  # type: ignore[override]
            raise AssertionError

    flow = flow_of({"a": Stage("out"), "b": Stage(), "c": Other()}, "a.out -> b")
    flow.connect("a", "out", "c", "trigger", {"n": "m"})
    tale = Tale(flow)
    assert [task.payload for task in tale.run(emission("out", n=7)).tasks] == [{"n": 7}, {"m": 7}]


def test_an_emission_without_a_required_field_fails_the_task_that_emitted_it() -> None:
    handler = retrying(retry_delay=0, on_exhausted="continue")
    flow = flow_of({"a": Stage("out", handler=handler), "b": Strict()}, "a.out -> b")
    commit = Tale(flow).run(emission("out"))
    assert commit.kind is CommitKind.DROPPED
    assert commit.error is not None
    assert commit.error.type == "routilux.FlowDefinitionError"
    assert commit.error.message == "a emitted 'out' without 'n', which b.trigger needs"
    assert not commit.emissions


# --- ids (rule 10) --------------------------------------------------------------------------------


def test_children_are_numbered_over_emissions_and_connections() -> None:
    commit = Tale(fan()).run("out", "out")
    assert [(t.task_id, t.routine_id, t.emission) for t in commit.tasks] == [
        ("0.0", "b", 0),
        ("0.1", "c", 0),
        ("0.2", "d", 0),
        ("0.3", "b", 1),
        ("0.4", "c", 1),
        ("0.5", "d", 1),
    ]


def test_children_have_the_same_ids_whatever_attempt_and_host_makes_them() -> None:
    tale = Tale(fan(a=Stage("out", handler=retrying(retry_delay=0))))
    tale.fail()
    tale.crash()
    tale.resume()
    assert [t.task_id for t in tale.run("out").tasks] == ["0.0", "0.1", "0.2"]


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
    tale = Tale(fan(4, b=Wide(handler=handler), d=Wide(handler=handler)))
    tale.run("out", "out")
    assert tale.startable() == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    tale.fail(task_id="0.3")
    tale.fail(task_id="0.2")
    tale.run(task_id="0.1")
    assert tale.startable() == ["0.0", "0.4", "0.5"]
    tale.now += SECOND
    # Both are due later than the others, and at the same time: 0.2 was created before 0.3.
    assert tale.startable() == ["0.0", "0.4", "0.5", "0.2", "0.3"]


# --- actors and width (rules 5 and 12) ------------------------------------------------------------


def test_a_routine_runs_one_step_at_a_time_and_its_waiting_tasks_delay_no_others() -> None:
    tale = Tale(fan(4))
    tale.run("out", "out")
    step = tale.begin()
    assert step.task.task_id == "0.0"
    assert tale.startable() == ["0.1", "0.2", "0.4", "0.5"]
    tale.end(step, done(step))
    assert tale.startable() == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_max_concurrency_limits_the_steps_of_a_routine_in_flight() -> None:
    tale = Tale(flow_of({"a": Stage("out"), "b": Wide()}, "a.out -> b", width=9))
    tale.run(*["out"] * 5)
    steps = [tale.begin() for _ in range(3)]
    assert tale.startable() == []
    tale.end(steps[1], done(steps[1]))
    assert tale.startable() == ["0.3", "0.4"]


def test_a_sequential_flow_has_one_step_in_flight_and_a_concurrent_one_max_workers() -> None:
    for width in (1, 2):
        tale = Tale(fan(width))
        tale.run("out")
        for _ in range(width):
            tale.begin()
        assert tale.startable() == []
        assert tale.due() is None


def test_a_step_takes_the_lowest_free_worker_number() -> None:
    tale = Tale(fan(3))
    tale.run("out")
    steps = [tale.begin() for _ in range(3)]
    assert [step.worker for step in steps] == [0, 1, 2]
    tale.end(steps[1], done(steps[1]))
    assert tale.end(steps[2], broken(steps[2])).worker == 2


def test_a_waiting_retry_occupies_no_worker_and_delays_no_other_task() -> None:
    tale = Tale(fan(1, b=Stage(handler=retrying(retry_delay=5))))
    tale.run("out")
    tale.fail(task_id="0.0")
    assert tale.startable() == ["0.1", "0.2"]
    assert tale.due() == 0
    tale.run(task_id="0.1")
    tale.run(task_id="0.2")
    assert tale.wait() == 5 * SECOND
    assert tale.startable() == ["0.0"]


def test_a_task_whose_routine_is_busy_is_not_due() -> None:
    handler = retrying(retry_delay=5)
    tale = Tale(fan(4, b=Stage(handler=handler), c=Stage(handler=retrying(retry_delay=7))))
    tale.run("out", "out")
    tale.fail(task_id="0.0")
    tale.fail(task_id="0.1")
    for task_id in ("0.3", "0.2", "0.4"):
        tale.begin(task_id)
    # 0.0 waits behind 0.3, 0.1 behind 0.4, 0.5 behind 0.2: time alone brings none of them.
    assert tale.startable() == []
    assert tale.due() is None


# --- conflicts (rule 4) ---------------------------------------------------------------------------


def test_a_step_that_read_a_key_changed_meanwhile_runs_again_without_using_a_retry() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    late, early = tale.begin(), tale.begin()
    tale.end(early, done(early, shared={"total": 1}, reads=["total"]))
    commit = tale.end(late, done(late, shared={"total": 1}, reads=["total"]))
    assert (commit.kind, commit.attempt, commit.shared) == (CommitKind.CONFLICT, 1, None)
    again = tale.begin("0.0")
    assert (again.attempt, again.shared) == (1, {"total": 1})
    tale.end(again, done(again, shared={"total": 2}, reads=["total"]))
    assert tale.job.shared_data == {"total": 2}
    assert tale.job.routine_states["b"].attempts == 1
    assert tale.job.retry_count() == 0


@pytest.mark.parametrize(
    ("reads", "conflicts"),
    [(["total"], True), (["gone"], True), (None, True), (["other"], False), ([], False)],
)
def test_a_step_conflicts_only_by_keys_that_it_read_or_by_reading_all(
    reads: list[str] | None, conflicts: bool
) -> None:
    tale = Tale(fan(2))
    step = tale.begin()
    tale.end(step, done(step, "out", shared={"gone": 0}))
    late, early = tale.begin(), tale.begin()
    outcome = done(early, shared={"total": 1})
    assert outcome.shared is not None
    outcome.shared.removed = ("gone",)
    tale.end(early, outcome)
    assert tale.job.shared_data == {"total": 1}
    commit = tale.end(late, done(late, reads=reads))
    assert (commit.kind is CommitKind.CONFLICT) is conflicts


def test_a_conflict_is_detected_before_a_failure_since_it_may_be_the_cause() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    late, early = tale.begin(), tale.begin()
    tale.end(early, done(early, shared={"total": 1}))
    commit = tale.end(late, broken(late, reads=["total"]))
    assert (commit.kind, commit.error) == (CommitKind.CONFLICT, None)
    assert tale.job.status is JobStatus.RUNNING


def contended(*, delay: int = 0) -> tuple[Tale, StepInput]:
    """A job whose task 0.0 has just conflicted for the last time, and a step still in flight."""
    handler = retrying(retry_delay=delay, max_retries=None)
    tale = Tale(fan(3, b=Wide(handler=handler), c=Wide(), d=Wide()))
    tale.run(*["out"] * (MOST_CONFLICTS + 1))
    busy = tale.begin("0.2")
    for number in range(MOST_CONFLICTS):
        assert tale.startable()[0] == "0.0"
        unlucky, other = tale.begin("0.0"), tale.begin(f"0.{1 + 3 * number}")
        tale.end(other, done(other, shared={"total": number}))
        assert tale.end(unlucky, done(unlucky, reads=["total"])).kind is CommitKind.CONFLICT
    return tale, busy


def test_after_three_conflicts_a_task_runs_alone() -> None:
    tale, busy = contended()
    tale.end(busy, done(busy))
    assert tale.startable() == ["0.0"]
    step = tale.begin()
    assert tale.startable() == []
    tale.end(step, done(step, reads=["total"]))
    assert len(tale.startable()) > 1


def test_a_task_that_must_run_alone_waits_for_the_steps_in_flight_and_starves_no_other() -> None:
    tale, busy = contended()
    # 0.0 is first, but not beside another step; and no instant will change that.
    assert tale.job.pending_tasks[0].task_id == "0.0"
    assert tale.startable() == []
    assert tale.due() is None
    tale.end(busy, done(busy))
    assert tale.startable() == ["0.0"]


def test_a_task_that_must_run_alone_is_not_startable_with_others() -> None:
    tale, busy = contended(delay=5)
    tale.end(busy, done(busy))
    tale.fail(task_id="0.0")
    tale.now += 5 * SECOND
    busy = tale.begin("0.3")
    # It is due, though not first: whoever explores other orders must not begin it now.
    assert "0.0" not in tale.startable()
    tale.end(busy, done(busy))
    assert "0.0" in tale.startable()


# --- failures (rules 1, 6, 7, 8, 9) ---------------------------------------------------------------


def test_a_failed_attempt_changes_nothing_but_its_record() -> None:
    tale = Tale(alone(retrying(retry_delay=1), "out"))
    before = tale.job.copy()
    step = tale.begin()
    outcome = broken(step)
    outcome.emissions = [emission("out", n=1)]
    outcome.state = outcome.shared = done(step, state={"n": 1}).state
    commit = tale.end(step, outcome)
    assert (commit.emissions, commit.tasks, commit.state, commit.shared) == ((), (), None, None)
    assert tale.job.shared_data == {}
    assert tale.job.outputs == []
    assert tale.job.routine_states["a"].state == before.routine_states["a"].state


def test_retries_wait_as_the_handler_says_and_then_the_job_fails() -> None:
    tale = Tale(alone(retrying(max_retries=4, retry_delay=0.3, retry_backoff=1.5)))
    waits = []
    while tale.fail().kind is CommitKind.RETRY:
        waits.append(tale.wait())
    assert waits == [300_000_000, 450_000_000, 675_000_000, 1_012_500_000]
    assert tale.job.status is JobStatus.FAILED
    (task,) = tale.job.pending_tasks
    assert (task.failed, task.attempt, task.retries) == (True, 6, 4)
    assert tale.startable() == []


def test_max_retries_none_never_gives_up() -> None:
    tale = Tale(alone(retrying(max_retries=None, retry_delay=0)))
    assert {tale.fail().kind for _ in range(200)} == {CommitKind.RETRY}
    assert tale.job.retry_count() == 200


def test_an_error_of_another_type_is_not_retried_but_a_subclass_is() -> None:
    class Timeout(ConnectionError): ...

    handler = retrying(retry_delay=0, retryable_exceptions=(ConnectionError,))
    tale = Tale(alone(handler))
    assert tale.fail(Timeout()).kind is CommitKind.RETRY
    assert tale.fail(KeyError()).kind is CommitKind.FAILED


def test_on_exhausted_decides_when_retries_are_spent_and_when_none_is_allowed() -> None:
    handler = retrying(
        max_retries=1, retry_delay=0, non_retryable_exceptions=(KeyError,), on_exhausted="skip"
    )
    tale = Tale(alone(handler))
    assert tale.fail(KeyError("x")).kind is CommitKind.DROPPED
    assert tale.job.status is JobStatus.COMPLETED
    tale = Tale(alone(handler))
    assert [tale.fail().kind for _ in range(2)] == [CommitKind.RETRY, CommitKind.DROPPED]
    assert tale.job.dropped[0].outcome == "skipped"


def test_retry_after_sets_the_next_delay_as_it_is_and_spends_a_retry() -> None:
    handler = retrying(max_retries=2, retry_delay=1, retry_backoff=3, max_delay=2, jitter=1)
    tale = Tale(alone(handler))
    step = tale.begin()
    tale.end(step, broken(step, after_ns=77 * SECOND))
    assert tale.wait() == 77 * SECOND
    assert tale.job.retry_count("a") == 1
    tale.fail()
    assert 0 <= tale.wait() <= 2 * SECOND
    step = tale.begin()
    assert tale.end(step, broken(step, after_ns=SECOND)).kind is CommitKind.FAILED


def test_a_delay_that_would_cross_the_deadline_means_exhausted_now() -> None:
    handler = retrying(max_retries=None, retry_delay=2, retry_backoff=1, deadline=10)
    tale = Tale(alone(handler), now=50)
    kinds = []
    while not kinds or kinds[-1] is CommitKind.RETRY:
        kinds.append(tale.fail().kind)
        if kinds[-1] is CommitKind.RETRY:
            tale.wait()
    # Attempts at 0, 2, 4, 6, 8 and 10 s: one more would start at 12 s.
    assert kinds == [CommitKind.RETRY] * 5 + [CommitKind.FAILED]
    assert tale.now == 50 + 10 * SECOND


def test_the_deadline_counts_from_the_first_start_even_if_that_met_a_conflict() -> None:
    handler = retrying(retry_delay=2, deadline=10)
    tale = Tale(fan(2, b=Stage(handler=handler)))
    tale.run("out")
    unlucky, other = tale.begin(), tale.begin()
    tale.now = 9 * SECOND
    tale.end(other, done(other, shared={"total": 1}))
    tale.end(unlucky, done(unlucky, reads=["total"]))
    assert tale.fail(task_id="0.0").kind is CommitKind.FAILED


def test_retry_failed_gives_a_fresh_budget_and_deadline_but_attempts_go_on_counting() -> None:
    tale = Tale(alone(retrying(max_retries=1, retry_delay=2, deadline=10)))
    tale.fail()
    tale.wait()
    assert tale.fail().kind is CommitKind.FAILED
    tale.now += 60 * SECOND
    tale.resume(retry_failed=True)
    assert tale.job.error is None
    assert tale.job.routine_states["a"].status == "pending"
    step = tale.begin()
    assert (step.attempt, step.final) == (3, False)
    assert tale.end(step, broken(step)).kind is CommitKind.RETRY
    assert tale.wait() == 2 * SECOND


def test_jitter_is_drawn_from_the_task_and_the_same_on_every_host() -> None:
    handler = retrying(retry_delay=1, retry_backoff=1, max_retries=None, jitter=0.1)

    def waits(job_id: str, *, crash: bool) -> list[int]:
        tale = Tale(alone(handler), job_id=job_id, now=SECOND * crash)
        found = []
        for _ in range(20):
            commit = tale.fail()
            assert commit.delay_ns is not None
            found.append(commit.delay_ns)
            if crash:
                tale.crash()
                tale.resume()
            tale.wait()
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
    tale = Tale(flow)
    tale.run("out")
    failing, other = tale.begin(), tale.begin()
    assert tale.end(failing, broken(failing)).status is JobStatus.FAILED
    assert not tale.machine.stopped
    assert tale.end(other, done(other, "out", shared={"n": 1})).status is JobStatus.FAILED
    assert tale.machine.stopped
    assert tale.startable() == []
    assert tale.due() is None
    assert tale.job.shared_data == {"n": 1}
    assert [(t.task_id, t.failed) for t in tale.job.pending_tasks] == [
        ("0.0", True),
        ("0.1.0", False),
    ]


def test_the_first_failure_is_the_jobs_error() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    one, two = tale.begin(), tale.begin()
    tale.end(one, broken(one, ValueError("first")))
    tale.end(two, broken(two, ValueError("second")))
    assert tale.job.error is not None
    assert tale.job.error.message == "first"
    with pytest.raises(NotResumableError, match=r"failed at b \(task 0.0\), c \(task 0.1\)"):
        tale.resume()


@pytest.mark.parametrize(
    ("strategy", "outcome", "status"),
    [("continue", "error_continued", "error_continued"), ("skip", "skipped", "skipped")],
)
def test_dropped_work_is_visible(strategy: str, outcome: str, status: str) -> None:
    tale = Tale(fan(1, b=Stage(handler=ErrorHandler(strategy))))
    tale.run("out")
    tale.fail(task_id="0.0")
    (dropped,) = tale.job.dropped
    assert (dropped.task_id, dropped.routine_id, dropped.outcome) == ("0.0", "b", outcome)
    assert dropped.error.message == "broken"
    assert tale.job.routine_states["b"].status == status
    assert [r.event for r in tale.job.execution_history] == ["start", "out", outcome]
    assert tale.job.error is None
    tale.run()
    assert tale.run().status is JobStatus.COMPLETED


def reporting(handler: ErrorHandler, limit: int | None = None) -> Tale:
    """b fails beside d, and declares an event `error`, which c takes."""
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
    tale = Tale(flow, limit=limit)
    tale.run("out")
    return tale


def test_an_error_event_reports_a_dropped_task_downstream_so_that_joins_can_finish() -> None:
    tale = reporting(ErrorHandler("continue"))
    commit = tale.fail(task_id="0.0")
    (task,) = commit.tasks
    assert (task.task_id, task.routine_id) == ("0.0.0", "c")
    assert task.payload == {"task_id": "0.0", "message": "broken"}
    tale.run(task_id="0.1")
    assert tale.run(task_id="0.0.0").status is JobStatus.COMPLETED


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_the_error_event_of_a_failure_is_withdrawn_when_the_task_is_retried(
    limit: int | None,
) -> None:
    tale = reporting(ErrorHandler(), limit)
    failing, other = tale.begin("0.0"), tale.begin("0.1")
    tale.end(failing, broken(failing))
    tale.end(other, done(other, "out"))
    assert tale.pending() == ["0.0", "0.0.0", "0.1.0"]
    commit = tale.resume(retry_failed=True)
    assert commit.detail is not None
    assert commit.detail["withdrawn"] == ["0.0.0"]
    assert tale.pending() == ["0.0", "0.1.0"]
    # The withdrawn task never ran, so its id is free for the child that comes of success.
    assert [(t.task_id, t.routine_id) for t in tale.run("out", task_id="0.0").tasks] == [
        ("0.0.0", "e")
    ]


def test_a_failed_job_that_is_requeued_without_its_flow_resumes_on_a_host_with_the_flow() -> None:
    tale = reporting(ErrorHandler())
    failing, other = tale.begin("0.0"), tale.begin("0.1")
    tale.end(failing, broken(failing))
    tale.end(other, done(other, "out"))
    commit = requeue(tale.job, tale.now)
    assert commit.detail == {"recoveries": 0, "retry_failed": True, "withdrawn": ["0.0.0"]}
    tale.accept(commit)
    assert (tale.job.status, tale.startable()) == (JobStatus.PENDING, [])
    tale.crash()
    with pytest.raises(NotResumableError, match="is pending; only a failed job"):
        requeue(tale.job, tale.now)
    resumed = tale.resume()
    assert resumed.detail == {"recoveries": 0, "retry_failed": False, "withdrawn": []}
    assert tale.pending() == ["0.0", "0.1.0"]
    tale.run(task_id="0.0")
    assert tale.run(task_id="0.1.0").status is JobStatus.COMPLETED


# --- outcomes that are late, and steps that are lost ----------------------------------------------


def test_a_late_or_duplicate_outcome_changes_nothing() -> None:
    tale = Tale(alone(retrying(retry_delay=0)))
    first = tale.begin()
    outcome = broken(first)
    tale.end(first, outcome)
    assert tale.machine.finish(first, outcome, tale.now) is None
    second = tale.begin()
    assert tale.machine.finish(first, outcome, tale.now) is None
    assert tale.machine.effect(first, "charge", object(), tale.now) is None  # type: ignore[arg-type]
    tale.end(second, done(second))
    assert tale.job.status is JobStatus.COMPLETED


def test_an_attempt_interrupted_by_a_crash_runs_again_with_the_same_number() -> None:
    tale = Tale(alone(retrying(retry_delay=0)))
    tale.fail()
    lost = tale.begin()
    tale.crash()
    tale.resume()
    assert tale.machine.finish(lost, done(lost), tale.now) is None
    again = tale.begin()
    assert (lost.attempt, again.attempt) == (2, 2)
    assert again.number != lost.number


def test_recorded_effects_survive_failures_conflicts_and_crashes() -> None:
    tale = Tale(alone(retrying(retry_delay=0)))
    step = tale.begin()
    commit = tale.record(step, "charge", "ch_1")
    assert (commit.kind, commit.attempt) == (CommitKind.EFFECT, 1)
    assert step.effects is None
    tale.end(step, broken(step))
    step = tale.begin()
    assert step.effects["charge"].result == "ch_1"
    tale.record(step, "mail", 7)
    tale.crash()
    tale.resume()
    assert list(tale.begin().effects) == ["charge", "mail"]


# --- recovery (rule 15) ---------------------------------------------------------------------------


def test_a_job_that_is_recovered_too_often_without_progress_is_poisoned() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    for number in (1, 2, 3):
        tale.begin()
        tale.crash()
        tale.resume()
        assert tale.job.recoveries == number
    tale.crash()
    commit = tale.resume()
    assert (commit.kind, commit.status, commit.task_id) == (
        CommitKind.FAILED,
        JobStatus.FAILED,
        None,
    )
    assert str(tale.job.error) == (
        "routilux.PoisonJobError: recovered 3 times without progress; each time the process"
        " ended while one of these was ready to run: b (task 0.0, attempt 1), c (task 0.1, attempt"
        " 1), d (task 0.2, attempt 1)"
    )
    assert tale.startable() == []
    tale.resume(retry_failed=True)
    assert tale.job.recoveries == 0
    assert tale.startable() == ["0.0", "0.1", "0.2"]


def test_a_job_that_was_given_back_counts_no_recovery_and_resets_none() -> None:
    tale = Tale(alone())
    for counted in (1, 2):
        tale.crash()
        tale.resume()
        for _ in range(10):
            tale.crash()
            tale.resume(most=2, clean=True)
            assert (tale.job.status, tale.job.recoveries) == (JobStatus.RUNNING, counted)
    tale.crash()
    assert tale.resume(most=2).status is JobStatus.FAILED


def test_a_job_that_is_taken_over_counts_once_and_is_poisoned_where_it_is_resumed() -> None:
    tale = Tale(alone())
    for number in (1, 2, 3):
        commit = tale.accept(take_over(tale.job, tale.now))
        assert commit.detail == {"recoveries": number, "retry_failed": False, "withdrawn": []}
        assert (tale.job.status, tale.startable()) == (JobStatus.PENDING, [])
        tale.crash()
        resumed = tale.resume(most=2)
        assert resumed.status is (JobStatus.RUNNING if number < 3 else JobStatus.FAILED)
    assert "recovered 2 times without progress" in str(tale.job.error)
    with pytest.raises(NotResumableError, match="is failed; only a pending or running job"):
        take_over(tale.job, tale.now)


def test_taking_over_a_waiting_or_pending_job_counts_no_recovery() -> None:
    tale = Tale(alone(retrying(retry_delay=3600)))
    tale.fail()
    for _ in range(2):
        tale.accept(take_over(tale.job, tale.now))
        assert (tale.job.status, tale.job.recoveries) == (JobStatus.PENDING, 0)
    tale.crash()
    tale.resume(most=0)
    assert tale.due() == 3600 * SECOND


@pytest.mark.parametrize("progress", ["done", "retry", "effect"])
def test_progress_resets_the_recoveries(progress: str) -> None:
    tale = Tale(fan(1, b=Stage(handler=retrying(retry_delay=0))))
    tale.run("out")
    for _ in range(10):
        tale.crash()
        tale.resume()
        tale.crash()
        tale.resume()
        assert tale.job.recoveries == 2
        step = tale.begin()
        if progress == "effect":
            tale.record(step, f"effect {tale.job.seq}", None)
        else:
            tale.end(step, done(step, "out") if progress == "done" else broken(step))
        if tale.job.status is not JobStatus.RUNNING or not tale.pending():
            return
        assert tale.job.recoveries == 0


def test_a_conflict_is_no_progress() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    tale.crash()
    tale.resume()
    step, other = tale.begin(), tale.begin()
    tale.end(other, done(other, shared={"n": 1}))
    tale.crash()
    tale.resume()
    assert tale.job.recoveries == 1
    assert tale.machine.finish(step, done(step, reads=["n"]), tale.now) is None


def test_a_restart_during_a_long_wait_costs_nothing() -> None:
    tale = Tale(alone(retrying(retry_delay=3600)))
    tale.fail()
    for _ in range(20):
        tale.now += SECOND
        tale.crash()
        tale.resume()
        assert tale.job.recoveries == 0
        assert tale.due() == 3600 * SECOND


def test_max_recoveries_none_never_poisons() -> None:
    tale = Tale(alone())
    for _ in range(50):
        tale.crash()
        tale.resume(most=None)
    assert tale.job.status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("woken_at", "left"),
    [(0, 10), (4, 6), (10, 0), (99, 0), (-3600, 10)],
    ids=["at once", "in the wait", "just then", "long after", "with a clock an hour behind"],
)
def test_the_rest_of_a_wait_is_honoured_and_neither_skipped_nor_stretched(
    woken_at: int, left: int
) -> None:
    tale = Tale(alone(retrying(retry_delay=10)), now=7200 * SECOND)
    tale.fail()
    tale.crash()
    tale.now += woken_at * SECOND
    tale.resume()
    due = tale.due()
    assert due is not None
    assert max(0, due - tale.now) == left * SECOND


def test_a_changed_flow_is_taken_over_by_the_resume_that_allows_it() -> None:
    tale = Tale(alone())
    tale.plan = flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b").plan()
    tale.crash()
    assert tale.job.shape != tale.plan.shape
    tale.resume()
    assert tale.job.shape == tale.plan.shape
    assert list(tale.job.routine_states) == ["a", "b"]
    assert [t.routine_id for t in tale.run("out").tasks] == ["b"]


# --- pause and cancel (rule 12) -------------------------------------------------------------------


def test_a_paused_job_lets_its_steps_commit_and_keeps_their_children() -> None:
    tale = Tale(flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b"))
    step = tale.begin()
    assert tale.request("pause").status is JobStatus.PAUSED
    assert not tale.machine.stopped
    assert tale.end(step, done(step, "out")).status is JobStatus.PAUSED
    assert tale.machine.stopped
    assert tale.startable() == []
    assert tale.due() is None
    assert tale.resume().detail == {"recoveries": 0, "retry_failed": False, "withdrawn": []}
    assert tale.startable() == ["0.0"]


def test_a_job_whose_last_task_ended_while_it_was_paused_completes_when_resumed() -> None:
    tale = Tale(alone())
    step = tale.begin()
    tale.request("pause")
    assert tale.end(step, done(step)).status is JobStatus.PAUSED
    assert tale.resume().status is JobStatus.COMPLETED


def test_a_failure_while_the_job_is_paused_fails_it() -> None:
    tale = Tale(alone())
    step = tale.begin()
    tale.request("pause")
    assert tale.end(step, broken(step)).status is JobStatus.FAILED


@pytest.mark.parametrize("how", ["done", "fail"])
def test_a_cancelled_job_lets_its_steps_commit_and_stays_cancelled(how: str) -> None:
    tale = Tale(alone(None, "out"))
    step = tale.begin()
    commit = tale.accept(request(tale.job, "cancel", 0, "no longer wanted"))
    assert commit.detail == {"reason": "no longer wanted"}
    outcome = done(step, "out") if how == "done" else broken(step)
    assert tale.end(step, outcome).status is JobStatus.CANCELLED
    assert tale.machine.stopped
    assert len(tale.job.outputs) == (how == "done")


def test_a_job_with_steps_in_flight_is_not_resumed_under_them() -> None:
    tale = Tale(fan(2))
    tale.run("out")
    step = tale.begin()
    tale.request("pause")
    with pytest.raises(NotResumableError, match=r"steps in flight, of tasks 0\.0; resume it when"):
        tale.resume()
    tale.end(step, done(step))
    tale.resume()
    assert tale.startable() == ["0.1", "0.2"]


# --- what is refused changes nothing --------------------------------------------------------------


def _completed(tale: Tale) -> None:
    tale.run()


def _cancelled(tale: Tale) -> None:
    tale.request("cancel")


def _paused(tale: Tale) -> None:
    tale.request("pause")


def _failed(tale: Tale) -> None:
    tale.fail()


@pytest.mark.parametrize(
    ("reached", "request_", "message"),
    [
        (_completed, "pause", "completed; it can't be paused any more"),
        (_completed, "cancel", "completed; it can't be cancelled any more"),
        (_completed, "resume", "completed, which is final; start a new job"),
        (_cancelled, "pause", "cancelled; it can't be paused any more"),
        (_cancelled, "cancel", "cancelled; it can't be cancelled any more"),
        (_cancelled, "resume", "cancelled, which is final; start a new job"),
        (_paused, "pause", "paused; it can't be paused any more"),
        (_failed, "pause", "failed; it can't be paused any more"),
        (_failed, "resume", r"resume\(job, retry_failed=True\) tries again"),
    ],
)
def test_a_request_that_the_status_does_not_allow_is_refused_and_changes_nothing(
    reached: object, request_: str, message: str
) -> None:
    tale = Tale(alone())
    reached(tale)  # type: ignore[operator]
    before = text_of(tale.job)
    with pytest.raises(NotResumableError, match=message):
        tale.request(request_)
    assert text_of(tale.job) == before


def test_making_a_commit_changes_nothing_and_repeats() -> None:
    tale = Tale(fan(2, b=Stage("error", handler=retrying(retry_delay=1, jitter=0.5))))
    tale.run("out")
    steps = [tale.begin(), tale.begin()]
    before, startable, due = text_of(tale.job), tale.startable(), tale.due()
    outcomes = [
        [done(step), broken(step), broken(step, FlowDefinitionError()), done(step, "out")]
        for step in steps
    ]
    for step, ends in zip(steps, outcomes, strict=True):
        for outcome in ends:
            once = tale.machine.finish(step, outcome, 5)
            assert tale.machine.finish(step, outcome, 5) == once
        tale.machine.effect(step, "charge", object(), 5)  # type: ignore[arg-type]
    for kind in ("pause", "cancel"):
        request(tale.job, kind, 5)  # type: ignore[arg-type]
    assert (text_of(tale.job), tale.startable(), tale.due()) == (before, startable, due)
    assert tale.machine.flights == steps
