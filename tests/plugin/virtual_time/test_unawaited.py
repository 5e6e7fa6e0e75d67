"""A forgotten `await` fails the test, with whose it is, its line and what was called."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

import pytest

from pytest_routilux.virtual_time import late_failures
from tests.plugin.inner import run_inside

SHOP = """
    from routilux import Flow, Routine

    class Charge(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.charge)

        def charge(self):
            self.book()

        async def book(self):
            self.ctx.sleep(1)

    class Later(Charge):
        async def charge(self):
            self.book()

    class Right(Charge):
        async def charge(self):
            await self.book()

    def shop(kind=Charge, strategy="sequential"):
        flow = Flow("shop", execution_strategy=strategy)
        flow.add_routine(kind(), "charge")
        return flow
"""


@pytest.fixture
def shop(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\npythonpath = .")
    return pytester


def test_a_coroutine_that_a_handler_forgets_fails_the_test(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import pytest
        from shop import Charge, Later, Right, shop

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        @pytest.mark.parametrize("kind", [Charge, Later, Right])
        def test_executes(flow_runtime, kind, strategy):
            shop(kind, strategy).execute("charge").raise_for_status()

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime):
            shop().execute("charge")

        def test_simulates(flow_sim):
            flow_sim.run(shop, "charge")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=8, errors=6)
    told = "charge (task 0, attempt 1) called {}.book() at shop.py:{} and did not await it"
    lines = [line.partition(", so it never ran: await it")[0] for line in result.outlines]
    assert 4 == lines.count(told.format("Charge", 9))
    assert 2 == lines.count(told.format("Charge", 16))
    result.stdout.no_fnmatch_line("*was never awaited*")


def test_a_job_that_is_forgotten_fails_the_test(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        from shop import shop

        def test_forgets(flow_runtime):
            shop().aexecute("charge")

        def test_forgets_of_a_runtime(flow_runtime):
            flow_runtime.aexecute(shop(), "charge")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=2, errors=2)
    for name, line in (("Flow", 4), ("Runtime", 7)):
        result.stdout.fnmatch_lines(
            f"{name}.aexecute() was called at test_a_job_that_is_forgotten_fails_the_test.py:{line}"
            " and not awaited, so its job never started: await it"
        )


def test_of_any_other_coroutine_python_warns_as_ever(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import pytest

        async def other():
            pass

        def test_expects_it(flow_runtime):
            with pytest.warns(RuntimeWarning, match="'other' was never awaited"):
                other()
        """
    )
    run_inside(shop).assert_outcomes(passed=1)


def test_everything_is_as_before_at_the_end() -> None:
    before = vars(warnings)[late_failures._HOOK]
    broken = ExitStack()
    broken.enter_context(late_failures.fail_at_end())
    assert before is not vars(warnings)[late_failures._HOOK]
    with pytest.raises(KeyError), broken:
        raise KeyError
    assert before is vars(warnings)[late_failures._HOOK]
