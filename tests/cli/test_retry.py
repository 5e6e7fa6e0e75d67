"""`routilux retry`: a fresh budget for what failed, and jobs that are taken over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routilux import (
    Flow,
    JobState,
    JobStatus,
    LeaseLostError,
    Runtime,
    SqliteStore,
    Worker,
    cancel_job,
)
from tests.cli.payments import NOW, SECOND, after, payment
from tests.persist.stores import acquire


def worked(store: Path, job_id: str, flow: Flow, *, at: float) -> JobState:
    """The job, after a worker has found none but it to drive."""
    with SqliteStore(store, clock=NOW) as jobs:
        cancel_job(jobs, "queued", clock=NOW)
        host = Runtime(clock=after(at), store=jobs)
        Worker(jobs, [flow], runtime=host).run(until_idle=True)
        return host.load(job_id, history=True)


def test_a_retried_job_has_a_fresh_budget_and_a_worker_resumes_it(store, output):
    line = "job failed has a fresh budget; a worker of flow payment can resume it (commit 4)\n"
    assert line == output("retry", store, "failed")
    assert "failed  payment  pending " in output("jobs", store)
    job = worked(store, "failed", payment(3, retries=1), at=3605)
    assert JobStatus.COMPLETED is job.status
    assert [1, 2, 3, 4, 4] == [c.attempt for c in job.commits if c.routine_id == "charge"]
    assert [0, 0] == [(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"]
    page = output("show", store, "failed")
    assert "resumed, job pending · after 599.260 s · a fresh budget for what failed" in page


@pytest.mark.parametrize(
    ("seconds", "listed", "shown", "refusal"),
    [
        (
            25,
            "  web-2:7, lease for 25 s  ",
            "held by web-2:7:cafe, whose lease ends in 25 s",
            (
                "a worker resumes the job when that lease ends;"
                " take_over=True (--take-over) makes it free now"
            ),
        ),
        (
            0,
            "  web-2:7, lease over  ",
            "left by web-2:7:cafe, whose lease has ended",
            "start a worker of flow payment, which resumes the job",
        ),
    ],
    ids=["lease", "lease over"],
)
def test_the_owner_of_a_job_is_shown_with_the_end_of_its_lease(
    store, output, refused, seconds, listed, shown, refusal
):
    with SqliteStore(store, clock=NOW) as jobs:
        assert "queued" == acquire(jobs, "web-2:7:cafe", ["payment"], seconds * SECOND)
    assert listed in output("jobs", store)
    assert f"\n{shown}\n" in output("show", store, "queued")
    held = json.loads(output("show", store, "queued", "--json"))["held"]
    assert {"owner": "web-2:7:cafe", "free_in_ns": seconds * SECOND} == held
    assert f"job queued is pending, {shown}; {refusal}" == refused("retry", store, "queued")


def test_a_job_is_taken_over_from_a_dead_process_and_a_worker_completes_it(store, output):
    line = "job waits is taken over; a worker of flow payment can resume it (commit 3)\n"
    assert line == output("retry", store, "waits", "--take-over")
    assert "\nheld by nobody, and free to be taken now\n" in output("show", store, "waits")
    job = worked(store, "waits", payment(), at=3601)
    assert JobStatus.COMPLETED is job.status
    assert [1, 2, 3] == [
        c.attempt for c in job.commits if c.routine_id == "charge" and not c.effect
    ]
    page = output("show", store, "waits")
    assert "⏩ [ 90.000s] taken over by an operator, job pending · after 89.880 s\n" in page


@pytest.mark.parametrize("lease", [None, 3600])
def test_a_process_that_is_alive_after_all_can_commit_no_more_to_a_job_that_was_taken_over(
    store, output, lease
):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=NOW, store=jobs)
        if lease:
            jobs.acquire(host.owner, ["payment"], lease * SECOND)
        drive = host.resumed(payment(), host.load("queued"))
        output("retry", store, "queued", "--take-over")
        with pytest.raises(LeaseLostError, match="'queued' is free to be taken by any host now"):
            drive.request("pause")
        job = host.load("queued")
    assert (JobStatus.PENDING, 1) == (job.status, job.recoveries)


ONLY = "only a failed job gets a fresh retry budget"
HELD = "held by web-1:4711:9f86d081884c7d65 without a lease"
GONE = (
    "if that process has ended for good, take_over=True (--take-over) lets a worker resume the job"
)
FREE = "held by nobody, and free to be taken now"
NEEDS = "start a worker of flow payment, which resumes the job"


@pytest.mark.parametrize(
    ("what", "job_id", "message"),
    [
        ("retry", "done", "job done is completed; only a failed job gets a fresh retry budget"),
        ("retry", "waits", f"job waits is running, {HELD}; {GONE}"),
        ("retry", "queued", f"job queued is pending, {FREE}; {NEEDS}"),
        (
            "retry",
            "paused",
            f"job paused is paused; {ONLY}; use resume(job) on a host that has the job's flow",
        ),
        ("cancel", "done", "job done is completed, so it can't be cancelled"),
    ],
)
def test_a_refused_command_changes_nothing(store, output, refused, what, job_id, message):
    before = output("show", store, job_id, "--json")
    assert message == refused(what, store, job_id)
    assert before == output("show", store, job_id, "--json")
