"""`VirtualLoop`: exact timers, loops that share a clock, threads, signals and loops that stall."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import ClockStalledError, FakeClock, SystemClock
from routilux.clocks.virtual_loop import VirtualLoop
from tests.engine.concurrency import no_thread_remains
from tests.routines import PATIENCE, SECOND

T = TypeVar("T")
DAY = 86_400


def run(clock: FakeClock, main: Coroutine[Any, Any, T], **options: Any) -> T:
    with asyncio.Runner(loop_factory=clock.new_event_loop, **options) as runner:
        return runner.run(main)


def seconds(clock: FakeClock) -> float:
    return clock.monotonic_ns() / SECOND


def pause(clock: FakeClock, length: float) -> None:
    """Let virtual time pass in a thread, as `ctx.sleep` does."""
    clock.wait(None, clock.monotonic_ns() + round(length * SECOND))


# --- timers ---------------------------------------------------------------------------------------


def test_sleeps_end_at_their_exact_nanoseconds():
    clock = FakeClock()
    ends: list[int] = []

    async def main() -> None:
        for delay in (0.3, 0.45, 0.675, 1.0125):
            await asyncio.sleep(delay)
            ends.append(clock.monotonic_ns())

    run(clock, main())
    assert [300_000_000, 750_000_000, 1_425_000_000, 2_437_500_000] == ends


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=8), st.integers(0, 40_000))
def test_any_delays_are_summed_exactly_also_after_a_hundred_years(micros, days):
    clock = FakeClock("1900-01-01")
    clock.advance(days * DAY)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for length in micros:
            before = clock.monotonic_ns()
            await asyncio.sleep(length / 10**6)
            assert before + length * 1000 == clock.monotonic_ns()
            assert seconds(clock) == loop.time()

    run(clock, main())


@pytest.mark.parametrize("days", [0, 23, 49, 97, 400, 36_500])
@pytest.mark.parametrize("delay", [0.000_001, 0.1, 2.437_5, 59.999_999])
def test_a_timeout_is_exact_whatever_time_it_is(days, delay):
    clock = FakeClock("1900-01-01")
    clock.advance(days * DAY + 0.123_456_789)
    start = clock.monotonic_ns()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await asyncio.sleep(delay + 1)
        assert round(delay * SECOND) == clock.monotonic_ns() - start
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), delay)
        assert 2 * round(delay * SECOND) == clock.monotonic_ns() - start

    run(clock, main())


def test_timers_of_one_instant_run_in_the_order_in_which_they_were_set():
    clock, ran = FakeClock(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(50):
            if number % 2:
                loop.call_later(0.3, ran.append, number)
            else:
                loop.call_at(0.3, ran.append, number)
        await asyncio.sleep(0.3)

    run(clock, main())
    assert list(range(50)) == ran


def test_timers_before_now_run_at_once_and_timers_without_an_end_never():
    clock, ran = FakeClock(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(-5, ran.append, "negative")
        loop.call_at(-1, ran.append, "past")
        loop.call_later(math.inf, ran.append, "never")
        loop.call_at(math.inf, ran.append, "never")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ["negative", "past"] == ran
        await asyncio.sleep(400 * DAY)
        with pytest.raises(ValueError, match="nan"):
            loop.call_later(math.nan, ran.append, "nan")
        with pytest.raises(TypeError, match="None"):
            loop.call_later(None, ran.append, "none")  # type: ignore[arg-type]

    run(clock, main())
    assert ["negative", "past"] == ran
    assert 400 * DAY == seconds(clock)


def test_a_timer_says_when_it_runs_and_can_be_cancelled():
    clock, ran = FakeClock(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(k + 1, ran.append, k) for k in range(4)]
        assert [1.0, 2.0, 3.0, 4.0] == [timer.when() for timer in timers]
        timers[0].cancel()
        timers[2].cancel()
        timers[2].cancel()
        await asyncio.sleep(10)

    run(clock, main())
    assert [1, 3] == ran


def test_cancelled_timers_take_no_memory():
    clock = FakeClock()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        kept = [loop.call_later(10 + k, int) for k in range(100)]
        for _ in range(10_000):
            loop.call_later(5, int).cancel()
        assert isinstance(loop, VirtualLoop)
        assert not any(timer.cancelled() for timer in kept)
        return len(loop._timers)

    assert 400 > run(clock, main())


def test_concurrent_waits_overlap():
    clock = FakeClock()

    async def child(length: float) -> int:
        await asyncio.sleep(length)
        return clock.monotonic_ns()

    async def main() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(length)) for length in (3, 1, 2)]
        return [task.result() for task in tasks] + await asyncio.gather(child(5), child(4))

    ends = run(clock, main())
    assert [3, 1, 2, 8, 7] == [end / SECOND for end in ends]
    assert 8.0 == seconds(clock)


def test_debug_mode_works():
    clock = FakeClock()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            loop.call_later(1, main)
        await loop.run_in_executor(None, pause, clock, 2)
        await asyncio.sleep(3)
        return loop.time()

    assert 5.0 == run(clock, main(), debug=True)


def test_time_stays_between_two_runs_of_a_loop():
    clock = FakeClock()
    with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
        runner.run(asyncio.sleep(1))
        runner.get_loop().call_later(1, int)
        assert 1.0 == seconds(clock)
        runner.run(asyncio.sleep(0.5))
    assert 1.5 == seconds(clock)


def test_the_system_clock_makes_a_real_loop():
    loop = SystemClock().new_event_loop()
    try:
        assert not isinstance(loop, VirtualLoop)
    finally:
        loop.close()


def test_without_autojump_only_the_test_moves_the_time():
    clock, ends = FakeClock(autojump=False), []

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            ends.append(seconds(clock))

    thread = threading.Thread(target=run, args=(clock, main()))
    thread.start()
    while clock.turn() is not None or not clock._waiting:  # until the loop waits
        pass
    clock.advance(1.5)
    assert [1.0] == ends
    clock.advance(1.5)
    thread.join(PATIENCE)
    assert [1.0, 2.0, 3.0] == ends


# --- loops and threads on one clock ---------------------------------------------------------------


def interleaving() -> list[tuple[int, int]]:
    clock, log = FakeClock(), []

    async def child(number: int) -> None:
        for step in range(6):
            await asyncio.sleep(0.1 * (1 + (number + step) % 2))
            log.append((number, clock.monotonic_ns()))

    async def main() -> None:
        calls = (asyncio.to_thread(run, clock, child(number)) for number in range(4))
        await asyncio.gather(*calls)

    run(clock, main())
    return log


def test_four_loops_in_four_threads_interleave_the_same_way_20_times():
    with no_thread_remains():
        first = interleaving()
        assert 24 == len(first)
        assert sorted(first, key=lambda entry: entry[1]) == first
        assert all(interleaving() == first for _ in range(19))


def test_loops_that_wake_at_one_instant_wake_in_the_order_in_which_they_were_made():
    for _ in range(20):
        clock, log = FakeClock(autojump=False), []
        loops = [clock.new_event_loop() for _ in range(4)]

        async def child(number: int, log: list[int]) -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                log.append(number)

        threads = [
            threading.Thread(target=loop.run_until_complete, args=(child(number, log),))
            for number, loop in reversed(list(enumerate(loops)))
        ]
        for thread in threads:
            thread.start()
        while clock.turn() is not None or len(clock._waiting) < 4:  # until all loops wait
            pass
        clock.advance(3)
        for thread in threads:
            thread.join(PATIENCE)
        for loop in loops:
            loop.close()
        assert [0, 1, 2, 3] * 3 == log


def test_a_call_in_a_thread_passes_virtual_time_and_is_not_jumped_over():
    clock = FakeClock()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.to_thread(pause, clock, 10)
        assert 3.0 == seconds(clock)
        async with asyncio.timeout(20):
            await asyncio.to_thread(pause, clock, 10)
        assert 13.0 == seconds(clock)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(asyncio.to_thread(pause, clock, 10))
        assert 23.0 == seconds(clock)

    with no_thread_remains():
        run(clock, main())


@pytest.mark.parametrize("default", [True, False])
def test_the_executor_of_the_caller_counts(default):
    clock = FakeClock()

    async def main() -> set[str]:
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(2, thread_name_prefix="mine")
        if default:
            loop.set_default_executor(pool)
        names: set[str] = set()

        def work() -> None:
            names.add(threading.current_thread().name)
            pause(clock, 10)

        executor = None if default else pool
        await asyncio.gather(*(loop.run_in_executor(executor, work) for _ in range(5)))
        pool.shutdown()
        return names

    assert {"mine_0", "mine_1"} == run(clock, main())
    assert 30.0 == seconds(clock)  # five calls on two threads


def test_two_loops_share_the_threads_of_one_executor():
    for _ in range(5):
        clock = FakeClock()
        with ThreadPoolExecutor(1) as pool:

            async def child(pool: Executor, clock: FakeClock) -> None:
                await asyncio.get_running_loop().run_in_executor(pool, pause, clock, 1)

            async def main(pool: Executor, clock: FakeClock) -> None:
                calls = (asyncio.to_thread(run, clock, child(pool, clock)) for _ in range(3))
                await asyncio.gather(*calls)

            run(clock, main(pool, clock))
            assert 3.0 == seconds(clock)


def test_a_call_that_is_cancelled_before_its_turn_gives_way():
    clock, ran = FakeClock(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            first = loop.run_in_executor(pool, pause, clock, 5)
            second = loop.run_in_executor(pool, ran.append, "cancelled")
            third = loop.run_in_executor(pool, ran.append, "third")
            second.cancel()
            await asyncio.gather(first, third)
            with pytest.raises(asyncio.CancelledError):
                await second

    run(clock, main())
    assert ["third"] == ran
    assert 5.0 == seconds(clock)


def test_errors_of_calls_and_of_their_executor_are_raised():
    clock = FakeClock()

    def broken() -> None:
        raise LookupError("broken")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(LookupError, match="broken"):
            await asyncio.to_thread(broken)
        pool = ThreadPoolExecutor(1)
        first = loop.run_in_executor(pool, pause, clock, 5)
        second = loop.run_in_executor(pool, pause, clock, 5)
        await asyncio.sleep(1)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        with pytest.raises(RuntimeError, match="after shutdown"):
            await loop.run_in_executor(pool, pause, clock, 5)
        failing = ThreadPoolExecutor(1, initializer=broken)
        with pytest.raises(RuntimeError, match="initializer failed"):
            await loop.run_in_executor(failing, pause, clock, 5)
        await asyncio.sleep(1)

    run(clock, main())
    assert 6.0 == seconds(clock)


class OwnThreads(Executor):
    """An executor whose threads the clock does not know."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            threading.Event().wait(0.005)
            future.set_result(function(*args, **kwargs))

        threading.Thread(target=work).start()
        return future


def test_a_call_in_any_other_executor_is_waited_for_in_real_time():
    clock = FakeClock()

    async def main() -> None:
        async with asyncio.timeout(60):
            loop = asyncio.get_running_loop()
            assert 3 == await loop.run_in_executor(OwnThreads(), max, 2, 3)
        assert 0.0 == seconds(clock)
        await asyncio.sleep(60)

    run(clock, main())
    assert 60.0 == seconds(clock)


def test_a_callback_from_an_unknown_thread_wakes_the_loop():
    clock = FakeClock()

    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def call() -> None:
            threading.Event().wait(0.002)
            loop.call_soon_threadsafe(future.set_result, "called")

        threading.Thread(target=call).start()
        return await future

    assert "called" == run(clock, main())
    assert 0.0 == seconds(clock)


def test_a_coroutine_of_another_thread_runs_in_the_loop():
    clock = FakeClock()
    loop = clock.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert 3 == asyncio.run_coroutine_threadsafe(asyncio.sleep(5, 3), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()
    assert 5.0 == seconds(clock)


def test_a_loop_that_never_waits_lets_other_threads_run():
    clock = FakeClock()

    async def main() -> None:
        call = asyncio.ensure_future(asyncio.to_thread(int, "3"))
        while not call.done():  # noqa: ASYNC110 - the loop must not wait
            await asyncio.sleep(0)
        assert 3 == call.result()

    run(clock, main())


# --- loops that nothing will wake, and signals ----------------------------------------------------


def test_a_loop_that_nothing_can_wake_is_stalled():
    clock = FakeClock()
    clock.patience_ns = 10_000_000  # for threads that other tests have left

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClockStalledError, match="the event loop of thread 'MainThread' waits"):
        run(clock, main())


def test_a_loop_that_an_idle_thread_might_wake_is_stalled_after_the_patience_of_its_clock():
    clock = FakeClock()
    clock.patience_ns = 10_000_000

    async def main() -> None:
        await asyncio.Event().wait()

    released = threading.Event()
    thread = threading.Thread(target=released.wait)
    thread.start()
    try:
        with pytest.raises(ClockStalledError, match="the event loop of thread 'MainThread' waits"):
            run(clock, main())
    finally:
        released.set()
        thread.join(PATIENCE)


def test_ctrl_c_cancels_the_main_task():
    clock, ended = FakeClock(), []

    async def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3600)
        finally:
            ended.append(seconds(clock))

    with pytest.raises(KeyboardInterrupt):
        run(clock, main())
    assert [0.0] == ended


def test_ctrl_c_wakes_a_loop_that_waits():
    clock = FakeClock(autojump=False)
    main_thread = threading.get_ident()

    def interrupt() -> None:
        while clock.turn() is not None or not clock._waiting:
            pass
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(clock, asyncio.sleep(3600))
    thread.join(PATIENCE)


def test_a_signal_handler_of_the_loop_runs_while_the_loop_waits():
    clock = FakeClock()
    main_thread = threading.get_ident()

    def terminate() -> None:
        while clock.turn() is not None or not clock._waiting:
            pass
        signal.pthread_kill(main_thread, signal.SIGTERM)

    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, future.set_result, "terminated")
        threading.Thread(target=terminate).start()
        return await future

    assert "terminated" == run(clock, main())
