"""The line of figures at the end of a session: what it counts, and when it is shown.

Lines are compared exactly; only real time (`⏱`) may differ.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest
from rich.cells import cell_len

from pytest_routilux.report.session_summary import summary_lines
from tests.plugin.inner import PLUGIN, assert_golden, run_pytest
from tests.soak import sampled

XDIST: Final = ("-p", "xdist.plugin", "-n", "2")
JUNIT: Final = ("--junitxml=out.xml", "-o", "junit_family=xunit1")

PAY: Final = """
    import os, signal
    import pytest
    from routilux import ErrorHandler, ExecutionMonitor, Runtime, use_runtime
    from tests.routines import chain, fails

    def pay(failures, body=None):
        flow = chain(pay=body or fails(failures, ConnectionError, after=0.5))
        flow.set_error_handler(ErrorHandler("retry", 4, 0.3, 1.5))
        return flow
"""
TWO: Final = """
    def test_four_retries(flow_runtime):
        pay(4).execute("pay")

    def test_two_jobs(flow_runtime):
        pay(0).execute("pay")
        pay(1).execute("pay")
"""
# 5 × 0.5 s and the waits 0.3, 0.45, 0.675, 1.0125 s; then 0.5 s, and 2 × 0.5 s with a wait of 0.3 s
TWO_LINE: Final = "routilux: 3 jobs, 11 commits, 5 retries, 6.7375 s of virtual time in ⏱ s"


def run_inner(inner: pytest.Pytester, code: str, *args: str) -> pytest.RunResult:
    inner.makepyfile(PAY + code)
    return run_pytest(inner, *PLUGIN, *args)


def line_of(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("routilux: ")]


# --- what it counts -------------------------------------------------------------------------------

OVERRIDES: Final = """
    class TestOwnRuntime:
        @pytest.fixture
        def flow_runtime(self, flow_clock, flow_monitor):
            runtime = Runtime(clock=flow_clock, observers=[flow_monitor])
            with use_runtime(runtime):
                yield runtime

        def test_it(self, flow_runtime):
            pay(1).execute("pay")

    class TestMonitorWithRecords:
        @pytest.fixture
        def flow_monitor(self):
            return ExecutionMonitor()

        def test_it(self, flow_runtime):
            pay(2).execute("pay")

    class TestMonitorWithoutRecords:
        @pytest.fixture
        def flow_monitor(self):
            class Observer:
                def on_commit(self, job, commit): pass
            return Observer()

        def test_it(self, flow_runtime):
            pay(0).execute("pay")
"""
PAUSED: Final = """
    def test_paused(flow_runtime, flow_clock):
        run = pay(2).start("pay")
        flow_clock.advance(0.6)
        run.pause()
        pay(2).resume(run.job)
"""
INSTANT: Final = """
    def nothing():
        return {}

    def test_instant(flow_runtime, flow_factory):
        flow_factory(chain=[nothing]).execute("nothing")
"""
SET_UP: Final = """
    @pytest.fixture
    def paid(flow_runtime):
        pay(1).execute("pay")
        raise OSError("full")

    def test_one(paid): pass
"""
MINUTES: Final = "    def test_minutes(flow_clock_bare): flow_clock_bare.advance(90)"
HOUR: Final = "    def test_hour(flow_clock_bare): flow_clock_bare.advance(3_780)"
SIMULATED: Final = """
    def test_simulated(flow_sim):
        flow_sim.run(lambda: pay(4), "pay")

    def test_everywhere(flow_sim):
        first = flow_sim.crash_everywhere(lambda: pay(1), "pay")
        second = flow_sim.crash_everywhere(lambda: pay(0), "pay")
        assert [22, 11] == [first.executed.total(), second.executed.total()]
"""


COUNTED: Final = {
    "sums over the tests": (TWO, TWO_LINE.removeprefix("routilux: ").removesuffix(" in ⏱ s")),
    "a resumed job once": (PAUSED, "1 job, 6 commits, 2 retries, 2.25 s of virtual time"),
    "minutes with their seconds": (MINUTES, "1 min 30 s of virtual time"),
    "time without jobs": (HOUR, "1 h 3 min of virtual time"),
    "jobs without time": (INSTANT, "1 job, 2 commits, 0 retries"),
    "a set-up that fails": (SET_UP, "1 job, 3 commits, 1 retry, 1.3 s of virtual time"),
    "own fixtures": (OVERRIDES, "2 jobs, 7 commits, 3 retries, 4.05 s of virtual time"),
    "simulations": (
        SIMULATED,
        "1 job, 6 commits, 4 retries, 33 crash points, 4.9375 s of virtual time",
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_it_counts(inner, name):
    code, figures = COUNTED[name]
    result = run_inner(inner, code)
    assert (1 if code == SET_UP else 0) == result.ret
    assert_golden(f"routilux: {figures} in ⏱ s", result.outlines)


RERUNS: Final = """
    import pytest
    from _pytest.runner import runtestprotocol

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item, nextitem):
        # As plugins that run a failed test again do.
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in reports:
            if report.failed:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        if any(report.outcome == "rerun" for report in reports):
            item._initrequest()
            runtestprotocol(item, nextitem=nextitem, log=True)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_report_teststatus(report):
        if report.outcome == "rerun":
            return "rerun", "R", "RERUN"
"""


def test_each_run_of_a_test_counts_and_the_last_one_gives_the_properties(inner):
    inner.makeconftest(RERUNS)
    flaky = """
    runs = []

    def test_flaky(flow_runtime, flow_report, record_property):
        runs.append(1)
        record_property("ours", len(runs))
        flow_report.add(f"report of run {len(runs)}")
        pay(len(runs)).execute("pay")
        assert len(runs) == 2
    """
    result = run_inner(inner, flaky, *JUNIT, "-v")
    assert_golden(ENDED, result.outlines)
    assert 1 == result.stdout.str().count("report of run 2")
    assert [
        ("ours", "1"),
        ("ours", "2"),
        ("routilux_jobs", "1"),
        ("routilux_commits", "4"),
        ("routilux_retries", "2"),
        ("routilux_virtual_seconds", "2.25"),
    ] == properties(inner.path / "out.xml")["test_flaky"]


# --- when it is shown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assertion", "args"),
    sampled(
        product(["assert True", "assert False"], [(), ("-v",), ("-q", "--routilux-report=always")]),
        [("assert True", ()), ("assert False", ("-v",))],
    ),
)
def test_it_is_printed_below_one_blank_line(inner, args, assertion):
    inner.makepyfile(f"def test_it(flow_clock_bare): flow_clock_bare.advance(1); {assertion}")
    lines = run_pytest(inner, *PLUGIN, *args).outlines
    [at] = [at for at, line in enumerate(lines) if line.startswith("routilux: ")]
    assert [False, True] == ["" == line for line in lines[at - 2 : at]]


def test_a_session_that_ran_no_job_gets_no_line(inner):
    code = """
    def test_nothing(): pass
    def test_only_made(flow_factory, flow_runtime, flow_monitor, flow_sim, flow_report): pass
    """
    for mode in ("auto", "always"):
        result = run_inner(inner, code, f"--routilux-report={mode}", "-v")
        result.assert_outcomes(passed=2)
        result.stdout.no_fnmatch_line("*routilux:*")
        result.stdout.no_fnmatch_line("*flow simulations*")


def test_without_a_terminal_nothing_is_shown_and_nothing_breaks(inner):
    result = run_inner(inner, TWO, "-p", "no:terminal", "--junitxml=out.xml")
    assert pytest.ExitCode.OK == result.ret
    assert ([], []) == (result.outlines, result.errlines)
    assert ("routilux_jobs", "2") in properties(inner.path / "out.xml")["test_two_jobs"]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_it_is_as_wide_as_the_terminal_and_breaks_between_figures(width):
    facts = {
        "jobs": 12_345, "commits": 340_123, "retries": 25_000, "virtual_ns": 10**15,
        "planned": 54_321, "executed": 54_000, "real_ns": 210 * 10**9,
    }  # fmt: skip
    lines = summary_lines(facts, width)
    assert max(map(cell_len, lines)) <= width
    whole = (
        "routilux: 12,345 jobs, 340,123 commits, 25,000 retries, 54,000 of 54,321 crash points,"
        " 277 h of virtual time in 210.00 s"
    )
    assert whole == " ".join(map(str.strip, lines))
    assert not [line for line in lines[:-1] if not line.endswith(",")]


# --- sessions that end early ----------------------------------------------------------------------

LONG: Final = """
    def test_first(flow_runtime):
        pay(1).execute("pay")

    def test_second(flow_runtime):
        pay(2).execute("pay")
        {end}

    def test_third(flow_runtime):
        pay(3).execute("pay")
"""
ENDED: Final = "routilux: 2 jobs, 7 commits, 3 retries, 3.55 s of virtual time in ⏱ s"


def test_with_maxfail_it_counts_the_tests_that_ran(inner):
    result = run_inner(inner, LONG.format(end="assert False"), "-x")
    result.assert_outcomes(passed=1, failed=1)
    assert_golden(ENDED, result.outlines)


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "pytest.exit('enough')"])
def test_an_interrupted_test_counts_what_it_did(inner, end):
    result = run_inner(inner, LONG.format(end=end))
    assert pytest.ExitCode.INTERRUPTED == result.ret
    [line] = line_of(result)
    assert_golden(ENDED, [line])


def test_an_interrupted_handler_counts_what_was_committed(inner):
    code = """
    def body(self):
        if self.ctx.attempt == 3:
            os.kill(os.getpid(), signal.SIGINT)
        self.ctx.sleep(0.5)
        raise ConnectionError("no answer")

    def test_stopped(flow_runtime):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
        pay(4, body).execute("pay")
    """
    result = run_inner(inner, code)
    assert pytest.ExitCode.INTERRUPTED == result.ret
    assert_golden(
        "routilux: 1 job, 4 commits, 2 retries, 1.75 s of virtual time in ⏱ s", result.outlines
    )


# --- workers of xdist -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workers",
    [
        (),
        XDIST,
        pytest.param((*XDIST, "--dist=loadfile"), marks=pytest.mark.soak),
        pytest.param((*XDIST, "-v"), marks=pytest.mark.soak),
    ],
)
def test_with_workers_every_test_counts_once(inner, workers):
    code = """
    @pytest.mark.parametrize("n", range(12))
    def test_it(flow_runtime, n):
        pay(n % 3).execute("pay")
    """
    result = run_inner(inner, code, *workers)
    result.assert_outcomes(passed=12)
    [line] = line_of(result)
    assert_golden(
        "routilux: 12 jobs, 36 commits, 12 retries, 16.2 s of virtual time in ⏱ s", [line]
    )


def test_only_the_test_of_a_crashed_worker_is_not_counted(inner):
    result = run_inner(inner, LONG.format(end="os._exit(1)"), *XDIST)
    result.assert_outcomes(passed=2, failed=1)
    assert_golden(
        "routilux: 2 jobs, 8 commits, 4 retries, 4.725 s of virtual time in ⏱ s", result.outlines
    )


@pytest.mark.soak
def test_with_workers_and_maxfail_the_line_is_shown(inner):
    code = LONG.format(end="assert False")
    result = run_inner(inner, code, "-p", "xdist.plugin", "-n", "1", "-x")
    assert pytest.ExitCode.OK != result.ret
    [line] = line_of(result)
    assert re.match(r"routilux: [23] jobs, ", line)


# --- --junitxml -----------------------------------------------------------------------------------


def properties(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the properties of each test in a file of --junitxml."""
    return {
        case.attrib["name"]: [
            (found.attrib["name"], found.attrib["value"]) for found in case.iter("property")
        ]
        for case in ET.parse(path).iter("testcase")
    }


FIGURES: Final = """
    def test_fails(flow_runtime, record_property):
        record_property("ours", "kept")
        pay(4).execute("pay")
        assert False

    def test_plain(): pass

    def test_simulates(flow_sim):
        flow_sim.crash_everywhere(lambda: pay(1), "pay")
"""


@pytest.mark.parametrize(
    "args",
    [
        (),
        pytest.param(XDIST, marks=pytest.mark.soak),
        pytest.param(("--routilux-report=always",), marks=pytest.mark.soak),
    ],
)
def test_junitxml_has_the_figures_of_each_test(inner, args):
    run_inner(inner, FIGURES, *JUNIT, *args).assert_outcomes(failed=1, passed=2)
    assert {
        "test_fails": [
            ("ours", "kept"),
            ("routilux_jobs", "1"),
            ("routilux_commits", "6"),
            ("routilux_retries", "4"),
            ("routilux_virtual_seconds", "4.9375"),
        ],
        "test_plain": [],
        "test_simulates": [("routilux_crash_points", "22 of 22")],
    } == properties(inner.path / "out.xml")


def test_junitxml_has_no_figures_with_never(inner):
    run_inner(inner, FIGURES, *JUNIT, "--routilux-report=never", "-W", "error")
    assert {"test_fails": [("ours", "kept")], "test_plain": [], "test_simulates": []} == properties(
        inner.path / "out.xml"
    )
