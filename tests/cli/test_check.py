"""`routilux check`: each damaged place of a store is named, with the cure."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from routilux.cli import main
from tests.cli.payments import NOW, replace_in_rows


def test_an_intact_store_is_clean_and_not_changed(store, output):
    before = store.read_bytes()
    assert "no damage in jobs.db\n" == output("check", store)
    assert [] == json.loads(output("check", store, "--json"))["damaged"]
    assert before == store.read_bytes()
    assert ["jobs.db"] == [p.name for p in Path().iterdir()]


def test_every_damaged_job_is_named_with_its_place_and_the_cure(store, capsys):
    with closing(sqlite3.connect(store)) as db:
        row = (
            "SELECT row FROM commits"
            " WHERE job = (SELECT job FROM jobs WHERE job_id = 'done') AND seq = 3"
        )
        [(data,)] = db.execute(row).fetchall()
        db.execute("UPDATE commits SET row = ? WHERE row = ?", (data.replace(b"1", b"2", 1), data))
        db.execute("UPDATE jobs SET flow_id = 'other' WHERE job_id = 'waits'")
        db.commit()
    assert 1 == main(["check", str(store)], clock=NOW)
    out, err = capsys.readouterr()
    assert "" == out
    waits, done = sorted(err.splitlines(), key=lambda line: "$.done" in line)
    assert done.startswith("routilux: jobs.db is damaged: $.done[3]: ")
    assert waits.startswith("routilux: jobs.db is damaged: $.waits: ")
    assert all(line.endswith("restore the store from a backup") for line in (done, waits))
    assert 1 == main(["check", str(store), "--json"], clock=NOW)
    found = json.loads(capsys.readouterr().out)
    assert {"$.done[3]", "$.waits"} == {damage["path"] for damage in found["damaged"]}


def test_a_damaged_page_is_named_and_hides_no_intact_job(store, capsys):
    data = bytearray(store.read_bytes())
    with closing(sqlite3.connect(store)) as db:
        [(root,)] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'free'").fetchall()
        (page,) = db.execute("PRAGMA page_size").fetchone()
    start = (root - 1) * page
    data[start + page - 100 : start + page] = b"\xff" * 100
    store.write_bytes(bytes(data))
    assert 1 == main(["check", str(store)], clock=NOW)
    out, err = capsys.readouterr()
    assert "" == out
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("routilux: jobs.db is damaged: jobs.db: ") for line in lines), err
    assert all(line.endswith("restore the store from a backup") for line in lines), err


def test_a_file_too_damaged_to_be_checked_to_its_end_is_reported(store, capsys):
    data = store.read_bytes()
    with closing(sqlite3.connect(store)) as db:
        [(root,)] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchall()
        (page,) = db.execute("PRAGMA page_size").fetchone()
    store.write_bytes(data[: (root - 1) * page] + b"\xff" * page + data[root * page :])
    assert 1 == main(["check", str(store)], clock=NOW)
    out, err = capsys.readouterr()
    assert "" == out
    assert all("jobs.db: is not a valid database" in line for line in err.splitlines()), err


def test_a_commit_that_says_something_else_than_the_entry_is_damage(store, capsys):
    replace_in_rows(store, '"status":"completed"', '"status":"running"', "WHERE seq = 7")
    assert 1 == main(["check", str(store)], clock=NOW)
    assert "jobs.db is damaged: $.done" in capsys.readouterr().err
