"""`MemoryStore`: keeps jobs in the memory of this process, for tests.

Invariants:
- It follows every rule of `JobStore`; its content ends with the process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from routilux.clocks.clock import SystemClock
from routilux.clocks.forks import begin_in_children
from routilux.errors import LeaseLostError
from routilux.persist.store import (
    ABANDONED,
    FREE,
    Acquired,
    Append,
    Hold,
    JobStore,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock


@dataclass(slots=True)
class _StoredJob:
    flow_id: str
    owner: str
    free_at: int | None
    rows: list[bytes]
    writers: list[str]
    snapshot: tuple[int, bytes] | None = None


class MemoryStore(JobStore):
    """A store in the memory of this process, for tests; its content ends with the process.

    `clock` gives the store's time, by default the system's.

    >>> store = MemoryStore()
    >>> store.create("job-1", b"{}", "host-a", flow_id="orders", queued=True)
    >>> store.acquire("host-b", ["orders"], lease_ns=10**9)
    Acquired(job_id='job-1', clean=True)
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._now = (clock if clock is not None else SystemClock()).now_ns
        self._begin_process()
        self._jobs: dict[str, _StoredJob] = {}
        begin_in_children(self._begin_process)

    def _begin_process(self) -> None:
        self._lock = threading.Lock()

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                holder, free_at = (FREE, self._now()) if queued else (owner, None)
                self._jobs[job_id] = _StoredJob(flow_id, holder, free_at, [row], [owner])
            elif (job.rows, job.writers) != ([row], [owner]):
                raise duplicate(job_id)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.owner != owner or not self._put(job, seq, row, owner):
                raise self._refusal(job_id, seq, owner)
            if stopped:
                job.free_at = None

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        return refusals(appends, lambda row: self.append(*row[:4], stopped=row.stopped))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if (
                job is None
                or Hold.of(job.owner, job.free_at, now=self._now()).is_leased_to_other(owner)
                or not self._put(job, seq, row, owner)
            ):
                raise self._refusal(job_id, seq, owner, claims=True)
            if stopped or job.owner != owner:
                job.free_at = None
            job.owner = owner

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            count = 0 if job is None else len(job.rows)
            if job is not None and 1 < seq == count + 1:
                job.rows.append(row)
                job.writers.append(operator)
                job.owner, job.free_at = (FREE, self._now()) if free else (operator, None)
                return
            last = (count, job.rows[-1], job.writers[-1]) if job is not None else None
            if seq < 2 or last != (seq, row, operator):
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        with self._lock:
            job = self._jobs.get(job_id)
            return [] if job is None else job.rows[after:]

    def job_ids(self) -> list[str]:
        with self._lock:
            return sorted(self._jobs)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and (job.snapshot or (0,))[0] < seq <= len(job.rows):
                job.snapshot = seq, data

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else job.snapshot

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
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
        with self._lock:
            until = self._now() + lease_ns
            renewed = []
            for job_id, job in self._jobs.items():
                if job.owner == owner and job.free_at is not None:
                    job.free_at = until
                    renewed.append(job_id)
            return renewed

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and job.owner == owner and job.free_at is not None:
                job.owner = FREE if clean else ABANDONED
                job.free_at = self._now() + after_ns

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        with self._lock:
            now = self._now()
            return {
                name: Hold.of(job.owner, job.free_at, now=now)
                for name, job in self._jobs.items()
                if job_id in (None, name)
            }

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        with self._lock:
            soonest = min(self._free(flow_ids).values(), default=None)
            return None if soonest is None else max(0, soonest - self._now())

    def _free(self, flow_ids: Collection[str]) -> dict[str, int]:
        return {
            job_id: job.free_at
            for job_id, job in self._jobs.items()
            if job.free_at is not None and job.flow_id in flow_ids
        }

    def _put(self, job: _StoredJob, seq: int, row: bytes, owner: str) -> bool:
        count = len(job.rows)
        if seq == count + 1:
            job.rows.append(row)
            job.writers.append(owner)
            return True
        exists = 1 <= seq <= count and (job.rows[seq - 1], job.writers[seq - 1]) == (row, owner)
        return exists and job.owner == owner

    def _refusal(self, job_id: str, seq: int, owner: str, *, claims: bool = False) -> Exception:
        job = self._jobs.get(job_id)
        count, held_by = (0, "") if job is None else (len(job.rows), job.owner)
        return refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)
