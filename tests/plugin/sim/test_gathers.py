"""Flows with gathers under every crash point and many schedules."""

from __future__ import annotations

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case
from routilux import Flow
from tests.gathers import Join, Work, gathering
from tests.plugin.sim.steps import START
from tests.routines import retrying


def shop(workers: int | None, per: str | None) -> Flow:
    """Item 1 is dropped; item 2 and the first attempt of the gather are retried."""
    handler = retrying(max_retries=1, retry_delay=0.3, on_exhausted="continue")
    work = Work({1: 9, 2: 1}, slow=0.1)
    return gathering(work=work, join=Join(fails=1), per=per, workers=workers, handler=handler)


@pytest.mark.parametrize("per", [None, "split"])
@pytest.mark.parametrize("workers", [None, 3], ids=["sequential", "concurrent"])
def test_a_gather_outlives_every_crash(workers, per):
    found = explore(Case(lambda: shop(workers, per), "split"), START, Checks())

    assert found.reference.finding is None, found.reference.finding.what
    assert [] == [(point.name, finding.what) for point, finding in found.failures]
    assert found.coverage.planned == found.coverage.executed
    assert found.coverage.planned.total() > 50
