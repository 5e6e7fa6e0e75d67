"""Lets the next host differ from the one that died, and finds what a job depends on.

Invariants:
- The next host after a write has another time zone, host name and process id. What is found there
  is tried again on a host like the first: a crash that makes the difference is no matter of hosts.
- A finding names one difference that alone makes it. Differences are tried one at a time.
- An environment variable is changed only if the code of the user reads it, and it is a finding only
  if its value reaches the job or a call: a variable that configures all hosts alike is none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.oracle import Expected, canonical, trie_of, view_of
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.sim.simulator.other_host import ANOTHER, TRAITS, OtherHost, Read, Trait

if TYPE_CHECKING:
    from pytest_routilux.sim.oracle import Trie
    from pytest_routilux.sim.results import Checks, Coverage, Reference
    from pytest_routilux.sim.simulator.model import CrashPoint, Disturbed, Undisturbed

_NAMES: Final[dict[Trait, str]] = {
    "zone": "local time zone",
    "host-name": "name",
    "process-id": "process id",
}
OF_HOSTS: Final = (*TRAITS, "other-host")
"""The kinds of findings that only another host shows."""
_MOST_POINTS, _MOST_TRIES = 12, 96  # for environment variables


class OtherHosts:
    """Recovers crash points of one reference run on hosts that differ."""

    def __init__(
        self, reference: Reference, run: Undisturbed, checks: Checks, coverage: Coverage
    ) -> None:
        self._reference = reference
        self._run = run
        self._checks = checks
        self._coverage = coverage
        self._other = OtherHost(*TRAITS)
        self._points: list[CrashPoint] = []
        same = reference.steady_mask == reference.mask
        self._steady = None if same else trie_of(reference.steady_mask)

    def recover(self, point: CrashPoint) -> tuple[Disturbed, Finding | None]:
        """Crash a job at `point` and resume it; return the run and the most important finding."""
        if point.kind not in ("after a write", "before a write") or not point.commits:
            return self._recovered(point, None)
        self._other.west = west = point.kind == "before a write"
        if not self._points:
            self._steady = self._steady and self._if_watched(point)
        self._points.append(point)
        disturbed, finding = self._recovered(point, self._other)
        if finding is None and self._steady is None:
            return disturbed, None
        plain, usual = self._recovered(point, None)
        if usual is not None or disturbed.host.job is None:
            return plain, usual
        finding = finding or self._compared(plain, disturbed)
        if finding is None:
            return disturbed, None
        for trait, name in _NAMES.items():
            host = OtherHost(trait, west=west, watches_time=True)
            alone, found = self._recovered(point, host)
            found = found or self._compared(plain, alone)
            if found is not None:
                return alone, _named(trait, name, found, host.read_by(trait, found.routine))
        read = Read("", finding.routine, finding.hint)
        return disturbed, _named("other-host", "zone, name and process id", finding, read)

    def _if_watched(self, point: CrashPoint) -> Trie | None:
        """Return what varies at the usual pace if a handler asks for what differs on hosts."""
        host = OtherHost(*_NAMES, watches_time=True)
        self._recovered(point, host)
        return self._steady if host.reads and self._checks.view is None else None

    def _compared(self, plain: Disturbed, other: Disturbed) -> Finding | None:
        """Compare two recoveries whose steps take equally long; the start may matter, no more."""
        if self._steady is None or plain.host.job is None or other.host.job is None:
            return None
        view = view_of(plain.host.job, plain.world)
        expected = Expected(view, self._steady, ordered=self._reference.ordered)
        finding = expected.compare(view_of(other.host.job, other.world))
        if finding is not None:
            finding.what = finding.what.replace("without a crash", "on a host like the first")
            finding.what = finding.what.replace("with this crash", "on this host")
        return finding

    def environment(self) -> tuple[Finding, Disturbed] | None:
        """Return a finding if the value of an environment variable reaches the job or a call."""
        reads = dict.fromkeys(read.what for read in self._other.reads)
        names = [name for name in reads if name not in TRAITS]
        tries = [(name, point) for name in names for point in self._points[:_MOST_POINTS]]
        for name, point in tries[:_MOST_TRIES]:
            host = OtherHost("environment", variables=frozenset({name}))
            disturbed, finding = self._recovered(point, host)
            if finding is None or disturbed.host.job is None:
                continue
            keys = [call.key for call in disturbed.world.calls]
            if ANOTHER in canonical([view_of(disturbed.host.job, disturbed.world), keys]):
                read = host.read_by(name, finding.routine)
                what = f"environment variable {name}"
                return _named("environment", what, finding, read), disturbed
        return None

    def _recovered(
        self, point: CrashPoint, host: OtherHost | None
    ) -> tuple[Disturbed, Finding | None]:
        run = self._run
        if host is not None:
            run = replace(run, case=replace(run.case, other_host=host))
        disturbed = recover(run, point)
        self._coverage.runs += len(disturbed.hosts)
        return disturbed, check_disturbed(self._reference, disturbed, self._checks)


def _named(kind: str, what: str, finding: Finding, read: Read) -> Finding:
    routine = read.routine or finding.routine
    text = f"{routine or 'the job'} depends on the {what} of its host: {finding.what}"
    where = read.where or finding.hint
    return replace(finding, kind=kind, what=text, routine=routine, hint=where)
