"""What it costs that many hosts can share the jobs: durable steps on a real PostgreSQL server.

Laws:
- The server flushes what it accepts, and is the measurement's own.
- A durable step is compared with what `psycopg` does on the same server in the same run, in turns:
  it inserts the same rows and commits each of them.
- The server is waited for, so it is wall time.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from routilux import PostgresStore, Runtime
from tests.benchmarks.durability import counter
from tests.benchmarks.race import Bound, Figure, Measurement, Race
from tests.persist import postgres_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["hosted_steps"]


def _inserts(db: Any, table: str, rows: Sequence[bytes], owner: str) -> Callable[[], None]:
    """Return what adds the rows by `psycopg`, and commits each that is not its own transaction."""
    numbers = count()
    db.execute(
        f"CREATE TABLE {table} (job bigint, seq bigint, owner text, data bytea,"
        " PRIMARY KEY (job, seq))"
    )
    db.commit()

    def insert() -> None:
        job = next(numbers)
        for seq, row in enumerate(rows, 1):
            db.execute(f"INSERT INTO {table} VALUES (%s, %s, %s, %s)", (job, seq, owner, row))
            if not db.autocommit:
                db.commit()

    return insert


def hosted_steps(steps: int, jobs: int, rounds: int) -> Measurement:
    """Compare the steps of one job, and of so many at once, with their rows alone."""
    import psycopg

    postgres_server.need()
    ends = ExitStack()
    dsn = ends.enter_context(postgres_server.Server(flushes=True)).dsn()
    committing = ends.enter_context(psycopg.connect(dsn))
    alone = ends.enter_context(psycopg.connect(dsn, autocommit=True))
    store = ends.enter_context(PostgresStore(dsn))
    flow, runtime = counter(steps), ends.enter_context(Runtime(store=store))
    rows = store.rows(flow.execute("counts", runtime=runtime).job_id)

    def execute() -> None:
        job = flow.execute("counts", runtime=runtime)
        assert job.seq == steps + 1 == len(rows)

    def together() -> None:
        runs = [flow.start("counts", runtime=runtime) for _ in range(jobs)]
        assert all(run.wait().seq == len(rows) for run in runs)

    def figures(best: dict[str, int]) -> list[Figure]:
        ends.close()
        rates = {name: len(rows) * 10**9 / spent for name, spent in best.items()}
        rates["together"] *= jobs
        against = (
            f"{rates['psycopg']:,.0f} inserts and commits of psycopg,"
            f" {rates['alone']:,.0f} inserts alone"
        )
        return [
            Figure(
                what,
                f"{rates[name]:,.0f}",
                against,
                rates[name] / rates["psycopg"],
                f"{rates[name] / rates['psycopg']:.0%}",
                Bound(least, hard=False, least=True),
            )
            for what, name, least in (
                ("durable steps a second, PostgreSQL", "routilux", 0.7),
                (f"the same, {jobs} jobs at once", "together", 1.0),
            )
        ]

    contestants = {
        "psycopg": _inserts(committing, "committed", rows, runtime.owner),
        "alone": _inserts(alone, "inserted", rows, runtime.owner),
        "routilux": execute,
        "together": together,
    }
    return Measurement(Race(contestants, perf_counter_ns), rounds, figures)
