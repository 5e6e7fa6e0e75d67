"""Where commits are kept: `JobStore`, what all stores have in common, and one in memory.

Laws:
- A store sees bytes and knows nothing of what is in them.
- One row a commit, keyed by (job id, sequence number). The key is the fence: a row that another
  owner has written is `LeaseLostError`; writing the same row again is accepted and does nothing.
- When a write returns, the row is kept as safely as this store can. Rows of several jobs may share
  one write, since what makes a row safe costs more than the row.
- Beside its rows a job has two plain facts: its owner, and the instant from which it is free, that
  is, any host may take it. It is never free while it rests, nor while it is held without a lease.
  Who takes it learns whether whoever had it before gave it back: only then was that a clean stop.
- Only the store's own time counts. Whoever asks says how long, never when, so that the clocks of
  hosts need not agree.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from routilux.clock import SystemClock
from routilux.errors import DuplicateJobError, LeaseLostError, NotResumableError
from routilux.persist.leases import FALLEN, FREE, NOBODY, Acquired, Hold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from routilux.clock import Clock

__all__ = ["Append", "JobStore", "MemoryStore", "duplicate", "refusal", "refusals"]


@dataclass(slots=True)
class Append:
    """A row that is to be kept; the arguments of `JobStore.append`."""

    job_id: str
    seq: int
    row: bytes
    owner: str
    rests: bool


class JobStore(Protocol):
    """Keeps the commits of jobs; safe to use from several threads, and whatever shares it.

    All that a method changes is changed at once, or nothing is. `owner` is a text that no other
    host uses, and none of those that stand for nobody. Lengths of time are nanoseconds. A method
    raises `OSError` where the store can't be used just now, whether it has done what was asked or
    not: whoever asked may do the very same again.
    """

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1. A `queued` job is free and has no owner, else `owner` holds it.

        The very same call again does nothing, as long as it is the only row. Raises
        `DuplicateJobError` where the job exists.
        """

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Keep the row of commit `seq`; where the job `rests` after it, it is no longer free.

        A row that stands there already, of the owner, is accepted. Raises `LeaseLostError` where
        `owner` does not own the job, another row stands there, or the one before is missing.
        """

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each, by one write.

        Returns for each None where its row is kept, or the error that `append` would raise; a row
        that is refused holds up no other. Where it raises, any of them may be kept.
        """

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Make `owner` the one owner of a job, and keep the row of the commit that resumes it.

        Who acquired the job keeps the lease; anybody else holds it without one, until it rests or
        is claimed again. A row that stands there already, of the owner, is accepted. Raises
        `LeaseLostError` where another owner has a lease that has not ended, or somebody was
        faster, so that another row stands at `seq`; `NotResumableError` where there is no job.
        """

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of a commit that an operator makes, whoever owns the job or has a lease.

        The owner before it can write no more. Afterwards the job is `free`, or rests. The very
        same call again does nothing, as long as its row is the last. Raises `LeaseLostError` where
        somebody was faster, `NotResumableError` where there is no job.
        """

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job that follow commit `after`, in order; none without the job."""

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`, in place of an earlier snapshot.

        It needs no fence: commits never change, so neither does what they come to.
        """

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the number of a commit and the job as of it; None where there is no snapshot."""

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on the job of these flows that has been free longest.

        Returns which one, and whether it was given back; None where none is free. The owner before
        it can write no more. Until the lease ends the job is not free.
        """

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end so much later than now; return the ids of their jobs."""

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired, to be free after so long; else do nothing.

        Without `clean` it is let fall: whoever takes it next learns of an unclean stop.
        """

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job, or that one alone; what is not there is not among them."""

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return in how many nanoseconds the next job of these flows will be free.

        It is 0 where one is; None where no time frees any: all of them rest, or are held.
        """


def refusal(
    job_id: str, seq: int, owner: str, *, count: int, held_by: str, claims: bool = False
) -> Exception:
    """Return the error by which a store refuses a row; `count` is how many rows the job has."""
    if not count:
        if claims:
            return NotResumableError(
                f"the store holds no job {job_id!r}; only a job that it holds can be claimed"
            )
        return LeaseLostError(f"the store holds no job {job_id!r} to add commit {seq} to")
    if owner != held_by:
        free = held_by in NOBODY
        whose = "is free to be taken by any host" if free else f"belongs to {held_by!r}"
        return LeaseLostError(f"job {job_id!r} {whose} now; commit {seq} of {owner!r} was refused")
    return LeaseLostError(
        f"job {job_id!r} has {count} commits in the store, so this can't be commit"
        f" {seq}: another host has gone on with it"
    )


def duplicate(job_id: str) -> DuplicateJobError:
    """Return the error by which a store refuses to create a job that it holds."""
    return DuplicateJobError(
        f"the store holds a job {job_id!r} already; choose another job_id, or resume it"
    )


def refusals(
    appends: Iterable[Append], append: Callable[[Append], None]
) -> list[LeaseLostError | None]:
    """Try each append; return None for it, or by what it was refused."""
    told: list[LeaseLostError | None] = []
    for added in appends:
        try:
            append(added)
        except LeaseLostError as error:
            told.append(error)
        else:
            told.append(None)
    return told


class _Kept:
    __slots__ = ("flow_id", "free_at", "owner", "rows", "snapshot", "writers")

    def __init__(self, flow_id: str, owner: str, free_at: int | None) -> None:
        self.flow_id = flow_id
        self.owner = owner
        self.free_at = free_at
        self.rows: list[bytes] = []
        self.writers: list[str] = []
        self.snapshot: tuple[int, bytes] | None = None


class MemoryStore:
    """A store that lives as long as the process; for tests.

    `clock` is the store's time, by default the system's.

    >>> store = MemoryStore()
    >>> store.create("job-1", b"{}", "host-a", flow_id="orders", queued=True)
    >>> store.acquire("host-b", ["orders"], lease_ns=10**9)
    Acquired(job_id='job-1', clean=True)
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._now = (clock if clock is not None else SystemClock()).now_ns
        self._lock = threading.Lock()
        self._jobs: dict[str, _Kept] = {}

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1; see `JobStore.create`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None:
                if (job.rows, job.writers) == ([row], [owner]):
                    return
                raise duplicate(job_id)
            free_at = self._now() if queued else None
            job = self._jobs[job_id] = _Kept(flow_id, FREE if queued else owner, free_at)
            job.rows.append(row)
            job.writers.append(owner)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.owner != owner or not self._put(job, seq, row, owner):
                raise self._refusal(job_id, seq, owner)
            if rests:
                job.free_at = None

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each; see `JobStore.append_all`."""
        return refusals(
            appends,
            lambda added: self.append(
                added.job_id, added.seq, added.row, added.owner, rests=added.rests
            ),
        )

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Make `owner` the one owner of a job; see `JobStore.claim`."""
        with self._lock:
            job = self._jobs.get(job_id)
            leased = (
                job is not None
                and job.owner not in (*NOBODY, owner)
                and job.free_at is not None
                and job.free_at > self._now()
            )
            if job is None or leased or not self._put(job, seq, row, owner):
                raise self._refusal(job_id, seq, owner, claims=True)
            if rests or job.owner != owner:
                job.free_at = None
            job.owner = owner

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of an operator's commit; see `JobStore.overrule`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or not 1 < seq == len(job.rows) + 1:
                last = None if job is None else (len(job.rows), job.rows[-1], job.writers[-1])
                if last == (seq, row, operator):
                    return
                count = 0 if last is None else last[0]
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)
            job.rows.append(row)
            job.writers.append(operator)
            job.owner, job.free_at = (FREE, self._now()) if free else (operator, None)

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job in order; see `JobStore.rows`."""
        with self._lock:
            job = self._jobs.get(job_id)
            return [] if job is None else job.rows[after:]

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        with self._lock:
            return sorted(self._jobs)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`; see `JobStore.keep_snapshot`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and (job.snapshot or (0,))[0] < seq <= len(job.rows):
                job.snapshot = seq, data

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see `JobStore.snapshot`."""
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else job.snapshot

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on a job that is free; see `JobStore.acquire`."""
        with self._lock:
            now = self._now()
            free = self._free(flow_ids)
            job_id = min(free, key=free.__getitem__, default=None)
            if job_id is None or free[job_id] > now:
                return None
            job = self._jobs[job_id]
            clean = job.owner == FREE
            job.owner, job.free_at = owner, now + lease_ns
            return Acquired(job_id, clean)

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end later; see `JobStore.renew`."""
        with self._lock:
            until = self._now() + lease_ns
            leased = [
                job_id
                for job_id, job in self._jobs.items()
                if job.owner == owner and job.free_at is not None
            ]
            for job_id in leased:
                self._jobs[job_id].free_at = until
            return leased

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired; see `JobStore.release`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and job.owner == owner and job.free_at is not None:
                job.owner = FREE if clean else FALLEN
                job.free_at = self._now() + after_ns

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job; see `JobStore.holders`."""
        with self._lock:
            now = self._now()
            return {
                name: Hold.of(job.owner, job.free_at, now=now)
                for name, job in self._jobs.items()
                if job_id in (None, name)
            }

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return when the next job will be free; see `JobStore.free_in`."""
        with self._lock:
            soonest = min(self._free(flow_ids).values(), default=None)
            return None if soonest is None else max(0, soonest - self._now())

    def _free(self, flow_ids: Collection[str]) -> dict[str, int]:
        return {
            job_id: job.free_at
            for job_id, job in self._jobs.items()
            if job.free_at is not None and job.flow_id in flow_ids
        }

    def _put(self, job: _Kept, seq: int, row: bytes, owner: str) -> bool:
        count = len(job.rows)
        if seq == count + 1:
            job.rows.append(row)
            job.writers.append(owner)
            return True
        stands = 1 <= seq <= count and (job.rows[seq - 1], job.writers[seq - 1]) == (row, owner)
        return stands and job.owner == owner

    def _refusal(self, job_id: str, seq: int, owner: str, *, claims: bool = False) -> Exception:
        job = self._jobs.get(job_id)
        count, held_by = (0, "") if job is None else (len(job.rows), job.owner)
        return refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)
