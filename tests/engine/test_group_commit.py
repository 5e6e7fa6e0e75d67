"""Steps of several jobs that end at the same time are committed by one write of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from routilux import (
    Append,
    CommitKind,
    Flow,
    JobState,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    Routine,
    Run,
    Runtime,
)
from routilux.engine.pool import PoolDriver
from tests.routines import PATIENCE, Body, chain, fan, kinds, send

JOBS = 8


def counting(what: Body) -> Flow:
    """A flow of two steps: the first emits a value, the second keeps it."""

    def emits(self: Routine) -> None:
        self.emit("out", n=what(self))

    return chain(a=emits, b=keeps)


def keeps(self: Routine, n: object) -> None:
    self.ctx.shared["value"] = n


class NotedStore(MemoryStore):
    """Notes which jobs have shared a write."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[str]] = []

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        self.groups.append([added.job_id for added in appends])
        return super().append_all(appends)


Together = Callable[[Runtime, dict[str, Run]], None]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    """Starts jobs, puts their handles into a dict, and lets their first steps end together."""
    over = threading.Semaphore(0)
    end = PoolDriver._end

    def ends(self: PoolDriver, *what: object) -> None:
        end(self, *what)
        over.release()

    monkeypatch.setattr(PoolDriver, "_end", ends)
    begun = threading.Barrier(JOBS + 1)

    def what(routine: Routine) -> object:
        begun.wait(PATIENCE)
        begun.wait(PATIENCE)
        return {"2": object(), "4": 2.5}.get(routine.ctx.job_id, 1)

    def start(runtime: Runtime, runs: dict[str, Run]) -> None:
        flow = counting(what)
        for job_id in map(str, range(JOBS)):
            runs[job_id] = flow.start("a", job_id=job_id, runtime=runtime)
        begun.wait(PATIENCE)
        with runtime.environment.lock:  # which the loop needs for a commit
            begun.wait(PATIENCE)
            for _ in range(JOBS):
                assert over.acquire(timeout=PATIENCE), "a step does not end"

    return start


def stopped(runs: dict[str, Run]) -> dict[str, JobState]:
    return {job_id: run.wait(PATIENCE) for job_id, run in runs.items()}


def test_ended_steps_of_several_jobs_share_one_write(together):
    store = NotedStore()
    runs: dict[str, Run] = {}
    with Runtime(store=store) as runtime:
        together(runtime, runs)
        jobs = stopped(runs)
    assert [str(n) for n in range(JOBS)] == sorted(store.groups[0])
    for job in jobs.values():
        assert job == Runtime(store=store).load(job.job_id)
    # A value that can't be saved fails the attempt of its handler only.
    failed = jobs.pop("2")
    assert (JobStatus.FAILED, ["start", "failed"]) == (failed.status, kinds(failed))
    assert "payload.n: object has no saved form" in str(failed.error)
    assert {"start done done"} == {" ".join(kinds(job)) for job in jobs.values()}
    assert {1, 2.5} == {job.shared_data["value"] for job in jobs.values()}


def test_no_two_steps_of_a_job_share_a_write():
    store = NotedStore()
    flow = fan(send, workers=4, a=keeps, b=keeps, c=keeps, d=keeps)
    with Runtime(store=store) as runtime:
        jobs = stopped({str(n): flow.start("source", runtime=runtime) for n in range(20)})
    assert all(len(set(group)) == len(group) for group in store.groups)
    assert {JobStatus.COMPLETED} == {job.status for job in jobs.values()}


def test_a_refused_row_ends_the_run_of_its_job_only(together):
    class TakenStore(NotedStore):
        def append_all(self, appends):
            if not self.groups:
                self.claim("5", 2, b"{}", "another host", status="running")
            return super().append_all(appends)

    runs: dict[str, Run] = {}
    with Runtime(store=TakenStore()) as runtime:
        together(runtime, runs)
        with pytest.raises(LeaseLostError, match="'5' belongs to 'another host' now"):
            runs.pop("5").wait(PATIENCE)
        jobs = stopped(runs)
    assert {"2"} == {j for j, job in jobs.items() if job.status is not JobStatus.COMPLETED}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_store_that_fails_ends_the_jobs_of_the_write_and_none_applies_it(together, kept):
    class FailingStore(NotedStore):
        def append_all(self, appends):
            if kept:
                super().append_all(appends)
            raise OSError("the disk is gone")

    class Sees:
        def on_commit(self, job, commit):
            assert "start" == commit.kind

    store = FailingStore()
    runs: dict[str, Run] = {}
    with Runtime(store=store, observers=[Sees()]) as runtime:
        together(runtime, runs)
        for run in runs.values():
            with pytest.raises(OSError, match="the disk is gone"):
                run.wait(PATIENCE)
            assert 1 == run.job.seq
        assert [] == runtime.observer_failures
    flow = counting(lambda _: 3)
    with Runtime(store=store) as runtime:
        job = runtime.load("1")
        assert (2 if kept else 1) == job.seq
        assert {"value": 1 if kept else 3} == flow.resume(job, runtime=runtime).shared_data


def test_an_observer_may_end_another_job_of_the_same_write(together):
    class Canceller:
        def on_commit(self, job, commit):
            if commit.kind is CommitKind.DONE and not cancelled:
                cancelled.append("7" if job.job_id != "7" else "6")
                runs[cancelled[0]].cancel()

    cancelled: list[str] = []
    runs: dict[str, Run] = {}
    store = NotedStore()
    with Runtime(store=store, observers=[Canceller()]) as runtime:
        together(runtime, runs)
        jobs = stopped(runs)
        assert [] == runtime.observer_failures
    victim = jobs.pop(cancelled[0])
    assert ["start", "done", "cancelled"] == kinds(victim)
    assert victim == Runtime(store=store).load(victim.job_id)
    assert {"2"} == {j for j, job in jobs.items() if job.status is not JobStatus.COMPLETED}


def test_observers_get_the_commits_of_a_write_before_those_that_they_cause(together):
    class Canceller:
        def on_commit(self, job, commit):
            order.append((job.job_id, commit.seq))
            if commit.kind is CommitKind.DONE and not cancelled:
                cancelled.append("7" if job.job_id != "7" else "6")
                runs[cancelled[0]].cancel()

    cancelled: list[str] = []
    order: list[tuple[str, int]] = []
    runs: dict[str, Run] = {}
    with Runtime(store=NotedStore(), observers=[Canceller()]) as runtime:
        together(runtime, runs)
        stopped(runs)
    assert [1, 2, 3] == [seq for job_id, seq in order if job_id == cancelled[0]]
