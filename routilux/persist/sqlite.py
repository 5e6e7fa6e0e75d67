"""`SqliteStore`: keeps jobs in one file that all processes of a machine can share.

Invariants:
- When a write returns, it is on the disk: a write-ahead log, flushed at every commit.
- A write is one transaction, and one statement if it only adds a row.
- The time is that of the machine, which all processes that share the file have in common.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import SystemClock
from routilux.errors import LeaseLostError
from routilux.persist.sqlite_connection import SqliteFile
from routilux.persist.sqlite_files import back_up
from routilux.persist.store import (
    ABANDONED,
    FREE,
    Acquired,
    Append,
    Hold,
    SharedStore,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock

# Adds a row if the row before it exists; else the job is NULL, and the row is ignored. VALUES costs
# less than a SELECT, which may return many rows and gets a journal of its own.
_FENCED: Final = """
INSERT OR IGNORE INTO commits VALUES ((
    SELECT job FROM jobs WHERE job_id = ?1{}
    AND EXISTS (SELECT 1 FROM commits WHERE commits.job = jobs.job AND seq = ?2 - 1)
), ?2, ?4, ?3)
"""
_FOLLOW: Final = _FENCED.format("")  # with any owner
_APPEND: Final = _FENCED.format(" AND owner = ?4")
_STATE: Final = """
SELECT owner, free_at, (SELECT max(seq) FROM commits AS found WHERE found.job = jobs.job), EXISTS (
    SELECT 1 FROM commits AS found
    WHERE found.job = jobs.job AND seq = ?2 AND row = ?3 AND found.owner = ?4
) FROM jobs WHERE job_id = ?1
"""


class SqliteStore(SharedStore):
    """A store in a SQLite file, for many processes of one machine; creates a missing file.

    The file must be on a disk of this machine, not on a network share. `clock` gives the store's
    time, by default the system's. With `read_only` the file must exist, and nothing is written.
    Raises `OSError` if the file can't be used, and `SavedStateError` if it is damaged, belongs to
    another program or has a newer version.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with SqliteStore(pathlib.Path(folder, "jobs.db")) as store:
    ...         store.create("job-1", b"{}", "host-a", flow_id="orders", queued=True)
    ...         store.acquire("host-b", ["orders"], lease_ns=10**9)
    Acquired(job_id='job-1', clean=True)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock | None = None, read_only: bool = False
    ) -> None:
        self.path = Path(path)
        self._file = SqliteFile(self.path, read_only=read_only)
        self._now = (clock if clock is not None else SystemClock()).now_ns

    def close(self) -> None:
        self._file.close()

    @property
    def overtaken(self) -> bool:
        """Whether another process began to write while this process read without locks.

        What was read may then be half old, half new; close the store and read again.
        """
        return self._file.overtaken

    def backup(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Write a copy of the store to another file, also while processes write to the store.

        The copy has every commit that was acknowledged before. To restore it, end all processes
        that use the store, and move its three files away (`jobs.db`, `jobs.db-wal`,
        `jobs.db-shm`); then put the copy in their place. Do not copy `jobs.db` itself while the
        store is in use: its last commits are in `jobs.db-wal`.

        Raises `OSError` if the file exists and `replace` is not set, or can't be written.

        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SqliteStore(pathlib.Path(folder, "jobs.db")) as store:
        ...         store.create("job-1", b"{}", "host-a", flow_id="orders", queued=True)
        ...         store.backup(pathlib.Path(folder, "copy.db"))
        ...     with SqliteStore(pathlib.Path(folder, "copy.db")) as copy:
        ...         copy.job_ids()
        ['job-1']
        """
        try:
            back_up(self.path, Path(path).absolute(), self._file.copy_to, replace=replace)
        except sqlite3.Error as error:
            with self._file.lock:
                raise self._file.named(error) from error

    def integrity(self) -> list[str]:
        """Let SQLite check the whole file; return what is damaged, at most 100 places."""
        found = [text for (text,) in self._file.do("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        with self._file.writing() as db:
            added = db.execute(
                "INSERT INTO jobs (job_id, flow_id, owner, free_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (job_id, flow_id, FREE if queued else owner, self._now() if queued else None),
            )
            if added.rowcount:
                db.execute("INSERT INTO commits VALUES (?, 1, ?, ?)", (added.lastrowid, owner, row))
            elif _state(db, Append(job_id, 1, row, owner, stopped=False))[2:] != (1, True):
                raise duplicate(job_id)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        if not stopped and self._file.add(_APPEND, (job_id, seq, row, owner)):
            return
        with self._file.writing() as db:
            _append(db, Append(job_id, seq, row, owner, stopped))

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        with self._file.writing() as db:
            return refusals(appends, lambda added: _append(db, added))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        with self._file.writing() as db:
            added = Append(job_id, seq, row, owner, stopped)
            held_by, free_at, count, _ = _state(db, added)
            if Hold.of(held_by, free_at, now=self._now()).is_leased_to_other(owner):
                raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=True)
            _add(db, _FOLLOW, added, claims=True)
            if stopped or held_by != owner:
                free_at = None
            _hold(db, job_id, owner, free_at)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        with self._file.writing() as db:
            if db.execute(_FOLLOW, (job_id, seq, row, operator)).rowcount:
                _hold(db, job_id, *((FREE, self._now()) if free else (operator, None)))
                return
            _, _, count, same = _state(db, Append(job_id, seq, row, operator, stopped=not free))
            if seq < 2 or count != seq or not same:
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        with self._file.writing() as db:
            db.execute(
                "INSERT INTO snapshots SELECT job, ?2, ?3 FROM jobs JOIN commits USING (job)"
                " WHERE job_id = ?1 AND seq = ?2"
                " ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data"
                " WHERE excluded.seq > snapshots.seq",
                (job_id, seq, data),
            )

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        found = self._file.do(
            "SELECT row FROM commits"
            " WHERE job = (SELECT job FROM jobs WHERE job_id = ?) AND seq > ? ORDER BY seq",
            (job_id, after),
        )
        return [row for (row,) in found]

    def job_ids(self) -> list[str]:
        return [job_id for (job_id,) in self._file.do("SELECT job_id FROM jobs ORDER BY job_id")]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        found = self._file.do(
            "SELECT seq, data FROM snapshots JOIN jobs USING (job) WHERE job_id = ?", (job_id,)
        )
        return found[0] if found else None

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        if self.free_in(flow_ids) != 0:
            return None  # an idle host takes no lock
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
        leased = "owner = ? AND free_at IS NOT NULL"
        with self._file.writing() as db:
            found = db.execute(f"SELECT job_id FROM jobs WHERE {leased}", (owner,)).fetchall()
            if found:
                until = self._now() + lease_ns
                db.execute(f"UPDATE jobs SET free_at = ? WHERE {leased}", (until, owner))
        return [job_id for (job_id,) in found]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        with self._file.writing() as db:
            db.execute(
                "UPDATE jobs SET owner = ?, free_at = ?"
                " WHERE job_id = ? AND owner = ? AND free_at IS NOT NULL",
                (FREE if clean else ABANDONED, self._now() + after_ns, job_id, owner),
            )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        # Without an OR in it, so that the index is used: this is asked before each effect.
        one, values = ("", ()) if job_id is None else (" WHERE job_id = ?", (job_id,))
        found = self._file.do(f"SELECT job_id, owner, free_at FROM jobs{one}", values)
        now = self._now()
        return {name: Hold.of(owner, free_at, now=now) for name, owner, free_at in found}

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        [(soonest,)] = self._file.do(
            f"SELECT min(free_at) FROM ({_firsts('free_at', flow_ids)})", tuple(flow_ids)
        )
        return None if soonest is None else max(0, soonest - self._now())


def _append(db: sqlite3.Connection, added: Append) -> None:
    _add(db, _APPEND, added)
    if added.stopped:
        db.execute("UPDATE jobs SET free_at = NULL WHERE job_id = ?", (added.job_id,))


def _add(db: sqlite3.Connection, statement: str, added: Append, *, claims: bool = False) -> None:
    """Add row `added`, or accept it if its owner wrote it before; otherwise raise the refusal."""
    if db.execute(statement, added[:4]).rowcount:
        return
    job_id, seq, _, owner, _ = added
    held_by, _, count, same = _state(db, added)
    if held_by != owner or not same:
        raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)


def _hold(db: sqlite3.Connection, job_id: str, owner: str, free_at: int | None) -> None:
    db.execute("UPDATE jobs SET owner = ?, free_at = ? WHERE job_id = ?", (owner, free_at, job_id))


def _state(db: sqlite3.Connection, added: Append) -> tuple[str, int | None, int, bool]:
    """Return the job's owner, free time and number of rows, and whether row `added` is stored."""
    return db.execute(_STATE, added[:4]).fetchone() or ("", None, 0, False)


def _firsts(column: str, flow_ids: Collection[str]) -> str:
    """Return SQL that selects, for each of these flows, the job that becomes free first."""
    asked = "".join(", (?)" for _ in flow_ids)
    return (
        f"SELECT (SELECT {column} FROM jobs WHERE flow_id = column1 AND free_at IS NOT NULL"
        f" ORDER BY free_at, job LIMIT 1) AS {column} FROM (VALUES (NULL){asked})"
    )
