"""A worker renews its leases; a host that lost a lease, or shares one, drives no job twice."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from routilux import (
    Acquired,
    ErrorHandler,
    FakeClock,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    Runtime,
    SqliteStore,
    Worker,
    retry_job,
)
from tests.engine.concurrency import Gate, in_a_child
from tests.persist.stores import acquire
from tests.routines import PATIENCE, SECOND, Works, chain, kinds, rest, sleeps
from tests.worker.jobs import (
    TAKEN_OVER,
    hosted,
    statuses,
    story,
    suspends,
    worker,
    working,
)

# Python 3.12 and later warn of a fork with threads, which is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def test_the_lease_is_renewed_while_a_handler_runs(runtime, store, clock):
    seen: list[str | None] = []

    def works_long(self):
        for _ in range(10):
            self.ctx.sleep(9)
            seen.append(acquire(store, "thief", ["tale"], SECOND))

    host, job_id = hosted(runtime, chain(a=works_long), lease=10)
    host.run(until_idle=True)
    assert [None] * 10 == seen
    assert {"completed"} == statuses(runtime, [job_id])


def test_no_lease_ends_while_the_jobs_of_a_claim_are_loaded(runtime, store, clock, monkeypatch):
    lapsed: list[str] = []

    def loads(job_id, after=0, rows=store.rows):
        clock.advance(1)
        holds = store.holders().items()
        lapsed.extend(i for i, hold in holds if hold.owner is not None and hold.free_in_ns == 0)
        return rows(job_id, after)

    flow = chain(a=sleeps(60))
    job_ids = [runtime.submit(flow, "a") for _ in range(40)]
    with monkeypatch.context() as patch:
        patch.setattr(store, "rows", loads)
        worker(runtime, flow, lease=10).run(until_idle=True)
    assert [] == lapsed
    for job_id in job_ids:
        job = runtime.load(job_id)
        assert (["start", "resumed", "done"], 0) == (kinds(job), job.recoveries)


@pytest.mark.parametrize("effects", [0, 1], ids=["its step", "an effect"])
def test_a_host_that_lost_its_lease_can_not_commit(effects, runtime, store, clock, caplog):
    caplog.set_level("INFO")
    ran: list[str] = []

    def stolen():
        if not ran:
            # As if this host was suspended until its lease ended, and another host came.
            store._jobs[job_id].free_at = 0
            assert job_id == acquire(store, "b", ["tale"], SECOND)
        ran.append("ran")

    def works(self):
        if effects:
            self.ctx.once("charge", stolen)
        else:
            stolen()

    host, job_id = hosted(runtime, chain(a=works))
    host.run(until_idle=True)
    assert 2 == len(ran)  # the other host did nothing, so its lease ended too
    assert ["start", "resumed", "resumed", *["effect"] * effects, "done"] == story(runtime, job_id)
    assert "belongs to 'b' now; commit 3 of" in caplog.text


@pytest.mark.parametrize("status", ["completed", "failed", "paused"])
def test_a_suspended_host_leaves_a_job_that_others_resumed(status, runtime, store, clock):
    def ends(self):
        if status == "failed":
            raise ValueError

    flow = chain(a=ends)
    host, job_id = hosted(runtime, flow, lease=10)

    def others_resume_it():
        clock.advance(11)
        with Runtime(clock=clock, store=store) as other:
            if status == "paused":
                [mine] = store.acquire(other.owner, [flow.flow_id], 10 * SECOND)
                [drive] = other.resume_acquired({flow.flow_id: [flow]}, [mine], 10**18)
                drive.request("pause")
            else:
                worker(other, flow, lease=10).run(until_idle=True)

    suspends(store, others_resume_it)
    host.run(until_idle=True)
    job = runtime.load(job_id)
    assert status == job.status.value
    assert 3 == job.seq, "the suspended host resumed it"


def test_a_suspended_host_never_drives_without_a_lease(runtime, store, clock, caplog):
    caplog.set_level("INFO")
    leases: list[int | None] = []

    def looks(self):
        leases.append(store._jobs[self.ctx.job_id].free_at)

    host, job_id = hosted(runtime, chain(a=looks), lease=10)

    def another_host_takes_it_and_dies():
        clock.advance(11)
        assert job_id == acquire(store, "b, dead", ["tale"], 10 * SECOND)
        clock.advance(11)

    suspends(store, another_host_takes_it_and_dies)
    host.run(until_idle=True)
    assert [clock.now_ns() + 10 * SECOND] == leases
    took = [message for message in caplog.messages if message.startswith("took")]
    assert [f"took over job {job_id} of flow tale at commit 2 after an unclean stop"] == took
    assert f"job {job_id!r} belongs to 'b, dead' now; commit 2 of" in caplog.text
    assert {"completed"} == statuses(runtime, [job_id])


def test_a_lease_lost_in_a_wait_ends_the_run_before_the_retry(runtime, store, clock):
    ran: list[int] = []

    def fails(self):
        ran.append(self.ctx.attempt)
        raise ValueError

    handler = ErrorHandler("retry", max_retries=9, retry_delay=3600.0)
    host, job_id = hosted(runtime, chain(a=Works(fails, handler)))
    assert host._take(False)
    clock.advance(0)
    drive = host._drives[job_id]
    clock.advance(31)  # no worker renewed it
    assert job_id == acquire(store, "b", ["tale"], 10**6 * SECOND)
    host._maintain()
    host._maintain()
    assert isinstance(drive.error, LeaseLostError)
    assert "was taken over by an operator, or by another host" in str(drive.error)
    assert {} == host._drives
    clock.advance(7200)
    assert [1] == ran


class Forgets(MemoryStore):
    """A store whose answer to the n-th acquisition is lost."""

    def __init__(self, clock: FakeClock, n: int) -> None:
        super().__init__(clock)
        self.left = n

    def acquire(self, *asked: Any) -> list[Acquired]:
        acquired = super().acquire(*asked)
        self.left -= bool(acquired)
        if acquired and self.left == 0:
            raise OSError("the connection broke")
        return acquired


def test_a_lease_of_a_lost_answer_is_given_back_at_the_next_renewal(clock, caplog):
    caplog.set_level("INFO")
    store = Forgets(clock, 2)
    long, short = chain(a=sleeps(10_000)), chain(a=rest)
    short.flow_id = "short"
    with Runtime(clock=clock, store=store) as runtime:
        runtime.submit(long, "a")
        job_id = runtime.submit(short, "a")
        host = worker(runtime, long, short, lease=30)
        assert host._take(False)
        with pytest.raises(OSError, match="the connection broke"):
            host._take(False)
        clock.advance(10)  # a renewal is due
        host._maintain()
        hold = store.holders(job_id)[job_id]
        assert (None, False) == (hold.owner, hold.clean), "how its host stopped is unknown"
        host.run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status
    released = [m for m in caplog.messages if m.startswith("the worker releases")]
    assert [f"the worker releases job {job_id}: no worker here runs it"] == released


def test_a_worker_keeps_the_leases_of_other_workers_of_its_runtime(runtime, store, clock):
    flows = [chain(a=sleeps(1000)) for _ in range(2)]
    flows[1].flow_id = "other"
    hosts, job_ids = zip(*(hosted(runtime, flow) for flow in flows), strict=True)
    assert [True, True] == [host._take(False) for host in hosts]
    hosts[0]._renew()
    assert [runtime.owner] * 2 == [store.holders(i)[i].owner for i in job_ids]
    for host in hosts:
        host.run(until_idle=True)
    assert [["start", "resumed", "done"]] * 2 == [story(runtime, job_id) for job_id in job_ids]


# --- several workers or processes of one runtime --------------------------------------------------


@pytest.mark.parametrize("by", ["an operator", "time"])
@pytest.mark.parametrize("same", [True, False], ids=["the same worker", "another worker"])
def test_a_job_that_a_runtime_acquires_again_is_driven_once(
    same, by, runtime, store, clock, caplog
):
    caplog.set_level("INFO")
    ran: list[str] = []
    flow = chain(a=working(25, ran))
    first, job_id = hosted(runtime, flow, lease=20)
    second = first if same else worker(runtime, flow, lease=20)
    assert first._take(False)
    if by == "time":
        clock.advance(21)  # no worker renewed it
    else:
        clock.advance(10)
        retry_job(store, job_id, take_over=True, clock=clock)
    assert second._take(False)
    first._maintain()
    clock.advance(10)  # the next renewal is due
    second._maintain()
    assert runtime.owner == store.holders(job_id)[job_id].owner, "it was given back meanwhile"
    second.run(until_idle=True)
    assert ["begins", "begins", "ends"] == ran
    resumed = runtime.load(job_id).commits[1:-1]
    recoveries = [0, 1] if by == "time" else [0, 1, 1]
    assert recoveries == [(commit.detail or {})["recoveries"] for commit in resumed]
    assert [f"job '{job_id}' {TAKEN_OVER}"] == [m for m in caplog.messages if "taken over" in m]
    assert {} == runtime.environment.leases


@pytest.mark.parametrize("same", [True, False], ids=["by its runtime", "by another host"])
def test_a_job_of_a_worker_can_not_be_resumed(same, runtime, store, clock):
    flow = chain(a=sleeps(25))
    host, job_id = hosted(runtime, flow)
    other = runtime if same else Runtime(clock=clock, store=store)
    assert host._take(False)
    clock.advance(10)
    with pytest.raises(LeaseLostError, match=f"held by {runtime.owner}, whose lease ends in 20 s"):
        flow.resume(runtime.load(job_id), runtime=other)
    host.run(until_idle=True)
    assert ["start", "resumed", "done"] == story(runtime, job_id)


def test_a_forked_child_has_its_own_owner_name_and_threads(tmp_path):
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


def test_a_forked_child_drives_jobs_though_its_parent_held_the_locks(tmp_path):
    gate, holding, over = Gate(), threading.Event(), threading.Event()
    short = chain(a=rest)
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as runtime:
        run = chain(a=gate.holds).start("a", runtime=runtime)
        gate.until_reached()

        def holds():
            with runtime.environment.lock, runtime.environment.lease_lock:
                holding.set()
                over.wait(PATIENCE)

        thread = threading.Thread(target=holds)
        thread.start()
        assert holding.wait(PATIENCE)
        try:
            in_a_child(lambda: short.start("a", job_id="mine", runtime=runtime).wait(PATIENCE))
        finally:
            over.set()
            gate.open()
            thread.join(PATIENCE)
        assert JobStatus.COMPLETED is run.wait(PATIENCE).status
        assert JobStatus.COMPLETED is runtime.load("mine").status
