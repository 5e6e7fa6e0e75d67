"""Commits that are alike are rows in a saved job, and come back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import FakeClock, Flow, JobState, Routine, Runtime, UnserializableError, codec
from routilux.codec.equality import same_value
from routilux.core import commit_rows
from routilux.core.commit_rows import FEWEST
from routilux.core.commits import Commit
from routilux.errors import CorruptStateError
from tests.core.test_commits import commits
from tests.routines import Works, chain


def reread(found: list[Commit], since_ns: int) -> list[Commit]:
    forms, texts = commit_rows.write(found, since_ns, "$.commits")
    data = codec.loads(f'{{"forms":[{",".join(forms)}],"commits":[{",".join(texts)}]}}')
    first = found[0].seq
    rows = commit_rows.expand(data["commits"], data["forms"], first, since_ns, "$")
    return [Commit.load(entry, place) for place, entry in rows]


@given(st.lists(commits(), min_size=1, max_size=3), st.integers(0, 10**18))
def test_any_commits_come_back_as_they_were(kinds, since_ns):
    found = [replace(kinds[i % len(kinds)], seq=i + 2) for i in range(FEWEST * len(kinds) + 1)]
    forms, _ = commit_rows.write(found, since_ns, "$")
    assert forms
    assert same_value(found, reread(found, since_ns))


def collecting(rows: int) -> JobState:
    def splits(self: Routine) -> None:
        for n in range(rows):
            self.emit("out", n=n)

    def collects(self: Routine, n: int) -> None:
        self.ctx.state.append("rows", {"n": n})
        self.ctx.shared.add("sum", n)
        self.ctx.state["last"] = n
        self.emit("out", n=-n)

    flow = chain(a=Works(splits), b=Works(collects), c=Works(lambda self, n: None))
    return flow.execute("a", runtime=Runtime(clock=FakeClock()), job_id="rows")


def saved(job: JobState) -> dict[str, Any]:
    return json.loads(job.dumps())  # type: ignore[no-any-return]


def test_a_row_has_only_what_differs():
    data = saved(collecting(30))

    form = {
        "kind": "done",
        "status": "running",
        "after_ns": None,
        "took_ns": None,
        "task_id": None,
        "routine_id": "b",
        "attempt": 1,
        "emissions": [{"event": "out", "payload": None}],
        "tasks": [{"task_id": None, "routine_id": "c", "slot": "trigger", "emission": 0}],
        "state": {"values": {"last": None}, "patches": {"rows": [{"extend": None}]}},
        "shared": {"patches": {"sum": [{"add": None}]}},
    }
    assert form == data["commit_forms"][0]
    assert [0, 0, 0, "0.7", {"n": -7}, "0.7.0", 7, [{"n": 7}], 7] == data["commits"][9]


def test_a_small_job_has_no_rows():
    data = saved(collecting(FEWEST // 2 - 2))
    assert "commit_forms" not in data
    assert all(isinstance(entry, dict) for entry in data["commits"])


def test_a_job_that_keeps_few_commits_is_saved_with_rows():
    with Runtime(clock=FakeClock(), history_limit=40) as runtime:
        job = _counter(100).execute("a", runtime=runtime)
    data = saved(job)
    assert sum(isinstance(entry, list) for entry in data["commits"]) >= FEWEST
    assert job == JobState.deserialize(data)
    assert [*job.commits] == [*JobState.deserialize(data).commits]


@pytest.mark.parametrize("name", ["seq", "updated_ns"])
def test_rows_do_not_move_with_a_number_of_a_job_without_its_first_commits(name):
    copies: list[JobState] = []

    class Copies:
        def on_commit(self, job: JobState, commit: Commit) -> None:
            copies.append(job.copy())

    with Runtime(clock=FakeClock(), history_limit=40, observers=[Copies()]) as runtime:
        _counter(100).execute("a", runtime=runtime)
    data = saved(copies[89])
    assert {list} == {*map(type, data["commits"][:-1])}
    data[name] += 1
    with pytest.raises(CorruptStateError):
        JobState.deserialize(data)


def _counter(steps: int) -> Flow:
    def counts(self: Routine, n: int = 0) -> None:
        if n < steps:
            self.emit("out", n=n + 1)

    flow = Flow("counter")
    flow.add_routine(Works(counts), "a")
    flow.connect("a", "out", "a", "trigger")
    return flow


def test_a_saved_job_grows_by_little_more_than_the_values_in_its_state():
    sizes = [len(collecting(rows).dumps()) for rows in (100, 200)]
    assert sizes[1] - sizes[0] < 150 * 100


def test_a_value_that_cannot_be_saved_is_refused_with_its_path():
    found = [*collecting(30).commits]
    assert found[9].state is not None
    found[9].state.patches["rows"][0].operand[0]["n"] = object()
    with pytest.raises(UnserializableError) as refusal:
        [*commit_rows.write(found, 0, "$.commits").commits]
    assert "$.commits[9].state.patches['rows'][0].extend[0].n" == refusal.value.path


def test_a_name_with_a_lone_surrogate_is_refused_in_rows_too():
    job = collecting(30)
    for commit in job.commits:
        for emission in commit.emissions:
            emission.event = "a \udcff"
    with pytest.raises(UnserializableError, match="lone surrogate at index 2"):
        job.dumps()


def test_rows_of_more_values_than_a_document_may_have_are_refused_to_write_and_to_read(
    monkeypatch,
):
    job = collecting(30)
    data = codec.decode(saved(job))
    monkeypatch.setattr(codec, "MAX_NODES", 500)
    with pytest.raises(UnserializableError, match="more than 500 values"):
        job.dumps()
    with pytest.raises(CorruptStateError, match="more values than the limit of 500") as refusal:
        JobState.load(data, "$")
    assert "$.commits" == refusal.value.path


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (lambda d: d["commits"][9].append(1), "commits[9]", "must have 8 cells of form 0, not 9"),
        (lambda d: d["commits"][9].pop(), "commits[9]", "must have 8 cells of form 0, not 7"),
        (lambda d: d["commits"].insert(9, []), "commits[9][0]", "must be the number of a form"),
        (lambda d: row(d, 0, 2), "commits[9][0]", "must be the number of a form"),
        (lambda d: row(d, 0, -1), "commits[9][0]", "must be the number of a form"),
        (lambda d: row(d, 0, False), "commits[9][0]", "must be the number of a form"),
        (lambda d: row(d, 0, "0"), "commits[9][0]", "must be the number of a form"),
        (lambda d: row(d, 1, "x"), "commits[9].after_ns", "must be an integer"),
        (lambda d: row(d, 1, True), "commits[9].after_ns", "must be an integer"),
        (lambda d: row(d, 1, -1), "commits[9]", "its time is earlier"),
        (lambda d: row(d, 2, None), "commits[9].took_ns", "must be an integer"),
        (lambda d: row(d, 2, -1), "commits[9]", "starts after the attempt ends"),
        (lambda d: row(d, 2, 10**30), "commits[9].started_ns", "must be an instant"),
        (lambda d: row(d, 3, 7), "commits[9].task_id", "is of type int, not str"),
        (lambda d: row(d, 4, [1]), "commits[9].emissions[0].payload", "is of type list, not dict"),
        (lambda d: row(d, 7, 1), "commits[9].state.patches['rows'][0].extend", "list"),
        (lambda d: form(d).pop("after_ns"), "commit_forms[0]", "in which after_ns is null"),
        (lambda d: form(d).update(after_ns=1), "commit_forms[0]", "in which after_ns is null"),
        (lambda d: form(d).update(took_ns=1), "commit_forms[0].took_ns", "must be null"),
        (lambda d: form(d).update(seq=1), "commit_forms[0].seq", "is an unknown field"),
        (lambda d: form(d).update(at_ns=1), "commit_forms[0].at_ns", "is an unknown field"),
        (lambda d: form(d).update(x=1), "commits[2].x", "is an unknown field"),
        (lambda d: form(d).update(kind="x"), "commits[2]", "is not a valid CommitKind"),
        (lambda d: form(d).update(x=[0] * 100), "commit_forms[0]", "must have at most 100 values"),
        (lambda d: d["commit_forms"].insert(0, 5), "commit_forms[0]", "must be a JSON object"),
        (lambda d: d.pop("commit_forms"), "commits[2][0]", "must be the number of a form"),
        (lambda d: d.update(commit_forms={}), "commit_forms", "is of type dict, not list"),
        (lambda d: d["commits"].insert(3, d["commits"][3]), "commits", "numbered without a gap"),
        (lambda d: d["commits"].pop(3), "commits", "numbered without a gap"),
        (lambda d: d.update(commits=d["commits"][:9]), "commits[8]", "which must be an object"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_their_path(change, path, reason):
    data = saved(collecting(30))
    change(data)
    with pytest.raises(CorruptStateError, match=reason) as refusal:
        JobState.load(codec.decode(data), "$")
    assert f"$.{path}" == refusal.value.path


def row(job: dict[str, Any], cell: int, value: object) -> None:
    job["commits"][9][cell] = value


def form(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["commit_forms"][0]
    return found
