"""What a person may do to a job in a store, without its flow: retry it, take it over, cancel it.

Laws:
- Whoever runs the job is overruled: it can commit no more, and its steps in flight count for
  nothing.
- One commit does it, whole or not at all. Where a host was faster, the job is looked at again.
- Only a person knows that a process is gone for good which holds a job without a lease. So it is
  taken from it only where that is asked for, and the refusal says who holds it.
"""

from __future__ import annotations

from functools import partial
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

__all__ = ["cancel", "retry"]

_TRIES: Final = 20  # a host that commits all the time is overtaken by then


def retry(store: JobStore, job_id: str, now_ns: int, *, take_over: bool = False) -> JobState:
    """Give a failed job a fresh budget, and leave it to whoever takes it up; return the job.

    With `take_over` also a job that somebody has, with a lease or without, is left to be taken up;
    for its recoveries that is an unclean stop. Raises `NotResumableError` where the job has
    neither failed nor is to be taken over, `KeyError` where there is no such job.
    """
    return _changed(store, job_id, now_ns, partial(_retried, take_over))


def cancel(store: JobStore, job_id: str, now_ns: int, reason: str | None = None) -> JobState:
    """End a job for good, and return it.

    Raises `NotResumableError` where it is over already, `KeyError` where there is no such job.
    """
    return _changed(store, job_id, now_ns, partial(_cancelled, reason))


def _retried(take_over: bool, job: JobState, hold: Hold, now: int) -> Commit:
    if not job.status.is_live:
        return requests.requeue(job, now)
    if take_over and hold.owner is not None:
        return requests.take_over(job, now)
    what = f"job {job.job_id} is {job.status.value}, {hold}"
    if hold.free_in_ns is None:
        cure = "if that process is gone for good, --take-over leaves the job to a worker"
    elif hold.is_leased:
        cure = "a worker takes it up if that process does not renew it; --take-over does not wait"
    else:
        cure = f"it needs nothing but a worker of flow {job.flow_id} that runs"
    raise NotResumableError(f"{what}; {cure}")


def _cancelled(reason: str | None, job: JobState, hold: Hold, now: int) -> Commit:
    return requests.request(job, "cancel", now, reason)


def _changed(
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
