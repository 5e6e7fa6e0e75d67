"""SIGTERM and SIGINT end a worker of the main thread; a child that it forks gets no handlers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from routilux import JobStatus, Runtime, SqliteStore
from tests.routines import PATIENCE, chain, rest
from tests.worker.jobs import worker

BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def runtime(tmp_path) -> Iterator[Runtime]:
    """A runtime on a real store, in real time."""
    with SqliteStore(tmp_path / "jobs.db") as store, Runtime(store=store) as made:
        yield made


@pytest.fixture(autouse=True)
def _same_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in BOTH]
    yield
    assert before == [signal.getsignal(number) for number in BOTH], "they were not put back"


def runs(host, *, interrupted: bool) -> None:
    """Run a worker, which raises KeyboardInterrupt if and only if it was interrupted."""
    try:
        host.run()
    except KeyboardInterrupt:
        assert interrupted
    else:
        assert not interrupted


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_lets_the_step_end_and_gives_the_job_back_clean(number, runtime, caplog):
    caplog.set_level("INFO", "routilux")

    def signals(self):
        os.kill(os.getpid(), number)
        while line not in caplog.messages:  # the worker logs it while this step is in flight
            os.sched_yield()
        self.emit("out", n=1)

    line = (
        f"{number.name}: the worker takes no more jobs, and waits for 1 step in flight; a second"
        " signal does not wait"
    )
    flow = chain(a=signals, b=rest)
    job_id = runtime.submit(flow, "a")
    runs(worker(runtime, flow), interrupted=number == signal.SIGINT)
    job = runtime.load(job_id)
    assert "done" == job.commits[2].kind
    if job.status is JobStatus.RUNNING:
        hold = runtime.store.holders(job_id)[job_id]
        assert (None, True, 0) == (hold.owner, hold.clean, hold.free_in_ns)
    worker(runtime, flow).run(until_idle=True)
    assert JobStatus.COMPLETED is runtime.load(job_id).status


@pytest.mark.parametrize("number", BOTH)
def test_a_second_signal_ends_the_worker_while_its_step_still_runs(number, runtime, caplog):
    go_on, refused = threading.Event(), threading.Event()

    def hangs(self):
        os.kill(os.getpid(), signal.SIGTERM)
        while not host._signals:  # the system may make one of two signals at once
            os.sched_yield()
        os.kill(os.getpid(), number)
        go_on.wait(PATIENCE)
        try:
            self.ctx.once("late", rest)
        except Exception:
            refused.set()

    flow = chain(a=hangs)
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow)
    runs(host, interrupted=number == signal.SIGINT)
    hold = runtime.store.holders(job_id)[job_id]
    assert (None, False, 0) == (hold.owner, hold.clean, hold.free_in_ns)
    assert f"the worker releases job {job_id} with steps in flight" in caplog.text
    go_on.set()
    assert refused.wait(PATIENCE), "the step that was given up went on"
    assert ["start", "resumed"] == [commit.kind for commit in runtime.load(job_id).commits]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_wakes_an_idle_worker_at_once(number, runtime, monkeypatch):
    monkeypatch.setattr("routilux.worker.worker.POLL", 3600)
    host = worker(runtime, chain(a=rest), lease=3 * 3600)
    free_in = runtime.store.free_in

    def signals(flow_ids):
        found = free_in(flow_ids)
        threading.Thread(target=os.kill, args=(os.getpid(), number)).start()
        return found

    runtime.store.free_in = signals
    runs(host, interrupted=number == signal.SIGINT)


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_a_sigint_that_the_program_ignores_or_handles_is_left_to_it(own, runtime):
    flow = chain(a=lambda self: os.kill(os.getpid(), signal.SIGINT))
    job_id = runtime.submit(flow, "a")
    host = worker(runtime, flow)
    before = signal.signal(signal.SIGINT, own)
    try:
        host.run(until_idle=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert JobStatus.COMPLETED is runtime.load(job_id).status


def test_a_worker_can_run_again_after_a_signal(runtime):
    flow = chain(a=lambda self: os.kill(os.getpid(), signal.SIGINT))
    host = worker(runtime, flow)
    for _ in range(2):
        runtime.submit(flow, "a")
        runs(host, interrupted=True)


# --- a forked child -------------------------------------------------------------------------------

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@forks
@pytest.mark.parametrize("number", BOTH)
def test_a_child_that_a_handler_forks_is_ended_by_a_signal(number, runtime):
    ended: list[int] = []

    def forks(self):
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            try:
                signal.alarm(int(PATIENCE))
                os.write(writes, b".")
                while True:
                    signal.pause()
            except KeyboardInterrupt:
                os._exit(7)
            finally:
                os._exit(1)
        if number == signal.SIGINT:  # Python itself ignores one that comes during the fork
            os.read(reads, 1)
        os.kill(child, number)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.close(reads)
        os.close(writes)

    flow = chain(a=forks)
    runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    assert [7 if number == signal.SIGINT else -signal.SIGTERM] == ended


@forks
def test_a_child_that_returns_from_the_handler_ends(runtime):
    ended: list[int] = []

    def forks(self):
        child = os.fork()
        if not child:
            signal.alarm(int(PATIENCE))
            raise ValueError("in the child")
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    flow = chain(a=forks)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    assert [1] == ended
    assert JobStatus.COMPLETED is runtime.load(job_id).status


@forks
@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_a_process_pool_in_a_handler_ends(kind, runtime):
    fork = multiprocessing.get_context("fork")
    done: list[int] = []

    def pools(self):
        if kind == "executor":
            with ProcessPoolExecutor(1, mp_context=fork) as executor:
                done.append(executor.submit(abs, -3).result())
        else:
            with fork.Pool(1) as pool:  # which ends its processes by SIGTERM
                done.append(pool.apply(abs, (-3,)))
            pool.join()

    flow = chain(a=pools)
    job_id = runtime.submit(flow, "a")
    worker(runtime, flow).run(until_idle=True)
    assert JobStatus.COMPLETED is runtime.load(job_id).status
    assert [3] == done
