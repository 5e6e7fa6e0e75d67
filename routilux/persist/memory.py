"""`MemoryStore`: keeps jobs in this process, for tests.

Invariants:
- It follows every rule of `JobStore`; what it keeps ends with the process.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from routilux.clocks.clock import SystemClock
from routilux.errors import LeaseLostError
from routilux.persist.store import (
    ABANDONED,
    FREE,
    NOBODY,
    Acquired,
    Append,
    Hold,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock

__all__ = ["MemoryStore"]


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

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.owner != owner or not self._put(job, seq, row, owner):
                raise self._refusal(job_id, seq, owner)
            if stopped:
                job.free_at = None

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each; see `JobStore.append_all`."""
        return refusals(
            appends,
            lambda added: self.append(
                added.job_id, added.seq, added.row, added.owner, stopped=added.stopped
            ),
        )

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
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
            if stopped or job.owner != owner:
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
                job.owner = FREE if clean else ABANDONED
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
