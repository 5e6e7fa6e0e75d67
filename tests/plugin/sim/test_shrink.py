"""Shrinking finds a smaller cause of the same finding."""

from __future__ import annotations

from functools import partial
from time import process_time

import pytest

from pytest_routilux.faults.faults import ClockJump, Fault, Raises, Slow
from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.shrink import Cause, shrink
from pytest_routilux.sim.simulator.model import Case
from routilux.clocks.durations import instant_ns
from tests.plugin.sim import bugs
from tests.soak import also

START = instant_ns("2026-01-01")
CHECKS = Checks(isolated=False)  # no flow here keeps anything in its process


def case_of(charge: type[bugs.Charge], *faults: Fault) -> Case:
    build = partial(bugs.shop, charge)
    return Case(build, "orders", {"order": "A7", "amount": 19.9}, faults=faults)


def shrunk(case: Case, checks: Checks = CHECKS) -> tuple[Exploration, Cause]:
    exploration = explore(case, START, checks)
    return exploration, shrink(exploration, case, START, checks)


def test_a_double_charge_shrinks_to_one_crash_in_well_under_a_second():
    case = case_of(bugs.Charge, Slow("orders", 1), Slow("charge", 0.5, [1]), ClockJump(3600))
    exploration = explore(case, START, CHECKS)
    begun = process_time()
    cause = shrink(exploration, case, START, CHECKS)
    assert process_time() - begun < 0.5
    assert ("0.0@a1.effect1", ()) == (cause.point.name, cause.faults)
    assert "1 crash + 3 faults" == cause.text
    assert 0 < cause.runs < 100


def test_a_fault_that_the_finding_needs_keeps_its_number():
    case = case_of(
        bugs.SecondThoughts,
        Slow("orders", 1),
        Raises("charge", bugs.GatewayDown, [1]),
        Slow("charge", 2),
    )
    _, cause = shrunk(case)
    assert (2,) == cause.faults
    assert "0.0@a2.effect1" == cause.point.name
    assert (case.faults[1],) == cause.exploration.reference.run.case.faults


@pytest.mark.parametrize("charge", also(bugs.MiddlingBudget, bugs.OnceAlone, bugs.Charge))
def test_kind_routine_and_path_stay_the_same(charge):
    case = case_of(charge, Slow("charge", 1))
    exploration = explore(case, START, CHECKS)
    findings = {finding.signature: finding for _, finding in exploration.failures}
    assert (2 if charge is bugs.MiddlingBudget else 1) == len(findings)
    for finding in findings.values():
        cause = shrink(exploration, case, START, CHECKS, finding)
        assert finding.signature == cause.finding.signature
        assert () == cause.faults


@pytest.mark.parametrize("charge", [bugs.Charge, bugs.ShortBudget])
def test_the_smallest_cause_shows_the_same_finding_when_it_is_run(charge):
    _, cause = shrunk(case_of(charge, Slow("charge", 1)))
    known = cause.exploration.reference
    assert cause.point is not None
    again = check_disturbed(known, recover(known.run, cause.point), CHECKS)
    assert cause.finding.signature == again.signature


def test_the_simplest_crash_is_around_an_effect_then_at_a_write_then_in_a_wait():
    known = explore(case_of(bugs.OwnBudget), START, CHECKS).reference
    charge = explore(case_of(bugs.Charge), START, CHECKS).reference
    points = [*crash_points(known.run), *crash_points(charge.run)]
    kinds = dict.fromkeys(
        point.kind for point in sorted(points, key=lambda point: point.simplicity)
    )
    assert [
        "around an effect",
        "before a write",
        "after a write",
        "in a sleep",
        "in a wait",
        "no host",
        "in a recovery",
        "by document",
        "store refuses",
        "store does not answer",
    ] == list(kinds)


def test_a_finding_without_a_crash_shrinks_to_no_crash():
    case = case_of(bugs.AttemptInKey, Slow("charge", 1))
    _, cause = shrunk(case)
    assert (None, ()) == (cause.point, cause.faults)
    assert "key-unstable" == cause.finding.kind


def test_a_cause_that_is_already_smallest_stays_as_it_is():
    exploration, cause = shrunk(case_of(bugs.Charge))
    assert exploration.failures[0] == (cause.point, cause.finding)
    assert (0, None) == (cause.runs, cause.text)


def test_the_same_case_shrinks_to_the_same_cause():
    causes = [shrunk(case_of(bugs.Charge, Slow("charge", 1), Slow("orders", 1)))[1] for _ in "ab"]
    assert 1 == len({(c.point, c.finding.signature, c.faults, c.runs, c.text) for c in causes})
