"""The ways of running a job undisturbed that must not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.simulator.execution import live
from pytest_routilux.sim.simulator.lives import STEADY, Pace
from pytest_routilux.sim.simulator.scheduler import FIFO, Seeded
from pytest_routilux.sim.simulator.world import World
from routilux.clocks.durations import SECOND

if TYPE_CHECKING:
    from pytest_routilux.sim.simulator.lives import Case, Life
    from routilux.graph.plan import Plan

__all__ = ["OTHER_START", "Variation", "variations", "vary"]

OTHER_START: Final = 8_654_321 * SECOND + 123_456_789  # another day, hour, minute and fraction
_ORDERS: Final = 6


@dataclass(frozen=True, slots=True)
class Variation:
    """Another start instant, other durations, one worker instead of many, or another order."""

    shift_ns: int = 0
    pace: Pace = STEADY
    sequential: bool = False
    seed: int | None = None


def variations(plan: Plan) -> list[Variation]:
    """Return the variations that must not matter to a flow."""
    found = [Variation(shift_ns=OTHER_START), Variation(pace=Pace(percent=125))]
    if all(handler.deadline is None for handler in plan.handlers.values()):
        # So slow that a retry is due before what was under way is done, as after a long downtime.
        found.append(Variation(pace=Pace(more_ns=3600 * SECOND)))
    if plan.width > 1:
        found.append(Variation(sequential=True))
        found += [Variation(seed=seed) for seed in range(_ORDERS)]
    return found


def vary(case: Case, start_ns: int, variation: Variation) -> tuple[World, Life]:
    """Run a job undisturbed in one of these ways."""
    for fault in case.faults:
        fault.begin(0)
    world = World(start_ns + variation.shift_ns)
    flow = case.build()
    if variation.sequential:
        flow.execution_strategy = "sequential"
    choices = FIFO if variation.seed is None else Seeded(variation.seed)
    return world, live(case, world, flow=flow, choices=choices, pace=variation.pace)
