"""Validates commits loaded from storage before they are replayed.

Invariants:
- Only commits that the machine could have made are replayed; others are refused with their path.
- This module checks what `FoldedJob.fold` does not: `fold` is on the hot path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from routilux.core.commits import CommitKind, JobStatus
from routilux.core.gathering import gathers_in, wrong_gathers
from routilux.core.parts import DROPPED_AS
from routilux.core.wire.ranges import texts
from routilux.errors import CorruptStateError, IllegalTransitionError
from routilux.graph.messages import GATHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from routilux.core.commits import Commit
    from routilux.core.fold import FoldedJob
    from routilux.core.parts import Output, PendingTask
    from routilux.graph.messages import DroppedTask

# A module global costs less than a look-up at the enum, which is as slow as a call.
_START = CommitKind.START
_DONE = CommitKind.DONE
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED
_JOB_FAILED = JobStatus.FAILED

# The statuses that a commit may give a job. Commits of other kinds keep the status, or complete the
# job.
_GIVEN: Final[Mapping[CommitKind, tuple[JobStatus, ...]]] = {
    CommitKind.START: (JobStatus.PENDING, JobStatus.RUNNING),
    CommitKind.RESUMED: (
        JobStatus.PENDING,
        JobStatus.RUNNING,
        JobStatus.COMPLETED,
        JobStatus.FAILED,
    ),
    CommitKind.PAUSED: (JobStatus.PAUSED,),
    CommitKind.CANCELLED: (JobStatus.CANCELLED,),
}
_REQUESTS: Final = (CommitKind.RESUMED, CommitKind.PAUSED, CommitKind.CANCELLED)


def replay(job: FoldedJob, commits: Iterable[tuple[str, Commit]]) -> None:
    """Apply loaded commits to a job; `commits` are (path, commit) pairs.

    No snapshot of the job may be in use. Raises `CorruptStateError` for a commit that can't follow.
    """
    job._replaying = {}
    for path, commit in commits:
        follow(job, commit, path)
    job._replaying = None


def follow(job: FoldedJob, commit: Commit, path: str) -> None:
    """Apply a loaded commit to a job, or raise `CorruptStateError`."""
    try:
        reason = _wrong_time(job, commit) or _wrong_task(job, commit) or _wrong_status(job, commit)
        if reason is None:
            job.fold(commit)
            return
    except (IllegalTransitionError, LookupError, TypeError, ValueError) as error:
        reason = str(error)
    except CorruptStateError as error:
        reason = f"its {error.path.removeprefix('$.')} {error.reason}"
    raise CorruptStateError(path, f"this commit can't follow the previous commit: {reason}")


def _wrong_time(job: FoldedJob, commit: Commit) -> str | None:
    if job.seq and commit.at_ns < job.updated_ns:
        return "its time is earlier than that of the commit before"
    if commit.started_ns is not None and commit.started_ns > commit.at_ns:
        return "its attempt starts after the attempt ends"
    if commit.delay_ns is not None and commit.due_ns != commit.at_ns + commit.delay_ns:
        return "its due_ns is not its at_ns plus its delay_ns"
    return None


def _wrong_task(job: FoldedJob, commit: Commit) -> str | None:
    if commit.task_id is not None:
        pending = job._pending.get(commit.task_id)
        if (
            pending is None
            or pending.failed
            or pending.gathers
            or (pending.routine_id, pending.attempt) != (commit.routine_id, commit.attempt)
        ):
            return (
                f"attempt {commit.attempt} of task {commit.task_id} of {commit.routine_id!r} is not"
                " pending"
            )
    known: Iterable[str] = job.routine_states
    may_gather = job._gathers
    if commit.kind is _START:
        detail = commit.detail or {}
        known = cast("Sequence[str]", detail["routines"])
        may_gather = gathers_in(texts(detail["shape"], "$.shape"))
    created: set[str] = set()
    gathers = False
    for task in commit.tasks:
        if task.task_id in job._pending or task.task_id in created:
            return f"it creates task {task.task_id}, which already exists"
        if task.routine_id not in known:
            return f"it creates a task of {task.routine_id!r}, which is not a routine of the job"
        created.add(task.task_id)
        gathers |= bool(task.keeps) or task.into is not None or task.emission == GATHER
    if gathers and not may_gather:
        return "it concerns a gather, but its flow has none"
    if gathers and (reason := wrong_gathers(commit, job._pending)):
        return reason
    if commit.kind is _DROPPED and (as_ := (commit.detail or {}).get("as")) not in DROPPED_AS:
        return f"{as_!r} is not a valid outcome of a dropped task"
    return None


def _wrong_status(job: FoldedJob, commit: Commit) -> str | None:
    kind, before, after = commit.kind, job.status, commit.status
    ends = kind in (_DONE, _DROPPED)
    failing = bool(job._failed) or kind is _FAILED
    if kind in _REQUESTS:
        fits = after in _GIVEN[kind] and not before.is_final
        if after is _JOB_FAILED:
            fits &= failing and not job.tasks_to_run()
    elif failing and commit.task_id is not None and not before.is_final:
        # Other steps may be in flight when nothing is left to start.
        goes_on = _RUNNING if before is JobStatus.PENDING else before
        fits = after is goes_on or (after is _JOB_FAILED and not job.reports_after(commit))
    elif kind is _START:
        fits = after in _GIVEN[kind]
    else:
        fits = after is before or (ends and before is _RUNNING and after is _COMPLETED)
    if not fits:
        return f"a {kind.value!r} commit can't make a {before.value} job {after.value}"
    left = len(job._pending) - ends + sum(task.into is None for task in commit.tasks)
    if ends and not failing and (after is _COMPLETED) is not (before is _RUNNING and not left):
        return f"{left} tasks are left after the commit, but the job is {after.value}"
    return None


def check_unfolded(job: FoldedJob, path: str) -> None:
    """Check the state of a job whose oldest commits are no longer kept."""
    if job.status is JobStatus.COMPLETED and job._pending:
        raise CorruptStateError(f"{path}.pending_tasks", "must be empty in a completed job")
    parts: tuple[tuple[str, Sequence[PendingTask | Output | DroppedTask]], ...] = (
        ("pending_tasks", job.pending_tasks),
        ("outputs", job.outputs),
        ("dropped", job.dropped),
    )
    for name, entries in parts:
        for i, entry in enumerate(entries):
            place = f"{path}.{name}[{i}]"
            if entry.seq > job.seq:
                raise CorruptStateError(
                    f"{place}.seq", f"is {entry.seq}, but the job's last commit is {job.seq}"
                )
            if entry.routine_id not in job.routine_states:
                raise CorruptStateError(
                    f"{place}.routine_id", f"{entry.routine_id!r} is not a routine of the job"
                )
    for last in job.commits[-1:]:
        for name, expected in (("status", last.status), ("updated_ns", last.at_ns)):
            if getattr(job, name) != expected:
                raise CorruptStateError(f"{path}.{name}", "does not match the last commit")
