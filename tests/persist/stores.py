"""New stores of each kind, on which the contract is tested."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from routilux import (
    Append,
    Clock,
    FakeClock,
    Flow,
    JobState,
    JobStore,
    MemoryStore,
    PostgresStore,
    Routine,
    Runtime,
    SqliteStore,
)
from tests.persist import postgres_server
from tests.routines import SECOND, chain

Make = Callable[[Path, Clock], AbstractContextManager[JobStore]]


@contextmanager
def _memory(folder: Path, clock: Clock) -> Iterator[JobStore]:
    yield MemoryStore(clock)


@contextmanager
def _sqlite(folder: Path, clock: Clock) -> Iterator[JobStore]:
    with SqliteStore(folder / "jobs.db", clock=clock) as store:
        yield store


@contextmanager
def _postgres(folder: Path, clock: Clock) -> Iterator[JobStore]:
    postgres_server.need()
    with PostgresStore(postgres_server.fresh_dsn(), clock=clock) as store:
        yield store


@contextmanager
def using(store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """The connection of a store, which no other thread uses in the block."""
    with store._file.lock:
        yield store._file.connection()


@contextmanager
def writing(store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """The connection of a store, with a write transaction that lasts for the block."""
    with using(store) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")


STORES: Final[dict[str, Make]] = {"memory": _memory, "sqlite": _sqlite, "postgres": _postgres}


def at(where: str, clock: Clock | None = None) -> SqliteStore | PostgresStore:
    """The store with this path or connection string."""
    kind = PostgresStore if where.startswith("host=") else SqliteStore
    return kind(where, clock=clock)


def damage_row(store: JobStore, job_id: str) -> None:
    """Damage the last row of a job in the store."""
    if isinstance(store, MemoryStore):
        store._jobs[job_id].rows[-1] = b"{}"
    elif isinstance(store, SqliteStore):
        _execute(store, f"UPDATE commits SET row = CAST('{{}}' AS BLOB) {_of_job(job_id)}")
    else:
        _execute(store, f"UPDATE routilux_commits SET data = '{{}}' {_of_job(job_id, 'routilux_')}")


def damage_entry(store: JobStore, job_id: str) -> None:
    """Damage the entry of a job; a store in memory has no damaged entries."""
    if isinstance(store, SqliteStore):
        _execute(store, f"UPDATE jobs SET seal = seal + 1 {_of_job(job_id)}")
    elif isinstance(store, PostgresStore):
        _execute(
            store,
            "ALTER TABLE routilux_jobs ALTER COLUMN seal DROP EXPRESSION;"
            f"UPDATE routilux_jobs SET seal = seal + 1 {_of_job(job_id, 'routilux_')}",
        )


def _of_job(job_id: str, prefix: str = "") -> str:
    return f"WHERE job = (SELECT job FROM {prefix}jobs WHERE job_id = '{job_id}')"


def _execute(store: JobStore, statement: str) -> None:
    if isinstance(store, SqliteStore):
        with using(store) as db:
            db.execute(statement)
    elif isinstance(store, PostgresStore):
        import psycopg

        with psycopg.connect(store._database._dsn, autocommit=True) as admin:
            admin.execute(statement)


def acquire(store: JobStore, owner: str, flow_ids: Collection[str], lease_ns: int) -> str | None:
    """The id of the job that a host acquired; None if none was free."""
    acquired = store.acquire(owner, flow_ids, lease_ns)
    return acquired[0].job_id if acquired else None


def counter(last: int, *, prints: bool = False, dies_at: int | None = None) -> Flow:
    """One routine that sends itself the numbers up to `last`; a step each."""

    def counts(self: Routine, n: int = 1) -> None:
        if n == dies_at:
            raise KeyboardInterrupt
        self.ctx.state["n"] = n
        if prints:
            self.emit("printed", n=n)
        if n < last:
            self.emit("out", n=n + 1)

    flow = chain(a=counts)
    flow.routines["a"].define_event("printed", ["n"])
    flow.connect("a", "out", "a", "trigger")
    return flow


def driven(store: JobStore, flow: Flow, **options: int) -> JobState:
    with Runtime(clock=FakeClock(), store=store, **options) as runtime:  # type: ignore[arg-type]
        return flow.execute("a", job_id="j", runtime=runtime)


def holding(rows: list[bytes], job_id: str = "j") -> MemoryStore:
    """A store with these rows of a job."""
    store = MemoryStore()
    store.create(job_id, rows[0], "a", flow_id="f", status="running")
    for seq, row in enumerate(rows[1:], 2):
        store.append(job_id, seq, row, "a", status="running")
    return store


MINUTE = 60 * SECOND
CALLS: dict[str, Callable[[JobStore], object]] = {
    "create": lambda store: store.create("new", b"1", "a", flow_id="f", status="running"),
    "create, queued": lambda store: store.create("new", b"1", "a", flow_id="f", status="pending"),
    "append": lambda store: store.append("leased", 2, b"2", "b", status="running"),
    "append the last": lambda store: store.append("leased", 2, b"2", "b", status="completed"),
    "append_all": lambda store: store.append_all([Append("leased", 2, b"2", "b", "completed")]),
    "claim": lambda store: store.claim("queued", 2, b"2", "c", status="running"),
    "claim what it acquired": lambda store: store.claim("leased", 2, b"2", "b", status="running"),
    "overrule": lambda store: store.overrule("leased", 2, b"2", "operator", status="cancelled"),
    "overrule and set free": lambda store: store.overrule(
        "leased", 2, b"2", "op", status="pending"
    ),
    "acquire": lambda store: store.acquire("b", ["f", "h"], MINUTE),
    "acquire what was abandoned": lambda store: store.acquire("b", ["g"], MINUTE),
    "renew": lambda store: store.renew("b", 50 * SECOND),
    "release": lambda store: store.release("leased", "b", 0),
    "create, free later": lambda store: store.create(
        "new", b"1", "a", flow_id="f", status="pending", after_ns=MINUTE
    ),
    "delete": lambda store: store.delete("ended"),
    "delete_all": lambda store: store.delete_all(["ended", "leased"], force=True),
    "keep_snapshot": lambda store: store.keep_snapshot("leased", 1, b"one"),
    "snapshot": lambda store: store.snapshot("abandoned"),
    "rows": lambda store: store.rows("leased"),
    "holders": lambda store: store.holders("leased"),
    "free_in": lambda store: store.free_in(["f", "h"]),
}


def with_jobs(store: JobStore) -> JobStore:
    """The jobs of CALLS, each with a row."""
    for job_id, flow_id in {"leased": "f", "abandoned": "g"}.items():
        store.create(job_id, b"1", "a", flow_id=flow_id, status="pending")
        store.acquire("b", [flow_id], MINUTE)
    store.keep_snapshot("abandoned", 1, b"one")
    store.create("ended", b"1", "a", flow_id="f", status="completed")
    store.keep_snapshot("ended", 1, b"one")
    store.release("abandoned", "b", 0, clean=False)
    for job_id in ("queued", "queued too"):
        store.create(job_id, b"1", "a", flow_id="f", status="pending")
    return store
