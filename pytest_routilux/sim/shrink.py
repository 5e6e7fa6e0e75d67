"""Finds the fewest faults, the order nearest to FIFO and the simplest crash that cause a finding.

Invariants:
- The smaller cause shows a finding of the same kind, the same routine and the same first path.
- The smaller cause was run, and its run showed that finding.
- The same case shrinks to the same cause, in at most `_MOST_RUNS` runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.orders.races import OrderChecks
from pytest_routilux.sim.orders.try_orders import OrderRuns
from pytest_routilux.sim.other_hosts import OF_HOSTS
from pytest_routilux.sim.pairs import crash_pairs
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Coverage, Exploration
from pytest_routilux.sim.simulator.scheduler import FIFO_ORDER, StaleTapeError, Tape
from pytest_routilux.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pytest_routilux.sim.results import Checks, Reference
    from pytest_routilux.sim.simulator.model import Case, CrashPoint, Disturbed, Finding, Signature
    from pytest_routilux.sim.simulator.scheduler import Order

_MOST_RUNS: Final = 2_000
_MOST_SINGLES: Final = 200
_WHOLE_SEARCH: Final = ("module-state", *OF_HOSTS)
"""Kinds of findings that only a run in another process or on another host shows."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The smallest cause of a finding.

    `faults` are the numbers, from 1, of the case's faults that it needs. `exploration` has the
    undisturbed run with those faults alone, and the coverage with all faults. `runs` is the number
    of runs that shrinking took, `text` the size of the cause before, None if it did not shrink.
    `order` is the order of the work.
    """

    point: CrashPoint | None  # None: no crash is needed
    finding: Finding
    faults: tuple[int, ...]
    exploration: Exploration
    runs: int = 0
    text: str | None = None
    order: Order = FIFO_ORDER


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
    best = search.with_nearest_order(best)
    text = None
    before, after = _order_of(exploration, signature), best.order
    if (best.faults, _crashes(best.point), after) != (all_faults, _crashes(first), before):
        crashes = count(_crashes(first), "crash", "crashes")
        choices = f" + {count(before.size, 'choice')}" if isinstance(before, Tape) else ""
        text = f"{crashes}{choices} + {count(len(all_faults), 'fault')}"
    return replace(best, runs=search.coverage.runs, text=text)


def _order_of(exploration: Exploration, signature: Signature) -> Order:
    disturbed = exploration.disturbed.get(signature) or exploration.reference.disturbed
    return FIFO_ORDER if disturbed is None else disturbed.order


_Shown: TypeAlias = "tuple[Finding, Disturbed] | None"
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
        for disturbed, finding in self._crashes(reference):
            if finding is not None and finding.signature == self._signature:
                return reference, disturbed, finding
            if self.coverage.runs >= _MOST_RUNS:
                return None
        return None

    def _crashes(self, reference: Reference) -> Iterator[tuple[Disturbed, Finding | None]]:
        """Yield the runs with one crash, the simplest first, then those with two."""
        run, checks = reference.run, self._checks
        points = crash_points(run, documents=self._documents)
        for point in sorted(points, key=lambda point: point.simplicity):
            disturbed = recover(run, point)
            self.coverage.runs += len(disturbed.hosts)
            yield disturbed, check_disturbed(reference, disturbed, checks)
        if checks.scope.crashes == "pairs":
            found = Exploration(reference, [], self.coverage)
            yield from crash_pairs(run, points, checks, found)

    def with_nearest_order(self, cause: Cause) -> Cause:
        """Return `cause` in an order with as few deviations from FIFO as can be found."""
        exploration, signature = cause.exploration, self._signature
        order = _order_of(exploration, signature)
        if not isinstance(order, Tape):
            return replace(cause, order=order)
        case = replace(self._case, faults=tuple(self._case.faults[n - 1] for n in cause.faults))
        reference = exploration.reference
        shows: Callable[[Tape], _Shown]
        if cause.point is None:
            shows, singles = self._order_alone(case, reference, serial=order.serial)
        else:
            shows, singles = partial(self._crash_in_order, reference, cause.point), []
        best = self._nearest(order, shows, singles)
        if best is None:
            return replace(cause, order=order)
        finding, disturbed = best
        if cause.point is None:
            reference = replace(reference, finding=finding, disturbed=disturbed)
        runs = {**exploration.disturbed, signature: disturbed}
        exploration = replace(exploration, reference=reference, disturbed=runs)
        return Cause(disturbed.point, finding, cause.faults, exploration, order=disturbed.order)

    def _order_alone(
        self, case: Case, reference: Reference, *, serial: bool
    ) -> tuple[Callable[[Tape], _Shown], list[Tape]]:
        """Return how to run an order without a crash, and the orders with one deviation."""
        scope = replace(self._checks.scope, tape=None)
        run = replace(reference.run, case=case)
        checks = OrderChecks(run, replace(self._checks, scope=scope), reference.time_mask)
        runs = OrderRuns(self._start_ns, checks, self.coverage)
        runs.run_serially()
        base = Tape({}, serial)
        runs.shows(base)
        singles = [
            Tape({at: index}, serial)
            for at, choice in enumerate(runs.choices)
            for index in range(1, len(choice.tasks))
        ]
        return runs.shows, [base, *singles[:_MOST_SINGLES]]

    def _crash_in_order(self, reference: Reference, point: CrashPoint, tape: Tape) -> _Shown:
        run = run_undisturbed(reference.run.case, self._start_ns, tape)
        self.coverage.runs += 1
        for other in crash_points(run, documents=self._documents):
            if other.name == point.name:
                disturbed = recover(run, other)
                self.coverage.runs += len(disturbed.hosts)
                finding = check_disturbed(reference, disturbed, self._checks)
                return None if finding is None else (finding, disturbed)
        return None

    def _nearest(
        self, order: Tape, shows: Callable[[Tape], _Shown], singles: Sequence[Tape]
    ) -> _Shown:
        """Return the finding in the order with the fewest deviations that was found."""

        def tried(tape: Tape) -> _Shown:
            try:
                found = shows(tape)
            except StaleTapeError:
                return None
            same = found is not None and found[0].signature == self._signature
            return found if same else None

        for tape in singles:
            if tape.size < order.size and (found := tried(tape)) is not None:
                return found
        best, left = None, dict(order.deviations)
        size = len(left)
        while size:
            for start in range(0, len(left), size):
                dropped = set(list(left)[start : start + size])
                kept = {at: index for at, index in left.items() if at not in dropped}
                found = tried(Tape(kept, order.serial))
                if found is not None:
                    best, left = found, kept
                    break
            else:
                size //= 2
            size = min(size, len(left))
        return best or tried(order)

    def _explore_forked(self, case: Case) -> _Found:
        tried = explore(case, self._start_ns, self._checks)
        self.coverage.runs += tried.coverage.runs
        disturbed = tried.disturbed.get(self._signature)
        if disturbed is None:
            return None
        finding = next(f for _, f in tried.failures if f.signature == self._signature)
        return tried.reference, disturbed, finding


def _crashes(point: CrashPoint | None) -> int:
    return 0 if point is None else point.crashes
