"""Checks one simulated run.

Invariants:
- The first finding is the most important one: a broken rule of the engine or a failed assertion
  comes before a result that differs.
- A run with a crash has only those parts that all undisturbed runs have in common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.faults.faults import StoreFails
from pytest_routilux.handler_assertions import failed_assertion
from pytest_routilux.sim.conformance.checker import broken_rule
from pytest_routilux.sim.conformance.spec import RAISED_BY_ENGINE, error_name
from pytest_routilux.sim.oracle import compare_effects, reused_key, view_of
from pytest_routilux.sim.results import Checks, Outcome, Reference
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import bare_name, error_text
from routilux import JobState, JobStatus, PoisonJobError, StepTimeoutError
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.simulator.execution import Variation
    from pytest_routilux.sim.simulator.model import Case, Disturbed, Host, Undisturbed, World

_READ: Final = ("by document", "in a recovery")
"""The kinds of crash points after which all that a user can read of the job is checked."""


def check_disturbed(reference: Reference, disturbed: Disturbed, checks: Checks) -> Finding | None:
    """Return the most important finding on a run with a crash."""
    run, world, point = reference.run, disturbed.world, disturbed.point
    for host in disturbed.hosts:
        if host.store_finding is not None:
            return host.store_finding
    outlasts = disturbed.point is not None and disturbed.point.outlasts
    finding = (
        (None if outlasts else compare_effects(run.world, world, reference.trie))
        or reused_key(world, reference.trie)
        or _check_engine(run, world, disturbed.hosts, reading=point is None or point.kind in _READ)
        or _check_assertions(run.case, world)
    )
    if finding is not None:
        return finding
    job = disturbed.host.job
    assert job is not None
    if outlasts:
        pass  # only what must hold of every job
    elif checks.view is None:
        finding = reference.expected.compare(view_of(job, world))
    else:
        difference = first_difference(reference.custom, checks.view(Outcome(job, world.calls)))
        if difference is not None:
            what = f"view(outcome) differs: {difference}"
            finding = Finding("view-differs", what, difference.path)
    return finding or check_invariant(checks, job, world)


def check_invariant(checks: Checks, job: JobState, world: World) -> Finding | None:
    """Return a finding if the test's `invariant` does not hold."""
    if checks.invariant is None:
        return None
    try:
        held = checks.invariant(Outcome(job, world.calls))
    except AssertionError as error:
        why = str(error).splitlines()[0] if str(error) else "its assertion failed"
    else:
        if held is None or held:
            return None
        why = f"the function returned {held!r}"
    return Finding("invariant", f"the invariant does not hold: {why}", "invariant")


def check_end(job: JobState, checks: Checks) -> Finding | None:
    """Return a finding if the undisturbed job did not end as the test says."""
    if checks.ends is None or checks.ends is job.status:
        return None
    why = "" if job.error is None else f": {error_text(job.error)}"
    where = "" if job.error is None else job.error.where or ""
    what = f"the undisturbed job {job.status}{why}"
    if checks.ends is not JobStatus.COMPLETED:
        what = (
            f"the undisturbed job {job.status}, but the test says ends={checks.ends.value!r}{why}"
        )
    return Finding("unexpected-end", what, "status", hint=where)


def _check_assertions(case: Case, world: World) -> Finding | None:
    found = failed_assertion(world.commits) if case.assertions else None
    if found is None:
        return None
    commit, what = found
    routine = commit.routine_id
    where = "" if commit.error is None else commit.error.where or ""
    return Finding("failed-assertion", what, f"assertions.{routine}", routine, hint=where)


def check_undisturbed(run: Undisturbed) -> Finding | None:
    """Return the most important finding on a run without a crash."""
    finding = (
        run.host.store_finding
        or _check_engine(run, run.world, [run.host])
        or _check_assertions(run.case, run.world)
    )
    if finding is not None:
        return finding
    for commit in run.world.commits:
        error = commit.error
        if error is None or RAISED_BY_ENGINE.get(error.type) in (None, StepTimeoutError):
            continue
        routine = commit.routine_id
        what = f"{routine}: {error.message} ({bare_name(error.type)})"
        return Finding("mistake", what, f"mistake.{routine}", routine)
    error = run.job.error
    if error is None or error.type != error_name(PoisonJobError):
        return None
    if any(isinstance(fault, StoreFails) for fault in run.case.faults):
        return None  # the test itself ends the hosts
    return Finding("stuck", f"each host that resumes the job ends: {error.message}", "stuck")


def check_variation(
    run: Undisturbed, world: World, hosts: Sequence[Host], variation: Variation
) -> Finding | None:
    """Return a finding if an undisturbed run with a perturbation breaks a rule or does not end."""
    finding = hosts[-1].store_finding or _check_engine(run, world, hosts)
    if finding is None or not variation.text:
        return finding
    return replace(finding, what=f"{variation.text}: {finding.what}")


def _check_engine(
    run: Undisturbed, world: World, hosts: Sequence[Host], *, reading: bool = True
) -> Finding | None:
    rule = broken_rule(world, hosts, run.case, reading=reading)
    if rule is not None:
        return rule
    for host in hosts:
        if host.findings:
            return host.findings[0]
        if host.leaked_threads:
            routine, thread, where = host.leaked_threads[0]
            what = f"{routine} {thread} outlives the step"
            return Finding("leaked-thread", what, f"threads.{routine}", routine, hint=where)
    last = hosts[-1]
    if last.error is not None or last.job is None:
        why = "the host has no job" if last.error is None else error_text(last.error)
        return Finding("stuck", f"the job can't be resumed: {why}", "stuck")
    stored, held = world.commits, last.job.commits
    if len(stored) != len(held) or not same_value(stored[-1], held[-1]):
        what = (
            f"the {len(held)} commits in the host's memory differ from the {len(stored)} commits"
            " in the store"
        )
        return Finding("engine-rule", what, "engine")
    return None
