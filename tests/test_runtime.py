"""The runtime: its store, its limits, and the default runtime."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from routilux import (
    DuplicateJobError,
    FakeClock,
    Flow,
    JobState,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
    Routine,
    Runtime,
    use_runtime,
)
from routilux.runtime import default_runtime
from tests.engine.concurrency import no_thread_remains
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
    kinds,
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

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        self._count()
        super().create(job_id, row, owner, flow_id=flow_id, queued=queued)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        self._count()
        super().append(job_id, seq, row, owner, stopped=stopped)

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
    with (
        no_thread_remains(),
        Runtime(clock=FakeClock(), store=store, observers=[watcher]) as runtime,
    ):
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


def test_a_job_that_an_error_has_ended_starts_no_more_steps(monkeypatch):
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    ran: list[str] = []

    def pays(self, n):
        ran.append("a")
        self.ctx.once("charge", int)

    def after(self, n):
        ran.append("b")

    with no_thread_remains(), Runtime(clock=FakeClock(), store=Refuses(3)) as runtime:
        broken = fan(send, workers=2, a=pays, b=after).start("source", runtime=runtime)
        with pytest.raises(OSError, match="disk full at write 3"):
            broken.wait()
    assert ["a"] == ran


def test_the_next_commit_of_a_host_that_is_no_longer_the_owner_is_refused():
    store = MemoryStore()
    flow = storied(None)
    clock = FakeClock(autojump=False)
    with no_thread_remains(), Runtime(clock=clock, store=store) as first:
        run = flow.start("source", job_id="j", runtime=first)
        clock.advance(0)
        with Runtime(clock=FakeClock(clock.now()), store=store) as second:
            taken = flow.resume(second.load("j"), runtime=second)
            clock.advance(100)
            with pytest.raises(LeaseLostError, match="belongs to"):
                run.wait()
            assert JobStatus.COMPLETED is taken.status
            assert taken == second.load("j")
    assert ["start", "effect", "retry"] == kinds(run.job)


def test_an_outdated_copy_of_a_job_can_not_be_resumed():
    store = MemoryStore()
    flow = storied(None)
    with Runtime(clock=FakeClock(), store=store) as runtime:
        job = flow.execute("source", job_id="j", runtime=runtime)
        with pytest.raises(LeaseLostError):
            flow.resume(job.at(3), runtime=runtime)
        assert job == runtime.load("j")


def test_a_poisoned_job_fails_in_the_store_too():
    store = MemoryStore()

    class Crash(BaseException):
        pass

    flow = chain(a=fails(9, Crash))
    with pytest.raises(Crash):
        Runtime(clock=FakeClock(), store=store).execute(flow, "a", job_id="j")
    for _ in range(2):
        host = Runtime(clock=FakeClock(), store=store, max_recoveries=2)
        with pytest.raises(Crash):
            flow.resume(host.load("j"), runtime=host)
    host = Runtime(clock=FakeClock(), store=store, max_recoveries=2)
    job = flow.resume(host.load("j"), runtime=host)
    kind, message = error_of(job)
    assert "PoisonJobError" == kind
    assert "a (task 0, attempt 1)" in message
    assert job == host.load("j")


def test_a_submitted_job_is_pending_until_a_host_resumes_it():
    store = MemoryStore()
    flow = storied(None)
    submitter = Runtime(clock=FakeClock(), store=store)
    job_id = submitter.submit(flow, "source")
    waiting = submitter.load(job_id)
    assert JobStatus.PENDING is waiting.status
    assert ["source"] == [task.routine_id for task in waiting.pending_tasks]
    worker = Runtime(clock=FakeClock("2026-01-02"), store=store)
    done = flow.resume(worker.load(job_id), runtime=worker)
    assert JobStatus.COMPLETED is done.status
    assert 0 == done.recoveries
    with pytest.raises(DuplicateJobError):
        submitter.submit(flow, "source", job_id=job_id)


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


def test_a_second_job_of_the_same_id_is_refused_and_the_first_is_unchanged():
    store = MemoryStore()
    runtime = Runtime(clock=FakeClock(), store=store)
    first = chain(a=rest).execute("a", job_id="j", runtime=runtime)
    for again in (runtime, Runtime(clock=FakeClock("2027-01-01"), store=store)):
        with pytest.raises(DuplicateJobError, match="'j'"):
            chain(a=rest).execute("a", {"n": 1}, job_id="j", runtime=again)
    assert first == runtime.load("j")


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["execute", "start"])
def test_a_job_that_makes_more_attempts_than_max_steps_has_failed(how):
    with Runtime(clock=FakeClock(), max_steps=10) as runtime:
        just = counts(10).execute("a", runtime=runtime)
        over = run_by(how, counts(11), "a", runtime)
    assert JobStatus.COMPLETED is just.status
    kind, message = error_of(over)
    assert 10 == over.routine_states["a"].attempts
    assert "StepLimitError" == kind
    assert "job j made 10 attempts, the runtime's max_steps" in message
    assert [11] == [task.payload["n"] for task in over.pending_tasks]


def test_max_steps_counts_attempts_in_flight():
    with Runtime(clock=FakeClock(), max_steps=3) as runtime:
        flow = fan(send, workers=4, a=Works(fails(5), retrying()), b=rest, c=rest)
        job = flow.execute("source", runtime=runtime)
    assert JobStatus.FAILED is job.status
    assert 3 == sum(state.attempts for state in job.routine_states.values())


def test_a_job_stopped_at_max_steps_can_be_resumed_with_more():
    flow = counts(15)
    job = flow.execute("a", runtime=Runtime(clock=FakeClock(), max_steps=10))
    done = flow.resume(job, retry_failed=True, runtime=Runtime(clock=FakeClock(), max_steps=100))
    assert JobStatus.COMPLETED is done.status
    assert 15 == done.routine_states["a"].completed
    assert done.error is None


@MODES
def test_a_history_limit_bounds_the_commits_that_are_kept(workers):
    longest = 0

    class Measure:
        def on_commit(self, job, commit):
            nonlocal longest
            longest = max(longest, len(job.commits))

    flow = counts(1000)
    flow.execution_strategy = "concurrent" if workers else "sequential"
    with Runtime(clock=FakeClock(), history_limit=10, observers=[Measure()]) as runtime:
        job = flow.execute("a", runtime=runtime)
    assert (1001, 1000) == (job.seq, job.routine_states["a"].completed)
    assert 10 <= len(job.commits) <= longest <= 20
    assert list(range(job.seq - len(job.commits) + 1, job.seq + 1)) == [c.seq for c in job.commits]
    assert job == JobState.deserialize(job.serialize())


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
