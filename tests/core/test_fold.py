"""Commits that do not follow the state of a job: they are refused and change nothing."""

from __future__ import annotations

import pytest

from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.state import JobState
from routilux.errors import IllegalTransitionError
from routilux.graph.messages import ErrorInfo, Task
from tests.core.stories import Stage, Story, failed, flow_of, text_of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": 5}, "commit 5 can't follow commit 3; commit 4 is next"),
        ({"seq": 3}, "commit 3 can't follow commit 3"),
        (
            {"attempt": 2},
            "commit 4 ends attempt 2 of task 0.0, but no such attempt is pending",
        ),
        (
            {"task_id": "0.9"},
            "commit 4 ends attempt 1 of task 0.9, but no such attempt is pending",
        ),
        ({"kind": CommitKind.START}, "a 'start' commit must be the first"),
        ({"kind": CommitKind.RETRY}, "commit 4 of kind 'retry' has no due_ns"),
        ({"kind": CommitKind.DROPPED}, "commit 4 drops a task, so it must have an error and"),
        (
            {"kind": CommitKind.EFFECT},
            "commit 4 must hold an effect with a name, and belong to a pending task",
        ),
        (
            {
                "kind": CommitKind.RESUMED,
                "detail": {"recoveries": 7, "shape": [], "routines": ["z"], "withdrawn": ["0.9"]},
            },
            "commit 4 withdraws a task that is not pending",
        ),
    ],
)
def test_a_commit_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    story = Story(flow_of({"a": Stage("out"), "b": Stage()}, "a.out -> b"))
    story.run("out")
    story.request("pause")
    story.resume()
    job = story.job.at(3)
    commit = Commit(4, CommitKind.DONE, 0, JobStatus.RUNNING, "0.0", "b", 1, 0)
    for name, value in change.items():
        setattr(commit, name, value)
    before = text_of(job)
    with pytest.raises(IllegalTransitionError, match=f"^{message}"):
        job.fold(commit)
    assert text_of(job) == before


def test_a_failed_task_is_not_ended_again():
    job = failed().job
    before = text_of(job)
    again = Commit(3, CommitKind.DONE, 0, JobStatus.FAILED, "0", "a", 2, 0)
    with pytest.raises(IllegalTransitionError, match="no such attempt is pending"):
        job.fold(again)
    assert text_of(job) == before


@pytest.mark.parametrize("kind", CommitKind)
def test_a_job_begins_with_a_start_that_has_details(kind):
    job = JobState("job")
    tasks = [Task("0", "a", "trigger", {}, True, -1)] if kind is CommitKind.START else []
    commit = Commit(1, kind, 0, JobStatus.CANCELLED, error=ErrorInfo("E", ""), tasks=tasks)
    message = "a 'start' commit must be the first" if tasks else f"'start', not '{kind}'"
    with pytest.raises(IllegalTransitionError, match=message):
        job.fold(commit)
    assert job == JobState("job")
