"""Backup of a SQLite store, also while processes write to it.

Invariants:
- A backup is the store at one instant, with every commit before it, in one file without a log.
- It is a generation of its own. So no log of another file, if it lies beside a restored backup, is
  taken for a part of it.
- It appears as a whole or not at all, and only its owner can read it (mode 0600). An existing file
  is replaced only on request.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from routilux.persist.atomic_write import replacing
from routilux.persist.sqlite_files import OVER

if TYPE_CHECKING:
    from routilux.persist.sqlite_connection import SqliteFile

_TARGETS = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")


def back_up(file: SqliteFile, target: Path, *, replace: bool) -> None:
    """Write a backup of a store to `target`.

    Raises `OSError` if the target exists and `replace` is not set, or if it can't be written.
    """
    if target.is_dir():
        raise OSError(f"{target} is a folder; give the path of a file")
    if target.exists():
        if file.path.exists() and target.samefile(file.path):
            raise OSError(f"{target} is the store itself; give another path")
        if not replace:
            raise OSError(f"{target} exists; give another path, or ask to replace it")
    for end in ("-wal", "-shm", "-journal"):
        beside = target.with_name(f"{target.name}{end}")
        if beside.exists():
            raise OSError(
                f"{beside} exists, of a store that is or was in use at {target}; give another path,"
                " or move it away"
            )
    with replacing(target) as (_, name):
        try:
            with closing(sqlite3.connect(name, isolation_level=None)) as copy:
                file.copy_to(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
                copy.execute(
                    "UPDATE log SET number = number + 1, mark = random(), before = 0, state = ?",
                    (OVER,),
                )
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "").startswith(_TARGETS):
                raise OSError(
                    f"the backup {target} can't be written: {error}; make room, or write it to"
                    " another disk"
                ) from error
            with file.lock:
                raise file.named(error) from error
