"""The state of a job: at each commit, its history, statuses, copies, equality."""

from __future__ import annotations

import pytest

from routilux.clocks.durations import from_ns
from routilux.core.commits import CommitKind, JobStatus
from routilux.core.state import JobState
from routilux.errors import JobFailedError
from tests.core.stories import by_text, done, eventful, failed, text_of


def test_at_returns_the_job_as_it_was_after_each_commit():
    job = eventful().job
    witness = JobState("job")
    for commit in job.commits:
        assert job.at(witness.seq) == witness
        witness.fold(commit)
    assert job.at(job.seq) == job
    assert {commit.kind for commit in job.commits} == set(CommitKind) - {
        CommitKind.FAILED,
        CommitKind.CANCELLED,
        CommitKind.INTERRUPTED,
    }


@pytest.mark.parametrize("seq", [-1, 14, 99])
def test_at_refuses_the_number_of_no_commit(seq):
    job = eventful().job
    with pytest.raises(
        ValueError, match=rf"job job has commits 1 to {job.seq}, but no commit {seq}"
    ):
        job.at(seq)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_history_limit_keeps_at_least_so_many_commits_and_at_most_twice(limit):
    full, kept = eventful().job, eventful(limit).job
    assert kept.commits == full.commits[-len(kept.commits) :]
    assert limit <= len(kept.commits) <= 2 * limit
    assert (kept.pending_tasks, kept.routine_states) == (full.pending_tasks, full.routine_states)
    with pytest.raises(ValueError, match="no longer has the commits before"):
        kept.at(kept.seq)
    assert by_text(kept) == kept


def test_the_history_lists_events_and_the_commits_all_changes():
    job = eventful().job
    assert [(r.routine_id, r.event, r.attempt, r.data) for r in job.execution_history] == [
        ("a", "start", 1, {"n": 1}),
        ("a", "out", 2, {"n": 1}),
        ("a", "extra", 2, {"n": 0}),
        ("b", "error_continued", 1, {"type": "ValueError", "message": "broken"}),
        ("b", "error", 1, {"task_id": "0.0", "message": "broken"}),
        ("d", "out", 1, {"n": 0}),
    ]
    _, last = failed().job.execution_history
    assert (last.seq, last.task_id, last.at) == (2, "0", from_ns(0))
    assert (last.event, last.data) == ("error", {"type": "ValueError", "message": "no stock"})
    assert [job.retry_count(name) for name in ("a", "b", "e", None)] == [1, 0, 1, 1]
    assert [(o.routine_id, o.event) for o in job.outputs] == [("a", "extra"), ("d", "out")]


def test_raise_for_status_names_the_failed_task():
    eventful().job.raise_for_status()
    with pytest.raises(
        JobFailedError,
        match="job job failed: ValueError: no stock; task 0 of a failed at attempt 1",
    ):
        failed().job.raise_for_status()


@pytest.mark.parametrize("runs", ["the job", "its copy"])
def test_commits_of_a_job_do_not_change_its_copy_nor_the_other_way_round(runs):
    story = eventful()
    kept, copy = story.job, story.job.copy()
    assert kept == copy
    if runs == "the job":
        kept = copy
    else:
        story.machine = type(story.machine)(story.plan, copy)
    before = text_of(kept)
    story.wait()
    step = story.begin()
    story.record(step, "late", 1)
    story.end(step, done(step, "out", state={"n": 1}, shared={"total": 99}))
    assert story.job.status is JobStatus.COMPLETED
    assert text_of(kept) == before
    assert kept != story.job


def test_jobs_are_equal_by_value_and_can_not_be_hashed():
    assert eventful().job == eventful().job
    assert eventful().job != failed().job
    assert eventful().job != "job"
    with pytest.raises(TypeError, match="unhashable"):
        hash(failed().job)


def test_a_job_is_equal_to_no_other_type():
    job = eventful().job
    assert (job == "job") is False
    assert (job != job.serialize()) is True


def test_a_failed_task_is_counted_once():
    states = failed().job.routine_states.values()
    assert [1] == [state.failed for state in states if state.failed]
