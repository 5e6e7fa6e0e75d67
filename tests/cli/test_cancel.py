"""`routilux cancel`: a job ends, also while a host runs it."""

from __future__ import annotations

import pytest

from routilux import (
    JobStatus,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
    Runtime,
    SqliteStore,
    cancel_job,
)
from tests.cli.payments import NOW, SECOND, payment
from tests.persist.stores import acquire
from tests.routines import chain


def test_a_cancelled_job_is_taken_from_the_host_that_runs_it(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=NOW, store=jobs)
        assert "queued" == acquire(jobs, host.owner, ["payment"], 10 * SECOND)
        drive = host.resumed(payment(), host.load("queued"))
        line = "job queued is cancelled (commit 3)\n"
        assert line == output("cancel", store, "queued", "--reason", "by phone")
        with pytest.raises(LeaseLostError, match="belongs to 'operator-"):
            drive.request("pause")
        job = host.load("queued")
    assert (JobStatus.CANCELLED, {"reason": "by phone"}) == (job.status, job.commits[-1].detail)


def test_a_cancellation_is_tried_again_up_to_20_times_if_the_job_has_advanced():
    class Busy(MemoryStore):
        refusals = 20

        def overrule(self, *arguments, **options):
            self.refusals -= 1
            if self.refusals >= 0:
                raise LeaseLostError("another host has written to it")
            super().overrule(*arguments, **options)

    store = Busy()
    Runtime(store=store).submit(chain(a=lambda self, n=0: None), "a", job_id="j")
    with pytest.raises(LeaseLostError):
        cancel_job(store, "j")
    store.refusals = 19
    assert JobStatus.CANCELLED is cancel_job(store, "j").status
    with pytest.raises(NotResumableError, match="is cancelled"):
        cancel_job(store, "j")
    with pytest.raises(KeyError):
        cancel_job(store, "k")
