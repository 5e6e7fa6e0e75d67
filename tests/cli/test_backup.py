"""`routilux backup`: a copy of a store in use, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from routilux import JobStatus, Runtime, SavedStateError, SqliteStore
from routilux.persist.sqlite_connection import _Connection
from tests.cli.payments import NOW, after, payment
from tests.persist.hosts import line_of, processes


def jobs_in(path: Path) -> dict[str, int]:
    with SqliteStore(path, clock=NOW) as store:
        return {job_id: len(store.rows(job_id)) for job_id in store.job_ids()}


def test_a_copy_is_a_store_of_one_file_that_only_its_owner_reads(store, output):
    before = jobs_in(store)
    text = output("backup", store, "copy.db")
    size = Path("copy.db").stat().st_size
    assert f"a copy of jobs.db is in copy.db, {size:,} bytes\n" == text
    assert 0o600 == stat.S_IMODE(Path("copy.db").stat().st_mode)
    assert ["copy.db", "jobs.db"] == sorted(p.name for p in Path().iterdir())
    assert before == jobs_in(Path("copy.db"))
    assert output("jobs", store) == output("jobs", "copy.db")
    found = json.loads(output("backup", store, "other.db", "--json"))
    assert ("routilux-backup/1", "other.db") == (found["format"], found["file"])


def test_a_file_is_replaced_only_on_request_and_never_the_store_or_one_in_use(
    store, refused, output
):
    Path("copy.db").write_text("a letter")
    message = "copy.db exists; give another path, or replace it (replace=True, --replace)"
    assert refused("backup", store, "copy.db").endswith(message)
    assert "a letter" == Path("copy.db").read_text("utf-8")
    output("backup", store, "copy.db", "--replace")
    assert jobs_in(store) == jobs_in(Path("copy.db"))
    assert "is the store itself" in refused("backup", store, store, "--replace")
    with SqliteStore("copy.db") as copy:
        assert copy.job_ids()
        assert "copy.db-wal exists, of a store that" in refused(
            "backup", store, "copy.db", "--replace"
        )
    Path("folder").mkdir()
    assert "folder is a folder" in refused("backup", store, "folder")
    assert "create the file's folder first" in refused("backup", store, "nowhere/copy.db")
    assert "copy it with pg_dump" in refused("backup", "postgresql://nowhere/jobs", "x.db")


def test_a_full_disk_leaves_no_half_copy(store, refused, monkeypatch):
    def full(file: object, copy: sqlite3.Connection) -> None:
        copy.execute("PRAGMA max_page_count = 1")
        copy.execute("CREATE TABLE a (b)")

    monkeypatch.setattr("routilux.persist.sqlite_connection.SqliteFile.copy_to", full)
    text = refused("backup", store, "copy.db")
    assert "copy.db can't be written: database or disk is full; make room" in text
    assert ["jobs.db"] == [p.name for p in Path().iterdir()]


def test_an_error_of_the_store_itself_is_not_blamed_on_the_place_of_the_copy(tmp_path, monkeypatch):
    def damaged(file: object, copy: sqlite3.Connection) -> None:
        copy.execute("CREATE TABLE log AS SELECT * FROM no_table")

    with SqliteStore(tmp_path / "jobs.db") as store:
        monkeypatch.setattr("routilux.persist.sqlite_connection.SqliteFile.copy_to", damaged)
        with pytest.raises(SavedStateError, match=r"jobs\.db: .*no such table") as caught:
            store.backup(tmp_path / "copy.db")
    assert "copy.db" not in str(caught.value)


def test_a_copy_of_a_closed_store_is_refused_if_a_process_wrote_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    with SqliteStore(path) as store:
        store.create("j", b"row", "a", flow_id="f", status="running")
    reader = SqliteStore(path, read_only=True)
    backup = sqlite3.Connection.backup

    class Slow(_Connection):
        def backup(self, copy: sqlite3.Connection) -> None:
            with SqliteStore(path) as writer:
                writer.create("k", b"row", "a", flow_id="f", status="running")
            backup(self, copy)

    monkeypatch.setattr("routilux.persist.sqlite_connection._Connection", Slow)
    with pytest.raises(OSError, match="another process began to write to it; copy it again"):
        reader.backup(tmp_path / "copy.db")
    assert reader.overtaken
    assert ["jobs.db"] == [p.name for p in tmp_path.iterdir()]


WRITES = """
import sys
from routilux import SavedStateError, SqliteStore
from routilux.persist import sqlite_files
sqlite_files.LONGEST_LOG = 100_000
store = SqliteStore(sys.argv[1])
name = sys.argv[2]
store.create(name, b"row", name, flow_id="f", status="running")
for seq in range(2, 10_000):
    store.append(name, seq, b"x" * 500, name, status="running")
    print(seq, flush=True)
"""


def test_a_copy_that_is_made_while_two_processes_write_has_every_acknowledged_commit(tmp_path):
    path = tmp_path / "jobs.db"
    seen = {"a": 0, "b": 0}

    def reads(name: str, child: object) -> None:
        while line := line_of(child):  # type: ignore[arg-type]
            seen[name] = int(line)

    with processes(WRITES, [path, "a"], [path, "b"]) as children:
        threads = [
            threading.Thread(target=reads, args=pair) for pair in zip(seen, children, strict=True)
        ]
        for child, name in zip(children, seen, strict=True):
            seen[name] = int(line_of(child))
        for thread in threads:
            thread.start()
        with SqliteStore(path) as store:
            for number in range(5):
                known = dict(seen)
                store.backup(tmp_path / f"{number}.db")
                copied = jobs_in(tmp_path / f"{number}.db")
                assert all(known[name] <= copied[name] for name in seen), (known, copied)
        for child in children:
            child.kill()
        for thread in threads:
            thread.join()


def test_a_restored_copy_is_resumed(store, output):
    output("backup", store, "copy.db")
    store.unlink()
    Path("copy.db").rename(store)
    clock = after(3600)
    with SqliteStore(store, clock=clock) as jobs:
        runtime = Runtime(clock=clock, store=jobs)
        job = payment().resume(runtime.load("failed"), runtime=runtime, retry_failed=True)
    assert JobStatus.COMPLETED is job.status


def test_a_copy_through_a_link_replaces_the_file_behind_it_and_looks_for_a_log_there(
    store, output, refused
):
    Path("real").mkdir()
    Path("copy.db").symlink_to("real/jobs.db")
    output("backup", store, "copy.db")
    assert Path("copy.db").is_symlink()
    assert jobs_in(Path("real/jobs.db")) == jobs_in(store)
    Path("real/jobs.db-wal").touch()
    assert "jobs.db-wal exists, of a store that" in refused("backup", store, "copy.db", "--replace")


@pytest.mark.parametrize("command", ["backup", "check"])
def test_a_store_that_does_not_exist_is_refused(command, refused):
    arguments = ["x.db"] if command == "backup" else []
    assert "nowhere.db does not exist; check the path" == refused(command, "nowhere.db", *arguments)
