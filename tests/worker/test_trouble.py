"""A host that can't run steps, and handlers that end their host: which job is blamed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    Acquired,
    Commit,
    ErrorInfo,
    FakeClock,
    JobState,
    JobStore,
    MemoryStore,
    Runtime,
    SqliteStore,
    Worker,
)
from routilux.persist.journal import Journal
from tests.engine.concurrency import die_at, last_until, leave, remote
from tests.persist.stores import STORES
from tests.routines import (
    PATIENCE,
    SECOND,
    Watcher,
    chain,
    error_of,
    kinds,
    rest,
    retrying,
    run_by,
)
from tests.soak import sampled


def _no_database() -> None:
    raise OSError("no database")


class Refuses(ThreadPoolExecutor):
    """Refuses every step, as a full or a remote executor may."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        raise RuntimeError("the queue is full")


def processes(size: int = 1) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(size, multiprocessing.get_context("spawn"))


def shut_down() -> Executor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


def shut_down_processes() -> Executor:
    executor = processes()
    executor.shutdown()
    return executor


def broken() -> Executor:
    executor = processes()
    with pytest.raises(BrokenExecutor):
        executor.submit(os._exit, 1).result(PATIENCE)
    return executor


def processes_that_cannot_begin() -> Executor:
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=_no_database)


REFUSED = "a refused submit"
TROUBLES: dict[str, tuple[Callable[[], Executor], str]] = {
    "a thread pool that is shut down": (shut_down, "after shutdown"),
    "a process pool that is shut down": (shut_down_processes, "after shutdown"),
    "a broken process pool": (broken, "not usable anymore"),
    "processes that cannot begin": (processes_that_cannot_begin, "terminated abruptly"),
    "threads that can't begin": (
        lambda: ThreadPoolExecutor(1, initializer=_no_database),
        "initial",
    ),
    REFUSED: (lambda: Refuses(1), "the queue is full"),
}


@pytest.fixture
def store_clock() -> FakeClock:
    """Only the store's: an executor runs steps in real time."""
    return FakeClock()


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, store_clock: FakeClock
) -> Iterator[JobStore]:
    with STORES[request.param](tmp_path, store_clock) as store:
        yield store


def check_uncounted(job: JobState, times: int, reason: str) -> None:
    assert ("running", 0) == (job.status, job.recoveries)
    assert reason in str(job.interruption)
    assert job.interrupted_task is None
    assert [1] == [task.attempt for task in job.pending_tasks]
    assert ["start", *["resumed", "interrupted"] * times][-2 * times :] == kinds(job)[-2 * times :]
    assert {0} == {(c.detail or {}).get("recoveries", 0) for c in job.commits}


@pytest.mark.parametrize(
    ("store", "trouble"),
    sampled(
        itertools.product(STORES, TROUBLES),
        [*(("memory", trouble) for trouble in [*TROUBLES][::2]), ("sqlite", REFUSED)],
    ),
    indirect=["store"],
)
def test_a_worker_raises_the_trouble_of_its_host_and_counts_it_against_no_job(
    trouble, store, store_clock, caplog
):
    make, reason = TROUBLES[trouble]
    flow = chain(a=remote(rest))
    job_id = Runtime(store=store).submit(flow, "a")
    for _ in range(2):
        store_clock.advance(10)
        with (
            make() as executor,
            Runtime(store=store, executor=executor) as runtime,
            pytest.raises((RuntimeError, AttributeError, TypeError), match=reason) as raised,
        ):
            Worker(store, [flow], runtime=runtime, lease=30).run(until_idle=True)
        assert store.holders(job_id)[job_id].clean
        left = store.free_in([flow.flow_id])
        assert left is not None
        assert left > 9 * SECOND, "the worker would take the job again at once"
    check_uncounted(Runtime(store=store).load(job_id, history=True), 2, str(raised.value))
    assert 2 == sum(f"the worker releases job {job_id} and ends: " in m for m in caplog.messages)
    with Runtime(store=store) as well:
        job = flow.resume(well.load(job_id), runtime=well)
    assert ("completed", None) == (job.status, job.interruption)


@pytest.mark.parametrize(
    ("workers", "how", "trouble"),
    sampled(
        itertools.product([None, 2], ["execute", "start"], TROUBLES),
        [
            (None, "execute", "a broken process pool"),
            *((n, how, REFUSED) for n in [None, 2] for how in ["execute", "start"]),
        ],
    ),
)
def test_the_trouble_of_a_host_is_not_counted_without_a_store_either(trouble, how, workers):
    make, reason = TROUBLES[trouble]
    flow, watcher = chain(workers=workers, a=remote(rest)), Watcher()
    runs: list[Callable[[Runtime], object]] = [
        lambda runtime: run_by(how, flow, "a", runtime),
        lambda runtime: flow.resume(watcher.jobs[-1], runtime=runtime),
    ]
    for runs_by in runs:
        with (
            make() as executor,
            Runtime(executor=executor, observers=[watcher], max_recoveries=0) as runtime,
            pytest.raises((RuntimeError, AttributeError, TypeError), match=reason) as raised,
        ):
            runs_by(runtime)
    check_uncounted(watcher.jobs[-1], 1, str(raised.value))
    assert "completed" == flow.resume(watcher.jobs[-1], runtime=Runtime(clock=FakeClock())).status


def test_trouble_that_can_not_be_recorded_is_logged_and_raised(monkeypatch, caplog):
    write = Journal.write

    def fails(journal: Journal, job_id: str, commit: Commit, *args: Any, **options: Any) -> None:
        if commit.kind == "interrupted":
            raise OSError("the disk is full")
        write(journal, job_id, commit, *args, **options)

    monkeypatch.setattr(Journal, "write", fails)
    with (
        Refuses(1) as executor,
        Runtime(executor=executor, store=MemoryStore()) as runtime,
        pytest.raises(RuntimeError, match="the queue is full"),
    ):
        chain(a=rest).execute("a", job_id="j", runtime=runtime)
    assert ["job j: what ended its run is not recorded: the disk is full"] == caplog.messages


@pytest.mark.parametrize("lost", ["the loop", "a step"])
def test_a_worker_without_a_thread_counts_nothing_against_its_job(lost, monkeypatch):
    flow, store = chain(a=rest), MemoryStore(FakeClock())
    start = threading.Thread.start

    def refuses(thread: threading.Thread) -> None:
        if thread.name.startswith("routilux") and (thread.name == "routilux-loop") is (
            lost == "the loop"
        ):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Runtime(store=store) as runtime:
        job_id = runtime.submit(flow, "a")
        host = Worker(store, [flow], runtime=runtime)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuses)
            with pytest.raises(RuntimeError, match="new thread"):
                host.run()
        check_uncounted(runtime.load(job_id), 1, "can't start new thread")
        assert store.holders(job_id)[job_id].clean
        assert (store.free_in([flow.flow_id]) or 0) > 5 * SECOND


# --- a handler that ends its host ---------------------------------------------------------------


def test_only_the_job_that_kills_its_process_is_poisoned_and_its_error_says_how(tmp_path):
    flows = [chain(a=remote(body)) for body in (last_until, die_at)]
    died = {"n": str(tmp_path / "died")}
    flows[1].flow_id = "killer"
    names = ["innocent 0", "innocent 1"]
    restarts = 0
    with SqliteStore(tmp_path / "jobs.db") as store:
        submitter = Runtime(store=store)
        for name in (names[0], "killer", names[1]):
            submitter.submit(flows[name == "killer"], "a", died, job_id=name)
        while restarts < 9:
            with (
                processes(2) as executor,
                Runtime(store=store, executor=executor, max_recoveries=1) as runtime,
            ):
                try:
                    Worker(store, flows, runtime=runtime, lease=4).run(until_idle=True)
                    break
                except BrokenExecutor:
                    restarts += 1
        for name in names:
            assert "completed" == submitter.load(name).status, submitter.load(name).error
        job = submitter.load("killer", history=True)
    kind, message = error_of(job)
    assert "PoisonJobError" == kind
    assert "a (task 0, attempt 1)" in message
    assert "what ended the runs: 2 times: concurrent.futures.process.BrokenProcessPool" in message
    assert 2 == restarts
    assert 2 == sum(commit.kind == "interrupted" for commit in job.commits)


RAISED: dict[str, tuple[Callable[[], None], str]] = {
    "SystemExit": (lambda: sys.exit("no licence"), "SystemExit: no licence"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt"),
    "GeneratorExit": (lambda: _raise(GeneratorExit("x")), "GeneratorExit: x"),
    "a BaseException": (lambda: _raise(Ends("all")), "Ends: all"),
    "a group with one": (
        lambda: _raise(BaseExceptionGroup("2", [ValueError("v"), SystemExit("s")])),
        "SystemExit: s",
    ),
}


class Ends(BaseException):
    pass


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_a_handler_raised_is_recorded_before_it_propagates(raised, workers, how, is_async):
    raises, text = RAISED[raised]

    def body(self, n=0):
        raises()

    async def abody(self, n=0):
        raises()

    watcher, flow = Watcher(), chain(workers=workers, a=abody if is_async else body)
    flow.set_error_handler(retrying(max_retries=9))
    with (
        Runtime(clock=FakeClock(), observers=[watcher]) as runtime,
        pytest.raises((BaseException,)) as propagated,
    ):
        run_by(how, flow, "a", runtime)
    assert text in f"{type(propagated.value).__name__}: {ErrorInfo.of(propagated.value).text}"
    job = watcher.jobs[-1]
    assert (["start", "interrupted"], "running") == (kinds(job), job.status)
    assert job.interruption is not None
    assert text in str(job.interruption)
    assert __file__ in str(job.interruption.where)
    assert [("0", 1)] == [(task.task_id, task.attempt) for task in job.pending_tasks]
    assert "0" == job.interrupted_task
    assert JobState.deserialize(job.serialize()) == job


@pytest.mark.parametrize("raised", RAISED)
def test_the_error_of_a_poisoned_job_names_what_its_handler_raised_each_time(raised, store):
    raises, text = RAISED[raised]

    def body(self, n=0):
        raises()

    flow = chain(a=body)
    with Runtime(store=store) as runtime:
        job_id = runtime.submit(flow, "a")
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        kind, message = error_of(runtime.load(job_id))
    assert "PoisonJobError" == kind
    assert "4 times: " in message
    assert text in message
    assert __file__ in message
    assert "process" not in message


def test_a_process_of_an_executor_tells_what_its_handler_raised():
    watcher, flow = Watcher(), chain(a=remote(leave))
    with (
        processes() as executor,
        Runtime(executor=executor, observers=[watcher]) as runtime,
        pytest.raises(SystemExit),
    ):
        flow.execute("a", runtime=runtime)
    text = str(watcher.jobs[-1].interruption)
    assert re.search(r"no licence\nraised in another process at .*concurrency\.py:\d+$", text)


def test_the_runs_of_a_poisoned_job_that_ended_in_different_ways_are_listed():
    flow = chain(a=lambda self: _raise(SystemExit(self.ctx.now().second)))
    clock, store = FakeClock(), MemoryStore()
    with Runtime(clock=clock, store=store, max_recoveries=2) as runtime:
        with pytest.raises(SystemExit):
            flow.execute("a", job_id="j", runtime=runtime)
        for _ in range(2):
            clock.advance(1)
            with pytest.raises(SystemExit):
                flow.resume(runtime.load("j"), runtime=runtime)
        job = flow.resume(runtime.load("j"), runtime=runtime)
    message = error_of(job)[1]
    assert "recovered 2 times" in message
    assert [f"SystemExit: {n} " for n in range(3)] == re.findall(r"SystemExit: \d ", message)


@pytest.mark.parametrize("suspects", [1, 2])
def test_a_job_on_its_last_recovery_runs_alone(suspects):
    clock = FakeClock()
    store, spans = MemoryStore(clock), dict[str, tuple[float, float]]()

    def body(self, n=0):
        began = clock.monotonic_ns()
        self.ctx.sleep(5)
        spans[self.ctx.job_id] = began, clock.monotonic_ns()
        self.emit("out", n=n)

    flow = chain(a=body, b=rest)
    with Runtime(clock=clock, store=store, max_recoveries=1) as runtime:
        names = [f"suspect {n}" for n in range(suspects)]
        for name in names:
            runtime.submit(flow, "a", job_id=name)
            dead = Runtime(clock=clock, store=store)
            store.acquire(dead.owner, [flow.flow_id], SECOND)
            dead.resume_acquired({flow.flow_id: [flow]}, [Acquired(name, clean=True)], 10**18)
        names += [f"other {n}" for n in range(3)]
        for name in names[suspects:]:
            runtime.submit(flow, "a", job_id=name)
        clock.advance(1)  # the leases of the dead hosts end
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert {"completed"} == {runtime.load(name).status.value for name in names}
    for name in names[:suspects]:
        began, ended = spans.pop(name)
        meanwhile = [other for other, (a, b) in spans.items() if a < ended and began < b]
        assert [] == meanwhile, f"{meanwhile} ran while {name} did"
