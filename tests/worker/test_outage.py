"""A worker retries a store that fails for less than a lease, and loses no job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobStatus,
    MemoryStore,
    Routine,
    Runtime,
    Worker,
)
from tests.routines import SECOND, Works, chain, rest
from tests.soak import also
from tests.worker.jobs import hosted, worker

LEASE = 30.0
CALLS = (
    *("append", "append_all", "acquire", "renew", "release"),
    *("free_in", "holders", "rows", "snapshot", "keep_snapshot"),
)


class Fails(MemoryStore):
    """A store whose n-th call fails, and all later calls until the outage ends.

    With `keeps` that call has done what was asked, and only its answer is lost.
    """

    def __init__(self, clock: FakeClock, n: int, length: float, *, keeps: bool = False) -> None:
        super().__init__(clock)
        self.clock, self.n, self.keeps = clock, n, keeps
        self.length = round(length * SECOND)
        self.calls = self.failures = 0
        self.until: int | None = None
        self.is_over = False
        for name in CALLS:
            setattr(self, name, self._failing(getattr(self, name)))

    def _failing(self, does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.is_over:
                return does(*arguments, **named)
            self.calls += 1
            if self.calls == self.n:
                self.until = self.clock.now_ns() + self.length
                if self.keeps:
                    does(*arguments, **named)
            if self.until is not None and self.clock.now_ns() < self.until:
                self.failures += 1
                raise OSError("the disk is full")
            return does(*arguments, **named)

        return call


def tale(done: list[str]) -> Flow:
    """A flow with an effect, a retry, a wait and a second routine."""

    def pays(self: Routine) -> None:
        self.ctx.once("charge", done.append, self.ctx.job_id)
        self.ctx.sleep(12)  # the lease is renewed meanwhile
        if self.ctx.attempt == 1:
            raise ValueError("not yet")
        self.emit("out", n=1)

    def counts(self: Routine, n: int) -> None:
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + n

    return chain(a=Works(pays, ErrorHandler("retry", retry_delay=5.0)), b=counts)


def after_outage(
    n: int, length: float, *, keeps: bool = False, lease: float = LEASE
) -> tuple[Fails, list[str], list[Any]]:
    """Drive three jobs through an outage; return the store, the effects, and the jobs."""
    clock = FakeClock()
    store = Fails(clock, n, length, keeps=keeps)
    done: list[str] = []
    flow = tale(done)
    with Runtime(clock=clock, store=store) as runtime:
        ids = [runtime.submit(flow, "a", job_id=f"job {number}") for number in range(3)]
        Worker(store, [flow], runtime=runtime, lease=lease).run(until_idle=True)
        store.is_over = True
        return store, done, [runtime.load(job_id, history=True) for job_id in ids]


def calls_of_an_undisturbed_run() -> int:
    return after_outage(10**9, 0)[0].calls


@pytest.mark.parametrize("lengths", also([29.0], [0.0, 7.0]))
@pytest.mark.parametrize("keeps", [False, True], ids=["nothing kept", "answer lost"])
def test_an_outage_shorter_than_a_lease_ends_no_worker_and_loses_no_job(keeps, lengths):
    for n in range(1, calls_of_an_undisturbed_run() + 1):
        for length in lengths:
            store, done, jobs = after_outage(n, length, keeps=keeps)
            where = f"the outage of {length} s at call {n}"
            assert store.until is not None, f"{where} never began"
            for job in jobs:
                assert JobStatus.COMPLETED is job.status, f"{where}: {job.job_id}, {job.error}"
                kinds = Counter(commit.kind.value for commit in job.commits)
                assert (1, 1, 2) == (kinds["effect"], kinds["retry"], kinds["done"]), where
                assert {"sum": 1} == job.shared_data, where
            # A charge whose record failed runs again; each outage ends three runs at most.
            assert Counter(done) <= Counter({job.job_id: 2 for job in jobs}), where


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(caplog):
    caplog.set_level("INFO")
    store, _, _ = after_outage(1, 7.0)
    assert 3 < store.failures < 20, "it is tried again, at growing distances"
    logged = [message for message in caplog.messages if message.startswith("the store")]
    assert [
        "the store fails; the worker retries for at most 30.0 s: the disk is full",
        "the store works again after 7.6 s",
    ] == logged


def test_an_outage_as_long_as_a_lease_ends_the_worker_with_its_error(clock):
    store = Fails(clock, 1, 10**6)
    with Runtime(clock=clock, store=store) as runtime:
        host, _ = hosted(runtime, chain(a=rest))
        began = clock.now_ns()
        with pytest.raises(OSError, match="the disk is full"):
            host.run()
        assert began + LEASE * SECOND == clock.now_ns()


def test_a_worker_stopped_in_an_outage_gives_its_jobs_back_after_it(clock):
    store = Fails(clock, 10**9, 10.0)

    def is_stopped(self):
        host.stop()
        store.n = store.calls + 1

    with Runtime(clock=clock, store=store) as runtime:
        host, job_id = hosted(runtime, chain(a=is_stopped, b=rest))
        host.run()
        assert store.failures
        hold = store.holders(job_id)[job_id]
        assert (None, True) == (hold.owner, hold.clean)


def test_a_job_that_alone_can_not_be_saved_is_retried_and_never_poisoned(clock):
    ran: list[int] = []

    class Refuses(MemoryStore):
        def append(self, job_id, seq, row, owner, *, status):
            if status == "completed" and len(ran) < 9:
                raise OSError("no room for so much")
            super().append(job_id, seq, row, owner, status=status)

    store = Refuses(clock)

    def works(self):
        ran.append(clock.now_ns())

    with Runtime(clock=clock, store=store, max_recoveries=1) as runtime:
        host, job_id = hosted(runtime, chain(a=works))
        host.run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status
    waits = {after - before for before, after in pairwise(ran)}
    assert {10 * SECOND} == waits, "a third of a lease lies between two tries"


def test_a_job_that_could_not_be_read_is_given_back_long_before_its_lease_ends(clock):
    store = Fails(clock, 10**9, 1.0)
    acquire = store.acquire

    def acquires(*asked):
        store.acquire = acquire
        got = acquire(*asked)
        store.n = store.calls + 1
        return got

    store.acquire = acquires
    with Runtime(clock=clock, store=store) as runtime:
        host, job_id = hosted(runtime, chain(a=rest))
        began = clock.now_ns()
        host.run(until_idle=True)
        job = runtime.load(job_id)
    assert store.failures
    assert JobStatus.COMPLETED is job.status
    assert job.updated_ns < began + 3 * SECOND


@pytest.mark.parametrize("by", ["the worker", "another worker"])
def test_a_late_release_does_not_give_back_a_job_that_was_taken_again(by, clock):
    store = Fails(clock, 10**9, 10.0)
    flow = chain(a=rest)
    with Runtime(clock=clock, store=store) as runtime:
        first, job_id = hosted(runtime, flow, lease=5)
        second = worker(runtime, flow, lease=5)
        rows, release = store.rows, store.release
        store.rows = store.release = _raises
        with pytest.raises(OSError, match="it is down"):
            first._take(False)
        store.rows, store.release = rows, release
        clock.advance(6)  # the lease that it could not give back has ended
        host = first if by == "the worker" else second
        assert host._take(False)
        first._maintain()
        assert runtime.owner == store.holders(job_id)[job_id].owner, "it was given back"
        host.run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status


def _raises(*_: object) -> Any:
    raise OSError("it is down")
