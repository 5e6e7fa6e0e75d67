"""Prints the session's flow reports, reproducers and summary.

Invariants:
- It prints what the reports of tests carry, each once, in the process that has the terminal.
- Figures are sums over the tests that ran. Virtual time is written from integer nanoseconds.
- A session that ran no job and tried no crash point gets no line.
- A report that pytest shows with a failure is not shown again; one that --show-capture hides is.
"""

from __future__ import annotations

from collections import Counter
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.settings import report_look
from pytest_routilux.text import count, seconds
from routilux.clocks.durations import SECOND, seconds_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

_TIED: Final = "\u00a0"  # a blank at which no line is broken

_KEPT: Final = (
    "flow_clock can't replace these, so they read real time; keep a function that makes the call,"
    " such as lambda: datetime.now()"
)


class SessionSummary:
    """Collects facts from pytest's test reports, and prints them."""

    def __init__(self, config: pytest.Config, mode: str) -> None:
        self._config = config
        self._mode = mode
        self._terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin(
            "terminalreporter"
        )
        self._facts: Counter[str] = Counter()
        self._simulations: list[tuple[str, dict[str, Any]]] = []
        self._kept: dict[str, None] = {}
        self._later: list[tuple[str, str]] = []

    def before(self, report: pytest.TestReport) -> None:
        """Add a failed test's flow report to the failure that pytest prints."""
        text = getattr(report, "flow_report", None)
        if text is not None and report.failed:
            report.sections.append(("Flow report", text))

    def after(self, report: pytest.TestReport) -> None:
        """Print or keep the flow report of a test."""
        text = getattr(report, "flow_report", None)
        if text is not None and self._terminal is not None:
            if not report.failed and self._config.option.verbose > 0:
                self._terminal.write_line(text)  # it first ends the line of the test
            elif not report.failed or self._hidden():
                self._later.append((report.nodeid, text))
        for simulation in getattr(report, "flow_simulations", ()):
            self._simulations.append((report.nodeid, simulation))
        self._kept.update(dict.fromkeys(getattr(report, "flow_kept", ())))
        self.count(getattr(report, "flow_facts", {}))

    def _hidden(self) -> bool:
        # --tb=no hides the reports of failures too, unless all reports are asked for.
        option = self._config.option
        if option.tbstyle == "no":
            return self._mode == "always"
        hidden: bool = option.showcapture != "all"
        return hidden

    def count(self, facts: Mapping[str, int]) -> None:
        """Add the counts of one test to the session's counts."""
        self._facts.update(facts)

    @property
    def reproduced(self) -> list[str]:
        """One line for each simulation that ran the reproducer."""
        return [f"{nodeid}: {s['repro']}" for nodeid, s in self._simulations if s["repro"]]

    def show(self) -> None:
        """Print the reports and the summary at the session's end."""
        terminal = self._terminal
        assert terminal is not None
        if self._later:
            terminal.write_sep("=", "flow reports")
            for nodeid, text in self._later:
                terminal.write_sep("_", nodeid)
                terminal.write_line(text)
        quiet = self._config.option.verbose < 0 and self._mode != "always"
        quiet = quiet or self._mode == "never"
        repro = self._config.getoption("routilux_repro")
        if repro is not None:
            terminal.write_sep("=", "reproducer")
            stale = f"{repro}: stale, no simulation of these tests ran it"
            for line in self.reproduced or [stale]:
                terminal.write_line(line)
        if self._kept and self._mode != "never":
            terminal.write_sep("=", "real time")
            for line in [*self._kept, _KEPT]:
                terminal.write_line(line)
        if self._facts and not quiet:
            if terminal.currentfspath is None:
                terminal.write_line("")
            terminal.ensure_newline()  # it also makes the blank line
            for line in summary_lines(self._facts, report_look(self._config)[0]):
                terminal.write_line(line)


def summary_lines(facts: Mapping[str, int], width: int) -> list[str]:
    """Return the session's summary as lines of at most `width` columns.

    >>> facts = {"jobs": 1, "commits": 7, "retries": 4, "virtual_ns": 5_737_500_000}
    >>> summary_lines({**facts, "real_ns": 12_345_678}, 80)
    ['routilux: 1 job, 7 commits, 4 retries, 5.7375 s of virtual time in 0.01 s']
    >>> summary_lines({"planned": 72, "executed": 71, "real_ns": 110_000_000}, 80)
    ['routilux: 71 of 72 crash points in 0.11 s']
    >>> summary_lines({**facts, "failed": 1, "real_ns": 10_000_000}, 90)
    ['routilux: 1 job (1 failed), 7 commits, 4 retries, 5.7375 s of virtual time in 0.01 s']
    """
    parts: list[str] = []
    if facts.get("jobs"):
        failed = f" ({facts['failed']:,} failed)" if facts.get("failed") else ""
        parts += [
            f"{count(facts['jobs'], 'job')}{failed}",
            count(facts["commits"], "commit"),
            count(facts["retries"], "retry", "retries"),
        ]
    if facts.get("planned"):
        executed, planned = facts["executed"], facts["planned"]
        cut = "" if executed == planned else f"{executed:,} of "
        parts.append(f"{cut}{count(planned, 'crash point')}")
    if facts.get("virtual_ns"):
        parts.append(f"{_length(facts['virtual_ns'])} of virtual time")
    parts[-1] += f" in {seconds_text(facts['real_ns'], 2)} s"
    text = f"routilux: {', '.join(part.replace(' ', _TIED) for part in parts)}"
    return [line.replace(_TIED, " ") for line in wrap(text, width, subsequent_indent="  ")]


def _length(length_ns: int) -> str:
    if length_ns < 60 * SECOND:
        return f"{seconds(length_ns)} s"
    minutes, rest = divmod(length_ns // SECOND, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours:,} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
