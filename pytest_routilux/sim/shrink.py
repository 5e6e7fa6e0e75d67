"""The smallest cause of a finding: fewer faults first, then the simplest and earliest crash.

Invariants:
- While it shrinks, the finding's kind, its routine and the first place that differs stay the same.
- What is given back was run: no cause is called smaller than it was seen to be.
- The same case shrinks to the same cause, in no more runs than it is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import check_disturbed, explore, run_reference
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.results import Coverage, Exploration
from pytest_routilux.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_routilux.sim.results import Checks, Reference
    from pytest_routilux.sim.simulator.model import Case, CrashPoint, Disturbed, Finding, Signature

__all__ = ["Cause", "shrink"]

_MOST_RUNS: Final = 2_000
_ELSEWHERE: Final = ("module-state",)
"""Kinds that only a run in another process shows."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The smallest cause that was found; without `point` it shows in a run that nothing disturbs.

    `faults` are the numbers, from 1, of the case's faults that it needs. `exploration` tells of
    the undisturbed run with those alone, and of all that was tried with all of them. `runs` is how
    many runs of the flow shrinking took, `text` what the cause was before, None where that was it.
    """

    point: CrashPoint | None
    finding: Finding
    faults: tuple[int, ...]
    exploration: Exploration
    runs: int = 0
    text: str | None = None


def shrink(
    exploration: Exploration,
    case: Case,
    start_ns: int,
    checks: Checks,
    finding: Finding | None = None,
) -> Cause:
    """Return the smallest cause of a finding of an exploration, by default of its first."""
    known = exploration.reference
    kept = tuple(range(1, len(case.faults) + 1))
    if finding is None:
        finding = known.finding or exploration.failures[0][1]
    signature = finding.signature
    same = [failure for failure in exploration.failures if failure[1].signature == signature]
    if known.finding is None:
        first = same[0][0]
        found = min(same, key=lambda failure: failure[0].simplicity)
        best = Cause(*found, kept, exploration)
    else:
        first = None
        best = Cause(None, finding, kept, exploration)
    documents = "by document" in exploration.coverage.planned
    search = _Search(case, start_ns, checks, signature, documents=documents)
    number = len(kept)
    while number and search.counted.runs < _MOST_RUNS:
        smaller = search.tried(tuple(n for n in best.faults if n != number))
        if smaller is None:
            number = max((n for n in best.faults if n < number), default=0)
        else:
            reference_, disturbed, finding = smaller
            point = None if disturbed is None else disturbed.point
            kept_run = {} if disturbed is None else {signature: disturbed}
            tried = replace(exploration, reference=reference_, disturbed=kept_run)
            best = Cause(point, finding, tuple(n for n in best.faults if n != number), tried)
            number = max(best.faults, default=0)
    text = None
    if best.faults != kept or _crashes(first) != _crashes(best.point):
        text = cause_text(_crashes(first), len(kept))
    return replace(best, runs=search.counted.runs, text=text)


def cause_text(crashes: int, faults: int) -> str:
    """Return how large a cause is, in words.

    >>> cause_text(2, 1)
    '2 crashes + 1 fault'
    """
    return f"{count(crashes, 'crash', 'crashes')} + {count(faults, 'fault')}"


class _Search:
    """Looks for the finding in the same case with fewer faults."""

    def __init__(
        self, case: Case, start_ns: int, checks: Checks, signature: Signature, *, documents: bool
    ) -> None:
        self._case = case
        self._start_ns = start_ns
        self._checks = checks
        self._signature = signature
        self._documents = documents
        self.counted = Coverage()

    def tried(self, faults: Iterable[int]) -> tuple[Reference, Disturbed | None, Finding] | None:
        """Return where the finding is with these faults alone, by the simplest crash there is."""
        case = replace(self._case, faults=tuple(self._case.faults[n - 1] for n in faults))
        if self._signature[0] in _ELSEWHERE:
            return self._elsewhere(case)
        known = run_reference(case, self._start_ns, self._checks, self.counted)
        if known.finding is not None:
            same = known.finding.signature == self._signature
            return (known, None, known.finding) if same else None
        points = crash_points(known.run, documents=self._documents)
        for point in sorted(points, key=lambda point: point.simplicity):
            if self.counted.runs >= _MOST_RUNS:
                return None
            disturbed = recover(known.run, point)
            self.counted.runs += len(disturbed.hosts)
            finding = check_disturbed(known, disturbed, self._checks)
            if finding is not None and finding.signature == self._signature:
                return known, disturbed, finding
        return None

    def _elsewhere(self, case: Case) -> tuple[Reference, Disturbed | None, Finding] | None:
        tried = explore(case, self._start_ns, self._checks)
        self.counted.runs += tried.coverage.runs
        disturbed = tried.disturbed.get(self._signature)
        if disturbed is None:
            return None
        finding = next(f for _, f in tried.failures if f.signature == self._signature)
        return tried.reference, disturbed, finding


def _crashes(point: CrashPoint | None) -> int:
    return 0 if point is None else 2 if point.kind == "in a recovery" else 1
