"""Emissions and tasks in a commit: those that are alike are saved once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import codec
from routilux.codec.equality import same_value
from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.errors import CorruptStateError
from routilux.graph.messages import Emission, Task


def commit_of(emissions: list[Emission], tasks: list[Task]) -> Commit:
    return Commit(
        *(7, CommitKind.DONE, 5, JobStatus.RUNNING, "0.1", "b", 2, 1, 3),
        emissions=tuple(emissions),
        tasks=tuple(tasks),
    )


def fan_out(count: int, *targets: str, first: int = 0, parent: str = "0.1") -> Commit:
    """A step that emits `count` times to each of `targets`."""
    emissions = [Emission("out", {"n": n}, True) for n in range(count)]
    tasks = [
        Task(f"{parent}.{first + n * len(targets) + i}", to, "in", emission.payload, True, n)
        for n, emission in enumerate(emissions)
        for i, to in enumerate(targets)
    ]
    return commit_of(emissions, tasks)


def reread(commit: Commit) -> Commit:
    return Commit.load(codec.loads(commit.dumps()), "$")


def saved(commit: Commit) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(commit.dumps())
    return data


@pytest.mark.parametrize("targets", [("c",), ("c", "d"), ("c", "c", "d", "e")])
@pytest.mark.parametrize("first", [0, 9])
def test_the_tasks_of_emissions_that_are_alike_are_saved_once(targets, first):
    commit = fan_out(500, *targets, first=first)
    data = saved(commit)

    [emissions], [tasks] = data["emissions"], data["tasks"]
    assert {"event": "out", "payloads": [{"n": n} for n in range(500)]} == emissions
    assert 500 == tasks["times"]
    assert [*targets] == [task["routine_id"] for task in tasks["tasks"]]
    again = reread(commit)
    assert same_value(commit, again)
    assert all(t.payload is again.emissions[t.emission].payload for t in again.tasks)


def test_the_tasks_of_five_connections_are_saved_one_by_one():
    commit = fan_out(3, *"cdefg")
    assert 15 == len(saved(commit)["tasks"])
    assert same_value(commit, reread(commit))


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    """A step with emissions of few kinds, whose tasks differ here and there."""
    names = draw(st.lists(st.sampled_from("ef"), max_size=12))
    emissions = [Emission(name, {"n": i}, True) for i, name in enumerate(names)]
    number, tasks = draw(st.sampled_from([0, 8, 10**15 - 3])), []
    for i, emission in enumerate(emissions):
        for target in "cd" if emission.event == "e" else "c":
            task = Task(f"0.{number}", target, "in", emission.payload, True, i)
            change = draw(st.sampled_from([*[""] * 9, "slot", "payload", "keeps", "into", "id"]))
            if change == "payload":
                task.payload = {"m": i}
            elif change:
                value = ("0.g0",) if change == "keeps" else f"{change}.{number}"
                setattr(task, "task_id" if change == "id" else change, value)
            tasks.append(task)
            number += draw(st.sampled_from([1, 1, 1, 1, 2]))
    return commit_of(emissions, tasks)


@given(commits())
def test_any_tasks_come_back_as_they_were(commit):
    again = reread(commit)
    assert same_value(commit, again)
    assert again.dumps() == commit.dumps()


@pytest.mark.parametrize("task_id", ["7", "0.٣", "0.03", "0.x", "0.-1", "", "0." + "9" * 60])
def test_a_task_whose_id_is_no_child_of_another_is_saved_alone(task_id):
    commit = fan_out(3, "c")
    changed = replace(commit, tasks=(replace(commit.tasks[0], task_id=task_id), *commit.tasks[1:]))
    assert task_id == saved(changed)["tasks"][0]["task_id"]
    assert same_value(changed, reread(changed))


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (lambda c: c["tasks"][0].update(times=4), "tasks[0].times", "each once"),
        (lambda c: c["tasks"][0].update(times=1), "tasks[0].times", "each once"),
        (lambda c: c["tasks"][0].update(times=True), "tasks[0].times", "is of type bool"),
        (lambda c: c["tasks"].append(c["tasks"][0]), "tasks[1].times", "each once"),
        (lambda c: c["tasks"][0].pop("tasks"), "tasks[0].tasks", "is missing"),
        (lambda c: c["tasks"][0].update(tasks=[]), "tasks[0].tasks", "must be 1 to 4 tasks"),
        (lambda c: c["tasks"][0].update(x=1), "tasks[0].x", "is an unknown field"),
        (lambda c: task(c).update(times=2), "tasks[0].tasks[0].times", "is an unknown field"),
        (lambda c: task(c).update(emission=3), "tasks[0].tasks[0].emission", "no emission 3"),
        (lambda c: task(c).update(emission=-2, payload={"x": 1}), "tasks[0].times", "each once"),
        (lambda c: task(c).update(task_id="0.x"), "tasks[0].tasks[0].task_id", "counts on"),
        (lambda c: task(c, 1).update(task_id="0.1.3"), "tasks[0].tasks[1].task_id", "counts on"),
        (lambda c: task(c, 1).update(emission=1), "tasks[0].tasks[1]", "the same emission"),
        (lambda c: task(c).update(payload={"n": 0}), "tasks[0].tasks[0]", "with its payload"),
        (lambda c: task(c).update(slot=5), "tasks[0].tasks[0].slot", "is of type int"),
        (
            lambda c: [t.update(task_id=f"{'x' * 62}.{8 + i}") for i, t in enumerate(both(c))],
            "tasks[0].times",
            "at most 64 characters",
        ),
        (lambda c: c["emissions"][0].update(payloads=[{}]), "emissions[0].payloads", "2 or more"),
        (
            lambda c: c["emissions"][0]["payloads"].insert(1, []),
            "emissions[0].payloads[1]",
            "must be a JSON object",
        ),
        (lambda c: c["emissions"][0].update(payload={}), "emissions[0].payload", "unknown field"),
        (lambda c: c["emissions"][0].update(payloads={}), "emissions[0].payloads", "type dict"),
    ],
)
def test_tasks_that_are_saved_together_and_do_not_fit_are_refused(change, path, reason):
    data = saved(fan_out(3, "c", "d"))
    change(data)
    with pytest.raises(CorruptStateError, match=reason) as refusal:
        Commit.load(codec.decode(data), "$")
    assert f"$.{path}" == refusal.value.path


def both(commit: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = commit["tasks"][0]["tasks"]
    return found


def task(commit: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return both(commit)[index]
