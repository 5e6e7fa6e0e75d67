"""Accumulators of `ctx.state` and `ctx.shared`, and commits that hold what changed."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import FakeClock, FlowDefinitionError, JobState, MemoryStore, Runtime, codec
from routilux.codec.equality import same_value
from tests.routines import MODES, Wide, Works, chain, error_of, fan, kinds, retrying, run, send
from tests.soak import also

ROWS = 40


def numbers(self: Any, n: int = 0) -> None:
    for number in range(ROWS):
        self.emit("out", n=number)


# --- the values -----------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(
    ("body", "value"),
    [
        (lambda view, n: view.add("x", n), sum(range(ROWS))),
        (lambda view, n: view.add("x", Decimal(n)), Decimal(sum(range(ROWS)))),
        (lambda view, n: view.add("x", timedelta(n)), timedelta(sum(range(ROWS)))),
        (lambda view, n: view.append("x", [n]), [[n] for n in range(ROWS)]),
        (lambda view, n: view.extend("x", (n, n)), [i for n in range(ROWS) for i in (n, n)]),
        (lambda view, n: view.union("x", [n % 3]), {0, 1, 2}),
        (lambda view, n: view.maximum("x", n % 7), 6),
        (lambda view, n: view.minimum("x", -n), 1 - ROWS),
    ],
    ids=["add", "add Decimal", "add time", "append", "extend", "union", "maximum", "minimum"],
)
@pytest.mark.parametrize("data", ["state", "shared"])
def test_steps_that_run_at_once_lose_no_update_and_never_conflict(workers, data, body, value):
    job = run(
        chain(workers=workers, a=numbers, b=Wide(lambda self, n: body(getattr(self.ctx, data), n)))
    )

    found = job.shared_data if data == "shared" else job.routine_states["b"].state
    kept = found["x"]
    if isinstance(kept, list):  # in the order of the commits
        kept.sort()
    assert same_value(value, kept)
    assert "conflict" not in kinds(job)


@pytest.mark.parametrize("steps", also(500, 10_000))
def test_sixteen_workers_that_add_to_one_key_never_conflict(steps):
    def emits(self, n=0):
        for _ in range(steps):
            self.emit("out", n=1)

    class Adds(Works):
        max_concurrency = 16

    job = run(chain(workers=16, a=emits, b=Adds(lambda self, n: self.ctx.shared.add("sum", n))))

    assert {"sum": steps} == job.shared_data
    assert ["start", *["done"] * (1 + steps)] == kinds(job)


def test_each_accumulator_is_one_patch_of_its_commit():
    def body(self, n=0):
        for i in range(5):
            self.ctx.state.add("sum", i)
            self.ctx.state.append("rows", {"i": i})
            self.ctx.state.union("seen", {i % 2})

    job = run(chain(a=body))

    assert job.commits[1].state.values == {}
    assert json.loads(job.commits[1].dumps())["state"]["patches"] == {
        "sum": [{"add": 10}],
        "rows": [{"extend": [{"i": i} for i in range(5)]}],
        "seen": [{"union": {"$type": "set", "value": [0, 1]}}],
    }


def test_a_value_can_be_read_after_it_was_added_to():
    seen = []

    def body(self, n=0):
        state = self.ctx.state
        state.append("rows", 1)
        seen.append(list(state["rows"]))
        rows = state["rows"]
        state.append("rows", 2)
        seen.append(list(rows))
        state.add("n", 2)
        seen.append(state["n"])
        state.add("n", 3)
        seen.append(state.get("n"))
        seen.append(("rows" in state, "none" in state, len(state), sorted(state)))

    job = run(chain(a=Wide(body)))  # reading and adding need no exclusive state

    assert [[1], [1, 2], 2, 5, (True, False, 2, ["n", "rows"])] == seen
    assert {"rows": [1, 2], "n": 5} == job.routine_states["a"].state


def test_what_is_read_after_it_was_added_to_and_then_changed_is_an_assignment():
    def body(self, n=0):
        self.ctx.state.append("rows", 1)
        self.ctx.state["rows"][0] = 7

    assert {"rows": [7]} == run(chain(a=body)).routine_states["a"].state
    kind, message = error_of(run(chain(a=Wide(body))))
    assert "FlowDefinitionError" == kind
    assert "ctx.state[rows]" in message


def test_an_accumulator_follows_an_assignment_and_a_removal():
    def body(self, n=0):
        state = self.ctx.state
        state["rows"] = [1]
        state.append("rows", 2)
        state["gone"] = 1
        del state["gone"]
        state.append("gone", 3)
        state.add("twice", 1)
        state["twice"] = 5
        state.append("never", 1)
        del state["never"]

    state = run(chain(a=body)).routine_states["a"].state

    assert {"rows": [1, 2], "gone": [3], "twice": 5} == state


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda shared: (shared.update(x=0), shared.add("x", 1)), 50),
        (lambda shared: (shared.update(x=[]), shared.append("x", 1)), ["o"]),
        (lambda shared: (shared.update(x=1), shared.pop("x"), shared.add("x", 1)), 50),
        (lambda shared: (shared.append("x", 1), shared.pop("x")), ["o"]),
        (lambda shared: (shared.add("x", 1), shared.update(x=7)), 50),
    ],
    ids=["assign, add", "assign, append", "remove, add", "append, remove", "add, assign"],
)
def test_an_assignment_before_or_after_it_holds_whatever_another_step_has_done(change, others):
    def changes(self, n=0):
        self.ctx.sleep(1)
        change(self.ctx.shared)
        self.ctx.sleep(2)

    def other(self, n=0):
        self.ctx.sleep(2)
        self.ctx.shared["x"] = others

    alone = run(fan(send, b=changes), "source").shared_data
    assert alone == run(fan(send, workers=2, b=changes, c=other), "source").shared_data


def test_a_sum_that_is_read_is_committed_to_the_last_bit():
    def body(self, n):
        before = self.ctx.state.get("x", 0.0)
        self.ctx.state.add("x", 0.1)
        self.ctx.state.add("x", 0.2)
        self.ctx.shared[str(n)] = [before, self.ctx.state["x"]]

    job = run(chain(a=numbers, b=Wide(body)))

    job.raise_for_status()
    sums = sorted(job.shared_data.values())
    assert sums[-1][1] == job.routine_states["b"].state["x"]


def test_decimals_are_added_alike_in_every_context():
    third = Decimal("1.123456789012345678901234567890123")
    job = run(chain(a=numbers, b=lambda self, n: self.ctx.state.add("x", third)))

    with localcontext(prec=6):
        assert JobState.deserialize(job.serialize()) == job
    with localcontext(prec=99):
        assert ROWS * third == job.routine_states["b"].state["x"]


def test_sums_whose_operands_have_none_of_their_own_are_added_one_by_one():
    def body(self, n=0):
        if not n:
            self.ctx.state["x"] = 10**400
            self.emit("out", n=1)
            return
        self.ctx.state.add("x", -(10**400))
        self.ctx.state.add("x", 1.5)

    flow = chain(a=body)
    flow.connect("a", "out", "a", "trigger")
    assert {"x": 1.5} == run(flow).routine_states["a"].state


def test_what_is_added_is_the_value_at_the_call():
    def body(self, n=0):
        row = {"n": [1]}
        self.ctx.state.append("rows", row)
        self.ctx.state.append("rows", row)
        row["n"].append(2)

    assert {"rows": [{"n": [1]}] * 2} == run(chain(a=body)).routine_states["a"].state


@MODES
def test_a_failed_attempt_adds_nothing(workers):
    def body(self, n):
        self.ctx.state.append("rows", n)
        self.ctx.shared.add("sum", n)
        if self.ctx.attempt == 1:
            raise OSError("down")

    job = run(chain(workers=workers, a=numbers, b=Works(body, retrying())))

    assert sorted(job.routine_states["b"].state["rows"]) == list(range(ROWS))
    assert job.shared_data == {"sum": sum(range(ROWS))}


def test_a_step_that_has_read_what_another_one_adds_to_runs_again():
    def reads(self, n=0):
        self.ctx.sleep(1)
        self.emit("out", n=self.ctx.shared.get("sum", 0))
        self.ctx.sleep(1)

    def adds(self, n=0):
        self.ctx.sleep(1.5)
        self.ctx.shared.add("sum", 1)

    job = run(fan(send, workers=2, b=reads, c=adds), "source")

    assert 1 == kinds(job).count("conflict")
    assert [1] == [output.data["n"] for output in job.outputs if output.routine_id == "b"]


# --- wrong calls ----------------------------------------------------------------------------------

MOST = 10**4_000 - 1  # the largest integer that can be saved
WRONG = {
    "add": [
        (lambda view: view.add("text", 1), r"ctx.shared: can't add to 'text': str is not a number"),
        (lambda view: view.add("x", "1"), "str is not a number"),
        (lambda view: view.add("x", True), "bool is not a number"),
        (lambda view: (view.add("x", 1), view.add("x", timedelta(1))), "unsupported operand"),
        (
            lambda view: (view.add("x", MOST), view.add("x", 1)),
            "the sum has more than 4,000 digits",
        ),
        (lambda view: (view.add("x", -MOST), view.add("x", -1)), "the sum has more than 4,000"),
    ],
    "extend": [
        (lambda view: view.append("text", 1), "can't append to 'text': str is not a list"),
        (lambda view: view.extend("x", 7), "'int' object is not iterable"),
        (lambda view: view.append("x", object()) or view.append(3, 1), "a key must be a str"),
    ],
    "union": [
        (lambda view: view.union("rows", {1}), "list is not a set"),
        (lambda view: view.union("x", [[1]]), "unhashable type: 'list'"),
    ],
    "order": [
        (lambda view: view.maximum("text", 1), "str and int have no order"),
        (lambda view: view.minimum("x", float("nan")), "NaN has no order"),
        (lambda view: view.maximum("x", Decimal("sNaN")), "NaN has no order"),
        (lambda view: view.maximum("x", [1]), "list has no order"),
        (lambda view: (view.minimum("x", 1), view.append("x", 1)), "int is not a list"),
    ],
}


@pytest.mark.parametrize(("call", "says"), [case for cases in WRONG.values() for case in cases])
def test_a_wrong_call_is_an_error_of_the_author_at_the_call(call, says):
    found = []

    def body(self, n=0):
        if not n:
            self.ctx.shared.update(text="a", rows=[1])
            self.emit("out", n=1)
            return
        try:
            call(self.ctx.shared)
        except FlowDefinitionError as error:
            found.append(str(error))
            raise

    flow = chain(a=body)
    flow.connect("a", "out", "a", "trigger")
    job = run(flow)

    assert "failed" == job.status
    assert [True] == [says in text for text in found], found
    assert {"text": "a", "rows": [1]} == job.shared_data


def test_a_value_that_another_step_has_replaced_meanwhile_is_an_error_of_the_author():
    def adds(self, n=0):
        self.ctx.shared.add("x", 1)
        self.ctx.sleep(2)

    def replaces(self, n=0):
        self.ctx.sleep(1)
        self.ctx.shared["x"] = "text"

    job = run(fan(send, workers=2, b=adds, c=replaces), "source")

    assert ("FlowDefinitionError", "can't add to 'x': str is not a number") == error_of(job)
    assert {"x": "text"} == job.shared_data


# --- commits that hold what changed ---------------------------------------------------------------


def test_a_commit_of_a_list_that_grows_has_only_the_new_item():
    def body(self, n):
        self.ctx.state.setdefault("rows", []).append({"n": n, "text": "x" * 20})

    job = run(chain(a=numbers, b=body))

    lengths = [len(commit.dumps()) for commit in job.commits[3:]]
    assert max(lengths) < 1.1 * min(lengths)
    assert [{"n": n, "text": "x" * 20} for n in range(ROWS)] == job.routine_states["b"].state[
        "rows"
    ]


def test_any_text_is_a_key_that_can_be_added_to_and_saved():
    names = ["$type", "", '"', "a b", "é"]

    def body(self, n=0):
        for name in names:
            self.ctx.state.append(name, n)
            self.ctx.shared.add(name, 1)
        if n < 30:
            self.emit("out", n=n + 1)

    flow = chain(a=body)
    flow.connect("a", "out", "a", "trigger")
    store = MemoryStore()
    job = flow.execute("a", runtime=Runtime(clock=FakeClock(), store=store), job_id="j")

    job.raise_for_status()
    for again in (
        JobState.deserialize(job.serialize()),
        Runtime(store=store).load("j", history=True),
        Runtime(store=store).load("j", history=False),
    ):
        assert job == again
        assert {name: [*range(31)] for name in names} == again.routine_states["a"].state


changes_of_data = st.lists(
    st.tuples(
        st.sampled_from(["add", "append", "union", "maximum", "set", "insert", "del", "mutate"]),
        st.sampled_from("ab"),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
)


def change(view: Any, how: str, name: str, n: int) -> None:
    """One change of a value of the state, under a key for each type of value."""
    if how in ("add", "maximum"):
        getattr(view, how)(f"{name}-number", n)
    elif how == "append":
        view.append(f"{name}-list", {"n": n})
    elif how == "union":
        view.union(f"{name}-set", {n})
    elif how == "set":
        view[f"{name}-list"] = [{"n": n}] * 3
    elif how == "insert":
        view.setdefault(f"{name}-dict", {})[str(n)] = [n]
    elif how == "del":
        view.setdefault(f"{name}-dict", {}).pop(str(n), None)
        view.pop(f"{name}-number", None)
    else:
        rows = view.get(f"{name}-list", [])
        rows[n % 3 : n % 3 + 1] = [{"n": -n}]
        view[f"{name}-list"] = rows


class Model(dict[str, Any]):
    """The same calls on plain values."""

    def add(self, key: str, n: int) -> None:
        self[key] = self.get(key, 0) + n

    def append(self, key: str, value: object) -> None:
        self.setdefault(key, []).append(value)

    def union(self, key: str, values: set[int]) -> None:
        self[key] = self.get(key, set()) | values

    def maximum(self, key: str, value: int) -> None:
        self[key] = max(self.get(key, value), value)


@given(st.lists(changes_of_data, min_size=1, max_size=5))
def test_the_state_is_what_the_calls_give_and_is_read_back_from_every_form(steps):
    model = Model()
    expected = [{}]
    for changes in steps:
        for how, name, n in changes:
            change(model, how, name, n)
        expected.append(codec.decode(codec.encode(dict(model), "$")))

    def body(self, n=0):
        for how, name, value in steps[n]:
            change(self.ctx.state, how, name, value)
        if n + 1 < len(steps):
            self.emit("out", n=n + 1)

    flow = chain(a=body)
    flow.connect("a", "out", "a", "trigger")
    job = run(flow)

    job.raise_for_status()
    states = [job.at(seq).routine_states["a"].state for seq in range(1, job.seq + 1)]
    assert same_value(expected, states)
    again = JobState.deserialize(json.loads(json.dumps(job.serialize())))
    assert same_value(expected[-1], again.routine_states["a"].state)
    assert again == job
