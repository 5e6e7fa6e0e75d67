"""The loop and what it owes to jobs that end, break, or are watched by somebody careless."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from typing import TYPE_CHECKING

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    MemoryStore,
    NotResumableError,
    RoutiluxError,
    Routine,
    Runtime,
    UnserializableError,
)
from routilux.engine.drive import Drive
from routilux.engine.step import run_remote
from routilux.graph.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable


class Does(Routine):
    """Does what it is told; its event `output` carries `n`."""

    def __init__(self, what: Callable[[Routine], object]) -> None:
        super().__init__()
        self.what = what
        self.define_slot("trigger", handler=self.trigger)
        self.define_slot("input", handler=self.input)
        self.define_event("output", ["n"])

    def trigger(self) -> object:
        return self.what(self)

    def input(self, n: int) -> object:
        return self.what(self)


def two(left: Callable[[Routine], object], right: Callable[[Routine], object]) -> Flow:
    flow = Flow("two", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(Does(lambda self: self.emit("output", n=1)), "source")
    for name, what in (("left", left), ("right", right)):
        flow.add_routine(Does(what), name)
        flow.connect("source", "output", name, "input")
    return flow


def alone(what: Callable[[Routine], object]) -> Flow:
    flow = Flow("alone")
    flow.add_routine(Does(what), "does")
    return flow


def alive(kind: type) -> list[object]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is kind]


def test_no_history_runs_back_when_an_observer_commits_between_two_timeouts():
    class Canceller:
        def on_commit(self, job, commit):
            clock.jump(5)
            if commit.kind == "dropped" and job.status == "running":
                runs[0].cancel()

    clock = FakeClock()
    runs = []
    sleeps = two(lambda self: self.ctx.sleep(9), lambda self: self.ctx.sleep(9))
    sleeps.set_error_handler(ErrorHandler("continue", timeout=0.2))
    with Runtime(clock=clock, observers=[Canceller()]) as runtime:
        runs.append(sleeps.start("source", runtime=runtime))
        job = runs[0].wait()
    times = [commit.at_ns for commit in job.commits]
    assert sorted(times) == times
    assert JobState.deserialize(job.serialize()) == job


def test_a_value_that_is_set_to_what_stood_there_must_still_stand_there():
    def first(self):
        self.ctx.shared["x"] = 1
        self.ctx.sleep(2)
        self.ctx.shared["x"] = 1
        self.ctx.shared["last"] = "first"

    def second(self):
        self.ctx.sleep(1)
        self.ctx.shared["x"] = 2
        self.ctx.shared["last"] = "second"

    flow = two(first, second)
    flow.routines["source"].what = lambda self: (
        self.ctx.shared.update(x=1),
        self.emit("output", n=1),
    )
    job = flow.execute("source", runtime=Runtime(clock=FakeClock()))
    assert {"x": 1, "last": "first"} == job.shared_data  # as if one had run after the other
    assert ["start", "done", "done", "conflict", "done"] == [c.kind for c in job.commits]


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
def test_a_generator_for_a_handler_is_refused_and_not_taken_for_done(strategy):
    flow = alone(lambda self: (n for n in range(3)))
    flow.execution_strategy = strategy
    job = flow.execute("does", runtime=Runtime(clock=FakeClock()))
    assert "failed" == job.status
    assert job.error is not None
    assert "is a generator, so none of it has run" in job.error.message


def test_finished_jobs_are_not_kept_by_their_timers():
    gate = threading.Event()
    quick = alone(lambda self: None)
    quick.set_error_handler(ErrorHandler(timeout=3600))
    with Runtime() as runtime:
        busy = alone(lambda self: gate.wait(30)).start("does", runtime=runtime)
        before = len(alive(Drive))
        for _ in range(50):
            quick.start("does", runtime=runtime).wait(30)
        kept = len(alive(Drive)) - before
        gate.set()
        busy.wait(30)
    assert 20 > kept, f"{kept} of 50 finished jobs are still in memory"


def test_a_step_that_used_state_and_shared_data_leaves_no_cycle():
    def looks(self):
        self.ctx.state["n"] = 1
        self.ctx.shared["n"] = 1

    before = len(alive(Context))
    gc.disable()
    try:
        alone(looks).execute("does", runtime=Runtime(clock=FakeClock()))
        left = sum(type(found) is Context for found in gc.get_objects())
    finally:
        gc.enable()
    assert before == left


def test_many_awaited_jobs_do_not_hold_up_each_other():
    gate = threading.Event()

    async def story():
        slow = [
            asyncio.create_task(alone(lambda self: gate.wait(30)).aexecute("does", runtime=runtime))
            for _ in range(20)
        ]
        quick = await alone(lambda self: None).aexecute("does", runtime=runtime)
        seen = [quick.status.value, str(any(task.done() for task in slow))]
        gate.set()
        return seen + [job.status.value for job in await asyncio.gather(*slow)]

    with Runtime() as runtime:
        assert ["completed", "False"] + ["completed"] * 20 == asyncio.run(story())


def test_a_cancelled_error_of_the_handlers_own_leaves_the_task_pending():
    def gives_up(self):
        raise asyncio.CancelledError

    store = MemoryStore()
    with Runtime(store=store) as runtime:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(alone(gives_up).aexecute("does", job_id="j", runtime=runtime))
        job = runtime.load("j")
    assert "running" == job.status
    assert ["0"] == [task.task_id for task in job.pending_tasks]


def test_an_observer_that_waits_for_a_job_is_told_and_hangs_nobody():
    class Waits:
        def on_commit(self, job, commit):
            alone(lambda self: None).execute("does", runtime=runtime)

    runtime = Runtime(clock=FakeClock(), observers=[Waits()])
    job = alone(lambda self: None).execute("does", runtime=runtime)
    assert "completed" == job.status
    [failure] = runtime.observer_failures
    assert isinstance(failure.error, RoutiluxError)
    assert "an observer can't execute a job" in str(failure.error)


def test_a_run_that_an_error_has_ended_says_why_it_cannot_be_cancelled():
    class Full(MemoryStore):
        def append(self, job_id, seq, row, owner, *, stopped):
            raise OSError("disk full")

    with Runtime(clock=FakeClock(), store=Full()) as runtime:
        run = alone(lambda self: None).start("does", runtime=runtime)
        with pytest.raises(OSError, match="disk full"):
            run.wait()
        with pytest.raises(
            NotResumableError, match=r"an error ended the run of job .* \(OSError: disk full\)"
        ):
            run.cancel()


def test_what_cannot_leave_its_process_fails_the_attempt_and_not_the_job():
    class Local(ValueError):
        pass

    class Stuck:
        def __reduce__(self):
            raise TypeError("no way out")

    def raises(self):
        raise Local("here")

    for what, expected in ((raises, ValueError), (lambda self: self.emit("output", n=Stuck()), 0)):
        flow = alone(what)
        plan = flow.plan()
        steps = []

        class Keeps:
            def on_commit(self, job, commit):
                pass

            def on_step(self, job, step):
                steps.append(step)  # noqa: B023 - it is used in this round only

        flow.execute("does", runtime=Runtime(clock=FakeClock(), observers=[Keeps()]))
        outcome = run_remote(steps[0], plan.routines["does"], "trigger", plan.handlers["does"])
        pickle.dumps(outcome)
        assert (expected or UnserializableError) is outcome.error_type


def test_a_job_can_be_copied_and_pickled_though_a_clock_drove_it():
    job = alone(lambda self: None).execute("does", runtime=Runtime(clock=FakeClock()))
    assert job == copy.deepcopy(job)
    assert job == pickle.loads(pickle.dumps(job))


def test_what_a_routine_declares_after_it_was_added_counts():
    flow = alone(lambda self: None)
    before = flow.fingerprint
    flow.routines["does"].define_event("later", ["n"])
    assert before != flow.fingerprint
    assert "event does.later(n)" in flow.shape


def test_the_rest_of_a_wait_is_asked_of_the_clock_of_the_next_host():
    def fails(self):
        if self.ctx.attempt == 1:
            raise ValueError("once")

    flow = alone(fails)
    flow.set_error_handler(ErrorHandler("retry", retry_delay=1.0))
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        run = flow.start("does", runtime=runtime)
        clock.advance(0.25)
        run.pause()
        paused = run.wait()
    later = FakeClock(start=clock.now())
    assert "completed" == flow.resume(paused, runtime=Runtime(clock=later)).status
    assert [("retry of does", 750_000_000)] == [(w.who, w.length_ns) for w in later.waits]
