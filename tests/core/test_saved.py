"""The saved form of a job: it is read as an equal job, and damaged forms are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest

from routilux import codec
from routilux.core.state import JobState
from routilux.errors import CorruptStateError, UnserializableError
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

WAYS = [by_document, by_text, by_folding]


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
