"""Finds state that a handler changes and no commit saves."""

from __future__ import annotations

import itertools

from pytest_routilux.sim.isolation.hidden_state import HiddenChange, hidden_state
from pytest_routilux.sim.simulator.model import Case
from routilux import Flow
from tests.plugin.sim.steps import START, Step, same

_ids = itertools.count(1)


class Counts(Step):
    tries = 0

    def step(self, number: object = 0) -> None:
        next(_ids)
        self.tries += 1
        self.ctx.state["kept"] = 1


def counting() -> Flow:
    flow = Flow("counting")
    flow.add_routine(Counts(same), "r1")
    return flow


def test_a_changed_attribute_and_global_are_found_with_handler_and_values() -> None:
    where = f"{__file__}:{Counts.step.__code__.co_firstlineno}"
    assert [
        HiddenChange("r1", "global", f"{__name__}:_ids", where, "count(1)", "count(2)"),
        HiddenChange("r1", "attribute", "self.tries", where, "nothing", "1"),
    ] == hidden_state(Case(counting, "r1"), START)
