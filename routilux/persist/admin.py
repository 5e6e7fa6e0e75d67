"""Operator commands that retry or cancel a stored job.

Invariants:
- The owner of the job is overruled: it can't commit any more, and its steps in flight are ignored.
- An operation is one commit. If a host was faster, the job is read again.
- Only an operator knows that a process which holds a job without a lease has ended for good. So the
  job is taken over only on request, and the refusal names the process.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Final

from routilux.core import requests
from routilux.errors import LeaseLostError, NotResumableError
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.core.commits import Commit
    from routilux.core.state import JobState
    from routilux.persist.store import Hold, JobStore

_TRIES: Final = 20  # enough to be faster once than a host that commits all the time


def retry(store: JobStore, job_id: str, now_ns: int, *, take_over: bool = False) -> JobState:
    """Let any worker resume a failed job with a fresh retry budget.

    With `take_over`, also set free a job that a host holds, with a lease or without; this counts as
    a recovery. Raises `NotResumableError` if the job is neither failed nor taken over, `KeyError`
    if there is no such job.
    """

    def change(job: JobState, hold: Hold, now: int) -> Commit:
        if not job.status.is_live:
            return requests.requeue(job, now)
        if take_over and hold.owner is not None:
            return requests.take_over(job, now)
        if hold.free_in_ns is None:
            cure = "if that process has ended for good, --take-over lets a worker resume the job"
        elif hold.is_leased:
            cure = "a worker resumes the job when that lease ends; --take-over makes it free now"
        else:
            cure = f"start a worker of flow {job.flow_id}, which resumes the job"
        raise NotResumableError(f"job {job_id} is {job.status.value}, {hold}; {cure}")

    return _overrule(store, job_id, now_ns, change)


def cancel(store: JobStore, job_id: str, now_ns: int, reason: str | None = None) -> JobState:
    """Cancel a stored job for good, and return the job.

    Raises `NotResumableError` if the job is final, `KeyError` if there is no such job.
    """
    return _overrule(
        store, job_id, now_ns, lambda job, hold, now: requests.request(job, "cancel", now, reason)
    )


def _overrule(
    store: JobStore, job_id: str, now_ns: int, change: Callable[[JobState, Hold, int], Commit]
) -> JobState:
    journal = Journal(store)
    operator = f"operator-{token_hex(16)}"
    tries = 0
    while True:
        hold = store.holders(job_id).get(job_id)
        job = journal.read(job_id, history=False)
        if job is None or hold is None:
            raise KeyError(job_id)
        commit = change(job, hold, max(now_ns, job.updated_ns))
        try:
            journal.overrule(job_id, commit, operator)
        except LeaseLostError:
            tries += 1
            if tries == _TRIES:
                raise
        else:
            job.fold(commit)
            return job
