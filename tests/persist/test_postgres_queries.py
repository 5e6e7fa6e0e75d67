"""Statements of PostgresStore read few rows; a look for a job waits for no lock."""

from __future__ import annotations

from typing import Any

import pytest

from routilux import PostgresStore
from routilux.persist import postgres as statements
from tests.persist.postgres_server import with_option
from tests.persist.stores import CALLS, acquire, with_jobs
from tests.routines import SECOND
from tests.soak import sampled


def test_a_job_that_somebody_is_just_taking_is_passed_over_and_not_waited_for(dsn, admin):
    with PostgresStore(with_option(dsn, "lock_timeout=5s")) as store:
        for job_id in "jk":
            store.create(job_id, b"1", "a", flow_id="f", status="pending")
        with admin.transaction():
            admin.execute("SELECT FROM routilux_jobs WHERE job_id = 'j' FOR UPDATE")
            assert "k" == acquire(store, "b", ["f"], SECOND)
            assert None is acquire(store, "b", ["f"], SECOND)
        assert "j" == acquire(store, "b", ["f"], SECOND)


def test_no_statement_is_compiled(dsn):
    with PostgresStore(with_option(dsn, "jit=on")) as store:
        assert [("off",)] == store._do("SHOW jit").rows


LOOK = {
    "owner": "b",
    "flow_ids": ["f"],
    "lease_ns": SECOND,
    "lease": 1,
    "limit": 1,
    "now": None,
    "steady": 0,
    "expected": 0,
}


def test_a_look_where_nothing_is_free_locks_no_row_and_writes_nothing(postgres, admin):
    postgres.create("held", b"1", "a", flow_id="f", status="running")
    postgres.create("leased", b"1", "a", flow_id="f", status="pending")
    postgres.acquire("a", ["f"], 60 * SECOND)
    assert (0, False) == touched(admin)
    postgres.create("free", b"1", "a", flow_id="f", status="pending")
    assert (1, True) == touched(admin)


def touched(admin: Any) -> tuple[int, bool]:
    """How many jobs a look finds, and whether it has locked or written anything."""
    with admin.transaction():
        found = admin.execute(statements._ACQUIRE, LOOK).fetchall()
        (number,) = admin.execute("SELECT pg_current_xact_id_if_assigned()").fetchone()
    return len(found), number is not None


CROWD = """
INSERT INTO routilux_jobs (job_id, flow_id, owner, free_at, status, seq)
SELECT 'stopped ' || n, 'f', 'a', NULL, 'completed', 1 FROM generate_series(1, 2000) n UNION ALL
SELECT 'leased ' || n, 'h', 'c', 4e18 + n, 'running', 1 FROM generate_series(1, 500) n UNION ALL
SELECT 'of others ' || n, 'g', '', n, 'pending', 1 FROM generate_series(1, 500) n UNION ALL
SELECT 'free ' || n, 'f', '', 1000 + n, 'pending', 1 FROM generate_series(1, 3) n UNION ALL
SELECT 'ended', 'f', 'a', NULL, 'completed', 1 -- again, if the call deletes it
ON CONFLICT DO NOTHING
"""


@pytest.mark.parametrize("call", sampled(CALLS, [*CALLS][::3]))
def test_jobs_are_found_by_an_index_even_if_planned_for_few_jobs(postgres, admin, call):
    with_jobs(postgres)
    admin.execute("ANALYZE routilux_jobs, routilux_commits, routilux_snapshots")
    CALLS[call](postgres)  # the connection keeps the plan
    admin.execute(CROWD)
    admin.execute(
        "INSERT INTO routilux_commits SELECT job, 1, 'a', '' FROM routilux_jobs"
        " ON CONFLICT DO NOTHING"
    )
    before = rows_read(postgres, admin)
    CALLS[call](postgres)
    assert 0 < (read := rows_read(postgres, admin) - before) < 50, f"{read} rows of 3,000 are read"


def rows_read(store: PostgresStore, admin: Any) -> int:
    """How many rows of tables and of indexes the store's connection has read until now."""
    for execute in (store._do, admin.execute):
        execute("SELECT pg_stat_force_next_flush()")
        execute("SELECT 1")  # the end of a statement reports what was read before
    admin.execute("SELECT pg_stat_clear_snapshot()")
    ((count,),) = admin.execute(
        "SELECT sum(n) FROM (SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) n FROM"
        " pg_stat_user_tables WHERE schemaname = current_schema UNION ALL SELECT idx_tup_read"
        " FROM pg_stat_user_indexes WHERE schemaname = current_schema) counts"
    ).fetchall()
    return int(count)
