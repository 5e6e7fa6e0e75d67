"""What it costs that a job survives: commits on the disk, and loading what was committed.

Laws:
- A durable step is compared with what the same disk does in the same run, in turns: the bare
  `sqlite3` module adds the same rows, one a transaction, to a file that is as safe.
- The disk is waited for, so a durable step is wall time; loading computes, so it is CPU time.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING

from routilux import Flow, Routine, Runtime, SqliteStore
from tests.benchmarks.measurements import MILLISECOND, _time
from tests.benchmarks.race import Bound, Figure, Measurement, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from routilux import JobState

__all__ = ["durable_steps", "loading"]

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
    """Return what adds the rows by the bare `sqlite3` module, each as safe as a commit of ours."""
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

    def figures(best: dict[str, int]) -> list[Figure]:
        rates = {name: len(rows) * 10**9 / spent for name, spent in best.items()}
        share = rates["routilux"] / rates["sqlite3"]
        return [
            Figure(
                "durable steps a second",
                f"{rates['routilux']:,.0f}",
                f"{rates['sqlite3']:,.0f} rows of sqlite3",
                share,
                f"{share:.0%}",
                Bound(0.7, hard=False, least=True),
            )
        ]

    return Measurement(
        Race({"sqlite3": insert, "routilux": execute}, perf_counter_ns), rounds, figures
    )


@contextmanager
def _hurried(store: SqliteStore) -> Iterator[None]:
    # What is prepared may be lost with the power.
    with store._file.using() as db:
        db.execute("PRAGMA synchronous = OFF")
    yield
    with store._file.using() as db:
        db.execute("PRAGMA synchronous = FULL")


def loading(sizes: Sequence[tuple[int, float]], finished: int, rounds: int) -> Measurement:
    """Load jobs of so many steps, within so many ms; alone, and among so many finished jobs."""
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

    def load(store: SqliteStore, steps: int) -> Callable[[], JobState]:
        runtime = Runtime(store=store)

        def once() -> JobState:
            job = runtime.load(f"{steps}")
            assert job.seq == steps + 1
            return job

        return once

    race = Race(
        {
            f"{steps} {name}": load(store, steps)
            for steps, _ in sizes
            for name, store in (("alone", alone), ("crowded", crowded))
        }
    )

    def figures(best: dict[str, int]) -> list[Figure]:
        found = []
        for steps, most in sizes:
            cost, among = best[f"{steps} alone"], best[f"{steps} crowded"]
            found.append(
                Figure(
                    f"loading a job of {steps:,} steps",
                    f"{_time(among)} among {finished:,} finished jobs",
                    "",
                    cost / MILLISECOND,
                    _time(cost),
                    Bound(most, hard=False, unit=" ms"),
                )
            )
        steps = sizes[0][0]
        ratio = best[f"{steps} crowded"] / best[f"{steps} alone"]
        what = f"{finished:,} finished jobs beside it"
        bound = Bound(1.5, hard=True)
        return [*found, Figure("loading a job", what, "none", ratio, f"{ratio:.2f} ×", bound)]

    return Measurement(race, rounds, figures)
