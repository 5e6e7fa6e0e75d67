"""SqliteStore: durability, and the cost of a look for a job."""

from __future__ import annotations

import itertools

from routilux.persist.sqlite import _CREATE
from tests.persist.stores import acquire
from tests.routines import SECOND


def test_a_commit_is_on_the_disk_when_append_returns(sqlite):
    with sqlite._file.using() as db:
        assert ("wal",) == db.execute("PRAGMA journal_mode").fetchone()
        assert (2,) == db.execute("PRAGMA synchronous").fetchone()  # FULL: the log is flushed


def test_a_look_for_a_job_costs_no_more_where_thousands_of_other_flows_are_free(sqlite):
    def instructions():
        count = itertools.count()
        with sqlite._file.using() as db:
            db.set_progress_handler(lambda: next(count) * 0, 1)
        assert None is acquire(sqlite, "b", ["f", "g"], SECOND)
        assert SECOND < (sqlite.free_in(["f", "g"]) or 0)
        with sqlite._file.using() as db:
            db.set_progress_handler(None, 1)
        return next(count)

    sqlite.create("leased", b"1", "a", flow_id="f", status="pending")
    sqlite.acquire("a", ["f"], 10**6 * SECOND)
    alone = instructions()
    with sqlite._file.writing() as db:
        db.executemany(
            _CREATE,
            [(f"{flow}-{n}", flow, "", 1, 0, "pending") for flow in "ah" for n in range(1000)],
        )
    assert 0 < instructions() <= alone + 10
