"""Retries: exact delays, budgets, retryable errors, deadlines and timeouts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    Context,
    ErrorHandler,
    ExecutionMonitor,
    FakeClock,
    FlowDefinitionError,
    JobState,
    JobStatus,
    NoActiveStepError,
    RetryAfter,
    Routine,
    RoutineStatus,
    Runtime,
    StepTimeoutError,
)
from tests.engine.concurrency import HandClock, no_thread_remains
from tests.routines import (
    MODES,
    PATIENCE,
    SECOND,
    Works,
    chain,
    delays,
    ended_at,
    error_of,
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
    starts,
)


def one(handler: ErrorHandler, body: Any = None, workers: int | None = None) -> JobState:
    return run(chain(workers=workers, a=Works(body or fails(10**9), handler)))


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
    flow = fan(
        send,
        workers=1 if workers else None,
        a=Works(fails(1), retrying(retry_delay=10)),
        b=sleeps(1),
    )
    job = run(flow, "source")
    assert ["source", "a", "b", "a"] == [c.routine_id for c in job.commits[1:]]
    assert 10 == ended_at(job)


def test_a_routine_whose_task_waits_for_a_retry_handles_its_other_tasks():
    def first_fails(self, n):
        if n == 0 and self.ctx.attempt == 1:
            raise ValueError
        self.emit("out", n=n)

    job = run(fan(sends(*range(3)), a=Works(first_fails, retrying(retry_delay=5))), "source")
    assert [1, 2, 0] == outputs(job)


@MODES
def test_each_task_has_a_budget_of_its_own(workers):
    def fails_n_times(self, n):
        if self.ctx.attempt <= n:
            raise ValueError
        self.emit("out", n=(n, self.ctx.attempt))

    flow = fan(sends(*range(4)), workers=workers, a=Works(fails_n_times, retrying(max_retries=3)))
    job = run(flow, "source")
    assert JobStatus.COMPLETED is job.status
    assert [(0, 1), (1, 2), (2, 3), (3, 4)] == sorted(outputs(job))
    assert 0 + 1 + 2 + 3 + 4 == job.routine_states["a"].attempts
    assert 3 == job.retry_count("a") == job.retry_count()


@given(st.integers(0, 6), st.integers(0, 6))
def test_there_are_never_more_retries_than_the_budget(failures, budget):
    job = one(retrying(max_retries=budget, retry_delay=1, retry_backoff=1), fails(failures))
    spent = min(failures, budget)
    assert spent == job.retry_count() == kinds(job).count("retry")
    assert min(failures, budget) + 1 == job.routine_states["a"].attempts
    assert (failures <= budget) is (job.status is JobStatus.COMPLETED)
    assert spent == ended_at(job)


@pytest.mark.parametrize("delay", [0, 0.0])
def test_a_retry_without_a_delay_follows_at_once(delay):
    job = one(retrying(retry_delay=delay), fails(2))
    assert [0, 0, 0] == starts(job)


def test_without_a_maximum_of_retries_a_task_is_never_given_up():
    job = one(retrying(max_retries=None, retry_delay=1, max_delay=60), fails(2000))
    assert JobStatus.COMPLETED is job.status
    assert 2001 == job.routine_states["a"].attempts
    assert 1 + 2 + 4 + 8 + 16 + 32 + 60 * 1994 == ended_at(job)


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
    shorter = [delay for delay in x + y if delay < 10]
    assert 5 < len(shorter) == len(set(shorter)) < 24
    assert 10 == max(x + y), "a maximum holds for jitter too"


@MODES
@pytest.mark.parametrize(("deadline", "attempts"), [(7.999, 2), (8, 3), (11.999, 3), (12, 4)])
def test_a_delay_that_would_cross_the_deadline_means_exhausted_now(workers, deadline, attempts):
    handler = retrying(max_retries=9, retry_delay=4, retry_backoff=1, deadline=deadline)
    fetch = sleeps(100)  # the deadline counts from the task's own first start
    job = run(chain(workers=workers, fetch=fetch, a=Works(fails(9), handler)), "fetch")
    assert JobStatus.FAILED is job.status
    assert [100 + 4 * i for i in range(attempts)] == starts(job)
    assert 100 + 4 * (attempts - 1) == ended_at(job)


# --- which errors ---------------------------------------------------------------------------------


class Outage(ConnectionError):
    """A subclass of a retryable class."""


class Refused(Outage):
    """A subclass of it that is not retryable."""


@MODES
@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        *[(ConnectionError, 3), (Outage, 3), (Refused, 1), (ValueError, 1), (OSError, 1)],
        *[(FlowDefinitionError, 1), (NoActiveStepError, 1)],
    ],
)
def test_a_subclass_of_a_retryable_error_is_retried_and_others_are_not(workers, error, attempts):
    handler = retrying(
        max_retries=2, retryable_exceptions=(ConnectionError,), non_retryable_exceptions=(Refused,)
    )
    job = one(handler, fails(9, error), workers)
    assert error.__name__ == error_of(job)[0].rpartition(".")[2]
    assert attempts == job.routine_states["a"].attempts
    assert attempts - 1 == job.retry_count()


@MODES
def test_retry_after_sets_the_next_delay_exactly_and_spends_a_retry(workers):
    def asks(self):
        if self.ctx.attempt == 2:
            raise RetryAfter(77.25, "429")
        raise ConnectionError

    handler = retrying(
        max_retries=3, retry_delay=1, retryable_exceptions=(ConnectionError,), max_delay=10
    )
    job = one(handler, asks, workers)
    assert [1, 77.25, 4] == delays(job)
    assert 3 == job.retry_count()
    retried = job.commits[2].error
    assert retried is not None
    assert "429" == retried.message


@MODES
@pytest.mark.parametrize(
    ("last", "status", "job_status"),
    [
        ("stop", RoutineStatus.FAILED, JobStatus.FAILED),
        ("continue", RoutineStatus.ERROR_CONTINUED, JobStatus.COMPLETED),
        ("skip", RoutineStatus.SKIPPED, JobStatus.COMPLETED),
    ],
)
@pytest.mark.parametrize("error", [ValueError, KeyError], ids=["exhausted", "not retryable"])
def test_on_exhausted_decides_the_end_of_a_task(workers, last, status, job_status, error):
    handler = retrying(max_retries=2, retryable_exceptions=(ValueError,), on_exhausted=last)
    job = one(handler, fails(9, error), workers)
    assert (status, job_status) == (job.routine_states["a"].status, job.status)
    assert (3 if error is ValueError else 1) == job.routine_states["a"].attempts
    assert (0 if last == "stop" else 1) == len(job.dropped)


@MODES
@pytest.mark.parametrize("last", ["stop", "continue", "skip"])
def test_the_error_event_reports_each_task_that_is_given_up(workers, last):
    reports: list[dict[str, object]] = []

    def hears(self, **facts):
        reports.append(facts)

    fields = ["error_type", "message", "task_id", "slot", "attempt", "payload"]
    lossy = Works(fails(9), retrying(max_retries=1, on_exhausted=last), error=fields)
    flow = chain(workers=workers, a=lossy, b=rest)
    flow.add_routine(Works(hears), "hears")
    flow.connect("a", "error", "hears", "trigger")
    job = run(flow, n=[1])
    assert (JobStatus.FAILED if last == "stop" else JobStatus.COMPLETED) is job.status
    assert [
        {
            "error_type": "ValueError",
            "message": "attempt 2",
            "task_id": "0",
            "slot": "trigger",
            "attempt": 2,
            "payload": {"n": [1]},
        }
    ] == (reports or [t.payload for t in job.pending_tasks if t.routine_id == "hears"])


# --- planned and actual ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=5),
    st.sampled_from([None, 1, 3]),
)
def test_every_retry_starts_when_it_is_due_if_a_worker_is_free(items, workers):
    def work(self, n):
        if self.ctx.attempt <= n[0]:
            raise ValueError

    flow = fan(
        sends(*items), workers=workers, a=Works(work, retrying(retry_delay=0.3, retry_backoff=1.5))
    )
    monitor = ExecutionMonitor()
    with Runtime(clock=FakeClock(), observers=[monitor]) as runtime:
        flow.execute("source", runtime=runtime)
    assert sum(n[0] for n in items) == len(monitor.retries)
    for retry in monitor.retries:
        assert retry.delay_ns == retry.actual_ns
        assert retry.due_ns == retry.started_ns == retry.failed_ns + retry.delay_ns


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
        await asyncio.sleep(0)
        slow(self)

    with no_thread_remains():
        job = one(ErrorHandler(timeout=2.5), slow_async if is_async else slow, workers)
    late = "attempt 1 of a took longer than its timeout of 2.5 s"
    assert ("StepTimeoutError", late) == error_of(job)
    assert 2.5 == ended_at(job)
    assert seen[0] in (StepTimeoutError, NoActiveStepError)


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


@MODES
def test_a_timeout_is_an_error_like_any_other_and_can_be_retried(workers):
    def slow_at_first(self):
        self.ctx.sleep(10 if self.ctx.attempt < 3 else 1)
        self.emit("out", n=self.ctx.attempt)

    job = one(retrying(timeout=2, retry_delay=1, retry_backoff=1), slow_at_first, workers)
    assert JobStatus.COMPLETED is job.status
    assert [0, 3, 6] == starts(job)
    assert 7 == ended_at(job)


@MODES
def test_a_handler_within_its_timeout_completes(workers):
    just = [Works(sleeps(1.999), ErrorHandler(timeout=2)) for _ in range(2)]
    job = run(chain(workers=workers, a=just[0], b=just[1], c=rest))
    assert JobStatus.COMPLETED is job.status


class Hangs:
    """A handler that blocks its thread until the test lets it go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.contexts: list[Context] = []
        self.errors: list[BaseException] = []
        self.over = threading.Semaphore(0)

    def body(self, routine: Routine, n: object = 0) -> None:
        ctx = routine.ctx
        if ctx.attempt > 1:
            routine.emit("out", n=ctx.attempt)
            return
        self.contexts.append(ctx)
        self.began.release()
        assert self.let_go.wait(PATIENCE)
        for late in (
            lambda: ctx.once("late", int),
            lambda: routine.emit("out", n="late"),
            lambda: ctx.sleep(1),
        ):
            try:
                late()
            except NoActiveStepError as error:
                self.errors.append(error)
        self.over.release()


@pytest.mark.parametrize("background", [False, True], ids=["execute", "start"])
def test_a_handler_that_hangs_is_given_up_and_can_record_nothing(background):
    clock, hangs = HandClock(), Hangs()
    flow = chain(workers=2, a=Works(hangs.body, retrying(timeout=5, retry_delay=3)), b=rest)
    jobs: list[JobState] = []
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        if background:
            wait = flow.start("a", runtime=runtime).wait
        else:
            wait = lambda: flow.execute("a", runtime=runtime)  # noqa: E731 - its twin
        caller = threading.Thread(target=lambda: jobs.append(wait()))
        caller.start()
        assert hangs.began.acquire(timeout=PATIENCE)
        clock.until_waited_for(5)
        clock.move(5)
        clock.until_waited_for(8)
        with pytest.raises(NoActiveStepError):
            _ = hangs.contexts[0].attempt
        clock.move(3)
        caller.join(PATIENCE)
        before = jobs[0].copy()
        hangs.let_go.set()
        assert hangs.over.acquire(timeout=PATIENCE)
    assert [NoActiveStepError] * 3 == [type(error) for error in hangs.errors]
    assert before == jobs[0]
    assert ["start", "retry", "done", "done"] == kinds(jobs[0])
    assert JobStatus.COMPLETED is jobs[0].status
    retried = jobs[0].commits[1]
    assert (5 * SECOND, 3 * SECOND) == (retried.at_ns - jobs[0].started_ns, retried.delay_ns)


def test_a_job_stops_though_given_up_handlers_hold_every_thread():
    clock, hangs = HandClock(), Hangs()
    limit = ErrorHandler(timeout=5)
    flow = fan(send, workers=2, a=Works(hangs.body, limit), b=Works(hangs.body, limit))
    jobs: list[JobState] = []
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        caller = threading.Thread(
            target=lambda: jobs.append(flow.execute("source", runtime=runtime))
        )
        caller.start()
        for _ in range(2):
            assert hangs.began.acquire(timeout=PATIENCE)
        clock.until_waited_for(5)
        clock.move(5)
        caller.join(PATIENCE / 2)
        over = not caller.is_alive()
        hangs.let_go.set()
        caller.join(PATIENCE)
    assert over, "execute waited for the handlers"
    assert JobStatus.FAILED is jobs[0].status
    assert ["start", "done", "failed", "failed"] == kinds(jobs[0])


def test_a_step_that_was_given_up_keeps_its_thread_and_other_jobs_run():
    clock, hangs = HandClock(), Hangs()
    stuck = chain(a=Works(hangs.body, ErrorHandler(timeout=5)))
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        run = stuck.start("a", runtime=runtime)
        assert hangs.began.acquire(timeout=PATIENCE)
        clock.until_waited_for(5)
        clock.move(5)
        assert JobStatus.FAILED is run.wait().status
        assert (
            JobStatus.COMPLETED is chain(a=send, b=rest).start("a", runtime=runtime).wait().status
        )
        hangs.let_go.set()


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
