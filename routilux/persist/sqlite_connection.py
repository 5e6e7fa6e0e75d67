"""`SqliteFile`: the connection of a process to the file that has a store's tables.

Laws:
- A connection belongs to the process that opened it; after a fork the child opens its own. And to
  the file that it opened: where another one, or none, has its name, nothing is written to it.
- One that only reads leaves no trace: it makes no file, changes none and brings none up to date.
- Whoever writes keeps the others waiting; they look again as often as a write takes, and give up
  after a minute.
- What goes wrong names the file. Its surroundings are `OSError`, its content is `SavedStateError`.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakSet

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.errors import CorruptStateError, UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["SqliteFile"]

_APPLICATION: Final = 0x726F7574  # "rout"
_VERSION: Final = 1
_PATIENCE: Final = 60 * SECOND
_READERS_PATIENCE: Final = 5 * SECOND  # hardly ever needed: a writer keeps no reader waiting
_FIRST_NAP: Final = 100_000  # nanoseconds; each is half as long again as the one before
_LONGEST_NAP: Final = 5_000_000
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS jobs (
    job INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    flow_id TEXT NOT NULL,
    owner TEXT NOT NULL,     -- '' or '?' for nobody
    free_at INTEGER          -- UTC nanoseconds; NULL for never
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
CREATE TABLE IF NOT EXISTS snapshots (
    job INTEGER PRIMARY KEY REFERENCES jobs,
    seq INTEGER NOT NULL,
    data BLOB NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
# Connections of the process before a fork: SQLite forbids even to close them in the child.
_inherited: Final[list[sqlite3.Connection]] = []
_CURES: Final = {
    "SQLITE_BUSY": "another process has kept it locked; is one stopped, or open in an editor?",
    "SQLITE_CANTOPEN": "the folder must exist and be writable; the store makes only the file",
    "SQLITE_FULL": "the disk is full; make room, then resume the jobs: no commit is half written",
    "SQLITE_READONLY": "it must be writable for this user, with its folder",
    "SQLITE_IOERR": "the disk failed; the jobs stand as of their last commits",
}


class SqliteFile:
    """The file at `path`, which is made if it is not there and not `read_only`.

    `lock` is held while the connection is used.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        if str(path) == ":memory:":
            raise OSError("the store :memory: is no file and lasts no longer; use MemoryStore()")
        self.lock = threading.Lock()
        self._place = path.absolute()  # wherever the process goes to
        self._name = str(self._place)
        self._read_only = read_only
        self._unlocked = False
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._file: tuple[int, int] | None = None
        _all.add(self)
        with self.using():
            pass

    def close(self) -> None:
        """Close it; it is opened again if it is used again."""
        with self.lock:
            self._disown()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @property
    def overtaken(self) -> bool:
        """Whether somebody began to write while it was read without locks."""
        return self._unlocked and self._has_log()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one transaction, which the block's end commits."""
        with self.using() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have ended the transaction already
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for statements that are a transaction each."""
        with self.lock:
            try:
                yield self.connection()
            except sqlite3.Error as error:
                raise self.named(error) from error

    def connection(self) -> sqlite3.Connection:
        """Return the connection, opened if need be (under `lock`)."""
        if self._connection is None or self._process != os.getpid():
            self._disown()
            self._connection = self._opened()
            self._process, self._file = os.getpid(), _file_at(self._name)
        elif _file_at(self._name) != self._file:
            raise OSError(
                f"the store {self.path}: its file was removed or replaced while it was open; put it"
                " back, or begin anew with what is there"
            )
        return self._connection

    def _disown(self) -> None:
        if self._connection is not None and self._process != os.getpid():
            _inherited.append(self._connection)
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        db = self._connected()
        try:
            db.execute("BEGIN")  # all three of one moment: another process may be making it
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute("COMMIT")
            if application != _APPLICATION and (application or tables):
                raise CorruptStateError(
                    str(self.path), "is a database of another program; choose another file"
                )
            if version > _VERSION:
                raise UnsupportedVersionError(
                    str(self.path),
                    f"has version {version}; this one reads {_VERSION}; install a newer version",
                )
            if self._read_only:
                if not tables:
                    raise CorruptStateError(
                        str(self.path), "is empty: no store was ever written to it"
                    )
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
        if not self._read_only:
            return _Connection.to(self._place, _PATIENCE)
        # Where there is no log nobody writes, and to read with locks would make one and leave it.
        self._unlocked = not self._has_log()
        how = "mode=ro&immutable=1" if self._unlocked else "mode=ro"
        return _Connection.to(f"{self._place.as_uri()}?{how}", _READERS_PATIENCE, uri=True)

    def _has_log(self) -> bool:
        return self._place.with_name(f"{self._place.name}-wal").exists()

    def named(self, error: sqlite3.Error) -> Exception:
        """Return what went wrong with the file, named, and with a cure."""
        name = getattr(error, "sqlite_errorname", "")
        # Where what is asked is sound, the last one tells of a schema that is not.
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_SCHEMA", "SQLITE_ERROR")):
            return CorruptStateError(
                str(self.path), f"is no sound database ({error}); restore it from a copy"
            )
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


def _unlock_all() -> None:
    for file in _all:  # a thread that the child does not have may have held it
        file.lock = threading.Lock()


_all: Final[WeakSet[SqliteFile]] = WeakSet()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_unlock_all)


class _Connection(sqlite3.Connection):
    """A connection whose statements wait for whoever writes.

    SQLite's own naps are of 1 to 100 ms. A write takes a tenth of one, and who has just written
    comes back at once; so of two workers one would nap while the other works.
    """

    patience_ns = 0

    @classmethod
    def to(cls, path: Path | str, patience_ns: int, *, uri: bool = False) -> Self:
        """Open a file."""
        db = sqlite3.connect(
            path, 0, isolation_level=None, check_same_thread=False, factory=cls, uri=uri
        )
        db.patience_ns = patience_ns
        return db

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:
        """Do a statement, as soon as nobody else keeps it from being done."""
        try:
            return super().execute(statement, values)
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
        clock = SystemClock()
        begun, nap = clock.monotonic_ns(), _FIRST_NAP
        while True:
            clock.wait(None, clock.monotonic_ns() + nap)
            nap = min(nap + nap // 2, _LONGEST_NAP)
            try:
                return super().execute(statement, values)
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or clock.monotonic_ns() - begun > self.patience_ns:
                    raise


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
