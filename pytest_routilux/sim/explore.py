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
from dataclasses import replace
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.checks import (
    check_end,
    check_invariant,
    check_undisturbed,
    check_variation,
)
from pytest_routilux.sim.conformance.lifecycle import broken_lifecycle
from pytest_routilux.sim.crash_points import crash_points, new_points
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.isolation.kept_values import check_next_job
from pytest_routilux.sim.oracle import (
    repeated_in_attempt,
    reused_key,
    trie_of,
    unstable_key,
    varying,
    view_of,
)
from pytest_routilux.sim.orders.races import OrderChecks
from pytest_routilux.sim.orders.try_orders import OrderRuns
from pytest_routilux.sim.other_hosts import OtherHosts
from pytest_routilux.sim.pairs import crash_pairs, second_points, try_pair
from pytest_routilux.sim.recovery import read_back, run_undisturbed, run_variation
from pytest_routilux.sim.repeats import REPEAT, changed_shape, changed_values, shape_of
from pytest_routilux.sim.repro import Repro
from pytest_routilux.sim.results import (
    Checks,
    Coverage,
    CrashAt,
    Exploration,
    Failure,
    Outcome,
    Reference,
)
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import UNVARIED, variations
from pytest_routilux.sim.simulator.model import NORMAL_PACE, Finding
from pytest_routilux.sim.simulator.scheduler import Reversed, StaleTapeError
from pytest_routilux.sim.simulator.store_files import store_name
from routilux import UnserializableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.simulator.model import (
        Case,
        CrashPoint,
        Disturbed,
        Undisturbed,
    )

_MOST_OBJECTS: Final = 10_000  # that are searched for a double


def explore(
    case: Case, start_ns: int, checks: Checks, only: Repro | CrashAt | None = None
) -> Exploration:
    """Run a case without a crash, then once for each crash point, or only as `only` says."""
    begun = perf_counter()
    coverage = Coverage(shard=checks.scope.shard)
    if case.store is not None:
        coverage.notes.append(f"each host opens the files anew: store={store_name(case.store)}")
    with ForkedHosts(case, start_ns, coverage, isolated=checks.isolated) as hosts:
        result = _explore(case, start_ns, checks, coverage, only, hosts)
    coverage.seconds = perf_counter() - begun
    return result


def _explore(
    case: Case,
    start_ns: int,
    checks: Checks,
    coverage: Coverage,
    only: Repro | CrashAt | None,
    hosts: ForkedHosts,
) -> Exploration:
    reference = run_reference(case, start_ns, checks, coverage, hosts)
    result = Exploration(reference, [], coverage)
    if checks.scope.crashes == "none":
        return result
    differs = None
    if reference.finding is not None and reference.finding.kind == REPEAT and hosts.changed:
        # A crash may show which of the globals that changed makes the difference.
        differs, reference.finding = reference.finding, None
    if reference.finding is not None:
        return result
    run, other = reference.run, reference.other
    saved = _check_saved_form(run, coverage)
    if isinstance(saved, Finding):
        reference.finding = saved
        return result
    if other is not None and checks.scope.tape is not None:
        run, other = other, None
    points = every = crash_points(run, documents=saved)
    if only is not None:
        points, other = only.points(points), None
    if isinstance(only, Repro) and only.second is not None:
        again, seconds = second_points(run, points[0])
        _add(result, *try_pair(again, only.second_point(seconds), checks, result))
        return result
    _crash_at(points, run, checks, result)
    if other is not None:
        _crash_at(new_points(run, other), other, checks, result)
    failures = result.failures
    if checks.view is None and (found := hosts.compare(reference, points, failures)):
        # It comes first: the other findings of a flow that keeps progress in a module mislead.
        finding, disturbed = found
        assert disturbed.point is not None
        failures.insert(0, Failure(disturbed.point, finding))
        result.disturbed[finding.signature] = disturbed
    elif differs is not None:
        reference.finding = differs
    elif not failures:
        coverage.runs += 2
        reference.finding = check_next_job(reference, start_ns, checks)
    if not failures and reference.finding is None:
        reference.finding = broken_lifecycle(run)
    if checks.scope.crashes == "pairs" and only is None:
        if result.failures or reference.finding is not None:
            coverage.notes.append("pairs of crashes: not tried, a single crash shows a failure")
            return result
        if reference.other is not None:
            coverage.notes.append("pairs of crashes: tried in one order, FIFO")
        for disturbed, found_in_pair in crash_pairs(run, every, checks, result):
            _add(result, disturbed, found_in_pair)
            checks.progress(coverage)
    return result


def _crash_at(
    points: Sequence[CrashPoint], run: Undisturbed, checks: Checks, result: Exploration
) -> None:
    """Crash a run at each of `points`, and add what is found to `result`."""
    coverage, points = result.coverage, checks.scope.part(points)
    coverage.planned.update(point.kind for point in points)
    others = OtherHosts(result.reference, run, checks, coverage)
    for point in points:
        disturbed, finding = others.recover(point)
        if disturbed.executed:
            coverage.executed[point.kind] += 1
        _add(result, disturbed, finding)
        checks.progress(coverage)
    if not result.failures and (found := others.environment()):
        finding, disturbed = found
        _add(result, disturbed, finding)


def _add(result: Exploration, disturbed: Disturbed, finding: Finding | None) -> None:
    """Add what a run with a crash has shown to `result`."""
    point, simplest = disturbed.point, result.disturbed
    if finding is None:
        return
    assert point is not None, "the run has a crash"
    result.failures.append(Failure(point, finding))
    best = simplest.setdefault(finding.signature, disturbed).point
    if best is not None and point.simplicity < best.simplicity:
        simplest[finding.signature] = disturbed


def _check_saved_form(run: Undisturbed, coverage: Coverage) -> bool | Finding:
    """Return whether the job can be saved as a document, or a finding if it can't be read back."""
    try:
        for job in (run.states[1], run.states[-1]):
            read = read_back(run.host.flow, job)
            if isinstance(read, Finding):
                return read
    except UnserializableError as error:
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
    views, steady_views = [], []
    finding = unstable_key(run.world) or broken
    if finding is None and hosts.first is not None:
        finding = changed_shape(run, hosts.first, shape_of(view), "the second")
    for variation in (UNVARIED, *variations(plan)):
        world, lived = run_variation(case, start_ns, variation)
        coverage.runs += len(lived)
        finding = finding or check_variation(run, world, lived, variation)
        if lived[-1].job is None or lived[-1].error is not None:
            continue
        views.append(view_of(lived[-1].job, world))
        if variation.pace is NORMAL_PACE:
            steady_views.append(views[-1])
        if variation is UNVARIED:
            finding = finding or changed_shape(
                run, shape_of(view), shape_of(views[0]), "a second run in the same process"
            )
            coverage.notes += changed_values(varying(view, views, ordered=ordered))
    mask = varying(view, views, ordered=ordered)
    finding = finding or reused_key(run.world, trie_of(mask))
    twice = repeated_in_attempt(run.world)
    if twice is not None:
        coverage.notes.append(twice)
    steady = varying(view, steady_views, ordered=ordered) if mask else mask
    reference = Reference(
        run, view, mask, ordered, custom, finding, time_mask=mask, steady_mask=steady
    )
    if ordered and checks.scope.tape is not None:
        raise StaleTapeError("the flow has one order of work alone")
    if finding is None and not ordered:
        return _reference_of_orders(reference, start_ns, checks, coverage)
    return reference


def _reference_of_orders(
    known: Reference, start_ns: int, checks: Checks, coverage: Coverage
) -> Reference:
    """Return the common result of a concurrent flow in several orders."""
    run, scope = known.run, checks.scope
    runs = OrderRuns(start_ns, OrderChecks(run, checks, known.mask), coverage)
    runs.run(known)
    by_order = varying(known.view, runs.views, ordered=False)
    other, broken = None, None
    if runs.choices and scope.crashes != "none" and scope.schedules != "fifo":
        other = run_undisturbed(run.case, start_ns, scope.tape or Reversed())
        coverage.runs += 1
        broken = check_undisturbed(other)
        if broken is not None:
            other, broken = None, replace(broken, what=f"in another order: {broken.what}")
    finding, disturbed = runs.shown or (broken, None)
    return Reference(
        run,
        known.view,
        known.mask | by_order,
        False,
        known.custom,
        finding,
        disturbed,
        other,
        known.mask,
        known.steady_mask | by_order,
    )
