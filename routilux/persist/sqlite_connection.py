"""`SqliteFile`: the connection of this process to the SQLite file of a store.

Invariants:
- Before a process forks, all connections are closed; parent and child open new ones.
- A connection belongs to the file that it opened. If the file was removed or replaced, every use
  raises.
- A reader (`read_only`) leaves no trace: it creates no file, and changes none.
- Writers wait for each other. They try again as often as a write takes, and give up after a minute.
- Each error names the file: `OSError` for the disk and its rights, `SavedStateError` for content.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import finalize
from zlib import crc32

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.clocks.forks import around_forks
from routilux.errors import CorruptStateError, SavedStateError
from routilux.persist import sqlite_files
from routilux.persist.sqlite_files import (
    BEGINNING,
    BEGUN,
    GENERATIONS,
    Generation,
    StoreFiles,
)
from routilux.persist.versions import newer_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_APPLICATION: Final = 0x726F7574  # "rout"
_VERSION: Final = 1
_PATIENCE: Final = 60 * SECOND
_READERS_PATIENCE: Final = 5 * SECOND  # seldom needed: a reader does not wait for writers
_FIRST_NAP: Final = 100_000  # nanoseconds; each is half as long again as the one before
_LONGEST_NAP: Final = 5_000_000
_LONGEST_CHECKPOINT: Final = SECOND // 20  # that a write waits for other writers and readers
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS jobs (
    job INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    flow_id TEXT NOT NULL,
    owner TEXT NOT NULL,     -- '' or '?' for nobody
    free_at INTEGER,         -- the store's time in nanoseconds; NULL for never
    wait INTEGER,            -- the nanoseconds of the wait that ends then
    status TEXT NOT NULL,    -- of the last commit
    seq INTEGER NOT NULL,    -- the number of the last commit
    seal INTEGER NOT NULL    -- seq in the upper half, a checksum of the other columns in the lower
);
CREATE INDEX IF NOT EXISTS free ON jobs (flow_id, free_at) WHERE free_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS leased ON jobs (owner) WHERE free_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS commits (
    job INTEGER NOT NULL REFERENCES jobs,
    seq INTEGER NOT NULL,
    owner TEXT NOT NULL,
    row BLOB NOT NULL,
    PRIMARY KEY (job, seq)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS counted AFTER INSERT ON commits WHEN NEW.seq > 1
BEGIN UPDATE jobs SET seq = NEW.seq, seal = seal + (1 << 32) WHERE job = NEW.job; END;
CREATE TABLE IF NOT EXISTS snapshots (
    job INTEGER PRIMARY KEY REFERENCES jobs,
    seq INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS time (
    source TEXT NOT NULL,    -- the start of the machine that the store's time counts from
    utc INTEGER NOT NULL,    -- UTC minus the store's time, in nanoseconds
    seal INTEGER NOT NULL    -- a checksum of the others
);
{GENERATIONS.strip()}
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_clock: Final = SystemClock()
_DAMAGE: Final = (
    "SQLITE_NOTADB",
    "SQLITE_CORRUPT",
    "SQLITE_SCHEMA",
    "SQLITE_ERROR",
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_TOOBIG",
    "SQLITE_NOMEM",  # a damaged length asks for more than there is
)
_CURES: Final = {
    "SQLITE_BUSY": "another process keeps the file locked; close the file in other programs",
    "SQLITE_CANTOPEN": "the folder must exist and be writable; the store creates only the file",
    "SQLITE_FULL": "the disk is full; make room, then resume the jobs: no commit is half written",
    "SQLITE_READONLY": "the file and its folder must be writable for this user",
    "SQLITE_IOERR_SHORT": "the file or the log (-wal) was cut; restore a backup",
    "SQLITE_IOERR": "the disk failed; each job keeps the commits before this error",
}


class SqliteFile:
    """A SQLite file at `path`; a missing file is created, unless `read_only` is set.

    `lock` is held while the connection is used.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        if str(path) == ":memory:":
            raise OSError("the store :memory: is not a file, so nothing is kept; use MemoryStore()")
        self.lock = threading.Lock()
        self._place = path.absolute()  # also after the process changes its folder
        self.read_only = read_only
        self._unlocked = False
        self._files = StoreFiles(self._place, path)
        self._connection: sqlite3.Connection | None = None
        self._guard: sqlite3.Connection | None = None
        self._abandoned: finalize[..., SqliteFile] | None = None
        self._begun = False
        self._stamp: object = None  # of the database, before it was opened without locks
        around_forks(self._before_fork, self._after_fork)
        self.use(lambda _: None)

    def _before_fork(self) -> None:
        """Close the connection while the process forks; the next use opens a new one.

        In a child that inherits a connection, SQLite takes the locks of the parent for its own, and
        locks nothing. The next process that closes the store then removes the log under the child.
        """
        self.lock.acquire()
        self._part(ours=False)

    def _after_fork(self) -> None:
        self.lock.release()

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self.lock:
            db = self._connection
            if db is None:
                return
            ours = False
            try:
                self._check()
                if not self._unlocked and Generation.of(db).state == BEGINNING:
                    self._begin(db)
                ours = True
            except (sqlite3.Error, OSError, SavedStateError):
                pass  # the next use of the files raises it
            finally:
                self._part(ours=ours)

    def _part(self, *, ours: bool) -> None:
        """Close both connections; the last to close copies the log to the database if `ours`."""
        self._files.close()
        if self._abandoned is not None:
            self._abandoned.detach()
        # Only a connection that can write copies the log, and only if no other one is open.
        pair = [self._guard, self._connection] if ours else [self._connection, self._guard]
        self._connection = self._guard = self._abandoned = None
        for db in pair:
            if db is not None:
                db.close()

    @property
    def overtaken(self) -> bool:
        """Whether another process began to write while this process read without locks."""
        return self._unlocked and (self._has_log() or self._files.stamp() != self._stamp)

    # These take functions, and are no context managers: an interrupt between the start of a context
    # manager and its `with` block would leave the lock held or the transaction open.

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Call `work(connection)` in a write transaction, and return the result."""
        return self.use(lambda db: _in_transaction(db, work), writes=True)

    def add(self, statement: str, values: Sequence[Any]) -> int:
        """Execute one statement that adds rows, and return how many it has added."""
        # Not by `use`: most commits come this way, and each call costs more than it seems, because
        # the caches are cold after the disk was waited for.
        with self.lock:
            try:
                db = self.connection()
                if not self._begun and not self.read_only:
                    self._begin(db)
                try:
                    return db.execute(statement, values).rowcount
                finally:
                    self._files.written()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self.named(error) from error

    def do(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute one statement that reads, and return its rows."""
        return self.use(lambda db: db.execute(statement, values).fetchall())

    def use(self, work: Callable[[sqlite3.Connection], _T], *, writes: bool = False) -> _T:
        """Return `work(connection)`, in which each statement is a transaction by itself.

        Raises before it if one of the files was removed, replaced or overwritten.
        """
        with self.lock:
            try:
                db = self.connection()
                if not writes or self.read_only:
                    return work(db)
                if not self._begun:
                    self._begin(db)
                try:
                    return work(db)
                finally:
                    self._files.written()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self.named(error) from error

    def connection(self) -> sqlite3.Connection:
        """Return the connection, after opening it or checking its files; the caller holds `lock`.

        What is removed or overwritten during a write is noticed by the next use, as it would be
        after the write: a check after the flush costs 50 us, because all caches are cold.
        """
        if self._connection is None:
            self._open()
        else:
            self._check()
        assert self._connection is not None
        return self._connection

    def _check(self) -> None:
        assert self._connection is not None
        self._files.check(self._connection)
        # The next write begins a generation if the log is long, or ends what another has begun.
        files = self._files
        self._begun &= files.size <= files.most and files.needs_log and not files.beginning

    def copy_to(self, copy: sqlite3.Connection) -> None:
        """Copy the store as of now to an empty database.

        Meanwhile a process may commit, unless its first commit since it opened the store has to
        wait for the reader.
        """
        # As a write, because a first write of this process would have to wait for the copy.
        unlocked = self.use(lambda _: self._unlocked, writes=True)
        # By a connection of its own: its errors may be those of the copy, and it takes long.
        with closing(self._connected("ro&immutable=1" if unlocked else "ro")) as source:
            source.backup(copy)
        self.use(lambda _: None)  # the files are still the same
        if self.overtaken:
            raise OSError(
                f"the store {self.path}: another process began to write to it; copy it again"
            )

    # --- generations ------------------------------------------------------------------------------

    def _begin(self, db: sqlite3.Connection) -> None:
        """Begin a generation if there is none, or if its log is long.

        Several processes may do this at once; each can end what another one has begun.
        """
        files = self._files
        since = _clock.monotonic_ns()
        long = files.size > files.most
        while not _in_transaction(db, partial(self._has_begun, long=long)):
            long = False
            [(busy, _, _)] = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            kept = files.in_database()
            waited = _clock.monotonic_ns() - since
            if kept is None or kept.state != BEGINNING:
                if waited > _PATIENCE:
                    raise OSError(
                        f"the store {self.path}: another process has been reading it for too long;"
                        " end that process"
                    )
            elif not busy or waited > _LONGEST_CHECKPOINT:
                # The first write after the checkpoint overwrites the log from its start.
                db.execute(f"UPDATE log SET state = {BEGUN} WHERE state = {BEGINNING}")
                break
            _clock.wait(None, since + waited + _FIRST_NAP)
        files.check(db)
        self._begun = True

    def _has_begun(self, db: sqlite3.Connection, *, long: bool) -> bool:
        """Return whether another process has begun the generation; otherwise begin one."""
        now, kept = Generation.of(db), self._files.in_database()
        if now.state == BEGUN:
            if kept is not None and kept.state == BEGINNING and self._files.size and not long:
                return True
            # A reader may have kept the last checkpoint from copying the mark.
            copied = kept is not None and kept.mark == now.mark
            mark = ", mark = random(), before = mark" if copied else ""
            db.execute(f"UPDATE log SET number = number + 1, state = {BEGINNING}{mark}")
        return False

    # --- opening ----------------------------------------------------------------------------------

    def _open(self) -> None:
        self._files.check_closed()
        if self.read_only and self._files.has_journal():
            raise OSError(
                f"the store {self.path}: a process is making the file, or died as it did so;"
                " open it for writing, or try again"
            )
        self._unlocked = self.read_only and not self._has_log()
        self._stamp = self._files.stamp()
        try:
            db = self._open_for_reading() if self.read_only else self._open_for_writing()
            self._files.opened(db, alone=self._unlocked)
            self._abandoned = finalize(self, _abandon, self._files, db, self._guard)
            self._abandoned.atexit = False
            self._begun = False
        except BaseException:
            self._part(ours=False)
            raise

    def _open_for_reading(self) -> sqlite3.Connection:
        self._connection = db = self._connected("ro&immutable=1" if self._unlocked else "ro")
        self._files.check_readable(db)
        self._check_kind(db)
        return db

    def _open_for_writing(self) -> sqlite3.Connection:
        if self._files.exist() and not self._files.has_journal():
            self._open_guard()
        self._connection = db = self._connected("rwc")
        if self._check_kind(db) < _VERSION:
            # Without a log, so that the database itself has the tables.
            _in_transaction(db, _create)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA journal_size_limit = {sqlite_files.LONGEST_LOG}")
        if self._guard is None:
            self._open_guard()
        Generation.of(db)
        return db

    def _open_guard(self) -> None:
        self._guard = self._connected("ro")
        self._files.check_readable(self._guard)

    def _check_kind(self, db: sqlite3.Connection) -> int:
        """Return the version of the tables, 0 for an empty file; raise if they are unknown."""
        db.execute("BEGIN")  # reads all three at once: another process may be creating it
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute("COMMIT")
        name = str(self.path)
        if application != _APPLICATION and (application or tables):
            raise CorruptStateError(name, "is a database of another program; choose another file")
        if version > _VERSION:
            raise newer_store(name, version, _VERSION)
        if self.read_only and not tables:
            raise CorruptStateError(name, "is empty, so it holds no store; check the path")
        return int(version)

    def _connected(self, mode: str) -> _Connection:
        db = sqlite3.connect(
            f"{self._place.as_uri()}?mode={mode}",
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
            uri=True,
        )
        db.patience_ns = _READERS_PATIENCE if self.read_only else _PATIENCE
        db.text_factory = _text
        db.create_function("crc32", 1, crc32, deterministic=True)
        return db

    def _has_log(self) -> bool:
        return Path(self._files.log).exists()

    def named(self, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
        """Convert `error` to an error that names the file and says what to do."""
        if self._connection is not None:
            try:
                self._check()  # it may be the reason
            except sqlite3.Error:
                pass
            except (OSError, SavedStateError) as cause:
                return cause
        name = getattr(error, "sqlite_errorname", "")
        # The statements are correct, so SQLITE_ERROR means that the tables are not.
        # A message of SQLite that quotes a damaged schema may be no UTF-8.
        if name.startswith(_DAMAGE) or isinstance(error, UnicodeDecodeError):
            reason = f"is not a valid database ({error}); restore it from a backup"
            return CorruptStateError(str(self.path), reason)
        for start, cure in _CURES.items():
            if name.startswith(start):
                return OSError(f"the store {self.path}: {error}; {cure}")
        return error


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    try:
        db.execute("BEGIN IMMEDIATE")
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # some errors have already ended the transaction
            db.execute("ROLLBACK")
        raise
    return result


def _abandon(files: StoreFiles, db: sqlite3.Connection, guard: sqlite3.Connection | None) -> None:
    """Close the connections of a store that nobody has closed; its log stays as it is."""
    files.close()
    db.close()
    if guard is not None:
        guard.close()


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")  # a damaged text must not hide its row


# Python 3.12.0 to 3.12.3 take ?1 for a name, and warn of values in a tuple (gh-117995).
_NUMBERS_ARE_NAMES: Final = (3, 12) <= sys.version_info < (3, 12, 4)


class _Connection(sqlite3.Connection):
    """A SQLite connection whose statements wait while another process holds a lock.

    SQLite itself sleeps 1 to 100 ms. A write takes a tenth of a millisecond, and a process that has
    written soon writes again: of two workers one would sleep while the other works.
    """

    patience_ns = 0

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement; while another process locks the file, wait and try again."""
        begun, nap = 0, _FIRST_NAP
        if _NUMBERS_ARE_NAMES and "?1" in statement:
            values = {str(number): value for number, value in enumerate(values, 1)}
        while True:
            try:
                return super().execute(statement, values)
            except sqlite3.OperationalError as error:
                if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise
                now = _clock.monotonic_ns()
                begun = begun or now
                if now - begun > self.patience_ns:
                    raise
            _clock.wait(None, now + nap)
            nap = min(nap + nap // 2, _LONGEST_NAP)
