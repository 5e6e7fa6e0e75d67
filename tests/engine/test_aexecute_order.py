"""Jobs that one event loop awaits on a fake clock run in one order, whatever the machine does."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from routilux import ErrorHandler, FakeClock, Flow, Routine, Runtime
from tests.routines import SECOND, chain

JOBS: Final = 10
LENGTHS: Final = (1, 2, 3, 4)  # of the chains
End = tuple[int, int]


async def nap(routine: Routine, n: object = 0) -> None:
    await asyncio.sleep(1)
    routine.emit("out", n=n)


def sync_nap(routine: Routine, n: object = 0) -> None:
    routine.ctx.sleep(1)
    routine.emit("out", n=n)


async def flaky(routine: Routine, n: object = 0) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(asyncio.sleep(0.1 * number))
    if routine.ctx.attempt < 3:
        raise OSError("not yet")
    routine.emit("out", n=n)


async def in_a_thread(routine: Routine, n: object = 0) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(int)
    async with asyncio.timeout(5):
        await loop.run_in_executor(None, int)
    routine.emit("out", n=n)


BODIES: Final[tuple[Any, ...]] = (nap, flaky, sync_nap, in_a_thread)
"""Handlers that take 1 s, 1.35 s, 1 s and no time: two naps, two retries after 0.25 and 0.5 s."""


def flow_of(number: int) -> Flow:
    length = LENGTHS[number % len(LENGTHS)]
    bodies = {f"r{k}": BODIES[(number + k) % len(BODIES)] for k in range(length)}
    flow = chain(**bodies)
    flow.set_error_handler(ErrorHandler("retry", max_retries=3, retry_delay=0.25))
    return flow


def ends_of_jobs() -> tuple[End, ...]:
    clock = FakeClock()
    runtimes = [Runtime(clock=clock), Runtime(clock=clock)]

    async def job(number: int) -> End:
        done = await flow_of(number).aexecute("r0", runtime=runtimes[number % 2])
        done.raise_for_status()
        ends.append((number, clock.monotonic_ns()))
        return ends[-1]

    async def main() -> None:
        await asyncio.gather(*(job(number) for number in range(JOBS)))

    ends: list[End] = []
    with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
        runner.run(main())
    return tuple(ends)


@contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Let other threads compete for the interpreter in the `with` block."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=work) for _ in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.000_1)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        for thread in threads:
            thread.join()


LENGTH_OF: Final = {nap: 1.0, flaky: 3 * 0.2 + 0.25 + 0.5, sync_nap: 1.0, in_a_thread: 0.0}


def expected(number: int) -> int:
    length = LENGTHS[number % len(LENGTHS)]
    seconds = sum(LENGTH_OF[BODIES[(number + k) % len(BODIES)]] for k in range(length))
    return round(seconds * SECOND)


@pytest.mark.parametrize(
    ("repetitions", "threads"),
    [
        *[(5, 0), (5, 2)],
        *[pytest.param(200, threads, marks=pytest.mark.soak) for threads in (0, 2)],
    ],
)
def test_gathered_jobs_end_at_the_same_instants_in_the_same_order(repetitions, threads):
    first = ends_of_jobs()
    assert {number: expected(number) for number in range(JOBS)} == dict(first)
    with busy_threads(threads):
        for _ in range(repetitions - 1):
            assert first == ends_of_jobs()


def test_five_seconds_of_ten_gathered_jobs_are_five_seconds():
    clock = FakeClock()
    runtime = Runtime(clock=clock)

    async def five(routine: Routine) -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(chain(a=five).aexecute("a", runtime=runtime))

    for _ in range(20):
        begun = clock.monotonic_ns()
        with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
            runner.run(main())
        assert 5 * SECOND == clock.monotonic_ns() - begun
