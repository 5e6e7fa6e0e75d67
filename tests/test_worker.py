"""A worker takes jobs from a store, keeps its lease, and loses it where it stands still."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    Acquired,
    ErrorHandler,
    FakeClock,
    Flow,
    FlowDefinitionError,
    FlowMismatchError,
    JobState,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    Routine,
    Runtime,
    SqliteStore,
    Worker,
)
from routilux.audience import Audience
from routilux.persist import operator
from tests.drivers.workshop import PATIENCE, Works, chain, rest
from tests.persist.stores import acquire
from tests.test_runtime import Refuses

SECOND = 10**9


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def runtime(clock: FakeClock, store: MemoryStore) -> Iterator[Runtime]:
    with Runtime(clock=clock, store=store) as made:
        yield made


def worker(runtime: Runtime, *flows: Flow, lease: float = 30.0) -> Worker:
    assert runtime.store is not None
    return Worker(runtime.store, flows, runtime=runtime, lease=lease)


def statuses(runtime: Runtime, job_ids: list[str]) -> set[str]:
    return {runtime.load(job_id).status.value for job_id in job_ids}


def retrying(attempts: int, delay: float = 60.0) -> Flow:
    """A flow whose only routine succeeds at its n-th attempt."""

    def tries(self: Routine) -> None:
        if self.ctx.attempt < attempts:
            raise ValueError("not yet")

    handler = ErrorHandler("retry", max_retries=attempts, retry_delay=delay, retry_backoff=1.0)
    return chain(a=Works(tries, handler))


# --- which jobs -----------------------------------------------------------------------------------


def test_a_worker_drives_every_job_that_was_submitted_and_ends_when_none_is_left(
    runtime: Runtime,
) -> None:
    flow = retrying(3)
    job_ids = [runtime.submit(flow, "a") for _ in range(50)]
    worker(runtime, flow).run(until_idle=True)
    assert {"completed"} == statuses(runtime, job_ids)
    job = runtime.load(job_ids[0])
    assert ["start", "resumed", "retry", "retry", "done"] == [c.kind for c in job.commits]
    assert [60 * SECOND] * 2 == [c.delay_ns for c in job.commits if c.delay_ns]


def test_jobs_that_wait_for_a_retry_make_room_for_others_at_once(
    runtime: Runtime, clock: FakeClock
) -> None:
    flow = retrying(2, delay=1000)
    began = clock.now_ns()
    job_ids = [runtime.submit(flow, "a") for _ in range(100)]
    worker(runtime, flow).run(until_idle=True)
    first = [next(c for c in runtime.load(i).commits if c.kind == "retry") for i in job_ids]
    assert {began} == {commit.started_ns for commit in first}, "some waited for a renewal"


def test_a_worker_takes_only_jobs_of_its_flows_and_none_that_somebody_holds(
    runtime: Runtime,
) -> None:
    mine, other = chain(a=rest), chain(a=rest)
    other.flow_id = "other"
    ids = [runtime.submit(mine, "a"), runtime.submit(other, "a")]
    broken = chain(a=exits)
    with pytest.raises(SystemExit):
        broken.execute("a", job_id="held", runtime=runtime)
    worker(runtime, mine).run(until_idle=True)
    assert ["completed", "pending", "running"] == [
        runtime.load(job_id).status.value for job_id in [*ids, "held"]
    ]


def exits(self: Routine) -> None:
    raise SystemExit


def test_a_job_that_a_dead_host_has_left_is_taken_over_when_its_lease_ends(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    flow = chain(a=rest)
    job_id = runtime.submit(flow, "a")
    assert job_id == acquire(store, "dead host", ["tale"], 20 * SECOND)
    began = clock.now_ns()
    worker(runtime, flow).run(until_idle=True)
    job = runtime.load(job_id)
    assert JobStatus.COMPLETED is job.status
    assert began + 20 * SECOND == job.commits[1].at_ns


def test_a_job_that_waits_for_a_retry_when_its_host_dies_waits_for_the_rest_of_it(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    flow = retrying(2, delay=100)
    job_id = runtime.submit(flow, "a")
    first = Worker(store, [flow], runtime=Runtime(clock=clock, store=store), lease=10)
    assert first._take(False)
    clock.advance(1)  # it has failed once, and its host is never heard of again
    assert ["start", "resumed", "retry"] == [c.kind for c in runtime.load(job_id).commits]
    with first._runtime.lock:
        for drive in first._drives.values():
            assert drive.loop is not None
            drive.loop.fail(drive, SystemExit())
    worker(runtime, flow).run(until_idle=True)
    job = runtime.load(job_id)
    retry, resumed, done = job.commits[2:]
    assert ("resumed", "done") == (resumed.kind, done.kind)
    assert retry.due_ns == done.started_ns
    assert 0 == job.recoveries


def test_a_job_that_kills_its_worker_again_and_again_is_failed_and_names_the_task(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    flow = chain(a=exits)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    job = runtime.load(job_id)
    assert JobStatus.FAILED is job.status
    assert job.error is not None
    assert "recovered 3 times without progress" in job.error.message
    assert "a (task 0, attempt 1)" in job.error.message
    assert [f"job {job_id} broke off here, and is given back"] * 4 == caplog.messages


# --- which stops count ----------------------------------------------------------------------------


def test_a_worker_that_is_stopped_again_and_again_poisons_no_job(
    clock: FakeClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routilux.crew._BACKGROUND_WORKERS", 1)
    hosts: list[Worker] = []

    def is_stopped(self: Routine) -> None:
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


def test_a_host_that_dies_again_and_again_poisons_its_job(
    clock: FakeClock, store: MemoryStore
) -> None:
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
    given_back: bool, runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
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


def test_a_job_under_a_lease_can_not_be_resumed_by_name_and_its_holder_is_told(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    flow = chain(a=rest)
    job_id = runtime.submit(flow, "a")
    store.acquire("web-1:7:cafe", ["tale"], 5 * SECOND)
    message = f"job '{job_id}' is held by web-1:7:cafe, whose lease ends in 5.0 s; until then"
    with pytest.raises(LeaseLostError, match=message):
        flow.resume(runtime.load(job_id), runtime=runtime)


def test_a_job_that_is_put_aside_keeps_how_it_was_left(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    old, new = chain(a=rest), chain(a=rest, b=rest)
    job_id = runtime.submit(old, "a")
    for dies in (False, True):
        if dies:
            store.acquire("dead host", ["tale"], SECOND)
            clock.advance(1)
        worker(runtime, new, lease=30)._take(False)
        clock.advance(30)
        assert dies is not store.holders(job_id)[job_id].clean


def test_a_job_of_another_shape_is_told_put_aside_and_holds_up_nothing(
    runtime: Runtime, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = chain(a=rest), chain(a=rest, b=rest)
    job_id = runtime.submit(old, "a")
    good = runtime.submit(new, "a")
    host = worker(runtime, new, lease=30)

    class Stops:
        def on_commit(self, job: JobState, commit: object) -> None:
            if job.status is JobStatus.COMPLETED:
                host.stop()

    runtime.audience = Audience([Stops()])
    host.run()
    assert ["pending", "completed"] == [runtime.load(i).status.value for i in (job_id, good)]
    assert f"job {job_id} can't be resumed here, and is put aside" in caplog.text
    assert (store.free_in(["tale"]) or 0) > 29 * SECOND
    worker(runtime, old).run(until_idle=True)
    assert {"completed"} == statuses(runtime, [job_id])


def test_why_a_job_is_put_aside_is_told_once_however_often_it_is_tried(
    runtime: Runtime,
    store: MemoryStore,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
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


def test_a_worker_that_is_to_run_until_idle_raises_what_it_can_not_resume(runtime: Runtime) -> None:
    runtime.submit(chain(a=rest), "a")
    with pytest.raises(FlowMismatchError, match="was started on another flow"):
        worker(runtime, chain(a=rest, b=rest)).run(until_idle=True)


# --- the lease ------------------------------------------------------------------------------------


def test_the_lease_is_renewed_while_a_handler_runs(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    seen: list[str | None] = []

    def works_long(self: Routine) -> None:
        for _ in range(10):
            self.ctx.sleep(9)
            seen.append(acquire(store, "thief", ["tale"], SECOND))

    flow = chain(a=works_long)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow, lease=10).run(until_idle=True)
    assert [None] * 10 == seen
    assert {"completed"} == statuses(runtime, [job_id])


def test_a_host_that_lost_its_lease_can_not_commit_and_gives_the_job_up(
    runtime: Runtime, store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ran: list[str] = []

    def stolen(self: Routine) -> None:
        ran.append(self.ctx.job_id)
        if len(ran) == 1:
            # As if this host had stood still until its lease was over, and another came.
            store._jobs[self.ctx.job_id].free_at = 0
            assert self.ctx.job_id == acquire(store, "b", ["tale"], SECOND)

    flow = chain(a=stolen)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    assert [job_id] * 2 == ran  # the other host did nothing, so it was taken over in turn
    assert ["start", "resumed", "resumed", "done"] == [c.kind for c in runtime.load(job_id).commits]
    assert "belongs to 'b' now; commit 3 of" in caplog.text


@pytest.mark.parametrize("status", ["completed", "failed", "paused"])
def test_a_host_that_stood_still_after_it_acquired_a_job_leaves_it_as_others_left_it(
    status: str, runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    def ends(self: Routine) -> None:
        if status == "failed":
            raise ValueError

    flow = chain(a=ends)
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow, lease=10)
    acquire = store.acquire

    def acquires_and_stands_still(
        owner: str, flow_ids: list[str], lease_ns: int
    ) -> Acquired | None:
        got = acquire(owner, flow_ids, lease_ns)
        store.acquire = acquire  # type: ignore[method-assign]
        clock.advance(11)
        with Runtime(clock=clock, store=store) as other:
            if status == "paused":
                mine = acquire(other.owner, flow_ids, lease_ns)
                drive = other.resumed(flow, other.load(job_id), acquired=mine)
                drive.request("pause")
            else:
                worker(other, flow, lease=10).run(until_idle=True)
        return got

    store.acquire = acquires_and_stands_still  # type: ignore[method-assign]
    host.run(until_idle=True)
    job = runtime.load(job_id)
    assert status == job.status.value
    assert 3 == job.seq, "who had stood still went on with it"


def test_a_host_that_stood_still_after_it_acquired_a_job_never_drives_it_without_a_lease(
    runtime: Runtime, store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    leases: list[int | None] = []

    def looks(self: Routine) -> None:
        leases.append(store._jobs[self.ctx.job_id].free_at)

    flow = chain(a=looks)
    job_id = runtime.submit(flow, "a")
    acquire = store.acquire

    def acquires_and_stands_still(
        owner: str, flow_ids: list[str], lease_ns: int
    ) -> Acquired | None:
        got = acquire(owner, flow_ids, lease_ns)
        store.acquire = acquire  # type: ignore[method-assign]
        clock.advance(11)
        assert acquire("b, who dies", flow_ids, lease_ns) is not None
        clock.advance(11)
        return got

    store.acquire = acquires_and_stands_still  # type: ignore[method-assign]
    worker(runtime, flow, lease=10).run(until_idle=True)
    assert [clock.now_ns() + 10 * SECOND] == leases
    assert f"job {job_id!r} belongs to 'b, who dies' now; commit 2 of" in caplog.text
    assert {"completed"} == statuses(runtime, [job_id])


def test_a_host_that_lost_its_lease_records_no_effect_either(
    runtime: Runtime, store: MemoryStore
) -> None:
    done: list[str] = []

    def affects(self: Routine) -> None:
        if not done:
            # As if this host had stood still until its lease was over, and another came.
            store._jobs[self.ctx.job_id].free_at = 0
            assert self.ctx.job_id == acquire(store, "b", ["tale"], SECOND)
            with pytest.raises(LeaseLostError, match="belongs to 'b' now"):
                self.ctx.once("charge", done.append, "late")
        else:
            self.ctx.once("charge", done.append, "again")

    flow = chain(a=affects)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    kinds = [commit.kind for commit in runtime.load(job_id).commits]
    assert ["start", "resumed", "resumed", "effect", "done"] == kinds
    assert ["late", "again"] == done, "what is not recorded is done by whoever has the job"


def test_a_job_whose_lease_was_lost_in_a_wait_is_given_up_before_it_runs_again(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    ran: list[int] = []

    def fails(self: Routine) -> None:
        ran.append(self.ctx.attempt)
        raise ValueError

    flow = chain(a=Works(fails, ErrorHandler("retry", max_retries=9, retry_delay=3600.0)))
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow, lease=30)
    assert host._take(False)
    clock.advance(0)
    drive = host._drives[job_id]
    clock.advance(31)  # nobody renewed it
    assert job_id == acquire(store, "b", ["tale"], 10**6 * SECOND)
    host._look_after()
    host._look_after()
    assert isinstance(drive.error, LeaseLostError)
    assert "was taken over by an operator, or another host" in str(drive.error)
    assert {} == host._drives
    clock.advance(7200)
    assert [1] == ran


def test_a_host_that_acquires_its_own_job_again_drives_it_once(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    flow = retrying(2, delay=100)
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow, lease=10)
    assert host._take(False)
    clock.advance(11)  # nobody renewed it
    assert host._take(False)
    host.run(until_idle=True)
    ran = [commit.kind for commit in runtime.load(job_id).commits]
    assert ["start", "resumed", "retry", "resumed", "done"] == ran


def test_a_job_that_an_operator_takes_from_a_worker_may_come_to_it_again(
    runtime: Runtime, store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ran: list[str] = []

    def works(self: Routine) -> None:
        ran.append("begins")
        self.ctx.sleep(20)
        ran.append("ends")

    flow = chain(a=works)
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow)
    assert host._take(False)
    clock.advance(10)
    operator.retry(store, job_id, clock.now_ns(), take_over=True)
    assert host._take(False)
    host.run(until_idle=True)
    job = runtime.load(job_id)
    assert ["begins", "begins", "ends"] == ran
    assert ["start", "resumed", "resumed", "resumed", "done"] == [c.kind for c in job.commits]
    assert [0, 1, 1] == [(c.detail or {})["recoveries"] for c in job.commits[1:4]]
    whom = "an operator, or another host while this one stood still for too long"
    assert [f"job '{job_id}' was taken over by {whom}"] == caplog.messages
    assert {} == runtime.taken


class Forgets(MemoryStore):
    """A store whose answer to the n-th acquisition is lost."""

    def __init__(self, clock: FakeClock, n: int) -> None:
        super().__init__(clock)
        self.left = n

    def acquire(self, *asked: Any) -> Acquired | None:
        acquired = super().acquire(*asked)
        self.left -= acquired is not None
        if acquired is not None and self.left == 0:
            raise OSError("the connection broke")
        return acquired


def test_a_lease_whose_answer_was_lost_is_given_back_and_not_renewed_for_ever(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = Forgets(clock, 2)

    def works_long(self: Routine) -> None:
        self.ctx.sleep(10_000)

    long, short = chain(a=works_long), chain(a=rest)
    short.flow_id = "short"
    with Runtime(clock=clock, store=store) as runtime:
        job_ids = [runtime.submit(long, "a"), runtime.submit(short, "a")]
        began = clock.now_ns()
        host = worker(runtime, long, short, lease=30)
        assert host._take(False)
        with pytest.raises(OSError, match="the connection broke"):
            host._take(False)
        host.run(until_idle=True)
        jobs = [runtime.load(job_id) for job_id in job_ids]
    assert ["completed"] * 2 == [job.status for job in jobs]
    assert began + 10 * SECOND == jobs[1].updated_ns, "it was given back at the first renewal"
    assert 0 == jobs[1].recoveries
    assert [
        f"job {job_ids[1]} is given back: its lease is held here, and unknown"
    ] == caplog.messages


def test_a_lease_whose_answer_was_lost_is_given_back_as_an_unclean_stop(clock: FakeClock) -> None:
    store = Forgets(clock, 2)

    def works_long(self: Routine) -> None:
        self.ctx.sleep(100)

    flows = chain(a=works_long), chain(a=rest)
    flows[1].flow_id = "died"
    with Runtime(clock=clock, store=store) as runtime:
        runtime.submit(flows[0], "a")
        host = worker(runtime, *flows, lease=30)
        assert host._take(False)
        job_id = runtime.submit(flows[1], "a")
        with pytest.raises(OSError, match="the connection broke"):
            host._take(False)
        host._renew()
        assert not store.holders(job_id)[job_id].clean, "nobody knows that it was left in order"


def test_workers_that_share_a_runtime_give_back_nothing_of_each_other(
    runtime: Runtime, store: MemoryStore, clock: FakeClock
) -> None:
    def works_long(self: Routine) -> None:
        self.ctx.sleep(1000)

    flows = [chain(a=works_long), chain(a=works_long)]
    flows[1].flow_id = "other"
    job_ids = [runtime.submit(flow, "a") for flow in flows]
    hosts = [worker(runtime, flow) for flow in flows]
    assert [True, True] == [host._take(False) for host in hosts]
    hosts[0]._renew()
    assert [runtime.owner] * 2 == [store.holders(i)[i].owner for i in job_ids]
    for host in hosts:
        host.run(until_idle=True)
    assert [["start", "resumed", "done"]] * 2 == [
        [c.kind for c in runtime.load(job_id).commits] for job_id in job_ids
    ]


# --- how it ends ----------------------------------------------------------------------------------


def test_a_worker_that_is_stopped_lets_steps_end_and_gives_the_rest_back(
    runtime: Runtime, store: MemoryStore
) -> None:
    def first(self: Routine) -> None:
        host.stop()
        self.ctx.sleep(5)
        self.emit("out", n=1)

    flow, waits = chain(a=first, b=rest), retrying(2, delay=600)
    waits.flow_id = "waits"
    waiting = runtime.submit(waits, "a")
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow, waits)
    host.run()
    job = runtime.load(job_id)
    assert ["start", "resumed", "done"] == [c.kind for c in job.commits]
    assert JobStatus.RUNNING is job.status
    assert 0 == store.free_in([flow.flow_id])
    assert 595 * SECOND == store.free_in(["waits"])
    assert "retry" == runtime.load(waiting).commits[-1].kind
    worker(runtime, flow, waits).run(until_idle=True)
    assert {"completed"} == statuses(runtime, [job_id, waiting])


def test_what_the_store_raises_ends_the_worker(clock: FakeClock) -> None:
    class Breaks(Refuses):
        def release(self, *rest: object, **clean: bool) -> None:
            raise OSError("disk full")

    store = Breaks(2)
    runtime = Runtime(clock=clock, store=store)
    flow = chain(a=rest)
    runtime.submit(flow, "a")
    with pytest.raises(OSError, match="disk full"):
        worker(runtime, flow).run()


def test_sigterm_ends_a_worker_and_the_handler_before_it_is_put_back(tmp_path: Path) -> None:
    def told(self: Routine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.emit("out", n=1)

    before = signal.getsignal(signal.SIGTERM)
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as runtime:
        flow = chain(a=told, b=rest)
        job_id = runtime.submit(flow, "a")
        worker(runtime, flow).run()
        assert runtime.load(job_id).seq >= 3
    assert before is signal.getsignal(signal.SIGTERM)


def test_workers_in_threads_share_the_jobs_and_each_is_done_once(tmp_path: Path) -> None:
    ran: list[str] = []
    met = threading.Barrier(2)

    def meets(self: Routine, meet: bool = False) -> None:
        ran.append(self.ctx.job_id)
        if meet:
            met.wait(PATIENCE)  # both workers have one of these two in their hands

    flow = chain(a=meets)
    with SqliteStore(tmp_path / "jobs.db") as store:
        runtimes = [Runtime(store=store) for _ in range(2)]
        job_ids = [runtimes[0].submit(flow, "a", {"meet": n < 2}) for n in range(40)]
        threads = [
            threading.Thread(target=worker(runtime, flow).run, kwargs={"until_idle": True})
            for runtime in runtimes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(job_ids) == sorted(ran)
        assert {"completed"} == statuses(runtimes[0], job_ids)
        for runtime in runtimes:
            runtime.close()


# --- what it is made with -------------------------------------------------------------------------


def test_a_worker_that_can_not_work_is_refused(store: MemoryStore) -> None:
    flow = chain(a=rest)
    for arguments, message in (
        ({"flows": []}, "needs the flows whose jobs"),
        ({"flows": [flow, chain(a=rest)]}, "two flows are called 'tale'"),
        ({"flows": [flow], "lease": 0}, "lease is 0; it is some seconds"),
        ({"flows": [flow], "lease": -1}, "lease is -1; it is some seconds, more than 0"),
        ({"flows": [flow], "lease": float("inf")}, "lease is inf; it is some seconds"),
        ({"flows": [flow], "lease": 1e10}, "lease is 10000000000.0; .* and at most a year"),
        ({"flows": [flow], "lease": None}, "lease is None; it is some seconds"),
        ({"flows": [flow], "runtime": Runtime()}, "writes to another store"),
    ):
        with pytest.raises(FlowDefinitionError, match=message):
            Worker(store, **arguments)  # type: ignore[arg-type]
