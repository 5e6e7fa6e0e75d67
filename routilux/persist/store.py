"""Where commits are kept: `JobStore`, one in memory, and the `Journal` that writes to either.

Laws:
- A store sees bytes and knows nothing of what is in them; the journal encodes what goes there.
- One row a commit, keyed by (job id, sequence number). The key is the fence: a row that another
  owner has written is `LeaseLostError`; writing the same row again is accepted and does nothing.
- When `append` returns, the row is kept as safely as this store can.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from routilux import codec
from routilux.errors import DuplicateJobError, LeaseLostError, NotResumableError

if TYPE_CHECKING:
    from routilux.core.records import Commit

__all__ = ["JobStore", "Journal", "MemoryStore"]


class JobStore(Protocol):
    """Keeps the commits of jobs; safe to use from several threads."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str) -> None:
        """Keep the row of commit `seq`; `seq` 1 creates the job.

        Raises `DuplicateJobError` where the job exists already, and `LeaseLostError` where
        `owner` does not own it or another row stands there.
        """

    def claim(self, job_id: str, seq: int, row: bytes, owner: str) -> None:
        """Make `owner` the one owner of a job, and keep the row of the commit that resumes it.

        Raises `LeaseLostError` where another row stands at `seq`: somebody was faster.
        """

    def rows(self, job_id: str) -> list[bytes]:
        """Return all rows of a job in order; an empty list for a job that is not there."""

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""


class Journal:
    """Writes the commits of jobs to a store; when `write` returns, a commit is durable."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        """Write a commit; one that `claims` makes `owner` the one owner of the job.

        Raises `UnserializableError` with nothing written, and what the store raises.
        """
        row = codec.dumps(commit.serialize()).encode()
        keep = self._store.claim if claims else self._store.append
        keep(job_id, commit.seq, row, owner)


class MemoryStore:
    """A store that lives as long as the process; for tests.

    >>> store = MemoryStore()
    >>> store.append("job-1", 1, b"{}", "host-a")
    >>> store.rows("job-1")
    [b'{}']
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, list[bytes]] = {}
        self._owners: dict[str, str] = {}

    def append(self, job_id: str, seq: int, row: bytes, owner: str) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        with self._lock:
            rows = self._rows.get(job_id, [])
            if seq == 1 and rows and (rows[0] != row or self._owners[job_id] != owner):
                raise DuplicateJobError(
                    f"the store holds a job {job_id!r} already; choose another job_id, or resume it"
                )
            if rows and self._owners[job_id] != owner:
                raise LeaseLostError(
                    f"job {job_id!r} belongs to {self._owners[job_id]!r} now; commit {seq} of"
                    f" {owner!r} was refused"
                )
            self._put(job_id, rows, seq, row)
            self._owners[job_id] = owner

    def claim(self, job_id: str, seq: int, row: bytes, owner: str) -> None:
        """Make `owner` the one owner of a job; see `JobStore.claim`."""
        with self._lock:
            rows = self._rows.get(job_id)
            if rows is None:
                raise NotResumableError(
                    f"the store holds no job {job_id!r}; only a job that it holds can be claimed"
                )
            if seq <= len(rows) and self._owners[job_id] != owner:
                raise LeaseLostError(
                    f"job {job_id!r} was claimed by {self._owners[job_id]!r} meanwhile; commit"
                    f" {seq} of {owner!r} was refused"
                )
            self._put(job_id, rows, seq, row)
            self._owners[job_id] = owner

    def rows(self, job_id: str) -> list[bytes]:
        """Return all rows of a job in order."""
        with self._lock:
            return self._rows.get(job_id, []).copy()

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        with self._lock:
            return sorted(self._rows)

    def _put(self, job_id: str, rows: list[bytes], seq: int, row: bytes) -> None:
        if 1 <= seq <= len(rows) and rows[seq - 1] == row:
            return
        if seq != len(rows) + 1:
            raise LeaseLostError(
                f"job {job_id!r} has {len(rows)} commits in the store, so this can't be commit"
                f" {seq}: another host has gone on with it"
            )
        self._rows.setdefault(job_id, rows).append(row)
