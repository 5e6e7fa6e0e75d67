"""The fixtures: what each gives, its scope, what it imports and what it leaves behind."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Final

import pytest

import pytest_routilux
import routilux
from pytest_routilux import plugin
from tests.plugin.inner import NAP, PLUGIN, ROOT, assert_golden, run_fresh, run_inside, run_pytest
from tests.routines import chain, sleeps

FIXTURES: Final = (
    *("flow_clock", "flow_clock_bare", "flow_runtime", "flow_monitor", "flow_factory"),
    *("serialize_roundtrip", "flow_hosts", "flow_sim", "flow_faults", "flow_report"),
)


def test_the_runtime_runs_on_the_fake_clock_with_the_monitor_and_is_the_default(
    flow_runtime, flow_clock, flow_monitor
):
    assert flow_runtime.clock is flow_clock
    assert (flow_monitor,) == flow_runtime.observers
    job = chain(nap=sleeps(1.5)).execute("nap")
    assert "2026-01-01T00:00:01.500000+00:00" == flow_clock.now().isoformat()
    flow_monitor.assert_status("completed", job=job)


def test_the_runtime_runs_on_the_bare_clock_if_the_test_uses_it(
    flow_runtime, flow_clock_bare, request
):
    assert flow_runtime.clock is flow_clock_bare
    assert "flow_clock" not in request.fixturenames
    chain(nap=sleeps(1.5)).execute("nap").raise_for_status()
    assert 1.5 == flow_clock_bare.monotonic_ns() / 10**9


OWN_CLOCK = """
    import pytest
    from routilux import FakeClock

    @pytest.fixture
    def {name}({takes}):
        {gives}

    def test_it(flow_runtime, {name}):
        assert flow_runtime.clock is {name}
"""


@pytest.mark.parametrize("gives", ["return FakeClock('2024-02-29')", "return None"])
def test_a_clock_that_does_not_freeze_the_time_is_refused(gives, pytester):
    pytester.makepyfile(test_it=OWN_CLOCK.format(name="flow_clock", takes="", gives=gives))
    result = run_inside(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["the fixture flow_clock of this project returns *, a clock that time and datetime do not*"]
    )


@pytest.mark.parametrize(
    ("name", "takes", "gives"),
    [
        ("flow_clock", "flow_clock", "flow_clock.advance(60); return flow_clock"),
        ("flow_clock_bare", "flow_clock_bare", "return flow_clock_bare"),
        ("flow_clock_bare", "", "return FakeClock('2024-02-29')"),
    ],
)
def test_a_project_may_set_its_clock(name, takes, gives, pytester):
    pytester.makepyfile(test_it=OWN_CLOCK.format(name=name, takes=takes, gives=gives))
    run_inside(pytester).assert_outcomes(passed=1)


def test_the_bare_clock_leaves_time_real(flow_clock_bare):
    import time

    flow_clock_bare.advance(10**6)
    assert abs(time.time() - flow_clock_bare.now_ns() / 10**9) > 86_400


def test_the_runtime_leaves_no_thread_of_a_job_that_still_waits(pytester):
    pytester.makepyfile(
        """
        import threading, time
        from tests.routines import chain, sleeps

        def test_starts(flow_runtime):
            for workers in (None, 2):
                chain(workers=workers, a=sleeps(60)).start("a")

        def test_finds_none(flow_clock):
            for thread in threading.enumerate():
                if thread.name.startswith("routilux"):
                    thread.join(20)
                    assert not thread.is_alive(), thread.name
        """
    )
    run_inside(pytester).assert_outcomes(passed=2)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_type_of_each_fixture_is_public(name):
    function = vars(plugin)[name].__wrapped__
    returned = function.__annotations__["return"].removeprefix("Iterator[").removesuffix("]")
    assert returned in (*pytest_routilux.__all__, *routilux.__all__)


def test_each_fixture_says_in_one_line_what_it_gives(pytester):
    lines = run_inside(pytester, "--fixtures").outlines
    described = [
        below.strip()
        for line, below in pairwise(lines)
        if line.startswith(("flow_", "serialize_roundtrip"))
    ]
    assert 10 == len(described)
    for line in described:
        assert line[0].isupper()
        assert line.endswith((".", "…", "..."))
        assert len(line) <= 90


# --- two clocks, the default runtime --------------------------------------------------------------


def test_two_clocks_in_one_test_are_refused(pytester):
    pytester.makepyfile(
        NAP
        + """
    def test_two_clocks(flow_clock, flow_clock_bare): pass
    def test_the_other_order(flow_clock_bare, flow_clock): pass
    def test_one_asked_for_later(flow_runtime, request): request.getfixturevalue("flow_clock_bare")
    def test_one_clock(flow_clock_bare, flow_runtime): pass

    before = default_runtime()

    def test_default(flow_runtime): assert default_runtime() is flow_runtime
    def test_default_of_a_failing_test(flow_runtime): assert default_runtime() is not flow_runtime
    def test_default_as_before():
        assert default_runtime() is before
        assert abs(time.time() - 1767225600) > 86400
    """
    )
    result = run_inside(pytester)
    result.assert_outcomes(errors=2, failed=2, passed=3)
    line = "this test uses both flow_clock and flow_clock_bare, "
    assert 3 == sum(text.startswith(line) for text in result.outlines)


# --- what it costs --------------------------------------------------------------------------------


def test_nothing_is_imported_that_no_fixture_needs(pytester):
    pytester.makepyfile(
        """
        import sys

        def imported():
            return {name.partition(".")[0] for name in sys.modules} & {
                "freezegun", "hypothesis", "pytest_routilux", "rich", "routilux"
            }

        def test_fails():
            assert [1] == [2]

        def test_without_fixtures():
            assert imported() == {"pytest_routilux"}
            assert "pytest_routilux.monitor.comparison" not in sys.modules

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime, flow_monitor, flow_factory):
            assert imported() == {"pytest_routilux", "routilux"}

        def test_on_the_clock(flow_clock, flow_runtime, flow_monitor):
            assert imported() == {"freezegun", "pytest_routilux", "routilux"}
        """
    )
    run_fresh(pytester, "-v").assert_outcomes(passed=3, failed=1)


def test_a_suite_that_uses_nothing_imports_three_modules_of_the_plugin(pytester, monkeypatch):
    pytester.makepyfile("def test_nothing(): pass")
    pytester.makeconftest("import sys\ndef pytest_unconfigure(config): print(*sys.modules)")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    without = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    loaded, before = (set(result.outlines[-1].split()) for result in (run_fresh(pytester), without))
    ours = {"pytest_routilux", "pytest_routilux.plugin", "pytest_routilux.settings"}
    assert ours == loaded - before


def test_the_engine_is_not_rewritten_whatever_pytest_has_marked(pytester, monkeypatch):
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


# --- scopes ---------------------------------------------------------------------------------------


def test_a_fixture_that_is_asked_for_twice_is_the_same_one(inner):
    inner.makepyfile(
        "import pytest\n"
        + "".join(
            f"""
@pytest.fixture
def other_{name}({name}): return {name}

def test_twice_{name}({name}, other_{name}, request):
    assert {name} is other_{name} is request.getfixturevalue("{name}")

def test_later_{name}(request):
    assert request.getfixturevalue("{name}") is request.getfixturevalue("{name}")
"""
            for name in FIXTURES
        )
    )
    run_pytest(inner, *PLUGIN).assert_outcomes(passed=20)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_fixture_of_a_wider_scope_is_refused_by_both_names(inner, scope):
    inner.makepyfile(
        "import pytest\n"
        + "".join(
            f"""
@pytest.fixture(scope="{scope}")
def shared_{name}({name}): pass

@pytest.fixture(scope="{scope}")
def asked_for_{name}(request): request.getfixturevalue("{name}")

def test_one_{name}(shared_{name}): pass
def test_two_{name}(asked_for_{name}): pass
"""
            for name in FIXTURES
        )
    )
    result = run_pytest(inner, *PLUGIN)
    result.assert_outcomes(errors=20)
    for name in FIXTURES:
        line = f"*You tried to access the function scoped fixture {name} with a {scope}*"
        for own in (f"*def shared_{name}({name})", f"*def asked_for_{name}(request)"):
            result.stdout.fnmatch_lines([line, own, f"*plugin.py:*def {name}(*"])


# --- xunit and unittest ---------------------------------------------------------------------------


def test_a_unittest_has_the_runtime_from_its_set_up_on(inner):
    inner.makepyfile(
        NAP
        + """
    @pytest.mark.usefixtures("flow_runtime")
    class TestNap(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            assert not is_virtual()

        def setUp(self):
            self.job = nap().execute("nap")

        def tearDown(self):
            assert is_virtual()

        @pytest.fixture(autouse=True)
        def keep_monitor(self, flow_monitor):
            self.monitor = flow_monitor

        def test_first(self):
            self.assertEqual("2026-01-01T00:00:01.500000", datetime.datetime.now().isoformat())
            self.monitor.assert_status("completed", job=self.job)

        def test_second(self):
            self.test_first()
    """
    )
    result = run_pytest(inner, *PLUGIN)
    result.assert_outcomes(passed=2)
    assert_golden(
        "routilux: 2 jobs, 4 commits, 0 retries, 3 s of virtual time in ⏱ s", result.outlines
    )


def test_xunit_set_up_comes_before_all_fixtures_and_its_jobs_are_not_watched(inner):
    inner.makepyfile(
        NAP
        + """
    def setup_module(module): assert not is_virtual()
    def setup_function(function): assert not is_virtual()
    def teardown_function(function): assert not is_virtual()

    def test_function(flow_runtime): assert is_virtual()

    @pytest.mark.usefixtures("flow_runtime")
    class TestMethod:
        @classmethod
        def setup_class(cls): assert not is_virtual()
        def setup_method(self): assert not is_virtual()
        def teardown_method(self): assert not is_virtual()
        def test_virtual(self): assert is_virtual()
        def test_unwatched(self, flow_monitor): flow_monitor.assert_status("completed")

    class TestFixture:
        @pytest.fixture(autouse=True)
        def set_up(self, flow_runtime):
            self.job = nap().execute("nap")

        def test_watched(self, flow_monitor): flow_monitor.assert_status("completed", job=self.job)
    """
    )
    result = run_pytest(inner, *PLUGIN)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: flow_monitor recorded no job: *in flow_runtime*"]
    )


# --- async tests ----------------------------------------------------------------------------------

ASYNC: Final = """
    async def later(self, n=0):
        await self.ctx.asleep(1.5)

    async def test_async(flow_runtime, flow_monitor):
        await asyncio.sleep(0)
        for flow in (nap(), chain(nap=later)):
            assert (await flow.aexecute("nap")).status == "completed"
        assert nap().execute("nap").status == "completed"
        flow_monitor.assert_status("completed")

    async def test_blocking(flow_runtime):
        chain(nap=later).execute("nap").raise_for_status()

    async def test_simulated(flow_sim):
        flow_sim.crash_everywhere(nap, "nap")
"""
# What a plugin for async tests does, at its smallest.
RUNS_ASYNC: Final = """
    import asyncio, inspect
    import pytest

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem):
        if inspect.iscoroutinefunction(pyfuncitem.function):
            names = pyfuncitem._fixtureinfo.argnames
            asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
            return True
"""


def test_fixtures_work_in_async_tests(inner):
    inner.makeconftest(RUNS_ASYNC)
    inner.makepyfile(NAP + ASYNC)
    result = run_pytest(inner, *PLUGIN, "-W", "error")
    result.assert_outcomes(passed=3)


# --- again, in any order, on any worker -----------------------------------------------------------

CLEAN: Final = """
    @pytest.fixture(autouse=True)
    def clean():
        assert not is_virtual()
        assert not hasattr(datetime.datetime, "_real")
        yield
        assert not is_virtual()
        assert not hasattr(datetime.datetime, "_real")

    @pytest.mark.parametrize("n", range(4))
    def test_frozen(flow_runtime, flow_clock, flow_monitor, n):
        assert flow_clock.monotonic_ns() == 0
        assert flow_monitor.commits == []
        nap().execute("nap").raise_for_status()
        assert datetime.datetime.now() == datetime.datetime(2026, 1, 1, 0, 0, 1, 500000)

    @pytest.mark.parametrize("n", range(4))
    def test_bare(flow_clock_bare, flow_runtime, flow_monitor, n):
        assert flow_clock_bare.monotonic_ns() == 0
        assert flow_monitor.commits == []
        nap().execute("nap").raise_for_status()

    @pytest.mark.parametrize("n", range(2))
    def test_simulated(flow_sim, n):
        flow_sim.run(nap, "nap")
"""


@pytest.mark.parametrize(
    "args",
    [
        ("-p", "random_order", "--random-order-seed=7"),
        pytest.param(
            ("-p", "xdist", "-n", "2", "-p", "random_order", "--random-order-seed=8"),
            marks=pytest.mark.soak,
        ),
    ],
    ids=("one process", "two workers"),
)
def test_no_test_finds_anything_of_another_in_any_order(inner, args):
    inner.makepyfile(NAP + CLEAN)
    result = run_pytest(inner, *PLUGIN, "-W", "error", *args)
    result.assert_outcomes(passed=10)
    assert_golden(
        "routilux: 10 jobs, 20 commits, 0 retries, 15 s of virtual time in ⏱ s", result.outlines
    )


def test_a_test_that_is_run_again_finds_nothing_of_its_first_run(inner):
    inner.makeconftest(
        """
        import pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                runtestprotocol(item, nextitem=nextitem)
            return True
        """
    )
    inner.makepyfile(
        NAP
        + CLEAN
        + """
    runs = []

    def test_another_clock_each_time(request, flow_report):
        runs.append(1)
        flow_report.add(f"run {len(runs)}")
        request.getfixturevalue("flow_clock" if len(runs) == 1 else "flow_clock_bare").advance(1)
        assert len(runs) == 1, "the second one fails"
    """
    )
    result = run_pytest(inner, *PLUGIN)
    result.assert_outcomes(passed=21, failed=1)
    assert (0, 1) == (result.outlines.count("  run 1"), result.outlines.count("  run 2"))
    assert_golden(
        "routilux: 20 jobs, 40 commits, 0 retries, 32 s of virtual time in ⏱ s", result.outlines
    )


# --- observers that raise -------------------------------------------------------------------------

BROKEN: Final = """
    class Broken(ExecutionMonitor):
        def on_commit(self, job, commit):
            super().on_commit(job, commit)
            if commit.seq > 1:
                raise KeyError("lost")

        def __repr__(self):
            return "<Broken>"

    @pytest.fixture
    def flow_monitor():
        return Broken()

    @pytest.fixture
    def early(flow_runtime):
        nap().execute("nap")

    @pytest.fixture
    def late(flow_runtime):
        yield
        nap().execute("nap")

    def test_set_up(early): pass
    def test_call(flow_runtime): nap().execute("nap")
    def test_tear_down(late): pass
    def test_failing(early): assert False
    def test_skipped(early): pytest.skip("no")
    def test_none(flow_runtime): pass
"""


@pytest.mark.parametrize(
    "workers",
    [(), pytest.param(("-p", "xdist.plugin", "-n", "1"), marks=pytest.mark.soak)],
    ids=("here", "there"),
)
def test_an_error_of_an_observer_fails_the_test_in_every_phase(inner, workers):
    inner.makepyfile(NAP + BROKEN)
    result = run_pytest(inner, *PLUGIN, *workers)
    result.assert_outcomes(passed=4, failed=1, skipped=1, errors=5)
    line = "observer <Broken> raised once: KeyError: 'lost' ("
    assert 5 == sum(text.startswith(line) for text in result.outlines)
