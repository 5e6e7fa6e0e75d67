"""How steps are sent: how many at once, again, and to any executor."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

import pytest

from routilux import Flow, JobStatus, Runtime
from routilux.engine import pool
from tests.engine.concurrency import double, no_thread_remains, remote
from tests.engine.remote.bodies import (
    TENANT,
    UNPICKLABLE,
    Elsewhere,
    Inline,
    add,
    lines,
    pay,
    spread,
    tell_context,
)
from tests.routines import PATIENCE, Watcher, Wide, chain, kinds, outputs, saveable


class WideAdd(Wide):
    """Adds numbers, eight at a time."""

    def __init__(self) -> None:
        super().__init__(add)


# --- which executors ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_runs_steps_however_it_starts_them(method):
    context = multiprocessing.get_context(method)
    with (
        no_thread_remains(),
        ProcessPoolExecutor(1, context) as executor,
        Runtime(executor=executor) as runtime,
    ):
        job = chain(a=remote(double), b=remote(double)).execute("a", {"n": 3}, runtime=runtime)
    assert ["start", "effect", "done", "effect", "done"] == kinds(job)
    assert [12] == outputs(job)
    assert os.getpid() != job.outputs[0].data["pid"]


@pytest.mark.parametrize("how", ["execute", "start"])
@pytest.mark.parametrize("kind", [Inline, Elsewhere])
def test_any_executor_runs_steps_also_inside_submit(kind, how, tmp_path):
    path = str(tmp_path / "paid")
    with no_thread_remains(), kind() as executor, Runtime(executor=executor) as runtime:
        flow = chain(a=remote(pay))
        job = flow.execute("a", {"n": path}, runtime=runtime)
        if how == "start":
            job = flow.start("a", {"n": path}, runtime=runtime).wait(PATIENCE)
    assert ["start", "effect", "done"] == kinds(job)
    assert [os.getpid()] == outputs(job)


def test_context_variables_of_modules_travel_if_they_can_be_pickled():
    def as_tenant() -> Any:
        TENANT.set("blue")
        UNPICKLABLE.set(lambda: None)
        contextvars.ContextVar[int]("of no module").set(1)
        with Elsewhere() as executor, Runtime(executor=executor) as runtime:
            return chain(a=remote(tell_context)).execute("a", runtime=runtime)

    assert "blue" == outputs(contextvars.copy_context().run(as_tenant))[0]["tenant"]


# --- how many at once -----------------------------------------------------------------------------


def fan_out(width: int) -> Flow:
    flow = Flow("tale", execution_strategy="concurrent", max_workers=width)
    flow.add_routine(saveable(spread), "source")
    flow.add_routine(WideAdd(), "a")
    flow.connect("source", "out", "a", "trigger")
    return flow


def test_a_fan_out_sends_no_more_steps_at_once_than_the_job_may_run():
    with Elsewhere(16) as executor, Runtime(executor=executor) as runtime:
        job = fan_out(5).execute("source", {"n": 300}, runtime=runtime)
    assert {"total": 44850} == job.shared_data
    assert (301, 5) == (len(executor.calls), executor.most)


def test_jobs_in_the_background_share_a_bound_of_the_runtime(monkeypatch):
    monkeypatch.setattr(pool, "UNKNOWN_SIZE", 6)
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 2)
    with Elsewhere(32) as executor, Runtime(executor=executor) as runtime:
        runs = [fan_out(4).start("source", {"n": 30}, runtime=runtime) for _ in range(10)]
        jobs = [run.wait(PATIENCE) for run in runs]
    assert {"completed"} == {job.status.value for job in jobs}
    assert 2 < executor.most <= 6


# --- calls that the executor loses ----------------------------------------------------------------


class Loses(Elsewhere):
    """Loses the first calls, as Dask does when its scheduler restarts."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if args and len(self.calls) < self.times:
            self.calls.append(args)
            lost: Future[Any] = Future()
            lost.cancel()
            return lost
        return super().submit(fn, *args, **kwargs)


def test_a_lost_call_is_made_again_with_the_same_step():
    with Loses(3) as executor, Runtime(executor=executor) as runtime:
        job = chain(a=remote(double)).execute("a", {"n": 3}, runtime=runtime)
    assert ["start", "effect", "done"] == kinds(job)
    assert [1, 2, 3, 4] == [args[-1] for args in executor.calls], "Dask runs equal calls once"
    assert 1 == len({args[:-1] for args in executor.calls})


def test_a_step_that_is_lost_too_often_is_trouble_of_the_host():
    watcher = Watcher()
    with (
        Loses(4) as executor,
        Runtime(executor=executor, observers=[watcher]) as runtime,
        pytest.raises(Exception, match="the executor cancelled the step"),
    ):
        chain(a=remote(double)).execute("a", {"n": 3}, runtime=runtime)
    assert ["start", "interrupted"] == kinds(watcher.jobs[-1])
    assert watcher.jobs[-1].interrupted_task is None


class KilledWorker(Exception):
    """Named like the error of Dask."""


class Kills(Elsewhere):
    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args:
            raise KilledWorker("4 workers died")


def test_a_step_on_which_workers_die_again_and_again_counts_against_its_job():
    watcher = Watcher()
    with (
        Kills() as executor,
        Runtime(executor=executor, observers=[watcher]) as runtime,
        pytest.raises(BrokenExecutor, match="each worker that ran the step died"),
    ):
        chain(a=remote(double)).execute("a", {"n": 3}, runtime=runtime)
    assert "0" == watcher.jobs[-1].interrupted_task


class Never(Elsewhere):
    """Begins no step."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not args:
            return super().submit(fn)
        self.calls.append(args)
        return Future()


class NotYet(Elsewhere):
    """Has no process yet."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


@pytest.mark.parametrize("kind", [Never, NotYet])
def test_a_cancelled_job_does_not_wait_for_a_step_that_has_not_begun(kind):
    with no_thread_remains(), kind() as executor, Runtime(executor=executor) as runtime:
        run = chain(a=remote(double)).start("a", {"n": 3}, runtime=runtime)
        run.cancel("enough")
        job = run.wait(PATIENCE)
    assert JobStatus.CANCELLED is job.status
    assert ["start", "cancelled"] == kinds(job)


# --- a step that runs twice -----------------------------------------------------------------------


class Twice(Elsewhere):
    """Runs each step twice, and returns the second outcome, as Dask may."""

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args:
            fn(*args, **kwargs)
        return fn(*args, **kwargs)


def test_a_step_that_runs_twice_has_one_outcome_and_one_effect(tmp_path):
    path = str(tmp_path / "paid")
    with Twice() as executor, Runtime(executor=executor) as runtime:
        job = chain(a=remote(pay)).execute("a", {"n": path}, runtime=runtime)
    assert ["start", "effect", "done"] == kinds(job)
    assert ["paid"] == lines(path)
