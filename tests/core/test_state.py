"""The state of a job: reading it at each commit, copying, saving, loading, refused commits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest

from routilux import codec
from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.core.state import JobState
from routilux.errors import (
    CorruptStateError,
    IllegalTransitionError,
    JobFailedError,
    UnserializableError,
)
from routilux.graph.messages import ErrorInfo, Task
from routilux.retry.error_handler import ErrorHandler
from tests.core.stories import (
    Collect,
    Stage,
    Story,
    by_document,
    by_folding,
    by_text,
    done,
    emission,
    flow_of,
    text_of,
)
from tests.routines import retrying

WAYS = [by_document, by_text, by_folding]


def eventful(limit: int | None = None, *, n: object = 1) -> Story:
    """A job that has seen every kind of commit but the cancellation; it waits for a retry."""
    flow = flow_of(
        {
            "a": Stage("out", "extra", handler=retrying(retry_delay=1)),
            "b": Stage("out", "error", handler=ErrorHandler("continue")),
            "c": Collect(),
            "d": Stage("out"),
            "e": Stage("out", handler=retrying(retry_delay=5)),
        },
        "a.out -> b", "a.out -> d", "a.out -> e", "b.error -> c",
        width=3,
    )  # fmt: skip
    story = Story(flow, limit=limit, n=n)
    story.fail()
    story.wait()
    step = story.begin()
    story.record(step, "charge", ("ch_1", n))
    outcome = done(step, emission("out", n=n), "extra", state={"seen": {n}}, shared={"total": 1})
    story.end(step, outcome)
    story.fail(task_id="0.0")
    unlucky, lucky = story.begin("0.0.0"), story.begin("0.1")
    story.end(lucky, done(lucky, "out", shared={"total": [n]}))
    story.end(unlucky, done(unlucky, reads=["total"]))
    story.run(task_id="0.0.0")
    story.request("pause")
    story.resume()
    story.fail(task_id="0.2")
    return story


def failed() -> Story:
    story = Story(flow_of({"a": Stage()}))
    story.fail(ValueError("no stock"))
    return story


# --- what it was ----------------------------------------------------------------------------------


def test_at_returns_the_job_as_it_was_after_each_commit() -> None:
    job = eventful().job
    witness = JobState("job")
    for commit in job.commits:
        assert job.at(witness.seq) == witness
        witness.fold(commit)
    assert job.at(job.seq) == job
    assert {commit.kind for commit in job.commits} == set(CommitKind) - {
        CommitKind.FAILED,
        CommitKind.CANCELLED,
    }


@pytest.mark.parametrize("seq", [-1, 14, 99])
def test_at_refuses_the_number_of_no_commit(seq: int) -> None:
    job = eventful().job
    with pytest.raises(ValueError, match=rf"job job has commits 1 to {job.seq}, not {seq}"):
        job.at(seq)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_history_limit_keeps_at_least_so_many_commits_and_at_most_twice(limit: int) -> None:
    full, kept = eventful().job, eventful(limit).job
    assert kept.commits == full.commits[-len(kept.commits) :]
    assert limit <= len(kept.commits) <= 2 * limit
    assert (kept.pending_tasks, kept.routine_states) == (full.pending_tasks, full.routine_states)
    with pytest.raises(ValueError, match="the history before commit"):
        kept.at(kept.seq)
    assert by_text(kept) == kept


def test_the_history_lists_events_and_the_commits_all_changes() -> None:
    job = eventful().job
    assert [(r.routine_id, r.event, r.attempt) for r in job.execution_history] == [
        ("a", "start", 1),
        ("a", "out", 2),
        ("a", "extra", 2),
        ("b", "error_continued", 1),
        ("b", "error", 1),
        ("d", "out", 1),
    ]
    assert [(o.routine_id, o.event) for o in job.outputs] == [("a", "extra"), ("d", "out")]


def test_a_routine_has_the_worst_status_and_the_most_retries_of_its_tasks() -> None:
    job = eventful().job
    assert {name: str(state.status) for name, state in job.routine_states.items()} == {
        "a": "completed",
        "b": "error_continued",
        "c": "completed",
        "d": "completed",
        "e": "pending",
    }
    assert [job.retry_count(name) for name in "abe"] == [1, 0, 1]
    assert job.retry_count() == 1


def test_raise_for_status_names_the_failed_task() -> None:
    eventful().job.raise_for_status()
    with pytest.raises(
        JobFailedError,
        match="job job failed: ValueError: no stock; task 0 of a failed at attempt 1",
    ):
        failed().job.raise_for_status()


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["the job", "its copy"])
def test_commits_of_a_job_do_not_change_its_copy_nor_the_other_way_round(runs: str) -> None:
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


def test_jobs_are_equal_by_value_and_can_not_be_hashed() -> None:
    assert eventful().job == eventful().job
    assert eventful().job != failed().job
    assert eventful().job != "job"
    with pytest.raises(TypeError, match="unhashable"):
        hash(failed().job)


# --- saving and reading ---------------------------------------------------------------------------


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize("n", [1, "ü", float("nan"), -0.0, (1, (2,)), frozenset({b"x"}), None])
def test_a_job_comes_back_equal_and_is_saved_again_as_the_same_text(
    restore: Callable[[JobState], JobState], n: object
) -> None:
    for job in (eventful(n=n).job, failed().job):
        restored = restore(job)
        assert restored == job
        assert text_of(restored) == text_of(job)
        assert job.dumps() == codec.dumps(job.serialize())


def test_deserialize_does_not_change_its_document() -> None:
    document = eventful().job.serialize()
    JobState.deserialize(document)
    assert document == eventful().job.serialize()


def test_an_error_names_the_path_of_a_value_that_can_not_be_saved() -> None:
    story = Story(flow_of({"a": Stage("out")}), n={"deep": [object()]})
    with pytest.raises(UnserializableError) as refusal:
        story.job.serialize()
    assert refusal.value.path == "$.pending_tasks[0].payload.n.deep[0]"


DROP = object()


def changed(document: dict[str, Any], *path: str | int, to: object) -> dict[str, Any]:
    """Return a copy of a document with another value at a path, or without it."""
    result: Any = copy.deepcopy(document)
    target = result
    for step in path[:-1]:
        target = target[step]
    if to is DROP:
        del target[path[-1]]
    else:
        target[path[-1]] = to
    return cast("dict[str, Any]", result)


@pytest.mark.parametrize(
    ("place", "value", "path"),
    [
        (("colour",), "red", "$.colour"),
        (("seq",), DROP, "$.seq"),
        (("seq",), "13", "$.seq"),
        (("seq",), True, "$.seq"),
        (("seq",), -1, "$.seq"),
        (("seq",), 12, "$.commits"),
        (("status",), "asleep", "$.status"),
        (("status",), "paused", "$.status"),
        (("recoveries",), 1, "$.recoveries"),
        (("updated_ns",), 10**30, "$.updated_ns"),
        (("updated_ns",), 1, "$.updated_ns"),
        (("shape",), [1], "$.shape"),
        (("shared_data", "total"), 2, "$.shared_data"),
        (("error",), {"type": "ValueError", "message": ""}, "$.error"),
        (("pending_tasks",), [], "$.pending_tasks"),
        (("pending_tasks", 0, "attempt"), 3, "$.pending_tasks"),
        (("pending_tasks", 0, "attempt"), 0, "$.pending_tasks[0].retries"),
        (("pending_tasks", 0, "mood"), "good", "$.pending_tasks[0].mood"),
        (("pending_tasks", 0, "failed"), 1, "$.pending_tasks[0].failed"),
        (("pending_tasks", 0, "delay_ns"), -1, "$.pending_tasks[0].delay_ns"),
        (("outputs", 0, "event"), "other", "$.outputs"),
        (("dropped", 0, "outcome"), "lost", "$.dropped[0].outcome"),
        (("dropped",), [], "$.dropped"),
        (("routine_states", "a", "status"), "failed", "$.routine_states['a'].status"),
        (("routine_states", "a", "attempts"), 9, "$.routine_states"),
        (("commits", 3, "kind"), "guess", "$.commits[3]"),
        (("commits", 3, "kind"), "retry", "$.commits[3].delay_ns"),
        (("commits", 3, "attempt"), 7, "$.commits[3]"),
        (("commits", 3, "task_id"), "9", "$.commits[3]"),
        (("commits", 3, "at_ns"), 0, "$.commits[3]"),
        (("commits", 3, "status"), "completed", "$.commits[3]"),
        (("commits", 3, "state", "removed"), [1], "$.commits[3].state.removed"),
        (("commits", 3, "tasks", 0, "emission"), 9, "$.commits[3].tasks[0].emission"),
        (("commits", 3, "tasks", 1, "task_id"), "0.0", "$.commits[3]"),
        (("commits", 1, "seq"), 3, "$.commits"),
        (("commits", 3), DROP, "$.commits"),
        (("commits", 0, "detail"), DROP, "$.commits[0].detail"),
    ],
)
def test_data_that_the_machine_could_not_have_written_is_refused_with_its_path(
    place: tuple[str | int, ...], value: object, path: str
) -> None:
    document = eventful().job.serialize()
    JobState.deserialize(document)
    with pytest.raises(CorruptStateError) as refusal:
        JobState.deserialize(changed(document, *place, to=value))
    assert refusal.value.path == path


def test_a_job_without_its_first_commits_must_agree_with_its_last_commit() -> None:
    document = eventful(2).job.serialize()
    JobState.deserialize(document)
    for name, value in (("status", "paused"), ("updated_ns", 1)):
        with pytest.raises(CorruptStateError, match="contradicts the last commit"):
            JobState.deserialize(changed(document, name, to=value))


# --- what can't follow ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": 5}, "commit 5 can't follow commit 3"),
        ({"seq": 3}, "commit 3 can't follow commit 3"),
        ({"attempt": 2}, "commit 4 ends attempt 2 of task 0.0, which is not the next one"),
        ({"task_id": "0.9"}, "commit 4 ends attempt 1 of task 0.9, which is not the next one"),
        ({"kind": CommitKind.START}, "only the first commit starts a job"),
        ({"kind": CommitKind.RETRY}, "commit 4 is a retry without due_ns"),
        ({"kind": CommitKind.DROPPED}, "commit 4 drops a task without an error and a detail"),
        ({"kind": CommitKind.EFFECT}, "commit 4 has no effect, or its task is not pending"),
        (
            {
                "kind": CommitKind.RESUMED,
                "detail": {"recoveries": 7, "shape": [], "routines": ["z"], "withdrawn": ["0.9"]},
            },
            "commit 4 withdraws a task that is not pending",
        ),
    ],
)
def test_a_commit_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
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


def test_a_failed_task_is_not_ended_again() -> None:
    job = failed().job
    before = text_of(job)
    again = Commit(3, CommitKind.DONE, 0, JobStatus.FAILED, "0", "a", 2, 0)
    with pytest.raises(IllegalTransitionError, match="not the next one"):
        job.fold(again)
    assert text_of(job) == before


@pytest.mark.parametrize("kind", [kind for kind in CommitKind if kind is not CommitKind.START])
def test_a_job_begins_with_its_start(kind: CommitKind) -> None:
    job = JobState("job")
    error = ErrorInfo("ValueError", "")
    commit = Commit(1, kind, 0, JobStatus.CANCELLED, error=error, tasks=[])
    with pytest.raises(IllegalTransitionError, match=f"not with '{kind}'"):
        job.fold(commit)
    assert job == JobState("job")


def test_a_start_without_its_details_is_refused() -> None:
    job = JobState("job")
    root = Task("0", "a", "trigger", {}, True, -1)
    with pytest.raises(IllegalTransitionError, match="only the first commit starts a job"):
        job.fold(Commit(1, CommitKind.START, 0, JobStatus.RUNNING, tasks=[root]))
    assert job == JobState("job")
