"""`FakeClock`: time that a test moves or that jumps, the order of turns, and stalled jobs."""

from __future__ import annotations

import re
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import ClockStalledError, ErrorHandler, FakeClock, Flow, JobStatus, Runtime, Wait
from tests.engine.concurrency import at_once, engine_threads, no_thread_remains
from tests.routines import (
    MODES,
    PATIENCE,
    SECOND,
    Works,
    chain,
    ended_at,
    ends,
    fails,
    fan,
    kinds,
    outputs,
    rest,
    retrying,
    run,
    send,
    sends,
    sleeps,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


# --- a fake clock by itself -----------------------------------------------------------------------


def test_a_fake_clock_shows_the_same_time_until_it_is_moved():
    clock = FakeClock("2026-01-01T00:00:00+00:00")
    assert START == clock.now() == clock.now()
    clock.advance(0.25)
    clock.advance(timedelta(seconds=1))
    assert START + timedelta(seconds=1.25) == clock.now()
    assert 1_250_000_000 == clock.monotonic_ns()


@pytest.mark.parametrize("instant", ["soon", "", 5, 1.5, None, date(2026, 1, 1)])
def test_a_value_that_is_no_instant_is_refused_with_its_cure(instant):
    says = re.escape(f"{instant!r} is no instant; give a datetime or an ISO text such as '2026-")
    for use in (FakeClock, FakeClock().move_to):
        with pytest.raises(ValueError, match=says):
            use(instant)


@given(st.integers(0, 10**6), st.integers(0, 10**12))
def test_move_to_ends_exactly_at_its_instant(odd, micros):
    clock = FakeClock()
    clock.advance(odd / SECOND)  # the time may lie between two microseconds
    target = START + timedelta(seconds=1, microseconds=micros)
    clock.move_to(target)
    assert target == clock.now()
    assert 0 == clock.now_ns() % 1000


def test_time_is_not_moved_back_and_the_refusal_leaves_it_as_it_was():
    clock = FakeClock()
    clock.advance(5)
    with pytest.raises(ValueError, match=r"1.0 s before .*jump\(\)"):
        clock.move_to("2026-01-01T00:00:04")
    with pytest.raises(ValueError, match="0 or more"):
        clock.advance(-1)
    assert START + timedelta(seconds=5) == clock.now()


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False)))
def test_a_jump_sets_the_wall_clock_and_lets_no_time_pass(jumps):
    clock = FakeClock()
    for seconds in jumps:
        clock.jump(seconds)
    assert 0 == clock.monotonic_ns()
    assert abs((clock.now() - START).total_seconds() - sum(jumps)) < 1e-3


# --- it jumps by itself ---------------------------------------------------------------------------


@MODES
def test_every_wait_that_was_asked_for_is_listed_exactly(workers):
    clock = FakeClock()
    flow = chain(
        workers=workers,
        fetch=sleeps(0.8),
        work=Works(fails(3), retrying(retry_delay=0.3, retry_backoff=1.5)),
    )
    flow.execute("fetch", runtime=Runtime(clock=clock))
    zero = clock.now_ns() - clock.monotonic_ns()
    assert [
        Wait("fetch", zero, 800_000_000),
        Wait("retry of work", zero + 800_000_000, 300_000_000),
        Wait("retry of work", zero + 1_100_000_000, 450_000_000),
        Wait("retry of work", zero + 1_550_000_000, 675_000_000),
    ] == list(clock.waits)
    assert timedelta(milliseconds=675) == clock.waits[-1].length


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_sleepers_wake_one_at_a_time_by_instant_and_then_by_order_of_creation(lengths):
    woken: list[int] = []
    awake = 0

    def sleeper(length, index):
        def body(self, n=0):
            nonlocal awake
            self.ctx.sleep(length)
            awake += 1
            assert awake == 1, "two handlers have their turn at once"
            woken.append(index)
            sum(range(200))
            awake -= 1

        return Works(body)

    sleepers = {f"s{i}": sleeper(length, i) for i, length in enumerate(lengths)}
    job = run(fan(send, workers=len(lengths), **sleepers), "source")
    job.raise_for_status()
    assert sorted(range(len(lengths)), key=lambda i: (lengths[i], i)) == woken
    assert max(lengths) == ended_at(job)


@pytest.mark.parametrize("names", [("sleeper", "retry"), ("retry", "sleeper")])
def test_a_sleeper_and_a_retry_of_the_same_instant_run_in_the_order_of_their_tasks(names):
    ran: list[str] = []

    def sleeper(self, n):
        self.ctx.sleep(1)
        ran.append("sleeper")

    def retry(self, n):
        if self.ctx.attempt == 1:
            raise ValueError
        ran.append("retry")

    bodies: dict[str, Any] = {"sleeper": sleeper, "retry": Works(retry, retrying(retry_delay=1))}
    flow = fan(send, workers=2, **{name: bodies[name] for name in names})
    job = run(flow, "source")
    assert 1 == ended_at(job)
    assert [*names] == ran


def test_steps_that_overlap_run_on_different_workers_and_real_threads():
    threads: list[int] = []

    def body(self, n=0):
        mine = threading.get_ident()
        threads.append(mine)
        self.ctx.sleep(1)
        assert threading.get_ident() == mine

    job = run(fan(send, workers=2, left=body, right=body), "source")
    assert [("left", 1), ("right", 1)] == ends(job, 2)
    assert {0, 1} == {commit.worker for commit in job.commits[-2:]}
    assert 3 == len({threading.get_ident(), *threads})


def test_a_worker_that_could_still_run_holds_the_time_back():
    seen: list[float] = []

    def busy(self, n=0):
        clock = runtime.clock
        for _ in range(50):
            seen.append(clock.monotonic_ns() / SECOND)
            time.sleep(0)  # gives other threads every chance

    runtime = Runtime(clock=FakeClock())
    with runtime:
        fan(send, workers=2, asleep=sleeps(1), busy=busy).execute("source", runtime=runtime)
    assert {0.0} == set(seen)


def test_fifty_runs_of_a_concurrent_flow_give_the_same_bytes():
    def wander(self, n):
        self.ctx.sleep(round(self.ctx.random.random(), 3))
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + n  # type: ignore[operator]
        self.ctx.sleep(round(self.ctx.random.random(), 1))
        if self.ctx.attempt == 1 and self.ctx.random.random() < 0.4:
            raise ValueError(self.ctx.task_id)
        self.emit("out", n=n)

    def bytes_of_a_run():
        retry = retrying(retry_delay=0.1, jitter=0.5)
        flow = fan(sends(*range(5)), workers=4, **{f"r{i}": Works(wander, retry) for i in range(3)})
        job = run(flow, "source", job_id="always the same")
        assert "completed" == job.status.value
        return "\n".join(commit.dumps() for commit in job.commits)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        runs = {bytes_of_a_run() for _ in range(50)}
    finally:
        sys.setswitchinterval(interval)
    assert 1 == len(runs)
    assert "conflict" in next(iter(runs))


def test_fake_clocks_that_run_at_once_do_not_affect_each_other():
    gate = threading.Barrier(4)
    took: dict[int, float] = {}

    def host(seconds):
        with Runtime(clock=FakeClock()) as runtime:
            gate.wait(PATIENCE)
            flow = fan(send, workers=2, a=sleeps(seconds), b=sleeps(2 * seconds))
            took[seconds] = ended_at(flow.execute("source", runtime=runtime))

    at_once(*(partial(host, seconds) for seconds in (1, 10, 100, 1000)))
    assert {1: 2, 10: 20, 100: 200, 1000: 2000} == took


@pytest.mark.parametrize("outer", [None, 2])
@pytest.mark.parametrize("inner", [None, 2])
def test_a_handler_may_execute_a_flow_of_its_own(outer, inner):
    runtime = Runtime(clock=FakeClock())
    within = fan(sleeps(1), workers=inner, a=sleeps(1), b=sleeps(1))

    def nests(self, n=0):
        self.ctx.sleep(1)
        job = within.execute("source", runtime=runtime)
        self.emit("out", n=ended_at(job))

    with runtime:
        job = fan(send, workers=outer, nests=nests, other=sleeps(1.5)).execute(
            "source", runtime=runtime
        )
    job.raise_for_status()
    inside = 3 if inner is None else 2
    assert inside == next(o.data["n"] for o in job.outputs if o.routine_id == "nests")
    assert (inside + 2.5 if outer is None else inside + 1) == ended_at(job)


# --- it is moved by hand --------------------------------------------------------------------------


def test_advance_returns_when_every_step_that_it_woke_has_ended_or_waits():
    clock = FakeClock(autojump=False)
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        run = chain(a=sleeps(1), b=sleeps(1), c=rest).start("a", runtime=runtime)
        clock.advance(0.999)
        assert 1 == run.job.seq
        clock.advance(0.001)
        assert 2 == run.job.seq
        clock.advance(5)
        assert JobStatus.COMPLETED is run.job.status
        assert 2 == ended_at(run.job)
        assert START + timedelta(seconds=6) == clock.now()


def test_advance_wakes_each_sleeper_at_its_own_instant():
    clock = FakeClock(autojump=False)
    with Runtime(clock=clock) as runtime:
        flow = fan(send, workers=3, a=sleeps(3), b=sleeps(1, 1), c=sleeps(2))
        run = flow.start("source", runtime=runtime)
        clock.advance(10)
        assert [("b", 2.0), ("c", 2.0), ("a", 3.0)] == ends(run.job, 2)


def test_no_time_passes_between_two_calls_of_a_test_while_jobs_wait():
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        run = chain(a=sleeps(60)).start("a", runtime=runtime)
        assert START == clock.now()
        run.wait()
        assert START + timedelta(seconds=60) == clock.now()


def test_advance_inside_a_handler_is_a_sleep_of_that_handler():
    clock = FakeClock()

    def moves(self, n=0):
        clock.advance(2)

    with Runtime(clock=clock) as runtime:
        job = fan(send, workers=2, moves=moves, asleep=sleeps(1)).execute("source", runtime=runtime)
    assert [("asleep", 1.0), ("moves", 2.0)] == ends(job, 2)
    assert ["advance", 2 * SECOND] == [clock.waits[0].who, clock.waits[0].length_ns]


def test_a_jump_of_the_fake_wall_clock_moves_neither_a_wait_nor_a_jobs_time():
    clock = FakeClock()
    seen: list[datetime] = []

    def jumps(self, n=0):
        if self.ctx.attempt == 1:
            clock.jump(-7200)
            raise ValueError
        seen.append(self.ctx.now())

    flow = Flow()
    flow.add_routine(Works(jumps, retrying(retry_delay=10)), "a")
    job = flow.execute("a", runtime=Runtime(clock=clock))
    assert [START + timedelta(seconds=10)] == seen
    assert 10 == ended_at(job)
    assert START + timedelta(seconds=10 - 7200) == clock.now()


# --- it stalls -------------------------------------------------------------------------------


@MODES
def test_a_stalled_job_fails_with_a_list_of_its_waits_and_leaves_no_thread(workers):
    clock = FakeClock(autojump=False)
    flow = fan(send, workers=workers, slow=sleeps(4), slower=sleeps(2.5, 7))
    with (
        no_thread_remains(),
        Runtime(clock=clock) as runtime,
        pytest.raises(ClockStalledError) as stalled,
    ):
        flow.execute("source", runtime=runtime)
    message = str(stalled.value)
    assert "slow (task 0.0, attempt 1) waits for 4 s more" in message
    if workers:
        assert "slower (task 0.1, attempt 1) waits for 2.5 s more" in message
    assert "call advance() from another thread" in message
    assert START == clock.now()


def test_a_job_that_waits_for_a_retry_with_a_stopped_clock_is_stalled_too():
    flow = chain(a=Works(fails(1), retrying(retry_delay=9)))
    with pytest.raises(ClockStalledError, match=r"job \w+ \(next retry\) waits for 9 s more"):
        flow.execute("a", runtime=Runtime(clock=FakeClock(autojump=False)))


def test_waiting_for_a_stalled_job_raises_and_the_job_can_still_run():
    clock = FakeClock(autojump=False)
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        run = chain(a=sleeps(3)).start("a", job_id="j1", runtime=runtime)
        with pytest.raises(
            ClockStalledError, match="the caller that waits for job j1 waits for a signal"
        ):
            run.wait()
        clock.advance(3)
        assert JobStatus.COMPLETED is run.wait().status


@pytest.mark.parametrize("outer", [None, 2])
@pytest.mark.parametrize("inner", [None, 2])
def test_a_stall_reaches_the_jobs_within_a_handler(outer, inner):
    runtime = Runtime(clock=FakeClock(autojump=False))
    within = fan(send, workers=inner, a=sleeps(1), b=sleeps(1))
    errors: list[str] = []

    def nests(self, n=0):
        try:
            within.execute("source", runtime=runtime)
        except ClockStalledError as error:
            errors.append(str(error))
            raise

    with no_thread_remains(), runtime:
        flow = fan(send, workers=outer, nests=nests)
        with pytest.raises(ClockStalledError, match=r"a \(task 0.0, attempt 1\) waits for 1 s"):
            flow.execute("source", runtime=runtime)
    assert 1 == len(errors)


def test_a_step_that_swallows_the_stall_is_not_left_asleep():
    def stubborn(self, n=0):
        for _ in range(3):
            with suppress(Exception):
                self.ctx.sleep(1)

    with no_thread_remains(), Runtime(clock=FakeClock(autojump=False)) as runtime:
        flow = fan(send, workers=2, a=stubborn, b=stubborn)
        with pytest.raises(ClockStalledError):
            flow.execute("source", runtime=runtime)


def test_another_thread_may_move_a_stopped_clock_on():
    made: list[FakeClock] = []
    at_once(lambda: made.append(FakeClock(autojump=False)))
    clock = made[0]
    with Runtime(clock=clock) as runtime:
        run = chain(a=sleeps(3)).start("a", runtime=runtime)
        mover = threading.Thread(target=clock.advance, args=(3,))
        mover.start()
        assert JobStatus.COMPLETED is run.wait().status
        mover.join(PATIENCE)


# --- many jobs ------------------------------------------------------------------------------------


def test_a_thousand_waiting_jobs_share_one_loop_and_never_see_each_other():
    def once_more(self, n):
        if self.ctx.attempt == 1:
            self.ctx.shared["mine"] = -1  # a failed attempt leaves no trace
            raise ValueError(n)
        assert dict(self.ctx.shared) == {}
        self.ctx.shared["mine"] = n
        self.emit("out", n=n)

    flows = [
        chain(a=Works(once_more, retrying(retry_delay=1 + i % 100, max_retries=1)))
        for i in range(100)
    ]
    clock = FakeClock()
    before = engine_threads()
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        runs = [flows[i % 100].start("a", {"n": i}, runtime=runtime) for i in range(1000)]
        jobs = [run.wait() for run in runs]
        new = [thread.name for thread in engine_threads() - before]
        assert new.count("routilux-loop") <= 1
    for i, job in enumerate(jobs):
        assert JobStatus.COMPLETED is job.status
        assert 1 + i % 100 == ended_at(job)
        assert {"mine": i} == job.shared_data
        assert [i] == outputs(job)
        assert START.timestamp() * SECOND == job.started_ns
    assert START + timedelta(seconds=100) == clock.now()


class Unplugged(BaseException):
    """What no handler can be retried after."""


def test_an_interrupt_in_one_background_job_ends_its_timeouts_and_leaves_the_others_alone():
    slow = Works(sleeps(10), ErrorHandler(timeout=5))
    flow = fan(send, workers=2, breaks=fails(1, Unplugged, after=1), slow=slow)
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        well = [chain(a=sleeps(2), b=sleeps(18)).start("a", runtime=runtime) for _ in range(3)]
        broken = flow.start("source", runtime=runtime)
        failed = chain(a=fails(1)).start("a", runtime=runtime)
        with pytest.raises(Unplugged):
            broken.wait()
        assert [JobStatus.COMPLETED] * 3 == [run.wait().status for run in well]
        assert JobStatus.FAILED is failed.wait().status
    assert ["start", "done", "interrupted"] == kinds(broken.job)
    assert {"breaks", "slow"} == {task.routine_id for task in broken.job.pending_tasks}


def test_a_waiter_is_given_up_after_its_timeout_in_virtual_time():
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        run = chain(a=sleeps(10)).start("a", job_id="j1", runtime=runtime)
        with pytest.raises(TimeoutError, match="job j1 is still running after 4 s"):
            run.wait(timeout=4)
        assert START + timedelta(seconds=4) == clock.now()
        assert 10 == ended_at(run.wait(timeout=timedelta(seconds=6)))
