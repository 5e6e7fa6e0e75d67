"""Tries every crash point of a case and judges each outcome.

Invariants:
- A flow first runs undisturbed, with every perturbation that must not change its result. Only what
  stays the same then is expected of a run with a crash. A false alarm is worse than a missed bug.
- Planned points equal executed ones, or the result says that it is no proof.
- The same case gives the same findings in the same order.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from pytest_routilux.faults.faults import StoreFails
from pytest_routilux.sim.conformance.checker import broken_rule
from pytest_routilux.sim.conformance.spec import error_name, raised_by_engine
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.oracle import (
    Expected,
    compare_effects,
    trie_of,
    unstable_key,
    varying,
    view_of,
)
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks, Coverage, Exploration, Outcome, Reference
from pytest_routilux.sim.simulator.execution import run_variation, variations
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.sim.simulator.store_files import store_name
from pytest_routilux.text import class_name, error_text
from routilux import JobState, PoisonJobError, SavedState, SavedStateError, StepTimeoutError
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import (
        Case,
        CrashPoint,
        Disturbed,
        Host,
        Signature,
        Undisturbed,
        World,
    )

    Choose = Callable[[list[CrashPoint]], list[CrashPoint]]

__all__ = ["check_disturbed", "check_undisturbed", "explore", "run_reference"]


def explore(case: Case, start_ns: int, checks: Checks, choose: Choose | None = None) -> Exploration:
    """Run a case undisturbed and with each of its crash points, or with those chosen of them."""
    begun = perf_counter()
    coverage = Coverage()
    if case.store is not None:
        coverage.notes.append(f"each host opens the files anew: store={store_name(case.store)}")
    with ForkedHosts(case, start_ns, coverage, isolated=checks.isolated) as hosts:
        result = _examine(case, start_ns, checks, coverage, choose, hosts)
    coverage.seconds = perf_counter() - begun
    return result


def _examine(
    case: Case,
    start_ns: int,
    checks: Checks,
    coverage: Coverage,
    choose: Choose | None,
    hosts: ForkedHosts,
) -> Exploration:
    known = run_reference(case, start_ns, checks, coverage, hosts)
    failures: list[tuple[CrashPoint, Finding]] = []
    kept: dict[Signature, Disturbed] = {}
    if known.finding is None:
        run = known.run
        points = crash_points(run, documents=_has_saved_form(run, coverage))
        if choose is not None:
            points = choose(points)
        coverage.planned.update(point.kind for point in points)
        for point in points:
            disturbed = recover(run, point)
            coverage.runs += len(disturbed.hosts)
            if disturbed.executed:
                coverage.executed[point.kind] += 1
            finding = check_disturbed(known, disturbed, checks)
            if finding is not None:
                failures.append((point, finding))
                best = kept.setdefault(finding.signature, disturbed)
                if point.simplicity < best.point.simplicity:
                    kept[finding.signature] = disturbed
        if checks.view is None and (found := hosts.compare(known, points, failures)):
            # First, since what such a flow does in one process is misleading.
            finding, apart = found
            failures.insert(0, (apart.point, finding))
            kept[finding.signature] = apart
    return Exploration(known, failures, coverage, kept)


def _has_saved_form(run: Undisturbed, coverage: Coverage) -> bool:
    try:
        SavedState.from_bytes(SavedState.capture(run.host.flow, run.states[1]).to_bytes())
    except SavedStateError as error:
        coverage.notes.append(f"not by document: {error}")
        return False
    return True


def run_reference(
    case: Case, start_ns: int, checks: Checks, coverage: Coverage, hosts: ForkedHosts | None = None
) -> Reference:
    """Run a case undisturbed with every perturbation, first in another process."""
    if hosts is None:
        with ForkedHosts(case, start_ns, coverage, isolated=checks.isolated) as hosts:
            return run_reference(case, start_ns, checks, coverage, hosts)
    killed = hosts.canary()
    if killed is not None:
        return Reference(killed.run, {}, frozenset(), finding=killed.finding)
    run = run_undisturbed(case, start_ns)
    coverage.runs += 1
    known = Reference(run, {}, frozenset())
    known.finding = check_undisturbed(run)
    if known.finding is not None:
        return known
    # From what was read back: what a disturbed run starts with is the same objects then.
    known.view = view_of(run.states[-1], run.world)
    plan = run.host.flow.plan()
    views = []
    for variation in variations(plan):
        world, host = run_variation(case, start_ns, variation)
        coverage.runs += 1
        if host.job is not None and host.error is None:
            views.append(view_of(host.job, world))
    known.ordered = plan.width == 1
    known.mask = varying(known.view, views, ordered=known.ordered)
    known.trie = trie_of(known.mask)
    known.expected = Expected(known.view, known.trie, ordered=known.ordered)
    if checks.view is not None:
        known.custom = checks.view(Outcome(run.job, run.world.calls))
    known.finding = unstable_key(run.world) or _invariant(checks, run.job, run.world)
    return known


def check_disturbed(known: Reference, disturbed: Disturbed, checks: Checks) -> Finding | None:
    """Return what is wrong with a disturbed run, the most important finding first."""
    run, world = known.run, disturbed.world
    for host in disturbed.hosts:
        if host.store_finding is not None:
            return host.store_finding
    finding = compare_effects(run.world, world, known.trie)
    if finding is not None:
        return finding
    finding = _broken(run, world, disturbed.hosts)
    if finding is not None:
        return finding
    job = disturbed.host.job
    assert job is not None
    outcome = Outcome(job, world.calls)
    if checks.view is not None:
        difference = first_difference(known.custom, checks.view(outcome))
        if difference is not None:
            return Finding("view-differs", f"view(outcome) differs: {difference}", difference.path)
    else:
        finding = known.expected.compare(view_of(job, world))
        if finding is not None:
            return finding
    return _invariant(checks, job, world)


def _invariant(checks: Checks, job: JobState, world: World) -> Finding | None:
    if checks.invariant is None:
        return None
    try:
        held = checks.invariant(Outcome(job, world.calls))
    except AssertionError as error:
        said = str(error).splitlines()[0] if str(error) else "its assertion failed"
        return Finding("invariant", f"the invariant does not hold: {said}", "invariant")
    if held is not None and not held:
        said = f"the invariant does not hold: it returned {held!r}"
        return Finding("invariant", said, "invariant")
    return None


def check_undisturbed(run: Undisturbed) -> Finding | None:
    """Return what is wrong with an undisturbed run; then crashes prove nothing."""
    broken = run.host.store_finding or _broken(run, run.world, [run.host])
    return broken or _mistake(run) or _given_up(run)


def _mistake(run: Undisturbed) -> Finding | None:
    for commit in run.world.commits:
        error = commit.error
        if error is None or raised_by_engine(error.type) in (None, StepTimeoutError):
            continue
        routine = commit.routine_id
        what = f"{routine}: {error.message} ({class_name(error.type)})"
        return Finding("mistake", what, f"mistake.{routine}", routine, [], commit.at_ns)
    return None


def _given_up(run: Undisturbed) -> Finding | None:
    error = run.job.error
    if error is None or error.type != error_name(PoisonJobError):
        return None
    if any(isinstance(fault, StoreFails) for fault in run.case.faults):
        return None  # the test lets the hosts end
    return Finding("stuck", f"each host that goes on ends: {error.message}", "stuck")


def _broken(run: Undisturbed, world: World, hosts: Sequence[Host]) -> Finding | None:
    last = hosts[-1]
    rule = broken_rule(world, hosts, run.case)
    if rule is not None:
        return rule
    for host in hosts:
        if host.findings:
            return host.findings[0]
        if host.leaked_threads:
            routine, thread = host.leaked_threads[0]
            what = f"{routine} leaves a thread behind that runs on after its step: {thread!r}"
            return Finding("leaked-thread", what, f"threads.{routine}", routine)
    if last.error is not None or last.job is None:
        why = "it has no state" if last.error is None else error_text(last.error)
        what = f"the job can't go on: {why}"
        return Finding("stuck", what, "stuck")
    kept, held = world.commits, last.job.commits
    if len(kept) != len(held) or not same_value(kept[-1], held[-1]):
        what = (
            f"the host's memory has {len(held)} commits, its store {len(kept)}, and they are not"
            " the same"
        )
        return Finding("engine-rule", what, "engine")
    return None
