"""A call that can't be meant so is refused with the argument, what is known, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_routilux import FlowFaults, FlowMonitor, FlowSim
from routilux import Flow, FlowDefinitionError
from tests.plugin.monitor.pricing import run, shop

BUILD: Any = shop
FAULTS = FlowFaults()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda sim: sim.run(BUILD, "fetsh"),
            "'fetsh' to start with; it has 'fetch', 'price', 'store'; did you mean 'fetch'?",
        ),
        (
            lambda sim: sim.run(BUILD, "fetch", slot="triger"),
            "no slot 'triger' to start with; it has 'trigger'; did you mean 'trigger'?",
        ),
        (
            lambda sim: sim.crash_everywhere(BUILD, "store", {"totl": 1}, slot="input"),
            "misses 'total' and has 'totl', which it does not take; did you mean 'total'?",
        ),
        (
            lambda sim: sim.check_determinism(BUILD, "price", {"ordr": {}}, slot="input"),
            "misses 'order' and has 'ordr', which it does not take; did you mean 'order'?",
        ),
        (
            lambda sim: sim.run(Flow("made"), "fetch"),
            "can't be called; give the function that makes the flow",
        ),
        (
            lambda sim: sim.run(BUILD, "fetch", faults=FAULTS.slow("price", 1)),
            "faults=slow('price', 1) is no list of faults; give a list",
        ),
        (
            lambda sim: sim.run(BUILD, "fetch", faults=["price"]),
            "faults=['price'] is no list of faults; give a list",
        ),
        (
            lambda sim: sim.crash_everywhere(BUILD, "fetch", invariant=True),
            "invariant=True can't be called; give a function",
        ),
    ],
)
def test_a_simulation_refuses(flow_sim: FlowSim, call: Callable[[Any], object], says: str) -> None:
    with pytest.raises(FlowDefinitionError) as refused:
        call(flow_sim)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda faults: faults.raises("price", OSError, attempts=1),
            "a fault of 'price' hits attempts=1; give them as a list: attempts=[1]",
        ),
        (lambda faults: faults.slow("price", -1), "slow('price', -1): a length of time can't be"),
        (lambda faults: faults.slow("price", "1"), "slow('price', '1'): a length of time is"),
        (lambda faults: faults.clock_jump("back"), "clock_jump('back'): give a number of seconds"),
    ],
)
def test_a_fault_refuses(call: Callable[[Any], object], says: str) -> None:
    with pytest.raises(FlowDefinitionError) as refused:
        call(FAULTS)
    assert says in str(refused.value)


def test_an_order_of_one_text_is_refused_as_what_it_is() -> None:
    monitor = FlowMonitor()
    run(monitor)
    with pytest.raises(FlowDefinitionError, match="needs two routines or more, not 'fetch'"):
        monitor.assert_order("fetch")
