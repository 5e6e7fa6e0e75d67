"""Steps on the user's executors, and on the runtime's own threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    RoutiluxError,
    Runtime,
    SystemClock,
    retry_job,
)
from routilux.engine.pool import PoolDriver
from tests.engine.concurrency import die, double, fail_once, no_thread_remains, remote
from tests.routines import (
    MODES,
    PATIENCE,
    Watcher,
    Works,
    chain,
    error_of,
    fan,
    kinds,
    rest,
    retrying,
    run_by,
    send,
)


def one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def shut_down() -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with one_process() as executor:
        yield executor


# --- other processes ------------------------------------------------------------------------------


@MODES
def test_steps_run_in_another_process_and_are_committed_in_this_one(processes, workers):
    flow = chain(workers=workers, a=remote(double), b=remote(double))
    with no_thread_remains(), Runtime(executor=processes) as runtime:
        job = flow.execute("a", {"n": 3}, runtime=runtime)
    job.raise_for_status()
    assert ["start", "effect", "done", "effect", "done"] == kinds(job)
    assert {"total": 18} == job.shared_data
    assert {"seen": 1} == job.routine_states["b"].state
    assert 12 == job.outputs[0].data["n"]
    assert os.getpid() != job.outputs[0].data["pid"]


def test_a_step_is_not_sent_to_another_process_when_the_job_is_lost(processes):
    store = MemoryStore()
    sent: list[str] = []

    class TakesOver:
        def on_commit(self, job, commit):
            sent.append(commit.kind.value)
            if commit.kind == "done":
                retry_job(store, "j", take_over=True)

    flow = chain(a=remote(double), b=remote(double))
    with (
        Runtime(executor=processes, store=store, observers=[TakesOver()]) as runtime,
        pytest.raises(LeaseLostError, match="'j' is free to be taken by any host now: this host"),
    ):
        flow.execute("a", {"n": 3}, job_id="j", runtime=runtime)
    assert ["start", "effect", "done"] == sent


def test_an_effect_travels_with_the_outcome_of_a_failed_attempt_and_is_not_run_again(processes):
    flow = chain(a=remote(fail_once))
    flow.set_error_handler(retrying(retry_delay=0))
    with Runtime(executor=processes) as runtime:
        job = flow.start("a", runtime=runtime).wait()
    job.raise_for_status()
    assert ["start", "effect", "retry", "done"] == kinds(job)
    assert 2 == job.outputs[0].data["n"]


@pytest.mark.parametrize(
    ("executor", "body", "how", "error", "reason"),
    [
        (one_process, remote(die), "start", BrokenExecutor, "terminated"),
        (shut_down, rest, "execute", RuntimeError, "after shutdown"),
        (shut_down, rest, "start", RuntimeError, "after shutdown"),
    ],
)
def test_a_step_that_can_not_be_run_raises_and_leaves_its_task_pending(
    executor, body, how, error, reason
):
    watcher = Watcher()
    with (
        no_thread_remains(),
        executor() as broken,
        Runtime(executor=broken, observers=[watcher]) as runtime,
        pytest.raises(error, match=reason),
    ):
        run_by(how, chain(a=body), "a", runtime)
    job = watcher.jobs[-1]
    assert JobStatus.RUNNING is job.status
    assert [("a", 1)] == [(task.routine_id, task.attempt) for task in job.pending_tasks]
    well = Runtime(clock=FakeClock())
    assert "completed" == chain(a=rest).resume(job, runtime=well, allow_changed_flow=True).status


# --- other threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [None, 3])
def test_steps_run_on_a_users_threads_and_commit_their_effects_at_once(workers):
    notes: list[str] = []
    names: set[str] = set()

    class Notes:
        def on_commit(self, job, commit):
            notes.append(commit.kind.value)

    def pays(self, n=0):
        names.add(threading.current_thread().name)
        self.ctx.once("charge", int)
        notes.append("next line")

    with (
        no_thread_remains(),
        ThreadPoolExecutor(2, thread_name_prefix="theirs") as executor,
        Runtime(executor=executor, observers=[Notes()]) as runtime,
    ):
        job = chain(workers=workers, a=pays).execute("a", runtime=runtime)
        assert JobStatus.COMPLETED is job.status
        assert JobStatus.COMPLETED is chain(a=pays).start("a", runtime=runtime).wait().status
    assert ["start", "effect", "next line", "done"] * 2 == notes
    assert all(name.startswith("theirs") for name in names)


def test_steps_overlap_on_a_users_threads():
    both = threading.Barrier(2)

    def meets(self, n):
        both.wait(PATIENCE)

    with ThreadPoolExecutor(2) as executor, Runtime(executor=executor) as runtime:
        job = fan(send, workers=2, a=meets, b=meets).execute("source", runtime=runtime)
    job.raise_for_status()
    assert {0, 1} == {commit.worker for commit in job.commits[2:]}


def test_a_step_that_the_executor_drops_ends_the_run():
    busy, given = threading.Event(), threading.Event()

    class Tells(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            future = super().submit(*args, **kwargs)
            given.set()
            return future

    executor = Tells(1)
    executor.submit(busy.wait, PATIENCE)
    given.clear()
    with no_thread_remains(), Runtime(executor=executor) as runtime:
        run = chain(a=rest).start("a", runtime=runtime)
        assert given.wait(PATIENCE)
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError, match="cancelled the step"):
            run.wait(timeout=PATIENCE)
        busy.set()
    executor.shutdown()
    assert ["a"] == [task.routine_id for task in run.job.pending_tasks]


def test_an_executor_whose_threads_can_not_begin_ends_the_run():
    def fail() -> None:
        raise OSError("no database")

    with ThreadPoolExecutor(1, initializer=fail) as executor, Runtime(executor=executor) as runtime:
        run = chain(a=rest).start("a", runtime=runtime)
        with pytest.raises(BrokenExecutor):
            run.wait(timeout=PATIENCE)
    assert ["a"] == [task.routine_id for task in run.job.pending_tasks]


def test_a_step_that_times_out_in_the_queue_of_the_executor_never_runs():
    ran: list[int] = []

    def late(self):
        ran.append(1)

    busy = threading.Event()
    with ThreadPoolExecutor(1) as executor, Runtime(executor=executor) as runtime:
        executor.submit(busy.wait, PATIENCE)
        job = chain(a=Works(late, ErrorHandler(timeout=0.001))).execute("a", runtime=runtime)
        busy.set()
    assert [] == ran
    assert "StepTimeoutError" == error_of(job)[0]


def test_an_executor_is_refused_with_a_fake_clock():
    with (
        ThreadPoolExecutor() as executor,
        pytest.raises(RoutiluxError, match="ThreadPoolExecutor runs steps in real time"),
    ):
        Runtime(clock=FakeClock(), executor=executor)


# --- our own threads ------------------------------------------------------------------------------


def test_a_poke_returns_at_once_and_is_not_lost():
    driver = PoolDriver(SystemClock(), 1)
    driver.poke()
    assert driver.next(None, (), "") is None
    poker = threading.Thread(target=driver.poke)
    poker.start()
    assert driver.next(None, (), "") is None
    poker.join(PATIENCE)
