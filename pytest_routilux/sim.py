"""`flow_sim`: runs, crashes and checks a user's flow, in one line of a test.

Laws:
- What is asked for is done whole: a point that was planned and not executed fails the test.
- A failure is the smallest that keeps its kind, its routine and the place where it shows.
- A reproducer fails, is fixed, or is stale; stale is an error, and so is one that no call of the
  test has taken.
- The doubles of effects, the faults and the order of work are the test's; nothing is drawn by
  chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest

from pytest_routilux.choices import FIFO, Seeded
from pytest_routilux.effects import Effect
from pytest_routilux.examine import Checks, Coverage, Outcome, examine
from pytest_routilux.simulation import Case, live
from pytest_routilux.world import World
from routilux.instants import instant_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_routilux.crash import CrashPoint
    from pytest_routilux.examine import Examination
    from pytest_routilux.faults import Fault
    from pytest_routilux.oracle import Finding
    from routilux import Flow, JobState

__all__ = ["FlowSim"]

_START: Final = instant_ns("2026-01-01")


class FlowSim:
    """Simulates jobs of flows; the fixture `flow_sim`.

    `build` makes a fresh flow each time it is called. `faults` are those of `flow_faults`. Handlers
    run in this process, in virtual time; what they do outside goes through doubles made by
    `effect`, or really happens, as often as they are run.

        def test_orders_survive(flow_sim):
            flow_sim.crash_everywhere(build_orders, entry="orders", params={"id": 7})
    """

    def __init__(self, node: pytest.Item, repro: str | None) -> None:
        self._node = node
        self._repro = repro
        self._taken = repro is None

    def effect(
        self, name: str, key: str | None = None, returns: Callable[..., object] | None = None
    ) -> Effect:
        """Return a double of an external call, to stand in its place during the test.

        It records its inputs, its key and the virtual time. `key` is the name of the parameter that
        carries the idempotency key. `returns` gives the result for the same arguments.
        """
        return Effect(name, key, returns)

    def run(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        seed: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> Outcome:
        """Run one job without a crash, and return how it ended and what it did outside.

        `seed` lets steps start and end in another order, the same for the same seed. Raises what
        the job was ended by from outside, such as a failing store.
        """
        case = self._case(build, entry, params, slot, faults)
        world = World(_START)
        for fault in faults:
            fault.begin(0)
        life = live(case, world, choices=FIFO if seed is None else Seeded(seed))
        if life.error is not None:
            raise life.error
        assert life.job is not None
        _refuse_idle(faults)
        return Outcome(life.job, world.calls)

    def _case(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None,
        slot: str,
        faults: Sequence[Fault],
        always: Callable[[JobState], object] | None = None,
    ) -> Case:
        flow = build()
        for fault in faults:
            fault.check(flow)
        return Case(build, entry, params, slot, faults=tuple(faults), always=always)


def _refuse_idle(faults: Sequence[Fault]) -> None:
    idle = [fault for fault in faults if not fault.struck]
    if idle:
        pytest.fail(
            f"{', '.join(map(repr, idle))} never struck: no such attempt was made; a fault that"
            " does not happen proves nothing",
            pytrace=False,
        )
