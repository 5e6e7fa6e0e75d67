"""SqliteStore: durability, processes that share a file, and the cost of a look for a job."""

from __future__ import annotations

import signal

from routilux import SqliteStore
from tests.persist.hosts import process
from tests.persist.stores import acquire
from tests.routines import PATIENCE, SECOND


def test_a_commit_is_on_the_disk_when_append_returns(sqlite):
    with sqlite._file.using() as db:
        assert ("wal",) == db.execute("PRAGMA journal_mode").fetchone()
        assert (2,) == db.execute("PRAGMA synchronous").fetchone()  # FULL: the log is flushed


def test_a_look_for_a_job_costs_no_more_where_thousands_of_other_flows_are_free(sqlite):
    def instructions() -> int:
        count = 0

        def counts() -> int:
            nonlocal count
            count += 1
            return 0

        with sqlite._file.using() as db:
            db.set_progress_handler(counts, 1)
        assert None is acquire(sqlite, "b", ["f", "g"], SECOND)
        assert SECOND < (sqlite.free_in(["f", "g"]) or 0)
        with sqlite._file.using() as db:
            db.set_progress_handler(None, 1)
        return count

    sqlite.create("leased", b"1", "a", flow_id="f", queued=True)
    sqlite.acquire("a", ["f"], 10**6 * SECOND)
    alone = instructions()
    with sqlite._file.using() as db:
        db.executemany(
            "INSERT INTO jobs (job_id, flow_id, owner, free_at) VALUES (?, ?, '', 1)",
            [(f"{flow}-{n}", flow) for flow in ("a", "h") for n in range(1000)],
        )
    assert 0 < instructions() <= alone + 10


def test_a_process_that_is_killed_in_a_transaction_leaves_no_lock(tmp_path):
    program = (
        "import os, signal, sys; from routilux import SqliteStore;"
        "store = SqliteStore(sys.argv[1]);"
        "context = store._file.writing(); db = context.__enter__();"
        "db.execute(\"INSERT INTO jobs VALUES (1, 'j', 'f', '', 0)\");"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with process(program, tmp_path / "jobs.db") as child:
        assert -signal.SIGKILL == child.wait(PATIENCE)
    with SqliteStore(tmp_path / "jobs.db") as store:
        assert [] == store.job_ids()
        store.create("j", b"1", "a", flow_id="f", queued=True)
        assert "j" == acquire(store, "b", ["f"], SECOND)
