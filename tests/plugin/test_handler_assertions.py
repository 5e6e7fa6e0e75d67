"""A failed assertion in a handler fails the test, whatever the flow makes of it."""

from __future__ import annotations

import pytest

from tests.plugin.inner import run_inside

HANDLERS = """
    import asyncio
    import pytest
    from routilux import ErrorHandler, Flow
    from tests.routines import Works, chain, rest, retrying

    class WrongTotal(AssertionError):
        pass

    def compares(self, n=0):
        if self.ctx.attempt == 1:
            assert n == 7

    def raises(self, n=0):
        raise WrongTotal("12 of 13")

    async def awaits(self, n=0):
        await asyncio.sleep(0)
        raise WrongTotal("12 of 13")

    def groups(self, n=0):
        raise ExceptionGroup("2 calls", [OSError("lost"), ExceptionGroup("1", [WrongTotal("7")])])

    def down(self, n=0):
        raise OSError("no line")

    def checks(self, message):
        raise WrongTotal(message)
"""
STRATEGIES = ["retry", "continue", "skip", "stop"]


def check(pytester, tests: str, *options: str, **outcomes: int) -> pytest.RunResult:
    pytester.makepyfile(test_it=HANDLERS + tests)
    result = run_inside(pytester, *options)
    result.assert_outcomes(**outcomes)
    return result


JOBS = f"""
    @pytest.mark.parametrize("workers", [None, 2])
    @pytest.mark.parametrize("body", [compares, raises, awaits])
    @pytest.mark.parametrize("strategy", {STRATEGIES})
    def test_executes(strategy, body, workers, flow_runtime):
        flow = chain(workers=workers, a=body, b=rest)
        flow.set_error_handler(ErrorHandler(strategy))
        flow.execute("a")

    def test_starts(flow_runtime):
        chain(a=raises).start("a").wait()

    @pytest.mark.parametrize("strategy", {STRATEGIES})
    def test_groups(strategy, flow_runtime):
        chain(a=Works(groups, ErrorHandler(strategy))).execute("a")

    async def executes():
        await chain(a=raises).aexecute("a")

    @pytest.mark.parametrize("strategy", {STRATEGIES})
    def test_error_handlers(strategy, flow_runtime):
        flow = chain(a=Works(down, ErrorHandler(strategy), error=["message"]))
        flow.add_routine(Works(checks, ErrorHandler(strategy), error=["message"]), "checks")
        flow.connect("a", "error", "checks", "trigger")
        flow.execute("a")

    def test_awaits(flow_runtime):
        asyncio.run(executes())

    @pytest.mark.parametrize("strategy", {STRATEGIES})
    def test_simulates(strategy, flow_sim):
        flow_sim.run(lambda: chain(a=Works(raises, ErrorHandler(strategy))), "a")

    @pytest.mark.parametrize("strategy", {STRATEGIES})
    def test_determinism(strategy, flow_sim):
        flow_sim.check_determinism(lambda: chain(a=Works(raises, ErrorHandler(strategy))), "a")

    @pytest.mark.parametrize("checked", [{{}}, dict(ends="failed"), dict(view=lambda outcome: 1)])
    def test_crashes(checked, flow_sim):
        flow_sim.crash_everywhere(lambda: chain(a=raises), "a", **checked)
"""


def test_every_driver_and_strategy_fails_the_test(pytester):
    result = check(pytester, JOBS, passed=34, errors=34, failed=11)
    result.stdout.fnmatch_lines(
        [
            "an assertion failed in a: AssertionError: assert 0 == 7 (test_it.py:*)",
            "mend the handler or the test; * set routilux_handler_assertions = ignore",
            "an assertion failed in a: test_it.WrongTotal: 12 of 13 (test_it.py:*)",
            "FAILED ASSERTION: an assertion failed in a: *",
            "why    a (test_it.py:*) raises an AssertionError, which a retry or a strategy may*",
        ]
    )


def test_the_setting_leaves_assertions_to_the_flow(pytester):
    pytester.makeini("[pytest]\nroutilux_handler_assertions = ignore")
    result = check(pytester, JOBS, passed=44, failed=1)
    result.stdout.fnmatch_lines(["UNEXPECTED END: the undisturbed job failed: WrongTotal: *"])


@pytest.mark.parametrize("value", ["yes", "Fail", ""])
def test_a_setting_that_is_not_known_ends_the_session(value, pytester):
    pytester.makeini(f"[pytest]\nroutilux_handler_assertions = {value}")
    result = run_inside(pytester)
    expected = f"routilux_handler_assertions must be fail or ignore, not {value!r}"
    assert expected in result.stderr.str()


def test_an_assertion_that_fails_only_after_a_crash_is_found(pytester):
    tests = """
    def counts(self, n=0):
        if self.ctx.attempt == 1 and HOSTS[0] > 3:
            raise WrongTotal("a second host")
        HOSTS[0] += 1
        self.emit("out", n=n)

    HOSTS = [0]

    def build():
        return chain(a=Works(counts, retrying()), b=rest)

    def test_crashes(flow_sim):
        flow_sim.crash_everywhere(build, "a", isolated=False, view=lambda outcome: 1)
"""
    result = check(pytester, tests, failed=1)
    result.stdout.fnmatch_lines(["FAILED ASSERTION: an assertion failed in a: *a second host*"])


def test_other_errors_and_those_of_the_test_itself_do_not_count(pytester):
    tests = """
    def test_other_errors(flow_runtime):
        assert "failed" == chain(a=down).execute("a").status

    def test_a_fault(flow_runtime, flow_faults):
        flow_faults.raises("a", WrongTotal("by the test"))
        assert "failed" == chain(a=rest).execute("a").status

    def test_own_failure_is_enough(flow_runtime):
        chain(a=raises).execute("a").raise_for_status()
"""
    check(pytester, tests, passed=2, failed=1)


def test_a_failure_that_no_test_waits_for_is_found(pytester):
    tests = """
    def gives_up(self, n=0):
        pytest.fail("12 of 13")

    def test_starts(flow_runtime, flow_clock):
        chain(a=gives_up).start("a")
        flow_clock.advance(1)
"""
    result = check(pytester, tests, passed=1, errors=1)
    result.stdout.fnmatch_lines(["an assertion failed in a: Failed: 12 of 13 *"])


def test_the_summary_counts_failed_jobs(pytester):
    tests = """
    def test_ends(flow_runtime, flow_sim):
        for body in (down, rest, down):
            chain(a=body).execute("a")
        flow_sim.run(lambda: chain(a=down), "a")
"""
    result = check(pytester, tests, passed=1)
    result.stdout.fnmatch_lines(["routilux: 4 jobs (3 failed), *"])
