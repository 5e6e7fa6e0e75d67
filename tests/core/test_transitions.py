"""The commit that ends a step: ids of new tasks, retries, failures, dropped tasks."""

from __future__ import annotations

import pytest

from routilux.core.commits import CommitKind, JobStatus
from routilux.core.transitions import child_id
from routilux.errors import NotResumableError
from routilux.retry.error_handler import ErrorHandler
from tests.core.stories import (
    Stage,
    Story,
    Strict,
    Wide,
    alone,
    broken,
    done,
    emission,
    fan,
    flow_of,
    reporting,
)
from tests.routines import SECOND, retrying


def test_a_mapping_renames_the_fields_of_one_connection_only():
    class Other(Stage):
        def take(self, m: int) -> None:  # type: ignore[override]
            raise AssertionError

    flow = flow_of({"a": Stage("out"), "b": Stage(), "c": Other()}, "a.out -> b")
    flow.connect("a", "out", "c", "trigger", {"n": "m"})
    story = Story(flow)
    assert [task.payload for task in story.run(emission("out", n=7)).tasks] == [{"n": 7}, {"m": 7}]


def test_an_emission_without_a_required_field_fails_the_task_that_emitted_it():
    handler = retrying(retry_delay=0, on_exhausted="continue")
    flow = flow_of({"a": Stage("out", handler=handler), "b": Strict()}, "a.out -> b")
    commit = Story(flow).run(emission("out"))
    assert commit.kind is CommitKind.DROPPED
    assert commit.error is not None
    assert commit.error.type == "routilux.FlowDefinitionError"
    assert commit.error.message == "a emitted 'out' without 'n', which b.trigger needs"
    assert not commit.emissions


def test_children_are_numbered_over_emissions_and_connections_alike_in_each_attempt():
    story = Story(fan(a=Stage("out", handler=retrying(retry_delay=0))))
    story.fail()
    story.crash()
    story.resume()
    children = story.run("out", "out").tasks
    assert [f"0.{number}" for number in range(6)] == [task.task_id for task in children]
    assert [*"bcdbcd"] == [task.routine_id for task in children]
    assert [0, 0, 0, 1, 1, 1] == [task.emission for task in children]


def test_a_lineage_of_more_than_64_characters_is_shortened_to_a_digest():
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


def test_on_exhausted_decides_when_retries_are_spent_and_when_none_is_allowed():
    handler = retrying(
        max_retries=1, retry_delay=0, non_retryable_exceptions=(KeyError,), on_exhausted="skip"
    )
    story = Story(alone(handler))
    assert story.fail(KeyError("x")).kind is CommitKind.DROPPED
    assert story.job.status is JobStatus.COMPLETED
    story = Story(alone(handler))
    assert [story.fail().kind for _ in range(2)] == [CommitKind.RETRY, CommitKind.DROPPED]
    assert story.job.dropped[0].outcome == "skipped"


def test_retry_after_sets_the_next_delay_as_it_is_and_spends_a_retry():
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


def test_a_task_is_not_retried_if_its_delay_would_cross_the_deadline():
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
    why = "(not retried: the next wait of 2 s would pass the deadline of 10 s)"
    assert str(story.job.error).splitlines()[-1] == why


def test_the_deadline_counts_from_the_first_start_even_if_that_met_a_conflict():
    handler = retrying(retry_delay=2, deadline=10)
    story = Story(fan(2, b=Stage(handler=handler)))
    story.run("out")
    unlucky, other = story.begin(), story.begin()
    story.now = 9 * SECOND
    story.end(other, done(other, shared={"total": 1}))
    story.end(unlucky, done(unlucky, reads=["total"]))
    assert story.fail(task_id="0.0").kind is CommitKind.FAILED


def test_retry_failed_gives_a_fresh_budget_and_deadline_but_does_not_reset_the_attempts():
    story = Story(alone(retrying(max_retries=1, retry_delay=2, deadline=10)))
    story.fail()
    story.wait()
    assert story.fail().kind is CommitKind.FAILED
    story.now += 60 * SECOND
    story.resume(retry_failed=True)
    assert story.job.error is None
    routine = story.job.routine_states["a"]
    assert (routine.status, routine.error) == ("pending", None)
    assert story.due() == story.now
    step = story.begin()
    assert (step.attempt, step.final) == (3, False)
    assert story.end(step, broken(step)).kind is CommitKind.RETRY
    assert story.wait() == 2 * SECOND
    assert story.job.retry_count("a") == 1


def test_jitter_is_drawn_from_the_task_and_the_same_on_every_host():
    handler = retrying(retry_delay=1, retry_backoff=1, max_retries=None, jitter=0.1)

    def waits(job_id, *, crash):
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


def test_steps_in_flight_commit_and_the_error_event_is_handled_before_a_job_is_failed():
    story = reporting(ErrorHandler())
    failing, other = story.begin("0.0"), story.begin("0.1")
    assert story.end(failing, broken(failing)).status is JobStatus.RUNNING
    assert story.startable() == ["0.0.0"]
    assert story.end(other, done(other, "out", shared={"n": 1})).status is JobStatus.RUNNING
    assert story.startable() == ["0.0.0"]
    assert story.run().status is JobStatus.FAILED
    assert story.machine.stopped
    assert (story.startable(), story.due()) == ([], None)
    assert story.job.shared_data == {"n": 1}
    assert story.pending() == ["0.0", "0.1.0"]
    assert [True, False] == [task.failed for task in story.job.pending_tasks]


@pytest.mark.parametrize("end", ["done", "retry", "failed", "conflict"])
def test_a_job_rests_as_failed_with_its_last_step_in_flight_however_that_ends(end):
    handler = retrying(retry_delay=1, max_retries=1 if end == "retry" else 0)
    story = Story(fan(3, c=Wide(handler=handler), d=Wide()))
    story.run("out")
    failing, last, other = story.begin("0.0"), story.begin("0.1"), story.begin("0.2")
    story.end(other, done(other, shared={"n": 1}))
    assert story.end(failing, broken(failing)).status is JobStatus.RUNNING
    reads = {"reads": ["n"]} if end == "conflict" else {}
    outcome = done(last, **reads) if end in ("done", "conflict") else broken(last)
    commit = story.end(last, outcome)
    assert (commit.kind, commit.status) == (end, JobStatus.FAILED)
    assert story.machine.stopped


def test_a_host_that_resumes_a_job_that_fails_lets_it_rest_when_nothing_is_left_to_tell():
    story = Story(fan(2))
    story.run("out")
    failing, _ = story.begin("0.0"), story.begin("0.1")
    assert story.end(failing, broken(failing)).status is JobStatus.RUNNING
    story.crash()
    assert story.resume().status is JobStatus.FAILED
    assert story.pending() == ["0.0", "0.1", "0.2"]
    assert story.resume(retry_failed=True).status is JobStatus.RUNNING
    assert story.startable() == ["0.0", "0.1", "0.2"]


def test_the_first_failure_is_the_jobs_error():
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
    ("strategy", "outcome"), [("continue", "error_continued"), ("skip", "skipped")]
)
def test_a_dropped_task_has_its_outcome(strategy, outcome):
    story = Story(fan(1, b=Stage(handler=ErrorHandler(strategy))))
    story.run("out")
    story.fail(task_id="0.0")
    (dropped,) = story.job.dropped
    assert (dropped.task_id, dropped.routine_id, dropped.outcome) == ("0.0", "b", outcome)
    assert dropped.error.message == "broken"
    assert story.job.routine_states["b"].status == outcome
    assert [r.event for r in story.job.execution_history] == ["start", "out", outcome]
    assert story.job.error is None
    story.run()
    assert story.run().status is JobStatus.COMPLETED


@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("reported", [True, False])
def test_a_fresh_budget_uses_no_id_of_a_task_that_reported_a_failure(limit, reported):
    story = reporting(ErrorHandler(), limit)
    failing, other = story.begin("0.0"), story.begin("0.1")
    story.end(failing, broken(failing))
    story.end(other, done(other))
    if reported:
        story.run()
    else:
        story.request("pause")
    story.crash()
    story.resume(retry_failed=True)
    assert story.pending() == (["0.0"] if reported else ["0.0", "0.0.0"])
    assert [t.task_id for t in story.fail(task_id="0.0").tasks] == ["0.0.1"]
    story.run(task_id="0.0.1")
    if not reported:
        story.run(task_id="0.0.0")
    story.resume(retry_failed=True)
    assert [(t.task_id, t.routine_id) for t in story.run("out", task_id="0.0").tasks] == [
        ("0.0.2", "e")
    ]
