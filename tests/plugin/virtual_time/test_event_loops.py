"""Event loops that user code and other plugins make follow the fake clock of a test."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from routilux import FakeClock, JobStatus, Runtime, SystemClock
from routilux.clocks.virtual_loop import VirtualLoop
from tests.plugin.inner import run_first
from tests.routines import PATIENCE, SECOND, Works, chain

HOUR = 3600
ASYNCIO = ("-p", "pytest_asyncio.plugin")
ANYIO = ("-p", "anyio.pytest_plugin")
STRICT = "-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function"
AUTO = "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"

HEAD = """
    import asyncio, time, unittest
    import pytest
    from routilux.clocks.virtual_loop import VirtualLoop
    from tests.routines import chain

    async def hour(clock):
        start = clock.now()
        assert isinstance(asyncio.get_running_loop(), VirtualLoop)
        assert asyncio.get_running_loop().clock is clock
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.sleep(4000)
        assert 3600 == (clock.now() - start).total_seconds()

    async def nap(self):
        await asyncio.sleep(3600)
"""


# --- loops that user code makes -------------------------------------------------------------------


def by_run(clock: FakeClock) -> None:
    asyncio.run(asyncio.sleep(HOUR))


def by_runner(clock: FakeClock) -> None:
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(HOUR))


def by_new_event_loop(clock: FakeClock) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(HOUR))
    loop.close()


def by_policy(clock: FakeClock) -> None:
    loop = asyncio.get_event_loop_policy().new_event_loop()
    loop.run_until_complete(asyncio.sleep(HOUR))
    loop.close()


def by_own_policy(clock: FakeClock) -> None:
    class Own(asyncio.DefaultEventLoopPolicy):
        pass

    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(Own())
    try:
        by_run(clock)
    finally:
        asyncio.set_event_loop_policy(before)


def in_a_thread(clock: FakeClock) -> None:
    thread = threading.Thread(target=by_run, args=(clock,))
    thread.start()
    thread.join(PATIENCE)


def in_a_handler(clock: FakeClock) -> None:
    flow = chain(work=lambda routine: by_run(clock))
    assert JobStatus.COMPLETED == flow.execute("work", runtime=Runtime(clock=clock)).status


WAYS = [by_run, by_runner, by_new_event_loop, by_policy, by_own_policy, in_a_thread, in_a_handler]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@each_way
def test_a_loop_of_user_code_passes_virtual_time(way, flow_clock):
    way(flow_clock)
    assert HOUR * SECOND == flow_clock.monotonic_ns()


@each_way
def test_a_loop_of_user_code_passes_the_time_of_a_bare_clock(way, flow_clock_bare):
    way(flow_clock_bare)
    assert HOUR * SECOND == flow_clock_bare.monotonic_ns()


def test_the_time_of_a_loop_and_that_of_user_code_agree(flow_clock):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in (0, 0.1, 12.345):
            await asyncio.sleep(delay)
            assert loop.time() == time.monotonic() == flow_clock.monotonic_ns() / SECOND

    asyncio.run(main())


def test_the_loops_of_a_runtime_with_the_system_clock_are_real(flow_clock):
    kinds: list[type] = []

    async def look(routine: Works) -> None:
        kinds.append(type(asyncio.get_running_loop()))

    chain(look=look).execute("look", runtime=Runtime(clock=SystemClock()))
    assert kinds
    assert VirtualLoop not in kinds


def test_the_handler_of_another_fake_clock_gets_a_loop_of_that_clock(flow_clock):
    other = FakeClock()
    flow = chain(work=lambda routine: asyncio.run(asyncio.sleep(HOUR)))
    flow.execute("work", runtime=Runtime(clock=other))
    assert [0, HOUR * SECOND] == [flow_clock.monotonic_ns(), other.monotonic_ns()]


def test_nothing_is_left_after_the_test(inner):
    inner.makepyfile(
        HEAD
        + """
        def test_virtual(flow_clock):
            asyncio.run(hour(flow_clock))

        def test_real():
            with asyncio.Runner() as runner:
                assert not isinstance(runner.get_loop(), VirtualLoop)
        """.replace("\n    ", "\n")
    )
    run_first(inner).assert_outcomes(passed=2)


# --- test runners ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [STRICT, AUTO], ids=["strict", "auto"])
@pytest.mark.parametrize("clock", ["flow_clock", "flow_clock_bare", "flow_runtime"])
def test_the_loop_of_pytest_asyncio_follows_the_clock(inner, mode, clock):
    mark = "@pytest.mark.asyncio" if mode is STRICT else ""
    fixture = "pytest_asyncio.fixture" if mode is STRICT else "pytest.fixture"
    inner.makepyfile(
        HEAD
        + f"""
    import pytest_asyncio

    @{fixture}
    async def rested(clock):
        await asyncio.sleep(10)
        yield
        await asyncio.sleep(10)

    @pytest.fixture
    def clock({clock}):
        return getattr({clock}, "clock", {clock})

    {mark}
    async def test_first(clock):
        await hour(clock)

    {mark}
    async def test_loop_before_clock(rested, clock):
        await hour(clock)

    {mark}
    async def test_a_job(clock, flow_runtime):
        job = await chain(work=nap).aexecute("work")
        job.raise_for_status()
        assert 3600.0 == asyncio.get_running_loop().time()

    {mark}
    async def test_real():
        assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
    """
    )
    run_first(inner, *ASYNCIO, *mode).assert_outcomes(passed=4)


def test_a_loop_of_a_module_is_refused_when_a_job_is_awaited_on_it(inner):
    inner.makepyfile(
        HEAD
        + """
    @pytest.mark.asyncio(loop_scope="module")
    async def test_first(flow_runtime):
        assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
        await chain(work=nap).aexecute("work")
    """
    )
    result = run_first(inner, *ASYNCIO, *STRICT)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *the running event loop does not follow*"])


def test_the_loop_of_anyio_follows_the_clock(inner):
    inner.makepyfile(
        HEAD
        + """
    import anyio

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.fixture
    async def rested(flow_clock):
        await anyio.sleep(10)
        yield
        await anyio.sleep(10)

    @pytest.mark.anyio
    async def test_first(rested, flow_clock):
        await hour(flow_clock)
        with anyio.move_on_after(5):
            await anyio.sleep(10)
        assert 3615.0 == anyio.current_time()

    @pytest.mark.anyio
    async def test_a_job(flow_runtime):
        (await chain(work=nap).aexecute("work")).raise_for_status()
        assert 3600.0 == anyio.current_time()
    """
    )
    run_first(inner, *ANYIO).assert_outcomes(passed=2)


def test_the_loop_of_unittest_follows_the_clock(inner):
    inner.makepyfile(
        HEAD
        + """
    @pytest.mark.usefixtures("flow_runtime")
    class TestIt(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            await asyncio.sleep(10)

        async def test_it(self):
            await asyncio.sleep(10)
            (await chain(work=nap).aexecute("work")).raise_for_status()
            assert 3620.0 == asyncio.get_running_loop().time() == time.monotonic()
    """
    )
    run_first(inner).assert_outcomes(passed=1)


def test_the_loops_of_uvloop_are_refused(inner):
    inner.makepyfile(
        HEAD
        + """
    import uvloop

    def test_made_here(flow_clock):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.sleep(0))

    @pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
    @pytest.mark.anyio
    async def test_made_by_anyio(anyio_backend, flow_clock_bare):
        pass

    def test_made_by_its_policy(flow_clock):
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        try:
            asyncio.run(asyncio.sleep(0))
        finally:
            asyncio.set_event_loop_policy(None)

    def test_later():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.sleep(0))
    """
    )
    result = run_first(inner, *ANYIO, "-W", "ignore::DeprecationWarning")
    result.stdout.fnmatch_lines(["*event loop of uvloop runs in real time*run the code with*"])
    result.assert_outcomes(failed=3, passed=1)


# --- the setting routilux_sleep -------------------------------------------------------------------

SLEEPS = """
    import asyncio, time
    import pytest
    from routilux import ErrorHandler
    from tests.routines import chain

    async def naps(self):
        await asyncio.sleep(0.01)

    async def starts_naps(self):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.01))

    async def waits(self):
        await asyncio.sleep(0)
        await self.ctx.asleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)

    async def limited(self):
        async with asyncio.timeout(0.002):
            await asyncio.sleep(60)
"""


@pytest.mark.parametrize("handler", ["naps", "starts_naps"])
@pytest.mark.parametrize("drive", ["await flow.aexecute('work')", "flow.execute('work')"])
def test_error_refuses_asyncio_sleep_in_a_handler(inner, handler, drive):
    run_it = "asyncio.run(main())" if "await" in drive else drive
    inner.makepyfile(
        SLEEPS
        + f"""
    def test_it(flow_runtime):
        flow = chain(work={handler})
        async def main():
            await flow.aexecute("work")
        {run_it}
    """
    )
    result = run_first(inner, "-o", "routilux_sleep=error")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        ["work *called asyncio.sleep(0.01) at *; the setting routilux_sleep = error forbids*"]
    )


@pytest.mark.parametrize("mode", ["error", "virtual"])
def test_waits_of_the_engine_and_of_the_test_are_allowed(inner, mode):
    inner.makepyfile(
        SLEEPS
        + """
    def test_it(flow_runtime):
        async def main():
            await asyncio.sleep(1)
            (await chain(work=waits).aexecute("work")).raise_for_status()
        asyncio.run(main())
        assert 1.02 == time.monotonic()
    """
    )
    run_first(inner, "-o", f"routilux_sleep={mode}").assert_outcomes(passed=1)


def test_the_setting_counts_in_a_simulation_too(inner):
    inner.makepyfile(
        SLEEPS
        + """
    @pytest.mark.parametrize("work", [waits, naps])
    def test_it(flow_sim, work):
        start = time.clock_gettime(time.CLOCK_MONOTONIC)
        job = flow_sim.run(lambda: chain(work=work), "work").job
        assert job.status == "completed"
        took = time.clock_gettime(time.CLOCK_MONOTONIC) - start
        print("real" if work is naps and took >= 0.01 else "any", job.updated_ns - job.started_ns)
    """
    )
    refused = run_first(inner, "-o", "routilux_sleep=error")
    refused.assert_outcomes(passed=1, failed=1)
    refused.stdout.fnmatch_lines(
        ["work *called asyncio.sleep(0.01) at *; the setting routilux_sleep = error forbids*"]
    )
    real = run_first(inner, "-o", "routilux_sleep=real", "-s")
    real.assert_outcomes(passed=2)
    real.stdout.fnmatch_lines(["*any 20000000*", "*real 0*"])


def test_real_lets_asyncio_sleep_pass_real_time_in_a_handler(inner):
    inner.makepyfile(
        SLEEPS
        + """
    def test_real(flow_runtime):
        start = time.clock_gettime(time.CLOCK_MONOTONIC)
        for flow in (chain(work=naps), chain(work=starts_naps)):
            flow.execute("work").raise_for_status()
        assert 0.02 <= time.clock_gettime(time.CLOCK_MONOTONIC) - start
        assert 0.0 == time.monotonic()

    def test_others_are_virtual(flow_runtime):
        chain(work=waits).execute("work").raise_for_status()
        assert 0.02 == time.monotonic()

    def test_a_timeout_ends_a_real_sleep(flow_runtime):
        job = chain(work=limited).execute("work")
        assert "TimeoutError" == job.error.type
        assert 0.002 == time.monotonic()
    """
    )
    run_first(inner, "-o", "routilux_sleep=real").assert_outcomes(passed=3)


# --- jobs on one loop -----------------------------------------------------------------------------


def test_the_patience_of_the_clock_is_the_setting(inner):
    inner.makepyfile(
        """
        def test_it(flow_clock):
            assert 2_500_000_000 == flow_clock.patience_ns
        """
    )
    run_first(inner, "-o", "routilux_blocked_after=2.5").assert_outcomes(passed=1)


# --- threads that the clock does not know ---------------------------------------------------------

THREAD = """
    import asyncio, threading, time

    async def main(seconds):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        ended = threading.Event()

        def work():
            time.sleep(seconds)
            if not future.done():
                loop.call_soon_threadsafe(future.set_result, None)
            else:
                loop.call_soon_threadsafe(int)
            ended.set()

        threading.Thread(target=work, name="worker").start()
        try:
            async with asyncio.timeout(60):
                await future
        finally:
            ended.wait()
"""


def test_a_timeout_waits_for_a_thread_that_the_code_starts(inner):
    inner.makepyfile(
        THREAD
        + """
    def test_it(flow_clock):
        asyncio.run(main(0.01))
        assert 0.0 == time.monotonic()
    """
    )
    run_first(inner).assert_outcomes(passed=1)


def test_a_thread_that_time_has_passed_by_fails_the_test_with_its_line(inner):
    inner.makepyfile(
        THREAD
        + """
    def test_it(flow_clock):
        try:
            asyncio.run(main(0.3))
        except TimeoutError:
            pass
    """
    )
    result = run_first(inner, "-o", "routilux_blocked_after=0.02")
    assert {"passed": 1, "errors": 1} == result.parseoutcomes()
    result.stdout.fnmatch_lines(["*the thread 'worker', started at *.py:1*, woke the event loop*"])
