"""routilux_sleep: what time.sleep() does in a handler; and freezes that are refused beside it."""

from __future__ import annotations

import pytest

from pytest_routilux.virtual_time import freeze
from tests.plugin.inner import run_inside

SHOP = """
    import time
    import pytest
    from time import sleep
    from routilux import ErrorHandler, Flow, Routine

    class Charge(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.charge)

        def charge(self):
            sleep(0.25)

    class Careless(Charge):
        def charge(self):
            try:
                super().charge()
            except:
                pass

    def shop(strategy="sequential", charge=Charge):
        flow = Flow("shop", execution_strategy=strategy)
        flow.add_routine(charge(), "charge")
        flow.set_error_handler(ErrorHandler("retry", max_retries=2))
        return flow
"""
REFUSAL = (
    "charge (task 0, attempt 1) called time.sleep(0.25) at shop.py:12, which routilux_sleep = error"
    " forbids: use self.ctx.sleep(0.25)"
)


@pytest.fixture
def shop(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\npythonpath = .\nroutilux_sleep = error")
    return pytester


def test_error_names_the_step_and_the_line_on_every_driver(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import pytest
        from shop import shop

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        def test_executes(flow_runtime, strategy):
            shop(strategy).execute("charge")

        def test_simulates(flow_sim):
            flow_sim.run(shop, "charge")

        def test_waits(flow_runtime):
            shop().start("charge").wait()
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=4)
    assert 4 == result.stdout.lines.count(REFUSAL)


def test_error_can_be_neither_caught_nor_missed(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        from shop import Careless, shop

        def test_caught_in_the_handler(flow_runtime):
            shop(charge=Careless).execute("charge")

        def test_simulated(flow_sim):
            flow_sim.run(lambda: shop(charge=Careless), "charge")

        def test_in_the_background(flow_runtime, flow_clock):
            shop().start("charge")
            flow_clock.advance(5)
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=3, errors=3)
    assert 3 == result.stdout.lines.count(REFUSAL)


def test_error_is_told_once_where_it_is_awaited(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import pytest
        from shop import shop

        @pytest.mark.xfail
        def test_known(flow_runtime):
            shop().execute("charge")

        def test_expected(flow_runtime):
            with pytest.raises(pytest.fail.Exception, match="called time.sleep"):
                shop().execute("charge")
        """
    )
    run_inside(shop).assert_outcomes(xfailed=1, passed=1)


def test_error_in_a_library_names_the_users_line_too(shop: pytest.Pytester) -> None:
    pytest.importorskip("tenacity")
    shop.makepyfile(
        """
        import tenacity
        from shop import Charge, shop

        class Patient(Charge):
            def charge(self):
                tenacity.retry(wait=tenacity.wait_fixed(3))(self.fail)()

            def fail(self):
                raise ConnectionError

        def test_patient(flow_runtime):
            shop(charge=Patient).execute("charge")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["charge (task 0, attempt 1) called time.sleep(3.0) at *tenacity*nap.py:*"]
    )
    result.stdout.fnmatch_lines(["*nap.py:* (for test_error_in_a_library*.py:6), which *"])


def test_a_sleep_of_the_test_itself_is_nobodys_business(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import time

        def test_sleeps(flow_runtime):
            time.sleep(0)
        """
    )
    run_inside(shop).assert_outcomes(passed=1)


def test_real_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from routilux import Flow, Routine, Runtime

    slept: list[float] = []
    monkeypatch.setattr(freeze, "real_sleep", slept.append)
    routine = Routine()
    routine.define_slot("trigger", handler=lambda: time.sleep(3))
    flow = Flow("real")
    flow.add_routine(routine, "sleeper")
    with freeze.frozen_clock("real") as clock, Runtime(clock=clock) as runtime:
        flow.execute("sleeper", runtime=runtime).raise_for_status()
        assert (3, 0.0) == (slept.pop(), time.monotonic())
    with freeze.frozen_clock() as clock, Runtime(clock=clock) as runtime:
        flow.execute("sleeper", runtime=runtime).raise_for_status()
        assert ([], 3.0) == (slept, time.monotonic())


def test_a_setting_that_is_none_is_refused_before_any_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    for setting, reason in (
        ("sleep=fake", "routilux_sleep is virtual, error or real, not 'fake'"),
        ("blocked_after=soon", "'soon'; routilux_blocked_after is a number of seconds"),
        ("blocked_after=-1", "routilux_blocked_after is a number of seconds, not -1.0"),
        ("blocked_after=inf", "routilux_blocked_after is a number of seconds, not inf"),
        ("blocked_after=nan", "routilux_blocked_after is a number of seconds, not nan"),
    ):
        result = run_inside(pytester, "-o", f"routilux_{setting}")
        assert pytest.ExitCode.USAGE_ERROR == result.ret
        [line] = [line for line in result.errlines if line]
        assert line.startswith("ERROR: ")
        assert line.endswith(reason)


@pytest.mark.parametrize(
    ("table", "value", "trouble"),
    [
        ("[tool.pytest]", "3", ""),
        ("[tool.pytest]", "0.25", ""),
        ("[tool.pytest.ini_options]", "3", ""),
        ("[tool.pytest.ini_options]", '"0.25"', ""),
        ("[tool.pytest]", '"3"', "expects a float, got str: '3'; routilux_blocked_after is a num"),
        ("[tool.pytest]", "true", "expects a float, got bool: True; routilux_blocked_after is a"),
    ],
)
@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest has native tables since 9.0")
def test_seconds_are_a_number_in_a_native_table(
    pytester: pytest.Pytester, table: str, value: str, trouble: str
) -> None:
    pytester.makepyprojecttoml(f"{table}\nroutilux_blocked_after = {value}\n")
    number = value.strip('"')
    pytester.makepyfile(
        f"""
        def test_it(pytestconfig, flow_clock):
            assert {number} == pytestconfig.getini("routilux_blocked_after")
        """
    )
    result = run_inside(pytester)
    if trouble:
        assert pytest.ExitCode.USAGE_ERROR == result.ret
        result.stderr.fnmatch_lines([f"ERROR: *'routilux_blocked_after' {trouble}*"])
    else:
        result.assert_outcomes(passed=1)


# --- freezes of the user's own --------------------------------------------------------------------

SUMMER = """
    import datetime
    import freezegun
    import pytest

    @pytest.fixture
    def summer():
        with freezegun.freeze_time("2030-07-01"):
            yield

    def test_fixture_around(summer, flow_clock):
        pass

    def test_fixture_inside(flow_runtime, summer):
        pass

    @freezegun.freeze_time("2030-07-01")
    def test_decorator(flow_clock):
        pass

    @freezegun.freeze_time("2030-07-01")
    class TestDecorated:
        def test_of_a_class(self, flow_sim):
            pass

    def test_context(flow_runtime):
        with freezegun.freeze_time("2030-07-01"):
            pass

    @pytest.mark.freeze_time("2030-07-01")
    def test_marker(flow_clock):
        pass

    def test_plugin_around(freezer, flow_sim):
        pass

    def test_plugin_inside(flow_clock, freezer):
        pass

    def test_after_all(flow_runtime):
        assert datetime.datetime.now() == datetime.datetime(2026, 1, 1)

    def test_without(summer):
        assert datetime.datetime.now() == datetime.datetime(2030, 7, 1)
"""


def test_every_freeze_of_the_users_own_is_refused_by_name(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_summer=SUMMER)
    result = run_inside(pytester, "-p", "pytest_freezer")
    result.assert_outcomes(errors=5, failed=3, passed=2)
    ends = "both set the time of this test; remove one of them"
    told = [line.partition(f" {ends}")[0] for line in result.outlines if ends in line]
    july = "freeze_time('2030-07-01 00:00:00')"
    assert 8 == len(told)
    assert {
        f"flow_clock and {july} around it",
        f"flow_clock and {july} that decorates the test",
        f"flow_sim and {july} that decorates the test",
        f"flow_clock and {july} at test_summer.py:7 in summer",
        f"flow_clock and {july} at test_summer.py:26 in test_context",
    } <= set(told)
    [plugin] = [line for line in told if line.endswith(" in freezer")]
    assert "pytest_freezer.py:" in plugin
