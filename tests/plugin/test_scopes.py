"""Where and how often the fixtures may be used: each use behaves, or is refused clearly."""

from __future__ import annotations

from typing import Final

import pytest

from tests.plugin.inner import PLUGIN, assert_golden, run_pytest

FIXTURES: Final = (
    "flow_clock",
    "flow_clock_bare",
    "flow_runtime",
    "flow_monitor",
    "flow_factory",
    "serialize_roundtrip",
    "flow_hosts",
    "flow_sim",
    "flow_faults",
    "flow_report",
)

NAP: Final = """
    import asyncio, datetime, unittest
    import pytest
    from routilux import ExecutionMonitor, FakeClock, Flow, Routine
    from routilux.runtime import default_runtime

    class Nap(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.nap)
            self.define_slot("later", handler=self.nap_later)
            self.define_event("output", ["at"])

        def nap(self):
            self.ctx.sleep(1.5)
            self.emit("output", at=datetime.datetime.now())

        async def nap_later(self):
            self.nap()

    def nap():
        flow = Flow("nap")
        flow.add_routine(Nap(), "nap")
        return flow

    def virtual():
        return isinstance(default_runtime().clock, FakeClock)
"""


# --- in one test ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_that_is_asked_for_twice_is_the_same_one(
    inner: pytest.Pytester, name: str
) -> None:
    inner.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def other({name}):
            return {name}

        def test_twice({name}, other, request):
            assert {name} is other is request.getfixturevalue("{name}")

        def test_later(request):
            assert request.getfixturevalue("{name}") is request.getfixturevalue("{name}")
        """
    )
    inner.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=2)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_fixture_of_a_wider_scope_is_refused_by_both_names(
    inner: pytest.Pytester, name: str, scope: str
) -> None:
    inner.makepyfile(
        f"""
        import pytest

        @pytest.fixture(scope="{scope}")
        def shared({name}): pass

        @pytest.fixture(scope="{scope}")
        def asked_for(request): request.getfixturevalue("{name}")

        def test_one(shared): pass
        def test_two(asked_for): pass
        """
    )
    result = inner.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(errors=2)
    line = f"ScopeMismatch: You tried to access the function scoped fixture {name} with a {scope}*"
    for own in (f"*def shared({name})", "*def asked_for(request)"):
        result.stdout.fnmatch_lines([line, own, f"*plugin.py:*def {name}(*"], consecutive=False)


# --- xunit and unittest ---------------------------------------------------------------------------


def test_a_unittest_has_the_runtime_from_its_set_up_on(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        NAP
        + """
    @pytest.mark.usefixtures("flow_runtime")
    class TestNap(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            assert not virtual()

        def setUp(self):
            self.job = nap().execute("nap")

        def tearDown(self):
            assert virtual()

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
    result = inner.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=2)
    assert_golden(
        "routilux: 2 jobs, 4 commits, 0 retries, 3 s of virtual time in ⏱ s", result.outlines
    )


def test_xunit_set_up_comes_before_all_fixtures_and_its_jobs_are_not_watched(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        NAP
        + """
    def setup_module(module): assert not virtual()
    def setup_function(function): assert not virtual()
    def teardown_function(function): assert not virtual()

    def test_function(flow_runtime): assert virtual()

    @pytest.mark.usefixtures("flow_runtime")
    class TestMethod:
        @classmethod
        def setup_class(cls): assert not virtual()
        def setup_method(self): assert not virtual()
        def teardown_method(self): assert not virtual()
        def test_virtual(self): assert virtual()
        def test_unwatched(self, flow_monitor): flow_monitor.assert_status("completed")

    class TestFixture:
        @pytest.fixture(autouse=True)
        def set_up(self, flow_runtime):
            self.job = nap().execute("nap")

        def test_watched(self, flow_monitor): flow_monitor.assert_status("completed", job=self.job)
    """
    )
    result = inner.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: flow_monitor recorded no job: *flow_runtime is in use*"]
    )


# --- async tests ----------------------------------------------------------------------------------

ASYNC: Final = """
    async def test_async(flow_runtime, flow_monitor):
        await asyncio.sleep(0)
        for slot in ("trigger", "later"):
            job = await nap().aexecute("nap", slot=slot)
            assert job.status == "completed"
        assert nap().execute("nap").status == "completed"
        flow_monitor.assert_status("completed")

    async def test_blocked(flow_runtime):
        nap().execute("nap", slot="later").raise_for_status()

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


def test_in_async_tests_the_fixtures_work_and_a_blocked_loop_is_told(
    inner: pytest.Pytester,
) -> None:
    inner.makeconftest(RUNS_ASYNC)
    inner.makepyfile(NAP + ASYNC)
    result = run_pytest(inner, *PLUGIN, "-W", "error")
    result.assert_outcomes(passed=2, failed=1)
    line = "*the handler of slot 'later' is async and this thread runs an event loop already; use*"
    result.stdout.fnmatch_lines([line])


@pytest.mark.skipif(pytest.version_tuple < (8, 4), reason="older ones skip async tests")
def test_without_a_plugin_for_async_tests_pytest_refuses_them(inner: pytest.Pytester) -> None:
    inner.makepyfile(NAP + ASYNC)
    result = run_pytest(inner, *PLUGIN, "-W", "error")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["async def functions are not natively supported."])


# --- again, in any order, on any worker -----------------------------------------------------------

CLEAN: Final = """
    @pytest.fixture(autouse=True)
    def clean():
        assert not virtual()
        assert not hasattr(datetime.datetime, "_real")
        yield
        assert not virtual()
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
        ("-p", "xdist", "-n", "2", "-p", "random_order", "--random-order-seed=8"),
    ],
    ids=("one process", "two workers"),
)
def test_no_test_finds_anything_of_another_in_any_order(
    inner: pytest.Pytester, args: tuple[str, ...]
) -> None:
    inner.makepyfile(NAP + CLEAN)
    result = run_pytest(inner, *PLUGIN, "-W", "error", *args)
    result.assert_outcomes(passed=10)
    assert_golden(
        "routilux: 10 jobs, 20 commits, 0 retries, 15 s of virtual time in ⏱ s", result.outlines
    )


def test_a_test_that_is_run_again_finds_nothing_of_its_first_run(inner: pytest.Pytester) -> None:
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
"""


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "1")], ids=("here", "there"))
def test_what_an_observer_raises_fails_the_test_in_whatever_phase(
    inner: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    inner.makepyfile(
        test_it=NAP
        + BROKEN
        + """
    def test_set_up(early): pass
    def test_call(flow_runtime): nap().execute("nap")
    def test_tear_down(late): pass
    def test_failing(early): assert False
    def test_skipped(early): pytest.skip("no")
    def test_none(flow_runtime): pass
    """
    )
    result = run_pytest(inner, *PLUGIN, "-rE", *workers)
    result.assert_outcomes(passed=4, failed=1, skipped=1, errors=5)
    failed = {line.split()[1] for line in result.outlines if line.startswith("ERROR test_it")}
    names = ("set_up", "call", "tear_down", "failing", "skipped")
    assert {f"test_it.py::test_{name}" for name in names} == failed
    line = "observer <Broken> raised once KeyError: 'lost' ("
    assert 5 == sum(text.startswith(line) for text in result.outlines)
