"""Flows with gathers under every crash point and many schedules."""

from __future__ import annotations

from random import Random

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case
from routilux import Flow
from tests.core.gather_flows import Behaviour, Expected, Node, plain_id, random_flow
from tests.gathers import Join, Work, gathering
from tests.plugin.sim.steps import START
from tests.routines import retrying
from tests.soak import also, batch_seed, sampled


def shop(workers: int | None, per: str | None) -> Flow:
    """Item 1 is dropped; item 2 and the first attempt of the gather are retried."""
    handler = retrying(max_retries=1, retry_delay=0.3, on_exhausted="continue")
    work = Work({1: 9, 2: 1}, slow=0.1)
    return gathering(work=work, join=Join(fails=1), per=per, workers=workers, handler=handler)


@pytest.mark.parametrize(
    ("per", "workers"), also(("split", 3), (None, None), (None, 3), ("split", None)), ids=str
)
def test_a_gather_outlives_every_crash(workers, per):
    found = explore(Case(lambda: shop(workers, per), "split"), START, Checks())

    assert found.reference.finding is None, found.reference.finding.what
    assert [] == [(point.name, finding.what) for point, finding in found.failures]
    assert found.coverage.planned == found.coverage.executed
    assert found.coverage.planned.total() > 50


class Live(Node):
    """A node whose handlers do what `behaviour` says; `flow` names the gathers in the ids."""

    behaviour: Behaviour
    flow: Flow

    def take(self, **fields: object) -> None:
        task_id = plain_id(self.ctx.task_id, self.flow)
        if self.ctx.attempt == 1 and self.behaviour.fails(task_id):
            raise ValueError("attempt 1")
        for event, n in self.behaviour.emits(task_id, self):
            self.emit(event, n=n)

    def take_all(self, found: object) -> None:
        self.take()


@pytest.mark.parametrize("batch", sampled(range(90), [0, 16]))
def test_random_flows_with_gathers_outlive_every_crash(batch, monkeypatch):
    seed = batch_seed(batch)
    flow, splits = random_flow(Random(seed), Live)
    monkeypatch.setattr(Live, "behaviour", Behaviour(seed), raising=False)
    monkeypatch.setattr(Live, "flow", flow, raising=False)
    expected = Expected(flow, Live.behaviour, splits)
    expected.of("a")
    if len(expected.tasks) > 14:
        return  # it takes too long
    if expected.stops and flow.max_workers > 1:
        return  # what ran before the job failed depends on the schedule
    found = explore(Case(lambda: random_flow(Random(seed), Live)[0], "a"), START, Checks())

    assert found.reference.finding is None, found.reference.finding.what
    assert [] == [(point.name, finding.what) for point, finding in found.failures]
