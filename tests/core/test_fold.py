"""Commits that do not follow the state of a job: they are refused and change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.replay import replay
from routilux.core.state import JobState
from routilux.errors import IllegalTransitionError
from routilux.graph.messages import ErrorInfo, RecordedEffect, Task, Writes
from tests.core.stories import Stage, Story, failed, flow_of, text_of
from tests.fuzz.families import Story as FamilyStory


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
            {"kind": CommitKind.INTERRUPTED},
            "commit 4 must have an error, and belong to a pending task or to none",
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


# --- the work of a replay -------------------------------------------------------------------------


def test_a_replay_changes_the_state_in_place_and_a_running_job_replaces_it():
    story = FamilyStory()
    story.spread(4)
    for i, key in enumerate("abc"):
        story.step(CommitKind.DONE, f"0.{i}", state=Writes({key: i}), shared=Writes({key: i}))
    commits = story.job.commits
    for replayed in True, False:
        job, seen = JobState("job-1"), []
        for commit in commits:
            if replayed:
                replay(job, [("$", commit)])
            else:
                job.fold(commit)
            seen.append((job.routine_states["a"].state, job.shared_data))
        states, shared = ({id(pair[i]) for pair in seen[-3:]} for i in (0, 1))
        assert (len(states), len(shared)) == ((1, 1) if replayed else (3, 3))
        assert job == story.job
    assert {"a": 0} == commits[-3].state.values


def test_the_effects_of_a_task_are_added_in_place_by_a_replay_alone():
    story = FamilyStory()
    for i in range(3):
        story.step(CommitKind.EFFECT, detail={"name": f"e{i}"}, effect=RecordedEffect("", i))
    for replayed, mappings in (True, 1), (False, 3):
        job, seen = JobState("job-1"), []
        for commit in story.job.commits:
            if replayed:
                replay(job, [("$", commit)])
            else:
                job.fold(commit)
            seen.append(job._pending["0"].effects)
        assert mappings == len({*map(id, seen[1:])})
        assert job == story.job


class Unvisited(dict[str, Any]):
    """A dict whose values nobody may visit one after the other."""

    def values(self) -> Any:
        raise AssertionError("all tasks were visited")

    items = __iter__ = values


def test_a_resume_visits_only_tasks_that_wait_or_have_failed():
    story = FamilyStory()
    story.spread(9)
    story.retry("0.1", 1, 10**15)
    story.fail("0.2")
    job = story.job
    job._pending = Unvisited(job._pending)
    assert (["0.1", "0.2"], ["0.2"]) == (list(job._waiting), list(job._failed))
    story.resume(retry_failed=True)
    assert ({}, {}) == (job._waiting, job._failed)
    assert not job._pending["0.2"].failed
    loaded = JobState.deserialize(FamilyStory().job.serialize())
    assert ["0"] == list(loaded._waiting)


def test_a_copy_has_its_own_lists_of_waiting_and_failed_tasks():
    story = FamilyStory()
    story.spread(2)
    story.fail("0.1")
    twin = story.job.copy()
    story.resume(retry_failed=True)
    assert (["0.1"], ["0.1"]) == (list(twin._waiting), list(twin._failed))
