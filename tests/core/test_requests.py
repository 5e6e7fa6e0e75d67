"""Requests to a job: pause, cancel, requeue, take over; and those that are refused."""

from __future__ import annotations

import pytest

from routilux.core.commits import JobStatus
from routilux.core.requests import request, requeue, take_over
from routilux.errors import NotResumableError
from routilux.retry.error_handler import ErrorHandler
from tests.core.stories import Stage, Story, alone, broken, done, fan, flow_of, reporting, text_of
from tests.routines import SECOND, retrying


def test_a_failed_job_that_is_requeued_without_its_flow_resumes_on_a_host_with_the_flow():
    story = reporting(ErrorHandler())
    failing, other = story.begin("0.0"), story.begin("0.1")
    story.end(failing, broken(failing))
    story.end(other, done(other, "out"))
    story.run(task_id="0.0.0")
    commit = requeue(story.job, story.now)
    assert commit.detail == {"recoveries": 0, "retry_failed": True}
    story.accept(commit)
    assert (story.job.status, story.startable()) == (JobStatus.PENDING, [])
    story.crash()
    with pytest.raises(NotResumableError, match="is pending; only a failed job"):
        requeue(story.job, story.now)
    resumed = story.resume()
    assert resumed.detail == {"recoveries": 0, "retry_failed": False}
    assert story.pending() == ["0.0", "0.1.0"]
    story.run(task_id="0.0")
    assert story.run(task_id="0.1.0").status is JobStatus.COMPLETED


def test_a_job_that_is_taken_over_counts_once_and_is_poisoned_where_it_is_resumed():
    story = Story(alone())
    for number in (1, 2, 3):
        commit = story.accept(take_over(story.job, story.now))
        assert commit.detail == {"recoveries": number, "retry_failed": False}
        assert (story.job.status, story.startable()) == (JobStatus.PENDING, [])
        story.crash()
        resumed = story.resume(most=2)
        assert resumed.status is (JobStatus.RUNNING if number < 3 else JobStatus.FAILED)
    assert "recovered 2 times without progress" in str(story.job.error)
    with pytest.raises(NotResumableError, match="is failed; only a pending or running job"):
        take_over(story.job, story.now)


def test_taking_over_a_waiting_or_pending_job_counts_no_recovery():
    story = Story(alone(retrying(retry_delay=3600)))
    story.fail()
    for _ in range(2):
        story.accept(take_over(story.job, story.now))
        assert (story.job.status, story.job.recoveries) == (JobStatus.PENDING, 0)
    story.crash()
    story.resume(most=0)
    assert story.due() == 3600 * SECOND


def test_a_paused_job_lets_its_steps_commit_and_keeps_their_children():
    story = Story(flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b"))
    step = story.begin()
    assert story.request("pause").status is JobStatus.PAUSED
    assert not story.machine.stopped
    assert story.end(step, done(step, "out")).status is JobStatus.PAUSED
    assert story.machine.stopped
    assert story.startable() == []
    assert story.due() is None
    assert story.resume().detail == {"recoveries": 0, "retry_failed": False}
    assert story.startable() == ["0.0"]


@pytest.mark.parametrize(
    ("how", "ended", "resumed"), [("done", "paused", "completed"), ("fail", "failed", "running")]
)
def test_a_paused_job_completes_only_when_it_is_resumed_but_fails_at_once(how, ended, resumed):
    story = Story(alone())
    step = story.begin()
    story.request("pause")
    assert story.end(step, done(step) if how == "done" else broken(step)).status == ended
    assert story.resume(retry_failed=True).status == resumed


@pytest.mark.parametrize("how", ["done", "fail"])
def test_a_cancelled_job_lets_its_steps_commit_and_stays_cancelled(how):
    story = Story(alone(None, "out"))
    step = story.begin()
    commit = story.accept(request(story.job, "cancel", 0, "no longer wanted"))
    assert commit.detail == {"reason": "no longer wanted"}
    outcome = done(step, "out") if how == "done" else broken(step)
    assert story.end(step, outcome).status is JobStatus.CANCELLED
    assert story.machine.stopped
    assert len(story.job.outputs) == (how == "done")


def test_a_job_with_steps_in_flight_is_not_resumed():
    story = Story(fan(2))
    story.run("out")
    step = story.begin()
    story.request("pause")
    with pytest.raises(NotResumableError, match=r"steps in flight \(tasks 0\.0\); resume the job"):
        story.resume()
    story.end(step, done(step))
    story.resume()
    assert story.startable() == ["0.1", "0.2"]


@pytest.mark.parametrize(
    ("status", "asked", "message"),
    [
        ("completed", "pause", "completed, so it can't be paused"),
        ("completed", "cancel", "completed, so it can't be cancelled"),
        ("completed", "resume", "completed, which is final; start a new job"),
        ("cancelled", "pause", "cancelled, so it can't be paused"),
        ("cancelled", "cancel", "cancelled, so it can't be cancelled"),
        ("cancelled", "resume", "cancelled, which is final; start a new job"),
        ("paused", "pause", "paused, so it can't be paused"),
        ("failed", "pause", "failed, so it can't be paused"),
        ("failed", "resume", r"call resume\(job, retry_failed=True\)"),
    ],
)
def test_a_request_that_the_status_does_not_allow_is_refused_and_changes_nothing(
    status, asked, message
):
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
