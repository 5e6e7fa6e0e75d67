"""Calls in threads that block in real time: others run meanwhile, and virtual time waits."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import urllib.request
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import pytest
from aiohttp import web

from routilux import ErrorHandler, FakeClock, Routine, Runtime
from tests.routines import PATIENCE, SECOND, chain

T = TypeVar("T")
HOUR: Final = 3600


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.patience_ns = 600 * SECOND
    return clock


def run(clock: FakeClock, main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
        return runner.run(main)


async def serve(delay: float) -> tuple[web.AppRunner, str]:
    async def hello(_: web.Request) -> web.Response:
        await asyncio.sleep(delay)
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/"


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        text: bytes = answer.read()
        return text


def test_a_timeout_waits_for_a_call_that_blocks_in_real_time(clock):
    async def main() -> None:
        async with asyncio.timeout(HOUR):
            await asyncio.to_thread(time.sleep, 0.04)
        assert 0 == clock.monotonic_ns()
        await asyncio.sleep(HOUR)

    run(clock, main())
    assert HOUR * SECOND == clock.monotonic_ns()


def test_a_timeout_ends_a_call_that_blocks_for_longer(clock):
    released = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await asyncio.to_thread(released.wait)
        released.set()

    start = time.monotonic()
    run(clock, main())
    assert 0.03 <= time.monotonic() - start
    assert 30_000_000 == clock.monotonic_ns()


def test_other_tasks_run_while_a_call_blocks(clock):
    beats: list[int] = []
    released = threading.Event()

    async def beat() -> None:
        for _ in range(5):
            await asyncio.sleep(0.001)
            beats.append(clock.monotonic_ns())
        released.set()

    async def main() -> None:
        await asyncio.gather(asyncio.to_thread(released.wait), beat())

    run(clock, main())
    assert [1_000_000 * (k + 1) for k in range(5)] == beats


def test_a_blocking_client_in_a_thread_gets_its_answer_from_a_server_in_the_loop(clock):
    async def main() -> None:
        runner, url = await serve(0)
        async with asyncio.timeout(HOUR):
            assert b"hello" == await asyncio.to_thread(fetch, url)
        await runner.cleanup()

    run(clock, main())
    assert 0 == clock.monotonic_ns()


def test_a_blocking_client_waits_for_the_virtual_time_of_a_server(clock):
    clock.patience_ns = 10_000_000

    async def main() -> None:
        runner, url = await serve(60)
        async with asyncio.timeout(HOUR):
            assert b"hello" == await asyncio.to_thread(fetch, url)
        await runner.cleanup()

    run(clock, main())
    assert 60 * SECOND == clock.monotonic_ns()


def test_a_call_that_computes_keeps_its_turn(clock):
    seen: list[bool] = []

    def compute() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.06:
            seen.append(bool(clock._real.free))

    async def main() -> None:
        await asyncio.gather(asyncio.to_thread(compute), asyncio.sleep(1))

    run(clock, main())
    assert not any(seen)


def test_a_blocked_call_that_ends_waits_for_its_turn(clock):
    order: list[str] = []
    released = threading.Event()

    def block() -> None:
        released.wait()
        clock.wait(None, clock.monotonic_ns() + SECOND)  # as `ctx.sleep` does
        order.append("thread")

    async def main() -> None:
        call = asyncio.ensure_future(asyncio.to_thread(block))
        await asyncio.sleep(0.001)
        released.set()
        await asyncio.sleep(0.5)
        order.append("loop")
        await call

    run(clock, main())
    assert ["loop", "thread"] == order
    assert SECOND <= clock.monotonic_ns() <= SECOND + 500_000_000


def test_a_thread_that_the_clock_watches_is_waited_for(clock):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def work() -> None:
            time.sleep(0.01)
            loop.call_soon_threadsafe(future.set_result, "done")

        thread = threading.Thread(target=work)
        thread.start()
        clock.watch(thread, "here")
        async with asyncio.timeout(HOUR):
            assert "done" == await future
        thread.join(PATIENCE)

    run(clock, main())
    assert 0 == clock.monotonic_ns()


@pytest.mark.parametrize("ends", [False, True])
def test_a_job_without_an_event_loop_waits_for_a_watched_thread(clock, ends):
    released = threading.Event()

    def work() -> None:
        time.sleep(0.01)
        released.set()

    def starts(routine: Routine, n: object = 0) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        clock.watch(thread, "here")
        if not ends:
            routine.ctx.sleep(HOUR)
            assert released.is_set()
        elif routine.ctx.attempt == 1:
            raise OSError("again, after a virtual wait")

    flow = chain(a=starts)
    flow.set_error_handler(ErrorHandler("retry", retry_delay=HOUR))
    for strategy in ("sequential", "concurrent"):
        flow.execution_strategy = strategy
        assert flow.execute("a", runtime=Runtime(clock=clock)).status.value == "completed"
    assert released.wait(PATIENCE)


def test_an_idle_thread_that_the_clock_watches_does_not_hold_virtual_time(clock):
    released = threading.Event()

    async def main() -> None:
        thread = threading.Thread(target=released.wait)
        thread.start()
        clock.watch(thread, "here")
        await asyncio.sleep(HOUR)
        released.set()
        thread.join(PATIENCE)

    run(clock, main())
    assert HOUR * SECOND == clock.monotonic_ns()


def test_a_watched_thread_that_comes_after_its_time_is_reported(clock):
    lost: list[str] = []
    clock.on_lost_thread = lambda watched: lost.append(watched.place)
    clock.patience_ns = 5_000_000

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        done = threading.Semaphore(0)
        reader, writer = os.pipe()

        def work() -> None:
            os.read(reader, 1)
            loop.call_soon_threadsafe(future.cancel)
            done.release()

        thread = threading.Thread(target=work)
        thread.start()
        clock.watch(thread, "the line")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):
                await future
        assert HOUR * SECOND == clock.monotonic_ns()
        os.write(writer, b"x")
        assert done.acquire(timeout=PATIENCE)
        os.close(reader)
        os.close(writer)

    run(clock, main())
    assert ["the line"] == lost
