"""The fixtures and hooks of the plugin.

Invariants:
- A suite that uses no fixture of the plugin imports neither routilux nor freezegun nor rich.
- A fixture leaves nothing behind: no frozen time, no default runtime, no thread, no process.
- An error that an observer raises fails the test that used `flow_runtime`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from pytest_routilux.factory import FlowFactory
    from pytest_routilux.faults.flow_faults import FlowFaults
    from pytest_routilux.hosts.flow_hosts import FlowHosts
    from pytest_routilux.hosts.roundtrip import SerializeRoundtrip
    from pytest_routilux.monitor.assertions import FlowMonitor
    from pytest_routilux.report.flow_report import FlowReport
    from pytest_routilux.report.run_facts import RunFacts
    from pytest_routilux.report.session_summary import SessionSummary
    from pytest_routilux.sim.flow_sim import FlowSim
    from routilux import FakeClock, Runtime


@pytest.fixture
def flow_clock(request: pytest.FixtureRequest) -> Iterator[FakeClock]:
    """A fake clock that `time` and `datetime` in user code follow."""
    facts = _facts(request)
    facts.refuse_two_clocks("flow_clock")
    from pytest_routilux.settings import flow_time, sleeping
    from pytest_routilux.virtual_time.event_loops import clock_of
    from pytest_routilux.virtual_time.freeze import frozen_clock, take_stuck
    from pytest_routilux.virtual_time.late_failures import fail_at_end
    from pytest_routilux.virtual_time.watchdog import fail_blocked_steps

    zone, roots = flow_time(request.node).zone, _values_of(request.node)
    with (
        fail_at_end(),
        clock_of(request.node) as clock,
        frozen_clock(sleeping(request.config), clock=clock, zone=zone, roots=roots),
        fail_blocked_steps(clock, request.config),
    ):
        facts.add_clock(clock)
        facts.kept += take_stuck()
        yield clock


@pytest.fixture
def flow_clock_bare(request: pytest.FixtureRequest) -> Iterator[FakeClock]:
    """A fast fake clock that leaves `time` and `datetime` real."""
    facts = _facts(request)
    facts.refuse_two_clocks("flow_clock_bare")
    from pytest_routilux.settings import flow_time
    from pytest_routilux.virtual_time.event_loops import clock_of
    from pytest_routilux.virtual_time.late_failures import fail_at_end
    from pytest_routilux.virtual_time.local_zone import local_zone
    from pytest_routilux.virtual_time.watchdog import fail_blocked_steps

    zone = flow_time(request.node).zone
    with (
        local_zone(zone),
        fail_at_end(),
        clock_of(request.node) as clock,
        fail_blocked_steps(clock, request.config),
    ):
        facts.add_clock(clock)
        yield clock


@pytest.fixture
def flow_monitor(request: pytest.FixtureRequest) -> FlowMonitor:
    """Records the jobs of `flow_runtime`, and offers assertions about them."""
    from pytest_routilux.monitor.assertions import FlowMonitor

    monitor = FlowMonitor()
    _facts(request).add_monitor(monitor)
    return monitor


@pytest.fixture
def flow_runtime(request: pytest.FixtureRequest, flow_monitor: FlowMonitor) -> Iterator[Runtime]:
    """The test's default runtime, with a fake clock and `flow_monitor`."""
    from pytest_routilux.discarding_store import DiscardingStore
    from pytest_routilux.handler_assertions import ADVICE, failed_assertion
    from pytest_routilux.settings import assertions_count
    from routilux import RoutiluxError, Runtime, use_runtime
    from routilux.persist.journal import Journal

    facts = _facts(request)
    facts.add_monitor(flow_monitor)
    name = "flow_clock_bare" if "flow_clock_bare" in request.fixturenames else "flow_clock"
    clock = request.getfixturevalue(name)
    if name == "flow_clock":
        facts.refuse_other_clock(clock)
    runtime = Runtime(clock=clock, observers=[flow_monitor])
    runtime.environment.journal = Journal(DiscardingStore())  # but `store` stays None
    failed = request.session.testsfailed
    with use_runtime(runtime):
        yield runtime
    runtime.threads.end(RoutiluxError("the test that started this job has ended"))
    if assertions_count(request.config) and request.session.testsfailed == failed:
        commits = getattr(flow_monitor, "commits", ())  # the project's own monitor may have none
        found = failed_assertion(commit for _, commit in commits)
        if found is not None:
            pytest.fail(f"{found[1]}\n{ADVICE}", pytrace=False)
    if runtime.observer_failures:
        from routilux import ErrorInfo

        lines = []
        for failure in runtime.observer_failures:
            error = ErrorInfo.of(failure.error)
            times = "once:" if failure.count == 1 else f"{failure.count} times, first:"
            lines.append(f"observer {failure.observer!r} raised {times} {error} ({error.where})")
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture
def flow_factory() -> FlowFactory:
    """Makes flows from routines or plain functions: flow_factory(chain=[parse, double])."""
    from pytest_routilux.factory import FlowFactory

    return FlowFactory()


@pytest.fixture
def serialize_roundtrip(tmp_path: Path) -> SerializeRoundtrip:
    """Saves and loads an object, and fails if the copy differs."""
    from pytest_routilux.hosts.roundtrip import SerializeRoundtrip

    return SerializeRoundtrip(tmp_path)


@pytest.fixture
def flow_hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FlowHosts]:
    """Runs and resumes jobs on hosts: processes that a test can kill."""
    from pytest_routilux.hosts.flow_hosts import FlowHosts
    from pytest_routilux.settings import flow_time, sleeping

    def show(name: str, output: str) -> None:
        request.node.add_report_section("call", f"output of {name}", output)

    with FlowHosts(
        tmp_path,
        sleeping=sleeping(request.config),
        time=flow_time(request.node),
        on_output=show,
    ) as hosts:
        yield hosts


@pytest.fixture
def flow_faults(request: pytest.FixtureRequest) -> Iterator[FlowFaults]:
    """Injects faults into jobs: raises(routine, error, attempts=[1, 2]), slow(routine, 5), …"""
    from pytest_routilux.faults.flow_faults import FlowFaults

    faults = FlowFaults()
    if "flow_runtime" in request.fixturenames:
        faults.on(request.getfixturevalue("flow_runtime"))
    failed = request.session.testsfailed
    yield faults
    faults.close()
    problems = faults.problems(after_failure=request.session.testsfailed > failed)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def flow_sim(request: pytest.FixtureRequest) -> Iterator[FlowSim]:
    """Crashes a simulated job at every possible point, and checks each recovery."""
    facts = _facts(request)  # real time is counted from here
    from pytest_routilux.settings import flow_time, patience_ns, sleeping
    from pytest_routilux.sim.flow_sim import FlowSim
    from pytest_routilux.virtual_time.freeze import frozen_simulation, take_stuck
    from pytest_routilux.virtual_time.late_failures import fail_at_end
    from pytest_routilux.virtual_time.watchdog import fail_blocked_steps
    from routilux.clocks.durations import instant_ns

    start, zone = flow_time(request.node)
    start_ns = instant_ns(start)
    sim = FlowSim(request.node, request.config.getoption("routilux_repro"), start_ns)
    with (
        fail_at_end(),
        frozen_simulation(
            start_ns,
            sleeping(request.config),
            zone=zone,
            roots=_values_of(request.node),
            patience_ns=patience_ns(request.config),
        ),
        fail_blocked_steps(None, request.config),
    ):
        facts.kept += take_stuck()
        yield sim
    sim.close()


@pytest.fixture
def flow_report(request: pytest.FixtureRequest) -> FlowReport:
    """Collects a report that pytest shows with -v or on failure."""
    from pytest_routilux.report.flow_report import FlowReport

    return FlowReport(request.node, request.config)


# --- comparisons ----------------------------------------------------------------------------------


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    """Explain a failed assert that compares two jobs, flows or error handlers."""
    if "routilux" not in sys.modules:
        return None
    from pytest_routilux.monitor.comparison import explain_comparison

    verbosity = config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS)
    return explain_comparison(op, left, right, whole=verbosity > 1)


# --- debugger -------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(call: pytest.CallInfo[Any]) -> None:
    """Let `--pdb` open in the handler that failed the job, not in `raise_for_status`."""
    if call.excinfo is None or "routilux" not in sys.modules:
        return
    from routilux import JobFailedError

    error = call.excinfo.value
    if isinstance(error, JobFailedError) and error.__cause__ is not None:
        call.excinfo = pytest.ExceptionInfo.from_exception(error.__cause__)


# --- options ------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin's command line options and settings with pytest."""
    # pytest marks the packages of the plugin's distribution, the engine too, to rewrite their
    # assertions. Neither has any, and where no bytecode can be written every run pays for it.
    marked: set[str] = getattr(pluginmanager.rewrite_hook, "_must_rewrite", set())
    marked -= {"routilux", "pytest_routilux"}
    from pytest_routilux.settings import add_options

    add_options(parser)


# --- reports: rendered where the test runs, printed once by the process that has the terminal ----

_MODE: Final = pytest.StashKey[str]()
_FACTS: Final = "pytest_routilux.report.run_facts"
_EVENT_LOOPS: Final = "pytest_routilux.virtual_time.event_loops"
_CLOCKS: Final = frozenset({"flow_clock", "flow_clock_bare", "flow_runtime"})
_FREEZE: Final = "pytest_routilux.virtual_time.freeze"
_LOCAL_ZONE: Final = "pytest_routilux.virtual_time.local_zone"


def _facts(request: pytest.FixtureRequest) -> RunFacts:
    from pytest_routilux.report.run_facts import facts_of

    return facts_of(request.node)


def _values_of(node: pytest.Item) -> list[dict[str, Any]]:
    """Return the dicts of a test's parameters and of the fixtures that are set up."""
    callspec = getattr(node, "callspec", None)
    return [getattr(node, "funcargs", {}), {} if callspec is None else callspec.params]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the clock of a test before the fixtures of other plugins make an event loop."""
    if not _CLOCKS.isdisjoint(getattr(item, "fixturenames", ())):
        from pytest_routilux.virtual_time.event_loops import plan_clock

        plan_clock(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Let a fixture that outlives its test make real event loops."""
    if _EVENT_LOOPS not in sys.modules:
        return (yield)
    from pytest_routilux.virtual_time.event_loops import outliving

    with outliving(fixturedef):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Put back what fixtures have restored after the end of virtual time."""
    try:
        return (yield)
    finally:
        if _EVENT_LOOPS in sys.modules:
            from pytest_routilux.virtual_time.event_loops import forget_clock

            forget_clock(item)
        if _FREEZE in sys.modules:
            from pytest_routilux.virtual_time.freeze import put_back

            put_back(scope_ended=nextitem is None or nextitem.parent is not item.parent)
        if _LOCAL_ZONE in sys.modules:
            from pytest_routilux.virtual_time.local_zone import put_back_zone

            put_back_zone()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    from pytest_routilux.settings import (
        assertions_count,
        blocked_after,
        find_report_look,
        ini_time,
        report_mode,
        search,
        sleeping,
    )

    config.addinivalue_line(
        "markers",
        "flow_time(start=..., zone=...): the instant at which flow_clock, flow_clock_bare and"
        " flow_sim start (UTC if it has no offset), and the local time zone",
    )
    # An invalid value ends the session here.
    sleeping(config), blocked_after(config), assertions_count(config), ini_time(config)
    search(config)
    config.stash[_MODE] = report_mode(config)
    repro = config.getoption("routilux_repro")
    if repro is not None:
        from pytest_routilux.sim.repro import Repro

        Repro.parse(repro)
    if find_report_look(config):
        config.pluginmanager.register(_Printer(config), "routilux-reports")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist has no types
    """Send the terminal's width and colours to an xdist worker."""
    from pytest_routilux.settings import report_look

    node.workerinput["routilux_look"] = report_look(node.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the facts of a test's run to pytest's report."""
    if call.excinfo is not None and "routilux" in sys.modules:
        from pytest_routilux.frames import hide_ours, show_notes

        hide_ours(call.excinfo)
        show_notes(call.excinfo.value)
    if _FACTS not in sys.modules:  # no test of this process has used a fixture of the plugin
        return (yield)
    from pytest_routilux.report.run_facts import RUN_FACTS

    facts = item.stash.get(RUN_FACTS, None)
    if facts is None:
        return (yield)
    mode = item.config.stash[_MODE]
    if call.when == "teardown":
        facts.end(item, properties=mode != "never")
    report = yield
    asked = mode == "always" or (mode == "auto" and item.config.getoption("verbose", 0) > 0)
    facts.attach_to(report, passing=asked, failing=mode != "never")
    return report


class _Printer:
    """Prints flow reports and the summary to the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary: SessionSummary | None = None

    def _used(self) -> SessionSummary:
        if self._summary is None:
            from pytest_routilux.report.session_summary import SessionSummary

            self._summary = SessionSummary(self._config, self._config.stash[_MODE])
        return self._summary

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        from pytest_routilux.settings import REPORT_PARTS

        has_parts = not vars(report).keys().isdisjoint(REPORT_PARTS)
        if has_parts:
            self._used().before(report)
        yield
        if has_parts:
            self._used().after(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A reproducer that no test has used is stale, even if all tests pass.
        if self._config.getoption("routilux_repro") is None or session.exitstatus:
            return
        if not self._used().reproduced:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self) -> None:
        if _FACTS in sys.modules:
            from pytest_routilux.report.run_facts import OPEN_RUN

            unfinished = self._config.stash.get(OPEN_RUN, None)
            if unfinished is not None:
                self._used().count(unfinished.counts())
        if self._config.getoption("routilux_repro") is not None or self._summary is not None:
            self._used().show()
