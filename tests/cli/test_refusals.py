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
from tests.soak import sampled


def _sql(statement: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()

    return run


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "command", sampled(["jobs", "show", "retry", "cancel", "export"], ["jobs", "retry"])
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"jobs\.db does not exist; check the path"),
        (_folder, r"jobs\.db is a folder; give the path of the store's file"),
        (
            lambda path: path.write_bytes(b""),
            r"jobs\.db: is empty, so it holds no store; check the path",
        ),
        (
            lambda path: path.write_text("a letter"),
            r"jobs\.db: is not a valid database .*restore it.*",
        ),
        (_sql("PRAGMA user_version = 2"), r"jobs\.db: has version 2; .*upgrade routilux"),
    ],
)
def test_a_file_that_is_no_store_is_refused_by_every_command_and_not_changed(
    store, refused, change, message, command
):
    change(store)
    before = files(store.parent)
    err = refused(command, store, *{"jobs": [], "export": ["done", "file"]}.get(command, ["done"]))
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


@pytest.mark.parametrize(
    ("mode", "command"), [("EXCLUSIVE", ["jobs"]), ("NORMAL", ["cancel", "waits"])]
)
def test_a_store_that_another_process_keeps_locked_is_named(
    store, output, refused, monkeypatch, mode, command
):
    for patience in ("_READERS_PATIENCE", "_PATIENCE"):
        monkeypatch.setattr(f"routilux.persist.sqlite_connection.{patience}", 0)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute(f"PRAGMA locking_mode = {mode}")
    other.execute("BEGIN IMMEDIATE")
    message = "the store jobs.db: database is locked; another process keeps the file locked"
    assert refused(command[0], store, *command[1:]).startswith(message)
    if mode == "NORMAL":
        assert JOBS == output("jobs", store), "a reader does not wait for a writer"
    other.close()
    assert JOBS == output("jobs", store)


@pytest.mark.parametrize("fails", [False, True])
def test_a_reader_reads_again_after_a_writer_has_changed_the_file(store, fails):
    reads: list[int] = []
    with SqliteStore(store) as writer:
        writer.close()

        def look(jobs):
            reads.append(len(jobs.job_ids()))
            if len(reads) == 1:
                writer.create("new", b"row", "a", flow_id="f", status="pending")
                if fails:
                    raise CorruptStateError("jobs.db", "is not a valid database")
            return reads[-1]

        assert 6 == read_store(str(store), look, NOW)
    assert [5, 6] == reads


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
            f"UPDATE commits SET row = 7 {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: is of type int",
        ),
        (
            f"DELETE FROM commits {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed: its last commit is \d, but the store returns no commit 2",
        ),
        (
            f"DELETE FROM commits {_FAILED_ROWS}",
            r"\$\.failed: its last commit is \d, but the store returns no commit 1",
        ),
        (
            "UPDATE jobs SET status = 'completed' WHERE job_id = 'failed'",
            r"\$\.failed: its entry in the store was damaged: its checksum does not match",
        ),
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
    assert "\n4 jobs: 1 pending, 1 running, 1 paused, 1 completed\n" in out
    assert 1 == main(["jobs", str(store), "--json"], clock=NOW)
    assert ["failed"] == [job["job_id"] for job in json.loads(capsys.readouterr().out)["damaged"]]


def test_a_job_of_a_newer_version_is_named_with_what_to_do_and_is_not_called_damaged(
    store, refused, capsys
):
    replace_in_rows(store, "routilux/1", "routilux/7", f"{_FAILED_ROWS} AND seq = 1")
    message = (
        "job failed in jobs.db can't be read: $.failed[1].format: is 'routilux/7', which a newer"
        " routilux wrote; this routilux reads 'routilux/1': install the newer version"
        " here, or resume the job where it was saved"
    )
    for what in ("show", "retry", "cancel"):
        assert message == refused(what, store, "failed")
    assert 1 == main(["jobs", str(store)], clock=NOW)
    assert f"routilux: {message}\n" == capsys.readouterr().err
