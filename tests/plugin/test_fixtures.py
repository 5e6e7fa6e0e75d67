"""The fixtures of time and watching: what each gives, refuses, imports and leaves behind."""

from __future__ import annotations

import os

import pytest

from pytest_routilux import FlowMonitor
from routilux import FakeClock, Flow, Routine, Runtime
from routilux.runtime import default_runtime
from tests.plugin.inner import ROOT, run_fresh, run_inside

NAP = """
    import datetime, time
    import pytest
    from routilux import Flow, Routine

    class Nap(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.nap)
            self.define_event("output", ["at"])

        def nap(self):
            self.ctx.sleep(1.5)
            self.emit("output", at=datetime.datetime.now())

    def nap():
        flow = Flow("nap")
        flow.add_routine(Nap(), "nap")
        return flow
"""


class Nap(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.nap)

    def nap(self) -> None:
        self.ctx.sleep(1.5)


def nap() -> Flow:
    flow = Flow("nap")
    flow.add_routine(Nap(), "nap")
    return flow


def test_code_that_names_no_runtime_runs_on_the_fake_clock_and_is_watched(
    flow_runtime: Runtime, flow_clock: FakeClock, flow_monitor: FlowMonitor
) -> None:
    assert flow_runtime.clock is flow_clock
    assert (flow_monitor,) == flow_runtime.observers
    job = nap().execute("nap")
    assert "2026-01-01T00:00:01.500000+00:00" == flow_clock.now().isoformat()
    flow_monitor.assert_status("completed", job=job)


def test_with_the_bare_clock_the_runtime_is_on_that(
    flow_runtime: Runtime, flow_clock_bare: FakeClock, request: pytest.FixtureRequest
) -> None:
    assert flow_runtime.clock is flow_clock_bare
    assert "flow_clock" not in request.fixturenames
    nap().execute("nap").raise_for_status()
    assert 1.5 == flow_clock_bare.monotonic_ns() / 10**9


def test_the_runtime_is_the_default_only_while_the_test_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        NAP
        + """
    from routilux.runtime import default_runtime

    before = default_runtime()

    def test_in_use(flow_runtime):
        assert default_runtime() is flow_runtime

    def test_in_use_and_failing(flow_runtime):
        assert default_runtime() is not flow_runtime

    def test_again_the_default():
        assert default_runtime() is before
        assert abs(time.time() - 1767225600) > 86400
    """
    )
    run_inside(pytester).assert_outcomes(passed=2, failed=1)


def test_no_fixture_is_active_here() -> None:
    assert not isinstance(default_runtime().clock, FakeClock)


# --- what is refused ------------------------------------------------------------------------------


def test_two_clocks_in_one_test_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_two_clocks(flow_clock, flow_clock_bare):
            pass

        def test_the_other_way_round(flow_clock_bare, flow_clock):
            pass

        def test_one_asked_for_later(flow_runtime, request):
            request.getfixturevalue("flow_clock_bare")

        def test_one_clock(flow_clock_bare, flow_runtime):
            pass
        """
    )
    result = run_inside(pytester)
    result.assert_outcomes(errors=2, failed=1, passed=1)
    line = (
        "this test uses flow_clock and flow_clock_bare, two clocks that show different times;"
        " keep flow_clock if your code uses time or datetime, else flow_clock_bare"
    )
    assert 3 == result.stdout.lines.count(line)


def test_what_an_observer_raises_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        NAP
        + """
    from pytest_routilux import FlowMonitor

    class Broken(FlowMonitor):
        def on_commit(self, job, commit):
            if commit.seq > 1:
                raise KeyError("lost")

        def __repr__(self):
            return "<Broken>"

    @pytest.fixture
    def flow_monitor():
        return Broken()

    def test_runs(flow_runtime):
        nap().execute("nap").raise_for_status()
    """
    )
    result = run_inside(pytester)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["observer <Broken> raised once KeyError: 'lost' (*what_an_observer_raises*.py:25)"]
    )


# --- what it costs --------------------------------------------------------------------------------


def test_nothing_is_imported_that_no_fixture_needs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def imported():
            return {name.partition(".")[0] for name in sys.modules} & {
                "freezegun", "hypothesis", "pytest_routilux", "rich", "routilux"
            }

        def test_without_fixtures():
            assert imported() == {"pytest_routilux"}
            ours = {name for name in sys.modules if name.startswith("pytest_routilux")}
            assert ours == {"pytest_routilux", "pytest_routilux.plugin", "pytest_routilux.settings"}

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime, flow_monitor, flow_factory):
            assert imported() == {"pytest_routilux", "routilux"}

        def test_on_the_clock(flow_clock, flow_runtime, flow_monitor):
            assert imported() == {"freezegun", "pytest_routilux", "routilux"}
        """
    )
    run_fresh(pytester).assert_outcomes(passed=3)


def test_a_suite_that_uses_nothing_has_two_modules_more(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            print(*sys.modules)
        """
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    without = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    loaded, before = (set(result.outlines[-1].split()) for result in (run_fresh(pytester), without))
    assert {
        "pytest_routilux",
        "pytest_routilux.plugin",
        "pytest_routilux.settings",
    } == loaded - before


def test_the_engine_is_not_rewritten_whatever_pytest_has_marked(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it does for every package of a distribution with a plugin.
    pytester.makepyfile(
        marks="""
        def pytest_addoption(parser, pluginmanager):
            pluginmanager.rewrite_hook.mark_rewrite("routilux", "pytest_routilux", "foreign")
        """,
        foreign="",
        test_it="""
        import foreign
        import routilux.core.machine
        import pytest_routilux.monitor.assertions

        def rewritten(module):
            return "rewrite" in type(module.__spec__.loader).__module__

        def test_it(flow_runtime):
            assert rewritten(foreign)
            assert not rewritten(routilux)
            assert not rewritten(routilux.core.machine)
            assert not rewritten(pytest_routilux.monitor.assertions)
        """,
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pytester.path}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.runpytest_subprocess(
        "-W", "error", "-p", "marks", "-p", "pytest_routilux.plugin"
    ).assert_outcomes(passed=1)


def test_the_bare_clock_leaves_time_as_it_is(flow_clock_bare: FakeClock) -> None:
    import time

    flow_clock_bare.advance(10**6)
    assert abs(time.time() - flow_clock_bare.now_ns() / 10**9) > 86_400


def test_each_fixture_says_in_one_line_what_it_gives(pytester: pytest.Pytester) -> None:
    result = run_inside(pytester, "--fixtures")
    lines = {
        line.split(" -- ")[0]: below.strip()
        for line, below in zip(result.outlines, result.outlines[1:], strict=False)
        if line.startswith(("flow_", "serialize_roundtrip"))
    }
    assert 10 == len(lines)
    for line in lines.values():
        assert line[0].isupper()
        assert line.endswith((".", "…", "..."))
        assert len(line) <= 90
    assert {
        "flow_clock": (
            "A fake clock that datetime.now(), time.time() and time.sleep() of user code follow."
        ),
        "flow_clock_bare": (
            "The fake clock without freezegun: microseconds a test; user code must use ctx.now()."
        ),
        "flow_monitor": "Records what the jobs of `flow_runtime` do, and has assertions about it.",
        "flow_runtime": (
            "A runtime on the fake clock with `flow_monitor`; the default runtime in the test."
        ),
    }.items() <= lines.items()
