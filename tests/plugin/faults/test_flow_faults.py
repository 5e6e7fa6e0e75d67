"""flow_faults strikes in the jobs of a runtime as it does in a simulation, or says why it can't."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from pytest_routilux import FlowFaults
from pytest_routilux.faults.faults import Fault
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobState,
    MemoryStore,
    Routine,
    Runtime,
    SqliteStore,
    Worker,
)
from tests.plugin.inner import run_inside
from tests.routines import SECOND, Wide, Works, chain, delays, ended_at, retrying, sends


async def charge(self: Routine, n: int) -> None:
    self.emit("out", n=n, at=self.ctx.now().isoformat())


def shop(orders=1, *, handler=None, workers=None, nap=0):
    def order(self: Routine, n: object = 0) -> None:
        self.ctx.sleep(nap)
        sends(*range(orders))(self)

    retry = handler or retrying(max_retries=4, retry_delay=0.5)
    return chain(order=order, charge=Wide(charge, retry, out=["n", "at"]), workers=workers)


@pytest.fixture(params=["in a runtime", "in a simulation"])
def struck(request, flow_runtime, flow_clock_bare, flow_sim):
    """Run a job with a fault in both ways."""

    def run(fault: Fault, build: Callable[[], Flow] = shop) -> JobState:
        if request.param == "in a runtime":
            return build().execute("order")
        return flow_sim.run(build, "order", faults=[fault]).job

    return run


@pytest.mark.parametrize("workers", [None, 4])
def test_a_handler_raises_in_the_attempts_that_are_named(flow_faults, struck, workers):
    fault = flow_faults.raises("charge", ConnectionError("no line"), attempts=[1, 2])
    job = struck(fault, lambda: shop(workers=workers))
    assert ("completed", 2, [0.5, 1.0]) == (job.status, fault.struck, delays(job))
    assert {"no line"} == {c.error.message for c in job.commits if c.error is not None}


def test_every_hit_counts_whatever_thread_it_comes_from(flow_faults, flow_runtime, flow_clock_bare):
    fault = flow_faults.raises("charge", OSError, attempts=[1])
    shop(40, workers=4).start("order").wait().raise_for_status()
    assert 40 == fault.struck


def test_a_slow_handler_begins_late_by_the_jobs_clock(flow_faults, struck):
    fault = flow_faults.slow("charge", 1.5)
    job = struck(fault)
    assert (1, 1.5) == (fault.struck, ended_at(job))
    assert "2026-01-01T00:00:01.500000+00:00" == job.outputs[0].data["at"]


def test_a_handler_that_is_slower_than_its_timeout_is_given_up(
    flow_faults, flow_runtime, flow_clock_bare
):
    flow_faults.slow("charge", 7, attempts=[1])
    handler = ErrorHandler("retry", max_retries=1, retry_delay=0.5, timeout=2)
    job = shop(handler=handler).execute("order")
    assert "completed" == job.status
    assert "routilux.StepTimeoutError" == job.commits[2].error.type
    assert 2.5 == ended_at(job)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_set_once_moves_no_wait(
    flow_faults, flow_runtime, flow_clock_bare, seconds
):
    before = flow_clock_bare.now_ns()
    flow_faults.raises("charge", OSError, attempts=[1])
    jump = flow_faults.clock_jump(seconds)
    job = shop().execute("order")
    assert 1 == jump.struck
    assert 0.5 == ended_at(job)
    assert seconds + 0.5 == (flow_clock_bare.now_ns() - before) / SECOND


@pytest.mark.parametrize(("durable", "kept"), [(False, 1), (True, 2)])
def test_a_store_fails_with_the_commit_kept_or_not(flow_faults, tmp_path, durable, kept):
    store = SqliteStore(tmp_path / "jobs.db")
    runtime = flow_faults.on(Runtime(clock=FakeClock(), store=store))
    flow_faults.store_fails(2, durable=durable)
    with pytest.raises(OSError, match=r"^write 2 to the store "):
        shop().execute("order", job_id="A7", runtime=runtime)
    assert kept == runtime.load("A7").seq
    resumed = runtime.resume(shop(), runtime.load("A7"))
    assert "completed" == resumed.status


def test_a_commit_that_can_not_be_saved_counts_as_no_write(flow_faults):
    runtime = flow_faults.on(Runtime(clock=FakeClock(), store=MemoryStore()))
    fault = flow_faults.store_fails(3)
    flow = chain(odd=Works(lambda self, n=0: self.emit("out", n=object()), ErrorHandler("skip")))
    assert 2 == flow.execute("odd", runtime=runtime).seq  # the start, and the task that is skipped
    assert not fault.struck
    with pytest.raises(OSError, match="write 3"):
        shop().execute("order", runtime=runtime)


@pytest.mark.parametrize(("durable", "kept"), [(False, 1), (True, 2)])
def test_a_write_of_several_jobs_fails_for_one_of_them(flow_faults, durable, kept):
    store = MemoryStore()
    runtime = flow_faults.on(Runtime(store=store))
    first, second, *_ = shop().execute("order", runtime=Runtime(clock=FakeClock())).commits
    flow_faults.store_fails(3 + 2, durable=durable)
    journal = runtime.environment.journal
    for job_id in "abc":
        journal.write(job_id, first, runtime.owner, claims=False)
    rows = [journal.row(job_id, second, runtime.owner) for job_id in "abc"]
    refusals = journal.append_all(rows)
    assert [None, "OSError", None] == [r and type(r).__name__ for r in refusals]
    assert [2, kept, 2] == [len(store.rows(job_id)) for job_id in "abc"]


@pytest.mark.parametrize("kind", [MemoryStore, SqliteStore])
def test_faults_strike_in_the_jobs_of_a_worker(flow_faults, flow_clock_bare, tmp_path, kind):
    path = [tmp_path / "jobs.db"] if kind is SqliteStore else []
    store = kind(*path, clock=flow_clock_bare)
    runtime = flow_faults.on(Runtime(clock=flow_clock_bare, store=store))
    flow_faults.raises("charge", OSError, attempts=[1, 2])
    for job_id in ("A7", "A8"):
        runtime.submit(shop(), "order", job_id=job_id)
    Worker(store, [shop()], runtime=runtime).run(until_idle=True)
    jobs = [runtime.load(job_id) for job_id in ("A7", "A8")]
    assert [("completed", 2)] * 2 == [(job.status, job.retry_count("charge")) for job in jobs]


def test_faults_strike_in_real_threads_on_the_systems_clock(flow_faults):
    with ThreadPoolExecutor(2) as executor:
        runtime = flow_faults.on(Runtime(executor=executor))
        flow_faults.raises("charge", OSError, attempts=[1])
        handler = ErrorHandler("retry", max_retries=1, retry_delay=0)
        job = shop(3, handler=handler).execute("order", runtime=runtime)
    assert ("completed", 1) == (job.status, job.retry_count("charge"))


def test_an_error_that_was_made_once_is_raised_by_many_threads_at_once(flow_faults):
    runtime = flow_faults.on(Runtime())
    flow_faults.raises("charge", OSError("down"), attempts=[1, 2, 3])
    handler = ErrorHandler("retry", max_retries=3, retry_delay=0)
    job = shop(30, handler=handler, workers=8).execute("order", runtime=runtime)
    assert ("completed", 30) == (job.status, len(job.outputs))


def test_a_fault_that_a_simulation_was_given_leaves_the_runtime_alone(
    flow_faults, flow_runtime, flow_clock_bare, flow_sim
):
    flow_sim.run(shop, "order", faults=[flow_faults.raises("charge", OSError, attempts=[1])])
    assert 0 == shop().execute("order").retry_count()


def test_a_job_that_began_before_is_left_alone(flow_faults):
    clock = FakeClock(autojump=False)
    runtime = Runtime(clock=clock)
    run = shop(nap=1).start("order", runtime=runtime)
    flow_faults.on(runtime)
    fault = flow_faults.raises("charge", OSError)
    clock.advance(1)
    assert ("completed", 0) == (run.wait().status, fault.struck)
    clock.autojump = True
    assert 4 == shop().execute("order", runtime=runtime).retry_count()


def test_a_runtime_is_restored_at_the_end():
    runtime = Runtime(clock=FakeClock(), store=MemoryStore())
    before = runtime.environment.run_step, runtime.environment.journal
    outer, inner = FlowFaults(), FlowFaults()
    outer.on(runtime)
    inner.on(inner.on(runtime))
    inner.raises("charge", OSError, attempts=[1])
    outer.raises("charge", KeyError, attempts=[2])
    job = shop().execute("order", runtime=runtime)
    assert ["OSError", "KeyError"] == [c.error.type for c in job.commits if c.error is not None]
    inner.close()
    outer.close()
    assert before == (runtime.environment.run_step, runtime.environment.journal)
    assert 0 == shop().execute("order", runtime=runtime).retry_count()


@pytest.mark.parametrize(
    ("make", "runtime", "says"),
    [
        (lambda f: f.slow("charge", 1), Runtime(), "would sleep in real time; give the runtime a"),
        (lambda f: f.clock_jump(-60), Runtime(), "can't set a SystemClock; give the runtime a"),
        (
            lambda f: f.store_fails(1),
            Runtime(clock=FakeClock()),
            "needs a store, and this runtime has none; use flow_faults.on(Runtime(clock=flow_clock",
        ),
    ],
)
@pytest.mark.parametrize("workers", [None, 2])
def test_a_fault_that_can_not_strike_aborts_the_job_with_what_to_do(make, runtime, says, workers):
    faults = FlowFaults()
    faults.on(runtime)
    fault = make(faults)
    with pytest.raises(FlowDefinitionError) as refused:
        shop(workers=workers).execute("order", runtime=runtime)
    faults.close()
    assert str(refused.value).startswith(f"{fault} {says}")


def test_steps_in_other_processes_are_refused(flow_faults):
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(FlowDefinitionError, match="executor is a ProcessPoolExecutor; make"),
    ):
        flow_faults.on(Runtime(executor=executor))


SHOP = f"""
    import pytest
    from {__name__} import shop
    from routilux import FakeClock, MemoryStore, Runtime
"""


def test_a_fault_that_never_strikes_fails_the_test(pytester):
    pytester.makepyfile(
        SHOP
        + """
    def test_idle(flow_runtime, flow_faults):
        flow_faults.raises("charge", OSError, attempts=[2])
        shop().execute("order")

    def test_misspelt(flow_runtime, flow_faults):
        flow_faults.raises("chrage", OSError)
        shop().execute("order").raise_for_status()

    def test_nowhere(flow_faults):
        flow_faults.raises("charge", OSError)

    def test_fine(flow_runtime, flow_faults):
        flow_faults.raises("charge", OSError, attempts=[1])
        assert shop().execute("order").retry_count() == 1
    """
    )
    result = run_inside(pytester)
    result.assert_outcomes(passed=4, errors=3)
    for line in (
        "raises('charge', OSError, attempts=[[]2]) was never injected*; name one that happens*",
        "raises('chrage', OSError) names no routine of the flows that ran; *mean 'charge'?",
        "no job ran with raises('charge', OSError); use flow_runtime in the test too, *",
    ):
        result.stdout.fnmatch_lines([line])


def test_a_failed_test_reports_only_misspelt_faults_and_runtimes_are_restored(pytester):
    pytester.makepyfile(
        SHOP
        + """
    def test_early(flow_runtime, flow_faults):
        flow_faults.raises("charge", OSError)
        assert not "the flow is built"

    def test_late(flow_runtime, flow_faults):
        flow_faults.raises("charge", OSError, attempts=[7])
        flow_faults.raises("chrage", OSError)
        assert shop().execute("order").retry_count() == 1

    @pytest.fixture(scope="module")
    def runtime():
        return Runtime(clock=FakeClock(), store=MemoryStore())

    def test_one(runtime, flow_faults):
        flow_faults.on(runtime)
        flow_faults.store_fails(2)
        with pytest.raises(OSError):
            shop().execute("order", runtime=runtime)

    def test_two(runtime):
        shop().execute("order", runtime=runtime).raise_for_status()
    """
    )
    result = run_inside(pytester)
    result.assert_outcomes(failed=2, errors=1, passed=2)
    result.stdout.fnmatch_lines(["raises('chrage', OSError) names no routine of the flows*"])
    result.stdout.no_fnmatch_line("*never injected*")
