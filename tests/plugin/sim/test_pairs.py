"""Pairs of crashes: what two crashes break and one does not, and which pairs are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_routilux.faults.faults import Raises
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.oracle import canonical, unordered, view_of
from pytest_routilux.sim.pairs import PAIRS, crash_pairs
from pytest_routilux.sim.repro import Repro
from pytest_routilux.sim.results import Checks, Coverage, Exploration, Scope
from pytest_routilux.sim.shrink import shrink
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import FakeClock, Flow
from tests.routines import chain, retrying, saveable

START = FakeClock().now_ns()
PAIRED = Checks(scope=Scope(crashes="pairs"))
pay = Effect("pay", key="key")
LOCK: dict[str, int] = {}


def locks_and_takes_over_once(self: Any, order: str) -> None:
    """Takes the lock of a host that has died, but of one host alone."""
    if LOCK.setdefault("owners", 0) > 1:
        raise RuntimeError("the lock is held")
    LOCK["owners"] += 1
    self.emit("out", order=order)


def locks_and_takes_over(self: Any, order: str) -> None:
    LOCK["owners"] = 1
    self.emit("out", order=order)


def works(self: Any, order: str) -> None:
    self.emit("out", receipt=pay(order, key=self.ctx.key("pay")))


def locked(body: Callable[..., None]) -> Case:
    def build() -> Flow:
        return chain(lock=saveable(body, out=["order"]), work=saveable(works, out=["receipt"]))

    return Case(build, "lock", {"order": "A7"}, fresh=LOCK.clear)


def test_a_bug_that_needs_two_crashes_is_found_and_repeated():
    case = locked(locks_and_takes_over_once)
    assert explore(case, START, Checks()).failures == []

    result = explore(case, START, PAIRED)
    assert result.coverage.word == "complete"
    cause = shrink(result, case, START, PAIRED)
    assert cause.point is not None
    assert cause.point.first is not None
    assert cause.finding.path == "effects.pay"
    flow = result.reference.run.host.flow
    repro = Repro.parse(str(Repro.of(case, flow, cause.point)))
    again = explore(case, START, PAIRED, repro)
    assert [found.signature for _, found in again.failures] == [cause.finding.signature]
    assert again.coverage.executed == {PAIRS: 1}

    fixed = explore(locked(locks_and_takes_over), START, PAIRED, repro)
    assert fixed.failures == []
    assert fixed.coverage.executed == {PAIRS: 1}


def test_its_twin_survives():
    result = explore(locked(locks_and_takes_over), START, PAIRED)
    assert result.failures == []
    assert result.reference.finding is None
    assert result.coverage.executed[PAIRS] > 10


def charges_without_key(self: Any, order: str) -> None:
    self.emit("out", receipt=pay(order))


def test_a_single_crash_comes_first():
    body = saveable(charges_without_key, out=["receipt"])
    case = Case(lambda: chain(work=body), "work", {"order": "A7"})
    result = explore(case, START, PAIRED)
    assert shrink(result, case, START, PAIRED).point == result.failures[0].point
    assert PAIRS not in result.coverage.planned
    assert "pairs of crashes: not tried, a single crash shows a failure" in result.coverage.notes


def split(self: Any, orders: list[str]) -> None:
    for order in orders:
        self.emit("out", order=order)


def fan() -> Flow:
    flow = chain(split=saveable(split, out=["order"]), work=saveable(works, out=["receipt"]))
    flow.execution_strategy = "concurrent"
    return flow


def once_then_pays(self: Any, order: str) -> None:
    self.ctx.once("reserve", abs, -1)
    self.ctx.sleep(0.5)
    works(self, order)


def retries() -> Flow:
    flow = chain(work=saveable(once_then_pays, out=["receipt"]))
    flow.set_error_handler(retrying(max_retries=3, retry_delay=1))
    return flow


@pytest.mark.parametrize("flow", [retries, fan])
def test_it_is_said_that_the_pairs_of_a_concurrent_flow_ran_in_one_order(flow):
    concurrent = flow is fan
    params = {"orders": ["A", "B"]} if concurrent else {"order": "A7"}
    checks = Checks(isolated=False, scope=Scope("some", "pairs"))
    found = explore(Case(flow, "split" if concurrent else "work", params), START, checks)
    assert not found.failures
    assert concurrent == ("pairs of crashes: tried in one order, FIFO" in found.coverage.notes)


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_pairs_that_are_left_out_show_nothing_new(shape):
    fails = Raises("work", ConnectionError("no answer"), [1, 2])
    if shape == "chain":
        case = Case(retries, "work", {"order": "A7"}, faults=[fails])
    else:
        case = Case(fan, "split", {"orders": ["A", "B"]})

    def ends(case: Case) -> tuple[int, set[str]]:
        coverage = Coverage()
        reference = run_reference(case, START, PAIRED, coverage)
        result = Exploration(reference, [], coverage)
        points = crash_points(reference.run)
        pairs = [one for one, _ in crash_pairs(reference.run, points, PAIRED, result)]
        views = [unordered(view_of(pair.host.job, pair.world)) for pair in pairs]
        return len(pairs), set(map(canonical, views))

    few, found = ends(case)
    every, all_found = ends(replace(case, fresh=list))  # then none is left out
    assert found == all_found
    assert few < every / 2
