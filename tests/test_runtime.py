"""The runtime: its store, its limits, and the default runtime."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    DuplicateJobError,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobState,
    JobStatus,
    JobStore,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
    Routine,
    Runtime,
    SavedState,
    Worker,
    use_runtime,
)
from routilux.clocks.durations import to_ns
from routilux.runtime import default_runtime
from tests.engine.concurrency import no_thread_remains
from tests.persist.stores import STORES, at
from tests.routines import (
    MODES,
    PATIENCE,
    Watcher,
    Works,
    chain,
    counts,
    error_of,
    fails,
    fan,
    rest,
    retrying,
    run_by,
    send,
)

# --- the store ------------------------------------------------------------------------------------


class Refuses(MemoryStore):
    """A store that refuses its n-th write, once or from then on."""

    def __init__(self, n: int, *, for_ever: bool = True) -> None:
        super().__init__()
        self.n, self.for_ever, self.writes = n, for_ever, 0

    def create(self, job_id: str, row: bytes, owner: str, **options: Any) -> None:
        self._count()
        super().create(job_id, row, owner, **options)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._count()
        super().append(job_id, seq, row, owner, status=status)

    def _count(self) -> None:
        self.writes += 1
        if self.writes == self.n or (self.for_ever and self.writes > self.n):
            raise OSError(f"disk full at write {self.writes}")


def storied(workers: int | None) -> Flow:
    """A flow with an effect, a retry and a fan-out: start, effect, retry, done, done, done."""

    def pays(self: Routine) -> None:
        self.ctx.once("charge", int)
        if self.ctx.attempt == 1:
            raise ValueError
        self.emit("out", n=1)

    def writes(self: Routine, n: int) -> None:
        self.ctx.sleep(1)
        self.ctx.shared["n"] = n

    return fan(Works(pays, retrying()), workers=workers, a=writes, b=writes)


@MODES
def test_with_a_store_memory_and_store_are_equal_after_every_commit(workers):
    class Compares:
        def on_commit(self, job, commit):
            assert runtime.load("j") == job

    store = MemoryStore()
    with Runtime(clock=FakeClock(), store=store, observers=[Compares()]) as runtime:
        job = storied(workers).execute("source", job_id="j", runtime=runtime)
    assert [] == runtime.observer_failures
    assert 6 == job.seq == len(store.rows("j"))
    assert ["j"] == store.job_ids()


@pytest.mark.parametrize("for_ever", [True, False], ids=["for ever", "once"])
@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("how", ["inline", "pool", "background"])
def test_a_store_that_refuses_leaves_the_job_as_of_its_last_commit(how, n, for_ever):
    watcher = Watcher()
    jobs = watcher.jobs
    store = Refuses(n, for_ever=for_ever)
    flow = storied(2 if how == "pool" else None)
    host = Runtime(clock=FakeClock(), store=store, observers=[watcher])
    with no_thread_remains(), host as runtime:
        with pytest.raises(OSError, match=f"disk full at write {n}"):
            run_by(how, flow, "source", runtime)
        assert n - 1 == len(store.rows("j"))
        assert n - 1 == len(jobs), "observers heard of a commit that was not accepted"
        if jobs:
            assert runtime.load("j") == jobs[-1]
    if jobs and jobs[-1].status is JobStatus.RUNNING:
        store.n = 0
        store.for_ever = False
        with Runtime(clock=FakeClock(), store=store) as other:
            done = flow.resume(other.load("j"), runtime=other)
            assert JobStatus.COMPLETED is done.status
            assert {"n": 1} == done.shared_data
            assert done == other.load("j")


@pytest.mark.parametrize("how", ["pool", "background"])
def test_a_refused_effect_is_raised_in_the_caller_while_its_handler_runs(how):
    raised = threading.Event()
    ends: list[bool] = []

    def hangs(self):
        with suppress(OSError):
            self.ctx.once("charge", int)
        ends.append(raised.wait(PATIENCE))

    with no_thread_remains(), Runtime(store=Refuses(2)) as runtime:
        with pytest.raises(OSError, match="disk full at write 2"):
            run_by(how, fan(hangs, workers=2), "source", runtime)
        raised.set()
    assert [True] == ends


def test_a_run_that_an_error_has_ended_starts_no_more_steps_and_can_not_be_cancelled(monkeypatch):
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    ran: list[str] = []

    def pays(self, n):
        ran.append(self.ctx.task_id)
        self.ctx.once("charge", int)

    with no_thread_remains(), Runtime(clock=FakeClock(), store=Refuses(3)) as runtime:
        broken = fan(send, workers=2, a=pays, b=pays).start("source", runtime=runtime)
        for _ in range(2):
            with pytest.raises(OSError, match="disk full at write 3"):
                broken.wait()
        message = r"an error ended the run of job .* \(OSError: disk full at write 3\)"
        with pytest.raises(NotResumableError, match=message):
            broken.cancel()
    assert ["0.0"] == ran


def test_an_outdated_copy_of_a_job_can_not_be_resumed():
    flow = storied(None)
    with Runtime(clock=FakeClock(), store=MemoryStore()) as runtime:
        job = flow.execute("source", job_id="j", runtime=runtime)
        with pytest.raises(LeaseLostError):
            flow.resume(job.at(3), runtime=runtime)
        assert job == runtime.load("j")


def test_a_job_that_the_store_does_not_hold_can_be_neither_loaded_nor_claimed():
    flow = storied(None)
    job = Runtime(clock=FakeClock()).execute(flow, "source").at(3)
    runtime = Runtime(clock=FakeClock(), store=MemoryStore())
    with pytest.raises(KeyError, match="holds no job 'nobody'"):
        runtime.load("nobody")
    with pytest.raises(KeyError):
        Runtime().load("nobody")
    with pytest.raises(NotResumableError, match="the store holds no job"):
        flow.resume(job, runtime=runtime)


@pytest.mark.parametrize("delay", [90, 0.25, timedelta(minutes=5)])
@pytest.mark.parametrize("kind", STORES)
def test_a_job_that_was_submitted_with_a_delay_starts_when_it_has_passed_by_the_stores_time(
    kind, delay, tmp_path
):
    clock, ahead = FakeClock(), FakeClock("2026-01-01T05:00")
    with (
        STORES[kind](tmp_path, clock) as store,
        Runtime(clock=ahead, store=store) as submitter,
        Runtime(clock=clock, store=store) as runtime,
    ):
        began, ran = clock.now_ns(), []
        flow = chain(a=lambda self: ran.append((self.ctx.job_id, clock.now_ns() - began)))
        submitter.submit(flow, "a", job_id="later", delay=delay)
        runtime.submit(flow, "a", job_id="now", delay=0)
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert [("now", 0), ("later", to_ns(delay))] == ran


@pytest.mark.parametrize(
    "delay", [-1, float("inf"), float("nan"), "5", None, True, 10**10, timedelta(-1)]
)
def test_a_delay_that_no_store_can_keep_is_refused_and_nothing_is_stored(delay):
    store = MemoryStore()
    with pytest.raises(FlowDefinitionError, match="delay must be 0 s or more and at most 100 y"):
        Runtime(store=store).submit(chain(a=rest), "a", delay=delay)
    assert [] == store.job_ids()


@pytest.mark.parametrize("way", ["execute", "submit"])
def test_a_second_job_of_the_same_id_is_refused_and_the_first_is_unchanged(way):
    store, flow = MemoryStore(), chain(a=rest)
    runtime = Runtime(clock=FakeClock(), store=store)
    first = flow.execute("a", job_id="j", runtime=runtime)
    for host in (runtime, Runtime(clock=FakeClock("2027-01-01"), store=store)):
        with pytest.raises(DuplicateJobError, match="'j'"):
            getattr(host, way)(flow, "a", {"n": 1}, job_id="j")
    assert first == runtime.load("j")


@pytest.mark.parametrize("way", ["start", "resume"])
def test_a_job_that_another_thread_has_only_just_begun_is_refused(way):
    flow, runtime = storied(None), Runtime(clock=FakeClock())
    if way == "start":
        begun = runtime._new(flow, "source", None, job_id="j")
        with pytest.raises(DuplicateJobError, match="'j' is running in this runtime"):
            flow.execute("source", job_id="j", runtime=runtime)
    else:
        job = flow.execute("source", job_id="j", runtime=runtime).at(3)
        begun = runtime.resumed(flow, job)
        with pytest.raises(NotResumableError, match="already running in this runtime"):
            flow.resume(job, runtime=runtime)
    job = begun.snapshot()
    del begun  # as if an interrupt had kept that thread from running it
    assert JobStatus.COMPLETED is flow.resume(job, runtime=runtime).status


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["execute", "start"])
def test_a_job_that_makes_max_steps_attempts_has_failed_and_a_higher_limit_resumes_it(how):
    with Runtime(clock=FakeClock(), max_steps=10) as runtime:
        assert "completed" == counts(10).execute("a", runtime=runtime).status
        flow = counts(11)
        job = run_by(how, flow, "a", runtime)
    kind, message = error_of(job)
    assert "StepLimitError" == kind
    assert "job j made 10 attempts, the runtime's max_steps" in message
    assert [11] == [task.payload["n"] for task in job.pending_tasks]
    more = Runtime(clock=FakeClock(), max_steps=11)
    assert "completed" == flow.resume(job, retry_failed=True, runtime=more).status


def test_max_steps_counts_attempts_in_flight():
    with Runtime(clock=FakeClock(), max_steps=3) as runtime:
        flow = fan(send, workers=4, a=Works(fails(5), retrying()), b=rest, c=rest)
        job = flow.execute("source", runtime=runtime)
    assert JobStatus.FAILED is job.status
    assert 3 == sum(state.attempts for state in job.routine_states.values())


def test_a_history_limit_bounds_the_commits_that_are_kept():
    watcher = Watcher()
    with Runtime(clock=FakeClock(), history_limit=10, observers=[watcher]) as runtime:
        job = counts(100).execute("a", runtime=runtime)
    assert (101, 100) == (job.seq, job.routine_states["a"].completed)
    assert 10 <= len(job.commits) <= max(len(seen.commits) for seen in watcher.jobs) <= 20


# --- which runtime --------------------------------------------------------------------------------


def test_the_default_is_the_runtime_of_the_innermost_use():
    plain = default_runtime()
    assert plain is default_runtime()
    with use_runtime(Runtime()) as outer:
        with use_runtime(Runtime()) as inner:
            assert default_runtime() is inner
        assert default_runtime() is outer
    assert default_runtime() is plain


def test_a_runtime_argument_comes_before_the_default():
    with use_runtime(Runtime(clock=FakeClock("2001-01-01"))):
        job = chain(a=rest).execute("a", runtime=Runtime(clock=FakeClock("2002-01-01")))
    assert 2002 == job.commits[0].finished_at.year


# --- one id, one job ------------------------------------------------------------------------------

WAYS_TO_START = ("execute", "start", "aexecute")


@pytest.mark.parametrize("first", WAYS_TO_START)
@pytest.mark.parametrize("second", WAYS_TO_START)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("fails_first", [False, True])
def test_a_job_id_is_one_job_with_or_without_a_store(first, second, stored, fails_first):
    keys: list[str] = []

    def body(self, n=0):
        keys.append(self.ctx.idempotency_key)
        if fails_first:
            raise ValueError

    clock = FakeClock()
    store = MemoryStore(clock) if stored else None
    with Runtime(clock=clock, store=store) as runtime:
        job = run_by(first, chain(a=body), "a", runtime)
        with pytest.raises(DuplicateJobError, match="'j'"):
            run_by(second, chain(a=body), "a", runtime)
        assert ["j/0"] == keys
        if fails_first:
            chain(a=body).resume(job, retry_failed=True, runtime=runtime)
        assert "j/0" == keys[-1]
        other = Runtime(clock=clock)
        assert job.status == run_by(second, chain(a=body), "a", other).status


def test_the_id_of_a_resumed_job_is_known_and_that_of_a_refused_job_is_not():
    flow = chain(a=rest)
    with Runtime(clock=FakeClock()) as runtime:
        with pytest.raises(FlowDefinitionError):
            flow.execute("a", {"unknown": 1}, job_id="j", runtime=runtime)
        job = flow.execute("a", job_id="j", runtime=runtime)
    paused = JobState.deserialize(job.at(1).serialize())
    with Runtime(clock=FakeClock()) as runtime:
        for _ in range(2):
            assert "completed" == flow.resume(paused, runtime=runtime).status
        with pytest.raises(DuplicateJobError, match="already started in this runtime"):
            flow.execute("a", job_id="j", runtime=runtime)


# --- jobs of a store ------------------------------------------------------------------------------


def failed_in(store: JobStore, clock: FakeClock) -> tuple[Flow, list[str]]:
    """A flow whose job `j` has failed in the store, and the calls that its handler makes."""
    calls: list[str] = []

    def body(self: Routine) -> None:
        calls.append("charge")
        raise ValueError

    flow = chain(a=body)
    with Runtime(clock=clock, store=store) as runtime:
        flow.execute("a", job_id="j", runtime=runtime)
    return flow, calls


GIVEN: dict[str, Callable[[Runtime, JobState], JobState]] = {
    "loaded": lambda runtime, job: runtime.load("j"),
    "with history": lambda runtime, job: runtime.load("j", history=True),
    "copied": lambda runtime, job: runtime.load("j").copy(),
    "deep-copied": lambda runtime, job: copy.deepcopy(runtime.load("j")),
    "captured": lambda runtime, job: SavedState.capture(Flow(), runtime.load("j")).job,
    "resumed": lambda runtime, job: job,
}
OTHERS: dict[str, Callable[[], Runtime | None]] = {
    "the default runtime": lambda: None,
    "no store": Runtime,
    "another store": lambda: Runtime(store=MemoryStore()),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", STORES)
def test_a_job_of_a_store_is_resumed_only_by_a_runtime_with_its_store(kind, given, other, tmp_path):
    clock = FakeClock()
    with STORES[kind](tmp_path, clock) as store:
        flow, calls = failed_in(store, clock)
        runtime = Runtime(clock=clock, store=store)
        ended = flow.resume(runtime.load("j"), runtime=runtime, retry_failed=True)
        job = GIVEN[given](runtime, ended)
        has = "another one" if other == "another store" else "no store"
        with pytest.raises(NotResumableError) as refused:
            flow.resume(job, runtime=OTHERS[other](), retry_failed=True)
        assert (
            f"job j is kept in a store, and this runtime has {has}; resume the job by a runtime"
            " with its store: runtime.resume(flow, runtime.load('j'))"
        ) == str(refused.value)
        assert 2 == len(calls), "a refused resumption has called the handler"
        flow.resume(job, runtime=Runtime(clock=clock, store=store), retry_failed=True)
        assert 3 == len(calls)


def test_another_store_with_the_same_file_or_database_open_may_resume_the_job(where):
    clock = FakeClock()
    with at(where, clock) as store, at(where, clock) as again:
        flow, calls = failed_in(store, clock)
        job = Runtime(clock=clock, store=store).load("j")
        flow.resume(job, runtime=Runtime(clock=clock, store=again), retry_failed=True)
    assert 2 == len(calls)


@pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
def test_a_job_that_a_runtime_with_a_store_has_run_is_resumed_only_there(how):
    flow = chain(a=fails(1))
    with Runtime(clock=FakeClock(), store=MemoryStore()) as runtime:
        job = run_by(how, flow, "a", runtime)
        with pytest.raises(NotResumableError, match="is kept in a store"):
            flow.resume(job, retry_failed=True)
        assert "completed" == flow.resume(job, runtime=runtime, retry_failed=True).status


FREE: dict[str, Callable[[JobState, Path], JobState]] = {
    "deserialized": lambda job, path: JobState.deserialize(job.serialize()),
    "unpickled": lambda job, path: pickle.loads(pickle.dumps(job)),
    "at a commit": lambda job, path: job.at(job.seq),
    "read from a file": lambda job, path: read_back(job, path),
}


def read_back(job: JobState, path: Path) -> JobState:
    SavedState.capture(Flow(), job).write(path / "job.json")
    return SavedState.read(path / "job.json").job


@pytest.mark.parametrize("form", FREE)
def test_a_job_of_a_saved_form_may_be_resumed_without_its_store(form, tmp_path):
    store, clock = MemoryStore(), FakeClock()
    flow, calls = failed_in(store, clock)
    job = FREE[form](Runtime(store=store).load("j", history=True), tmp_path)
    assert "failed" == flow.resume(job, runtime=Runtime(clock=clock), retry_failed=True).status
    assert 2 == len(calls)
