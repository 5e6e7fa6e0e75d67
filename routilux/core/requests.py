"""Requests that need no flow: pause, cancel, requeue and take over.

Invariants:
- They are pure, like the machine: a commit that the store refuses changes nothing.
- An operator without the flow can only mark a job `pending`; a worker then resumes it.
- Taking over a job that has ready tasks counts as a recovery, as if the next host had resumed it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from routilux.core.commits import Commit, CommitKind, JobStatus
from routilux.errors import NotResumableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux.core.parts import PendingTask
    from routilux.core.state import JobState

Request = Literal["pause", "cancel"]

_KINDS: Final[Mapping[Request, tuple[CommitKind, JobStatus]]] = {
    "pause": (CommitKind.PAUSED, JobStatus.PAUSED),
    "cancel": (CommitKind.CANCELLED, JobStatus.CANCELLED),
}


def request(job: JobState, kind: Request, now: int, reason: str | None = None) -> Commit:
    """Return the commit that pauses or cancels a job.

    Raises `NotResumableError` if the job's status does not allow it.
    """
    commit_kind, status = _KINDS[kind]
    if job.is_final or (kind == "pause" and job.status is not JobStatus.RUNNING):
        raise NotResumableError(
            f"job {job.job_id} is {job.status.value}, so it can't be {status.value}"
        )
    detail = None if reason is None else {"reason": reason}
    return Commit(job.seq + 1, commit_kind, now, status, detail=detail)


def requeue(job: JobState, now: int) -> Commit:
    """Return the commit that makes a failed job pending again.

    The job gets a fresh retry budget. Raises `NotResumableError` if the job has not failed.
    """
    if job.status is not JobStatus.FAILED:
        paused = job.status is JobStatus.PAUSED
        cure = "; use resume(job) on a host that has the job's flow" if paused else ""
        only = "only a failed job gets a fresh retry budget"
        raise NotResumableError(f"job {job.job_id} is {job.status.value}; {only}{cure}")
    status = JobStatus.PENDING if job.pending_tasks else JobStatus.COMPLETED
    return resumed(job, now, status, retry_failed=True)


def take_over(job: JobState, now: int) -> Commit:
    """Return the commit that takes a job away from its host.

    The job becomes pending. Raises `NotResumableError` if the job is neither pending nor running.
    """
    if not job.status.is_live:
        raise NotResumableError(
            f"job {job.job_id} is {job.status.value}; only a pending or running job can be taken"
            " over"
        )
    counts = job.status is JobStatus.RUNNING and bool(ready_tasks(job, now))
    return resumed(job, now, JobStatus.PENDING, recoveries=job.recoveries + counts)


def resumed(
    job: JobState,
    now: int,
    status: JobStatus,
    *,
    recoveries: int = 0,
    retry_failed: bool = False,
    **shape: object,  # the new shape, if the flow has changed
) -> Commit:
    """Return a commit of kind `resumed`."""
    detail = {"recoveries": recoveries, "retry_failed": retry_failed, **shape}
    return Commit(job.seq + 1, CommitKind.RESUMED, now, status, detail=detail)


def ready_tasks(job: JobState, now: int) -> list[PendingTask]:
    """Return the tasks that may run as soon as the job resumes.

    A task without a delay that is due in the future was created by a clock that was ahead.
    """
    return [task for task in job.tasks_to_run() if task.due_ns <= now or not task.delay_ns]
