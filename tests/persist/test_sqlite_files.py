"""The three files of a store: one is removed, replaced, overwritten or restored, and noticed."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from routilux import CorruptStateError, SqliteStore
from routilux.persist import sqlite_files
from routilux.persist.sqlite_connection import _create
from routilux.persist.sqlite_files import Generation
from tests.persist.hosts import go, line_of, processes
from tests.persist.stores import using
from tests.routines import SECOND
from tests.soak import sampled

REPLACED = r"jobs\.db{} was removed or replaced while the store was open"
CHANGED = "was changed while the store was open, and not by SQLite"
FOREIGN = "does not belong to the log beside it, jobs.db-wal and jobs.db-shm"
LOST = "needs its log jobs.db-wal for its last commits, but the log was removed or emptied"


AN_HOUR = 3600 * SECOND  # after the year 1970 began


def start(store: SqliteStore, job_id: str = "j") -> None:
    store.create(job_id, b"row 1", "a", flow_id="f", status="running")


def append(store: SqliteStore, seq: int, row: bytes = b"row", job_id: str = "j") -> None:
    store.append(job_id, seq, row, "a", status="running")


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
            lambda: store.append("j", 2, b"row", "a", status="paused"),
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


def test_a_file_that_is_removed_during_a_write_is_noticed_by_the_next_use(path):
    for end in ("", "-wal", "-shm"):
        with SqliteStore(path) as store:
            start(store, f"j{end}")
            removed = []

            def removes(statement: str, end: str = end, removed: list[str] = removed) -> None:
                if statement.lstrip().startswith("INSERT OR IGNORE") and not removed:
                    removed.append(statement)
                    beside(path, end).rename(beside(path, ".kept"))

            store._file.use(lambda db, removes=removes: db.set_trace_callback(removes))
            append(store, 2, job_id=f"j{end}")
            assert removed
            for use in (lambda: store.holders(f"j{end}"), lambda: append(store, 3)):  # noqa: B023
                with pytest.raises(OSError, match=REPLACED.format(end)):
                    use()
            beside(path, ".kept").rename(beside(path, end))
            store._file.use(lambda db: db.set_trace_callback(None))


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


@pytest.mark.parametrize("left", [0, 100, 5000])
def test_a_log_that_loses_what_another_store_wrote_is_noticed(left, path):
    with SqliteStore(path) as store, SqliteStore(path) as another:
        start(store)
        for seq in range(2, 9):
            append(another, seq, b"x" * 9000)
        another.create("k", b"row 1", "a", flow_id="f", status="running")
        with beside(path, "-wal").open("r+b") as log:
            log.truncate(store._file._files.size + left)
        with pytest.raises((OSError, CorruptStateError), match=r"is cut|was cut"):
            start(store, "l")


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


# --- before they are opened -----------------------------------------------------------------------

WRITES = """
import sys
from routilux import SqliteStore
store = SqliteStore(sys.argv[1])
store.create("j", b"row 1", "a", flow_id="f", status="running")
store.append("j", 2, b"row 2", "a", status="running")
print(flush=True)
for line in sys.stdin:
    try:
        store.append("j", 3, b"row 3", "a", status="running")
        print("acknowledged", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def killed(path: Path) -> Path:
    """A store whose process was killed, so that its commits are in the log."""
    with processes(WRITES, [path]) as [child]:
        line_of(child)
    return path


def test_a_backup_that_is_restored_beside_an_old_log_is_refused_unchanged(path, killed):
    copy = beside(path, ".copy")
    with SqliteStore(path) as store:
        store.backup(copy)
    with processes(WRITES.replace('"j"', '"k"'), [path]) as [child]:
        line_of(child)
    shutil.copy(copy, path)
    before = all_of(path)
    for read_only in (False, True):
        with pytest.raises(CorruptStateError, match=f"{FOREIGN}.*move those two away"):
            SqliteStore(path, read_only=read_only)
    assert {**before, "jobs.db-shm": b""} == {**all_of(path), "jobs.db-shm": b""}
    move_away(path)
    with SqliteStore(path) as store:
        assert ["j"] == store.job_ids()
        assert [b"row 1", b"row 2"] == store.rows("j")


@pytest.mark.parametrize("index", [False, True], ids=["alone", "with the index"])
@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_log_that_was_removed_while_nobody_used_the_store_is_missed(how, index, killed):
    ends = ("-wal", "-shm") if index else ("-wal",)
    for end in ends:
        beside(killed, end).rename(beside(killed, f"{end}.old"))
        if how == "emptied":
            beside(killed, end).touch()
    before = all_of(killed)
    for read_only in (False, True):
        with pytest.raises(CorruptStateError, match=LOST):
            SqliteStore(killed, read_only=read_only)
    assert before == all_of(killed)
    for end in ends:
        beside(killed, f"{end}.old").replace(beside(killed, end))
    with SqliteStore(killed) as store:
        assert [b"row 1", b"row 2"] == store.rows("j")


def test_a_file_that_was_copied_without_its_log_is_refused(path, tmp_path):
    with SqliteStore(path) as store:
        start(store)
        shutil.copy(path, tmp_path / "copy.db")
    with pytest.raises(CorruptStateError, match=r"was copied without it.*routilux backup"):
        SqliteStore(tmp_path / "copy.db")
    shutil.copy(path, tmp_path / "closed.db")
    with SqliteStore(tmp_path / "closed.db") as store:
        assert [b"row 1"] == store.rows("j")


def test_a_store_that_another_process_makes_at_this_moment_is_whole(path, monkeypatch):
    made: list[SqliteStore] = []
    size = sqlite_files._size

    def makes(name: str) -> int:
        found = size(name)
        if name == str(path):
            monkeypatch.undo()
            made.append(SqliteStore(path))
            start(made[0])
        return found

    monkeypatch.setattr(sqlite_files, "_size", makes)
    with SqliteStore(path) as store:
        assert ["j"] == store.job_ids()
    made[0].close()


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_log_without_its_file_is_not_deleted(how, killed):
    data = killed.read_bytes()
    killed.unlink()
    if how == "emptied":
        killed.touch()
    before = all_of(killed)
    with pytest.raises(CorruptStateError, match=r"is missing or empty, but jobs.db-wal is there"):
        SqliteStore(killed)
    assert before == all_of(killed)
    killed.write_bytes(data)
    with SqliteStore(killed) as store:
        assert [b"row 1", b"row 2"] == store.rows("j")


def test_a_log_that_another_program_has_copied_to_the_file_is_not_missed(killed):
    with closing(sqlite3.connect(killed)) as db:
        assert [(2,)] == db.execute("SELECT count(*) FROM commits").fetchall()
    assert ["jobs.db"] == list(all_of(killed))
    with SqliteStore(killed) as store:
        assert [b"row 1", b"row 2"] == store.rows("j")


def test_a_log_whose_index_was_lost_with_the_machine_is_read(killed):
    beside(killed, "-shm").unlink()
    for read_only in (True, False):
        with SqliteStore(killed, read_only=read_only) as store:
            assert [b"row 1", b"row 2"] == store.rows("j")


# --- two processes --------------------------------------------------------------------------------


def test_a_process_that_runs_while_its_index_is_removed_loses_nothing(path):
    with processes(WRITES, [path]) as [child]:
        line_of(child)
        beside(path, "-shm").unlink()
        with pytest.raises(OSError, match=r"jobs\.db-shm was removed while other processes use"):
            SqliteStore(path)
        with pytest.raises(OSError, match=r"jobs\.db-shm was removed while other processes use"):
            SqliteStore(path, read_only=True)
        go([child])
        assert line_of(child).startswith("OSError the store")
    with SqliteStore(path) as store:
        assert [b"row 1", b"row 2"] == store.rows("j")


@pytest.mark.parametrize("end", ["-wal", "-shm"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_two_stores_of_one_process_do_not_share_an_index_that_was_replaced(how, end, path):
    with SqliteStore(path) as store:
        start(store)
        beside(path, end).rename(beside(path, ".old"))
        if how == "replaced":
            shutil.copy(beside(path, ".old"), beside(path, end))
        message = LOST if (how, end) == ("removed", "-wal") else REPLACED.format(end)
        with pytest.raises((OSError, CorruptStateError), match=message):
            SqliteStore(path)
        beside(path, ".old").replace(beside(path, end))
        append(store, 2)


@pytest.mark.parametrize("ends", [("",), ("-wal",), ("-shm",), ("", "-wal", "-shm")])
def test_files_are_noticed_that_a_program_replaces_as_if_nothing_had_changed(ends, path):
    with SqliteStore(path) as store:
        start(store)
        os.utime(path.parent, ns=(AN_HOUR, AN_HOUR))
        append(store, 2)
        for end in ends:
            copy = shutil.copy2(beside(path, end), beside(path, ".copy"))
            Path(copy).replace(beside(path, end))
        os.utime(path.parent, ns=(AN_HOUR, AN_HOUR))
        with pytest.raises(OSError, match="was removed or replaced while the store was open"):
            append(store, 3)


def test_a_link_to_another_folder_is_noticed(tmp_path):
    link = tmp_path / "current"
    for name in "one", "two":
        (tmp_path / name).mkdir()
    link.symlink_to(tmp_path / "one")
    with SqliteStore(link / "jobs.db") as store:
        start(store)
        os.utime(tmp_path / "one", ns=(AN_HOUR, AN_HOUR))
        append(store, 2)
        for end in "", "-wal", "-shm":
            shutil.copy(beside(tmp_path / "one" / "jobs.db", end), tmp_path / "two")
        link.unlink()
        link.symlink_to(tmp_path / "two")
        with pytest.raises(OSError, match=r"jobs\.db was removed or replaced"):
            append(store, 3)


def test_a_program_that_makes_the_file_smaller_does_no_harm(path):
    with SqliteStore(path) as store:
        for number in range(100):
            store.create(f"j{number}", b"x" * 5000, "a", flow_id="f", status="running")
        store.close()
        append(store, 2, job_id="j99")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("DELETE FROM commits WHERE job < 90")
            db.execute("DELETE FROM jobs WHERE job < 90")
            append(store, 3, job_id="j99")
            before = path.stat().st_size
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint").fetchall()
            assert path.stat().st_size < before
        append(store, 4, job_id="j99")
        assert 4 == len(store.rows("j99"))


def test_a_log_is_missed_although_another_program_made_a_checkpoint_before(path, tmp_path):
    with SqliteStore(path) as store:
        start(store)
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint").fetchall()
            append(store, 2)
        shutil.copy(path, tmp_path / "copy.db")
    with pytest.raises(CorruptStateError, match="needs its log copy"):
        SqliteStore(tmp_path / "copy.db")


def test_a_store_that_nobody_closes_keeps_no_file_open(path):
    with SqliteStore(path) as store:
        start(store)
        counts = []
        for number in 1, 2, 20:  # SQLite keeps a few of them for its next connection
            for _ in range(number):
                SqliteStore(path).job_ids()
            gc.collect()
            counts.append(len([*Path("/proc/self/fd").iterdir()]))
        assert counts[1] == counts[2]
        append(store, 2)


def test_a_file_whose_creation_was_cut_off_is_made_whole_by_the_next_writer(path, tmp_path):
    made = tmp_path / "made.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        _create(db)
        db.execute("CREATE TABLE more (data)")
        db.execute("INSERT INTO more VALUES (zeroblob(100000))")  # more than the cache: written
        for end in "", "-journal":
            shutil.copy(beside(path, end), beside(made, end))
        db.execute("ROLLBACK")
    with pytest.raises(OSError, match="died as it did so; open it for writing"):
        SqliteStore(made, read_only=True)
    with SqliteStore(made) as store:
        start(store)
    with SqliteStore(made, read_only=True) as store:
        assert ["j"] == store.job_ids()


WORKS = """
import sys
from routilux import SqliteStore
store, name = SqliteStore(sys.argv[1]), sys.argv[2]
store.create(name, b"row 1", name, flow_id="f", status="running")
for seq in range(2, 40):
    store.append(name, seq, b"x" * 900, name, status="running")
print(flush=True)
sys.stdin.readline()
store.holders(name)
print(flush=True)
for line in sys.stdin:
    try:
        if sys.argv[3] == "commit":
            store.append(name, 40, b"row 40", name, status="running")
        else:
            store.holders(name)
        print("acknowledged", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def harm(path: Path, end: str, how: str, other: Path) -> None:
    file = beside(path, end)
    if how == "removed":
        file.unlink()
    elif how == "renamed":
        file.rename(beside(path, ".kept"))
    elif how == "replaced":
        shutil.copy(file, beside(path, ".copy"))
        beside(path, ".copy").replace(file)
    elif how == "overwritten":
        overwrite(file, beside(other, end))
    else:
        with file.open("r+b") as cut:
            cut.truncate(0 if how == "emptied" else file.stat().st_size // 2)


HARMS = [(end, how) for end in ("", "-wal", "-shm") for how in ("removed", "renamed", "replaced")]
HARMS += [(end, how) for end in ("", "-wal") for how in ("overwritten", "emptied", "cut")]
IN_SHORT = [("", "replaced"), ("-wal", "cut")]


@pytest.mark.parametrize(("end", "how"), sampled(HARMS, IN_SHORT))
def test_processes_that_run_while_a_file_is_harmed_acknowledge_nothing_more(end, how, path, other):
    uses = ("commit", "effect", "commit")
    with processes(WORKS, *([path, f"j{n}", use] for n, use in enumerate(uses))) as children:
        for child in children:
            line_of(child)
        go(children)  # a file that another process made longer is then known
        for child in children:
            line_of(child)
        harm(path, end, how, other)
        for _ in range(2):  # the second time too
            go(children)
            for child in children:
                line = line_of(child)
                assert f"jobs.db{end}" in line or f"({end}) was cut" in line, line
                assert any(cure in line for cure in ("put ", "backup", "open it again")), line


# --- generations ----------------------------------------------------------------------------------

COUNTS = """
import os, sys
from routilux import SqliteStore
from routilux.persist import sqlite_files
sqlite_files.LONGEST_LOG = 40_000
name, dies = sys.argv[2], int(sys.argv[3])
store = SqliteStore(sys.argv[1])
seen = []
def traced(statement):
    seen.append(statement)
    if len(seen) == dies:
        os._exit(9)
store._file.use(lambda db: db.set_trace_callback(traced))
for seq in range(1, 200):
    if seq == 1:
        store.create(name, b"x" * 900, name, flow_id="f", status="running")
    elif seq % 7:
        store.append(name, seq, b"%d" % seq * 300, name, status="running")
    else:
        store.append(name, seq, b"%d" % seq * 300, name, status="paused")
    print(seq, flush=True)
print("done", len(seen), flush=True)
"""


def counted(path: Path, store: SqliteStore, names: list[str]) -> list[int]:
    return [len(store.rows(name)) for name in names]


def test_processes_that_write_at_once_begin_and_end_logs_together(path):
    names = ["a", "b", "c"]
    with processes(COUNTS, *([path, name, 0] for name in names)) as children:
        ends = [child.communicate()[0].splitlines()[-1] for child in children]
    assert all(end.startswith("done") for end in ends), ends
    with closing(sqlite3.connect(path)) as db:
        assert 10 < Generation.of(db).number
    assert ["jobs.db"] == list(all_of(path))
    with SqliteStore(path) as store:
        assert [199] * 3 == counted(path, store, names)


@pytest.mark.parametrize("first", sampled(range(1, 121, 3), range(1, 121, 60)))
def test_a_kill_at_any_statement_of_a_generation_loses_no_log(first, path, tmp_path):
    """The first statements begin a log; the later ones end it and begin the next one."""
    for dies in (first, 120 + first):
        store_path = tmp_path / f"{dies}.db"
        with processes(COUNTS, [store_path, "a", dies]) as [child]:
            lines = child.communicate()[0].splitlines()
            assert 9 == child.returncode
        with SqliteStore(store_path, read_only=True) as reader:
            assert len(lines) <= len(reader.rows("a")) <= len(lines) + 1
        with SqliteStore(store_path) as store:
            assert len(lines) <= len(store.rows("a")) <= len(lines) + 1
        with SqliteStore(store_path) as store:
            start(store, "b")
            beside(store_path, "-wal").rename(beside(store_path, ".kept"))
            with pytest.raises(OSError, match="was removed"):
                store.rows("b")
        with pytest.raises(CorruptStateError, match="needs its log"):
            SqliteStore(store_path)


def test_a_checkpoint_that_was_killed_after_any_page_is_no_damage(path, tmp_path):
    images: dict[str, dict[str, bytes]] = {}

    def traced(statement: str) -> None:
        images[statement.split()[0]] = all_of(path)

    with SqliteStore(path) as store:
        start(store)
        for seq in range(2, 20):
            append(store, seq, b"x" * 3_000)
        with using(store) as db:
            db.set_trace_callback(traced)
            store._file._files.most = 0
            store._file._begin(db)
    old, new = images["PRAGMA"]["jobs.db"], images["UPDATE"]["jobs.db"]
    page = 4096
    assert len(old) + 10 * page < len(new)
    mixed = tmp_path / "mixed.db"
    for copied in range(0, len(new) + 1, page):
        mixed.write_bytes(new[:copied] + old[copied:])
        for end in ("-wal", "-shm"):
            beside(mixed, end).write_bytes(images["PRAGMA"][f"jobs.db{end}"])
        for read_only in (True, False):
            with SqliteStore(mixed, read_only=read_only) as store:
                assert 19 == len(store.rows("j")), copied
