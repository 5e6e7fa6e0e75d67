"""Operator functions on every store: retry, take over, cancel, purge."""

from __future__ import annotations

import pytest

from routilux import (
    FakeClock,
    JobStatus,
    JobStore,
    LeaseLostError,
    NotResumableError,
    Runtime,
    SqliteStore,
    cancel_job,
    retry_job,
)
from routilux.persist.admin import purge
from tests.persist.stores import acquire, using
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
    delete = store.delete

    def late(job_id):
        if job_id == "failed":
            retry_job(store, "failed", clock=clock)
        if job_id == "cancelled":
            delete(job_id)
        return delete(job_id)

    monkeypatch.setattr(store, "delete", late)
    found = purge(store, clock.now_ns(), statuses=["completed", "failed", "cancelled"])
    assert {"completed", "of another flow"} == {entry.job_id for entry, _ in found.jobs}
    assert ["failed", "new", "pending"] == store.job_ids()


def test_a_damaged_job_is_named_and_not_deleted_and_hinders_no_other(tmp_path, clock):
    with SqliteStore(tmp_path / "jobs.db", clock=clock) as store:
        old_jobs(store, clock)
        with using(store) as db:
            db.execute(
                "UPDATE commits SET row = row || ' ' WHERE seq = 2 AND job ="
                " (SELECT job FROM jobs WHERE job_id = 'completed')"
            )
            db.execute("UPDATE jobs SET owner = 'x' WHERE job_id = 'cancelled'")
        found = purge(store, clock.now_ns(), statuses=["completed", "cancelled"])
        assert {"completed", "cancelled"} == found.damaged.keys()
        assert ["of another flow"] == [entry.job_id for entry, _ in found.jobs]
        assert {"completed", "cancelled"} <= set(store.job_ids())
