"""The connection to the file of a store: locks, readers, forks, and errors that name the file."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from routilux import CorruptStateError, SqliteStore, SystemClock, UnsupportedVersionError
from routilux.clocks import forks
from routilux.persist.sqlite_connection import SqliteFile
from tests.engine.concurrency import in_a_child
from tests.persist.hosts import line_of, processes
from tests.persist.stores import using, writing
from tests.routines import PATIENCE


def test_a_write_waits_for_another_one_in_naps_as_short_as_a_write(sqlite, monkeypatch):
    naps: list[int] = []
    with SqliteStore(sqlite.path) as other:
        context = writing(sqlite)
        context.__enter__()

        def nap(clock: SystemClock, signal: None, until: int) -> None:
            naps.append(until - clock.monotonic_ns())
            if len(naps) == 12:
                context.__exit__(None, None, None)

        monkeypatch.setattr(SystemClock, "wait", nap)
        other.create("j", b"1", "a", flow_id="f", status="running")
    assert 12 == len(naps)
    assert 100_000 >= naps[0]
    assert 5_000_000 >= max(naps)
    assert [b"1"] == sqlite.rows("j")


def test_opening_a_file_that_another_process_is_creating_waits_for_it(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    other = sqlite3.connect(path, isolation_level=None)
    asked: list[str] = []
    connected = SqliteFile._connected

    def watched(file: SqliteFile, mode: str) -> sqlite3.Connection:
        db = connected(file, mode)
        db.set_trace_callback(traced)
        return db

    def traced(statement: str) -> None:
        asked.append(statement)
        if asked.count("BEGIN IMMEDIATE") == 2 and other.in_transaction:
            other.execute("COMMIT")

    monkeypatch.setattr(SqliteFile, "_connected", watched)
    other.execute("BEGIN IMMEDIATE")
    with SqliteStore(path) as store:
        store.create("j", b"1", "a", flow_id="f", status="pending")
        assert [b"1"] == store.rows("j")
    other.close()
    assert asked.index("PRAGMA journal_mode = WAL") > 2
    assert ["BEGIN IMMEDIATE"] * 2 == [a for a in asked if a == "BEGIN IMMEDIATE"][:2]


# --- reading alone --------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The files of a folder: content and time of the last write."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_a_reader_writes_nothing_and_leaves_no_trace(sqlite):
    sqlite.create("j", b"row 1", "a", flow_id="f", status="pending")
    sqlite.close()
    before = files(sqlite.path.parent)
    with SqliteStore(sqlite.path, read_only=True) as reader:
        assert [b"row 1"] == reader.rows("j")
        with pytest.raises(OSError, match="attempt to write a readonly database"):
            reader.append("j", 2, b"row 2", "a", status="running")
        assert before == files(sqlite.path.parent)
    assert ["jobs.db"] == list(before) == list(files(sqlite.path.parent))


APPENDS = """
import sys
from routilux import SqliteStore
store = SqliteStore(sys.argv[1])
store.create("j", b"row 1", "a", flow_id="f", status="running")
store.append("j", 2, b"row 2", "a", status="running")
print(flush=True)
sys.stdin.readline()
"""


def test_a_reader_sees_what_a_process_that_was_killed_left_in_the_log(tmp_path):
    with processes(APPENDS, [tmp_path / "jobs.db"]) as [child]:
        line_of(child)
    log = (tmp_path / "jobs.db-wal").read_bytes()
    with SqliteStore(tmp_path / "jobs.db", read_only=True) as reader:
        assert [b"row 1", b"row 2"] == reader.rows("j")
    assert log == (tmp_path / "jobs.db-wal").read_bytes()


@pytest.mark.parametrize("closed", [False, True])
def test_a_reader_sees_what_others_write_and_without_locks_notices_a_writer(sqlite, closed):
    if closed:
        sqlite.close()  # without another process the reader takes no locks
    with SqliteStore(sqlite.path, read_only=True) as reader:
        sqlite.create("j", b"row 1", "a", flow_id="f", status="pending")
        assert closed is reader.overtaken
        if closed:
            reader.close()
        assert [b"row 1"] == reader.rows("j")
        assert not reader.overtaken


def test_a_reader_makes_no_store_of_an_empty_file(tmp_path):
    (tmp_path / "jobs.db").touch()
    with pytest.raises(CorruptStateError, match=r"jobs\.db: is empty, so it holds no store"):
        SqliteStore(tmp_path / "jobs.db", read_only=True)
    with pytest.raises(OSError, match=r"other\.db: unable to open"):
        SqliteStore(tmp_path / "other.db", read_only=True)
    assert [("jobs.db", b"")] == [(name, data) for name, (data, _) in files(tmp_path).items()]


# --- errors ---------------------------------------------------------------------------------------


def test_a_file_of_another_kind_or_program_is_refused_unchanged(tmp_path):
    letter = tmp_path / "letter.db"
    letter.write_text("a letter to a friend" * 100)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE letters (text)")
    other.commit()
    other.close()
    before = files(tmp_path)
    with pytest.raises(
        CorruptStateError, match=r"letter\.db: is not a valid database .*restore it"
    ):
        SqliteStore(letter)
    with pytest.raises(CorruptStateError, match="of another program; choose another file"):
        SqliteStore(tmp_path / "other.db")
    assert before == files(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (":memory:", ":memory: is not a file, so nothing is kept; use MemoryStore"),
        ("nowhere/jobs.db", r"nowhere/jobs\.db: unable to open.*the folder must exist"),
    ],
)
def test_a_path_without_a_file_is_refused(path, message):
    with pytest.raises(OSError, match=message):
        SqliteStore(path)


def test_damaged_tables_and_a_damaged_schema_are_reported_when_they_are_read(sqlite):
    sqlite.create("j", b"x" * 100_000, "a", flow_id="f", status="running")
    sqlite.close()
    data = sqlite.path.read_bytes()
    schema = data.replace(b"job_id TEXT NOT NULL UNIQUE", b"kob_id TEXT NOT NULL UNIQUE")
    for damaged in (data[:4096] + b"\xff" * len(data[4096:]), schema):
        assert damaged != data
        sqlite.path.write_bytes(damaged)
        with pytest.raises(CorruptStateError, match=r"jobs\.db: is not a valid database"):
            sqlite.rows("j")
        sqlite.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path, sqlite):
    with using(sqlite) as db:
        db.execute("PRAGMA user_version = 2")
    sqlite.close()
    with pytest.raises(UnsupportedVersionError, match=r"has version 2.*upgrade routilux"):
        SqliteStore(sqlite.path)


def test_a_file_that_another_process_keeps_locked_is_named(sqlite, monkeypatch):
    monkeypatch.setattr("routilux.persist.sqlite_connection._PATIENCE", 10_000_000)
    refused = pytest.raises(OSError, match="database is locked; another process keeps the file")
    with SqliteStore(sqlite.path) as other, writing(sqlite), refused:
        other.create("j", b"", "a", flow_id="f", status="running")
    sqlite.create("j", b"", "a", flow_id="f", status="running")


def test_a_full_disk_is_named_and_leaves_what_was_there(sqlite):
    sqlite.create("j", b"1", "a", flow_id="f", status="running")
    with using(sqlite) as db:
        db.execute("PRAGMA max_page_count = 1")  # as many as there are: no more can be added
    with pytest.raises(OSError, match="the disk is full; make room, then resume the jobs"):
        sqlite.append("j", 2, b"x" * 100_000, "a", status="running")
    assert [b"1"] == sqlite.rows("j")
    with using(sqlite) as db:
        db.execute("PRAGMA max_page_count = 1000000")
    sqlite.append("j", 2, b"2", "a", status="completed")


# --- the file and the process ---------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_to_a_file_that_was_removed_or_replaced(replaced, tmp_path):
    path, kept = tmp_path / "jobs.db", tmp_path / "kept.db"
    with SqliteStore(path) as store:
        store.create("j", b"1", "a", flow_id="f", status="running")
        SqliteStore(tmp_path / "other.db").close()
        path.rename(kept)
        if replaced:
            (tmp_path / "other.db").rename(path)
        for use in (
            lambda: store.append("j", 2, b"2", "a", status="running"),
            lambda: store.append("j", 2, b"2", "a", status="completed"),
            lambda: store.create("k", b"1", "a", flow_id="f", status="pending"),
            lambda: store.job_ids(),
        ):
            with pytest.raises(
                OSError, match=r"jobs\.db: its file jobs\.db was removed or replaced"
            ):
                use()
        kept.replace(path)
        store.append("j", 2, b"2", "a", status="running")
        assert [b"1", b"2"] == store.rows("j")


def test_a_store_stays_where_it_was_opened_when_its_process_changes_its_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with SqliteStore("jobs.db") as store:
        store.create("j", b"1", "a", flow_id="f", status="running")
        store.close()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert ["j"] == store.job_ids()
        with SqliteStore(tmp_path / "jobs.db", read_only=True) as reader:
            assert ["j"] == reader.job_ids()
    assert [] == list((tmp_path / "elsewhere").iterdir())


def files_open(path: Path) -> Counter[str]:
    """How often this process has each of the files of a store open."""
    found: Counter[str] = Counter()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that by which the folder was listed
            found[str(number.readlink())] += 1
    return Counter({name: times for name, times in found.items() if name.startswith(str(path))})


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_forked_child_uses_and_closes_a_connection_of_its_own(used, sqlite):
    sqlite.create("j", b"1", "a", flow_id="f", status="running")
    assert files_open(sqlite.path)

    def closes():
        gc.collect()  # a connection and its statements hold each other
        assert not files_open(sqlite.path), "SQLite would take the parent's locks for its own"
        if used:
            sqlite.append("j", 2, b"2", "a", status="running")
        sqlite.close()

    in_a_child(closes)
    sqlite.append("j", 2 + used, b"last", "a", status="running")
    assert [b"1", *[b"2"] * used, b"last"] == sqlite.rows("j")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_waits_for_the_thread_that_is_using_the_store(sqlite):
    sqlite.create("j", b"1", "a", flow_id="f", status="running")
    holding = threading.Event()

    def holds() -> None:
        with using(sqlite):
            holding.set()
            while not forks._forking.locked():
                os.sched_yield()

    thread = threading.Thread(target=holds)
    thread.start()
    assert holding.wait(PATIENCE)
    in_a_child(lambda: sqlite.append("j", 2, b"2", "a", status="running"))
    thread.join(PATIENCE)
    sqlite.append("j", 3, b"3", "a", status="running")
    assert [b"1", b"2", b"3"] == sqlite.rows("j")


@pytest.mark.parametrize("meanwhile", [False, True])
def test_no_commit_of_a_child_is_lost_when_its_parent_closes_the_store(meanwhile, sqlite):
    """The parent closes before the child's first commit, or between two commits of the child."""
    sqlite.create("j", b"1", "a", flow_id="f", status="running")
    (to_child, go_on), (to_parent, done) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if meanwhile:
                sqlite.append("j", 2, b"2", "a", status="running")
            os.write(done, b".")
            os.read(to_child, 1)
            for seq in range(2 + meanwhile, 12):
                sqlite.append("j", seq, str(seq).encode(), "a", status="running")
            code = 0
        finally:
            os._exit(code)
    os.read(to_parent, 1)
    sqlite.close()
    os.write(go_on, b".")
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for end in to_child, go_on, to_parent, done:
        os.close(end)
    with SqliteStore(sqlite.path) as store:  # the last process to close it removes the log
        assert 11 == len(store.rows("j"))
    assert 11 == len(sqlite.rows("j"))
