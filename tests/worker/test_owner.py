"""The owner of a job where several workers or forked processes share a runtime."""

from __future__ import annotations

import os
import threading

import pytest

from routilux import (
    JobStatus,
    LeaseLostError,
    Runtime,
    SqliteStore,
    Worker,
)
from routilux.persist import admin
from tests.engine.workshop import in_a_child
from tests.routines import PATIENCE, chain, rest
from tests.worker.jobs import TAKEN_OVER, story, working

# From Python 3.12 on it tells so, and what it warns of is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.mark.parametrize("by", ["an operator", "time"])
def test_a_job_that_one_worker_has_lost_is_left_to_another_one_of_its_runtime(
    by, runtime, store, clock, caplog
):
    caplog.set_level("INFO")
    ran: list[str] = []
    flow = chain(a=working(25, ran))
    job_id = runtime.submit(flow, "a")
    first, second = (Worker(store, [flow], runtime=runtime, lease=20) for _ in range(2))
    assert first._take(False)
    if by == "time":
        clock.advance(21)  # nobody renewed it
    else:
        clock.advance(10)
        admin.retry(store, job_id, clock.now_ns(), take_over=True)
    assert second._take(False)
    first._maintain()
    clock.advance(10)  # the next renewal is due
    second._maintain()
    assert runtime.owner == store.holders(job_id)[job_id].owner, "it was given back meanwhile"
    second.run(until_idle=True)
    assert ["begins", "begins", "ends"] == ran
    resumed = ["resumed"] * (2 if by == "time" else 3)
    assert ["start", *resumed, "done"] == story(runtime, job_id)
    assert [f"job '{job_id}' {TAKEN_OVER}"] == caplog.messages
    assert {} == runtime.environment.leases


def test_a_job_that_a_worker_drives_can_not_be_resumed_by_name_on_its_own_runtime(
    runtime, store, clock
):
    ran: list[str] = []
    flow = chain(a=working(25, ran))
    job_id = runtime.submit(flow, "a")
    host = Worker(store, [flow], runtime=runtime, lease=30)
    assert host._take(False)
    clock.advance(10)
    with pytest.raises(LeaseLostError, match=f"held by {runtime.owner}, whose lease ends in 20.0"):
        flow.resume(runtime.load(job_id), runtime=runtime)
    host.run(until_idle=True)
    assert ["begins", "ends"] == ran
    assert ["start", "resumed", "done"] == story(runtime, job_id)


def test_a_forked_child_is_another_owner_and_drives_jobs_on_threads_of_its_own(tmp_path):
    flow = chain(a=rest)
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as runtime:
        flow.start("a", runtime=runtime).wait(PATIENCE)
        parent = runtime.owner
        job_id = runtime.submit(flow, "a")

        def works():
            Worker(store, [flow], runtime=runtime).run(until_idle=True)
            assert parent != runtime.owner
            assert f":{os.getpid()}:" in runtime.owner

        in_a_child(works)
        assert JobStatus.COMPLETED is runtime.load(job_id).status
        assert parent == runtime.owner


def test_a_forked_child_drives_jobs_whatever_the_threads_of_its_parent_did_just_then(tmp_path):
    begun, over = threading.Event(), threading.Event()

    def waits(self):
        begun.set()
        over.wait(PATIENCE)

    long, short = chain(a=waits), chain(a=rest)
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as runtime:
        run = long.start("a", runtime=runtime)
        assert begun.wait(PATIENCE)
        holding = threading.Event()

        def holds():
            with runtime.environment.lock, runtime.environment.lease_lock:
                holding.set()
                over.wait(PATIENCE)

        thread = threading.Thread(target=holds)
        thread.start()
        assert holding.wait(PATIENCE)

        def works():
            short.start("a", job_id="mine", runtime=runtime).wait(PATIENCE)

        try:
            in_a_child(works)
        finally:
            over.set()
            thread.join(PATIENCE)
        assert JobStatus.COMPLETED is run.wait(PATIENCE).status
        assert JobStatus.COMPLETED is runtime.load("mine").status
