"""The saved form of a job: it is read as an equal job, and damaged forms are refused."""

from __future__ import annotations

import pytest

from routilux import Flow, Runtime, codec
from routilux.core.state import JobState
from routilux.errors import UnserializableError
from tests.core.stories import (
    Stage,
    Story,
    by_document,
    by_folding,
    by_text,
    eventful,
    failed,
    flow_of,
    text_of,
)
from tests.persist.orders import DOUBLED, DROPPED, spoil
from tests.routines import Works, refused_at

WAYS = [by_document, by_text, by_folding]


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize("n", [1, "ü", float("nan"), -0.0, (1, (2,)), frozenset({b"x"}), None])
def test_a_job_comes_back_equal_and_is_saved_again_as_the_same_text(restore, n):
    for job in (eventful(n=n).job, failed().job):
        restored = restore(job)
        assert restored == job
        assert text_of(restored) == text_of(job)
        assert job.dumps() == codec.dumps(job.serialize())


def test_deserialize_does_not_change_its_document():
    document = eventful().job.serialize()
    JobState.deserialize(document)
    assert document == eventful().job.serialize()


def test_an_error_names_the_path_of_a_value_that_can_not_be_saved():
    story = Story(flow_of({"a": Stage("out")}), n={"deep": [object()]})
    with pytest.raises(UnserializableError) as refusal:
        story.job.serialize()
    assert refusal.value.path == "$.pending_tasks[0].payload.n.deep[0]"


@pytest.mark.parametrize("done", [True, False])
def test_a_routine_and_an_effect_may_be_called_like_a_tag(done):
    def calls(self):
        self.ctx.once("$type", lambda: 1)
        if not done:
            raise ValueError("no stock")

    flow = Flow("tags")
    flow.add_routine(Works(calls), "$type")
    job = flow.execute("$type", runtime=Runtime())
    again = JobState.deserialize(job.serialize())
    assert job == again
    assert done or "$type" in again.pending_tasks[0].effects
    assert ["$type"] == [*again.routine_states]


CONTRADICTS = "does not match the job's commits"
FIRST_TASK = {"task_id": "0.9", "routine_id": "b", "slot": "trigger", "emission": -1, "payload": {}}

# The commits of `eventful`: 0 start, 1 retry, 2 effect, 3 done, 4 dropped, 5 done, 6 conflict, …


@pytest.mark.parametrize(
    ("path", "value", "refused", "reason"),
    [
        ("colour", "red", None, "is an unknown field"),
        ("seq", DROPPED, None, "is missing"),
        ("seq", "13", None, "is of type str, not int"),
        ("seq", True, None, "is of type bool, not int"),
        ("seq", -1, None, "must be a number from 0 to 2**53, not -1"),
        ("seq", 12, "commits", "must be numbered without a gap, and end at the job's seq"),
        ("status", "asleep", None, "'asleep' is not a valid JobStatus"),
        ("status", "paused", None, CONTRADICTS),
        ("recoveries", 1, None, CONTRADICTS),
        ("updated_ns", 10**30, None, "must be an instant in"),
        ("updated_ns", 1, None, CONTRADICTS),
        ("shape", [1], None, ""),
        ("shared_data.total", 2, "shared_data", CONTRADICTS),
        ("error", {"type": "ValueError", "message": ""}, None, CONTRADICTS),
        ("pending_tasks", [], None, CONTRADICTS),
        ("pending_tasks", DOUBLED, "pending_tasks[1].task_id", "is the id of two tasks"),
        ("pending_tasks[0].attempt", 3, "pending_tasks", CONTRADICTS),
        ("pending_tasks[0].attempt", 0, "pending_tasks[0].retries", "must be less"),
        ("pending_tasks[0].payload.n", 9, "pending_tasks", CONTRADICTS),
        ("pending_tasks[0].mood", "good", None, "is an unknown field"),
        ("pending_tasks[0].error", 1, None, "is of type int, not dict"),
        (
            "pending_tasks[0].error",
            {"type": "ValueError", "message": ""},
            "pending_tasks[0].delay_ns",
            "must be null",
        ),
        ("pending_tasks[0].delay_ns", -1, None, "not -1 ns"),
        ("outputs[0].event", "other", "outputs", CONTRADICTS),
        ("outputs[0].seq", 0, None, "must be a number from 1 to 2**53, not 0"),
        ("dropped[0].seq", 0, None, "must be a number from 1 to 2**53, not 0"),
        ("dropped[0].seq", 1, "dropped", CONTRADICTS),
        ("dropped[0].outcome", "lost", None, "'lost' is not a valid outcome of a dropped task"),
        ("dropped[0].outcome", "skipped", "dropped", CONTRADICTS),
        ("dropped", [], None, CONTRADICTS),
        ("routine_states.a.status", "failed", "routine_states['a'].status", "'failed'"),
        ("routine_states.a.attempts", 9, "routine_states", CONTRADICTS),
        ("routine_states.b.attempts", 0, "routine_states['b'].attempts", "must be at least"),
        ("commits[3]", DROPPED, "commits", "must be numbered without a gap"),
        ("commits[1].seq", 3, "commits", "must be numbered without a gap"),
        ("commits[0].detail", DROPPED, None, "is missing in a commit of kind 'start'"),
        ("commits[0].tasks", DOUBLED, None, "must hold 1 task in a 'start' commit, not 2"),
        ("commits[1].delay_ns", 1, "commits[1]", "its due_ns is not its at_ns plus"),
        ("commits[1].emissions", [], None, "is not a field of a commit of kind 'retry'"),
        ("commits[1].status", "paused", "commits[1]", "commit can't make a"),
        ("commits[2].detail", {}, "commits[2].detail.name", "is missing"),
        ("commits[3].attempt", 7, "commits[3]", "attempt 7 of task 0 of 'a' is not pending"),
        ("commits[3].task_id", "9", "commits[3]", "attempt 2 of task 9 of 'a' is not pending"),
        (
            "commits[3].routine_id",
            "e",
            "commits[3]",
            "attempt 2 of task 0 of 'e' is not pending",
        ),
        ("commits[3].at_ns", 0, "commits[3]", "earlier than that of the commit before"),
        ("commits[3].started_ns", 10**19, "commits[3]", "its attempt starts after the"),
        ("commits[3].status", "completed", "commits[3]", "3 tasks are left after the commit"),
        ("commits[3].tasks[0].emission", 9, None, "the commit has no emission 9"),
        ("commits[3].tasks[0]", FIRST_TASK, "commits[3].tasks[0].emission", "must be -1"),
        ("commits[3].tasks[0].routine_id", "ghost", "commits[3]", "it creates a task of 'ghost'"),
        (
            "commits[3].tasks[1].task_id",
            "0.0",
            "commits[3]",
            "it creates task 0.0, which already exists",
        ),
        (
            "commits[4].detail.as",
            "lost",
            "commits[4]",
            "'lost' is not a valid outcome of a dropped task",
        ),
    ],
)
def test_data_that_the_machine_could_not_have_written_is_refused_with_its_path(
    path, value, refused, reason
):
    document = eventful().job.serialize()
    JobState.deserialize(document)
    spoil(document, path, value)
    with refused_at(f"$.{refused or path}", reason):
        JobState.deserialize(document)


def test_a_job_without_its_first_commits_must_agree_with_its_last_commit():
    for path, value in (("status", "paused"), ("updated_ns", 1)):
        document = eventful(2).job.serialize()
        JobState.deserialize(document)
        spoil(document, path, value)
        with refused_at(f"$.{path}", "does not match the last commit"):
            JobState.deserialize(document)
