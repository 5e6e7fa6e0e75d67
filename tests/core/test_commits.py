"""Saved forms of commits and of the parts of a job, and the history derived from commits."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import codec
from routilux.clocks.durations import from_ns
from routilux.codec.copying import is_flat
from routilux.codec.equality import same_value
from routilux.core.commits import Commit, CommitKind, JobStatus, history_length, history_of
from routilux.core.parts import PendingTask, RoutineState, RoutineStatus
from routilux.errors import CorruptStateError, UnserializableError
from routilux.graph.messages import Emission, ErrorInfo, RecordedEffect, Task, Writes, traceback_of
from routilux.graph.patches import Patch

DONE = CommitKind.DONE
RUNNING = JobStatus.RUNNING


def step_end(kind: CommitKind = DONE, **more: Any) -> Commit:
    return Commit(7, kind, 5_000, RUNNING, "0.1", "b", 2, 1_000, 3, **more)


def reread(commit: Commit) -> Commit:
    return Commit.load(codec.loads(commit.dumps()), "$")


EMPTY: dict[str, list[object]] = {"values": [], "removed": [], "inside": []}

# --- commits --------------------------------------------------------------------------------------

printable = st.text(min_size=1, max_size=5).filter(lambda s: s.isprintable())
names = st.just('a "b" \\ \n \x00 \u2028 é 😀') | printable
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(names, inner),
    max_leaves=4,
)
payloads = st.dictionaries(names, values, max_size=3)
emissions = st.builds(lambda e, p: Emission(e, p, is_flat(p)), names, payloads)
accumulators = (
    st.builds(Patch, st.just("add"), st.integers() | st.floats(allow_nan=False))
    | st.builds(Patch, st.just("extend"), st.lists(values, max_size=2))
    | st.builds(Patch, st.just("union"), st.sets(names, max_size=2))
    | st.builds(Patch, st.sampled_from(["maximum", "minimum"]), st.integers() | names)
)
splices = st.tuples(st.integers(0, 9), st.integers(0, 9), st.lists(values, max_size=2))
patches = st.recursive(
    accumulators | st.builds(Patch, st.just("splice"), splices),
    lambda inner: st.builds(
        Patch,
        st.just("entries"),
        st.tuples(
            st.dictionaries(names | st.integers(), values, max_size=2),
            st.lists(names, max_size=2),
            st.dictionaries(names | st.integers(), inner, max_size=2),
        ).filter(lambda parts: len({k for part in parts for k in part}) == sum(map(len, parts))),
    ),
    max_leaves=3,
)
writes = st.builds(
    Writes,
    payloads,
    st.lists(names, max_size=2).map(tuple),
    st.dictionaries(names, st.lists(patches, min_size=1, max_size=2), max_size=2),
).filter(lambda found: len(set(found.keys)) == len(found.keys))
infos = st.builds(ErrorInfo, names, names, st.none() | names, st.none() | names)
instants = st.integers(-(10**19), 10**19)


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    emitted = draw(st.lists(emissions, max_size=3))
    tasks = [
        Task(f"0.{i}", draw(names), "trigger", emitted[index].payload, emitted[index].flat, index)
        for i, index in enumerate(
            draw(st.lists(st.integers(0, len(emitted) - 1), max_size=3)) if emitted else []
        )
    ]
    for task in tasks:
        if draw(st.booleans()):  # renamed by a param_mapping, so it is a payload of its own
            task.payload = {f"{name}_": value for name, value in task.payload.items()}
    step: dict[str, Any] = {
        "seq": draw(st.integers(2, 2**53)),
        "at_ns": draw(instants),
        "status": draw(st.sampled_from(JobStatus)),
        "task_id": draw(names),
        "routine_id": draw(names),
        "attempt": draw(st.integers(1, 2**53)),
        "started_ns": draw(instants),
        "worker": draw(st.integers(0, 5)),
    }
    kind = draw(st.sampled_from([DONE, CommitKind.RETRY, CommitKind.EFFECT, CommitKind.DROPPED]))
    if kind is CommitKind.RETRY:
        delay = draw(st.integers(0, 10**18))
        step |= {"error": draw(infos), "delay_ns": delay, "due_ns": step["at_ns"] + delay}
    elif kind is CommitKind.EFFECT:
        step |= {
            "detail": {"name": draw(names)},
            "effect": RecordedEffect(draw(names), draw(values)),
        }
    else:
        step |= {"emissions": tuple(emitted), "tasks": tuple(tasks)}
        if kind is DONE:
            step |= {"state": draw(st.none() | writes), "shared": draw(st.none() | writes)}
        else:
            step |= {"error": draw(infos), "detail": {"as": "skipped"}}
    return Commit(kind=kind, **step)


@given(commits())
def test_a_commit_comes_back_as_it_was(commit):
    again = reread(commit)
    assert same_value(again, commit)
    assert again.dumps() == commit.dumps()


def test_a_payload_of_several_tasks_is_saved_once_and_shared_when_it_is_read():
    payload: dict[str, object] = {"items": [1, 2]}
    tasks = [Task(f"0.{i}", "b", "trigger", payload, False, 0) for i in range(3)]
    commit = step_end(emissions=(Emission("out", payload, False),), tasks=tuple(tasks))
    assert commit.dumps().count("items") == 1
    again = reread(commit)
    assert all(task.payload is again.emissions[0].payload for task in again.tasks)
    assert not any(task.flat for task in again.tasks)


def test_a_field_without_a_value_is_not_saved():
    pause = Commit(7, CommitKind.PAUSED, 5, JobStatus.PAUSED)
    assert pause.dumps() == '{"seq":7,"kind":"paused","at_ns":5,"status":"paused"}'


def test_a_name_with_a_lone_surrogate_is_refused_with_its_path():
    with pytest.raises(UnserializableError, match="lone surrogate at index 2") as refusal:
        step_end(emissions=(Emission("a \udcff", {}, True),)).dumps("$.commits[6]")
    assert refusal.value.path == "$.commits[6].emissions[0].event"


def test_the_times_of_a_commit_are_aware_instants():
    commit = step_end()
    assert commit.started_at == from_ns(1_000)
    assert commit.finished_at == from_ns(5_000)
    assert Commit(1, CommitKind.PAUSED, 0, JobStatus.PAUSED).started_at is None


def test_an_error_with_lone_surrogates_can_be_saved():
    with pytest.raises(OSError, match="no") as raised:
        exec(compile("raise OSError('no \\udcff')", "\udcff.py", "exec"))
    error = ErrorInfo.of(raised.value)
    error.traceback = traceback_of(raised.value)
    assert ("no ?", "?.py:1") == (error.message, error.where)
    assert 'File "?.py", line 1' in error.traceback
    assert reread(step_end(CommitKind.FAILED, error=error)).error == error


def test_a_value_without_a_saved_form_is_refused_with_its_path():
    for name, more in {
        "emissions[0].payload.n": {"emissions": [Emission("out", {"n": object()}, False)]},
        "state.values.n": {"state": Writes({"n": object()})},
        "shared.values.n": {"shared": Writes({"n": object()})},
        "effect.result": {"effect": RecordedEffect("", object())},
    }.items():
        with pytest.raises(UnserializableError) as refusal:
            step_end(**more).dumps("$.commits[6]")
        assert refusal.value.path == f"$.commits[6].{name}"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"seq": 0}, "$.seq"),
        ({"seq": 2**53 + 1}, "$.seq"),
        ({"seq": 1.0}, "$.seq"),
        ({"at_ns": 10**30}, "$.at_ns"),
        ({"at_ns": -(10**30)}, "$.at_ns"),
        ({"started_ns": 10**30}, "$.started_ns"),
        ({"worker": -1}, "$.worker"),
        ({"status": "asleep"}, "$"),
        ({"kind": "guess"}, "$"),
        ({"mood": "good"}, "$.mood"),
        ({"task_id": 7}, "$.task_id"),
        ({"attempt": -1}, "$.attempt"),
        ({"error": {"type": "E"}}, "$.error"),
        ({"emissions": [{"event": "out"}]}, "$.emissions[0].payload"),
        ({"emissions": [{"event": "out", "payload": {1: 2}}]}, "$.emissions[0].payload"),
        ({"state": {"values": {}, "removed": [7]}}, "$.state.removed"),
        ({"state": {"values": {1: 2}, "removed": []}}, "$.state.values"),
        ({"state": {"values": {"x": 1}, "removed": ["x"]}}, "$.state"),
        ({"state": {"patches": {"x": []}}}, "$.state.patches['x']"),
        ({"state": {"patches": {"x": [{"wipe": 1}]}}}, "$.state.patches['x'][0]"),
        ({"state": {"patches": {"x": [{"add": "1"}]}}}, "$.state.patches['x'][0].add"),
        (
            {"state": {"patches": {"x": [{"maximum": Decimal("sNaN")}]}}},
            "$.state.patches['x'][0].maximum",
        ),
        ({"state": {"patches": {"x": [{"splice": [0, 1]}]}}}, "$.state.patches['x'][0].splice"),
        (
            {"state": {"patches": {"x": [{"splice": [-1, 1, []]}]}}},
            "$.state.patches['x'][0].splice",
        ),
        *(
            (
                {"state": {"patches": {"x": [{"entries": {**EMPTY, **entries}}]}}},
                f"$.state.patches['x'][0].entries{where}",
            )
            for entries, where in (
                ({"removed": [[1]]}, ".removed"),
                ({"removed": ["a", "a"]}, ".removed"),
                ({"removed": ["a"], "values": [["a", 1]]}, ""),
                ({"values": [["a"]]}, ".values"),
                ({"inside": [["a", {"wipe": 1}]]}, "['a']"),
            )
        ),
        ({"delay_ns": -1}, "$.delay_ns"),
        ({"kind": "retry"}, "$.delay_ns"),
    ],
)
def test_a_damaged_commit_is_refused_with_its_path(change, path):
    data = json.loads(step_end().dumps())
    Commit.load(data, "$")
    with pytest.raises(CorruptStateError) as refusal:
        Commit.load({**data, **change}, "$")
    assert refusal.value.path == path


def test_a_task_id_is_as_short_as_those_of_the_engine():
    data = json.loads(step_end(emissions=(Emission("out", {}, True),)).dumps())
    task = {"task_id": "0" * 64, "routine_id": "b", "slot": "in", "emission": 0}
    Commit.load({**data, "tasks": [task]}, "$")
    with pytest.raises(CorruptStateError, match="at most 64 characters") as refused:
        Commit.load({**data, "tasks": [{**task, "task_id": "0" * 65}]}, "$")
    assert "$.tasks[0].task_id" == refused.value.path


# --- the history ----------------------------------------------------------------------------------


@given(commits(), st.sampled_from(CommitKind), st.none() | infos, st.sampled_from([None, "0"]))
def test_history_length_is_the_length_of_the_history(commit, kind, error, task_id):
    changed = replace(commit, kind=kind, error=error, task_id=task_id, detail={"as": "skipped"})
    if kind is CommitKind.START:
        changed.tasks = (Task("0", "a", "trigger", {}, True, -1),)
    assert history_length(changed) == len(history_of(changed))
    assert history_length(commit) == len(history_of(commit))


# --- the parts of a job ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({}, RoutineStatus.PENDING),
        ({"completed": 3}, RoutineStatus.COMPLETED),
        ({"completed": 3, "skipped": 1}, RoutineStatus.SKIPPED),
        ({"skipped": 3, "error_continued": 1}, RoutineStatus.ERROR_CONTINUED),
        ({"error_continued": 3, "failed": 1}, RoutineStatus.FAILED),
    ],
)
def test_a_routines_status_is_the_worst_of_its_tasks(counts, status):
    state = RoutineState(attempts=9, **counts)
    assert state.status is status
    assert RoutineState._load(codec.decode(state._serialize("$")), "$") == state


def test_a_pending_task_shows_when_it_is_due_and_how_long_it_waits():
    task = PendingTask(Task("0", "a", "in", {"n": 1}, True, -1), 1, 0, 2_000_000_000)
    assert (task.task_id, task.routine_id, task.slot, task.payload) == ("0", "a", "in", {"n": 1})
    assert task.due_at == from_ns(2_000_000_000)
    assert task.delay is None
    task.delay_ns = 450_000_000
    assert task.delay is not None
    assert task.delay.total_seconds() == 0.45
