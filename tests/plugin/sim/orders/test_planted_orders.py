"""Bugs of the order of tasks: each is found, named and explained; its twin is clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_routilux.sim.explain.explain import explain_cause
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Scope
from pytest_routilux.sim.shrink import shrink
from pytest_routilux.sim.simulator.scheduler import Tape
from tests.plugin.sim.orders.order_bugs import PAIRS
from tests.plugin.sim.steps import START
from tests.soak import sampled

ORDERS = Checks(isolated=False, scope=Scope(schedules="some", crashes="none"))
HERE = Path(__file__).parent


@pytest.mark.parametrize("name", PAIRS)
def test_a_bug_of_the_order_is_found_and_explained(name):
    pair = PAIRS[name]
    found = explore(pair.bug.case, START, ORDERS)
    assert found.reference.finding is not None
    assert pair.kind == found.reference.finding.kind
    cause = shrink(found, pair.bug.case, START, ORDERS)
    assert found.reference.finding.signature == cause.finding.signature
    assert not isinstance(cause.order, Tape) or cause.order.size <= 3
    text = explain_cause(cause, pair.bug.case, 100, repro="pytest test.py", root=HERE)
    assert [] == [part for part in pair.names if part not in text], text
    lines = text.splitlines()
    assert len(lines) <= 25, text
    assert max(map(len, lines)) <= 100, text
    assert "order_bugs.py:" in text, text


@pytest.mark.parametrize("name", sampled(PAIRS, [*PAIRS][::4]))
def test_a_twin_without_the_bug_is_clean(name):
    found = explore(PAIRS[name].twin.case, START, ORDERS)
    assert found.reference.finding is None, found.reference.finding.what
