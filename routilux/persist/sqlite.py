"""`SqliteStore`: one file that many processes and threads share; the store that needs nothing else.

Laws:
- When a write returns, it is on the disk: a write-ahead log, flushed at every commit.
- A write is one transaction, and one statement where nothing but a row is added.
- The time is the machine's, which all who share the file have in common.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

from routilux.clocks.clock import SystemClock
from routilux.errors import LeaseLostError
from routilux.persist.sqlite_connection import SqliteFile
from routilux.persist.store import (
    ABANDONED,
    FREE,
    NOBODY,
    Acquired,
    Hold,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock
    from routilux.persist.store import Append

    _Row = tuple[str, int, str, bytes]  # job id, number, owner, row

__all__ = ["SqliteStore"]

# Adds a row where the one before it stands; else there is no job for it, and so no row. One row of
# values costs less than a SELECT, which may bring many and gets a journal of its own.
_FENCED: Final = """
INSERT OR IGNORE INTO commits VALUES ((
    SELECT job FROM jobs WHERE job_id = ?1{}
    AND EXISTS (SELECT 1 FROM commits WHERE commits.job = jobs.job AND seq = ?2 - 1)
), ?2, ?3, ?4)
"""
_FOLLOW: Final = _FENCED.format("")  # whoever owns the job
_ADD: Final = _FENCED.format(" AND owner = ?3")  # the whole fence in one statement


class SqliteStore:
    """A store in a file, which is made if it is not there; for many processes of one machine.

    The file must be on a disk of this machine, not on a network share. `clock` is the store's
    time, by default the system's. With `read_only` the file must be there, and nothing is written.
    Raises `OSError` where the file can't be used, and `SavedStateError` where it is damaged, of
    another program or of a newer version.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with SqliteStore(pathlib.Path(folder, "jobs.db")) as store:
    ...         store.create("job-1", b"{}", "host-a", flow_id="orders", queued=True)
    ...         store.acquire("host-b", ["orders"], lease_ns=10**9)
    Acquired(job_id='job-1', clean=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = Path(path)
        self._file = SqliteFile(self.path, read_only=read_only)
        self._now = (clock if clock is not None else SystemClock()).now_ns

    def close(self) -> None:
        """Close the file; it is opened again if the store is used again."""
        self._file.close()

    @property
    def overtaken(self) -> bool:
        """Whether somebody began to write while the file was read without locks.

        What was read may then be half old, half new; close it and read again.
        """
        return self._file.overtaken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1; see `JobStore.create`."""
        with self._file.writing() as db:
            added = db.execute(
                "INSERT INTO jobs (job_id, flow_id, owner, free_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (job_id, flow_id, FREE if queued else owner, self._now() if queued else None),
            )
            if added.rowcount:
                db.execute("INSERT INTO commits VALUES (?, 1, ?, ?)", (added.lastrowid, owner, row))
            elif self._count(db, job_id) > 1 or not self._stands(db, job_id, 1, row, owner):
                raise duplicate(job_id)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        added = job_id, seq, owner, row
        if not stopped:
            # Plain, because most commits come this way: a context manager costs 20 us here, where
            # the cache has grown cold while the disk was waited for.
            file = self._file
            with file.lock:
                try:
                    if file.connection().execute(_ADD, added).rowcount:
                        return
                except sqlite3.Error as error:
                    raise file.named(error) from error
        with self._file.writing() as db:
            self._append(db, added, stopped=stopped)

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each; see `JobStore.append_all`."""
        with self._file.writing() as db:
            return refusals(
                appends,
                lambda added: self._append(
                    db, (added.job_id, added.seq, added.owner, added.row), stopped=added.stopped
                ),
            )

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Make `owner` the one owner of a job; see `JobStore.claim`."""
        with self._file.writing() as db:
            held_by, free_at = self._held(db, job_id)
            if held_by not in (*NOBODY, owner) and free_at is not None and free_at > self._now():
                raise self._refusal(db, job_id, seq, owner, claims=True)
            self._add(db, _FOLLOW, (job_id, seq, owner, row), claims=True)
            if stopped or held_by != owner:
                free_at = None
            db.execute(
                "UPDATE jobs SET owner = ?, free_at = ? WHERE job_id = ?", (owner, free_at, job_id)
            )

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of an operator's commit; see `JobStore.overrule`."""
        with self._file.writing() as db:
            if db.execute(_FOLLOW, (job_id, seq, operator, row)).rowcount:
                db.execute(
                    "UPDATE jobs SET owner = ?, free_at = ? WHERE job_id = ?",
                    (FREE if free else operator, self._now() if free else None, job_id),
                )
                return
            count = self._count(db, job_id)
            if count != seq or not self._stands(db, job_id, seq, row, operator):
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`; see `JobStore.keep_snapshot`."""
        with self._file.using() as db:
            db.execute(
                "INSERT INTO snapshots SELECT job, ?2, ?3 FROM jobs JOIN commits USING (job)"
                " WHERE job_id = ?1 AND seq = ?2"
                " ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data"
                " WHERE excluded.seq > snapshots.seq",
                (job_id, seq, data),
            )

    # --- reading --------------------------------------------------------------------------------

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job in order; see `JobStore.rows`."""
        with self._file.using() as db:
            found = db.execute(
                "SELECT row FROM commits"
                " WHERE job = (SELECT job FROM jobs WHERE job_id = ?) AND seq > ? ORDER BY seq",
                (job_id, after),
            ).fetchall()
        return [row for (row,) in found]

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        with self._file.using() as db:
            found = db.execute("SELECT job_id FROM jobs ORDER BY job_id").fetchall()
        return [job_id for (job_id,) in found]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see `JobStore.snapshot`."""
        with self._file.using() as db:
            found = db.execute(
                "SELECT seq, data FROM snapshots JOIN jobs USING (job) WHERE job_id = ?", (job_id,)
            ).fetchone()
        return cast("tuple[int, bytes] | None", found)

    # --- leases ---------------------------------------------------------------------------------

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on a job that is free; see `JobStore.acquire`."""
        if self.free_in(flow_ids) != 0:
            return None  # without a lock, which an idle host need not take
        with self._file.writing() as db:
            now = self._now()
            found = db.execute(
                f"SELECT job, job_id, owner FROM jobs WHERE job IN ({_firsts('job', flow_ids)})"
                " AND free_at <= ? ORDER BY free_at, job LIMIT 1",
                (*flow_ids, now),
            ).fetchone()
            if found is None:
                return None
            job, job_id, before = found
            db.execute(
                "UPDATE jobs SET owner = ?, free_at = ? WHERE job = ?", (owner, now + lease_ns, job)
            )
        return Acquired(job_id, before == FREE)

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end later; see `JobStore.renew`."""
        with self._file.writing() as db:
            mine = "owner = ? AND free_at IS NOT NULL"
            found = db.execute(f"SELECT job_id FROM jobs WHERE {mine}", (owner,)).fetchall()
            if found:
                until = self._now() + lease_ns
                db.execute(f"UPDATE jobs SET free_at = ? WHERE {mine}", (until, owner))
        return [job_id for (job_id,) in found]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired; see `JobStore.release`."""
        with self._file.using() as db:
            db.execute(
                "UPDATE jobs SET owner = ?, free_at = ?"
                " WHERE job_id = ? AND owner = ? AND free_at IS NOT NULL",
                (FREE if clean else ABANDONED, self._now() + after_ns, job_id, owner),
            )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job; see `JobStore.holders`."""
        with self._file.using() as db:
            found = db.execute(
                "SELECT job_id, owner, free_at FROM jobs WHERE ?1 IS NULL OR job_id = ?1", (job_id,)
            ).fetchall()
        now = self._now()
        return {name: Hold.of(owner, free_at, now=now) for name, owner, free_at in found}

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return when the next job will be free; see `JobStore.free_in`."""
        with self._file.using() as db:
            found = db.execute(
                f"SELECT min(free_at) FROM ({_firsts('free_at', flow_ids)})", tuple(flow_ids)
            ).fetchone()
        return None if found[0] is None else max(0, found[0] - self._now())

    # --- how ------------------------------------------------------------------------------------

    def _append(self, db: sqlite3.Connection, added: _Row, *, stopped: bool) -> None:
        self._add(db, _ADD, added)
        if stopped:
            db.execute("UPDATE jobs SET free_at = NULL WHERE job_id = ?", added[:1])

    def _add(
        self, db: sqlite3.Connection, statement: str, added: _Row, *, claims: bool = False
    ) -> None:
        if db.execute(statement, added).rowcount:
            return
        job_id, seq, owner, row = added
        held_by, _ = self._held(db, job_id)
        if held_by != owner or not self._stands(db, job_id, seq, row, owner):
            raise self._refusal(db, job_id, seq, owner, claims=claims)

    def _stands(
        self, db: sqlite3.Connection, job_id: str, seq: int, row: bytes, owner: str
    ) -> bool:
        found = db.execute(
            "SELECT commits.owner, row FROM commits JOIN jobs USING (job)"
            " WHERE job_id = ? AND seq = ?",
            (job_id, seq),
        ).fetchone()
        return bool(found == (owner, row))

    def _count(self, db: sqlite3.Connection, job_id: str) -> int:
        (count,) = db.execute(
            "SELECT count(*) FROM commits JOIN jobs USING (job) WHERE job_id = ?", (job_id,)
        ).fetchone()
        return cast(int, count)

    def _held(self, db: sqlite3.Connection, job_id: str) -> tuple[str, int | None]:
        found = db.execute("SELECT owner, free_at FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        return ("", None) if found is None else found

    def _refusal(
        self, db: sqlite3.Connection, job_id: str, seq: int, owner: str, *, claims: bool
    ) -> Exception:
        count = self._count(db, job_id)
        held_by, _ = self._held(db, job_id)
        return refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)


def _firsts(column: str, flow_ids: Collection[str]) -> str:
    """Select the job of each flow that is free first; so the jobs of other flows cost nothing."""
    asked = "".join(", (?)" for _ in flow_ids)
    return (
        f"SELECT (SELECT {column} FROM jobs WHERE flow_id = column1 AND free_at IS NOT NULL"
        f" ORDER BY free_at, job LIMIT 1) AS {column} FROM (VALUES (NULL){asked})"
    )
