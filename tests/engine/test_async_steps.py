"""Async handlers on their event loop: clients that last, cancellation, cleanup, and room."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    JobState,
    MemoryStore,
    NoActiveStepError,
    Routine,
    Runtime,
    Worker,
    cancel_job,
)
from tests.engine.concurrency import engine_threads, no_thread_remains
from tests.routines import (
    MODES,
    PATIENCE,
    SECOND,
    Watcher,
    Wide,
    Works,
    arun,
    chain,
    delays,
    ended_at,
    error_of,
    fan,
    kinds,
    outputs,
    rest,
    retrying,
    run_by,
    saveable,
    sends,
)
from tests.soak import also

HOWS = ("execute", "start", "aexecute", "worker")
DRIVERS = pytest.mark.parametrize("how", HOWS)
TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


def drive(how: str, flow: Any, runtime: Runtime, **params: Any) -> Any:
    if how != "worker":
        return run_by(how, flow, "a", runtime, **params)
    store = MemoryStore()
    Runtime(clock=runtime.clock, store=store).submit(flow, "a", params or None, job_id="j")
    worker_runtime = Runtime(clock=runtime.clock, store=store)
    with worker_runtime:
        Worker(store, [flow], runtime=worker_runtime).run(until_idle=True)
        return worker_runtime.load("j")


# --- one event loop -------------------------------------------------------------------------------


@DRIVERS
@MODES
def test_a_client_that_a_routine_keeps_is_usable_in_every_attempt(how, workers):
    loops: list[asyncio.AbstractEventLoop] = []
    clients: list[asyncio.Lock] = []

    async def calls(self: Routine, n: object = 0) -> None:
        if not clients:
            clients.append(asyncio.Lock())
            await clients[0].acquire()
            waiter = asyncio.ensure_future(clients[0].acquire())  # binds the lock to the loop
            await asyncio.sleep(0)
            clients[0].release()
            await waiter
        loops.append(asyncio.get_running_loop())
        clients[0].release()
        await clients[0].acquire()
        if self.ctx.attempt < 3:
            raise ConnectionError
        self.emit("out", n=self.ctx.attempt)

    flow = chain(workers=workers, a=Works(calls, retrying(retry_delay=2)))
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        job = drive(how, flow, runtime)
        assert "completed" == job.status, job.error
    assert [3] == outputs(job)
    assert 1 == len(set(loops))


def test_jobs_of_a_runtime_share_one_event_loop_and_need_no_thread_for_each_step():
    together = 0

    async def waits(self: Routine, n: object = 0) -> None:
        nonlocal together
        together += 1
        await asyncio.sleep(1)
        assert 500 == together

    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        before = engine_threads()
        runs = [chain(a=waits).start("a", runtime=runtime) for _ in range(500)]
        assert {1.0} == {ended_at(run.wait()) for run in runs}
        names = sorted(thread.name for thread in engine_threads() - before)
        assert set(names) <= {"routilux-async", "routilux-loop"}


def test_an_awaited_job_runs_async_handlers_on_the_callers_loop_and_the_others_on_threads():
    seen: dict[str, object] = {}

    async def awaits(self: Routine, n: object = 0) -> None:
        seen["a"] = threading.current_thread()
        seen["loop"] = asyncio.get_running_loop()
        self.emit("out", n=1)

    def blocks(self: Routine, n: object = 0) -> None:
        seen["b"] = threading.current_thread()

    async def story() -> object:
        await chain(a=awaits, b=blocks).aexecute("a", runtime=runtime)
        return asyncio.get_running_loop()

    with Runtime(clock=FakeClock()) as runtime:
        assert arun(runtime, story()) is seen["loop"]
        assert seen["a"] is threading.current_thread()
        assert seen["b"] is not threading.current_thread()


@DRIVERS
def test_tasks_that_a_handler_starts_have_its_ctx_and_its_context(how):
    seen: list[tuple[int, str]] = []

    async def part(self: Routine) -> None:
        await asyncio.sleep(1)
        seen.append((self.ctx.attempt, TENANT.get()))
        self.ctx.state.add("parts", 1)

    async def splits(self: Routine, n: object = 0) -> None:
        TENANT.set("blue")
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(part(self))
        if self.ctx.attempt == 1:
            raise ValueError

    flow = chain(a=Works(splits, retrying()))
    with Runtime(clock=FakeClock()) as runtime:
        job = drive(how, flow, runtime)
    assert [(1, "blue")] * 3 + [(2, "blue")] * 3 == seen
    assert {"parts": 3} == job.routine_states["a"].state


def test_a_handler_that_is_wrapped_by_a_plain_function_runs_on_the_loop_too():
    async def awaits(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(1)
        if self.ctx.attempt == 1:
            raise ValueError
        self.emit("out", n=2)

    def traced(self: Routine, n: object = 0) -> object:
        return awaits(self, n)

    for workers in (None, 2):
        with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
            flow = chain(workers=workers, a=Works(traced, retrying()))
            job = flow.execute("a", runtime=runtime)
        assert ([2], ["start", "retry", "done"]) == (outputs(job), kinds(job))


def test_a_fan_out_runs_as_many_async_steps_as_the_flow_allows():
    together, most = 0, 0

    async def waits(self: Routine, n: object = 0) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(1)
        together -= 1

    waiter = Wide(waits)
    waiter.max_concurrency = 1000
    flow = fan(sends(*range(300)), workers=50, a=waiter)
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.execute("source", runtime=runtime)
    assert (50, 6) == (most, ended_at(job))
    assert set(range(50)) == {commit.worker for commit in job.commits}


def test_sync_handlers_that_hold_all_threads_delay_no_async_handler():
    gate, held = threading.Event(), threading.Semaphore(0)

    def holds(self: Routine, n: object = 0) -> None:
        held.release()
        assert gate.wait(PATIENCE)

    async def passes(self: Routine, n: object = 0) -> None:
        self.emit("out", n=1)

    with Runtime() as runtime:
        runtime.threads._size = 2
        runs = [chain(a=holds).start("a", runtime=runtime) for _ in range(5)]
        for _ in range(2):
            assert held.acquire(timeout=PATIENCE)
        try:
            quick = chain(a=passes).start("a", runtime=runtime)
            assert [1] == outputs(quick.wait(PATIENCE))
        finally:
            gate.set()
        assert {"completed"} == {run.wait(PATIENCE).status.value for run in runs}


@pytest.mark.parametrize("ends", ["cancelled", "given back"])
def test_a_job_whose_next_step_waits_for_a_thread_can_end(ends):
    """Its async handler is in flight; another job has the only thread for its other task."""
    go, gate, begun = threading.Event(), threading.Event(), threading.Event()
    log: list[str] = []

    def source(self: Routine, n: object = 0) -> None:
        assert go.wait(PATIENCE)
        self.emit("out", n=1)

    def holds(self: Routine, n: object = 0) -> None:
        assert gate.wait(PATIENCE)

    async def waits(self: Routine, n: object = 0) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("ends")

    with Runtime() as runtime:
        runtime.threads._size = 1
        run = fan(source, workers=3, a=waits, b=rest).start("source", runtime=runtime)
        holder = chain(a=holds).start("a", runtime=runtime)
        go.set()
        assert begun.wait(PATIENCE)
        try:
            if ends == "cancelled":
                run.cancel()
            else:
                run._drive.leave()
            job = run.wait(PATIENCE)
        finally:
            gate.set()
        holder.wait(PATIENCE)
    assert ["ends"] == log
    assert ("cancelled" if ends == "cancelled" else "running") == job.status
    assert 0 == job.routine_states["b"].attempts


def test_a_job_waits_for_a_thread_in_the_order_in_which_it_came():
    order: list[int] = []

    def body(self: Routine, n: int) -> None:
        order.append(n)
        self.ctx.sleep(1)

    with Runtime(clock=FakeClock()) as runtime:
        runtime.threads._size = 2
        runs = [chain(a=body).start("a", {"n": n}, runtime=runtime) for n in range(12)]
        for run in runs:
            run.wait()
    assert [*range(12)] == order


# --- cancellation ---------------------------------------------------------------------------------


def cleans(log: list[Any], *, takes: float = 0, swallows: bool = False) -> Callable[..., Any]:
    """A body that waits for an hour, and needs `takes` seconds for its cleanup."""

    async def body(self: Routine, n: object = 0) -> None:
        log.append(f"begins {self.ctx.attempt}")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            log.append("cancelled")
            if not swallows:
                raise
        finally:
            if takes:
                await asyncio.sleep(takes)
            try:
                self.emit("out", n=1)
            except NoActiveStepError:
                log.append("refused")
            log.append("ends")

    return body


@DRIVERS
@MODES
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize(("takes", "late"), [(0, 0.0), (0.25, 0.25), (60, 1.0)])
def test_an_async_handler_is_cancelled_at_its_timeout_and_has_a_second_for_its_cleanup(
    how, workers, swallows, takes, late, caplog
):
    log: list[Any] = []
    body = cleans(log, takes=takes, swallows=swallows)
    flow = chain(workers=workers, a=Works(body, retrying(max_retries=1, timeout=2, retry_delay=5)))
    with Runtime(clock=FakeClock()) as runtime:
        job = drive(how, flow, runtime)

    once = ["cancelled"] if takes > 1 else ["cancelled", "refused", "ends"]
    assert ["begins 1", *once, "begins 2", *once] == log[: 2 + 2 * len(once)]
    assert [5] == delays(job)
    assert 2 + late + 5 + 2 + late == ended_at(job)
    assert "took longer than its timeout of 2 s" in error_of(job)[1]
    given_up = [text for text in caplog.messages if "did not end within 1 s" in text]
    assert (2 if takes > 1 else 0) == len(given_up)
    assert all("the handler of a (task 0, attempt" in text for text in given_up)


@pytest.mark.parametrize("store", [False, True], ids=["in memory", "stored"])
@pytest.mark.parametrize("how", ["start", "aexecute"])
@pytest.mark.parametrize(("takes", "late"), [(0, 0.0), (0.25, 0.25), (60, 1.0)])
def test_a_cancelled_job_cancels_its_async_handlers(how, takes, late, store):
    log: list[Any] = []
    watcher, clock = Watcher(), FakeClock()
    flow = chain(a=cleans(log, takes=takes), b=rest)
    with Runtime(
        clock=clock, observers=[watcher], store=MemoryStore() if store else None
    ) as runtime:

        async def story() -> None:
            if how == "start":
                run = flow.start("a", runtime=runtime)
                await asyncio.sleep(7)
                run.cancel("enough")
                await asyncio.to_thread(run.wait)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(7):
                        await flow.aexecute("a", runtime=runtime)

        arun(runtime, story())
        assert 7 + late == clock.monotonic_ns() / 1e9, "the caller waits for the cleanup"
    job = watcher.jobs[-1]
    assert "cancelled" == job.status
    assert ["begins 1", "cancelled"] == log[:2]
    assert ("ends" in log) is (takes < 1)
    assert 7 + late == ended_at(job)


def test_an_async_handler_is_cancelled_when_the_run_of_its_job_is_broken_off():
    log: list[Any] = []

    async def other(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(2)
        raise KeyboardInterrupt

    flow = fan(sends(1), workers=2, a=cleans(log, takes=0.5), b=other)
    with Runtime(clock=FakeClock()) as runtime, pytest.raises(KeyboardInterrupt):
        flow.execute("source", runtime=runtime)
    assert ["begins 1", "cancelled", "ends"] == log, "execute waits for the cleanup"


def test_a_worker_that_stops_cancels_its_async_handlers_and_the_attempt_does_not_count():
    store, clock, log = MemoryStore(), FakeClock(), []
    workers: list[Worker] = []

    async def body(self: Routine, n: object = 0) -> None:
        log.append((self.ctx.attempt, self.ctx.now().second))
        if len(log) == 1:
            asyncio.get_running_loop().call_later(3, workers[0].stop)
            await asyncio.sleep(3600)
        self.emit("out", n=self.ctx.attempt)

    flow = chain(a=Works(body, retrying(max_retries=0)))
    Runtime(clock=clock, store=store).submit(flow, "a", job_id="j")
    for _ in range(2):
        with Runtime(clock=clock, store=store) as runtime:
            workers[:] = [Worker(store, [flow], runtime=runtime)]
            workers[0].run(until_idle=True)
    job = Runtime(clock=clock, store=store).load("j")
    assert [(1, 0), (1, 3)] == log
    assert (["start", "resumed", "resumed", "done"], [1]) == (kinds(job), outputs(job))
    assert 0 == job.recoveries


def test_a_worker_that_stops_keeps_what_a_handler_still_finishes():
    store, clock = MemoryStore(), FakeClock()
    workers: list[Worker] = []

    async def body(self: Routine, n: object = 0) -> None:
        asyncio.get_running_loop().call_later(3, workers[0].stop)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        self.emit("out", n=7)

    flow = chain(a=body)
    Runtime(clock=clock, store=store).submit(flow, "a", job_id="j")
    with Runtime(clock=clock, store=store) as runtime:
        workers.append(Worker(store, [flow], runtime=runtime))
        workers[0].run(until_idle=True)
        assert [7] == outputs(runtime.load("j"))


def test_a_handler_of_a_lost_job_is_cancelled():
    store, clock, log = MemoryStore(), FakeClock(), []

    async def body(self: Routine, n: object = 0) -> None:
        asyncio.get_running_loop().call_later(40, cancel_job, store, "j")
        try:
            await asyncio.sleep(3600)
        finally:
            log.append((self.ctx.now().minute, self.ctx.now().second, self.ctx.cancelled))

    flow = chain(a=body)
    Runtime(clock=clock, store=store).submit(flow, "a", job_id="j")
    with no_thread_remains(), Runtime(clock=clock, store=store) as runtime:
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
    [(minute, second, cancelled)] = log
    assert (0, True) == (minute, cancelled)
    assert 40 <= second <= 50, "at the next renewal of the lease"


@pytest.mark.parametrize("ends", ["cancels all tasks", "returns"])
@pytest.mark.parametrize("store", [None, MemoryStore], ids=["in memory", "stored"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 5, 20])
def test_no_job_outlives_the_event_loop_that_awaits_it(ends, store, is_async, rounds):
    async def waits(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(60)

    def sleeps(self: Routine, n: object = 0) -> None:
        self.ctx.sleep(60)

    async def story() -> None:
        begun = [asyncio.ensure_future(flow.aexecute("a", runtime=runtime)) for _ in range(3)]
        for _ in range(rounds):
            await asyncio.sleep(0)
        if ends == "cancels all tasks":
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait(begun)

    flow = chain(a=waits if is_async else sleeps)
    clock = FakeClock()
    with no_thread_remains(), Runtime(clock=clock, store=store and store()) as runtime:
        arun(runtime, story())
        clock.advance(120)
        assert not runtime.environment.driven


def test_a_task_that_others_cancel_before_it_begins_is_a_failed_attempt():
    async def cancels(self: Routine, n: object = 0) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def sends_one(self: Routine, n: object = 0) -> None:
        self.emit("out", n=self.ctx.attempt)

    # All tasks are created in one round of the event loop.
    flow = fan(
        sends(1),
        workers=9,
        a=cancels,
        b=Works(sends_one, retrying()),
        c=Works(sends_one, retrying()),
    )
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.execute("source", runtime=runtime)
    assert "completed" == job.status
    assert {1, 2} >= set(outputs(job))
    assert 2 == len(outputs(job))


@pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
def test_a_wrapped_async_handler_is_cancelled_once_at_its_timeout(how):
    log: list[float] = []

    async def waits(self: Routine, n: object = 0) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.25)
            log.append(asyncio.get_running_loop().time())

    def wrapped(self: Routine, n: object = 0) -> object:
        return waits(self, n)

    with Runtime(clock=FakeClock()) as runtime:
        job = run_by(how, chain(a=Works(wrapped, ErrorHandler(timeout=2))), "a", runtime)
    assert ("StepTimeoutError", [2.25], 2.25) == (error_of(job)[0], log, ended_at(job))


def test_a_worker_waits_for_the_cleanup_of_a_handler_whose_job_is_lost():
    store, clock, log = MemoryStore(), FakeClock(), []

    async def body(self: Routine, n: object = 0) -> None:
        asyncio.get_running_loop().call_later(40, cancel_job, store, "j")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.5)
            log.append("ends")

    flow = chain(a=body)
    Runtime(clock=clock, store=store).submit(flow, "a", job_id="j")
    with Runtime(clock=clock, store=store) as runtime:
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert ["ends"] == log


def test_a_store_that_is_slow_does_not_block_the_event_loop_of_an_awaited_job():
    class Slow(MemoryStore):
        def create(self, *args: Any, **options: Any) -> None:
            clock.wait(None, clock.monotonic_ns() + SECOND)
            super().create(*args, **options)

        def append(self, *args: Any, **options: Any) -> Any:
            clock.wait(None, clock.monotonic_ns() + SECOND)
            return super().append(*args, **options)

    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.25)

    async def waits(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(60)

    async def story() -> None:
        beating = asyncio.ensure_future(beat())
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await chain(a=waits).aexecute("a", runtime=runtime)
        beating.cancel()

    clock = FakeClock()
    with Runtime(clock=clock, store=Slow()) as runtime:
        arun(runtime, story())
    assert {0.25} == {later - before for before, later in pairwise(beats)}


@pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
def test_an_interrupt_of_an_async_handler_ends_its_job_and_not_the_event_loop(how):
    async def body(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(1)
        if n:
            raise SystemExit(3)
        self.emit("out", n=1)

    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        with pytest.raises(SystemExit):
            run_by(how, chain(a=body), "a", runtime, n=1)
        assert SECOND == clock.monotonic_ns(), "nothing is left to wait for"
        assert [1] == outputs(chain(a=body).execute("a", runtime=runtime))


def test_a_timeout_of_a_thread_names_the_handlers_that_fill_the_pool(caplog):
    gate = threading.Event()

    def hangs(self: Routine, n: object = 0) -> None:
        assert gate.wait(PATIENCE)

    routine = Wide(hangs, ErrorHandler("continue", timeout=0.001))
    with Runtime() as runtime:
        try:
            fan(sends(1, 2), workers=2, a=routine).execute("source", runtime=runtime)
        finally:
            gate.set()
    [text] = [text for text in caplog.messages if "outlived their timeout" in text]
    assert "all 2 threads" in text
    assert "a (task 0.0, attempt 1), a (task 0.1, attempt 1)" in text


@pytest.mark.parametrize("ends", ["cancelled", "given back"])
def test_a_step_whose_handler_has_not_begun_can_be_cancelled(ends):
    """The request comes when the step is in flight, before the event loop runs its task."""
    begun: list[object] = []

    async def body(self: Routine, n: object = 0) -> None:
        begun.append(self.ctx.attempt)
        await asyncio.sleep(60)

    flow, clock = chain(a=body), FakeClock()
    with Runtime(clock=clock) as runtime:

        async def story() -> JobState:
            task = asyncio.ensure_future(flow.aexecute("a", runtime=runtime))
            await asyncio.sleep(0)  # the job has begun
            [drive] = next(iter(runtime.threads._on_event_loops.values())).loop.drives
            while not drive.tasks:  # noqa: ASYNC110 - nothing reports it
                await asyncio.sleep(0)
            assert not begun
            if ends == "cancelled":
                drive.request("cancel")
            else:
                drive.leave()
            return await task

        job = arun(runtime, story())
    assert 0 == clock.monotonic_ns()
    kind = ["start", "cancelled", "failed"] if ends == "cancelled" else ["start"]
    assert kind == kinds(job)


async def sleeps_in_its_process(self: Routine, n: float = 0) -> None:
    await self.ctx.asleep(n)
    self.emit("out", n=await self.ctx.aonce("double", double, n))


async def double(n: float) -> float:
    return 2 * n


def test_an_async_handler_runs_in_a_process_of_an_executor_and_is_cancelled_there():
    with ProcessPoolExecutor(1) as executor, Runtime(executor=executor) as runtime:
        job = chain(a=saveable(sleeps_in_its_process)).execute("a", {"n": 0.001}, runtime=runtime)
        assert ([0.002], ["start", "effect", "done"]) == (outputs(job), kinds(job))

        routine = saveable(sleeps_in_its_process)
        routine.set_error_handler(ErrorHandler(timeout=0.01))
        late = chain(a=routine).execute("a", {"n": 3600}, runtime=runtime)
        assert "StepTimeoutError" == error_of(late)[0]


def test_an_exit_of_a_task_that_a_handler_started_ends_its_job_and_not_the_event_loop():
    async def exits() -> None:
        raise SystemExit(3)

    async def starts(self: Routine, n: object = 0) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(exits())

    async def waits(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(1)
        self.emit("out", n=1)

    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        other = chain(a=waits).start("a", runtime=runtime)
        with pytest.raises(SystemExit):
            chain(a=starts).execute("a", runtime=runtime)
        assert [1] == outputs(other.wait())
        assert [1] == outputs(chain(a=waits).execute("a", runtime=runtime))


def test_tasks_that_handlers_leave_are_cancelled_with_their_runtime():
    log: list[str] = []

    async def beats() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("cancelled")

    async def connects(self: Routine, n: object = 0) -> None:
        vars(self)["heartbeat"] = asyncio.create_task(beats())
        await asyncio.sleep(0)

    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        chain(a=connects).execute("a", runtime=runtime)
        assert [] == log
    assert ["cancelled"] == log


def test_an_interrupt_in_a_wrapped_async_handler_waits_for_its_cleanup_and_no_longer():
    log: list[str] = []

    async def waits(self: Routine, n: object = 0) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.25)
            log.append("ends")

    def wrapped(self: Routine, n: object = 0) -> object:
        return waits(self, n)

    async def interrupts(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(1)
        raise KeyboardInterrupt

    clock = FakeClock()
    with Runtime(clock=clock) as runtime, pytest.raises(KeyboardInterrupt):
        fan(sends(1), workers=2, a=wrapped, b=interrupts).execute("source", runtime=runtime)
    assert (["ends"], 1_250_000_000) == (log, clock.monotonic_ns())


def test_an_effect_is_recorded_though_handlers_fill_the_pool_of_their_event_loop():
    gate = threading.Event()

    async def pays(self: Routine, n: object = 0) -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(None, gate.wait, PATIENCE) for _ in range(64)]
        self.emit("out", n=await self.ctx.aonce("pay", double, 2))
        gate.set()
        await asyncio.gather(*calls)

    with Runtime(store=MemoryStore()) as runtime:
        assert [4] == outputs(chain(a=pays).execute("a", runtime=runtime))


# --- what would block the event loop --------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "cure"),
    [
        (lambda self, _: self.ctx.sleep(1), "await self.ctx.asleep(1)"),
        (
            lambda self, _: self.ctx.once("pay", asyncio.sleep, 0),
            "self.ctx.aonce('pay', ...)",
        ),
        (
            lambda _, runtime: chain(a=rest).execute("a", runtime=runtime),
            "await flow.aexecute(...)",
        ),
        (lambda _, runtime: chain(a=rest).start("a", runtime=runtime).wait(), "flow.aexecute(...)"),
    ],
    ids=["sleep", "once", "execute", "wait"],
)
@pytest.mark.parametrize("how", ["execute", "aexecute"])
def test_a_call_that_would_block_the_event_loop_is_refused_with_its_cure(how, what, cure):
    async def body(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(0)
        what(self, runtime)

    with Runtime(clock=FakeClock()) as runtime:
        kind, message = error_of(run_by(how, chain(a=Works(body, retrying())), "a", runtime))
    assert "FlowDefinitionError" == kind
    assert cure in message


def test_a_thread_of_an_async_handler_may_sleep_and_wait_for_jobs():
    async def body(self: Routine, n: object = 0) -> None:
        await asyncio.to_thread(self.ctx.sleep, 3)
        job = await asyncio.to_thread(chain(a=sends(5)).execute, "a", runtime=runtime)
        self.emit("out", n=outputs(job))

    with Runtime(clock=FakeClock()) as runtime:
        job = chain(a=body).execute("a", runtime=runtime)
    assert ([[5]], 3) == (outputs(job), ended_at(job))


# --- ends and processes ---------------------------------------------------------------------------


def test_the_event_loop_ends_with_its_runtime_and_one_that_was_never_closed_leaves_none():
    async def body(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(0)

    with no_thread_remains():
        with Runtime(clock=FakeClock()) as runtime:
            chain(a=body).execute("a", runtime=runtime)
        chain(a=body).execute("a", runtime=Runtime(clock=FakeClock()))


@pytest.mark.parametrize("options", also({"retry_delay": 0.25}, {}, {"timeout": 60}), ids=str)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_runtime_keeps_no_event_loop_of_a_caller(options, is_async):
    async def tries_async(self: Routine, n: object = 0) -> None:
        if self.ctx.attempt == 1:
            raise ValueError

    def tries(self: Routine, n: object = 0) -> None:
        if self.ctx.attempt == 1:
            raise ValueError

    async def story() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await flow.aexecute("a", runtime=runtime)

    flow = chain(a=Works(tries_async if is_async else tries, retrying(**options)))
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        for _ in range(3):
            arun(runtime, story())
        gc.collect()
        assert [None] * 3 == [loop() for loop in loops]
        assert not runtime.threads._on_event_loops


def test_a_child_that_an_async_handler_forks_ends_when_it_returns(caplog):
    async def forks(self: Routine, n: object = 0) -> None:
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
            self.emit("out", n=os.waitstatus_to_exitcode(status))

    with Runtime() as runtime, caplog.at_level(logging.CRITICAL):
        assert [1] == outputs(chain(a=forks).execute("a", runtime=runtime))


def test_an_awaited_job_whose_event_loop_is_closed_is_ended():
    async def starts() -> None:
        asyncio.ensure_future(flow.aexecute("a", runtime=runtime))  # noqa: RUF006 - it is lost
        await asyncio.sleep(1)

    async def waits(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(60)

    flow, watcher = chain(a=waits), Watcher()
    with Runtime(clock=FakeClock(), observers=[watcher]) as runtime:
        arun(runtime, starts())
        assert not runtime.environment.driven
    assert "cancelled" == watcher.jobs[-1].status


def test_a_step_that_outlives_the_cancellation_of_its_job_can_record_nothing():
    refused: list[NoActiveStepError] = []

    async def outlives(self: Routine, n: object = 0) -> None:
        ctx = self.ctx
        for _ in range(2):  # its cancellation, and the end of the second for its cleanup
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
        try:
            _ = ctx.attempt
        except NoActiveStepError as error:
            refused.append(error)

    flow = chain(workers=2, a=Works(outlives, ErrorHandler(timeout=60)))
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        run = flow.start("a", runtime=runtime)
        clock.advance(1)
        run.cancel()
        job = run.wait()
        clock.advance(20)
    assert ("cancelled", 1) == (job.status.value, len(refused))
