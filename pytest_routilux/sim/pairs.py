"""Crashes a job twice: the run that follows a crash is crashed again, at each of its own points.

Invariants:
- Both hosts that die leave what the store holds. A crash in a sleep, an hour without a host, a
  refusal of the store, a resume from a document and a crash in a recovery, which is a pair itself,
  are tried alone.
- A pair is left out only if it can't differ: a run that was tried before was at the same point of
  the same task, with the same job and the same calls, but for what varies with time alone. With
  `fresh`, what lies outside may differ, so no pair is left out.
- Pairs are tried only if no single crash shows a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.oracle import canonical, masked, unordered, view_of
from pytest_routilux.sim.recovery import recover, run_recovered
from pytest_routilux.sim.results import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.sim.results import Checks, Exploration, Reference
    from pytest_routilux.sim.simulator.model import CrashPoint, Disturbed, Finding, Undisturbed

PAIRS: Final = "pairs of crashes"
"""The name of the pairs in a coverage."""
_ALONE: Final = (
    "in a sleep",
    "no host",
    "in a recovery",
    "by document",
    "store refuses",
    "store does not answer",
)
"""Kinds of crash points that are tried without a second crash."""


def crash_pairs(
    run: Undisturbed, points: Sequence[CrashPoint], checks: Checks, result: Exploration
) -> Iterator[tuple[Disturbed, Finding | None]]:
    """Crash a run at each of `points`, and the run that follows at each of its own points.

    Yields each run, with the most important finding.
    """
    coverage = result.coverage
    budget, known = Budget(checks.scope), _Known(result.reference)
    singles = [point for point in points if point.kind not in _ALONE]
    for point in singles:
        known.adds(run, point)
    firsts = checks.scope.part(list(_different(run, singles)))
    for number, first in enumerate(firsts, 1):
        again, seconds = second_points(run, first)
        coverage.runs += 1
        for second in seconds:
            if not known.adds(again, second):
                continue
            if budget.over():
                coverage.pairs_left = 1 + len(firsts) - number
                return
            budget.used += 1
            yield try_pair(again, second, checks, result)


def second_points(run: Undisturbed, first: CrashPoint) -> tuple[Undisturbed, list[CrashPoint]]:
    """Crash a run at `first`; return the run that follows, and its crash points."""
    again = run_recovered(run, recover(run, first))
    points = crash_points(again, documents=False)
    return again, [point for point in points if point.kind not in _ALONE]


def try_pair(
    again: Undisturbed, second: CrashPoint, checks: Checks, result: Exploration
) -> tuple[Disturbed, Finding | None]:
    """Crash a run that follows a crash; return what it does, and the most important finding."""
    coverage = result.coverage
    coverage.planned[PAIRS] += 1
    disturbed = recover(again, second)
    coverage.runs += len(disturbed.hosts)
    coverage.executed[PAIRS] += disturbed.executed
    return disturbed, check_disturbed(result.reference, disturbed, checks)


def _different(run: Undisturbed, points: Sequence[CrashPoint]) -> Iterator[CrashPoint]:
    """Yield the points that leave different commits or calls, or resume at another instant."""
    known = set()
    for point in points:
        name = point.name if run.case.fresh is not None else None
        left = point.commits, point.calls, point.resume_ns, name
        if left not in known:
            known.add(left)
            yield point


class _Known:
    """The crashes that were tried, each with what it leaves to the next host."""

    def __init__(self, reference: Reference) -> None:
        self._trie = reference.trie
        self._ordered = reference.ordered
        self._tried: set[tuple[object, ...]] = set()
        self._run: Undisturbed | None = None
        self._left: dict[tuple[int, int], str] = {}  # of `_run`, by commits and calls

    def adds(self, run: Undisturbed, point: CrashPoint) -> bool:
        """Add a crash; return whether it may differ from those before."""
        if run.case.fresh is not None:
            return True
        crash = point.kind, point.name, self._left_by(run, point)
        if crash in self._tried:
            return False
        self._tried.add(crash)
        return True

    def _left_by(self, run: Undisturbed, point: CrashPoint) -> str:
        if run is not self._run:
            self._run = run
            self._left.clear()
        at = point.commits, point.calls
        if at not in self._left:
            job, world = run.states[point.commits], run.world.cut(*at, point.at_ns)
            view = masked(view_of(job, world), self._trie)
            pending = [waiting.task.task_id for waiting in job.pending_tasks]
            keys = [call.key for call in world.calls]
            left = [view, pending, keys, job.recoveries]
            self._left[at] = canonical(left if self._ordered else unordered(left))
        return self._left[at]
