"""Finds the fewest faults and the simplest crash that cause a finding.

Invariants:
- The smaller cause shows a finding of the same kind, the same routine and the same first path.
- The smaller cause was run, and its run showed that finding.
- The same case shrinks to the same cause, in at most `_MOST_RUNS` runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.other_hosts import OF_HOSTS
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.results import Coverage, Exploration
from pytest_routilux.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_routilux.sim.results import Checks, Reference
    from pytest_routilux.sim.simulator.model import Case, CrashPoint, Disturbed, Finding, Signature

_MOST_RUNS: Final = 2_000
_WHOLE_SEARCH: Final = ("module-state", *OF_HOSTS)
"""Kinds of findings that only a run in another process or on another host shows."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The smallest cause of a finding.

    `faults` are the numbers, from 1, of the case's faults that it needs. `exploration` has the
    undisturbed run with those faults alone, and the coverage with all faults. `runs` is the number
    of runs that shrinking took, `text` the size of the cause before, None if it did not shrink.
    """

    point: CrashPoint | None  # None: no crash is needed
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
    finding: Finding | None = None,  # None: the first one
) -> Cause:
    """Return the smallest cause of `finding`."""
    reference = exploration.reference
    finding = finding or reference.finding or exploration.failures[0][1]
    signature = finding.signature
    all_faults = tuple(range(1, len(case.faults) + 1))
    first = None
    best = Cause(None, finding, all_faults, exploration)
    if reference.finding is None:
        same = [failed for failed in exploration.failures if failed[1].signature == signature]
        first = same[0][0]
        simplest = min(same, key=lambda failed: failed[0].simplicity)
        best = Cause(*simplest, all_faults, exploration)
    documents = "by document" in exploration.coverage.planned
    search = _Search(case, start_ns, checks, signature, documents=documents)
    number = len(all_faults)
    while number and search.coverage.runs < _MOST_RUNS:
        faults = tuple(n for n in best.faults if n != number)
        smaller = search.run_with(faults)
        if smaller is None:
            number = max((n for n in best.faults if n < number), default=0)
            continue
        reference, disturbed, finding = smaller
        point = None if disturbed is None else disturbed.point
        runs = {} if disturbed is None else {signature: disturbed}
        tried = replace(exploration, reference=reference, disturbed=runs)
        best = Cause(point, finding, faults, tried)
        number = max(faults, default=0)
    text = None
    if best.faults != all_faults or _crashes(first) != _crashes(best.point):
        crashes = count(_crashes(first), "crash", "crashes")
        text = f"{crashes} + {count(len(all_faults), 'fault')}"
    return replace(best, runs=search.coverage.runs, text=text)


_Found: TypeAlias = "tuple[Reference, Disturbed | None, Finding] | None"


class _Search:
    """Checks whether a finding still occurs with fewer faults."""

    def __init__(
        self, case: Case, start_ns: int, checks: Checks, signature: Signature, *, documents: bool
    ) -> None:
        self._case = case
        self._start_ns = start_ns
        self._checks = checks
        self._signature = signature
        self._documents = documents
        self.coverage = Coverage()

    def run_with(self, faults: Iterable[int]) -> _Found:
        """Return the simplest run that shows the finding with only `faults`."""
        case = replace(self._case, faults=tuple(self._case.faults[n - 1] for n in faults))
        if self._signature[0] in _WHOLE_SEARCH:
            return self._explore_forked(case)
        reference = run_reference(case, self._start_ns, self._checks, self.coverage)
        if reference.finding is not None:
            same = reference.finding.signature == self._signature
            return (reference, None, reference.finding) if same else None
        points = crash_points(reference.run, documents=self._documents)
        for point in sorted(points, key=lambda point: point.simplicity):
            if self.coverage.runs >= _MOST_RUNS:
                return None
            disturbed = recover(reference.run, point)
            self.coverage.runs += len(disturbed.hosts)
            finding = check_disturbed(reference, disturbed, self._checks)
            if finding is not None and finding.signature == self._signature:
                return reference, disturbed, finding
        return None

    def _explore_forked(self, case: Case) -> _Found:
        tried = explore(case, self._start_ns, self._checks)
        self.coverage.runs += tried.coverage.runs
        disturbed = tried.disturbed.get(self._signature)
        if disturbed is None:
            return None
        finding = next(f for _, f in tried.failures if f.signature == self._signature)
        return tried.reference, disturbed, finding


def _crashes(point: CrashPoint | None) -> int:
    return 0 if point is None else 2 if point.kind == "in a recovery" else 1
