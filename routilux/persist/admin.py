"""Operator commands that retry, cancel or delete stored jobs.

Invariants:
- The owner of the job is overruled: it can't commit any more, and its steps in flight are ignored.
- An operation is one commit. If a host was faster, the job is read again.
- Only an operator knows that a process which holds a job without a lease has ended for good. So the
  job is taken over only on request, and the refusal names the process.
- A purge deletes no job that was resumed meanwhile. It deletes many jobs with one write, and reads
  only the last commit of each, unless it looks for damaged jobs.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Final, NamedTuple

from routilux.clocks.clock import SystemClock
from routilux.core import requests
from routilux.errors import (
    CorruptStateError,
    LeaseLostError,
    NotResumableError,
    SavedStateError,
)
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from routilux.clocks.clock import Clock
    from routilux.core.commits import Commit
    from routilux.core.state import JobState
    from routilux.persist.store import Entry, Hold, JobStore

_FLAG: Final = "take_over=True (--take-over)"
DAMAGED: Final = "damaged"
_MOST_ROWS: Final = 2_000  # that one write deletes, so that no other host waits for long
_TRIES: Final = 20  # enough to be faster once than a host that commits all the time


class Purge(NamedTuple):
    """The jobs that a purge has deleted, each with the time of its last commit, and damaged jobs.

    A damaged job is only deleted if the status `DAMAGED` was selected, because its age is unknown.
    """

    jobs: list[tuple[Entry, int | None]]
    damaged: dict[str, SavedStateError]


def retry_job(
    store: JobStore, job_id: str, *, take_over: bool = False, clock: Clock | None = None
) -> JobState:
    """Let any worker resume a failed job with a fresh retry budget, and return the job.

    With `take_over`, also set free a job that a host holds, with a lease or without; this counts as
    a recovery. A host that still runs the job can commit no more. `clock` gives the time of the
    commit, by default the system's. Raises `NotResumableError` if the job is neither failed nor
    taken over, `KeyError` if there is no such job.

    >>> from routilux import Flow, MemoryStore, Routine, Runtime
    >>> class Charge(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.charge)
    ...     def charge(self):
    ...         raise ConnectionError("no answer")
    >>> flow, store = Flow("payment"), MemoryStore()
    >>> _ = flow.add_routine(Charge(), "charge")
    >>> job = Runtime(store=store).execute(flow, "charge", job_id="A7")
    >>> retry_job(store, "A7").status.value
    'pending'
    """

    def change(job: JobState, hold: Hold, now: int) -> Commit:
        if not job.status.is_live:
            return requests.requeue(job, now)
        if take_over and hold.owner is not None:
            return requests.take_over(job, now)
        if hold.free_in_ns is None:
            cure = f"if that process has ended for good, {_FLAG} lets a worker resume the job"
        elif hold.is_leased:
            cure = f"a worker resumes the job when that lease ends; {_FLAG} makes it free now"
        else:
            cure = f"start a worker of flow {job.flow_id}, which resumes the job"
        raise NotResumableError(f"job {job_id} is {job.status.value}, {hold}; {cure}")

    return _overrule(store, job_id, clock, change)


def cancel_job(
    store: JobStore, job_id: str, reason: str | None = None, *, clock: Clock | None = None
) -> JobState:
    """Cancel a stored job for good, and return the job.

    A host that runs the job can commit no more. Its `ctx.cancelled` becomes true at the next
    commit, effect or renewal of the lease; without a lease, within 0.1 s. `clock` gives the time of
    the commit, by default the system's. Raises `NotResumableError` if the job is final, `KeyError`
    if there is no such job.

    >>> from routilux import Flow, MemoryStore, Routine, Runtime
    >>> class Charge(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=print)
    >>> flow, store = Flow("payment"), MemoryStore()
    >>> _ = flow.add_routine(Charge(), "charge")
    >>> job_id = Runtime(store=store).submit(flow, "charge")
    >>> cancel_job(store, job_id, "the customer has called").status.value
    'cancelled'
    """
    return _overrule(
        store, job_id, clock, lambda job, hold, now: requests.request(job, "cancel", now, reason)
    )


def purge(
    store: JobStore,
    before_ns: int,
    *,
    statuses: Collection[str],
    flow_id: str | None = None,
    dry_run: bool = False,
) -> Purge:
    """Delete the jobs of these statuses whose last commit is older than `before_ns`.

    The status `DAMAGED` selects each job that can't be read, of whatever age and status, unless a
    host holds it with a lease. With `dry_run`, only return the jobs.
    """
    journal = Journal(store)
    found = Purge([], {})
    batch: list[tuple[Entry, int | None]] = []
    rows = 0
    for entry in store.entries():
        try:
            at_ns = _age_of(journal, entry, statuses, flow_id)
        except SavedStateError as error:
            lost = isinstance(error, CorruptStateError) and DAMAGED in statuses
            if not lost or entry.hold.is_leased:
                found.damaged[entry.job_id] = error
            elif dry_run or store.delete(entry.job_id, force=True):
                found.jobs.append((entry._replace(status=DAMAGED), None))
            continue
        if at_ns is not None and at_ns < before_ns:
            batch.append((entry, at_ns))
            rows += entry.seq
        if rows >= _MOST_ROWS:
            found.jobs.extend(batch if dry_run else _deleted(store, batch))
            batch, rows = [], 0
    found.jobs.extend(batch if dry_run else _deleted(store, batch))
    return found


def _age_of(
    journal: Journal, entry: Entry, statuses: Collection[str], flow_id: str | None
) -> int | None:
    """Return the time of the last commit of a job that a purge selects; None for other jobs.

    Raises `SavedStateError` for a damaged job; if these are selected, by reading all of each job.
    """
    if entry.damage is not None:
        raise entry.damage
    if flow_id not in (None, entry.flow_id):
        return None
    if DAMAGED in statuses:
        for history in (True, False):
            journal.read(entry.job_id, history=history)
    return journal.last_ns(entry) if entry.status in statuses else None


def _deleted(
    store: JobStore, batch: Sequence[tuple[Entry, int | None]]
) -> list[tuple[Entry, int | None]]:
    """Delete jobs with one write; return those that were neither resumed nor deleted meanwhile."""
    results = store.delete_all([entry.job_id for entry, _ in batch]) if batch else []
    return [chosen for chosen, deleted in zip(batch, results, strict=True) if deleted is True]


def _overrule(
    store: JobStore,
    job_id: str,
    clock: Clock | None,
    change: Callable[[JobState, Hold, int], Commit],
) -> JobState:
    now_ns = (SystemClock() if clock is None else clock).now_ns()
    journal = Journal(store)
    operator = f"operator-{token_hex(16)}"
    tries = 0
    while True:
        hold = store.holders(job_id).get(job_id)
        job = journal.read(job_id, history=False)
        if job is None or hold is None:
            raise KeyError(f"the store holds no job {job_id!r}")
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
