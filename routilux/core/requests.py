"""What a job's state alone decides, without its flow: a pause, a cancellation, a new start.

Laws:
- They are pure, like all of the machine: a commit that the store refuses changes nothing.
- Who has no flow can't drive a job. So what is to go on, is left `pending` from outside, to be
  taken up by whoever has the flow.
- To take a job from a host that died is a recovery; it counts as if the next host had seen it.
"""

from __future__ import annotations

import hashlib
from itertools import count, takewhile
from typing import TYPE_CHECKING, Final, Literal

from routilux.core.records import Commit, CommitKind, JobStatus
from routilux.errors import NotResumableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routilux.core.parts import PendingTask
    from routilux.core.state import JobState

__all__ = ["Request", "child_id", "ready_tasks", "request", "requeue", "taken", "told_of"]

Request = Literal["pause", "cancel"]

_LONGEST_ID: Final = 64
_PAST: Final[Mapping[str, str]] = {"pause": "paused", "cancel": "cancelled"}


def child_id(parent: str, number: int) -> str:
    """Return the id of a task's n-th child; a long lineage is shortened to its digest.

    >>> child_id("0.1", 2)
    '0.1.2'
    """
    name = f"{parent}.{number}"
    if len(name) <= _LONGEST_ID:
        return name
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{number}"


def request(job: JobState, kind: Request, now: int, reason: str | None = None) -> Commit:
    """Return the commit by which a running job is paused, or one that is not final cancelled.

    Raises `NotResumableError` where the job's status does not allow it.
    """
    if job.is_final or (kind == "pause" and job.status is not JobStatus.RUNNING):
        raise NotResumableError(
            f"job {job.job_id} is {job.status.value}; it can't be {_PAST[kind]} any more"
        )
    detail = None if reason is None else {"reason": reason}
    pause = kind == "pause"
    return Commit(
        job.seq + 1,
        CommitKind.PAUSED if pause else CommitKind.CANCELLED,
        now,
        JobStatus.PAUSED if pause else JobStatus.CANCELLED,
        detail=detail,
    )


def requeue(job: JobState, now: int) -> Commit:
    """Return the commit that gives a failed job a fresh budget and leaves it to be taken up.

    Raises `NotResumableError` where the job has not failed.
    """
    if job.status is not JobStatus.FAILED:
        paused = job.status is JobStatus.PAUSED
        cure = "; where its flow is, resume(job) goes on with it" if paused else ""
        only = "only a job that failed gets a fresh budget"
        raise NotResumableError(f"job {job.job_id} is {job.status.value}; {only}{cure}")
    tasks = job.pending_tasks
    told = told_of(job, (task for task in tasks if task.failed))
    status = JobStatus.PENDING if len(tasks) > len(told) else JobStatus.COMPLETED
    detail: dict[str, object] = {"recoveries": 0, "retry_failed": True, "withdrawn": told}
    return Commit(job.seq + 1, CommitKind.RESUMED, now, status, detail=detail)


def taken(job: JobState, now: int) -> Commit:
    """Return the commit that takes a job from whoever drives it, and leaves it to be taken up.

    Raises `NotResumableError` where nothing of it goes on by itself.
    """
    if not job.status.is_live:
        raise NotResumableError(
            f"job {job.job_id} is {job.status.value}; only a job that goes on by itself can be"
            " taken from whoever drives it"
        )
    counts = job.status is JobStatus.RUNNING and bool(ready_tasks(job, now))
    detail: dict[str, object] = {
        "recoveries": job.recoveries + counts,
        "retry_failed": False,
        "withdrawn": [],
    }
    return Commit(job.seq + 1, CommitKind.RESUMED, now, JobStatus.PENDING, detail=detail)


def ready_tasks(job: JobState, now: int) -> list[PendingTask]:
    """Return the tasks that a resume at this time finds ready to run; the others wait for a retry.

    What is due in the future without a delay is so by a clock that was ahead.
    """
    return [task for task in job.pending_tasks if task.due_ns <= now or not task.delay_ns]


def told_of(job: JobState, failed: Iterable[PendingTask]) -> list[str]:
    """Return the pending tasks that told of failed ones: they are withdrawn when these go on."""
    pending = job._pending
    told: list[str] = []
    for task in failed:
        # By their ids: the commit that created them may no longer be kept.
        every = (child_id(task.task_id, number) for number in count())
        told += takewhile(pending.__contains__, every)
    return sorted(told)
