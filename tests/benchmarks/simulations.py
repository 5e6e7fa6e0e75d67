"""What simulations cost: runs and crashes a second, all crash points of a scenario, shrinking."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pytest_routilux.choices import FIFO, Seeded
from pytest_routilux.crash import recover, undisturbed
from pytest_routilux.effects import Effect
from pytest_routilux.examine import examine
from pytest_routilux.lives import Case
from pytest_routilux.points import crash_points
from pytest_routilux.results import Checks
from pytest_routilux.shrink import shrink
from pytest_routilux.simulation import live
from pytest_routilux.world import World
from routilux import FakeClock, Flow, Routine, codec
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from showcase.test_fan_out import ALBUM, pictures
from showcase.test_strategies import HANDLERS, RECORDS
from tests.benchmarks.race import Bound, Figure, Measurement, Race

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.choices import Choices
    from routilux import JobState

__all__ = ["all_crash_points", "crash_scenarios", "seeds_repeat", "shrinking", "simulated_runs"]

START = FakeClock().now_ns()
PIPELINE = Case(lambda: data_pipeline(4), "data_fetch", {"request_id": "r-1"})
SCENARIOS = {
    "pipeline, 4 retries": PIPELINE,
    "fan-out, 4 workers": Case(lambda: fan_out_and_in(4), "split", pictures(ALBUM)),
    "strategies, RETRY": Case(
        lambda: word_count(HANDLERS["RETRY"]), "read", {"records": RECORDS}
    ),
}  # fmt: skip


def run(case: Case, choices: Choices = FIFO, flow: Flow | None = None) -> JobState:
    life = live(case, World(START), choices=choices, flow=flow)
    assert life.job is not None
    assert life.job.is_final
    return life.job


def simulated_runs(rounds: int, runs: int) -> Measurement:
    """Measure whole simulated jobs a second, with the flow built anew each time and without."""
    flow = data_pipeline(4)

    def anew() -> None:
        for _ in range(runs):
            run(PIPELINE)

    def again() -> None:
        for _ in range(runs):
            run(PIPELINE, flow=flow)

    def figures(best: dict[str, int]) -> list[Figure]:
        return [
            _rate("simulated runs, flow built anew", runs, best["anew"], 5_000),
            _rate("simulated runs, one flow", runs, best["again"], 8_000),
        ]

    return Measurement(Race({"anew": anew, "again": again}), rounds, figures)


def crash_scenarios(rounds: int) -> Measurement:
    """Measure crashes a second: from what was durable, on another host, to the end."""
    reference = undisturbed(PIPELINE, START, FIFO)
    points = [p for p in crash_points(reference, documents=False) if "store" not in p.kind]

    def every() -> None:
        for point in points:
            job = recover(reference, point).life.job
            assert job is not None
            assert job.is_final

    def figures(best: dict[str, int]) -> list[Figure]:
        return [_rate("crash and resume scenarios", len(points), best["every"], 3_000)]

    return Measurement(Race({"every": every}), rounds, figures)


def all_crash_points(rounds: int, scenarios: Sequence[str] = tuple(SCENARIOS)) -> Measurement:
    """Measure every single crash point of a scenario, judged, with all that goes before."""
    points: dict[str, int] = {}

    def tried(name: str) -> None:
        found = examine(SCENARIOS[name], START, Checks())
        assert not found.failures
        assert found.coverage.word == "complete"
        points[name] = found.coverage.executed.total()

    def figures(best: dict[str, int]) -> list[Figure]:
        return [
            _seconds(f"all crash points: {name}", f"{points[name]} points", cost, 1)
            for name, cost in best.items()
        ]

    race = Race({name: (lambda n=name: tried(n)) for name in scenarios})  # type: ignore[misc]  # bound now
    return Measurement(race, rounds, figures)


class Pay(Routine):
    """Charges without a key."""

    def __init__(self, gateway: Effect) -> None:
        super().__init__()
        self.gateway = gateway
        self.define_slot("trigger", handler=self.pay)

    def pay(self, order: str) -> None:
        self.gateway(order)


def shrinking(rounds: int) -> Measurement:
    """Measure how long it takes to shrink a double charge to its smallest cause."""

    def build() -> Flow:
        flow = Flow("payment")
        flow.add_routine(Pay(Effect("gateway.charge")), "charge")
        return flow

    case = Case(build, "charge", {"order": "A7"})
    found = examine(case, START, Checks())

    def smallest() -> None:
        cause = shrink(found, case, START, Checks())
        assert cause.point is not None
        assert cause.point.name == "0@a1.effect1"

    def figures(best: dict[str, int]) -> list[Figure]:
        return [_seconds("to shrink a double charge", "", best["smallest"], 1)]

    return Measurement(Race({"smallest": smallest}), rounds, figures)


def seeds_repeat(seeds: int) -> Measurement:
    """Run each seed twice, and demand the same bytes of history."""
    case = Case(lambda: fan_out_and_in(4), "split", pictures(ALBUM[:3]))

    def digest(seed: int) -> str:
        text = codec.dumps(run(case, Seeded(seed)).serialize())
        return hashlib.sha256(text.encode()).hexdigest()

    def twice() -> None:
        different = [seed for seed in range(seeds) if digest(seed) != digest(seed)]
        assert different == []

    def figures(best: dict[str, int]) -> list[Figure]:
        return [_rate(f"{seeds:,} seeds, each twice the same bytes", 2 * seeds, best["twice"], 1)]

    return Measurement(Race({"twice": twice}), 1, figures)


def _rate(what: str, count: int, cost: int, least: int) -> Figure:
    rate = count / cost * 10**9
    measured = f"{cost / count / 1000:.0f} µs each"
    bound = Bound(least, hard=False, least=True, unit=" /s")
    return Figure(what, measured, "", rate, f"{rate:,.0f} /s", bound)


def _seconds(what: str, measured: str, cost: int, most: float) -> Figure:
    seconds = cost / 10**9
    return Figure(what, measured, "", seconds, f"{seconds:.3g} s", Bound(most, False, unit=" s"))
