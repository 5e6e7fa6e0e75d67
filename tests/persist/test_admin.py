"""Operator functions on every store: retry, take over, cancel, purge."""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Any

import pytest

from routilux import (
    FakeClock,
    JobStatus,
    JobStore,
    LeaseLostError,
    NotResumableError,
    Runtime,
    cancel_job,
    retry_job,
)
from routilux.persist.admin import DAMAGED, purge
from routilux.persist.journal import Journal
from tests.engine.concurrency import in_a_child
from tests.persist.stores import STORES, acquire, damage_entry, damage_row
from tests.routines import SECOND, chain, rest
from tests.worker.jobs import worker

DAY = 86_400


def raises(self, n=0):
    if self.ctx.attempt == 1:
        raise ValueError("no stock")


def test_a_failed_job_is_retried_with_a_fresh_budget(store, clock):
    flow = chain(a=raises)
    with Runtime(clock=clock, store=store) as runtime:
        flow.execute("a", job_id="j", runtime=runtime)
        clock.advance(5)
        job = retry_job(store, "j", clock=clock)
        assert (JobStatus.PENDING, clock.now_ns()) == (job.status, job.updated_ns)
        worker(runtime, flow).run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load("j").status


def test_a_job_is_taken_over_only_on_request_and_its_host_can_commit_no_more(store, clock):
    flow = chain(a=rest)
    with Runtime(clock=clock, store=store) as runtime:
        runtime.submit(flow, "a", job_id="j")
        assert "j" == acquire(store, "b", ["tale"], SECOND)
        with pytest.raises(
            NotResumableError, match=r"held by b, .*; take_over=True \(--take-over\)"
        ):
            retry_job(store, "j", clock=clock)
        assert JobStatus.PENDING is retry_job(store, "j", take_over=True, clock=clock).status
        with pytest.raises(LeaseLostError, match="free to be taken by any host now"):
            store.append("j", 3, b"late", "b", status="running")
        worker(runtime, flow).run(until_idle=True)


def test_a_job_is_cancelled_with_a_reason_and_by_the_systems_time_if_no_clock_is_given(store):
    with Runtime(store=store) as runtime:
        runtime.submit(chain(a=rest), "a", job_id="j")
        job = cancel_job(store, "j", "by phone")
        assert job == runtime.load("j")
    assert (JobStatus.CANCELLED, {"reason": "by phone"}) == (job.status, job.commits[-1].detail)
    assert 0 <= job.updated_ns - job.started_ns < 60 * SECOND
    assert None is store.free_in(["tale"])
    for change in (cancel_job, retry_job):
        with pytest.raises(KeyError, match="the store holds no job 'k'"):
            change(store, "k")
        with pytest.raises(NotResumableError, match="job j is cancelled"):
            change(store, "j")


def old_jobs(store: JobStore, clock: FakeClock) -> None:
    """A job of each status, 30 days before now, and one that is completed since."""
    with Runtime(clock=clock, store=store) as runtime:
        flows = {"completed": chain(a=rest), "failed": chain(a=raises)}
        for name, flow in flows.items():
            flow.execute("a", job_id=name, runtime=runtime)
        other = chain(a=rest)
        other.flow_id = "other"
        other.execute("a", job_id="of another flow", runtime=runtime)
        for name in ("pending", "cancelled"):
            runtime.submit(flows["completed"], "a", job_id=name)
        cancel_job(store, "cancelled", clock=clock)
        clock.advance(30 * DAY)
        flows["completed"].execute("a", job_id="new", runtime=runtime)


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"statuses": ["completed"]}, {"completed", "of another flow"}),
        ({"statuses": ["completed"], "flow_id": "tale"}, {"completed"}),
        ({"statuses": ["failed", "cancelled"]}, {"failed", "cancelled"}),
        ({"statuses": ["paused"]}, set()),
    ],
)
def test_a_purge_deletes_old_jobs_of_the_given_statuses_and_no_others(options, gone, store, clock):
    old_jobs(store, clock)
    every = set(store.job_ids())
    before = clock.now_ns() - 29 * DAY * SECOND
    found = purge(store, before, dry_run=True, **options)
    assert gone == {entry.job_id for entry, _ in found.jobs}
    assert every == set(store.job_ids()), "a dry run deletes nothing"
    assert found == purge(store, before, **options)
    assert every - gone == set(store.job_ids())
    assert ([], {}) == purge(store, before, **options)
    assert [] == purge(store, clock.now_ns() - 31 * DAY * SECOND, statuses=["failed"]).jobs
    assert [] == store.damage()


def test_a_job_that_was_resumed_or_deleted_meanwhile_is_left_out(store, clock, monkeypatch):
    old_jobs(store, clock)
    delete_all = store.delete_all

    def late(job_ids, *, force=False):
        if "failed" in job_ids:
            retry_job(store, "failed", clock=clock)
            delete_all(["cancelled"])
        return delete_all(job_ids, force=force)

    monkeypatch.setattr(store, "delete_all", late)
    found = purge(store, clock.now_ns(), statuses=["completed", "failed", "cancelled"])
    assert {"completed", "of another flow"} == {entry.job_id for entry, _ in found.jobs}
    assert ["failed", "new", "pending"] == store.job_ids()


def damaged_jobs(store: JobStore, clock: FakeClock) -> set[str]:
    """Damage three of the old jobs, of which one is pending; return their ids."""
    old_jobs(store, clock)
    damage_row(store, "completed")
    damage_row(store, "pending")
    damage_entry(store, "cancelled")
    return {"completed", "pending"} | {"cancelled"} - ({"cancelled"} & intact(store))


def intact(store: JobStore) -> set[str]:
    return {entry.job_id for entry in store.entries() if entry.damage is None}


def test_a_damaged_job_is_named_and_not_deleted_and_hinders_no_other(store, clock):
    damaged = damaged_jobs(store, clock) - {"pending"}
    before, every = clock.now_ns() - 1, set(store.job_ids())
    found = purge(store, before, statuses=["completed", "cancelled"])
    assert damaged == found.damaged.keys()
    gone = {"of another flow", "cancelled"} - damaged
    assert gone == {entry.job_id for entry, _ in found.jobs}
    assert every - gone == set(store.job_ids())


def test_damaged_jobs_are_deleted_on_request_and_no_others(store, clock):
    damaged = damaged_jobs(store, clock)
    every = set(store.job_ids())
    before = clock.now_ns() - 365 * DAY * SECOND
    found = purge(store, before, statuses=[DAMAGED], dry_run=True)
    assert damaged == {entry.job_id for entry, _ in found.jobs}
    assert {("damaged", None)} == {(entry.status, at_ns) for entry, at_ns in found.jobs}
    assert every == set(store.job_ids())
    done = purge(store, before, statuses=[DAMAGED])
    assert damaged == {entry.job_id for entry, _ in done.jobs}
    assert every - damaged == set(store.job_ids())
    assert [] == Journal(store).damage()
    assert ([], {}) == purge(store, before, statuses=[DAMAGED])


def test_a_damaged_job_that_a_host_has_under_a_lease_is_not_purged(store, clock):
    with Runtime(clock=clock, store=store) as runtime:
        runtime.submit(chain(a=rest), "a", job_id="j")
    assert "j" == acquire(store, "b", ["tale"], SECOND)
    damage_row(store, "j")
    assert {"j"} == purge(store, clock.now_ns(), statuses=[DAMAGED]).damaged.keys()
    clock.advance(2)
    assert {"j"} == {e.job_id for e, _ in purge(store, clock.now_ns(), statuses=[DAMAGED]).jobs}


@pytest.mark.parametrize("dies", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_purge_that_is_killed_leaves_each_job_whole_or_gone(kind, dies, tmp_path, clock):
    with STORES[kind](tmp_path, clock) as store:
        for number in range(8):
            job_id = f"job {number}"
            store.create(job_id, b"1", "a", flow_id="f", status="running")
            store.append(job_id, 2, b"2", "a", status="completed")

        def purges() -> None:
            name = "_delete" if kind == "sqlite" else "delete_all"
            called, does = count(1), getattr(store, name)

            def kills(*args: Any, **named: Any) -> Any:
                if next(called) == dies:
                    os.kill(os.getpid(), signal.SIGKILL)
                return does(*args, **named)

            setattr(store, name, kills)
            for first in range(0, 8, 4 if kind == "sqlite" else 1):
                ids = [f"job {number}" for number in range(first, 8)]
                store.delete_all(ids[: 4 if kind == "sqlite" else 1])

        in_a_child(purges, ends=-signal.SIGKILL)
        left = 8 - (dies - 1) // 4 * 4 if kind == "sqlite" else 8 - (dies - 1)
        assert left == len(store.job_ids())
        assert all([b"1", b"2"] == store.rows(job_id) for job_id in store.job_ids())
        assert [] == store.damage()


def test_a_purge_deletes_many_jobs_with_one_write_and_not_too_many_rows(store, monkeypatch):
    for number in range(100):
        store.create(f"job {number}", b"1", "a", flow_id="f", status="completed")
    calls: list[int] = []
    delete_all = store.delete_all
    monkeypatch.setattr(store, "delete_all", lambda ids: calls.append(len(ids)) or delete_all(ids))
    monkeypatch.setattr("routilux.persist.admin._MOST_ROWS", 30)
    monkeypatch.setattr("routilux.persist.journal.Journal.last_ns", lambda *_: 0)
    assert 100 == len(purge(store, 1, statuses=["completed"]).jobs)
    assert [30, 30, 30, 10] == calls
    assert [] == store.job_ids()
