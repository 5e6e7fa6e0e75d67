"""`MemoryStore`: keeps jobs in the memory of this process, for tests.

Invariants:
- It follows every rule of `JobStore`; its content ends with the process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from routilux.clocks.clock import boot_ns
from routilux.clocks.forks import begin_in_children
from routilux.core.commits import JobStatus
from routilux.persist.store import (
    ABANDONED,
    FREE,
    LIVE,
    Acquired,
    Append,
    Entry,
    Hold,
    JobStore,
    duplicate,
    refusal,
    refusals,
    undeletable,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock
    from routilux.errors import NotResumableError, RoutiluxError


@dataclass(slots=True)
class _StoredJob:
    flow_id: str
    owner: str
    free_at: int | None
    status: str
    rows: list[bytes]
    writers: list[str]
    snapshot: tuple[int, bytes] | None = None


class MemoryStore(JobStore):
    """A store in this process's memory, for tests.

    `clock` gives the store's time; by default it is the time since the machine was started.

    >>> store = MemoryStore()
    >>> store.create("job-1", b"{}", "host-a", flow_id="orders", status="pending")
    >>> store.acquire("host-b", ["orders"], lease_ns=10**9)
    [Acquired(job_id='job-1', clean=True)]
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._now = boot_ns if clock is None else clock.now_ns
        self._begin_process()
        self._jobs: dict[str, _StoredJob] = {}
        begin_in_children(self._begin_process)

    def _begin_process(self) -> None:
        self._lock = threading.Lock()

    def create(
        self,
        job_id: str,
        row: bytes,
        owner: str,
        *,
        flow_id: str,
        status: str,
        after_ns: int = 0,
    ) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                queued = status == JobStatus.PENDING
                holder, free_at = (FREE, self._now() + after_ns) if queued else (owner, None)
                self._jobs[job_id] = _StoredJob(flow_id, holder, free_at, status, [row], [owner])
            elif (job.rows, job.writers) != ([row], [owner]):
                raise duplicate(job_id)

    def delete_all(
        self, job_ids: Sequence[str], *, force: bool = False
    ) -> list[bool | NotResumableError]:
        with self._lock:
            return [self._delete(job_id, force=force) for job_id in job_ids]

    def _delete(self, job_id: str, *, force: bool) -> bool | NotResumableError:
        job = self._jobs.get(job_id)
        if job is not None and job.status in LIVE and not force:
            return undeletable(job_id, job.status, self._hold(job))
        return self._jobs.pop(job_id, None) is not None

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.owner != owner:
                raise self._refusal(job_id, seq, owner)
            self._put(job, Append(job_id, seq, row, owner, status), job.free_at)

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        return refusals(appends, lambda row: self.append(*row[:4], status=row.status))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or self._hold(job).is_leased_to_other(owner):
                raise self._refusal(job_id, seq, owner, claims=True)
            free_at = job.free_at if job.owner == owner else None
            self._put(job, Append(job_id, seq, row, owner, status), free_at, claims=True)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, status: str) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            count = 0 if job is None else len(job.rows)
            if job is not None and 1 < seq == count + 1:
                added = Append(job_id, seq, row, operator, status)
                self._put(job, added, self._now(), frees=status in LIVE)
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

    def acquire(
        self, owner: str, flow_ids: Collection[str], lease_ns: int, limit: int = 1
    ) -> list[Acquired]:
        with self._lock:
            now = self._now()
            free = self._free(flow_ids)
            acquired = []
            for job_id in sorted(free, key=free.__getitem__)[:limit]:
                if free[job_id] <= now:
                    job = self._jobs[job_id]
                    acquired.append(Acquired(job_id, job.owner == FREE))
                    job.owner, job.free_at = owner, now + lease_ns
            return acquired

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
            return {
                name: self._hold(job) for name, job in self._jobs.items() if job_id in (None, name)
            }

    def entries(self, *, live: bool = False) -> list[Entry]:
        with self._lock:
            return [
                Entry(name, job.flow_id, job.status, len(job.rows), self._hold(job))
                for name, job in reversed(self._jobs.items())
                if not live or job.status in LIVE
            ]

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

    def _hold(self, job: _StoredJob) -> Hold:
        return Hold.of(job.owner, job.free_at, now=self._now())

    def _put(
        self,
        job: _StoredJob,
        added: Append,
        free_at: int | None,
        *,
        claims: bool = False,
        frees: bool = False,
    ) -> None:
        """Add the next row, or accept the same row again."""
        job_id, seq, row, owner, status = added
        count = len(job.rows)
        if seq == count + 1:
            # An interrupt can't come between these lines and the end of the next call.
            job.writers[count:] = [owner]
            job.owner, job.status = FREE if frees else owner, status
            job.free_at = free_at if status in LIVE else None
            job.rows.append(row)
            return
        same = 1 <= seq <= count and (job.rows[seq - 1], job.writers[seq - 1]) == (row, owner)
        if not same or job.owner != owner:
            raise self._refusal(job_id, seq, owner, claims=claims)

    def _refusal(self, job_id: str, seq: int, owner: str, *, claims: bool = False) -> Exception:
        job = self._jobs.get(job_id)
        count, held_by = (0, "") if job is None else (len(job.rows), job.owner)
        return refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)
