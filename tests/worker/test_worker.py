"""A worker takes the jobs of its flows from a store, and ends when it is stopped."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from routilux import (
    ErrorHandler,
    Flow,
    FlowDefinitionError,
    FlowMismatchError,
    JobStatus,
    Routine,
    Runtime,
    SqliteStore,
    Worker,
)
from routilux.engine.observers import Observers
from tests.engine.concurrency import at_once
from tests.persist.stores import acquire
from tests.routines import PATIENCE, SECOND, Works, chain, delays, kinds, rest, saveable, send
from tests.worker.jobs import hosted, retrying, statuses, story, worker


def test_a_worker_drives_every_job_that_was_submitted_and_ends_when_none_is_left(runtime):
    flow = retrying(3)
    job_ids = [runtime.submit(flow, "a") for _ in range(50)]
    worker(runtime, flow).run(until_idle=True)
    assert {"completed"} == statuses(runtime, job_ids)
    job = runtime.load(job_ids[0])
    assert ["start", "resumed", "retry", "retry", "done"] == kinds(job)
    assert [60, 60] == delays(job)


def test_jobs_that_wait_for_a_retry_make_room_for_others_at_once(runtime, clock):
    flow = retrying(2, delay=1000)
    began = clock.now_ns()
    job_ids = [runtime.submit(flow, "a") for _ in range(100)]
    worker(runtime, flow).run(until_idle=True)
    first = [next(c for c in runtime.load(i).commits if c.kind == "retry") for i in job_ids]
    assert {began} == {commit.started_ns for commit in first}, "some waited for a renewal"


def test_each_claim_takes_twice_as_many_jobs_which_are_resumed_by_one_write(
    runtime, store, monkeypatch
):
    flow, running = chain(a=lambda self: self.ctx.sleep(1)), 0
    asked: list[int] = []
    written: list[int] = []

    def acquires(owner, flow_ids, lease_ns, limit, acquire=store.acquire):
        nonlocal running
        got = acquire(owner, flow_ids, lease_ns, limit)
        asked.append(limit)
        running += len(got)
        return got

    def appends(rows, append_all=store.append_all):
        if rows[0].seq == 2:
            written.append(len(rows))
        return append_all(rows)

    monkeypatch.setattr(store, "acquire", acquires)
    monkeypatch.setattr(store, "append_all", appends)
    job_ids = [runtime.submit(flow, "a") for _ in range(31 + 7)]
    worker(runtime, flow).run(until_idle=True)
    assert {"completed"} == statuses(runtime, job_ids)
    assert [1, 2, 4, 8, 16] == asked[:5], "a few jobs would not be shared by many workers"
    assert [2, 4, 8, 16] == written[:4], "each was resumed by a write of its own"
    assert len(job_ids) == running


def test_jobs_that_a_dead_host_left_are_taken_one_by_one(runtime, store, clock):
    flow = chain(a=rest)
    for _ in range(8):
        runtime.submit(flow, "a")
    assert 8 == len(store.acquire("dead host", ["tale"], SECOND, 8))
    clock.advance(1)
    host = worker(runtime, flow)
    for taken in range(1, 9):
        assert host._take(False)
        assert taken == len(host._drives)
    host.run(until_idle=True)


def test_jobs_that_come_back_from_a_wait_take_up_room_again(runtime, clock):
    def tries(self):
        if self.ctx.attempt == 1:
            raise ValueError("not yet")
        self.ctx.sleep(100)

    flow = chain(a=Works(tries, ErrorHandler("retry", retry_delay=60.0)))
    for _ in range(40):
        runtime.submit(flow, "a")
    host = worker(runtime, flow)
    while host._capacity.check() and host._take(False):
        clock.advance(0)
    assert host._capacity.check(), "all wait"
    clock.advance(60)
    for _ in range(2):
        runtime.submit(flow, "a")
        assert host._take(False), "it had checked for room before"
    assert not host._capacity.check()
    clock.advance(100)
    assert host._capacity.check()
    host.run(until_idle=True)


def test_a_worker_takes_only_free_jobs_of_its_flows(runtime):
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


def test_a_job_of_a_dead_host_is_taken_over_when_its_lease_ends(runtime, store, clock):
    host, job_id = hosted(runtime, chain(a=rest))
    assert job_id == acquire(store, "dead host", ["tale"], 20 * SECOND)
    began = clock.now_ns()
    host.run(until_idle=True)
    job = runtime.load(job_id)
    assert JobStatus.COMPLETED is job.status
    assert began + 20 * SECOND == job.commits[1].at_ns


def test_the_rest_of_a_wait_is_honoured_after_a_host_dies(runtime, store, clock):
    flow = retrying(2, delay=100)
    job_id = runtime.submit(flow, "a")
    first = Worker(store, [flow], runtime=Runtime(clock=clock, store=store), lease=10)
    assert first._take(False)
    clock.advance(1)  # it has failed once, and its host is dead
    assert ["start", "resumed", "retry"] == story(runtime, job_id)
    with first._runtime.environment.lock:
        for drive in first._drives.values():
            assert drive.loop is not None
            drive.loop.fail(drive, SystemExit())
    worker(runtime, flow).run(until_idle=True)
    job = runtime.load(job_id)
    retry, resumed, done = job.commits[2:]
    assert ("resumed", "done") == (resumed.kind, done.kind)
    assert retry.due_ns == done.started_ns
    assert 0 == job.recoveries


def test_a_job_that_ends_its_worker_repeatedly_fails_and_names_the_task(runtime, caplog):
    host, job_id = hosted(runtime, chain(a=exits))
    host.run(until_idle=True)
    job = runtime.load(job_id)
    assert JobStatus.FAILED is job.status
    assert job.error is not None
    assert "recovered 3 times without progress" in job.error.message
    assert "a (task 0, attempt 1)" in job.error.message
    assert [f"the worker releases job {job_id} after an error on this host"] * 4 == (
        caplog.messages[:4]
    )
    assert (
        f"job {job_id} of flow tale failed for good at a attempt 1: routilux.PoisonJobError: the"
        in caplog.messages[4]
    )


def test_an_observer_that_ends_a_resumption_keeps_no_job_from_being_resumed(store, clock):
    class Exits:
        def on_commit(self, job, commit):
            if job.seq == 2:
                raise SystemExit

    with Runtime(clock=clock, store=store, observers=[Exits()]) as runtime:
        flow = chain(a=rest)
        host, job_id = hosted(runtime, flow)
        with pytest.raises(SystemExit) as kept:
            host.run()
        assert {} == runtime.environment.driven
        job = flow.resume(runtime.load(job_id), runtime=runtime)
        assert JobStatus.COMPLETED is job.status
        assert kept.value.__traceback__ is not None  # which keeps the first resumption in memory


def test_a_stopped_worker_lets_steps_end_and_gives_its_jobs_back(runtime, store):
    def first(self):
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
    assert ["start", "resumed", "done"] == kinds(job)
    assert JobStatus.RUNNING is job.status
    assert 0 == store.free_in([flow.flow_id])
    assert 595 * SECOND == store.free_in(["waits"])
    assert "retry" == runtime.load(waiting).commits[-1].kind
    worker(runtime, flow, waits).run(until_idle=True)
    assert {"completed"} == statuses(runtime, [job_id, waiting])


def test_sigterm_stops_a_worker_which_restores_the_signal_handler(tmp_path):
    def terminates(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.emit("out", n=1)

    before = signal.getsignal(signal.SIGTERM)
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as runtime:
        flow = chain(a=terminates, b=rest)
        job_id = runtime.submit(flow, "a")
        worker(runtime, flow).run()
        assert runtime.load(job_id).seq >= 3
    assert before is signal.getsignal(signal.SIGTERM)


def test_workers_in_threads_share_the_jobs_and_each_is_done_once(tmp_path):
    ran: list[str] = []
    met = threading.Barrier(2)

    def meets(self, meet=False):
        ran.append(self.ctx.job_id)
        if meet:
            met.wait(PATIENCE)  # each worker has one of these two jobs

    flow = chain(a=meets)
    with SqliteStore(tmp_path / "jobs.db") as store:
        runtimes = [Runtime(store=store) for _ in range(2)]
        job_ids = [runtimes[0].submit(flow, "a", {"meet": n < 2}) for n in range(40)]
        at_once(*(partial(worker(r, flow).run, until_idle=True) for r in runtimes))
        assert sorted(job_ids) == sorted(ran)
        assert {"completed"} == statuses(runtimes[0], job_ids)
        for runtime in runtimes:
            runtime.close()


def test_invalid_arguments_of_a_worker_are_refused(store):
    flow = chain(a=rest)
    for arguments, message in (
        ({"flows": []}, "needs at least one flow"),
        ({"flows": flow}, r"flows must be a list of flows, not .*; pass Worker\(store, \[flow\]\)"),
        ({"flows": None}, "flows must be a list of flows, not None; pass"),
        ({"flows": [flow, "tale"]}, "flows holds 'tale', which is no Flow; pass"),
        ({"flows": "tale"}, "flows holds 't', which is no Flow; pass"),
        *(
            (
                {"flows": [flow], "allow_changed_flow": given},
                f"allow_changed_flow must be True or False, not {given!r}",
            )
            for given in ("yes", 1, None)
        ),
        ({"flows": [flow, chain(a=rest)]}, "two flows have the id 'tale' and the same shape"),
        *(
            ({"flows": [flow], "concurrency": given}, "concurrency must be an int of 1 or more")
            for given in (0, -1, 1.0, True, "4")
        ),
        ({"flows": [flow], "lease": 0}, "more than 0 s and at most a year, not 0"),
        ({"flows": [flow], "lease": -1}, "at most a year, not -1"),
        ({"flows": [flow], "lease": float("inf")}, "at most a year, not inf"),
        ({"flows": [flow], "lease": 1e10}, "at most a year, not 10000000000.0"),
        ({"flows": [flow], "lease": None}, "at most a year, not None"),
        ({"flows": [flow], "runtime": Runtime()}, "have different stores; pass"),
    ):
        with pytest.raises(FlowDefinitionError, match=message):
            Worker(store, **arguments)


# --- no more jobs than it can run -----------------------------------------------------------------


@pytest.mark.parametrize("by", ["concurrency", "threads", "executor"])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_worker_takes_no_more_jobs_than_it_can_run(most, by, tmp_path, monkeypatch):
    held: list[int] = []

    def looks(self):
        holders = [hold.owner for hold in store.holders().values() if hold.is_leased]
        held.append(max(map(holders.count, holders)))
        met.wait(PATIENCE)  # no job ends before both workers run as many as they can

    if by == "threads":
        monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", most)
    met = threading.Barrier(2 * most)
    flow = chain(a=looks)
    with SqliteStore(tmp_path / "jobs.db") as store:
        executors = [ThreadPoolExecutor(most) if by == "executor" else None for _ in range(2)]
        runtimes = [Runtime(store=store, executor=executor) for executor in executors]
        job_ids = [runtimes[0].submit(flow, "a") for _ in range(6 * most)]
        concurrency = most if by == "concurrency" else None
        hosts = [worker(runtime, flow, concurrency=concurrency) for runtime in runtimes]
        at_once(*(partial(host.run, until_idle=True) for host in hosts))
        assert {"completed"} == statuses(runtimes[0], job_ids)
        for runtime, executor in zip(runtimes, executors, strict=True):
            runtime.close()
            if executor is not None:
                executor.shutdown()
    assert most == max(held)


def test_a_worker_has_a_thread_for_each_job_of_its_concurrency(runtime, clock):
    flow = chain(a=lambda self: self.ctx.sleep(1))
    began = clock.now_ns()
    for _ in range(100):
        runtime.submit(flow, "a")
    worker(runtime, flow, concurrency=100).run(until_idle=True)
    assert began + SECOND == clock.now_ns()


def test_a_worker_adds_threads_to_those_that_run_already(store):
    met = threading.Barrier(41)  # more than the threads of a runtime

    def meets(self):
        met.wait(PATIENCE)

    flow = chain(a=meets)
    with Runtime(store=store) as runtime:
        first = flow.start("a", runtime=runtime)
        for _ in range(40):
            runtime.submit(flow, "a")
        worker(runtime, flow, concurrency=41).run(until_idle=True)
        assert "completed" == first.wait(PATIENCE).status


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
@pytest.mark.parametrize(("size", "steps"), [(1, "1 step"), (4, "4 steps")])
def test_a_worker_refuses_more_jobs_at_once_than_its_executor_runs(executor, size, steps, store):
    name = executor.__name__
    with executor(size) as pool, Runtime(store=store, executor=pool) as runtime:
        worker(runtime, chain(a=saveable(rest)), concurrency=size)
        with pytest.raises(
            FlowDefinitionError,
            match=rf"^concurrency is 5, but the runtime's {name} runs {steps} at once; give the"
            " executor 5 workers, or leave out concurrency$",
        ):
            worker(runtime, chain(a=saveable(rest)), concurrency=5)


def test_a_job_whose_wait_ended_while_no_thread_was_free_is_given_back(store, clock, monkeypatch):
    def tries(self, n=0):
        if n:
            self.ctx.sleep(1000)
        elif self.ctx.attempt == 1:
            raise ValueError("not yet")

    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    flow = chain(a=Works(tries, ErrorHandler("retry", retry_delay=60.0)))
    with Runtime(clock=clock, store=store) as runtime, Runtime(clock=clock, store=store) as other:
        host = worker(runtime, flow, lease=30)
        waiting = runtime.submit(flow, "a")
        assert host._take(False)
        clock.advance(0)
        long = runtime.submit(flow, "a", {"n": 1})
        assert host._take(False)
        for _ in range(8):  # its wait ends after 60 s, and a renewal is every 10 s
            assert {waiting, long} == host._drives.keys()
            clock.advance(10)
            host._maintain()
        assert {long} == host._drives.keys()
        assert worker(other, flow)._take(False)
        clock.advance(0)
        assert ["start", "resumed", "retry", "resumed", "done"] == story(runtime, waiting)
        assert 0 == runtime.load(waiting).recoveries


# --- flows that change ----------------------------------------------------------------------------


def breaks_off_after(step: str, old: Flow, runtime: Any, job_id: str) -> None:
    """A job whose host failed after a routine, so that a later worker goes on with it."""

    class Fails:
        def on_commit(self, job, commit):
            if commit.routine_id == step:
                drive = host._drives[job_id]
                drive.loop.fail(drive, OSError("the host fails"))

    runtime.submit(old, "a", job_id=job_id)
    host = worker(runtime, old)
    runtime.environment.observers = Observers([Fails()])
    assert host._take(False)
    runtime.clock.advance(0)
    host._leave()
    runtime.environment.observers = Observers([])
    assert ["start", "resumed", "done"] == story(runtime, job_id)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_job_gets_the_flow_of_its_shape_among_those_of_its_id(allowed, runtime):
    ran: list[str] = []

    def named(name):
        def body(self, n=0):
            ran.append(f"{name} {self.ctx.job_id}")
            self.emit("out", n=n)

        return body

    one = chain(a=named("a1"), b=named("b1"))
    two = chain(a=named("a2"), b=named("b2"), c=named("c2"))
    for flow, job_id in ((one, "under way"), (two, "new")):
        breaks_off_after("a", flow, runtime, job_id)
    runtime.submit(one, "a", job_id="queued")
    worker(runtime, two, one, allow_changed_flow=allowed).run(until_idle=True)
    assert {"completed"} == statuses(runtime, ["under way", "new", "queued"])
    assert sorted(ran) == sorted(
        ["a1 under way", "b1 under way", "a2 new", "b2 new", "c2 new", "a1 queued", "b1 queued"]
    )


@pytest.mark.parametrize("allowed", [True, False])
def test_a_job_goes_on_with_a_changed_flow_if_that_is_allowed(allowed, runtime):
    old = chain(a=send, b=send)
    new = chain(a=send, b=send, c=send)
    breaks_off_after("a", old, runtime, "j")
    host = worker(runtime, new, allow_changed_flow=allowed)
    if allowed:
        host.run(until_idle=True)
        job = runtime.load("j", history=True)
        assert ["a", "b", "c"] == [c.routine_id for c in job.commits if c.kind == "done"]
        assert new.shape == job.shape
        return
    with pytest.raises(FlowMismatchError, match="pass the old flow to the worker too") as caught:
        host.run(until_idle=True)
    assert "allow changed flows by Worker(..., allow_changed_flow=True)" in str(caught.value)
    assert "+ routine c: " in str(caught.value)


def test_of_several_changed_flows_a_job_gets_the_first_that_has_its_slots(runtime):
    breaks_off_after("a", chain(a=send, b=send), runtime, "j")
    without, fits, last = chain(a=send, c=send), chain(b=send, c=send), chain(b=send, d=send)
    worker(runtime, without, fits, last, allow_changed_flow=True).run(until_idle=True)
    assert fits.shape == runtime.load("j").shape


def test_a_changed_flow_that_lacks_a_slot_or_requires_more_is_refused_with_the_cure(runtime):
    breaks_off_after("a", chain(a=send, b=send), runtime, "j")
    slot = "task 0.0 waits for b.trigger; flow 'tale' has no such slot; add the slot"
    parameter = (
        "the payload of task 0.0 has no 'more', which the handler of b.trigger requires; give this"
        " parameter a default, or resume"
    )
    needs = chain(b=lambda self, n, more: None, c=send)
    for flow, message in ((chain(a=send, c=send), slot), (needs, parameter)):
        with pytest.raises(FlowMismatchError, match=message):
            worker(runtime, flow, allow_changed_flow=True, lease=1).run(until_idle=True)
    assert JobStatus.RUNNING is runtime.load("j").status


# --- what it logs ---------------------------------------------------------------------------------


def test_taken_and_stopped_jobs_are_logged_and_what_failed_for_good_is_a_warning(runtime, caplog):
    def raises(self):
        raise ValueError("no stock\nat all")

    def cancels(self):
        host._drives[self.ctx.job_id].request("cancel")

    def stops(self):
        host.stop()
        self.emit("out", n=1)

    caplog.set_level("INFO", "routilux")
    flow = chain(stops=stops, ends=rest, raises=raises, cancels=cancels)
    for name in ("ends", "raises", "cancels", "stops"):
        runtime.submit(flow, name, job_id=name)
    host = worker(runtime, flow, concurrency=1)
    host.run()
    place = f"{__file__}:{raises.__code__.co_firstlineno + 1}"
    failed = f"at raises attempt 1: ValueError: no stock at all ({place})"
    assert [
        ("INFO", "took job ends of flow tale at commit 2"),
        ("INFO", "job ends of flow tale is completed at commit 3"),
        ("INFO", "took job raises of flow tale at commit 2"),
        ("WARNING", f"job raises of flow tale failed for good {failed}"),
        ("INFO", "took job cancels of flow tale at commit 2"),
        ("INFO", "job cancels of flow tale is cancelled at commit 4"),
        ("INFO", "took job stops of flow tale at commit 2"),
        ("INFO", "gave back job stops of flow tale at commit 3"),
    ] == [(record.levelname, record.getMessage()) for record in caplog.records]


# --- how a stop counts, and jobs that are put aside -----------------------------------------------


def test_clean_stops_of_workers_poison_no_job(clock, store, monkeypatch):
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    monkeypatch.setattr("routilux.engine.threads.Threads.reserve", lambda threads, steps: 10)
    hosts: list[Worker] = []

    def is_stopped(self):
        self.ctx.sleep(1)  # the other jobs are taken, and no thread is free for them
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


@pytest.mark.parametrize("given_back", [True, False])
def test_a_resume_counts_only_an_unclean_stop(given_back, runtime, store, clock):
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


def test_a_job_that_is_put_aside_keeps_its_kind_of_stop(runtime, store, clock):
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
    assert f"the worker can't resume job {job_id} and skips it for now" in caplog.text
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
    assert f"has changed since job {job_id} was started" in caplog.messages[0]
    assert f"$.{job_id}[1]" in caplog.messages[1]


def test_until_idle_raises_the_error_of_a_job_that_can_not_be_resumed(runtime):
    runtime.submit(chain(a=rest), "a")
    with pytest.raises(FlowMismatchError, match="has changed since job"):
        worker(runtime, chain(a=rest, b=rest)).run(until_idle=True)
