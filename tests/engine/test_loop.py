"""The loop: jobs that end, errors from outside a flow, and what stays in memory."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from datetime import timedelta

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    JobState,
    Routine,
    Run,
    Runtime,
)
from routilux.engine.drive import Drive
from routilux.engine.driver import Ended, InlineDriver
from routilux.graph.context import Context
from tests.routines import (
    MODES,
    Body,
    Works,
    arun,
    chain,
    ended_at,
    ends,
    error_of,
    fails,
    fan,
    kinds,
    rest,
    retrying,
    run,
    run_by,
    send,
    sleeps,
)


def alive(kind: type) -> list[object]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is kind]


def test_time_never_decreases_when_an_observer_commits_between_two_timeouts():
    class Canceller:
        def on_commit(self, job, commit):
            clock.jump(5)
            if commit.kind == "dropped" and job.status == "running":
                runs[0].cancel()

    clock = FakeClock()
    runs = []
    flow = fan(send, workers=2, a=sleeps(9), b=sleeps(9))
    flow.set_error_handler(ErrorHandler("continue", timeout=0.2))
    with Runtime(clock=clock, observers=[Canceller()]) as runtime:
        runs.append(flow.start("source", runtime=runtime))
        job = runs[0].wait()
    times = [commit.at_ns for commit in job.commits]
    assert sorted(times) == times
    assert JobState.deserialize(job.serialize()) == job


def test_a_value_that_a_step_sets_to_what_it_was_must_still_be_that_at_its_commit():
    def source(self):
        self.ctx.shared.update(x=1)
        self.emit("out", n=1)

    def first(self, n):
        self.ctx.shared["x"] = 1
        self.ctx.sleep(2)
        self.ctx.shared["x"] = 1
        self.ctx.shared["last"] = "first"

    def second(self, n):
        self.ctx.sleep(1)
        self.ctx.shared.update(x=2, last="second")

    job = run(fan(source, workers=2, a=first, b=second), "source")
    assert {"x": 1, "last": "first"} == job.shared_data  # as if one had run after the other
    assert ["start", "done", "done", "conflict", "done"] == kinds(job)


@pytest.mark.parametrize("workers", [None, 2])
def test_a_handler_that_is_a_generator_fails_its_attempt(workers):
    job = run(chain(workers=workers, a=lambda self: (n for n in range(3))))
    assert "is a generator, so its code has not run" in error_of(job)[1]


def waits_for(gate: threading.Event) -> Body:
    def waits(self) -> None:
        gate.wait(30)

    return waits


def test_timers_keep_no_finished_job_in_memory():
    gate = threading.Event()
    quick = chain(a=rest)
    quick.set_error_handler(ErrorHandler(timeout=3600))
    with Runtime() as runtime:
        busy = chain(a=waits_for(gate)).start("a", runtime=runtime)
        before = len(alive(Drive))
        for _ in range(50):
            quick.start("a", runtime=runtime).wait(30)
        kept = len(alive(Drive)) - before
        gate.set()
        busy.wait(30)
    assert 20 > kept, f"{kept} of 50 finished jobs are still in memory"


def test_waits_end_in_time_after_the_timers_of_ended_jobs_were_removed():
    delays = [1, *range(100, 90, -1)]  # ended timers stay while the first one waits
    quick = chain(a=Works(rest, ErrorHandler(timeout=50)))
    runs: list[Run] = []

    def starts_jobs(self):
        for delay in delays:
            waiting = chain(a=Works(fails(1), retrying(retry_delay=delay)))
            runs.append(waiting.start("a", runtime=runtime))
            for _ in range(5):
                quick.start("a", runtime=runtime).wait()
        timers.append(len(runtime.threads.background._timers))

    timers: list[int] = []
    with Runtime(clock=FakeClock()) as runtime:
        chain(a=starts_jobs).start("a", runtime=runtime).wait()
        assert delays == [ended_at(run.wait()) for run in runs]
    assert timers[0] < 50, "no timer of an ended job was removed"


def test_a_step_that_used_state_and_shared_data_leaves_no_cycle():
    def looks(self):
        self.ctx.state["n"] = 1
        self.ctx.shared["n"] = 1

    before = len(alive(Context))
    gc.disable()
    try:
        chain(a=looks).execute("a", runtime=Runtime(clock=FakeClock()))
        left = sum(type(found) is Context for found in gc.get_objects())
    finally:
        gc.enable()
    assert before == left


def test_awaited_jobs_do_not_block_each_other():
    gate = threading.Event()

    async def story():
        slow = [
            asyncio.create_task(chain(a=waits_for(gate)).aexecute("a", runtime=runtime))
            for _ in range(20)
        ]
        quick = await chain(a=rest).aexecute("a", runtime=runtime)
        seen = [quick.status.value, str(any(task.done() for task in slow))]
        gate.set()
        return seen + [job.status.value for job in await asyncio.gather(*slow)]

    with Runtime() as runtime:
        assert ["completed", "False"] + ["completed"] * 20 == arun(runtime, story())


class Hangup(asyncio.CancelledError):
    pass


@pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", [asyncio.CancelledError, Hangup, None])
@MODES
def test_a_cancelled_error_that_nobody_asked_for_is_a_failed_attempt(how, is_async, kind, workers):
    def gives_up(self, n=0):
        if self.ctx.attempt == 1:
            if kind is None:
                raise BaseExceptionGroup("2", [OSError("lost"), asyncio.CancelledError("gone")])
            raise kind("gone")

    async def gives_up_async(self, n=0):
        gives_up(self)

    flow = chain(workers=workers, a=gives_up_async if is_async else gives_up)
    for handler, expected in (
        (retrying(), ["start", "retry", "done"]),
        (ErrorHandler("continue"), ["start", "dropped"]),
        (retrying(retryable_exceptions=OSError), ["start", "failed"]),
        (None, ["start", "failed"]),
    ):
        flow.set_error_handler(handler)
        with Runtime(clock=FakeClock()) as runtime:
            job = run_by(how, flow, "a", runtime)
        assert expected == kinds(job)
        assert "gone" in str(job.commits[1].error)


def test_a_job_can_be_copied_and_pickled_though_a_clock_drove_it():
    job = chain(a=rest).execute("a", runtime=Runtime(clock=FakeClock()))
    assert job == copy.deepcopy(job)
    assert job == pickle.loads(pickle.dumps(job))


@pytest.mark.parametrize("skew", [0, -3600], ids=["same time", "an hour behind"])
def test_the_clock_of_the_next_host_records_the_rest_of_a_wait(skew):
    flow = chain(a=Works(fails(1), retrying()))
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        run = flow.start("a", runtime=runtime)
        clock.advance(0.25)
        run.pause()
        paused = run.wait()
    later = FakeClock(start=clock.now() + timedelta(seconds=skew))
    job = flow.resume(paused, runtime=Runtime(clock=later))
    assert ("completed", 1.0) == (job.status, ended_at(job)), "time ran back, or a wait grew"
    assert [("retry of a", 750_000_000)] == [(w.who, w.length_ns) for w in later.waits]


def test_an_error_of_a_step_that_has_already_ended_changes_nothing(monkeypatch):
    class Twice(InlineDriver):
        """Returns each step once more, as if its handler had left with `sys.exit`."""

        late: Ended | None = None

        def next(self, *until):
            again, self.late = self.late, None
            if again is not None:
                return again
            ended = super().next(*until)
            if ended is not None:
                self.late = (*ended[:2], SystemExit(3))
            return ended

    monkeypatch.setattr("routilux.engine.threads.InlineDriver", Twice)
    job = run(chain(a=send, b=send, c=rest))
    assert ["start", "done", "done", "done"] == kinds(job)


async def hangs(self: Routine, n: object = 0) -> None:
    await asyncio.sleep(1_000)


@pytest.mark.parametrize(
    "due",
    [
        Works(hangs, ErrorHandler("continue", timeout=5)),
        Works(fails(1), retrying(retry_delay=5)),
    ],
    ids=["timeout", "retry"],
)
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_what_the_loop_waits_for_and_the_end_of_a_sleep_come_in_the_order_of_their_tasks(
    due, names
):
    bodies = {"a": due, "b": sleeps(5)}
    flow = fan(send, workers=2, **{name: bodies[name] for name in names})
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.start("source", runtime=runtime).wait()
    assert [(name, 5) for name in names] == ends(job)[-2:]


def test_the_steps_of_one_timeout_end_in_the_order_in_which_they_started():
    flow = fan(send, workers=8, **dict.fromkeys("hgfedcba", hangs))
    flow.set_error_handler(ErrorHandler("continue", timeout=5))
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.start("source", runtime=runtime).wait()
    assert [*"hgfedcba"] == [dropped.routine_id for dropped in job.dropped]


def test_steps_end_at_their_timeouts_after_the_limits_of_ended_steps_were_removed():
    limits = [1, *range(100, 80, -1)]  # ended ones stay while the first one waits

    async def ticks(self: Routine, n: int = 0) -> None:
        if n % 4 == 0 and n < 4 * len(limits):
            self.emit(f"e{n // 4}")
        if n < 4 * len(limits) + 60:
            self.emit("out", n=n + 1)

    events: dict[str, list[str]] = {f"e{k}": [] for k in range(len(limits))}
    flow = chain(workers=99, ticks=Works(ticks, ErrorHandler(timeout=50), **events))
    flow.connect("ticks", "out", "ticks", "trigger")
    for k, limit in enumerate(limits):
        flow.add_routine(Works(hangs, ErrorHandler("continue", timeout=limit)), f"h{k}")
        flow.connect("ticks", f"e{k}", f"h{k}", "trigger")
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.start("ticks", runtime=runtime).wait()
    expected = sorted((limit, f"h{k}") for k, limit in enumerate(limits))
    assert expected == [(at, name) for name, at in ends(job)[-len(limits) :]]
