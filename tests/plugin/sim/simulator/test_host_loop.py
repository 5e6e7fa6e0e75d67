"""Async handlers of a simulated host run on its event loop, in simulated time, until it dies."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, Host, World
from pytest_routilux.sim.simulator.scheduler import FIFO, Scheduler, Seeded
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import ClockStalledError, ErrorHandler, FakeClock, Flow, JobStatus, Runtime
from tests.routines import SECOND, Body, Works, chain, ended_at, error_of, retrying

START = FakeClock().now_ns()
pay = Effect("pay")
send = Effect("send", key="key")


def simulated(
    build: Callable[[], Flow], scheduler: Scheduler = FIFO, entry: str = "a"
) -> tuple[World, Host]:
    world = World(START)
    host = run_host(Case(build, entry), world, scheduler=scheduler, checked=True)
    assert [] == host.findings
    assert [] == host.leaked_threads
    return world, host


def handled(handler: ErrorHandler, **bodies: Body) -> Flow:
    flow = chain(**bodies)
    flow.set_error_handler(handler)
    return flow


def ends_at(body: Body) -> float:
    _, host = simulated(lambda: chain(a=body))
    assert host.error is None
    assert host.job is not None
    assert JobStatus.COMPLETED is host.job.status
    return ended_at(host.job)


def explored(body: Body, **case: Any) -> Exploration:
    return explore(Case(lambda: handled(retrying(), a=body), "a", **case), START, Checks())


# --- time -----------------------------------------------------------------------------------------


async def sleeps(self: Any, n: int = 0) -> None:
    await asyncio.sleep(0.3)


async def sleeps_by_ctx(self: Any, n: int = 0) -> None:
    await self.ctx.asleep(0.3)


async def times_out(self: Any, n: int = 0) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.sleep(7)


async def waits_for(self: Any, n: int = 0) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.3)


async def calls_later(self: Any, n: int = 0) -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, event.set)
    await event.wait()


async def has_tasks(self: Any, n: int = 0) -> None:
    async with asyncio.TaskGroup() as group:
        for length in (0.1, 0.2, 0.3):
            group.create_task(asyncio.sleep(length))


async def uses_threads(self: Any, n: int = 0) -> None:
    assert 3 == await asyncio.wait_for(asyncio.to_thread(lambda: 1 + 2), 0.5)
    await asyncio.sleep(0.3)


def runs_a_loop(self: Any, n: int = 0) -> None:
    asyncio.run(sleeps(self))


def returns_a_coroutine(self: Any, n: int = 0) -> object:
    return sleeps(self)


@pytest.mark.parametrize(
    "body",
    [
        *(sleeps, sleeps_by_ctx, times_out, waits_for, calls_later, has_tasks, uses_threads),
        *(runs_a_loop, returns_a_coroutine),
    ],
)
def test_the_time_of_an_async_handler_is_simulated_to_the_nanosecond(body: Body) -> None:
    begun = time.monotonic()
    assert 0.3 == ends_at(body)
    assert time.monotonic() - begun < 5  # the TimeoutError of real time would take longer


def test_handlers_of_one_host_overlap_and_wake_in_the_order_of_time() -> None:
    woken: list[tuple[int, float]] = []

    def build() -> Flow:
        async def works(self: Any, n: int) -> None:
            for length in (n, 1, 1):
                await asyncio.sleep(length / 4)
            woken.append((n, self.ctx.now().timestamp()))

        def splits(self: Any, n: int = 0) -> None:
            for number in (3, 2, 1):
                self.emit("out", n=number)

        flow = chain(a=splits, b=works)
        flow.routines["b"].max_concurrency = 3
        flow.execution_strategy, flow.max_workers = "concurrent", 3
        return flow

    _, host = simulated(build)
    assert host.job is not None
    assert [1, 2, 3] == [n for n, _ in woken]
    assert 1.25 == ended_at(host.job)


def test_what_one_handler_sends_another_gets_it() -> None:
    def build() -> Flow:
        event = asyncio.Event()

        async def waits(self: Any, n: int = 0) -> None:
            await event.wait()

        async def sets(self: Any, n: int = 0) -> None:
            await asyncio.sleep(2)
            event.set()

        return at_once(waits, sets)

    _, host = simulated(build)
    assert host.job is not None
    assert 2 == ended_at(host.job)


def at_once(*bodies: Body) -> Flow:
    """One routine starts the bodies, which run at once."""

    def splits(self: Any, n: int = 0) -> None:
        self.emit("out", n=n)

    flow = Flow("fan", execution_strategy="concurrent", max_workers=len(bodies))
    flow.add_routine(Works(splits), "a")
    for number, body in enumerate(bodies):
        flow.add_routine(Works(body), f"b{number}")
        flow.connect("a", "out", f"b{number}", "trigger")
    return flow


def test_an_await_that_nothing_ends_names_its_line() -> None:
    async def waits(self: Any, n: int = 0) -> None:
        await asyncio.Event().wait()

    with frozen_simulation(START, patience_ns=SECOND // 100):
        _, host = simulated(lambda: chain(a=waits))
    assert isinstance(host.error, ClockStalledError)
    line = waits.__code__.co_firstlineno + 1
    assert f"will end the await of a ({__file__}:{line})" in str(host.error)


# --- the timeout ----------------------------------------------------------------------------------


def test_a_timeout_cancels_the_handler_and_its_finally_runs() -> None:
    cleaned: list[float] = []

    async def works(self: Any, n: int = 0) -> None:
        try:
            await asyncio.sleep(9)
        finally:
            await asyncio.sleep(0.25)
            cleaned.append(asyncio.get_running_loop().time() % 1)

    _, host = simulated(lambda: handled(ErrorHandler(timeout=0.5), a=works))
    job = host.job
    assert job is not None
    assert "StepTimeoutError" == error_of(job)[0]
    assert [0.75] == cleaned
    assert 0.75 == ended_at(job)


def test_a_handler_that_does_not_end_is_given_up_a_second_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def works(self: Any, n: int = 0) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.2)

    with caplog.at_level(logging.WARNING, "routilux"):
        _, host = simulated(lambda: handled(ErrorHandler(timeout=0.5), a=works))
    assert host.job is not None
    assert 1.5 == ended_at(host.job)
    assert "was cancelled and did not end within 1 s" in caplog.text


@pytest.mark.parametrize("body", [sleeps, has_tasks, times_out])
def test_a_simulated_job_ends_as_one_of_the_engine(body: Body) -> None:
    def build() -> Flow:
        return handled(retrying(max_retries=1, timeout=0.2), a=body)

    _, host = simulated(build)
    with Runtime(clock=FakeClock()) as runtime:
        job = runtime.execute(build(), "a", job_id="job")
    assert host.job is not None
    assert [c.kind for c in job.commits] == [c.kind for c in host.job.commits]
    assert [c.at_ns for c in job.commits] == [c.at_ns for c in host.job.commits]


# --- one loop for a host --------------------------------------------------------------------------


class Client:
    """Like a client of asyncio, it works on the event loop of its first use only."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def get(self) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0.1)


def test_a_client_that_a_routine_keeps_works_in_every_attempt_and_belongs_to_one_host() -> None:
    clients: list[Client] = []

    def build() -> Flow:
        client = Client()
        clients.append(client)

        async def works(self: Any, n: int = 0) -> None:
            await client.get()
            if self.ctx.attempt < 3:
                raise ConnectionError
            self.emit("out", n=n)

        return handled(retrying(), a=works, b=works)

    result = explore(Case(build, "a"), START, Checks(isolated=False))
    assert result.reference.finding is None
    assert [] == result.failures
    loops = [client.loop for client in clients if client.loop is not None]
    assert len(loops) == len(set(map(id, loops)))
    assert all(loop.is_closed() for loop in loops)


# --- crashes --------------------------------------------------------------------------------------


async def three_awaits(self: Any, n: int = 0) -> None:
    await asyncio.sleep(1)
    await self.ctx.asleep(1)
    await self.ctx.aonce("nap", asyncio.sleep, 1)
    self.emit("out", n=n)


def test_a_host_dies_before_and_after_each_await() -> None:
    result = explored(three_awaits)
    assert [] == result.failures
    assert 6 == result.coverage.executed["at an await"]
    assert result.coverage.planned == result.coverage.executed


async def effect_before_its_record(self: Any, n: int = 0) -> None:
    receipt = pay("A7")
    await asyncio.sleep(1)
    await self.ctx.aonce("receipt", asyncio.sleep, 0, receipt)


async def effect_between_two_awaits(self: Any, n: int = 0) -> None:
    await asyncio.sleep(1)
    pay("A7")
    await asyncio.sleep(1)


async def effect_in_a_task(self: Any, n: int = 0) -> None:
    async def pays() -> None:
        await asyncio.sleep(1)
        pay("A7")

    async with asyncio.TaskGroup() as group:
        group.create_task(pays())
        group.create_task(asyncio.sleep(5))


async def effect_in_finally(self: Any, n: int = 0) -> None:
    try:
        await asyncio.sleep(1)
    finally:
        pay("A7")


async def effect_in_a_callback(self: Any, n: int = 0) -> None:
    asyncio.get_running_loop().call_later(1, pay, "A7")
    await asyncio.sleep(2)


PLANTED = [
    *(effect_before_its_record, effect_between_two_awaits, effect_in_a_task, effect_in_finally),
    effect_in_a_callback,
]


@pytest.mark.parametrize("body", PLANTED)
def test_an_effect_that_a_crash_repeats_is_found(body: Body) -> None:
    kinds = {finding.kind for _, finding in explored(body).failures}
    assert {"effect-repeated"} == kinds


@pytest.mark.parametrize("body", [effect_before_its_record, effect_between_two_awaits])
def test_the_await_after_the_effect_is_one_of_the_points_that_find_it(body: Body) -> None:
    names = {point.name for point, _ in explored(body).failures}
    number = 1 if body is effect_before_its_record else 2
    assert {f"0@a1.await{number}", f"0@a1.await{number}.after"} <= names
    assert number == 1 or not {"0@a1.await1", "0@a1.await1.after"} & names


async def keyed(self: Any, n: int = 0) -> None:
    await asyncio.sleep(1)
    send("A7", key=self.ctx.key("send"))
    await asyncio.sleep(1)
    self.ctx.state["sent"] = True
    self.emit("out", n=n)


async def recorded(self: Any, n: int = 0) -> None:
    async def sends(key: str) -> Any:
        await asyncio.sleep(1)
        return send("A7", key=key)

    self.emit("out", n=await self.ctx.aonce("send", sends, self.ctx.key("send")))


async def cleans_up(self: Any, n: int = 0) -> None:
    try:
        await asyncio.sleep(1)
    except BaseException:
        pay("undo")  # only a cancellation or a crash comes here
        raise
    await asyncio.sleep(1)


@pytest.mark.parametrize("body", [keyed, recorded, cleans_up, three_awaits, times_out, has_tasks])
def test_a_handler_without_a_bug_is_clean(body: Body) -> None:
    result = explored(body)
    assert result.reference.finding is None
    assert [] == [(point.name, finding.what) for point, finding in result.failures]


def test_a_dead_host_runs_no_finally_and_no_except() -> None:
    """Outside of the job nothing happens after the await at which the host died."""
    seen: list[str] = []
    runs: list[list[str]] = []

    async def works(self: Any, n: int = 0) -> None:
        seen.append("begins")
        try:
            await asyncio.sleep(1)
            seen.append("between")
            await asyncio.sleep(1)
            seen.append("after")
        except BaseException:
            seen.append("except")
            raise
        finally:
            seen.append("finally")

    def fresh() -> None:
        runs.append(seen.copy())
        seen.clear()

    case = Case(lambda: chain(a=works), "a", fresh=fresh)
    result = explore(case, START, Checks(isolated=False))
    gc.collect()
    fresh()
    assert [] == result.failures
    whole = ["begins", "between", "after", "finally"]
    assert all(run[-4:] == whole for run in runs if run)
    dead = {tuple(run[:-4]) for run in runs}
    assert {(), ("begins",), ("begins", "between"), tuple(whole)} == dead


def test_a_reproducer_names_the_await_and_repeats_it(pytester: pytest.Pytester) -> None:
    from tests.plugin.inner import run_inside

    pytester.makepyfile(
        test_it="""
        import asyncio
        from routilux import ErrorHandler

        def test_paid(flow_sim, flow_factory):
            pay = flow_sim.effect("pay")
            async def charge(order):
                try:
                    pay(order)
                    await asyncio.sleep(1)
                finally:
                    await asyncio.sleep(1)

            flow_sim.crash_everywhere(
                lambda: flow_factory(chain=[charge], error_handler=ErrorHandler("retry")),
                "charge", {"order": "A7"})
    """
    )
    result = run_inside(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["EFFECT REPEATED: pay*"])
    failing = run_inside(
        pytester, f"--routilux-repro={repro(result.stdout.str(), '0@a1.await1.after')}"
    )
    failing.assert_outcomes(failed=1)
    failing.stdout.fnmatch_lines(
        [
            "crash point*task 0 charge, attempt 1: after await #1 (test_it.py:9)*",
            "*CRASH  after await #1 (test_it.py:9); nothing after it happened*",
            "*: fails",
        ]
    )


def repro(text: str, place: str) -> str:
    start = text.index("--routilux-repro=") + len("--routilux-repro=")
    word = text[start:].split()[0]
    return f"{word.rsplit('.0@', 1)[0]}.{place}"


# --- orders ---------------------------------------------------------------------------------------


def test_another_order_interleaves_the_handlers_at_their_awaits() -> None:
    orders: set[tuple[int, ...]] = set()

    for seed in range(20):
        order: list[int] = []

        def build(order: list[int] = order) -> Flow:
            def works(number: int) -> Body:
                async def body(self: Any, n: int = 0) -> None:
                    for _ in range(2):
                        await asyncio.sleep(0)
                        order.append(number)
                        await asyncio.sleep(1)

                return body

            return at_once(works(1), works(2))

        first = simulated(build, Seeded(seed).scheduler())[1].job
        once = tuple(order)
        order.clear()
        assert first == simulated(build, Seeded(seed).scheduler())[1].job
        assert once == tuple(order)
        orders.add(once)
    assert {1, 2} == {each[0] for each in orders}
    assert len(orders) > 4


@pytest.mark.parametrize("seed", range(10))
def test_a_timeout_inside_a_handler_does_not_depend_on_the_order(seed: int) -> None:
    async def works(self: Any, n: int = 0) -> None:
        async with asyncio.timeout(1.5):
            await asyncio.sleep(1)

    async def slow(self: Any, n: int = 0) -> None:
        await asyncio.sleep(60)

    _, host = simulated(lambda: at_once(works, slow), Seeded(seed).scheduler())
    assert host.error is None
    assert host.job is not None
    assert JobStatus.COMPLETED is host.job.status


# --- jobs in handlers -----------------------------------------------------------------------------


def test_an_async_handler_awaits_jobs_that_overlap() -> None:
    def inner() -> Flow:
        def plain(self: Any, n: int = 0) -> None:
            self.ctx.sleep(1)
            self.emit("out", n=n)

        return chain(a=plain, b=sleeps, c=plain)

    async def awaits(self: Any, n: int = 0) -> None:
        jobs = await asyncio.gather(
            *(inner().aexecute("a", job_id=f"inner{number}") for number in range(10))
        )
        self.emit("out", n=sum(job.status is JobStatus.COMPLETED for job in jobs))

    _, host = simulated(lambda: chain(a=awaits))
    assert host.error is None
    assert host.job is not None
    assert 10 == host.job.outputs[0].data["n"]
    assert 1.3 == ended_at(host.job)


# --- where a loop runs ----------------------------------------------------------------------------


def test_a_plain_handler_can_run_a_loop_of_its_own_in_an_async_test(flow_sim: Any) -> None:
    async def main() -> None:
        assert "completed" == flow_sim.run(lambda: chain(a=runs_a_loop), "a").job.status
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_thread_that_a_handler_leaves_is_found_and_a_pool_of_the_loop_is_not() -> None:
    release = threading.Event()

    async def leaves(self: Any, n: int = 0) -> None:
        await asyncio.to_thread(int)
        threading.Thread(target=release.wait, name="left").start()

    host = run_host(Case(lambda: chain(a=leaves), "a"), World(START))
    release.set()
    line = f"{__file__}:{leaves.__code__.co_firstlineno + 2}"
    assert [("a", "starts the thread 'left', which", line)] == host.leaked_threads


def test_the_loop_of_a_host_is_closed_when_its_job_has_ended() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def works(self: Any, n: int = 0) -> None:
        loops.append(asyncio.get_running_loop())
        left.append(asyncio.get_running_loop().create_task(asyncio.sleep(SECOND)))

    left: list[asyncio.Task[None]] = []
    simulated(lambda: chain(a=works, b=works))
    assert all(loop.is_closed() for loop in loops)
    assert 1 == len(set(map(id, loops)))
