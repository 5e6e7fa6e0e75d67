"""The search tries every order that can differ, and never calls less than that complete."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.oracle import canonical, unordered, view_of
from pytest_routilux.sim.orders.search import Search
from pytest_routilux.sim.results import Checks, Crashes, Scope
from pytest_routilux.sim.simulator import transitions
from tests.plugin.sim.orders.order_bugs import Graph, fan, passes
from tests.plugin.sim.orders.random_flows import (
    MOST_TASKS,
    SAFE_OPS,
    Node,
    Recipe,
    appends,
    calls_numbered,
    increments,
    reads,
    recipes,
    writes,
)
from tests.plugin.sim.steps import START
from tests.routines import rest, sends
from tests.soak import examples

FEW_RUNS, MANY_RUNS = 60, 600
random_orders = settings(deadline=None, suppress_health_check=[*HealthCheck])


def outcomes(
    recipe: Recipe, *, prunes: bool, ordered: bool = False, runs: int = MANY_RUNS
) -> tuple[set[str], Search]:
    """Return what the orders of a flow have shown, and the search, which may be cut."""
    case = recipe.case
    search = Search(case, START, case.build().plan(), prunes=prunes, ordered=ordered)
    found: set[str] = set()
    for number, (world, hosts, _) in enumerate(search.runs()):
        job = hosts[-1].job
        assert job is not None and hosts[-1].error is None  # noqa: PT018
        view = view_of(job, world)
        calls = [(call.effect, call.arguments) for call in world.calls]
        emitted = [one.payload for commit in job.commits for one in commit.emissions]
        exact = [view["shared"], view["routines"], *([calls, emitted] if ordered else [])]
        found.add(canonical([unordered(view), exact]))
        if number == runs:
            break
    return found, search


def check_same(recipe: Recipe, *, ordered: bool = False, runs: int = MANY_RUNS) -> None:
    """Compare the outcomes with and without pruning, as far as both were searched."""
    pruned, fast = outcomes(recipe, prunes=True, ordered=ordered, runs=runs)
    if not fast.prunes:
        return  # both are the same search
    every, slow = outcomes(recipe, prunes=False, ordered=ordered, runs=runs)
    if not fast.left:
        assert every <= pruned, f"{recipe}: {len(every - pruned)} of {len(every)} were left out"
    if not slow.left:
        assert pruned <= every, f"{recipe}: an order that can't happen"


def is_small(recipe: Recipe) -> bool:
    return 3 <= recipe.tasks <= MOST_TASKS


@given(recipe=recipes())
@settings(random_orders, max_examples=examples(0.25))
def test_pruning_loses_no_outcome(recipe):
    assume(is_small(recipe))
    check_same(recipe, runs=FEW_RUNS)


@given(recipe=recipes())
@settings(random_orders, max_examples=examples(0.1))
def test_pruning_loses_no_order_of_outputs_and_calls_if_these_count(recipe):
    assume(is_small(recipe))
    check_same(recipe, ordered=True, runs=FEW_RUNS)


@pytest.mark.soak
@given(recipe=recipes())
@settings(random_orders, max_examples=examples(2))
def test_pruning_loses_no_outcome_of_many_flows(recipe):
    assume(is_small(recipe))
    check_same(recipe)


def two(first: object, second: object, *then: object) -> Recipe:
    """Two tasks at the same time, and what comes after the first one."""
    ops = [first, second, *then]
    nodes = [Node((op,), (3,) if op is first and then else (), 1, "skip", False) for op in ops]
    return Recipe((Node((), (1, 2), 1, "skip", False), *nodes), 1, 4)


CONFLICTS = {
    "two writes": two(writes, increments),
    "a read and a write": two(reads, writes),
    "a read in a later task": two(appends, writes, reads),
    "lists": Recipe(
        (Node((), (1,), 1, "skip", False), Node((appends,), (), 2, "skip", False)), 3, 4
    ),
    "one service": Recipe(
        (Node((), (1,), 1, "skip", False), Node((calls_numbered,), (), 2, "skip", False)), 3, 4
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_orders_of_what_meets_are_all_tried(name):
    check_same(CONFLICTS[name])
    assert len(outcomes(CONFLICTS[name], prunes=True)[0]) > 1


@pytest.mark.parametrize("name", ["two writes", "a read in a later task"])
def test_the_comparison_finds_a_rule_that_is_too_lax(name, monkeypatch):
    monkeypatch.setattr(
        "pytest_routilux.sim.orders.search.commute", lambda a, b, trace: not trace.blind
    )
    with pytest.raises(AssertionError, match="were left out"):
        check_same(CONFLICTS[name])


def test_the_comparison_finds_a_touch_that_is_not_seen(monkeypatch):
    monkeypatch.setattr(transitions, "_touches", lambda a, b: False)
    with pytest.raises(AssertionError, match="were left out"):
        check_same(CONFLICTS["two writes"])


# --- what is called complete ----------------------------------------------------------------------


def word(graph: Graph, schedules: object, **scope: object) -> str:
    checks = Checks(isolated=False, scope=Scope(schedules, "none", **scope))  # type: ignore[arg-type]
    found = explore(graph.case, START, checks)
    assert found.reference.finding is None
    return found.coverage.word


CLEAN = fan(passes, rest)


def test_all_orders_are_complete():
    assert word(CLEAN, "all") == "complete"


@pytest.mark.parametrize("schedules", ["fifo", "some"])
def test_some_orders_are_a_sample(schedules):
    assert word(CLEAN, schedules) == "sampled"


def test_a_search_that_is_cut_says_how_many_orders_are_left():
    text = word(CLEAN, "all", runs=10)
    assert text.startswith("cut at ")
    done, least = (int(part) for part in text.removeprefix("cut at ").split(" of at least "))
    assert done < least


def test_one_order_of_work_is_complete():
    graph = Graph("go>a", {"go": sends(1), "a": rest})
    assert word(graph, "some") == "complete"


# --- no false alarm -------------------------------------------------------------------------------


def check_clean(recipe: Recipe, crashes: Crashes = "every") -> None:
    checks = Checks(isolated=False, scope=Scope("some", crashes))
    found = explore(recipe.case, START, checks)
    assert found.reference.finding is None, found.reference.finding.what
    assert [finding.what for _, finding in found.failures] == []


@given(recipe=recipes(SAFE_OPS))
@settings(random_orders, max_examples=examples(0.2))
def test_a_clean_flow_raises_no_alarm(recipe):
    assume(is_small(recipe))
    check_clean(recipe, "none")


@pytest.mark.soak
@given(recipe=recipes(SAFE_OPS))
@settings(random_orders, max_examples=examples(4.2))
def test_many_clean_flows_raise_no_alarm(recipe):
    assume(is_small(recipe))
    check_clean(recipe)
