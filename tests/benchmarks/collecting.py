"""Benchmarks of a routine that collects rows in its state.

Invariants:
- A flow that collects nothing runs in turns with one that does: the ratio is what collecting costs.
- The size of a store's file is compared with that of half as many rows.
"""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from routilux import Flow, Routine, Runtime, SqliteStore
from tests.benchmarks.engine import _apart, _growth
from tests.benchmarks.race import MILLISECOND, Figure, Measurement, Race, Target, time
from tests.routines import Works, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux import JobState


def _splits(self: Routine, n: int = 0) -> None:
    for number in range(n):
        self.emit("out", n=number)


def _row(n: int) -> dict[str, object]:
    return {"id": n, "value": n * 2}


def _nothing(self: Routine, n: int) -> None:
    _row(n)


def _append(self: Routine, n: int) -> None:
    self.ctx.state.append("rows", _row(n))


def _setdefault(self: Routine, n: int) -> None:
    self.ctx.state.setdefault("rows", []).append(_row(n))  # type: ignore[attr-defined]


WAYS = {"append": _append, "setdefault": _setdefault, "nothing": _nothing}


def _collects(way: str) -> Flow:
    return chain(a=Works(_splits), b=Works(WAYS[way]))


def _collected(flow: Flow, runtime: Runtime, rows: int) -> JobState:
    job = flow.execute("a", {"n": rows}, runtime=runtime)
    kept: Any = job.routine_states["b"].state.get("rows", [None] * rows)
    assert rows == len(kept)
    return job


def growth_with_rows(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the number of rows that are appended, in memory."""
    flow, runtime = _collects("append"), Runtime()

    def run(rows: int) -> Callable[[], None]:
        return _apart(lambda: _collected(flow, runtime, rows))

    race = Race({str(n): run(n) for n in sizes})
    return Measurement(race, rounds, lambda: [_growth("growth with appended rows", race)])


def collecting(rows: int, rounds: int) -> Measurement:
    """Compare a flow that collects rows, in memory, with one that drops them."""
    flows, runtime = {way: _collects(way) for way in WAYS}, Runtime()

    def run(flow: Flow) -> Callable[[], None]:
        return _apart(lambda: _collected(flow, runtime, rows))

    race = Race({way: run(flow) for way, flow in flows.items()})

    def figures() -> list[Figure]:
        return [
            Figure(
                f"{rows:,} rows by {way}",
                race.ratio(way, "nothing"),
                time(race.cost(way)),
                "the same flow without rows",
                Target(race.cost(way) / MILLISECOND, most * rows / 4_000, " ms"),
            )
            for way, most in (("append", 200), ("setdefault", 3_000))
        ]

    return Measurement(race, rounds, figures)


def stored_rows(rows: int) -> Measurement:
    """Compare the file of a store that keeps collected rows with the file of half as many."""
    sizes: dict[tuple[str, int], int] = {}
    texts: dict[str, float] = {}

    def run(way: str, rows: int) -> int:
        with TemporaryDirectory() as folder:
            path = Path(folder, "jobs.db")
            with SqliteStore(path) as store:
                began = perf_counter_ns()
                job = _collected(_collects(way), Runtime(store=store), rows)
                spent = perf_counter_ns() - began
            sizes[way, rows] = path.stat().st_size
        saved = json.dumps(job.serialize(), separators=(",", ":"))
        kept = json.dumps(job.routine_states["b"].state["rows"], separators=(",", ":"))
        texts[way] = len(saved) / len(kept)
        return spent

    ways = ("append", "setdefault")
    race = Race(
        {
            f"{way} {n}": lambda way=way, n=n: run(way, n)  # type: ignore[misc]
            for way in ways
            for n in (rows // 2, rows)
        }
    )

    def figures() -> list[Figure]:
        found = []
        for way in ways:
            size = sizes[way, rows]
            power = log2(size / sizes[way, rows // 2])
            cost = f"{size / 10**6:.2f} MB in {time(race.cost(f'{way} {rows}'))}"
            what = f"file of {rows:,} rows by {way}"
            found.append(Figure(what, power, cost, "exponent for 2 × as many", Target(power, 1.1)))
        found.append(
            Figure(
                f"saved document of {rows:,} rows",
                texts["append"],
                f"{texts['append']:.1f} × their JSON",
                "the JSON of the rows",
                Target(texts["append"], 4),
            )
        )
        return found

    return Measurement(race, 1, figures)
