"""`SqliteStore`: keeps jobs in one file that all processes of a machine can share.

Invariants:
- When a write returns, it is on the disk: a write-ahead log, flushed at every commit.
- A write is one transaction, and one statement if it only adds a row.
- Each entry is sealed by a checksum. A statement that changes an entry changes only an intact one,
  so that no damage gets a new seal.
- The time counts from the start of the machine, which all processes that share the file have in
  common, and which nobody can set. After a new start of the machine all leases are over. Jobs that
  are to be free later wait for the rest, by the UTC time that the store kept for the earlier start.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from routilux.clocks.clock import SystemClock, boot_id, boot_ns
from routilux.core.commits import JobStatus
from routilux.errors import CorruptStateError
from routilux.persist.sqlite_connection import SqliteFile
from routilux.persist.sqlite_files import back_up
from routilux.persist.store import (
    ABANDONED,
    BACKUP,
    FREE,
    LIVE,
    STOPPED,
    UNKNOWN,
    Acquired,
    Append,
    Entry,
    Hold,
    SharedStore,
    complete,
    damaged,
    duplicate,
    refusal,
    refusals,
    undeletable,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock
    from routilux.errors import NotResumableError, RoutiluxError


def _seal(**new: str) -> str:
    """Return SQL for the seal of an entry of which these columns get new values.

    The number of commits is its upper half, so that a trigger can count a row without a checksum.
    """
    names = ("job_id", "flow_id", "owner", "free_at", "wait", "status")
    parts = "||char(31)||".join(f"ifnull({new.get(name, name)}, '')" for name in names)
    return f"({new.get('seq', 'seq')} << 32) + crc32(CAST({parts} AS BLOB))"


def _update(**new: str) -> str:
    """Return SQL that sets columns of an intact entry, and its seal, where `job_id` is ?1."""
    columns = ", ".join(f"{name} = {value}" for name, value in new.items())
    return f"UPDATE jobs SET {columns}, seal = {_seal(**new)} WHERE {_INTACT}"


_INTACT: Final = f"seal = {_seal()}"
# Adds a row if the row before it is the last; else the job is NULL, and the row is ignored. VALUES
# costs less than a SELECT, which may return many rows and gets a journal of its own. A trigger
# counts the row: at a quarter of the cost of a second statement.
_ADD: Final = """
INSERT OR IGNORE INTO commits VALUES ((
    SELECT job FROM jobs WHERE job_id = ?1 AND seq = ?2 - 1 AND {}
), ?2, ?4, ?3)
"""
_FOLLOW: Final = _ADD.format(_INTACT)  # with any owner
_APPEND: Final = _ADD.format(f"owner = ?4 AND {_INTACT}")
# Most commits change no status. The trigger keeps a seal that does not match as it is.
_STEP: Final = _ADD.format("owner = ?4 AND status = ?5")
_CREATE: Final = f"""
INSERT INTO jobs (job_id, flow_id, owner, free_at, wait, status, seq, seal)
SELECT *, {_seal()} FROM (SELECT
    ?1 AS job_id, ?2 AS flow_id, ?3 AS owner, ?4 AS free_at, ?5 AS wait, ?6 AS status, 1 AS seq
) WHERE true ON CONFLICT DO NOTHING
"""
_STATE: Final = f"""
SELECT owner, free_at, seq, EXISTS (
    SELECT 1 FROM commits AS found WHERE found.job = jobs.job AND found.seq = ?2
    AND row = ?3 AND found.owner = ?4
), {_INTACT} FROM jobs WHERE job_id = ?1
"""
_STATUS: Final = f"{_update(status='?2')} AND job_id = ?1"
_HOLD: Final = f"{_update(owner='?2', free_at='?3', wait='?4', status='?5')} AND job_id = ?1"
# An index may be damaged, so it only proposes the jobs.
_FREE: Final = f"""
SELECT free_at, job, job_id, owner FROM jobs
WHERE flow_id = ? AND free_at <= ? AND {_INTACT} ORDER BY free_at, job LIMIT ?
"""
_LEASE: Final = f"{_update(owner='?2', free_at='?3', wait='?4')} AND job = ?1 AND free_at <= ?5"
_LEASED: Final = f"owner = ?1 AND free_at IS NOT NULL AND {_INTACT}"
_RENEW: Final = f"{_update(free_at='?2', wait='?3')} AND owner = ?1 AND free_at IS NOT NULL"
_RELEASE: Final = f"""
{_update(owner="?3", free_at="?4", wait="?5")}
AND job_id = ?1 AND owner = ?2 AND free_at IS NOT NULL
"""
_SOURCE: Final = """
SELECT count(*), max(source), max(utc), max(seal), EXISTS (SELECT 1 FROM jobs) FROM time
"""
_LEFT: Final = f"""
?1 + CASE WHEN owner IN ('{FREE}', '{ABANDONED}')
THEN max(0, min(wait, free_at + ?2 - ?1)) ELSE 0 END
"""
_RESTART: Final = f"{_update(free_at=_LEFT)} AND free_at IS NOT NULL"
_OF_JOB: Final = "job = (SELECT job FROM jobs WHERE job_id = ?1)"
_CLAMP: Final = f"{_update(free_at='?1 + wait')} AND free_at > ?1 + wait"
# A limit keeps SQLite from computing the seal for each row.
_ROWS: Final = f"""
SELECT entry.seq, intact, commits.seq, row
FROM (SELECT job, seq, {_INTACT} AS intact FROM jobs WHERE job_id = ?1 LIMIT 1) AS entry
LEFT JOIN commits ON commits.job = entry.job AND commits.seq > ?2 ORDER BY commits.seq
"""
_ENTRIES: Final = f"""
SELECT job_id, flow_id, status, seq, owner, free_at, wait, {_INTACT} FROM jobs
WHERE {{}} ORDER BY job DESC
"""
_STOPPED: Final = "status IN ({})".format(", ".join(f"'{status}'" for status in STOPPED))


class SqliteStore(SharedStore):
    """A store in a SQLite file, for many processes of one machine; creates a missing file.

    The file must be on a disk of this machine, not on a network share. `clock` gives the store's
    time; by default it is the time since the machine was started. With `read_only` the file must
    exist, and nothing is written. Raises `OSError` if the file can't be used, and `SavedStateError`
    if it is damaged, belongs to another program or has a newer version.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with SqliteStore(pathlib.Path(folder, "jobs.db")) as store:
    ...         store.create("job-1", b"{}", "host-a", flow_id="orders", status="pending")
    ...         store.acquire("host-b", ["orders"], lease_ns=10**9)
    [Acquired(job_id='job-1', clean=True)]
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock | None = None, read_only: bool = False
    ) -> None:
        self.path: Path = Path(path)
        """The path of the file."""
        self._place = str(self.path.resolve())
        self._file = SqliteFile(self.path, read_only=read_only)
        real = clock is None or isinstance(clock, SystemClock)
        self._now = boot_ns if clock is None or real else clock.now_ns
        utc = SystemClock().now_ns() - boot_ns() if real else 0
        try:
            self._begin_time(boot_id() if real else "a given clock", utc)
        except BaseException:
            self.close()
            raise

    def _begin_time(self, source: str, utc: int) -> None:
        """Move the ends of all waits if the store's time had another source.

        `utc` is UTC minus the store's time. A reader changes nothing: it keeps the `_shift`.
        """
        before = self._source(self._file.do(_SOURCE))
        self._shift = None if before is None or before[0] == source else before[1] - utc
        if self._file.read_only or (source and before is not None and before[0] == source):
            return

        def begin(db: sqlite3.Connection) -> None:
            now = self._now()
            # Read again: another process may have been faster.
            before = self._source(db.execute(_SOURCE).fetchall())
            if before is None or before[0] != source:
                db.execute("DELETE FROM time")
                db.execute(
                    "INSERT INTO time VALUES (?, ?, ?)", (source, utc, _time_seal(source, utc))
                )
                db.execute(_RESTART, (now, 0 if before is None else before[1] - utc))
            else:  # without an id of the start, a time too far ahead shows that it is another one
                db.execute(_CLAMP, (now,))

        self._file.write(begin)
        self._shift = None

    def _source(
        self, found: list[tuple[int, object, object, object, int]]
    ) -> tuple[str, int] | None:
        """Return the source and the UTC of the store's time; None in a new store.

        Raises if the record is damaged.
        """
        [(count, source, utc, seal, has_jobs)] = found
        if (
            count == 1
            and type(source) is str
            and type(utc) is int
            and seal == _time_seal(source, utc)
        ):
            return source, utc
        if count or has_jobs:
            raise CorruptStateError(
                str(self.path), f"its record of the store's time is damaged; {BACKUP}"
            )
        return None

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
        ...         store.create("job-1", b"{}", "host-a", flow_id="orders", status="pending")
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
        def work(db: sqlite3.Connection) -> None:
            queued = status == JobStatus.PENDING
            free_at = self._now() + after_ns
            hold = (FREE, free_at, after_ns) if queued else (owner, None, None)
            added = db.execute(_CREATE, (job_id, flow_id, *hold, status))
            if added.rowcount:
                db.execute("INSERT INTO commits VALUES (?, 1, ?, ?)", (added.lastrowid, owner, row))
            elif _state(db, Append(job_id, 1, row, owner, status))[2:] != (1, True):
                raise duplicate(job_id)

        self._file.write(work)

    def delete_all(
        self, job_ids: Sequence[str], *, force: bool = False
    ) -> list[bool | NotResumableError]:
        return self._file.write(
            lambda db: [self._delete(db, job_id, force=force) for job_id in job_ids]
        )

    def _delete(
        self, db: sqlite3.Connection, job_id: str, *, force: bool
    ) -> bool | NotResumableError:
        found = db.execute(_ENTRIES.format("job_id = ?"), (job_id,)).fetchall()
        if not found:
            return False
        [entry] = self._read_entries(found)
        if entry.damage is None and entry.status in LIVE and not force:
            return undeletable(job_id, entry.status, entry.hold)
        for table in ("commits", "snapshots", "jobs"):
            db.execute(f"DELETE FROM {table} WHERE {_OF_JOB}", (job_id,))
        return True

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        if status in LIVE and self._file.add(_STEP, (job_id, seq, row, owner, status)):
            return
        added = Append(job_id, seq, row, owner, status)
        self._file.write(lambda db: _append(db, added))

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        return self._file.write(lambda db: refusals(appends, lambda added: _append(db, added)))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        added = Append(job_id, seq, row, owner, status)

        def work(db: sqlite3.Connection) -> None:
            held_by, free_at, count, _ = _state(db, added)
            if Hold.of(held_by, free_at, now=self._now()).is_leased_to_other(owner):
                raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=True)
            if not _add(db, _FOLLOW, added, claims=True):
                return
            if held_by != owner or status not in LIVE:
                db.execute(_HOLD, (job_id, owner, None, None, status))
            else:
                db.execute(_STATUS, (job_id, status))

        self._file.write(work)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, status: str) -> None:
        added = Append(job_id, seq, row, operator, status)

        def work(db: sqlite3.Connection) -> None:
            _, _, count, same = _state(db, added)
            if db.execute(_FOLLOW, added[:4]).rowcount:
                hold = (FREE, self._now(), 0) if status in LIVE else (operator, None, None)
                db.execute(_HOLD, (job_id, *hold, status))
            elif seq < 2 or count != seq or not same:
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

        self._file.write(work)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        self._file.add(
            "INSERT INTO snapshots SELECT job, ?2, ?3 FROM jobs WHERE job_id = ?1 AND seq >= ?2"
            " ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data"
            " WHERE excluded.seq > snapshots.seq",
            (job_id, seq, data),
        )

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        return complete(job_id, after, self._file.do(_ROWS, (job_id, after)))

    def job_ids(self) -> list[str]:
        return sorted(str(job_id) for (job_id,) in self._file.do("SELECT job_id FROM jobs"))

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        found = self._file.do(
            "SELECT snapshots.seq, data FROM snapshots JOIN jobs USING (job) WHERE job_id = ?",
            (job_id,),
        )
        return found[0] if found else None

    def acquire(
        self, owner: str, flow_ids: Collection[str], lease_ns: int, limit: int = 1
    ) -> list[Acquired]:
        if self.free_in(flow_ids) != 0:
            return []  # an idle host takes no lock

        def work(db: sqlite3.Connection) -> list[Acquired]:
            now = self._now()
            free = sorted(
                found for flow_id in flow_ids for found in db.execute(_FREE, (flow_id, now, limit))
            )
            return [
                Acquired(job_id, before == FREE)
                for _, job, job_id, before in free[:limit]
                if db.execute(_LEASE, (job, owner, now + lease_ns, lease_ns, now)).rowcount
            ]

        return self._file.write(work)

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        def work(db: sqlite3.Connection) -> list[str]:
            found = db.execute(f"SELECT job_id FROM jobs WHERE {_LEASED}", (owner,)).fetchall()
            if found:
                db.execute(_RENEW, (owner, self._now() + lease_ns, lease_ns))
            return [job_id for (job_id,) in found]

        return self._file.write(work)

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        nobody = FREE if clean else ABANDONED
        self._file.write(
            lambda db: db.execute(
                _RELEASE, (job_id, owner, nobody, self._now() + after_ns, after_ns)
            )
        )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        # Without an OR, so that the index is used: a host asks this before each effect.
        where, values = ("true", ()) if job_id is None else ("job_id = ?", (job_id,))
        entries = self._entries(where, *values)
        if job_id is not None and entries and entries[0].damage is not None:
            raise entries[0].damage
        return {entry.job_id: entry.hold for entry in entries if entry.damage is None}

    def entries(self, *, live: bool = False) -> list[Entry]:
        return self._entries(f"status IS NULL OR NOT {_STOPPED}" if live else "true")

    def _entries(self, where: str, *values: object) -> list[Entry]:
        return self._read_entries(self._file.do(_ENTRIES.format(where), values))

    def _read_entries(self, found: list[tuple[Any, ...]]) -> list[Entry]:
        now = self._now()
        return [
            Entry(job_id, flow_id, status, seq, self._hold(owner, free_at, wait, now))
            if intact
            else Entry(str(job_id), str(flow_id), "", 0, UNKNOWN, damaged(str(job_id)))
            for job_id, flow_id, status, seq, owner, free_at, wait, intact in found
        ]

    def damage(self) -> list[CorruptStateError]:
        try:
            found = [text for (text,) in self._file.do("PRAGMA integrity_check") if text != "ok"]
            found += [
                f"rows of {name} belong to no job"
                for name in ("commits", "snapshots")
                if self._file.do(
                    f"SELECT 1 FROM {name} WHERE job NOT IN (SELECT job FROM jobs) LIMIT 1"
                )
            ]
        except CorruptStateError as error:
            return [error]  # too damaged for a check to its end
        return [CorruptStateError(str(self.path), f"{text}; {BACKUP}") for text in found]

    def _hold(self, owner: str, free_at: int | None, wait: int, now: int) -> Hold:
        if self._shift is not None and free_at is not None:
            left = 0
            if owner in (FREE, ABANDONED):
                left = min(max(0, free_at + self._shift - now), wait)
            free_at = now + left
        return Hold.of(owner, free_at, now=now)

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        asked = ", ".join("(?)" for _ in flow_ids) or "(NULL)"
        [(soonest,)] = self._file.do(
            "SELECT min((SELECT free_at FROM jobs WHERE flow_id = column1 AND free_at IS NOT NULL"
            f" AND {_INTACT} ORDER BY free_at LIMIT 1)) FROM (VALUES {asked})",
            tuple(flow_ids),
        )
        return None if soonest is None else max(0, soonest - self._now())


def _time_seal(source: str, utc: int) -> int:
    return crc32(f"{source} {utc}".encode())


def _append(db: sqlite3.Connection, added: Append) -> None:
    if _add(db, _APPEND, added):
        if added.status in LIVE:
            db.execute(_STATUS, (added.job_id, added.status))
        else:
            db.execute(_HOLD, (added.job_id, added.owner, None, None, added.status))


def _add(db: sqlite3.Connection, statement: str, added: Append, *, claims: bool = False) -> bool:
    """Add row `added`, or accept it if its owner wrote it before; otherwise raise the refusal.

    Returns whether the row was added.
    """
    if db.execute(statement, added[:4]).rowcount:
        return True
    job_id, seq, _, owner, _ = added
    held_by, _, count, same = _state(db, added)
    if held_by != owner or not same:
        raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)
    return False


def _state(db: sqlite3.Connection, added: Append) -> tuple[str, int | None, int, bool]:
    """Return the job's owner, free time and number of rows, and whether row `added` is stored."""
    found = db.execute(_STATE, added[:4]).fetchone()
    if found is None:
        return "", None, 0, False
    *state, intact = found
    if not intact:
        raise damaged(added.job_id)
    return tuple(state)
