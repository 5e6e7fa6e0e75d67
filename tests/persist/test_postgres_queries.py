"""Statements of PostgresStore read few rows; a look for a job waits for no lock."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from routilux import Append, PostgresStore, RoutiluxError
from routilux.persist import postgres as statements
from routilux.persist import postgres_connection
from tests.persist.postgres_server import with_option
from tests.persist.stores import acquire
from tests.routines import SECOND


def test_a_job_that_somebody_is_just_taking_is_passed_over_and_not_waited_for(dsn, admin):
    with PostgresStore(with_option(dsn, "lock_timeout=5s")) as store:
        for job_id in "jk":
            store.create(job_id, b"1", "a", flow_id="f", queued=True)
        with admin.transaction():
            admin.execute("SELECT FROM routilux_jobs WHERE job_id = 'j' FOR UPDATE")
            assert "k" == acquire(store, "b", ["f"], SECOND)
            assert None is acquire(store, "b", ["f"], SECOND)
        assert "j" == acquire(store, "b", ["f"], SECOND)


LOOK = {"owner": "b", "flow_ids": ["f"], "lease_ns": SECOND, "lease": 1, "now": None}


def test_a_look_where_nothing_is_free_locks_no_row_and_writes_nothing(postgres, admin):
    postgres.create("held", b"1", "a", flow_id="f", queued=False)
    postgres.create("leased", b"1", "a", flow_id="f", queued=True)
    postgres.acquire("a", ["f"], 60 * SECOND)
    assert (0, False) == touched(admin)
    postgres.create("free", b"1", "a", flow_id="f", queued=True)
    assert (1, True) == touched(admin)


def touched(admin: Any) -> tuple[int, bool]:
    """How many jobs a look finds, and whether it has locked or written anything."""
    with admin.transaction():
        found = admin.execute(statements._ACQUIRE, LOOK).fetchall()
        (number,) = admin.execute("SELECT pg_current_xact_id_if_assigned()").fetchone()
    return len(found), number is not None


CROWD = """
INSERT INTO routilux_jobs (job_id, flow_id, owner, free_at)
SELECT 'stopped ' || n, 'f', 'a', NULL FROM generate_series(1, 2000) n UNION ALL
SELECT 'leased ' || n, 'h', 'c', 4e18 + n FROM generate_series(1, 500) n UNION ALL
SELECT 'of others ' || n, 'g', '', n FROM generate_series(1, 500) n UNION ALL
SELECT 'free ' || n, 'f', '', 1000 + n FROM generate_series(1, 3) n
"""
ROW = (2, b"2", "a")
CALLS: dict[str, Callable[[PostgresStore], object]] = {
    "append": lambda store: store.append("j", *ROW, stopped=False),
    "append_all": lambda store: store.append_all([Append("j", *ROW, True)]),
    "claim": lambda store: store.claim("j", *ROW, stopped=False),
    "overrule": lambda store: store.overrule("j", *ROW, free=True),
    "create": lambda store: store.create("k", b"1", "a", flow_id="f", queued=True),
    "keep_snapshot": lambda store: store.keep_snapshot("j", 1, b"1"),
    "rows": lambda store: store.rows("j"),
    "snapshot": lambda store: store.snapshot("j"),
    "acquire": lambda store: store.acquire("a", ["f", "h"], SECOND),
    "renew": lambda store: store.renew("a", SECOND),
    "holders": lambda store: store.holders("j"),
    "release": lambda store: store.release("j", "a", 0),
    "free_in": lambda store: store.free_in(["f", "h"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_jobs_are_found_by_an_index_even_if_planned_for_few_jobs(
    postgres, admin, monkeypatch, call
):
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    sent: list[tuple[str, dict[str, object]]] = []

    def do(*asked: Any) -> postgres_connection.Answer:
        sent.append(asked)
        return postgres_connection.Answer([], repeated=False)

    with monkeypatch.context() as patch, suppress(RoutiluxError):
        patch.setattr(postgres._database, "do", do)
        CALLS[call](postgres)
    assert sent
    admin.execute("ANALYZE routilux_jobs, routilux_commits, routilux_snapshots")
    admin.execute(postgres_connection._SETTINGS)
    before = [plan_of(admin, *asked) for asked in sent]
    assert len(sent) == len(before)
    admin.execute(CROWD)
    admin.execute(
        "INSERT INTO routilux_commits SELECT job, 1, 'a', '' FROM routilux_jobs"
        " ON CONFLICT DO NOTHING"
    )
    for asked in sent:
        plan = plan_of(admin, *asked)
        nodes, seen = list(nodes_of(plan)), json.dumps(plan, indent=1)
        assert [] == [node for node in nodes if node["Node Type"] == "Seq Scan"], seen
        rows = sum(map(rows_of, nodes))
        assert rows < 50, f"{rows} rows are read to find a job among 3,000: {seen}"


def rows_of(node: dict[str, Any]) -> int:
    """How many rows a node of a plan has read."""
    kinds = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
    return int(node["Actual Loops"] * sum(node.get(kind, 0) for kind in kinds))


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


TYPES = {str: "text", bytes: "bytea", bool: "bool", int: "bigint", type(None): "bigint"}


def type_of(value: object) -> str:
    return f"{TYPES[type(value[0])]}[]" if isinstance(value, list) else TYPES[type(value)]


def plan_of(admin: Any, statement: str, values: dict[str, object]) -> dict[str, Any]:
    """How the server does a statement, prepared where it was not, whose effect is taken back."""
    from psycopg import sql

    numbers: dict[str, int] = {}
    numbered = re.sub(
        r"%\((\w+)\)[sb]",
        lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}",
        statement,
    )
    name = f"planned_{zlib.crc32(statement.encode())}"
    known = admin.execute("SELECT FROM pg_prepared_statements WHERE name = %s", (name,))
    if not known.fetchall():
        types = ", ".join(type_of(values[each]) for each in numbers)
        admin.execute(f"PREPARE {name} ({types}) AS {numbered}")
    literals = ", ".join(sql.Literal(values[each]).as_string(admin) for each in numbers)
    with admin.transaction(force_rollback=True):
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name} ({literals})"
        ((plan,),) = admin.execute(explain).fetchall()
    return dict(plan[0]["Plan"])
