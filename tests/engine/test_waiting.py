"""Handlers that wait for other jobs: they never starve the runtime of threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from routilux import Clock, FakeClock, MemoryStore, Routine, Runtime, SystemClock, Worker
from tests.engine.concurrency import no_thread_remains
from tests.routines import PATIENCE, chain, error_of, outputs, send
from tests.soak import also

MANY = 80  # more than the threads of a runtime
POOLS = pytest.mark.parametrize("pool", [None, 1, 4])


def within_patience(does: Callable[[], None]) -> None:
    """Fail instead of hanging."""
    failures: list[BaseException] = []

    def tries() -> None:
        try:
            does()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=tries, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "jobs that wait for each other have not ended"
    for failure in failures:
        raise failure


def runtime_on(stack: ExitStack, pool: int | None, *, real: bool = False) -> Runtime:
    executor = None if pool is None else stack.enter_context(ThreadPoolExecutor(pool))
    clock: Clock = FakeClock() if pool is None and not real else SystemClock()
    return stack.enter_context(Runtime(clock=clock, executor=executor))


def child_flow(workers: int | None = None) -> Any:
    return chain(workers=workers, a=send, b=send)


def waits(runtime: Runtime, workers: int | None) -> Any:
    def body(self: Routine, n: object = 0) -> None:
        job = child_flow(workers).start("a", {"n": n}, runtime=runtime).wait()
        self.emit("out", n=outputs(job)[0])

    return body


def executes(runtime: Runtime, workers: int | None) -> Any:
    def body(self: Routine, n: object = 0) -> None:
        self.emit("out", n=outputs(child_flow(workers).execute("a", {"n": n}, runtime=runtime))[0])

    return body


def awaits(runtime: Runtime, workers: int | None) -> Any:
    async def body(self: Routine, n: object = 0) -> None:
        job = await child_flow(workers).aexecute("a", {"n": n}, runtime=runtime)
        self.emit("out", n=outputs(job)[0])

    return body


def awaits_two(runtime: Runtime, workers: int | None) -> Any:
    async def body(self: Routine, n: object = 0) -> None:
        flow = child_flow(workers)
        jobs = await asyncio.gather(
            *(flow.aexecute("a", {"n": n}, runtime=runtime) for _ in range(2))
        )
        self.emit("out", n=outputs(jobs[1])[0])

    return body


def awaits_in_a_thread(runtime: Runtime, workers: int | None) -> Any:
    async def body(self: Routine, n: object = 0) -> None:
        run = child_flow(workers).start("a", {"n": n}, runtime=runtime)
        self.emit("out", n=outputs(await asyncio.to_thread(run.wait))[0])

    return body


WAYS = {f.__name__: f for f in (waits, executes, awaits, awaits_two)}


@POOLS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", also(2, None))
def test_any_number_of_handlers_may_wait_for_jobs_of_their_runtime(way, pool, workers):
    def runs() -> None:
        with no_thread_remains(), ExitStack() as stack:
            # An event loop in a handler waits in real time.
            runtime = runtime_on(stack, pool, real=way.startswith("awaits"))
            body = WAYS[way](runtime, workers)
            many = MANY if pool is None else 3 * pool + 3
            started = [chain(a=body).start("a", {"n": n}, runtime=runtime) for n in range(many)]
            assert [[n] for n in range(many)] == [outputs(run.wait()) for run in started]
            # The threads that were added for the waits are gone, or used again.
            again = chain(a=body).start("a", {"n": 7}, runtime=runtime)
            assert [7] == outputs(again.wait())

    within_patience(runs)


@POOLS
def test_a_chain_of_jobs_in_which_each_waits_for_the_next_one_ends(pool):
    def runs() -> None:
        with ExitStack() as stack:
            runtime = runtime_on(stack, pool)

            def body(self: Routine, n: int) -> None:
                if n:
                    job = chain(a=body).start("a", {"n": n - 1}, runtime=runtime).wait()
                    job.raise_for_status()
                self.emit("out", n=n)

            assert [100] == outputs(chain(a=body).start("a", {"n": 100}, runtime=runtime).wait())

    within_patience(runs)


def test_handlers_that_await_in_a_thread_do_not_starve_the_runtime():
    def runs() -> None:
        with ExitStack() as stack:
            runtime = runtime_on(stack, 2)
            body = awaits_in_a_thread(runtime, None)
            started = [chain(a=body).start("a", {"n": n}, runtime=runtime) for n in range(9)]
            assert [[n] for n in range(9)] == [outputs(run.wait()) for run in started]

    within_patience(runs)


@pytest.mark.parametrize("way", ["aexecute", "wait in threads"])
@pytest.mark.parametrize("own_pool", [True, False])
def test_a_step_that_waits_for_many_jobs_makes_room_for_one_step(way, own_pool):
    lock, peak, flying = threading.Lock(), 0, 0
    barrier = threading.Barrier(2)

    def child(self: Routine) -> None:
        nonlocal peak, flying
        with lock:
            flying += 1
            peak = max(peak, flying)
        barrier.wait(PATIENCE)  # so that two run at once
        with lock:
            flying -= 1

    def runs() -> None:
        with ExitStack() as stack:
            runtime = runtime_on(stack, 2, real=True)
            if own_pool:
                runtime = stack.enter_context(Runtime())
                runtime.threads._size = 2

            async def body(self: Routine) -> None:
                flow = chain(a=child)
                if way == "aexecute":
                    waits = [flow.aexecute("a", runtime=runtime) for _ in range(20)]
                else:
                    started = [flow.start("a", runtime=runtime) for _ in range(20)]
                    waits = [asyncio.to_thread(run.wait) for run in started]
                await asyncio.gather(*waits)

            job = chain(a=body).start("a", runtime=runtime).wait()
            assert "completed" == job.status, job.error

    within_patience(runs)
    assert 2 == peak


@pytest.mark.parametrize("workers", [None, 3])
def test_the_jobs_of_a_worker_may_wait_for_jobs_of_its_runtime(workers):
    def runs() -> None:
        store = MemoryStore()
        with Runtime(store=store) as runtime:
            flow = chain(a=waits(runtime, workers))
            child = child_flow(workers)
            child.flow_id = "child"
            ids = [runtime.submit(flow, "a", {"n": n}) for n in range(MANY)]
            Worker(store, [flow], runtime=runtime, concurrency=50).run(until_idle=True)
            assert {"completed"} == {runtime.load(job_id).status.value for job_id in ids}

    within_patience(runs)


def test_waiting_for_a_job_of_another_runtime_frees_the_thread_too():
    def runs() -> None:
        with ExitStack() as stack:
            first, second = (runtime_on(stack, 1) for _ in range(2))
            inner = chain(a=waits(first, None))

            def body(self: Routine, n: object = 0) -> None:
                job = inner.start("a", {"n": n}, runtime=second).wait()
                self.emit("out", n=outputs(job)[0])

            started = [chain(a=body).start("a", {"n": n}, runtime=first) for n in range(4)]
            assert [[0], [1], [2], [3]] == [outputs(run.wait()) for run in started]

    within_patience(runs)


@pytest.mark.parametrize(("pool", "expected"), [(1, 1), (2, 0)])
def test_a_wait_in_the_last_thread_is_logged_once_per_job_and_routine(pool, expected, caplog):
    def runs() -> None:
        with ExitStack() as stack:
            runtime = runtime_on(stack, pool)

            def waits_twice(self: Routine, n: object = 0) -> None:
                for _ in range(2):
                    child_flow().start("a", {"n": n}, runtime=runtime).wait()

            job = chain(a=waits_twice).start("a", runtime=runtime, job_id="j").wait()
            job.raise_for_status()

    within_patience(runs)
    texts = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    text = (
        "job j: a waits for another job and holds the last free thread of its runtime, so a thread"
        " is added for the time of the wait; let an event start what comes next, or give the"
        " runtime more threads"
    )
    assert [text] * expected == texts


def test_threads_that_were_added_for_waits_end():
    hold = threading.Event()
    with Runtime() as runtime:
        body = waits(runtime, None)
        held = chain(a=lambda self: hold.wait(PATIENCE) and None).start("a", runtime=runtime)
        started = [chain(a=body).start("a", {"n": n}, runtime=runtime) for n in range(MANY)]
        for run in started:
            run.wait(PATIENCE)
        pool = runtime.threads.background._driver  # type: ignore[union-attr]
        assert pool._threads._made <= pool.size + 2
        hold.set()
        held.wait(PATIENCE)


def test_a_handler_that_waits_for_its_own_job_is_refused_and_with_a_timeout_it_may():
    runs: list[Any] = []
    ready = threading.Event()

    def body(self: Routine, n: object = 0) -> None:
        ready.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            runs[0].wait(0.001)
        runs[0].wait()

    with Runtime() as runtime:
        runs.append(chain(a=body).start("a", runtime=runtime))
        ready.set()
        job = runs[0].wait(PATIENCE)
    kind, message = error_of(job)
    assert "FlowDefinitionError" == kind
    assert "waits for its own job, which can't end then; wait in the code that started" in message
