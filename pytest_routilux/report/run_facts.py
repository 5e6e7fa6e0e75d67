"""What one run of a test tells: its reports, its simulations, and the facts of its jobs.

Laws:
- A run has one `RunFacts`. A test that is run again begins anew, and nothing is told twice.
- Facts are counted where the test runs, once its fixtures are gone, and travel with its last
  report. Of a run that is broken off they are what is known by then.
- Virtual time is what the test's clocks went on, and what its simulated runs took, in exact
  nanoseconds. Real time goes from the first fixture of ours to the end of the last one.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux import FakeClock, JobState, Observer

__all__ = ["OPEN_RUN", "RUN_FACTS", "RunFacts", "facts_of"]

RUN_FACTS: Final = pytest.StashKey["RunFacts"]()  # of a test: the facts of its present run
OPEN_RUN: Final = pytest.StashKey["RunFacts"]()  # of the session: the run that has not ended yet
_HEAD: Final = "routilux_"
_COUNTS: Final = ("jobs", "commits", "retries")
_PROPERTIES: Final = {f"{_HEAD}{name}" for name in (*_COUNTS, "virtual_seconds", "crash_points")}


def facts_of(item: pytest.Item) -> RunFacts:
    """Return what the present run of a test tells."""
    told = item.stash.get(RUN_FACTS, None)
    if told is None:
        told = item.stash[RUN_FACTS] = item.config.stash[OPEN_RUN] = RunFacts()
    return told


class RunFacts:
    """Collects what a run tells, until its reports take it along."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.simulations: list[dict[str, Any]] = []
        self._begun_ns = perf_counter_ns()
        self._clock_name: str | None = None
        self._clocks: list[FakeClock] = []
        self._monitors: list[Observer] = []
        self._simulated: list[JobState] = []
        self._tried: Counter[str] = Counter()
        self._facts: dict[str, int] = {}  # at its end

    def refuse_two_clocks(self, name: str) -> None:
        """Fail the test if it has the other clock already."""
        if self._clock_name not in (None, name):
            pytest.fail(
                "this test uses flow_clock and flow_clock_bare, which are two clocks with a time"
                " each; keep flow_clock if user code asks time or datetime, else flow_clock_bare",
                pytrace=False,
            )
        self._clock_name = name

    def add_clock(self, clock: FakeClock) -> None:
        """Count the time of a clock that starts now."""
        self._clocks.append(clock)

    def add_monitor(self, monitor: Observer) -> None:
        """Count the jobs of a monitor; of an observer that keeps no commits nothing is known."""
        if not any(monitor is known for known in self._monitors):
            self._monitors.append(monitor)

    def add_simulated_job(self, job: JobState) -> None:
        """Count a job that ran in a simulation, with its time."""
        self._simulated.append(job)

    def add_simulation(self, simulation: dict[str, Any]) -> None:
        """Add what was tried of a flow: crash points planned and executed."""
        self.simulations.append(simulation)
        for name in ("planned", "executed"):
            self._tried[name] += sum(simulation[name].values())

    def end(self, item: pytest.Item, *, properties: bool) -> None:
        """Take the run as ended; its last report, made next, has the facts as properties."""
        del item.stash[RUN_FACTS]
        del item.config.stash[OPEN_RUN]
        # Those of an earlier run of the same test are its own.
        kept = [(name, value) for name, value in item.user_properties if name not in _PROPERTIES]
        self._facts = self.counts()
        item.user_properties[:] = kept + (_properties(self._facts) if properties else [])

    def attach_to(self, report: pytest.TestReport, *, passing: bool, failing: bool) -> None:
        """Let a report take along what there is, for the process that prints.

        xdist sends every attribute of a report.
        """
        taken = vars(report)
        if self.simulations:
            taken["flow_simulations"] = self.simulations
            self.simulations = []
        wanted = failing if report.failed else passing and report.when != "setup"
        if self.parts and wanted:
            taken["flow_report"] = "\n".join(self.parts)
            self.parts.clear()
        if self._facts:
            taken["flow_facts"] = self._facts

    def counts(self) -> dict[str, int]:
        """Return the counts by name, lengths of time in nanoseconds; empty if all are zero."""
        if not (self._clocks or self._monitors or self._simulated or self._tried):
            return {}
        from routilux import ExecutionMonitor

        monitors = [m for m in self._monitors if isinstance(m, ExecutionMonitor)]
        monitors += map(ExecutionMonitor.of, self._simulated)
        facts = {
            "jobs": sum(len({job_id for job_id, _ in m.commits}) for m in monitors),
            "commits": sum(len(m.commits) for m in monitors),
            "retries": sum(len(m.retries) for m in monitors),
            "virtual_ns": sum(clock.monotonic_ns() for clock in self._clocks)
            + sum(job.updated_ns - job.started_ns for job in self._simulated),
            **self._tried,
        }
        if any(facts.values()):
            facts["real_ns"] = perf_counter_ns() - self._begun_ns
            return facts
        return {}


def _properties(facts: Mapping[str, int]) -> list[tuple[str, object]]:
    """Return facts as what a report for machines says of a test, each under a name of ours."""
    told: list[tuple[str, object]] = []
    if facts.get("jobs") or facts.get("virtual_ns"):
        told += [(f"{_HEAD}{name}", facts[name]) for name in _COUNTS]
        seconds = Decimal(facts["virtual_ns"]).scaleb(-9).normalize()
        told.append((f"{_HEAD}virtual_seconds", f"{seconds:f}"))
    if facts.get("planned"):
        told.append((f"{_HEAD}crash_points", f"{facts['executed']} of {facts['planned']}"))
    return told
