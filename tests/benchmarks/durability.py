"""Benchmarks of durable jobs: commits on a disk and on a server, and loading them.

Invariants:
- A durable step is compared with the same row, written as safely to the same disk or server by
  the bare `sqlite3` or `psycopg` module, one a transaction.
- Writing waits for a disk, so it is wall time. Loading computes, so it is CPU time.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from routilux import Flow, PostgresStore, Routine, Runtime, SqliteStore
from tests.benchmarks.race import (
    Figure,
    Measurement,
    Race,
    Target,
    duration,
    loop,
    percent,
    time,
)
from tests.persist import postgres_server
from tests.persist.stores import using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_kept: list[object] = []  # until the program ends


class Counts(Routine):
    """Sends itself the numbers up to `last`; a step each."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self.define_slot("trigger", handler=self.trigger)
        self.define_event("out", ["n"])

    def trigger(self, n: int = 1) -> None:
        self.ctx.state["n"] = n
        if n < self.last:
            self.emit("out", n=n + 1)


def counter(last: int) -> Flow:
    flow = Flow("counter")
    flow.add_routine(Counts(last), "counts")
    flow.connect("counts", "out", "counts", "trigger")
    return flow


def _file() -> Path:
    folder: TemporaryDirectory[str] = TemporaryDirectory()
    _kept.append(folder)
    return Path(folder.name, "jobs.db")


def _store(path: Path | None = None) -> SqliteStore:
    store = SqliteStore(path or _file())
    _kept.append(store)
    return store


def bare_rows(rows: Sequence[bytes], owner: str) -> Callable[[], None]:
    """Return a function that writes the rows by `sqlite3`, each as safely as a store's commit."""
    numbers = count()
    bare = sqlite3.connect(_file(), isolation_level=None)
    _kept.append(bare)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute(
        "CREATE TABLE commits (job INTEGER, seq INTEGER, owner TEXT, row BLOB,"
        " PRIMARY KEY (job, seq)) WITHOUT ROWID"
    )

    def insert() -> None:
        job = next(numbers)
        for seq, row in enumerate(rows, 1):
            bare.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", (job, seq, owner, row))

    return insert


def durable_steps(steps: int, rounds: int) -> Measurement:
    """Compare the steps of a job, each on the disk before the next, with the rows alone."""
    flow, store = counter(steps), _store()
    runtime = Runtime(store=store)
    rows = store.rows(flow.execute("counts", runtime=runtime).job_id)
    insert = bare_rows(rows, runtime.owner)

    def execute() -> None:
        job = flow.execute("counts", runtime=runtime)
        assert job.seq == steps + 1 == len(rows)

    race = Race({"sqlite3": insert, "routilux": execute}, perf_counter_ns)
    what = "durable steps, SqliteStore"
    return Measurement(
        race, rounds, lambda: [against_rows(race, "routilux", "sqlite3", what, len(rows), 0.7)]
    )


def against_rows(
    race: Race, name: str, bare: str, what: str, rows: int, least: float, jobs: int = 1
) -> Figure:
    """Compare the rows of so many jobs with the rows of one that a bare module writes."""
    ratio = race.ratio(name, bare) / jobs
    rates = [rows * 10**9 / race.cost(bare), jobs * rows * 10**9 / race.cost(name)]
    against = f"{bare} {rates[0]:,.0f} rows /s"
    return Figure(what, ratio, f"{rates[1]:,.0f} /s", against, percent(1 / ratio, least))


def _inserts(db: Any, rows: Sequence[bytes], owner: str) -> Callable[[], None]:
    """Return a function that inserts the rows by `psycopg` and commits each."""
    numbers = count()
    db.execute(
        "CREATE TABLE committed (job bigint, seq bigint, owner text, data bytea,"
        " PRIMARY KEY (job, seq))"
    )
    db.commit()

    def insert() -> None:
        job = next(numbers)
        for seq, row in enumerate(rows, 1):
            db.execute("INSERT INTO committed VALUES (%s, %s, %s, %s)", (job, seq, owner, row))
            db.commit()

    return insert


def hosted_steps(steps: int, jobs: int, rounds: int) -> Measurement:
    """Compare the steps of one job, and of so many at once, with their rows on the same server."""
    import psycopg

    postgres_server.need()
    ends = ExitStack()
    dsn = ends.enter_context(postgres_server.Server(flushes=True)).dsn()
    db = ends.enter_context(psycopg.connect(dsn))
    store = ends.enter_context(PostgresStore(dsn))
    flow, runtime = counter(steps), ends.enter_context(Runtime(store=store))
    rows = store.rows(flow.execute("counts", runtime=runtime).job_id)

    def execute() -> None:
        job = flow.execute("counts", runtime=runtime)
        assert job.seq == steps + 1 == len(rows)

    race = Race(
        {
            "psycopg": _inserts(db, rows, runtime.owner),
            "routilux": execute,
            "together": together(flow, runtime, jobs, len(rows)),
        },
        perf_counter_ns,
    )

    def figures() -> list[Figure]:
        ends.close()
        what = "durable steps, PostgresStore"
        at_once = f"{what}, {jobs} jobs"
        return [
            against_rows(race, "routilux", "psycopg", what, len(rows), 0.7),
            against_rows(race, "together", "psycopg", at_once, len(rows), 1, jobs),
        ]

    return Measurement(race, rounds, figures)


def together(flow: Flow, runtime: Runtime, jobs: int, commits: int) -> Callable[[], None]:
    """Return a function that runs so many jobs at once."""

    def execute() -> None:
        runs = [flow.start("counts", runtime=runtime) for _ in range(jobs)]
        assert all(run.wait().seq == commits for run in runs)

    return execute


@contextmanager
def _hurried(store: SqliteStore) -> Iterator[None]:
    # A power cut may destroy the prepared file.
    with using(store) as db:
        db.execute("PRAGMA synchronous = OFF")
    yield
    with using(store) as db:
        db.execute("PRAGMA synchronous = FULL")


def loading(sizes: Sequence[tuple[int, float]], finished: int, rounds: int) -> Measurement:
    """Load jobs of so many steps, within so many ms, alone and among so many finished jobs."""
    alone = _store()
    with _hurried(alone):
        runtime = Runtime(store=alone, history_limit=10)
        for steps, _ in sizes:
            counter(steps).execute("counts", job_id=f"{steps}", runtime=runtime)
    alone.close()
    crowded = _store(shutil.copy(alone.path, _file()))
    with _hurried(crowded):
        runtime = Runtime(store=crowded)
        for _ in range(finished):
            counter(10).execute("counts", runtime=runtime)

    def load(store: SqliteStore, steps: int) -> Callable[[], None]:
        runtime = Runtime(store=store)

        def once() -> None:
            assert runtime.load(f"{steps}").seq == steps + 1

        return once

    contestants = {
        f"{steps} {name}": load(store, steps)
        for steps, _ in sizes
        for name, store in (("alone", alone), ("crowded", crowded))
    }
    race = Race({"loop": loop, **contestants})

    def figures() -> list[Figure]:
        found = [
            duration(race, f"{steps} crowded", f"loading a job of {steps:,} steps", most)
            for steps, most in sizes
        ]
        name = f"{sizes[0][0]}"
        ratio = race.ratio(f"{name} crowded", f"{name} alone")
        what = f"loading among {finished:,} finished jobs"
        crowd, lone = (time(race.cost(f"{name} {store}")) for store in ("crowded", "alone"))
        return [*found, Figure(what, ratio, crowd, f"alone {lone}", Target(ratio, 1.5, " ×"))]

    return Measurement(race, rounds, figures)
