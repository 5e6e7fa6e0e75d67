"""The threads of a runtime: when they start, are used again, and end."""

from __future__ import annotations

import gc
import threading
import weakref
from itertools import count

import pytest

from routilux import FakeClock, JobStatus, MemoryStore, Routine, Runtime, Worker
from routilux.engine.drive import Drive
from tests.engine.concurrency import engine_threads, no_thread_remains
from tests.routines import (
    PATIENCE,
    SECOND,
    Works,
    chain,
    ended_at,
    fails,
    fan,
    rest,
    retrying,
    send,
    sleeps,
)


@pytest.mark.parametrize("workers", [None, 1], ids=["sequential", "one worker"])
def test_without_a_second_worker_a_flow_runs_in_the_callers_thread(workers):
    seen: list[object] = []

    def looks(self, n=0):
        seen.append((threading.get_ident(), engine_threads() - before))
        self.emit("out", n=n)

    before = engine_threads()
    flow = chain(workers=workers, a=looks, b=Works(fails(1), retrying()), c=looks)
    flow.execute("a", runtime=Runtime(clock=FakeClock())).raise_for_status()
    assert [(threading.get_ident(), set())] * 2 == seen


def test_after_close_no_thread_remains_and_the_runtime_still_works():
    with no_thread_remains():
        runtime = Runtime(clock=FakeClock())
        for _ in range(3):
            fan(send, workers=3, a=rest, b=rest).execute("source", runtime=runtime)
        runs = [chain(a=rest).start("a", runtime=runtime) for _ in range(3)]
        runtime.close()
        assert [JobStatus.COMPLETED] * 3 == [run.wait().status for run in runs]
        again = fan(send, workers=3, a=rest).execute("source", runtime=runtime)
        assert JobStatus.COMPLETED is again.status


async def arest(self: Routine, n: object = 0) -> None:
    pass


@pytest.mark.parametrize(
    ("nth", "body"),
    [(1, rest), (2, rest), (2, arest)],
    ids=["for the loop", "for a step", "for async handlers"],
)
def test_a_job_without_a_thread_raises_and_the_next_one_runs(nth, body, monkeypatch):
    start = threading.Thread.start
    numbers = count(1)

    def starts(self):
        if next(numbers) == nth:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", starts)
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    with Runtime() as runtime:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            chain(a=body).start("a", runtime=runtime).wait(PATIENCE)
        for _ in range(3):
            job = chain(a=body).start("a", runtime=runtime).wait(PATIENCE)
            assert JobStatus.COMPLETED is job.status


LATER = 10**18  # nanoseconds


@pytest.mark.parametrize("by", ["start", "a worker"])
def test_after_a_first_job_that_stops_at_once_the_next_ones_run(by, monkeypatch):
    start, known = threading.Thread.start, []

    def starts(self):
        known.append(runtime.threads.background is not None)
        start(self)

    store, flow = MemoryStore(), chain(a=rest)
    with Runtime(store=store, max_recoveries=0) as runtime:
        poisoned = runtime.submit(flow, "a")
        dead = Runtime(store=store)
        dead.resume_acquired({"tale": [flow]}, store.acquire(dead.owner, ["tale"], 1), LATER)
        if by == "start":
            [job] = store.acquire(runtime.owner, ["tale"], 60 * SECOND)
            [drive] = runtime.resume_acquired({"tale": [flow]}, [job], LATER)
            assert isinstance(drive, Drive)
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", starts)
                runtime.threads.drive_in_background(drive)
            assert [True] == known, "the thread may end before its loop is known as the loop"
            last = flow.start("a", runtime=runtime).wait(PATIENCE).job_id
        else:
            last = runtime.submit(flow, "a")
            host = Worker(store, [flow], runtime=runtime)
            thread = threading.Thread(target=host.run, kwargs={"until_idle": True}, daemon=True)
            thread.start()
            thread.join(PATIENCE)
        statuses = [runtime.load(job_id).status for job_id in (poisoned, last)]
        assert [JobStatus.FAILED, JobStatus.COMPLETED] == statuses


def test_threads_are_daemons_started_when_needed_and_used_again():
    before = engine_threads()
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        flow = fan(send, workers=50, a=sleeps(1), b=sleeps(1), c=sleeps(1))
        flow.execute("source", runtime=runtime)
        first = engine_threads() - before
        for _ in range(20):
            flow.execute("source", runtime=runtime)
        assert first == engine_threads() - before
        assert (3, {True}) == (len(first), {thread.daemon for thread in first})


def test_a_collected_runtime_leaves_no_thread_behind():
    with no_thread_remains():
        runtime = Runtime(clock=FakeClock())
        fan(send, workers=3, a=rest, b=rest).execute("source", runtime=runtime)
        del runtime
        gc.collect()


def test_a_runtime_keeps_no_payload_of_a_job_that_has_stopped():
    class Payload:
        pass

    seen: list[weakref.ref[Payload]] = []

    def emits(self):
        payload = Payload()
        seen.append(weakref.ref(payload))
        self.emit("out", n=payload)

    def takes(self, n):
        seen.append(weakref.ref(n))

    before = engine_threads()
    with Runtime(clock=FakeClock()) as runtime:
        run = chain(workers=2, a=emits, b=takes).start("a", runtime=runtime)
        assert JobStatus.COMPLETED is run.wait().status
        for thread in engine_threads() - before:
            if thread.name == "routilux-loop":
                thread.join(PATIENCE)
        del run
        gc.collect()
        assert [None, None] == [ref() for ref in seen]


def test_a_wait_for_a_finished_job_takes_no_virtual_time():
    with Runtime(clock=FakeClock()) as runtime:
        run = chain(a=send, b=rest).start("a", runtime=runtime)
        assert 0 == ended_at(run.wait(timeout=0.000001))


def test_a_step_that_waits_for_a_thread_starts_when_the_runtime_gets_more():
    clock = FakeClock()
    with Runtime(clock=clock) as runtime:
        runtime.threads._size = 1
        runs = [chain(a=sleeps(10)).start("a", runtime=runtime) for _ in range(2)]
        clock.advance(1)
        runtime.threads.reserve(2)
        assert [10, 11] == [ended_at(run.wait()) for run in runs]


def test_the_threads_of_a_runtime_whose_jobs_were_ended_end_too():
    error = RuntimeError("the test has ended")
    with no_thread_remains():
        runtime = Runtime()
        chain(a=rest).start("a", runtime=runtime).wait(PATIENCE)
        fan(send, workers=2, a=rest).execute("source", runtime=runtime)  # leaves a spare pool
        runtime.threads.end(error)
