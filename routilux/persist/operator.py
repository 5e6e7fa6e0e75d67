"""What a person may do to a job in a store, without its flow: give it a fresh budget, cancel it.

Laws:
- Whoever runs the job is overruled: it can commit no more, and its steps in flight count for
  nothing.
- One commit does it, whole or not at all. Where a host was faster, the job is looked at again.
"""

from __future__ import annotations

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from routilux.core.requests import request, requeue
from routilux.errors import LeaseLostError
from routilux.persist.store import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.core.records import Commit
    from routilux.core.state import JobState
    from routilux.persist.store import JobStore

__all__ = ["cancel", "retry"]

_TRIES: Final = 20  # a host that commits all the time is overtaken by then


def retry(store: JobStore, job_id: str, now_ns: int) -> JobState:
    """Give a failed job a fresh budget, and leave it to whoever takes it up; return the job.

    Raises `NotResumableError` where it has not failed, `KeyError` where there is no such job.
    """
    return _changed(store, job_id, now_ns, requeue)


def cancel(store: JobStore, job_id: str, now_ns: int, reason: str | None = None) -> JobState:
    """End a job for good, and return it.

    Raises `NotResumableError` where it is over already, `KeyError` where there is no such job.
    """
    return _changed(store, job_id, now_ns, partial(_cancelled, reason))


def _cancelled(reason: str | None, job: JobState, now: int) -> Commit:
    return request(job, "cancel", now, reason)


def _changed(
    store: JobStore, job_id: str, now_ns: int, change: Callable[[JobState, int], Commit]
) -> JobState:
    journal = Journal(store)
    operator = f"operator-{token_hex(16)}"
    tries = 0
    while True:
        job = journal.read(job_id, history=False)
        if job is None:
            raise KeyError(job_id)
        commit = change(job, max(now_ns, job.updated_ns))
        try:
            journal.overrule(job_id, commit, operator)
        except LeaseLostError:
            tries += 1
            if tries == _TRIES:
                raise
        else:
            job.fold(commit)
            return job
