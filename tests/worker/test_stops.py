"""The stops of a host that count as a recovery, and jobs that a worker puts aside."""

from __future__ import annotations

import pytest

from routilux import (
    FlowMismatchError,
    JobStatus,
    LeaseLostError,
    Runtime,
    Worker,
)
from routilux.engine.observers import Observers
from tests.routines import SECOND, chain, rest
from tests.worker.jobs import statuses, worker


def test_a_worker_that_is_stopped_again_and_again_poisons_no_job(clock, store, monkeypatch):
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    hosts: list[Worker] = []

    def is_stopped(self):
        self.ctx.sleep(1)  # the other jobs are taken, and find no thread that is free
        hosts[-1].stop()
        self.ctx.sleep(5)

    flow = chain(a=is_stopped)
    submitter = Runtime(clock=clock, store=store)
    job_ids = [submitter.submit(flow, "a", job_id=f"job {n}") for n in range(10)]
    for _ in job_ids:
        with Runtime(clock=clock, store=store, max_recoveries=2) as runtime:
            hosts.append(worker(runtime, flow))
            hosts[-1].run()
    for number, job_id in enumerate(job_ids, 1):
        job = submitter.load(job_id)
        assert ["start", *["resumed"] * number, "done"] == [c.kind for c in job.commits]
        assert {0} == {(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"}


def test_a_host_that_dies_again_and_again_poisons_its_job(clock, store):
    flow = chain(a=rest)
    job_id = Runtime(clock=clock, store=store).submit(flow, "a")
    jobs = []
    for _ in range(4):
        host = Runtime(clock=clock, store=store, max_recoveries=2)
        acquired = store.acquire(host.owner, ["tale"], 5 * SECOND)
        assert acquired is not None
        host.resumed(flow, host.load(job_id), acquired=acquired)
        jobs.append(host.load(job_id))
        clock.advance(5)  # it does nothing, and never renews its lease
    assert [0, 1, 2, 2] == [job.recoveries for job in jobs]
    assert ["running"] * 3 + ["failed"] == [job.status for job in jobs]
    assert "recovered 2 times without progress" in str(jobs[-1].error)


@pytest.mark.parametrize("given_back", [True, False])
def test_a_job_that_is_resumed_by_name_counts_only_an_unclean_stop(
    given_back, runtime, store, clock
):
    flow = chain(a=rest)
    job_id = runtime.submit(flow, "a")
    host = Runtime(clock=clock, store=store)
    store.acquire(host.owner, ["tale"], 5 * SECOND)
    host.resumed(flow, host.load(job_id))
    if given_back:
        store.release(job_id, host.owner, 0)
    else:
        clock.advance(5)
    job = flow.resume(runtime.load(job_id), runtime=runtime)
    assert JobStatus.COMPLETED is job.status
    assert [0, int(not given_back)] == [
        (c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"
    ]


def test_a_job_under_a_lease_can_not_be_resumed_by_name_and_the_error_names_its_owner(
    runtime, store, clock
):
    flow = chain(a=rest)
    job_id = runtime.submit(flow, "a")
    store.acquire("web-1:7:cafe", ["tale"], 5 * SECOND)
    message = f"job '{job_id}' is held by web-1:7:cafe, whose lease ends in 5.0 s; until then"
    with pytest.raises(LeaseLostError, match=message):
        flow.resume(runtime.load(job_id), runtime=runtime)


def test_a_job_that_is_put_aside_keeps_how_it_was_left(runtime, store, clock):
    old, new = chain(a=rest), chain(a=rest, b=rest)
    job_id = runtime.submit(old, "a")
    for dies in (False, True):
        if dies:
            store.acquire("dead host", ["tale"], SECOND)
            clock.advance(1)
        worker(runtime, new, lease=30)._take(False)
        clock.advance(30)
        assert dies is not store.holders(job_id)[job_id].clean


def test_a_job_of_another_shape_is_logged_and_put_aside_and_delays_no_other(runtime, store, caplog):
    old, new = chain(a=rest), chain(a=rest, b=rest)
    job_id = runtime.submit(old, "a")
    good = runtime.submit(new, "a")
    host = worker(runtime, new, lease=30)

    class Stops:
        def on_commit(self, job, commit):
            if job.status is JobStatus.COMPLETED:
                host.stop()

    runtime.environment.observers = Observers([Stops()])
    host.run()
    assert ["pending", "completed"] == [runtime.load(i).status.value for i in (job_id, good)]
    assert f"job {job_id} can't be resumed here and is put aside" in caplog.text
    assert (store.free_in(["tale"]) or 0) > 29 * SECOND
    worker(runtime, old).run(until_idle=True)
    assert {"completed"} == statuses(runtime, [job_id])


def test_the_reason_for_putting_a_job_aside_is_logged_once(runtime, store, clock, caplog):
    job_id = runtime.submit(chain(a=rest), "a")
    host = worker(runtime, chain(a=rest, b=rest), lease=30)
    for _ in range(5):
        assert host._take(False), "it was not tried again"
        assert not host._take(False), "it was not put aside"
        clock.advance(30)
    assert 1 == len(caplog.messages)
    store._jobs[job_id].rows[0] = b"{"
    assert host._take(False)
    assert 2 == len(caplog.messages)
    assert "was started on another flow" in caplog.messages[0]
    assert f"$.{job_id}[1]" in caplog.messages[1]


def test_a_worker_that_is_to_run_until_idle_raises_what_it_can_not_resume(runtime):
    runtime.submit(chain(a=rest), "a")
    with pytest.raises(FlowMismatchError, match="was started on another flow"):
        worker(runtime, chain(a=rest, b=rest)).run(until_idle=True)
