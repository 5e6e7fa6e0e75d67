"""The exception that failed a job, in the process where a handler raised it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_routilux import FlowMonitor
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobFailedError,
    JobState,
    MemoryStore,
    Runtime,
    SavedState,
)
from tests.routines import MODES, Works, arun, chain, rest, retrying, saveable


class OutOfStockError(Exception):
    pass


def fails(self, n=0) -> None:
    secret = f"attempt {self.ctx.attempt}"
    raise OutOfStockError(secret)


async def awaits(self, n=0) -> None:
    secret = f"attempt {self.ctx.attempt}"
    await asyncio.sleep(0)
    raise OutOfStockError(secret)


def executed(runtime: Runtime, flow: Flow) -> JobState:
    return runtime.execute(flow, "a")


def started(runtime: Runtime, flow: Flow) -> JobState:
    return runtime.start(flow, "a").wait()


def awaited(runtime: Runtime, flow: Flow) -> JobState:
    return arun(runtime, runtime.aexecute(flow, "a"))


DRIVERS = pytest.mark.parametrize("run", [executed, started, awaited])


def cause_of(job: JobState) -> BaseException | None:
    with pytest.raises(JobFailedError) as failed:
        job.raise_for_status()
    return failed.value.__cause__


def secret_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_locals["secret"]


@DRIVERS
@MODES
@pytest.mark.parametrize("body", [fails, awaits])
@pytest.mark.parametrize("handler", [None, ErrorHandler("stop"), retrying(max_retries=2)])
def test_it_is_the_cause_of_the_error_with_the_frame_of_the_handler(handler, body, workers, run):
    flow = chain(workers=workers, a=Works(body, handler), b=rest)
    error = cause_of(run(Runtime(clock=FakeClock()), flow))
    assert isinstance(error, OutOfStockError)
    assert "attempt 3" if handler and handler.max_retries else "attempt 1" == secret_of(error)


def test_threads_of_the_users_pool_keep_it():
    with ThreadPoolExecutor(2) as pool, Runtime(executor=pool) as runtime:
        assert "attempt 1" == secret_of(cause_of(executed(runtime, chain(a=fails))))


def test_without_it_the_message_has_the_traceback():
    flow = chain(a=saveable(fails))
    job = executed(Runtime(clock=FakeClock()), flow)
    document = SavedState.capture(flow, job).to_bytes()
    store = MemoryStore()
    executed(Runtime(store=store), flow)
    [job_id] = store.job_ids()
    for other in (
        SavedState.from_bytes(document).job,
        Runtime(store=store).load(job_id),
        pickle.loads(pickle.dumps(job)),
    ):
        assert cause_of(other) is None
        with pytest.raises(JobFailedError, match=r"(?s)OutOfStockError: attempt 1.*line \d+, in"):
            other.raise_for_status()
        assert job.error == other.error


@pytest.mark.parametrize("strategy", ["continue", "skip", "retry"])
def test_the_error_of_a_dropped_task_is_not_kept_alive(strategy):
    options = {"max_retries": 0, "on_exhausted": "continue"} if strategy == "retry" else {}
    job = executed(Runtime(), chain(a=Works(fails, ErrorHandler(strategy, **options))))
    assert [None] == [dropped.error.exception for dropped in job.dropped]
    assert job.dropped[0].error.traceback is not None


def test_it_is_freed_with_its_job():
    job = executed(Runtime(clock=FakeClock()), chain(a=fails))
    error = weakref.ref(job.error.exception)
    del job
    gc.collect()
    assert error() is None


def test_a_monitor_of_the_test_keeps_it():
    monitor = FlowMonitor()
    executed(Runtime(clock=FakeClock(), observers=[monitor]), chain(a=fails))
    assert "attempt 1" == secret_of(monitor.commits[-1][1].error.exception)
