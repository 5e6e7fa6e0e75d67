"""Other plugins beside ours: their timers are real while the time of the test is virtual."""

from __future__ import annotations

import pytest

from tests.plugin.inner import run_inside

TESTS = """
    import threading
    from routilux import Flow, Routine

    class Do(Routine):
        def __init__(self, work):
            super().__init__()
            self.work = work
            self.define_slot("trigger", handler=self.do)

        def do(self):
            self.work(self.ctx)

    def flow(work, strategy="sequential"):
        made = Flow("do", execution_strategy=strategy)
        made.add_routine(Do(work), "do")
        return made

    def test_waits_for_days_in_virtual_time(flow_runtime):
        flow(lambda ctx: ctx.sleep(10**6)).execute("do").raise_for_status()
        flow(lambda ctx: ctx.sleep(10**6), "concurrent").execute("do").raise_for_status()

    def test_waits_for_ever_in_real_time(flow_runtime):
        flow(lambda ctx: threading.Event().wait()).execute("do")
"""


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_limit_of_pytest_timeout_is_of_real_time(pytester: pytest.Pytester, method: str) -> None:
    pytester.makepyfile(TESTS)
    result = run_inside(
        pytester,
        *("-p", "pytest_timeout", "--timeout=1.5", f"--timeout-method={method}", "-v"),
        *("-o", "routilux_blocked_after=0"),
    )
    assert any("in_virtual_time PASSED" in line for line in result.outlines)
    if method == "signal":
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["*Failed: Timeout (>1.5s) from pytest-timeout."])
    else:  # which ends the whole process
        assert 1 == result.ret
        result.stdout.fnmatch_lines(["*++ Timeout ++*", "*flow(lambda ctx: threading.Event()*"])


def test_where_both_watch_whoever_is_faster_tells(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = run_inside(
        pytester, "-p", "pytest_timeout", "--timeout=60", "-o", "routilux_blocked_after=0.05"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["do (task 0, attempt 1) of job * is blocked: *"])
