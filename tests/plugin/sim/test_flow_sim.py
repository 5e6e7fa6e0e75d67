"""The fixtures `flow_sim` and `flow_faults` in a user's project."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from routilux import FlowDefinitionError
from tests.plugin.inner import run_inside
from tests.plugin.sim.shop_project import check_shop, glob, shop, survives
from tests.routines import chain, rest


def test_a_flow_that_survives_passes_and_v_prints_how_much_was_tried(pytester):
    shop(pytester, keyed=True)
    run_inside(pytester).assert_outcomes(passed=1)
    result = run_inside(pytester, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*💥 * of * crash points, complete, * s (* runs/s)*",
            "     * before a write · * store refuses · *",
            "     *around an effect*",
            "routilux: * crash points in * s",
        ]
    )


def test_a_flow_that_does_not_survive_fails_with_25_lines_of_100_columns(pytester):
    shop(pytester)
    result = run_inside(pytester)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    start = text.index("EFFECT REPEATED")
    failure = text[start : text.index("\n\nroutilux: ", start)].splitlines()
    assert len(failure) <= 25
    assert max(map(len, failure)) <= 100
    result.stdout.fnmatch_lines(
        [
            "EFFECT REPEATED: gateway.charge('A7') ran 2x, undisturbed run 1x*repeated[]]",
            "crash point*task 0.0 charge, attempt 1: after effect #1*",
            "why*",
            "fix*key=self.ctx.key(*",
            "tried*complete*",
            'repro*pytest "test_shop.py::test_survives" --routilux-repro=R1.*.0.0@a1.effect1',
        ]
    )


MISSPELT = "names no routine of flow 'tale'; known: 'orders', 'charge'; did you mean 'charge'?"


PROVES_NOTHING = {
    "faults=[flow_faults.raises('charge', OSError, attempts=[9])]": (
        "raises('charge', OSError, attempts=[9]) was never injected"
    ),
    "faults=[flow_faults.slow('chrage', 1)]": f"slow('chrage', 1) {MISSPELT}",
    "always=lambda job: job.routine_states['chrage']": "KeyError: 'chrage'",
    "always=lambda job: job.seq == 1 and 0": "ALWAYS DOES NOT HOLD: *after commit 1",
    "invariant=lambda outcome: outcome.calls[1:]": "INVARIANT: *returned []",
    "store=SqliteStore('x.db')": "store=<*SqliteStore object *> can't be called; give a f",
    "store=7": "store=7 can't be called; give a function that takes a path and",
    "store=MemoryStore": (
        "store=<class '*MemoryStore'> can't open a store (AttributeError: *'now_ns')"
    ),
    "store=lambda path: MemoryStore()": "store=*lambda* makes no file at the given path",
    "store=opens_elsewhere": "store=*opens_elsewhere* makes no file at the given path",
    "store=open": "store=<built-in function open> can't open a store (FileNotFoundError: ",
    "store=str": "store=<class 'str'> opens '*jobs.db', which has no create(); give a f",
}


def test_an_argument_that_proves_nothing_fails_the_test(pytester):
    lines: list[str] = []
    for number, says in enumerate(PROVES_NOTHING.values()):
        lines += [f"_* test_survives_{number} _*", f"*{glob(says)}*"]
    check_shop(pytester, survives(*PROVES_NOTHING), lines, failed=len(PROVES_NOTHING))


def test_a_fault_that_no_job_was_given_is_an_error(pytester):
    check_shop(
        pytester,
        """
    def test_forgets(flow_sim, flow_faults):
        flow_faults.store_fails(2, durable=True)
        flow_sim.run(build, "orders", {{"id": 7}})
""",
        ["no job ran with store_fails(2, durable=True); *"],
        keyed=False,
        passed=1,
        errors=1,
    )


def test_a_fault_that_struck_in_another_simulation_has_not_struck_in_this_one(pytester):
    check_shop(
        pytester,
        """
    def test_survives(flow_sim, flow_faults):
        down = flow_faults.raises("charge", OSError)
        flow_sim.run(build, "orders", {{"id": 7}}, faults=[down])
        flow_sim.crash_everywhere(unconnected, "orders", {{"id": 7}}, faults=[down])

    def unconnected():
        flow = build(orders=take)
        flow.add_routine(saveable(charges), "charge")
        return flow
""",
        ["raises('charge', OSError) was never injected*"],
        failed=1,
    )


def test_v_prints_what_a_pass_does_not_prove(pytester):
    check_shop(
        pytester,
        """
    def stamp(self, id):
        self.emit("out", order=self.ctx.now().isoformat())

    def fail(self, order):
        raise OSError("no line")

    def late():
        return build(orders=stamp, late=fail)

    def stamped():
        return build(orders=stamp)

    def test_fails(flow_sim):
        flow_sim.crash_everywhere(late, "orders", {{"id": 7}}, isolated=False, ends="failed")

    def test_stamps(flow_sim):
        flow_sim.crash_everywhere(stamped, "orders", {{"id": 7}})
        excuse = ["hash-seed"]
        flow_sim.check_determinism(lambda: stamped(), "orders", {{"id": 7}}, excuse=excuse)
""",
        [
            "*hosts in other processes: not tried, the test sets isolated=False",
            "*the undisturbed job failed: OSError: no line",
            "*not compared, since it varies without a crash: orders.out.order",
            "*all runs wrote the same records",
            "*another hash seed: not tried, by excuse=*",
        ],
        "-v",
        keyed=False,
        passed=2,
    )


FAILS = """
    def fail(self, order):
        raise OSError("no line")

    def down():
        return build(orders=take, charge=fail)
"""


@pytest.mark.parametrize("option", ["-v", "-q"])
def test_a_job_that_fails_without_a_crash_fails_the_test(option, pytester):
    shop(pytester, FAILS + survives("", build="down"))
    result = run_inside(pytester, option)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "UNEXPECTED END: the undisturbed job failed: OSError: no line*",
            "smallest cause  0 crashes (the undisturbed run shows it), 0 faults, FIFO order",
            "why    no crash is needed: the undisturbed job ends like this (test_shop.py:*",
            'fix    mend the flow; if the job should end like this, pass ends="failed" to*',
        ]
    )


def test_a_job_that_is_meant_to_fail_passes(pytester):
    meant = [
        'ends="failed"',
        'invariant=lambda outcome: outcome.job.status == "failed"',
        "always=lambda job: True",
        "view=lambda outcome: outcome.job.status",
        'ends="failed", view=lambda outcome: 1',
    ]
    shop(pytester, FAILS + survives(*meant, build="down"))
    run_inside(pytester).assert_outcomes(passed=5)


@pytest.mark.parametrize("checks", [{}, {"invariant": lambda outcome: True}])
def test_a_job_that_ends_otherwise_than_meant_fails_the_test(checks, flow_sim):
    with pytest.raises(pytest.fail.Exception) as failed:
        flow_sim.crash_everywhere(partial(chain, a=rest), "a", ends="failed", **checks)
    assert "the undisturbed job completed, but the test says ends='failed'" in str(failed.value)


async def naps(self, n=0) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        *(("run", body) for body in (naps, partial(naps))),
        *((method, naps) for method in ("crash_everywhere", "check_determinism")),
        *(
            pytest.param(method, partial(naps), marks=pytest.mark.soak)
            for method in ("crash_everywhere", "check_determinism")
        ),
    ],
)
def test_an_async_test_simulates_async_handlers(method, body, flow_sim):
    simulates = partial(getattr(flow_sim, method), partial(chain, a=body), "a")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        simulates()
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)

    asyncio.run(test())
    simulates()


def test_an_async_test_may_simulate_plain_handlers(flow_sim):
    async def test() -> None:
        assert "completed" == flow_sim.run(partial(chain, a=rest), "a").job.status

    asyncio.run(test())


@pytest.mark.parametrize("ends", ["fail", "running", "pending", 3])
def test_an_end_that_no_job_has_is_refused(ends, flow_sim):
    known = "known: 'completed', 'failed', 'cancelled'"
    with pytest.raises(FlowDefinitionError, match=f"is not the end of a job; {known}"):
        flow_sim.crash_everywhere(partial(chain, a=rest), "a", ends=ends)


def test_without_isolation_no_process_is_forked(pytester):
    shop(
        pytester,
        """
    def test_survives(flow_sim, monkeypatch):
        monkeypatch.setattr("pytest_routilux.hosts.fork_server._fork", None)
        flow_sim.crash_everywhere(build, "orders", {{"id": 7}}, isolated=False)
""",
        keyed=True,
    )
    run_inside(pytester).assert_outcomes(passed=1)


def test_a_planned_crash_that_does_not_happen_fails_the_test(pytester):
    check_shop(
        pytester,
        """
    def test_survives(flow_sim, monkeypatch):
        from pytest_routilux.sim import recovery

        def softened(fault, commit):
            pass  # the store takes what it should refuse

        monkeypatch.setattr(recovery._FailsAt, "before_write", softened)
        flow_sim.crash_everywhere(build, entry="orders", params={{"id": 7}})
""",
        ["*cut at * of *: planned *, executed *; a crash that did not*"],
        failed=1,
    )


def test_a_run_returns_the_job_and_the_effects(pytester):
    shop(
        pytester,
        """
    def test_runs(flow_sim, flow_faults):
        outcome = flow_sim.run(build, "orders", {{"id": 7}})
        assert outcome.job.status == "completed"
        assert [call.effect for call in outcome.calls] == ["gateway.charge"]
        assert outcome.job.updated_ns - outcome.job.started_ns == 360_000_000

        late = flow_faults.raises("charge", OSError("no line"), attempts=[1, 2])
        outcome = flow_sim.run(build, "orders", {{"id": 7}}, faults=[late])
        assert outcome.job.retry_count("charge") == 2
        assert outcome.job.updated_ns - outcome.job.started_ns == 1_860_000_000

        lost = flow_faults.store_fails(2)
        with pytest.raises(OSError, match="write 2 to the store failed"):
            flow_sim.run(build, "orders", {{"id": 7}}, faults=[lost])
        assert flow_sim.run(build, "orders", {{"id": 7}}, seed=3).job.status == "completed"
""",
        keyed=True,
    )
    run_inside(pytester).assert_outcomes(passed=1)


def test_a_flow_survives_on_a_real_store_and_v_names_it(pytester):
    check_shop(
        pytester,
        survives("store=SqliteStore"),
        ["*each host opens the files anew: store=SqliteStore"],
        "-v",
        passed=1,
    )
