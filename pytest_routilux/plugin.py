"""Fixtures and hooks, thin: everything heavy is imported when it is used.

Laws:
- A suite that uses no fixture of ours imports neither routilux nor freezegun nor rich.
- A fixture leaves nothing behind: no frozen time, no default runtime, no thread, no process.
- Errors that observers raise fail the test that used `flow_runtime`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from pytest_routilux.assertions import FlowMonitor
    from pytest_routilux.factory import FlowFactory
    from pytest_routilux.faults import FlowFaults
    from pytest_routilux.hosts import FlowHosts
    from pytest_routilux.report import FlowReport
    from pytest_routilux.roundtrip import SerializeRoundtrip
    from pytest_routilux.sim import FlowSim
    from routilux import FakeClock, Runtime


@pytest.fixture
def flow_clock(request: pytest.FixtureRequest) -> Iterator[FakeClock]:
    """A fake clock that datetime.now(), time.time() and time.sleep() of user code follow."""
    _refuse_two_clocks(request)
    from pytest_routilux.freeze import frozen_clock

    with frozen_clock() as clock:
        yield clock


@pytest.fixture
def flow_clock_bare(request: pytest.FixtureRequest) -> FakeClock:
    """The fake clock without freezegun: microseconds a test; user code must use ctx.now()."""
    _refuse_two_clocks(request)
    from routilux import FakeClock

    return FakeClock()


_CLOCK = pytest.StashKey[str]()


def _refuse_two_clocks(request: pytest.FixtureRequest) -> None:
    name = request.fixturename
    assert name is not None
    if request.node.stash.setdefault(_CLOCK, name) != name:
        pytest.fail(
            "this test uses flow_clock and flow_clock_bare, which are two clocks with a time each;"
            " keep flow_clock if user code asks time or datetime, else flow_clock_bare",
            pytrace=False,
        )


@pytest.fixture
def flow_monitor() -> FlowMonitor:
    """Everything that the jobs of `flow_runtime` did, with assertions about it."""
    from pytest_routilux.assertions import FlowMonitor

    return FlowMonitor()


@pytest.fixture
def flow_runtime(request: pytest.FixtureRequest, flow_monitor: FlowMonitor) -> Iterator[Runtime]:
    """A runtime on the fake clock, watched by `flow_monitor`; the default of code under test."""
    from routilux import Runtime, use_runtime

    name = "flow_clock_bare" if "flow_clock_bare" in request.fixturenames else "flow_clock"
    with (
        Runtime(clock=request.getfixturevalue(name), observers=[flow_monitor]) as runtime,
        use_runtime(runtime),
    ):
        yield runtime
    if runtime.observer_failures:
        from routilux import ErrorInfo

        lines = []
        for failure in runtime.observer_failures:
            error = ErrorInfo.of(failure.error)
            often = "once" if failure.count == 1 else f"{failure.count}x, first"
            lines.append(f"observer {failure.observer!r} raised {often} {error} ({error.where})")
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture
def flow_factory() -> FlowFactory:
    """Makes flows from routines or plain functions: chain=[...], fan_out=..., fan_in=..."""
    from pytest_routilux.factory import FlowFactory

    return FlowFactory()


@pytest.fixture
def serialize_roundtrip(tmp_path: Path) -> SerializeRoundtrip:
    """Saves and restores an object, and fails at the first path that differs in value or type."""
    from pytest_routilux.roundtrip import SerializeRoundtrip

    return SerializeRoundtrip(tmp_path)


@pytest.fixture
def flow_hosts(tmp_path: Path) -> Iterator[FlowHosts]:
    """Starts, kills and resumes jobs in fresh interpreters, as other hosts would."""
    from pytest_routilux.hosts import FlowHosts

    with FlowHosts(tmp_path) as hosts:
        yield hosts


@pytest.fixture
def flow_faults() -> Iterator[FlowFaults]:
    """Makes faults: raises(routine, exc, attempts=[1, 2]), slow(routine, seconds), …"""
    from pytest_routilux.faults import FlowFaults

    faults = FlowFaults()
    yield faults
    if faults.unused:
        pytest.fail(
            f"{', '.join(map(repr, faults.unused))}: made, and given to no simulation; pass it on"
            " as faults=[...]",
            pytrace=False,
        )


@pytest.fixture
def flow_sim(request: pytest.FixtureRequest) -> Iterator[FlowSim]:
    """Simulates jobs: lets a host die at every point, and proves that the flow survives."""
    from pytest_routilux.freeze import frozen_simulation
    from pytest_routilux.sim import START, FlowSim

    sim = FlowSim(request.node, request.config.getoption("routilux_repro"))
    with frozen_simulation(START):
        yield sim
    sim.close()


@pytest.fixture
def flow_report(request: pytest.FixtureRequest) -> FlowReport:
    """Adds rich renderables to the test's report; shown with -v and on failure."""
    from pytest_routilux.report import FlowReport

    return FlowReport(request.node, request.config)


# --- reports: rendered where the test runs, printed once by the process that has the terminal ----

REPORTS = pytest.StashKey[list[str]]()
SIMULATIONS = pytest.StashKey[list[dict[str, Any]]]()
_LOOK = pytest.StashKey[tuple[int, bool]]()


def report_look(config: pytest.Config) -> tuple[int, bool]:
    """Return the width and whether colours are wanted, by the terminal that shows the reports."""
    return config.stash[_LOOK]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what can be said on the command line."""
    group = parser.getgroup("routilux", "flows of routilux")
    group.addoption(
        "--routilux-repro",
        metavar="R1.…",
        default=None,
        help="run flow_sim with this reproducer alone: it fails, is fixed, or is stale",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    repro = config.getoption("routilux_repro")
    if repro is not None:
        from pytest_routilux.repro import Repro

        Repro.parse(repro)
    # Asked now, because later pytest's capturing hides the terminal.
    from_controller = getattr(config, "workerinput", {}).get("routilux_look")
    if from_controller is not None:
        config.stash[_LOOK] = tuple(from_controller)
        return
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    colour = terminal is not None and config.get_terminal_writer().hasmarkup
    config.stash[_LOOK] = max(shutil.get_terminal_size((100, 24)).columns, 40), colour
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Printer(terminal), "routilux-reports")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist has no types
    """Tell a worker of xdist how wide and how colourful the controller's terminal is."""
    node.workerinput["routilux_look"] = report_look(node.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the test's report into the failure, or into what travels to the printing process."""
    report = yield
    simulations = item.stash.get(SIMULATIONS, None)
    if simulations:
        vars(report)["flow_simulations"] = simulations  # xdist sends every attribute of a report
        del item.stash[SIMULATIONS]
    parts = item.stash.get(REPORTS, None)
    text = "\n".join(parts or ())
    if text and report.failed:
        report.sections.append(("Flow report", text))
        del item.stash[REPORTS]  # a failing teardown need not repeat it
    elif text and report.when != "setup" and item.config.getoption("verbose", 0) > 0:
        vars(report)["flow_report"] = text
        del item.stash[REPORTS]
    return report


class _Printer:
    """Prints the reports of tests that passed below their lines, and sums up the simulations."""

    def __init__(self, terminal: pytest.TerminalReporter | None) -> None:
        self._terminal = terminal
        self._simulations: list[tuple[str, dict[str, Any]]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = getattr(report, "flow_report", None)
        if text is not None and self._terminal is not None:
            self._terminal.write_line(text)  # which first ends the line of the test
        told = getattr(report, "flow_simulations", ())
        self._simulations += [(report.nodeid, simulation) for simulation in told]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A reproducer that no test has taken is stale, whatever the tests say that were run.
        repro = session.config.getoption("routilux_repro")
        taken = any(simulation["repro"] for _, simulation in self._simulations)
        if repro is not None and not taken and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        write = terminalreporter.write_line
        repro = config.getoption("routilux_repro")
        if repro is not None:
            terminalreporter.section("reproducer")
            told = [f"{nodeid}: {s['repro']}" for nodeid, s in self._simulations if s["repro"]]
            for line in told or [f"{repro}: stale, no simulation of these tests has taken it"]:
                write(line)
            return
        lines = []
        fails = False
        for nodeid, simulation in self._simulations:
            if config.option.verbose > 0:
                lines.append(_line_of(nodeid, simulation))
            if simulation["ends"] is not None and config.option.verbose >= 0:
                lines.append(f"{nodeid}: the undisturbed job failed: {simulation['ends']}")
                fails = True
        if fails:
            lines.append(_MEANT)
        if lines:
            terminalreporter.section("flow simulations")
            for line in lines:
                write(line)


_MEANT: Final = 'where that is meant: invariant=lambda outcome: outcome.job.status == "failed"'


def _line_of(nodeid: str, simulation: dict[str, Any]) -> str:
    planned, executed = (sum(simulation[name].values()) for name in ("planned", "executed"))
    rate = simulation["runs"] / max(simulation["seconds"], 1e-9)
    return (
        f"{nodeid}: {executed} of {planned} crash points, {simulation['word']},"
        f" {simulation['runs']} runs in {simulation['seconds']:.2f} s ({rate:,.0f}/s)"
    )
