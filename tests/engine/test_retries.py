"""Retries: exact delays, budgets, retryable errors, deadlines and timeouts."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from routilux import (
    Context,
    ErrorHandler,
    FakeClock,
    JobState,
    JobStatus,
    NoActiveStepError,
    RetryAfter,
    Routine,
    Runtime,
    StepTimeoutError,
)
from routilux.graph.messages import RecordedEffect, StepInput
from tests.engine.concurrency import HandClock, no_thread_remains
from tests.routines import (
    MODES,
    PATIENCE,
    SECOND,
    Body,
    Works,
    chain,
    delays,
    ended_at,
    error_of,
    fails,
    fan,
    kinds,
    rest,
    retrying,
    run,
    run_by,
    send,
    sends,
    sleeps,
    starts,
)


def one(handler: ErrorHandler, body: Body, workers: int | None) -> JobState:
    return run(chain(workers=workers, a=Works(body, handler)))


# --- delays ---------------------------------------------------------------------------------------


@MODES
def test_delays_are_exact(workers):
    handler = retrying(max_retries=4, retry_delay=0.3, retry_backoff=1.5)
    process = Works(fails(9, after=0.5), handler)
    job = run(chain(workers=workers, fetch=sleeps(0.8), a=process, b=rest), "fetch")
    assert [0.3, 0.45, 0.675, 1.0125] == delays(job)
    assert JobStatus.FAILED is job.status
    assert 5.7375 == ended_at(job)
    assert (5, 4) == (job.routine_states["a"].attempts, job.retry_count("a"))
    assert 0 == job.routine_states["b"].attempts
    assert [0.8, 1.6, 2.55, 3.725, 5.2375] == starts(job)


@MODES
def test_the_wait_for_a_retry_occupies_no_worker(workers):
    fails_once = Works(fails(1), retrying(retry_delay=10))
    job = run(fan(send, workers=workers and 1, a=fails_once, b=sleeps(1)), "source")
    assert ["source", "a", "b", "a"] == [c.routine_id for c in job.commits[1:]]
    assert 10 == ended_at(job)


def test_jitter_repeats_and_differs_between_tasks_retries_and_jobs():
    handler = retrying(
        max_retries=4,
        retry_delay=10,
        retry_backoff=1,
        jitter=0.5,
        max_delay=10,
        on_exhausted="skip",
    )
    flow = fan(sends(*range(3)), a=Works(fails(4), handler))
    x, y, again = (delays(run(flow, "source", job_id=job_id)) for job_id in "xyx")
    assert x == again
    assert 24 == len(set(x + y))
    assert 5 <= min(x + y) <= max(x + y) <= 10, "a maximum holds for jitter too"


@MODES
@pytest.mark.parametrize("most", [0, 1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_retry_after_that_spends_nothing_leaves_the_budget_to_real_errors(workers, most, grouped):
    def body(self, n=0):
        if self.ctx.attempt % 3:  # two answers of 429 before each real error
            asked = RetryAfter(60, "429", spends=False)
            raise ExceptionGroup("2 calls", [asked, asked]) if grouped else asked
        raise OSError("down")

    job = run(chain(workers=workers, a=Works(body, retrying(max_retries=most, retry_delay=1))))
    real = [1, 2][:most]
    assert [*(d for wait in real for d in (60, 60, wait)), 60, 60] == delays(job)
    assert 3 * (most + 1) == job.routine_states["a"].attempts
    assert (most, "OSError") == (job.retry_count("a"), error_of(job)[0])
    assert [60, 60] == delays(job)[-2:]
    assert JobState.deserialize(job.serialize()) == job


def test_a_group_spends_a_retry_if_any_leaf_does():
    asked = RetryAfter(60, spends=False)
    for other in (OSError(), RetryAfter(1)):

        def body(self, n=0, other=other):
            raise ExceptionGroup("2", [asked, other])

        job = run(chain(a=Works(body, retrying(max_retries=2))))
        assert ([60, 60], 2) == (delays(job), job.retry_count("a"))


def test_a_retry_after_that_spends_nothing_ends_with_the_deadline():
    def body(self, n=0):
        raise RetryAfter(60, spends=False)

    job = run(chain(a=Works(body, retrying(max_retries=0, deadline=200))))
    assert ("failed", [60, 60, 60], 0) == (job.status, delays(job), job.retry_count())


# --- which errors ---------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("last", ["stop", "continue", "skip"])
def test_the_error_event_reports_each_task_that_is_given_up(workers, last):
    facts = {
        "error_type": "ValueError",
        "message": "attempt 2",
        "task_id": "0",
        "slot": "trigger",
        "attempt": 2,
        "payload": {"n": [1]},
    }
    reports: list[dict[str, object]] = []

    def listens(self, **reported):
        reports.append(reported)

    lossy = Works(fails(9), retrying(max_retries=1, on_exhausted=last), error=list(facts))
    flow = chain(workers=workers, a=lossy)
    flow.add_routine(Works(listens), "listens")
    flow.connect("a", "error", "listens", "trigger")
    job = run(flow, n=[1])
    assert ("failed" if last == "stop" else "completed") == job.status
    assert [facts] == (reports or [task.payload for task in job.pending_tasks[1:]])


# --- timeouts -------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_sleep_ends_with_the_timeout_of_its_attempt(workers, is_async):
    seen: list[type[BaseException]] = []

    def slow(self):
        try:
            self.ctx.sleep(60)
        except BaseException as error:
            seen.append(type(error))
            raise

    async def slow_async(self):
        try:
            await self.ctx.asleep(60)
        except BaseException as error:
            seen.append(type(error))
            raise

    with no_thread_remains():
        job = one(ErrorHandler(timeout=2.5), slow_async if is_async else slow, workers)
    late = "attempt 1 of a took longer than its timeout of 2.5 s"
    if is_async:
        late += f": it waited at {__file__}:{slow_async.__code__.co_firstlineno + 2}"
    assert ("StepTimeoutError", late) == error_of(job)
    assert not is_async or ", in slow_async\n" in job.error.traceback
    assert 2.5 == ended_at(job)
    errors = {asyncio.CancelledError} if is_async else {StepTimeoutError, NoActiveStepError}
    assert seen[0] in errors


@MODES
def test_a_timeout_is_retried_where_a_timeout_error_is(workers):
    def slow(self):
        self.ctx.sleep(60 if self.ctx.attempt == 1 else 1)

    for kind in (TimeoutError, OSError):
        handler = ErrorHandler("retry", timeout=2, retry_delay=1, retryable_exceptions=kind)
        job = one(handler, slow, workers)
        assert ("completed", 1) == (job.status, job.retry_count())


@MODES
def test_a_handler_that_returns_after_its_timeout_has_failed(workers):
    def slow(self):
        self.emit("out", n=1)
        clock.advance(3)  # works on, and does not look at its context

    clock = FakeClock()
    flow = chain(workers=workers, a=Works(slow, ErrorHandler(timeout=2)))
    with Runtime(clock=clock) as runtime:
        job = flow.execute("a", runtime=runtime)
    assert "StepTimeoutError" == error_of(job)[0]
    assert () == tuple(job.outputs)
    assert (3 if workers is None else 2) == ended_at(job)


def test_an_effect_of_a_step_that_has_just_ended_is_refused_and_ends_no_job():
    steps: list[StepInput] = []

    def fails_once(self):
        steps.append(self.ctx._open_step())
        if self.ctx.attempt == 1:
            raise OSError("lost")
        # As if the first attempt's thread had looked at its context before it was given up.
        with pytest.raises(NoActiveStepError, match="no longer waits for attempt 1 of a"):
            self.ctx._host.record(steps[0], "charge", RecordedEffect("digest", "paid"))

    job = one(retrying(), fails_once, None)
    assert ["start", "retry", "done"] == kinds(job)


@MODES
def test_a_timeout_is_an_error_like_any_other_and_can_be_retried(workers):
    def slow_at_first(self):
        self.ctx.sleep(10 if self.ctx.attempt < 3 else 1)
        self.emit("out", n=self.ctx.attempt)

    job = one(retrying(timeout=2, retry_delay=1, retry_backoff=1), slow_at_first, workers)
    assert JobStatus.COMPLETED is job.status
    assert [0, 3, 6] == starts(job)
    assert 7 == ended_at(job)


class Hangs:
    """A handler that blocks its thread in its first attempt, and then uses its old context."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.over = threading.Semaphore(0)
        self.contexts: list[Context] = []

    def body(self, routine: Routine, n: object = 0) -> None:
        ctx = routine.ctx
        if ctx.attempt > 1:
            return
        self.contexts.append(ctx)
        self.began.release()
        assert self.let_go.wait(PATIENCE)
        for use in (
            lambda: ctx.once("late", int),
            lambda: routine.emit("out", n="late"),
            lambda: ctx.sleep(1),
        ):
            with pytest.raises(NoActiveStepError):
                use()
        self.over.release()

    def until_given_up(self, clock: HandClock, steps: int = 1) -> None:
        """Wait until so many steps hang, and move the clock to their timeout of 5 s."""
        for _ in range(steps):
            assert self.began.acquire(timeout=PATIENCE)
        clock.until_waited_for(5)
        clock.move(5)


@pytest.mark.parametrize("how", ["execute", "start"])
def test_a_handler_that_hangs_is_given_up_and_can_record_nothing(how):
    clock, hangs = HandClock(), Hangs()
    flow = chain(workers=2, a=Works(hangs.body, retrying(timeout=5, retry_delay=3)))
    with no_thread_remains(), Runtime(clock=clock) as runtime, ThreadPoolExecutor(1) as caller:
        ended = caller.submit(run_by, how, flow, "a", runtime)
        hangs.until_given_up(clock)
        clock.until_waited_for(8)
        with pytest.raises(NoActiveStepError):
            _ = hangs.contexts[0].attempt
        clock.move(3)
        job = ended.result(PATIENCE)
        before = job.copy()
        hangs.let_go.set()
        assert hangs.over.acquire(timeout=PATIENCE), "the old context could still be used"
    assert before == job
    assert ["start", "retry", "done"] == kinds(job)
    assert (5 * SECOND, [3]) == (job.commits[1].at_ns - job.started_ns, delays(job))


@pytest.mark.parametrize("how", ["execute", "start"])
def test_jobs_stop_and_others_run_though_given_up_handlers_hold_every_thread(how):
    clock, hangs = HandClock(), Hangs()
    limit = ErrorHandler(timeout=5)
    flow = fan(send, workers=2, a=Works(hangs.body, limit), b=Works(hangs.body, limit))
    with no_thread_remains(), Runtime(clock=clock) as runtime, ThreadPoolExecutor(1) as caller:
        ended = caller.submit(run_by, how, flow, "source", runtime)
        hangs.until_given_up(clock, 2)
        job = ended.result(PATIENCE / 2)
        other = chain(a=send, b=rest).start("a", runtime=runtime).wait(PATIENCE / 2)
        hangs.let_go.set()
    assert ["start", "done", "failed", "failed"] == kinds(job)
    assert JobStatus.COMPLETED is other.status


def test_timers_of_ended_steps_are_removed():
    timers: list[int] = []

    class Timers:
        def on_commit(self, job, commit):
            loop = runtime.threads.background
            timers.append(len(loop._timers) if loop is not None else 0)

    def counts(self, n=0):
        self.ctx.sleep(0.001)
        if n < 300:
            self.emit("out", n=n + 1)

    flow = chain(a=Works(counts, ErrorHandler(timeout=3600)))
    flow.connect("a", "out", "a", "trigger")
    with Runtime(clock=FakeClock(), observers=[Timers()]) as runtime:
        job = flow.start("a", runtime=runtime).wait()
    assert 301 == job.routine_states["a"].completed
    assert 302 == len(timers)
    assert 1 <= max(timers) <= 2
