"""Missing, damaged and locked stores and jobs are named, and not changed."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from routilux import CorruptStateError, SqliteStore
from routilux.cli import main
from routilux.cli.open_store import read_store
from tests.cli.pages import JOBS
from tests.cli.payments import NOW, replace_in_rows


def _no_store(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _letter(path: Path) -> None:
    path.write_text("a letter to a friend" * 100)


def _sql(statement: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()

    return run


def _other_program(path: Path) -> None:
    path.unlink()
    _sql("CREATE TABLE letters (text)")(path)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


EVERY: list[tuple[str, ...]] = [
    ("jobs", "{store}"),
    ("show", "{store}", "failed"),
    ("retry", "{store}", "failed"),
    ("cancel", "{store}", "failed"),
    ("export", "{store}", "failed", "job.json"),
]


@pytest.mark.parametrize("arguments", EVERY, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_store, r"jobs\.db does not exist; check the path"),
        (_folder, r"jobs\.db is a folder; give the path of the store's file"),
        (_empty, r"jobs\.db: is empty: no store was ever written to it"),
        (_letter, r"jobs\.db: is no valid database .*restore it from a backup"),
        (_half, r"jobs\.db: is no valid database .*restore it from a backup"),
        (_other_program, r"jobs\.db: is a database of another program; choose another file"),
        (_sql("PRAGMA user_version = 2"), r"jobs\.db: has version 2; .*install a newer version"),
    ],
)
def test_a_file_that_is_no_store_is_refused_by_every_command_and_not_changed(
    store, refused, change, message, arguments
):
    change(store)
    before = files(store.parent)
    err = refused(*(text.format(store=store) for text in arguments))
    assert re.fullmatch(message, err), err
    assert before == files(store.parent)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The contents and the last change of every file of a folder."""
    return {
        path.name: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("arguments", [("jobs",), ("show", "done"), ("show", "done", "--json")])
def test_reading_leaves_no_trace(store, output, arguments):
    before = files(store.parent)
    output(arguments[0], store, *arguments[1:])
    assert ["jobs.db"] == list(before)
    assert before == files(store.parent)


def test_a_store_that_another_process_keeps_for_itself_is_named(
    store, output, refused, monkeypatch
):
    monkeypatch.setattr("routilux.persist.sqlite_connection._READERS_PATIENCE", 0)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("UPDATE jobs SET owner = owner")
    message = "the store jobs.db: database is locked; another process has kept it locked"
    assert refused("jobs", store).startswith(message)
    other.close()
    assert JOBS == output("jobs", store)


def test_a_write_waits_for_no_lock_for_ever(store, output, refused, monkeypatch):
    monkeypatch.setattr("routilux.persist.sqlite_connection._PATIENCE", 0)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert JOBS == output("jobs", store)
    assert "database is locked; another process" in refused("cancel", store, "waits")
    other.close()


def test_a_reader_reads_again_after_a_writer_has_changed_the_file(store):
    reads: list[int] = []
    with SqliteStore(store) as writer:
        writer.close()

        def look(jobs):
            if not reads:
                writer.create("new", b"row", "a", flow_id="f", queued=True)
            reads.append(len(jobs.job_ids()))
            return reads[-1]

        assert 6 == read_store(str(store), look, NOW)
    assert [5, 6] == reads


def test_a_read_that_fails_because_of_a_writer_is_repeated(store):
    fails = [True]
    with SqliteStore(store) as writer:
        writer.close()

        def look(jobs):
            if fails:
                writer.create("new", b"row", "a", flow_id="f", queued=True)
                fails.clear()
                raise CorruptStateError("jobs.db", "is no valid database")
            return jobs.job_ids()

        assert "new" in read_store(str(store), look, NOW)


@pytest.mark.parametrize(
    ("job_id", "cure"),
    [
        ("fail", "did you mean failed?"),
        ("quued", "did you mean queued?"),
        ("zzzzzz", "run `routilux jobs jobs.db` to list its jobs"),
        ("", "run `routilux jobs jobs.db` to list its jobs"),
    ],
)
@pytest.mark.parametrize("what", ["show", "cancel"])
def test_an_unknown_job_id_is_refused_with_similar_ids(store, refused, what, job_id, cure):
    assert f"there is no job {job_id} in jobs.db; {cure}" == refused(what, store, job_id)


_FAILED_ROWS = "WHERE job = (SELECT job FROM jobs WHERE job_id = 'failed')"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            f"UPDATE commits SET row = X'7B' {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: has no checksum at its end: it is cut off",
        ),
        (
            f"UPDATE commits SET row = 'text' {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: is of type str",
        ),
        (
            f"UPDATE commits SET row = 7 {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: is of type int",
        ),
        (f"DELETE FROM commits {_FAILED_ROWS} AND seq = 2", r"\$\.failed\[2\]: .*can't follow"),
        (f"DELETE FROM commits {_FAILED_ROWS}", r"\$\.failed: has no commits"),
    ],
)
def test_a_damaged_job_is_named_with_its_place_and_hides_no_other(
    store, refused, capsys, statement, reason
):
    _sql(statement)(store)
    message = rf"job failed in jobs\.db is damaged: {reason}.*; restore the store from a backup"
    for what in ("show", "retry", "cancel"):
        err = refused(what, store, "failed")
        assert re.fullmatch(message, err), err
    assert 1 == main(["jobs", str(store)], clock=NOW)
    out, err = capsys.readouterr()
    assert re.fullmatch(f"routilux: {message}\n", err), err
    assert "4 jobs: 1 pending, 1 running, 1 paused, 1 completed" == out.splitlines()[-1]
    assert 1 == main(["jobs", str(store), "--json"], clock=NOW)
    assert ["failed"] == [job["job_id"] for job in json.loads(capsys.readouterr().out)["damaged"]]


def test_a_job_of_a_newer_version_is_named_with_what_to_do_and_is_not_called_damaged(
    store, refused, capsys
):
    replace_in_rows(store, "routilux/1", "routilux/7", f"{_FAILED_ROWS} AND seq = 1")
    message = (
        "job failed in jobs.db can't be read: $.failed[1].format: is 'routilux/7', which a newer"
        " routilux wrote; this one reads 'routilux/1': install the newer one here, or resume the"
        " job where it was saved"
    )
    for what in ("show", "retry", "cancel"):
        assert message == refused(what, store, "failed")
    assert 1 == main(["jobs", str(store)], clock=NOW)
    assert f"routilux: {message}\n" == capsys.readouterr().err
