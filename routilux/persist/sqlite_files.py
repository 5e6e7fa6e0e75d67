"""`StoreFiles`: the three files of a SQLite store, and whether they still belong together.

A store is a database, its log (`-wal`) and the index of the log (`-shm`). A commit is in the log
until a checkpoint copies it to the database. A generation is a log with the database below it.

Invariants:
- The table `log` has the number and a random mark of the generation. Every log begins with them, so
  the mark in the database is that of its log, or the one before. Any other log is foreign.
- Before a generation takes its first commit, the database itself says that it needs a log. After a
  checkpoint of the whole log it no longer says so. So the loss of a log is noticed.
- A process knows each file by device and inode, the database also by the time of its last change,
  and the log by its head and by its size, which only another generation makes smaller.
- A write that starts after such a change is refused. A write during the change may still succeed:
  its commit is as lost as one just before the change.
- This module opens only the log. To close a handle of another file would release the locks that
  SQLite has on it for the whole process; SQLite itself reads the database without the log.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from contextlib import closing, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import ref

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.errors import CorruptStateError
from routilux.persist.atomic_write import replacing

if TYPE_CHECKING:
    from collections.abc import Callable
if sys.platform != "win32":
    import fcntl

BEGINNING: Final = 1
"""The state until a checkpoint has copied the log before; in the database: it needs a log."""
BEGUN: Final = 2
"""The state from then on; in the database: everything in the log has been copied to it."""
GENERATIONS: Final = f"""
CREATE TABLE IF NOT EXISTS log (
    number INTEGER NOT NULL, -- of the generation
    mark INTEGER NOT NULL,   -- a random number
    before INTEGER NOT NULL, -- the mark of the generation before
    state INTEGER NOT NULL   -- 1 beginning, 2 begun
);
INSERT INTO log SELECT 0, random(), 0, {BEGUN} WHERE NOT EXISTS (SELECT 1 FROM log);
"""
LONGEST_LOG: Final = 4 << 20
"""The size in bytes to which a log is cut when a generation begins.

A longer one grows only at its end: to change the size of a file costs 0.1 ms more at each flush.
"""
_HEAD: Final = 32  # bytes, of which two random numbers are new each time a log is begun
_FRAME: Final = 24  # bytes before each page in the log
_SHARED: Final = 0x40000002, 510  # bytes of the database that SQLite locks while it is in use
_TICK: Final = SECOND // 50  # longer than a step of the clock of a file system
_COARSE_TICK: Final = 3 * SECOND  # the same where times are in whole seconds
_TRIES: Final = 200
_NAP: Final = 5_000_000
_WRITE_ERRORS: Final = (
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
)
_NOT_A_STORE: Final = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_SCHEMA", "SQLITE_ERROR")


class Generation(NamedTuple):
    """The row of the table `log`."""

    number: int
    mark: int
    before: int
    state: int

    @classmethod
    def of(cls, db: sqlite3.Connection) -> Generation:
        """Read the row as a connection sees it."""
        found = db.execute("SELECT number, mark, before, state FROM log").fetchall()
        if len(found) != 1 or any(type(value) is not int for value in found[0]):
            raise sqlite3.DatabaseError("the table log is damaged")
        return cls(*found[0])


class StoreFiles:
    """The files of the store at `place`, as this process has opened them."""

    def __init__(self, place: Path, shown: Path) -> None:
        real = place.resolve()  # SQLite keeps the two others beside the file behind a link
        self.main = str(place)
        self.log = f"{real}-wal"
        self.index = f"{real}-shm"
        self.size = 0
        """The size of the log in bytes at the last check."""
        self._main_size = 0
        self.most = 0
        """The size at which the next generation is to begin."""
        self._shown = shown
        self._log_name, self._index_name = Path(self.log).name, Path(self.index).name
        self._uri = f"{place.as_uri()}?mode=ro&immutable=1"
        self._handle = -1
        self._identity: tuple[int, ...] = ()
        self._folder = str(real.parent)
        self._named: object = None
        self._seen: object = None
        self._head = b""
        self._known: Generation | None = None
        self.needs_log = False
        """Whether the database needed a log at the last check."""

    @property
    def beginning(self) -> bool:
        """Whether the generation was still beginning at the last check."""
        return self._known is not None and self._known.state == BEGINNING

    # --- before they are opened -------------------------------------------------------------------

    def check_closed(self) -> None:
        """Raise if a file is missing, so that opening the others would lose commits or locks."""
        beside = [name for name in (self.log, self.index) if Path(name).exists()]
        if not _size(self.main):  # read after them: a process that makes a store makes them last
            if beside:
                raise self._without_database(beside[0])
            return
        before = None
        while not _size(self.log):
            kept = self.in_database()
            if kept is None or kept.state != BEGINNING:
                return
            if kept == before and not _size(self.log):
                raise self._without_log()
            before = kept
        self._check_index()

    def _check_index(self) -> None:
        """Raise if the index is missing while processes use the store: they have another one."""
        if sys.platform == "win32":
            return  # no file can be removed there while it is open
        for _ in range(_TRIES):
            if Path(self.index).exists():
                return
            for files in self._others():
                raise files._replaced()  # and to close a handle would release its locks
            try:
                handle = os.open(self.main, os.O_RDWR)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                    return  # a reader that may write no file can't make an index either
                raise
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED[1], _SHARED[0])
            except BlockingIOError:
                clock = SystemClock()  # perhaps a process is just opening the store
                clock.wait(None, clock.monotonic_ns() + _NAP)
            else:
                return
            finally:
                os.close(handle)
        raise OSError(
            f"the store {self._shown}: its file {self.index} was removed while other processes use"
            " the store; end them, then open the store again: no commit is lost"
        )

    def check_readable(self, db: sqlite3.Connection) -> None:
        """Read the tables' names by a new connection; raise if only the log is in the way."""
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.DatabaseError:
            if _size(self.log) and self.in_database() is not None:
                raise self._foreign() from None
            raise

    def in_database(self) -> Generation | None:
        """Return the generation in the database alone; None if there is none in it."""
        try:
            db = sqlite3.connect(self._uri, timeout=0, isolation_level=None, uri=True)
            try:
                # Else SQLite refuses a file that a checkpoint is just making longer.
                db.execute("PRAGMA writable_schema = ON")
                return Generation.of(db)
            finally:
                db.close()
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
            if name.startswith(_NOT_A_STORE):
                return None
            raise

    def _is_cut(self) -> bool:
        """Return whether the database is shorter than its first page says."""
        db = sqlite3.connect(self._uri, timeout=0, isolation_level=None, uri=True)
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.DatabaseError:
            return True
        finally:
            db.close()
        return False

    # --- while they are open ----------------------------------------------------------------------

    def opened(self, db: sqlite3.Connection, *, alone: bool) -> None:
        """Keep the identity of the files that a connection has just opened, and check them.

        With `alone` it has opened the database without a log.
        """
        self._known = None
        if alone:
            self._identity = self._found(self.main)
            return
        self._identity = self._found(self.main, self.index, self.log)
        # SQLite has one index for all connections of a process to a database.
        for files in self._others():
            if files._identity != self._identity:
                raise files._replaced()
        self._handle = os.open(self.log, os.O_RDONLY)
        _in_use.add(ref(self, _in_use.discard))
        self._judge(db)

    def _others(self) -> list[StoreFiles]:
        """Return the other open files of this process that have the same database."""
        main = _stat(self.main)
        found = [reference() for reference in list(_in_use)]
        return [f for f in found if f and f._identity[:2] == (main.st_dev, main.st_ino)]

    def exist(self) -> bool:
        """Return whether there is a database that is not empty."""
        return bool(_size(self.main))

    def has_journal(self) -> bool:
        """Return whether a process makes or upgrades the tables, or died as it did so."""
        return Path(f"{self.log.removesuffix('-wal')}-journal").exists()

    def stamp(self) -> object:
        """Return what changes with every write to the database; None if there is none."""
        try:
            found = _stat(self.main)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def close(self) -> None:
        """Forget the files."""
        _in_use.discard(ref(self))
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def check(self, db: sqlite3.Connection) -> None:
        """Raise if a file was removed, replaced or overwritten by anything but a checkpoint."""
        if self._handle < 0:
            if self._found(self.main) != self._identity:
                raise self._replaced()
            return
        try:
            main, folder = _stat(self.main), _stat(self._folder)
        except FileNotFoundError:
            raise self._replaced() from None
        if (main.st_dev, main.st_ino) != self._identity[:2]:
            raise self._replaced()
        if self._named != (folder.st_ino, folder.st_ctime_ns):
            self._check_names(folder)
        size = os.lseek(self._handle, 0, os.SEEK_END)
        seen = main.st_ino, main.st_ctime_ns, main.st_size, _pread(self._handle, _HEAD, 0)
        if seen != self._seen or size < self.size:
            self._judge(db)
        else:
            self.size = size

    def _check_names(self, folder: os.stat_result) -> None:
        """Raise if a file was removed or replaced, which changes the time of the folder.

        To ask for the log itself at each write would cost 30 us: the system keeps the time of a
        file's change more exactly after somebody has read it, and each write has to store it.
        """
        if self._found(self.main, self.index, self.log) != self._identity:
            raise self._replaced()
        # A time that is still new may stay the same at the next change.
        tick = _COARSE_TICK if folder.st_ctime_ns % SECOND == 0 else _TICK
        settled = SystemClock().now_ns() - folder.st_ctime_ns > tick
        self._named = (folder.st_ino, folder.st_ctime_ns) if settled else None

    def written(self) -> None:
        """Raise if a write has left a gap, because the log had lost what others wrote before."""
        if self._handle < 0:
            return
        size = os.lseek(self._handle, 0, os.SEEK_END)
        page = int.from_bytes(self._head[8:12])
        if size > self.size and page:
            frames = -((_HEAD - self.size) // (page + _FRAME))
            frame = _pread(self._handle, _FRAME, _HEAD + frames * (page + _FRAME))
            if frame and not any(frame):
                raise self._overwritten()
            self.size = size

    def _judge(self, db: sqlite3.Connection) -> None:
        before: object = None
        while True:
            main = _stat(self.main)
            kept, now = self.in_database(), self._in_log(db)
            # Read last, so that the head is not one of the generation before.
            size, head = os.lseek(self._handle, 0, os.SEEK_END), _pread(self._handle, _HEAD, 0)
            error = self._error(kept, now, size, head)
            if error is None and main.st_size < self._main_size and self._is_cut():
                error = self._overwritten()
            if error is None:
                break
            # Another process may have gone on between two of these; then they are not the same.
            found = kept, now, size == 0, head
            if found == before:
                raise error
            before = found
        if self._known is None or self._known.number != now.number:
            # Where a reader keeps the log from being overwritten, it is tried again soon.
            self.most = max(LONGEST_LOG, size) + LONGEST_LOG // 16
        self.needs_log = kept is not None and kept.state == BEGINNING
        self._known, self._head, self.size = now, head, size
        self._main_size = main.st_size
        self._seen = now.state == BEGUN and (main.st_ino, main.st_ctime_ns, main.st_size, head)

    def _in_log(self, db: sqlite3.Connection) -> Generation:
        try:
            return Generation.of(db)
        except sqlite3.Error as error:
            cut = os.lseek(self._handle, 0, os.SEEK_END) < self.size
            other = _pread(self._handle, _HEAD, 0) != self._head
            name = getattr(error, "sqlite_errorname", "")
            if self._known and (cut or other) and name.startswith(("SQLITE_IOERR", *_NOT_A_STORE)):
                raise self._overwritten() from error
            raise

    def _error(
        self, kept: Generation | None, now: Generation, size: int, head: bytes
    ) -> Exception | None:
        known = self._known
        if kept is None or kept.mark not in (now.mark, now.before):
            return self._foreign()
        if kept.state == BEGINNING and not size:
            return self._without_log()
        if known is None:
            return None
        if (now.number, now.state) < (known.number, known.state):
            return self._overwritten()
        same = now == known and now.state == BEGUN and kept.state == BEGINNING
        if same and (size < self.size or head != self._head):
            return self._overwritten()
        return None

    def _found(self, *names: str) -> tuple[int, ...]:
        try:
            found = [_stat(name) for name in names]
        except FileNotFoundError:
            raise self._replaced() from None
        return found[0].st_dev, *(file.st_ino for file in found)

    # --- what to do -------------------------------------------------------------------------------

    def _replaced(self) -> OSError:
        names = (self.main, self.index, self.log)
        which = []
        for name, inode in zip_longest(names, self._identity[1:]):
            found = None
            with suppress(FileNotFoundError):
                found = Path(name).stat().st_ino
            if found is None or inode not in (None, found):
                which.append(name)
        cure = "put the file back, or open the store again"
        if self.log in which:
            cure = "it has the last commits: put it back, or restore a backup"
        elif self.index in which:
            cure = "close the store in all processes, then open it again: no commit is lost"
        what = " and ".join(Path(name).name for name in which) or Path(self.main).name
        return OSError(
            f"the store {self._shown}: its file {what} was removed or replaced while the"
            " store was open;"
            f" {cure}"
        )

    def _foreign(self) -> CorruptStateError:
        return CorruptStateError(
            str(self._shown),
            f"does not belong to the log beside it, {self._log_name} and {self._index_name}. End"
            " all processes that use the store. If the file is a restored backup, move those two"
            " away; else put back the file to which they belong",
        )

    def _without_log(self) -> CorruptStateError:
        return CorruptStateError(
            str(self._shown),
            f"needs its log {self._log_name} for its last commits, but the log was removed or"
            " emptied, or the file was copied without it. Put the log back, or restore a copy that"
            " `routilux backup` made. If another program has copied the log to the file since,"
            f" nothing is lost: `UPDATE log SET state = {BEGUN}` by that program accepts the file",
        )

    def _without_database(self, name: str) -> CorruptStateError:
        return CorruptStateError(
            str(self._shown),
            f"is missing or empty, but {Path(name).name} is there, of a store that was in use. Put"
            " the file back; or, for a new store, move the other one away",
        )

    def _overwritten(self) -> CorruptStateError:
        return CorruptStateError(
            str(self._shown),
            "was changed while the store was open, and not by SQLite: the file,"
            f" {self._log_name} or {self._index_name} is cut, older or another one. End all"
            " processes that use the store, and put the files back, or restore a backup",
        )


def back_up(
    source: Path, target: Path, copy: Callable[[sqlite3.Connection], None], *, replace: bool
) -> None:
    """Write a backup of a store to `target`; `copy` copies the store to a new database.

    The backup is a generation of its own. So a log that lies beside it is never taken for a part of
    it. Raises `OSError` if the target exists and `replace` is not set, or if it can't be written.
    """
    if target.is_dir():
        raise OSError(f"{target} is a folder; give the path of a file")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise OSError(f"{target} is the store itself; give another path")
        if not replace:
            raise OSError(
                f"{target} exists; give another path, or replace it (replace=True, --replace)"
            )
    for end in ("-wal", "-shm", "-journal"):
        beside = Path(f"{os.path.realpath(target)}{end}")
        if beside.exists():
            raise OSError(
                f"{beside} exists, of a store that is or was in use at {target}; give another path,"
                " or move it away"
            )
    with replacing(target) as (_, name):
        try:
            with closing(sqlite3.connect(name, isolation_level=None)) as made:
                copy(made)
                made.execute("PRAGMA journal_mode = DELETE")
                made.execute(
                    "UPDATE log"
                    f" SET number = number + 1, mark = random(), before = 0, state = {BEGUN}"
                )
        except sqlite3.Error as error:
            if not getattr(error, "sqlite_errorname", "").startswith(_WRITE_ERRORS):
                raise
            raise OSError(
                f"the backup {target} can't be written: {error}; make room, or write it to another"
                " disk"
            ) from error


def _pread_of_windows(handle: int, size: int, at: int) -> bytes:
    return b""  # no file can be replaced there while it is open


_pread: Final = getattr(os, "pread", _pread_of_windows)
_stat: Final = os.stat  # half the cost of Path.stat; at every write
_in_use: Final[set[ref[StoreFiles]]] = set()


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except FileNotFoundError:
        return 0
