"""Benchmarks of the plugin: a suite that does not use it, a test of retries, simulations."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.orders.search import Search
from pytest_routilux.sim.pairs import PAIRS
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks, Scope
from pytest_routilux.sim.shrink import shrink
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, World
from pytest_routilux.sim.simulator.scheduler import FIFO, Seeded, Tape
from pytest_routilux.virtual_time.freeze import frozen_clock
from routilux import ExecutionMonitor, FakeClock, Flow, Runtime, use_runtime
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from showcase.test_fan_out import ALBUM, pictures
from showcase.test_strategies import HANDLERS, RECORDS
from tests.benchmarks.engine import retrying
from tests.benchmarks.race import (
    MILLISECOND,
    Figure,
    Measurement,
    Race,
    Target,
    duration,
    loop,
    rate,
    time,
)
from tests.routines import Body, Wide, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from routilux import JobState

# --- pytest -------------------------------------------------------------------------------------


def start_up(rounds: int) -> Measurement:
    """Compare a suite of one empty test, run with the plugin, with the same run without it."""
    folder = TemporaryDirectory()
    Path(folder.name, "test_nothing.py").write_text("def test_nothing(): pass\n", "utf-8")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

    def suite(*options: str) -> Callable[[], None]:
        plugins = ("-p", "no:cacheprovider", "-p", "no:asyncio")  # which warns at each start
        command = [sys.executable, "-m", "pytest", "-q", *plugins, *options]

        def run() -> None:
            subprocess.run(
                command, cwd=folder.name, env=environment, check=True, stdout=subprocess.DEVNULL
            )

        return run

    def spent_by_children() -> int:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return round((spent.ru_utime + spent.ru_stime) * 10**9)

    race = Race({"with": suite(), "without": suite("-p", "no:routilux")}, spent_by_children)

    def figures() -> list[Figure]:
        folder.cleanup()
        more = race.cost("with") - race.cost("without")
        return [
            Figure(
                "start of a suite that does not use the plugin",
                race.ratio("with", "without"),
                time(race.cost("with")),
                f"without it {time(race.cost('without'))}",
                Target(more / MILLISECOND, 5, " ms more"),
            )
        ]

    return Measurement(race, rounds, figures)


def _whole_test(clock: FakeClock) -> None:
    monitor = ExecutionMonitor()
    with Runtime(clock=clock, observers=[monitor]) as runtime, use_runtime(runtime):
        job = retrying(4, delay=0.3, backoff=1.5).execute("flaky")
    assert job.updated_ns - job.started_ns == 2_437_500_000
    assert len(monitor.retries) == 4


def one_test(rounds: int, tests: int) -> Measurement:
    """Measure a test of 4 retries, set-up and all, with and without patches of the time."""

    def bare() -> None:
        for _ in range(tests):
            _whole_test(FakeClock())

    def frozen() -> None:
        for _ in range(tests):
            with frozen_clock() as clock:
                _whole_test(clock)

    race = Race({"loop": loop, "bare": bare, "frozen": frozen})

    def figures() -> list[Figure]:
        return [
            duration(race, "bare", "4-retry test, flow_clock_bare", 0.1, parts=tests),
            duration(race, "frozen", "4-retry test, flow_clock", 15, parts=tests),
        ]

    return Measurement(race, rounds, figures)


# --- simulations --------------------------------------------------------------------------------

START = FakeClock().now_ns()
PIPELINE = Case(lambda: data_pipeline(4), "data_fetch", {"request_id": "r-1"})
SCENARIOS = {
    "pipeline, 4 retries": PIPELINE,
    "fan-out, 4 workers": Case(lambda: fan_out_and_in(4), "split", pictures(ALBUM)),
    "strategies, RETRY": Case(
        lambda: word_count(HANDLERS["RETRY"]), "read", {"records": RECORDS}
    ),
}  # fmt: skip


def run(case: Case, scheduler: Scheduler = FIFO, flow: Flow | None = None) -> JobState:
    host = run_host(case, World(START), scheduler=scheduler, flow=flow)
    assert host.job is not None
    assert host.job.is_final
    return host.job


def simulated_runs(rounds: int, runs: int) -> Measurement:
    """Measure whole simulated jobs a second, with the flow built anew each time and without."""
    flow = data_pipeline(4)

    def anew() -> None:
        for _ in range(runs):
            run(PIPELINE)

    def again() -> None:
        for _ in range(runs):
            run(PIPELINE, flow=flow)

    race = Race({"loop": loop, "anew": anew, "again": again})

    def figures() -> list[Figure]:
        return [
            rate(race, "anew", "simulated runs, flow built anew", runs, 5_000),
            rate(race, "again", "simulated runs, one flow", runs, 8_000),
        ]

    return Measurement(race, rounds, figures)


def crash_scenarios(rounds: int) -> Measurement:
    """Measure crashes a second: from what was durable, on another host, to the end."""
    reference = run_undisturbed(PIPELINE, START)
    points = [p for p in crash_points(reference, documents=False) if "store" not in p.kind]

    def every() -> None:
        for point in points:
            job = recover(reference, point).host.job
            assert job is not None
            assert job.is_final

    race = Race({"loop": loop, "every": every})
    what = "crashes, resumed to the end"
    return Measurement(race, rounds, lambda: [rate(race, "every", what, len(points), 3_000)])


def all_crash_points(rounds: int, scenarios: Sequence[str] = tuple(SCENARIOS)) -> Measurement:
    """Measure a whole search: the undisturbed run, and each crash point with its judgement."""
    points: dict[str, int] = {}

    def tried(name: str) -> None:
        found = explore(SCENARIOS[name], START, Checks())
        assert not found.failures
        assert found.coverage.word in ("complete", "sampled")  # of many orders
        points[name] = found.coverage.executed.total()

    race = Race({"loop": loop, **{name: partial(tried, name) for name in scenarios}})

    def figures() -> list[Figure]:
        return [
            duration(
                race, name, f"all crash points: {name}", 1_000, note=f"{points[name]} points, "
            )
            for name in scenarios
        ]

    return Measurement(race, rounds, figures)


def crash_pairs(rounds: int, scenarios: Sequence[str] = tuple(SCENARIOS)) -> Measurement:
    """Measure a search for pairs of crashes, with the single crashes that come before."""
    points: dict[str, int] = {}

    def tried(name: str) -> None:
        found = explore(SCENARIOS[name], START, Checks(scope=Scope(crashes="pairs")))
        assert not found.failures
        assert not found.coverage.pairs_left
        points[name] = found.coverage.executed[PAIRS]

    race = Race({"loop": loop, **{name: partial(tried, name) for name in scenarios}})

    def figures() -> list[Figure]:
        return [
            duration(race, name, f"crash pairs: {name}", 5_000, note=f"{points[name]} pairs, ")
            for name in scenarios
        ]

    return Measurement(race, rounds, figures)


# --- orders -------------------------------------------------------------------------------------


def _split(self: Any) -> None:
    for n in range(3):
        self.emit("out", n=n)


def _double(self: Any, n: int) -> None:
    self.emit("out", n=2 * n)


def _join(self: Any, n: int) -> None:
    self.ctx.state["sum"] = self.ctx.state.get("sum", 0) + n


def _keeps_the_last(self: Any, n: int) -> None:
    self.ctx.state["last"] = n


def _fan_out(join: Body) -> Case:
    def build() -> Flow:
        return chain(workers=3, split=_split, double=Wide(_double), join=join)

    return Case(build, "split")


def orders(rounds: int, runs: int) -> Measurement:
    """Measure a fan-out of 3 with a join: random orders, all that can differ, a bug in one."""
    joined, last = _fan_out(_join), _fan_out(_keeps_the_last)
    flow = joined.build()
    counts: dict[str, int] = {}

    def at_random() -> None:
        for number in range(runs):
            run(joined, Seeded(number).scheduler(), flow)

    def all_orders() -> None:
        search = Search(joined, START, flow.plan())
        counts["orders"] = sum(1 for _ in search.runs())

    checks = Checks(isolated=False, scope=Scope("all", "none"))
    found = explore(last, START, checks)

    def shrunk() -> None:
        cause = shrink(found, last, START, checks)
        assert isinstance(cause.order, Tape)
        counts["deviations"] = cause.order.size

    race = Race({"loop": loop, "random": at_random, "all": all_orders, "shrink": shrunk})

    def figures() -> list[Figure]:
        return [
            rate(race, "random", "random orders of a fan-out of 3 with a join", runs, 7_000),
            duration(race, "all", "all orders of it", 1_000, note=f"{counts['orders']} orders, "),
            duration(
                race,
                "shrink",
                "shrinking an order that shows a bug",
                1_000,
                note=f"{counts['deviations']} deviations, ",
            ),
        ]

    return Measurement(race, rounds, figures)
