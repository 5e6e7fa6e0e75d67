"""A failure that a test could miss fails it once: a refused sleep, a coroutine without `await`."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

import pytest

from pytest_routilux.virtual_time import late_failures
from tests.plugin.inner import run_inside

REFUSAL = (
    "charge (task 0, attempt 1) called time.sleep(0.25) at shop.py:23; the setting"
    " routilux_sleep = error forbids this call: use self.ctx.sleep(0.25)"
)


def test_a_refused_sleep_fails_the_test_on_every_driver_and_can_not_be_caught(shop):
    shop.makepyfile(
        """
        import pytest
        from shop import naps, naps_carelessly, shop

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        def test_executes(flow_runtime, strategy):
            shop(naps, strategy).execute("charge")

        def test_simulates(flow_sim):
            flow_sim.run(lambda: shop(naps), "charge")

        def test_waits(flow_runtime):
            shop(naps).start("charge").wait()

        def test_caught_in_the_handler(flow_runtime):
            shop(naps_carelessly).execute("charge")

        def test_caught_in_a_simulation(flow_sim):
            flow_sim.run(lambda: shop(naps_carelessly), "charge")

        def test_in_the_background(flow_runtime, flow_clock):
            shop(naps).start("charge")
            flow_clock.advance(5)

        @pytest.mark.xfail
        def test_known(flow_runtime):
            shop(naps).execute("charge")

        def test_expected(flow_runtime):
            with pytest.raises(pytest.fail.Exception, match="called time.sleep"):
                shop(naps).execute("charge")
        """
    )
    result = run_inside(shop, "-o", "routilux_sleep=error")
    result.assert_outcomes(failed=4, passed=4, errors=3, xfailed=1)
    assert 7 == result.stdout.lines.count(REFUSAL)


def test_a_refused_sleep_in_a_library_names_the_users_line_too(shop):
    pytest.importorskip("tenacity")
    shop.makepyfile(
        """
        import tenacity
        from shop import shop

        def fail():
            raise ConnectionError

        def test_patient(flow_runtime):
            shop(tenacity.retry(wait=tenacity.wait_fixed(3))(fail)).execute("charge")
        """
    )
    result = run_inside(shop, "-o", "routilux_sleep=error")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["charge (task 0, attempt 1) called time.sleep(3.0) at *tenacity*nap.py:*"]
    )
    result.stdout.fnmatch_lines(["*nap.py:* (for shop.py:48); the setting *"])


def test_a_forgotten_await_fails_the_test(shop):
    shop.makepyfile(
        test_shop="""
        import pytest
        from shop import awaits_later, book, forgets, forgets_later, shop

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        @pytest.mark.parametrize("work", [forgets, forgets_later, awaits_later])
        def test_executes(flow_runtime, work, strategy):
            shop(work, strategy).execute("charge").raise_for_status()

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime):
            shop(forgets).execute("charge")

        def test_simulates(flow_sim):
            flow_sim.run(lambda: shop(forgets), "charge")

        def test_forgets_a_job(flow_runtime):
            shop(forgets).aexecute("charge")

        def test_forgets_a_job_of_a_runtime(flow_runtime):
            flow_runtime.aexecute(shop(forgets), "charge")

        def test_expects_it_outside_of_a_step(flow_runtime):
            with pytest.warns(RuntimeWarning, match="'book' was never awaited"):
                book()
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=11, errors=8)
    text = "charge (task 0, attempt 1) called book() at shop.py:{} without await"
    lines = [line.partition(", so book() never ran; await the call")[0] for line in result.outlines]
    assert 4 == lines.count(text.format(35))
    assert 2 == lines.count(text.format(38))
    for name, line in (("Flow", 16), ("Runtime", 19)):
        result.stdout.fnmatch_lines(
            f"{name}.aexecute() was called at test_shop.py:{line}"
            " without await, so the job never started; await the call"
        )


def test_everything_is_as_before_at_the_end():
    before = vars(warnings)[late_failures._HOOK]
    broken = ExitStack()
    broken.enter_context(late_failures.fail_at_end())
    assert before is not vars(warnings)[late_failures._HOOK]
    with pytest.raises(KeyError), broken:
        raise KeyError
    assert before is vars(warnings)[late_failures._HOOK]
