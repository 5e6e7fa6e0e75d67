"""A job that is damaged in the store is named, and neither stops a worker nor any other job."""

from __future__ import annotations

import re
import sqlite3

import pytest

from routilux import FakeClock, RoutiluxError, Runtime, SqliteStore
from routilux.cli import main
from tests.routines import chain, rest
from tests.worker.jobs import statuses, worker

OF_JOB = "WHERE job = (SELECT job FROM jobs WHERE job_id = 'j')"
DAMAGE = {
    "owner": "CAST(X'ff41' AS TEXT)",
    "free_at": "'soon'",
    "flow_id": "'talf'",
    "job_id": "'k'",
    "seq": "seq + 1",
    "status": "'pendinf'",
    "wait": "X'00'",
    "seal": "seal + 1",
    "number of the commit": f"UPDATE commits SET seq = 2 {OF_JOB}",
    "row": f"UPDATE commits SET row = X'7b7d' {OF_JOB}",
}


@pytest.mark.parametrize("column", DAMAGE)
def test_a_damaged_job_is_named_once_and_all_others_complete(column, tmp_path, caplog, capsys):
    clock, path = FakeClock(), tmp_path / "jobs.db"
    with SqliteStore(path, clock=clock) as store, Runtime(clock=clock, store=store) as runtime:
        flow = chain(a=rest)
        for job_id in ("i", "j", "l"):
            runtime.submit(flow, "a", job_id=job_id)
        db = sqlite3.connect(path)
        statement = DAMAGE[column]
        if not statement.startswith("UPDATE"):
            statement = f"UPDATE jobs SET {column} = {statement} WHERE job_id = 'j'"
        with db:
            db.execute(statement)
        db.close()
        host = worker(runtime, flow)
        try:
            host.run(until_idle=True)
        except RoutiluxError:  # of the job that can't be resumed; the others follow
            host = worker(runtime, flow)
            clock.advance(0)
            for _ in range(3):
                host._take(False)
            host.stop()
            host.run()
        name = "k" if column == "job_id" else "j"
        errors = {r.getMessage() for r in caplog.records if r.levelname == "ERROR"}
        [error] = errors
        assert re.search(rf"job {name} .*\$\.{name}", error), error
        assert {"completed"} == statuses(runtime, ["i", "l"])
        for use in (store.entries, store.holders, lambda: store.free_in([flow.flow_id])):
            use()
    assert 1 == main(["jobs", str(path)], clock=clock)
    assert f"job {name} in " in capsys.readouterr().err
