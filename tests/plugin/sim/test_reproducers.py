"""`--routilux-repro`: a reproducer fails again, is fixed, or is stale, which is an error."""

from __future__ import annotations

import shlex
import sys

import pytest

from pytest_routilux.sim.repro import Repro, repeat_command
from tests.plugin.inner import run_inside
from tests.plugin.sim.shop_project import (
    SURVIVES,
    check_shop,
    glob,
    repro_of,
    reproducer,
    shop,
    survives,
)
from tests.soak import also

TWO = ("-p", "xdist", "-n", "2")
WORKERS = pytest.mark.parametrize("workers", [(), TWO], ids=["alone", "two workers"])
WORKERS_SOAK = pytest.mark.parametrize(
    "workers", [(), pytest.param(TWO, marks=pytest.mark.soak)], ids=["alone", "two workers"]
)


@WORKERS
def test_a_reproducer_fails_again_in_another_process(workers, pytester):
    repro = reproducer(pytester)
    again = run_inside(pytester, f"--routilux-repro={repro}", *workers)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(
        [
            "EFFECT REPEATED: gateway.charge('A7') ran 2x*",
            f"test_shop.py::test_survives: {glob(repro)}: fails",
        ]
    )
    assert repro == repro_of(again)


@WORKERS_SOAK
@pytest.mark.parametrize("folder", also("docs/guide", ".", "checks"))
def test_the_command_repeats_the_failure_where_pytest_was_started(
    folder, workers, pytester, monkeypatch
):
    pytester.makeini("[pytest]")
    shop(pytester)
    for name in ("checks", "docs/guide"):
        (pytester.path / name).mkdir(parents=True)
    (pytester.path / "test_shop.py").rename(pytester.path / "checks/test_shop.py")
    monkeypatch.chdir(folder)
    failed = run_inside(pytester, *workers, str(pytester.path / "checks"))
    failed.assert_outcomes(failed=1)
    [line] = [text for text in failed.outlines if text.startswith("repro ")]
    words = shlex.split(line)
    again = run_inside(pytester, *words[words.index("pytest") + 1 :])
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines([line])


@pytest.mark.parametrize(
    ("started", "program"),
    [("/venv/bin/pytest", "pytest"), ("/venv/pytest/__main__.py", "python -m pytest")],
)
def test_the_command_starts_pytest_as_it_was_started(started, program, request, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(request.config, "workerinput", {"mainargv": [started]}, raising=False)
    text = repeat_command(request.node, Repro("9f3c"))
    assert text.startswith(f'{program} "')
    assert text.endswith('" --routilux-repro=R1.9f3c.fifo')


@WORKERS_SOAK
def test_a_reproducer_of_a_fixed_bug_is_fixed(workers, pytester):
    repro = reproducer(pytester)
    shop(pytester, keyed=True)
    again = run_inside(pytester, f"--routilux-repro={repro}", *workers)
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines([f"test_shop.py::test_survives: {glob(repro)}: fixed"])


def test_a_reproducer_of_another_flow_is_stale_and_an_error(pytester):
    repro = reproducer(pytester)
    changed = SURVIVES.replace("flow_sim)", "flow_sim, monkeypatch)").replace(
        "crash_everywhere(build", "crash_everywhere(lambda: longer(build())"
    )
    longer = """
    def longer(flow):
        flow.add_routine(saveable(take), "more")
        return flow
"""
    shop(pytester, longer + changed, keyed=True)
    again = run_inside(pytester, f"--routilux-repro={repro}")
    again.assert_outcomes(passed=1, errors=1)
    again.stdout.fnmatch_lines(["*STALE: * fits no simulation of the test: *have changed*"])


def test_a_reproducer_whose_point_is_gone_is_stale_and_an_error(pytester):
    repro = reproducer(pytester)
    gone = repro.replace("effect1", "effect2")
    again = run_inside(pytester, f"--routilux-repro={gone}")
    again.assert_outcomes(failed=1, errors=1)
    again.stdout.fnmatch_lines(
        ["*STALE: * has no crash point 0.0@a1.effect2*", "EFFECT REPEATED: *"]
    )


def test_a_reproducer_finds_its_simulation_after_one_that_it_does_not_fit(pytester):
    repro = reproducer(
        pytester,
        """
    def silent():
        return build(orders=take, charge=quiet)

    def quiet(self, order):
        self.emit("out", order=order)

    def test_survive(flow_sim):
        coverage = flow_sim.crash_everywhere(silent, entry="orders", params={{"id": 7}})
        assert 0 < coverage.executed["by document"]
        flow_sim.crash_everywhere(build, entry="orders", params={{"id": 7}})
""",
    )
    again = run_inside(pytester, f"--routilux-repro={repro}")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines([f"test_shop.py::test_survive: {glob(repro)}: fails"])


@WORKERS_SOAK
def test_a_reproducer_finds_its_simulation_in_the_teardown_of_a_fixture(workers, pytester):
    repro = reproducer(
        pytester,
        """
    @pytest.fixture
    def afterwards(flow_sim):
        yield
        flow_sim.crash_everywhere(build, entry="orders", params={{"id": 7}})

    def test_survive(afterwards):
        pass
""",
    )
    again = run_inside(pytester, f"--routilux-repro={repro}", *workers)
    again.assert_outcomes(passed=1, errors=1)
    again.stdout.fnmatch_lines([f"test_shop.py::test_survive: {glob(repro)}: fails"])


def test_a_reproducer_with_an_order_is_stale_for_a_flow_that_has_one(pytester):
    digest = reproducer(pytester).split(".")[1]
    shop(pytester, keyed=True)
    again = run_inside(pytester, f"--routilux-repro=R1.{digest}.o5-1")
    again.assert_outcomes(passed=1, errors=1)
    again.stdout.fnmatch_lines(
        ["*STALE: *o5-1 fits no simulation of the test: the flow has one order of work alone*"]
    )


@WORKERS_SOAK
def test_a_reproducer_that_no_simulation_takes_is_stale_and_an_error(workers, pytester):
    pytester.makepyfile("def test_nothing(): assert True")
    stale = "--routilux-repro=R1.9f3c.0.0@a1.effect1"
    result = run_inside(pytester, stale, *workers)
    assert pytest.ExitCode.TESTS_FAILED == result.ret
    result.stdout.fnmatch_lines(["R1.9f3c.0.0@a1.effect1: stale, no simulation of these tests*"])
    assert pytest.ExitCode.TESTS_FAILED == run_inside(pytester, stale, "-p", "no:terminal").ret


def test_a_reproducer_that_can_not_be_read_is_refused_before_any_test(pytester):
    shop(pytester)
    result = run_inside(pytester, "--routilux-repro=R2.9f3c.0")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*'R2.9f3c.0' is not a valid reproducer; write R1.<4 hex*"])


def test_a_reproducer_made_on_a_store_is_stale_without_it(pytester):
    says = [
        "STORE LOST: commit 2 (done of orders) was acknowledged, but is not in the files*",
        *("why*", "fix*"),
    ]
    repro = repro_of(check_shop(pytester, survives("store=CommitsAtStop"), says, failed=1))
    run_inside(pytester, f"--routilux-repro={repro}").assert_outcomes(failed=1)
    for store in ("SqliteStore", "None"):
        shop(pytester, survives(f"store={store}"), keyed=True)
        again = run_inside(pytester, f"--routilux-repro={repro}")
        again.assert_outcomes(passed=1, errors=1)
        again.stdout.fnmatch_lines(["*STALE: * fits no simulation of the test: *"])
