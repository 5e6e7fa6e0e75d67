"""Steps in the caller's own thread."""

from __future__ import annotations

import threading

from routilux import FakeClock, JobStatus, Runtime
from routilux.engine.driver import InlineDriver
from tests.engine.concurrency import engine_threads
from tests.routines import Works, chain, fails, retrying, send


def test_a_sequential_flow_runs_in_the_callers_thread_and_starts_no_other():
    seen: list[object] = []

    def looks(self, n=0):
        seen.append((threading.get_ident(), engine_threads() - before))
        self.emit("out", n=n)

    before = engine_threads()
    job = chain(a=looks, b=Works(fails(1), retrying()), c=looks).execute(
        "a", runtime=Runtime(clock=FakeClock())
    )
    assert JobStatus.COMPLETED is job.status
    assert [(threading.get_ident(), set())] * 2 == seen


def test_a_concurrent_flow_with_one_worker_runs_in_the_callers_thread_too():
    seen: list[int] = []

    def looks(self, n=0):
        seen.append(threading.get_ident())

    chain(workers=1, a=send, b=looks).execute("a", runtime=Runtime(clock=FakeClock()))
    assert [threading.get_ident()] == seen


def test_start_takes_one_step_and_next_runs_it():
    ran: list[int] = []

    def looks(self):
        ran.append(1)

    driver = InlineDriver(FakeClock())
    assert driver.room
    flow = chain(a=looks)
    runtime = Runtime(clock=FakeClock())
    drive = runtime._new(flow, "a", None, job_id="j")
    task = drive.machine.next_task()
    assert task is not None
    step = drive.machine.begin(task, drive.now_ns())
    driver.start(drive, step)
    assert not driver.room
    assert [] == ran
    ended = driver.next(None, (), "")
    assert ended is not None
    assert (drive, step) == ended[:2]
    assert driver.room
    assert [1] == ran
