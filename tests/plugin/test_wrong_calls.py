"""An invalid call is refused with its argument, the valid ones, and what to write."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_routilux import FlowFaults
from routilux import Flow, FlowDefinitionError
from tests.plugin.monitor.pricing import shop

BUILD: Any = shop
FAULTS = FlowFaults()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda sim: sim.run(BUILD, "fetsh"), "'price', 'store'; did you mean 'fetch'?"),
        (lambda sim: sim.run(BUILD, "fetch", slot="triger"), "did you mean 'trigger'?"),
        (
            lambda sim: sim.crash_everywhere(BUILD, "store", {"totl": 1}, slot="input"),
            "lacks 'total' and has 'totl', which the handler does not take; did you mean 'total'?",
        ),
        (
            lambda sim: sim.check_determinism(BUILD, "price", {"ordr": {}}, slot="input"),
            "lacks 'order' and has 'ordr', which the handler does not take; did you mean 'order'?",
        ),
        (lambda sim: sim.run(Flow("made"), "fetch"), "give the function that makes the flow"),
        (
            lambda sim: sim.run(BUILD, "fetch", faults=FAULTS.slow("price", 1)),
            "faults=slow('price', 1) is not a list of faults; give a list",
        ),
        (
            lambda sim: sim.run(BUILD, "fetch", faults=["price"]),
            "faults=['price'] is not a list of faults; give a list",
        ),
        (
            lambda sim: sim.crash_everywhere(BUILD, "fetch", invariant=True),
            "invariant=True can't be called; give a function",
        ),
    ],
)
def test_an_invalid_call_of_a_simulation_is_refused(flow_sim, call, says):
    with pytest.raises(FlowDefinitionError) as refused:
        call(flow_sim)
    assert says in str(refused.value)
