"""Steps on the worker processes of a Dask cluster."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routilux import Flow, JobStatus, MemoryStore, Runtime
from tests.engine.concurrency import double, fail_once, no_thread_remains, remote
from tests.engine.remote.bodies import (
    TENANT,
    Sum,
    add,
    late,
    lines,
    meet,
    pay_and_die,
    pay_and_hang,
    pay_async,
    pipe,
    spread,
    tell_context,
    until_cancelled,
)
from tests.engine.remote.dask_parts import Part
from tests.routines import (
    MODES,
    PATIENCE,
    chain,
    error_of,
    kinds,
    outputs,
    retrying,
    saveable,
)

distributed = pytest.importorskip("distributed", reason="distributed is not installed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of two worker processes with one thread each."""
    options = {"dashboard_address": None, "worker_dashboard_address": None}
    with (
        distributed.LocalCluster(2, host="127.0.0.1", threads_per_worker=1, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def runtime(client: Any) -> Iterator[Runtime]:
    with no_thread_remains(), Runtime(executor=client.get_executor()) as runtime:
        yield runtime


@MODES
def test_steps_run_on_the_workers_and_are_committed_here(runtime, workers):
    flow = chain(workers=workers, a=remote(double), b=remote(double))
    job = flow.execute("a", {"n": 3}, runtime=runtime)
    assert ["start", "effect", "done", "effect", "done"] == kinds(job)
    assert 12 == outputs(job)[0]
    assert os.getpid() != job.outputs[0].data["pid"]


def test_a_worker_that_dies_costs_a_run_with_the_same_attempt_and_key(runtime, tmp_path):
    path = str(tmp_path / "paid")
    job = chain(a=remote(pay_and_die)).execute("a", {"n": path}, job_id="j", runtime=runtime)
    job.raise_for_status()
    assert ["start", "effect", "done"] == kinds(job)
    assert ["paid"] == lines(path), "the effect was recorded before the handler went on"
    assert ["1 j/0/pay"] * 2 == lines(f"{path}.keys")


def test_an_error_is_retried_as_in_one_process(runtime):
    flow = chain(a=remote(fail_once))
    flow.set_error_handler(retrying(retry_delay=0))
    job = flow.execute("a", runtime=runtime)
    assert ["start", "effect", "retry", "done"] == kinds(job)
    assert [2] == outputs(job)


def test_ctx_gives_what_it_gives_in_one_process(runtime):
    flow = chain(a=remote(tell_context))

    def as_tenant(runtime: Runtime | None) -> Any:
        TENANT.set("blue")
        return flow.execute("a", job_id="j", runtime=runtime)

    here, there = (contextvars.copy_context().run(as_tenant, each) for each in (None, runtime))
    assert outputs(here) == outputs(there)
    assert "blue" == outputs(there)[0]["tenant"]
    assert here.shared_data == there.shared_data == {"total": 2}
    assert here.routine_states["a"].state == there.routine_states["a"].state == {"rows": [1]}


def test_accumulators_and_gathers_count_all_steps_of_a_fan_out(runtime):
    flow = Flow("tale", execution_strategy="concurrent", max_workers=4)
    flow.add_routine(saveable(spread), "source")
    flow.add_routine(saveable(add), "a")
    flow.add_routine(Sum(), "sum")
    flow.connect("source", "out", "a", "trigger")
    flow.connect("a", "out", "sum", "done")
    job = flow.execute("source", {"n": 20}, runtime=runtime)
    assert [190] == outputs(job)
    assert {"total": 190} == job.shared_data


def test_an_async_handler_runs_there(runtime, tmp_path):
    path = str(tmp_path / "paid")
    job = chain(a=remote(pay_async)).execute("a", {"n": path}, runtime=runtime)
    assert ["start", "effect", "done"] == kinds(job)
    assert outputs(job) == [job.outputs[0].data["pid"]]
    assert ["paid"] == lines(path)


def test_a_step_ends_at_its_timeout(runtime):
    flow = chain(a=saveable(late))
    flow.set_error_handler(retrying(max_retries=0, timeout=0.05))
    kind, message = error_of(flow.execute("a", runtime=runtime))
    assert "StepTimeoutError" == kind
    assert "0.05 s" in message


def test_a_cancelled_job_does_not_wait_for_its_step_which_is_told(runtime, tmp_path):
    path = pipe(tmp_path / "runs")
    run = chain(a=saveable(until_cancelled)).start("a", {"n": path}, runtime=runtime)
    meet(path)
    answer = pipe(Path(f"{path}.answer"))
    run.cancel("enough")
    assert JobStatus.CANCELLED is run.wait(PATIENCE).status
    assert "cancelled\n" == Path(answer).read_text()


def test_dask_keeps_no_call_that_has_ended(runtime, client):
    gc.disable()
    try:
        flow = chain(a=remote(fail_once))
        flow.set_error_handler(retrying(retry_delay=0))
        flow.execute("a", runtime=runtime)
        turns = 0
        while client.futures and turns < 1_000:  # the event loop of the client forgets them
            client.sync(asyncio.sleep, 0)
            turns += 1
        assert [] == list(client.futures), "Dask would run them again if their worker died"
    finally:
        gc.enable()


def test_a_stored_job_is_kept_commit_by_commit(client):
    store = MemoryStore()
    with Runtime(executor=client.get_executor(), store=store) as runtime:
        job = chain(a=remote(double)).execute("a", {"n": 3}, job_id="j", runtime=runtime)
        assert job == runtime.load("j")


def test_a_scheduler_that_restarts_breaks_no_job(tmp_path):
    path, store = str(tmp_path / "paid"), MemoryStore()
    running = pipe(Path(f"{path}.in"))
    flow = chain(a=remote(pay_and_hang))
    with (
        Part() as scheduler,
        Part(scheduler.port, "worker"),
        distributed.Client(scheduler.address) as client,
        no_thread_remains(),
        Runtime(executor=client.get_executor(), store=store) as runtime,
    ):
        run = flow.start("a", {"n": path}, job_id="j", runtime=runtime)
        meet(running)
        scheduler.kill()
        with Part(scheduler.port), Part(scheduler.port, "worker"):
            run.wait(PATIENCE).raise_for_status()
    job = runtime.load("j")
    assert ["start", "effect", "done"] == kinds(job)
    assert ["paid"] == lines(path), "the run after the restart has the recorded effect"
    assert ["1 j/0/pay"] * 2 == lines(f"{path}.keys")
