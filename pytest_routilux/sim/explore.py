"""Crashes a job at each crash point and checks the results.

Invariants:
- A flow first runs without a crash, with every perturbation that must not change its result. A run
  with a crash must have only those parts that all these runs have in common. A false alarm is worse
  than a missed bug.
- Each planned point is executed, or the result says that it is no proof.
- The same case gives the same findings in the same order.
"""

from __future__ import annotations

import gc
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.checks import (
    check_disturbed,
    check_end,
    check_invariant,
    check_undisturbed,
)
from pytest_routilux.sim.crash_points import crash_points, new_points
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.oracle import unstable_key, varying, view_of
from pytest_routilux.sim.orders.races import OrderChecks
from pytest_routilux.sim.orders.try_orders import OrderRuns
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import (
    Checks,
    Coverage,
    Exploration,
    Failure,
    Outcome,
    Reference,
)
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_variation, variations
from pytest_routilux.sim.simulator.scheduler import Reversed, StaleTapeError
from pytest_routilux.sim.simulator.store_files import store_name
from routilux import SavedState, SavedStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import (
        Case,
        CrashPoint,
        Undisturbed,
    )

    Choose = Callable[[list[CrashPoint]], list[CrashPoint]]

_MOST_OBJECTS: Final = 10_000  # that are searched for a double


def explore(case: Case, start_ns: int, checks: Checks, choose: Choose | None = None) -> Exploration:
    """Run a case without a crash, then once for each crash point."""
    begun = perf_counter()
    coverage = Coverage()
    if case.store is not None:
        coverage.notes.append(f"each host opens the files anew: store={store_name(case.store)}")
    with ForkedHosts(case, start_ns, coverage, isolated=checks.isolated) as hosts:
        result = _explore(case, start_ns, checks, coverage, choose, hosts)
    coverage.seconds = perf_counter() - begun
    return result


def _explore(
    case: Case,
    start_ns: int,
    checks: Checks,
    coverage: Coverage,
    choose: Choose | None,
    hosts: ForkedHosts,
) -> Exploration:
    reference = run_reference(case, start_ns, checks, coverage, hosts)
    result = Exploration(reference, [], coverage)
    if reference.finding is not None or checks.scope.crashes == "none":
        return result
    run = reference.run
    documents = _has_saved_form(run, coverage)
    other = reference.other
    if other is not None and checks.scope.tape is not None:
        run, other = other, None
    points = crash_points(run, documents=documents)
    if choose is not None:
        points, other = choose(points), None
    _crash_at(points, run, checks, result)
    if other is not None:
        _crash_at(new_points(run, other, documents=documents), other, checks, result)
    failures = result.failures
    if checks.view is None and (found := hosts.compare(reference, points, failures)):
        # It comes first: the other findings of a flow that keeps progress in a module mislead.
        finding, disturbed = found
        assert disturbed.point is not None
        failures.insert(0, Failure(disturbed.point, finding))
        result.disturbed[finding.signature] = disturbed
    return result


def _crash_at(
    points: Sequence[CrashPoint], run: Undisturbed, checks: Checks, result: Exploration
) -> None:
    """Crash a run at each of `points`, and add what is found to `result`."""
    coverage, simplest = result.coverage, result.disturbed
    coverage.planned.update(point.kind for point in points)
    for point in points:
        disturbed = recover(run, point)
        coverage.runs += len(disturbed.hosts)
        if disturbed.executed:
            coverage.executed[point.kind] += 1
        finding = check_disturbed(result.reference, disturbed, checks)
        if finding is not None:
            result.failures.append(Failure(point, finding))
            best = simplest.setdefault(finding.signature, disturbed).point
            if best is not None and point.simplicity < best.simplicity:
                simplest[finding.signature] = disturbed


def _has_saved_form(run: Undisturbed, coverage: Coverage) -> bool:
    try:
        SavedState.from_bytes(SavedState.capture(run.host.flow, run.states[1]).to_bytes())
    except SavedStateError as error:
        note = f"crashes before a resume from a document: not tried, {error}"
        if any(_has_double(routine.arguments) for routine in run.host.flow.routines.values()):
            note = (
                "a resume from a saved file was not tried: a test double can't be saved (nothing to"
                " mend)"
            )
        coverage.notes.append(note)
        return False
    return True


def _has_double(value: object) -> bool:
    """Whether an argument of a routine is a test double, or refers to one."""
    seen: set[int] = set()
    left = [value]
    while left and len(seen) < _MOST_OBJECTS:
        value = left.pop()
        if isinstance(value, Effect) or type(value).__module__ == "unittest.mock":
            return True
        of_module = isinstance(value, dict) and "__builtins__" in value
        if not (of_module or id(value) in seen or isinstance(value, type | ModuleType)):
            seen.add(id(value))
            left += gc.get_referents(value)
    return False


def run_reference(
    case: Case, start_ns: int, checks: Checks, coverage: Coverage, hosts: ForkedHosts | None = None
) -> Reference:
    """Return the common result of several runs without a crash."""
    if hosts is None:
        with ForkedHosts(case, start_ns, coverage, isolated=checks.isolated) as hosts:
            return run_reference(case, start_ns, checks, coverage, hosts)
    killed = hosts.canary()
    if killed is not None:
        return Reference(killed.run, finding=killed.finding)
    run = run_undisturbed(case, start_ns)
    coverage.runs += 1
    finding = check_undisturbed(run) or check_end(run.job, checks)
    if finding is not None:
        return Reference(run, finding=finding)
    # Before the next run, which changes what lies outside.
    custom = None if checks.view is None else checks.view(Outcome(run.job, run.world.calls))
    broken = check_invariant(checks, run.job, run.world)
    # Made from the state that was read back, so that disturbed runs share its objects.
    view = view_of(run.states[-1], run.world)
    plan = run.host.flow.plan()
    ordered = plan.width == 1
    views = []
    for variation in variations(plan):
        world, host = run_variation(case, start_ns, variation)
        coverage.runs += 1
        if host.job is not None and host.error is None:
            views.append(view_of(host.job, world))
    mask = time_mask = varying(view, views, ordered=ordered)
    reference = Reference(run, view, mask, ordered, custom, unstable_key(run.world) or broken)
    if ordered and checks.scope.tape is not None:
        raise StaleTapeError("the flow has one order of work alone")
    if reference.finding is not None or ordered:
        return reference
    found = OrderRuns(start_ns, plan, OrderChecks(case, checks, mask), coverage)
    found.run(run)
    mask |= varying(view, found.views, ordered=ordered)
    other, scope = None, checks.scope
    if found.choices and scope.crashes != "none" and scope.schedules != "fifo":
        other = run_undisturbed(case, start_ns, scope.tape or Reversed())
        coverage.runs += 1
        if check_undisturbed(other) is not None:
            other = None
    finding, disturbed = found.shown or (None, None)
    return Reference(run, view, mask, ordered, custom, finding, disturbed, other, time_mask)
