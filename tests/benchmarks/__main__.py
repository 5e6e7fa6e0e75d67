"""Runs the benchmarks and compares them with the stored ratios: `make bench`.

    python -m tests.benchmarks [--store] [NAME ...]

A row fails when its ratio is more than its tolerance above the stored one: 0.2 allows 20 % more.
`--store` (`make bench-store`) writes the measured ratios to `stored.json` and keeps each row's
tolerance, which is edited by hand. A NAME runs the functions whose names begin with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from routilux import FakeClock
from tests.benchmarks import asynchronous as a
from tests.benchmarks import collecting as r
from tests.benchmarks import crowds as c
from tests.benchmarks import durability as d
from tests.benchmarks import elsewhere as x
from tests.benchmarks import engine as e
from tests.benchmarks import plugin as p
from tests.benchmarks.race import Figure, Measurement

STORED = Path(__file__).with_name("stored.json")
TOLERANCE = 0.2

Stored = dict[str, dict[str, float]]
Benchmark = tuple[Callable[..., Measurement], list[tuple[Any, ...]], tuple[Any, ...]]

BENCHMARKS: list[Benchmark] = [
    # function, sizes that are measured, and tiny ones for its test
    # It comes first, since it measures the memory of a fresh process.
    (c.waiting_jobs, [(10_000, 0.001, 15)], (3, 0.001, 5, FakeClock())),
    (e.retry_overhead, [(1, 2_000), (10, 500), (1_000, 15)], (3, 2)),
    (e.throughput, [(10_000, 3, 5), (10_000, 100, 1)], (5, 3, 2)),
    (e.growth_with_events, [((1_000, 2_000, 4_000, 8_000), 5)], ((2, 4, 8, 16), 2)),
    (e.growth_with_history, [((2_000, 4_000, 8_000, 16_000), 5)], ((2, 4, 8, 16), 2)),
    (e.deliveries, [(1_000, 10), (10_000, 5), (100_000, 3)], (5, 2)),
    (e.growth_with_deliveries, [((1_000, 10_000, 100_000), 3)], ((2, 4, 8), 2)),
    (e.save_and_load, [(100, 50), (1_000, 10), (10_000, 3)], (5, 2)),
    (r.growth_with_rows, [((1_000, 10_000, 100_000), 3)], ((2, 4, 8), 2)),
    (r.collecting, [(4_000, 5)], (4, 2)),
    (r.stored_rows, [(4_000,)], (8,)),
    (p.one_test, [(20, 20)], (2, 1)),
    (a.async_steps, [(10_000, 10)], (5, 2)),
    (a.waits_at_once, [(10_000, 1, 5)], (3, 0.001, 2)),
    (a.awaited_retries, [(10_000, 10)], (3, 0.1)),
    (a.cancellation, [(0.01, 200)], (0.001, 2)),
    (a.virtual_sleeps, [(2_000, 10)], (3, 2)),
    (a.memory_of_fan_outs, [(10_000, 100_000, 1_000)], (10, 20, 5)),
    (e.return_latency, [(None, 500), (4, 500)], (4, 2)),
    (p.start_up, [(20,)], (1,)),
    (p.simulated_runs, [(10, 200)], (2, 2)),
    (p.crash_scenarios, [(20,)], (1,)),
    (p.all_crash_points, [(5,)], (1, ["pipeline, 4 retries"])),
    (p.crash_pairs, [(2,)], (1, ["strategies, RETRY"])),
    (p.orders, [(10, 200)], (1, 2)),
    (d.durable_steps, [(300, 20)], (5, 2)),
    (d.hosted_steps, [(300, 16, 10)], (5, 2, 2)),
    (d.loading, [([(1_000, 20), (100_000, 1_000)], 2_000, 10)], ([(5, 20), (300, 20)], 3, 2)),
    (c.group_commit, [(16, 100, 10)], (3, 3, 2)),
    (c.workers, [((1, 2, 4), 5_000, 2)], ((1, 2), 3, 1)),
    (c.long_history, [(100_000,)], (300,)),
    (x.waits_in_threads, [(500, 5)], (3, 2)),
    (x.two_cores, [(300_000, 100, 3)], (10, 3, 1)),
    (x.bytes_of_a_step, [(1_024,)], (1_024,)),
    (x.dask_steps, [(100, 7)], (2, 1)),
    (x.memory_of_the_owner, [(20_000, 32)], (20, 4)),
    (x.death_of_a_worker, [(5,)], (1,)),
]


def row(figure: Figure, stored: Stored) -> str:
    """Return a figure as a line: costs, ratio, change from the stored ratio, target."""
    known = stored.get(figure.what)
    change = f"{figure.ratio / known['ratio'] - 1:+.0%}" if known else "new"
    line = f"{figure.what:44} {figure.measured:>22}  {figure.against:36} {figure.ratio:9,.4g} ×"
    return f"{line} {change:>6}  {figure.target or ''}".rstrip()


def worse(figures: Iterable[Figure], stored: Stored) -> list[str]:
    """Return a line for each figure that is worse than stored by more than its tolerance."""
    found = []
    for figure in figures:
        known = stored.get(figure.what)
        if known and figure.ratio > known["ratio"] * (1 + known["tolerance"]):
            found.append(
                f"{figure.what}: {figure.ratio:.3g} × is worse than the stored"
                f" {known['ratio']:.3g} × by more than {known['tolerance']:.0%}"
            )
    return found


def updated(figures: Iterable[Figure], stored: Stored) -> Stored:
    """Return the stored rows with these ratios, each with the tolerance that it had."""
    new = {
        figure.what: {"ratio": float(f"{figure.ratio:.4g}"), "tolerance": TOLERANCE}
        | {k: v for k, v in stored.get(figure.what, {}).items() if k == "tolerance"}
        for figure in figures
    }
    return stored | new


def main(
    arguments: list[str], benchmarks: list[Benchmark] = BENCHMARKS, path: Path = STORED
) -> int:
    """Run the benchmarks and print their rows; return 1 if a ratio got worse."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of a name")
    parser.add_argument("--store", action="store_true", help=f"write the ratios to {path.name}")
    options = parser.parse_args(arguments)
    stored: Stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    figures: list[Figure] = []
    for make, sizes in [(make, size) for make, full, _ in benchmarks for size in full]:
        if not make.__name__.startswith(tuple(options.names) or ""):
            continue
        try:
            measured = make(*sizes).run()
        except pytest.skip.Exception as reason:
            print(f"{make.__name__}: not measured: {reason}")
            continue
        for figure in measured:
            print(row(figure, stored), flush=True)
        figures += measured
    missed = [figure.what for figure in figures if figure.target and not figure.target.reached]
    print(f"{len(figures)} rows, {len(missed)} miss their target")
    if options.store:
        path.write_text(
            json.dumps(updated(figures, stored), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        return 0
    failures = worse(figures, stored)
    print(*failures, sep="\n", end="\n" if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
