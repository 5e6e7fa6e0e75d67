"""Bugs planted in the engine: each is found and named, and without it the same flow is clean."""

from __future__ import annotations

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.simulator.model import Case
from tests.plugin.sim.conformance.engine_bugs import BUGS, Bug
from tests.plugin.sim.steps import START
from tests.soak import sampled

FEW = [*BUGS][::8]


def examined(bug: Bug) -> Exploration:
    return explore(Case(bug.build, "orders", faults=bug.faults), START, Checks())


@pytest.mark.parametrize("what", sampled(BUGS, FEW))
def test_a_bug_of_the_engine_is_found_and_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[what]
    with monkeypatch.context() as patch:
        bug.plant(patch)
        found = examined(bug)

    finding = found.reference.finding or found.failures[0][1]
    assert (bug.kind, bug.routine) == (finding.kind, finding.routine), finding.what
    for words in bug.says:
        assert words in finding.what
    if bug.points is not None:
        assert {bug.points} == {point.kind for point, _ in found.failures}


@pytest.mark.parametrize("what", sampled(BUGS, FEW[:2]))
def test_without_the_bug_the_same_flow_is_clean(what: str) -> None:
    found = examined(BUGS[what])

    assert found.reference.finding is None, found.reference.finding.what
    assert [] == [(point.name, finding.what) for point, finding in found.failures]
    assert found.coverage.planned == found.coverage.executed
    assert found.coverage.planned.total() > 12
