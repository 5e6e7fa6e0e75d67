"""Facts about one run of a test, for reports.

Invariants:
- A run has one `RunFacts`. A test that is run again gets a new one, and no fact is reported twice.
- Facts are counted after the teardown of the fixtures and travel with the last report of the test.
  A run that is interrupted has the facts that are known by then.
- Virtual time is the sum over the test's clocks and its simulated runs, in nanoseconds. Real time
  is from the first fixture of the plugin to the end of the last one.
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

RUN_FACTS: Final = pytest.StashKey["RunFacts"]()  # of a test: the facts of its present run
OPEN_RUN: Final = pytest.StashKey["RunFacts"]()  # of the session: the run that has not ended yet
_HEAD: Final = "routilux_"
_COUNTS: Final = ("jobs", "commits", "retries")
_PROPERTIES: Final = {f"{_HEAD}{name}" for name in (*_COUNTS, "virtual_seconds", "crash_points")}


def facts_of(item: pytest.Item) -> RunFacts:
    """Return the `RunFacts` of a test's current run."""
    facts = item.stash.get(RUN_FACTS, None)
    if facts is None:
        facts = item.stash[RUN_FACTS] = item.config.stash[OPEN_RUN] = RunFacts()
    return facts


class RunFacts:
    """Collects facts about one run of a test."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.simulations: list[dict[str, Any]] = []
        self.kept: list[str] = []  # real functions of time that definitions keep
        self._started_ns = perf_counter_ns()
        self._clock_name: str | None = None
        self._clocks: list[FakeClock] = []
        self._monitors: list[Observer] = []
        self._simulated: list[JobState] = []
        self._tried: Counter[str] = Counter()
        self._counts: dict[str, int] = {}  # empty until the run ends

    def refuse_two_clocks(self, name: str) -> None:
        """Fail a test that uses both `flow_clock` and `flow_clock_bare`."""
        if self._clock_name not in (None, name):
            pytest.fail(
                "this test uses both flow_clock and flow_clock_bare, which show different"
                " times; keep flow_clock if your code uses time or datetime, else"
                " flow_clock_bare",
                pytrace=False,
            )
        self._clock_name = name

    def refuse_other_clock(self, clock: object) -> None:
        """Fail a test whose project replaces the clock of `flow_clock` by another one."""
        if not any(clock is known for known in self._clocks):
            pytest.fail(
                f"the fixture flow_clock of this project returns {clock!r}, a clock that time and"
                " datetime do not follow; let the fixture take flow_clock as its argument and"
                " return it, or remove the fixture and set the start by the marker flow_time",
                pytrace=False,
            )

    def add_clock(self, clock: FakeClock) -> None:
        """Count the virtual time of `clock`."""
        self._clocks.append(clock)

    def add_monitor(self, monitor: Observer) -> None:
        """Count the jobs of `monitor`."""
        if not any(monitor is known for known in self._monitors):
            self._monitors.append(monitor)

    def add_simulated_job(self, job: JobState) -> None:
        """Count a simulated job and its virtual time."""
        self._simulated.append(job)

    def add_simulation(self, simulation: dict[str, Any]) -> None:
        """Add a simulation's result, and count the crash points."""
        self.simulations.append(simulation)
        for name in ("planned", "executed"):
            self._tried[name] += sum(simulation[name].values())

    def end(self, item: pytest.Item, *, properties: bool) -> None:
        """Count the facts of the ended run."""
        del item.stash[RUN_FACTS]
        del item.config.stash[OPEN_RUN]
        # Properties are for --junitxml; those of an earlier run of the same test are removed.
        kept = [(name, value) for name, value in item.user_properties if name not in _PROPERTIES]
        self._counts = self.counts()
        item.user_properties[:] = kept + (_properties(self._counts) if properties else [])

    def attach_to(self, report: pytest.TestReport, *, passing: bool, failing: bool) -> None:
        """Attach to `report` all facts since the run's previous report."""
        attributes = vars(report)
        if self.simulations:
            attributes["flow_simulations"] = self.simulations
            self.simulations = []
        if self.kept:
            attributes["flow_kept"] = self.kept
            self.kept = []
        wanted = failing if report.failed else passing and report.when != "setup"
        if self.parts and wanted:
            attributes["flow_report"] = "\n".join(self.parts)
            self.parts.clear()
        if self._counts:
            attributes["flow_facts"] = self._counts

    def counts(self) -> dict[str, int]:
        """Return counts and durations (ns) by name; {} if all are zero."""
        if not (self._clocks or self._monitors or self._simulated or self._tried):
            return {}
        from routilux import ExecutionMonitor, JobStatus

        monitors = [m for m in self._monitors if isinstance(m, ExecutionMonitor)]
        monitors += map(ExecutionMonitor.of, self._simulated)
        ends = [{job_id: commit.status for job_id, commit in m.commits} for m in monitors]
        facts = {
            "jobs": sum(map(len, ends)),
            "failed": sum([*end.values()].count(JobStatus.FAILED) for end in ends),
            "commits": sum(len(m.commits) for m in monitors),
            "retries": sum(len(m.retries) for m in monitors),
            "virtual_ns": sum(clock.monotonic_ns() for clock in self._clocks)
            + sum(job.updated_ns - job.started_ns for job in self._simulated),
            **self._tried,
        }
        if any(facts.values()):
            facts["real_ns"] = perf_counter_ns() - self._started_ns
            return facts
        return {}


def _properties(facts: Mapping[str, int]) -> list[tuple[str, object]]:
    # For --junitxml.
    found: list[tuple[str, object]] = []
    if facts.get("jobs") or facts.get("virtual_ns"):
        found += [(f"{_HEAD}{name}", facts[name]) for name in _COUNTS]
        seconds = Decimal(facts["virtual_ns"]).scaleb(-9).normalize()
        found.append((f"{_HEAD}virtual_seconds", f"{seconds:f}"))
    if facts.get("planned"):
        found.append((f"{_HEAD}crash_points", f"{facts['executed']} of {facts['planned']}"))
    return found
