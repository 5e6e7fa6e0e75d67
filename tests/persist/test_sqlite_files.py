"""The three files of a store: one is removed, replaced, overwritten or restored, and noticed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from routilux import CorruptStateError, SqliteStore
from routilux.persist import sqlite_connection
from routilux.persist.sqlite_files import BEGINNING, BEGUN, Generation
from tests.engine.concurrency import in_a_child
from tests.persist.hosts import go, line_of, process, processes

REPLACED = "jobs.db{} was removed or replaced while it was open"
CHANGED = "was changed while it was open, and not by SQLite"
FOREIGN = "does not belong to the log beside it, jobs.db-wal and jobs.db-shm"
LOST = "has lost its last commits: its log jobs.db-wal was removed or emptied"


def start(store: SqliteStore, job_id: str = "j") -> None:
    store.create(job_id, b"row 1", "a", flow_id="f", queued=False)


def append(store: SqliteStore, seq: int, row: bytes = b"row", job_id: str = "j") -> None:
    store.append(job_id, seq, row, "a", stopped=False)


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def all_of(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.parent.glob(f"{path.name}*"))}


def move_away(path: Path) -> None:
    for end in ("-wal", "-shm"):
        beside(path, end).rename(beside(path, f"{end}.old"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Another store that is in use."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "jobs.db"
    with SqliteStore(path) as store:
        start(store, "other")
        append(store, 2, b"x" * 10_000, "other")
        yield path


# --- while they are open --------------------------------------------------------------------------


def overwrite(target: Path, source: Path) -> None:
    target.write_bytes(source.read_bytes())  # the same file, unlike a rename


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_no_commit_is_acknowledged_after_a_file_was_removed_or_replaced(how, end, path, other):
    with SqliteStore(path) as store:
        start(store)
        kept = beside(path, ".kept")
        beside(path, end).rename(kept)
        if how == "replaced":
            shutil.copy(beside(other, end), beside(path, end))
        for use in (
            lambda: append(store, 2),
            lambda: store.append("j", 2, b"row", "a", stopped=True),
            lambda: start(store, "k"),
            lambda: store.rows("j"),
            lambda: store.holders(),
        ):
            with pytest.raises(OSError, match=REPLACED.format(end)):
                use()
        kept.replace(beside(path, end))
        append(store, 2)
        assert [b"row 1", b"row"] == store.rows("j")


@pytest.mark.parametrize("end", ["", "-wal"])
def test_no_commit_is_acknowledged_after_a_file_was_overwritten(end, path, other):
    with SqliteStore(path) as store:
        start(store)
        kept = all_of(path)
        overwrite(beside(path, end), beside(other, end))
        for use in (lambda: append(store, 2), lambda: start(store, "k"), lambda: store.rows("j")):
            with pytest.raises(CorruptStateError, match=FOREIGN if end == "" else CHANGED):
                use()
        assert kept.keys() == all_of(path).keys()


def test_a_file_that_is_removed_during_a_write_keeps_it_from_being_acknowledged(path):
    for end in ("", "-wal", "-shm"):
        with SqliteStore(path) as store:
            start(store, f"j{end}")
            with store._file.using() as db:
                db.create_function("removes", 0, beside(path, end).rename)
                db.execute("CREATE TEMP TABLE once AS SELECT 1")
            removed = []

            def removes(statement: str, end: str = end, removed: list[str] = removed) -> None:
                if statement.lstrip().startswith("INSERT OR IGNORE") and not removed:
                    removed.append(statement)
                    beside(path, end).rename(beside(path, ".kept"))

            db.set_trace_callback(removes)
            with pytest.raises(OSError, match=REPLACED.format(end)):
                append(store, 2, job_id=f"j{end}")
            assert removed
            beside(path, ".kept").rename(beside(path, end))
            db.set_trace_callback(None)


@pytest.mark.parametrize("how", ["emptied", "older"])
def test_a_log_that_loses_its_end_while_it_is_open_is_noticed(how, path):
    with SqliteStore(path) as store:
        start(store)
        older = beside(path, "-wal").read_bytes()
        append(store, 2)
        with beside(path, "-wal").open("r+b") as log:
            log.truncate(0 if how == "emptied" else len(older))
        with pytest.raises(CorruptStateError, match=LOST if how == "emptied" else CHANGED):
            append(store, 3)


def test_a_store_whose_database_was_overwritten_is_closed_without_changing_it(path, other):
    with SqliteStore(path) as store:
        start(store)
        with closing(sqlite3.connect(other)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite(path, other)
        restored = path.read_bytes()
    assert restored == path.read_bytes()
    with pytest.raises(CorruptStateError, match=FOREIGN):
        SqliteStore(path)
    move_away(path)
    with SqliteStore(path) as store:
        assert ["other"] == store.job_ids()
