"""`SqliteFile`: the connection of this process to the SQLite file of a store.

Invariants:
- A connection belongs to the process that opened it; after a fork the child opens its own.
- A connection belongs to the file that it opened. If the file was removed or replaced, every use
  raises.
- A reader (`read_only`) leaves no trace: it creates no file, and changes none.
- Writers wait for each other. They try again as often as a write takes, and give up after a minute.
- Each error names the file: `OSError` for the disk and its rights, `SavedStateError` for content.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.clocks.forks import begin_in_children
from routilux.errors import CorruptStateError
from routilux.persist.versions import newer_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_APPLICATION: Final = 0x726F7574  # "rout"
_VERSION: Final = 1
_PATIENCE: Final = 60 * SECOND
_READERS_PATIENCE: Final = 5 * SECOND  # seldom needed: a reader does not wait for writers
_FIRST_NAP: Final = 100_000  # nanoseconds; each is half as long again as the one before
_LONGEST_NAP: Final = 5_000_000
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
    seal INTEGER NOT NULL    -- a checksum of it
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
# Connections of the parent process, kept open: SQLite forbids to close them in a forked child.
_inherited: Final[list[sqlite3.Connection]] = []
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
        self._begin_process()
        self._place = path.absolute()  # also after the process changes its folder
        self._name = str(self._place)
        self.read_only = read_only
        self._unlocked = False
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._file: tuple[int, int] | None = None
        begin_in_children(self._begin_process)
        with self.using():
            pass

    def _begin_process(self) -> None:
        self.lock = threading.Lock()

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self.lock:
            self._disown()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @property
    def overtaken(self) -> bool:
        """Whether another process began to write while this process read without locks."""
        return self._unlocked and self._has_log()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection in a write transaction; the end of the `with` block commits it."""
        with self.using() as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have already ended the transaction
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; each statement in the `with` block is a transaction by itself."""
        with self.lock:
            try:
                yield self.connection()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self.named(error) from error

    def do(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute one statement as a transaction of its own, and return the rows."""
        with self.using() as db:
            return db.execute(statement, values).fetchall()

    def connection(self) -> sqlite3.Connection:
        """Return the connection, after opening it if necessary; the caller holds `lock`."""
        if self._connection is None or self._process != os.getpid():
            self._disown()
            self._connection = self._opened()
            self._process, self._file = os.getpid(), _file_at(self._name)
        elif _file_at(self._name) != self._file:
            raise OSError(
                f"the store {self.path}: its file was removed or replaced while the store was"
                " open; put the file back, or open the store again"
            )
        return self._connection

    def _disown(self) -> None:
        if self._connection is not None and self._process != os.getpid():
            _inherited.append(self._connection)
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        db = self._connected()
        try:
            db.execute("BEGIN")  # reads all three at once: another process may be creating it
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute("COMMIT")
            name = str(self.path)
            if application != _APPLICATION and (application or tables):
                reason = "is a database of another program; choose another file"
                raise CorruptStateError(name, reason)
            if version > _VERSION:
                raise newer_store(name, version, _VERSION)
            if self.read_only and not tables:
                raise CorruptStateError(name, "is empty, so it holds no store; check the path")
            if self.read_only:
                return db
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            if version < _VERSION:
                db.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _connected(self) -> _Connection:
        place, patience = self._name, _PATIENCE
        if self.read_only:
            # Without a log no process writes; a reader with locks would create a log and leave it.
            self._unlocked = not self._has_log()
            how = "mode=ro&immutable=1" if self._unlocked else "mode=ro"
            place, patience = f"{self._place.as_uri()}?{how}", _READERS_PATIENCE
        db = sqlite3.connect(
            place,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
            uri=self.read_only,
        )
        db.patience_ns = patience
        db.text_factory = _text
        db.create_function("crc32", 1, crc32, deterministic=True)
        return db

    def _has_log(self) -> bool:
        return self._place.with_name(f"{self._place.name}-wal").exists()

    def named(self, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
        """Convert `error` to an error that names the file and says what to do."""
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


def _file_at(place: str) -> tuple[int, int] | None:
    try:
        found = os.stat(place)  # noqa: PTH116  # at half the cost of Path.stat; at every write
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")  # a damaged text must not hide its row


class _Connection(sqlite3.Connection):
    """A SQLite connection whose statements wait while another process holds a lock.

    SQLite itself sleeps 1 to 100 ms. A write takes a tenth of a millisecond, and a process that has
    written soon writes again: of two workers one would sleep while the other works.
    """

    patience_ns = 0

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement; while another process locks the file, wait and try again."""
        begun, nap = 0, _FIRST_NAP
        while True:
            try:
                return super().execute(statement, values)
            except sqlite3.OperationalError as error:
                if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise
                clock = SystemClock()
                now = clock.monotonic_ns()
                begun = begun or now
                if now - begun > self.patience_ns:
                    raise
            clock.wait(None, now + nap)
            nap = min(nap + nap // 2, _LONGEST_NAP)
