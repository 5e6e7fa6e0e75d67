"""Every benchmark does what it says, at tiny sizes; how long it takes is not looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from routilux import FakeClock
from tests.benchmarks import crowds as c
from tests.benchmarks import durability as d
from tests.benchmarks import measurements as m
from tests.benchmarks import servers
from tests.benchmarks import simulations as s
from tests.benchmarks import startup as u
from tests.benchmarks.race import Bound, Figure, exponent, table
from tests.soak import sampled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.race import Measurement

TINY = {
    "retry_overhead": (lambda: m.retry_overhead(3, rounds=2), 2),
    "throughput": (lambda: m.throughput(5, 3, rounds=2), 1),
    "growth_with_events": (lambda: m.growth_with_events((2, 4, 8, 16), rounds=2), 1),
    "growth_with_history": (lambda: m.growth_with_history((2, 4, 8, 16), rounds=2), 1),
    "save_and_load": (lambda: m.save_and_load(5, rounds=2), 1),
    "one_test": (lambda: m.one_test(rounds=2), 2),
    "return_latency": (lambda: m.return_latency("concurrent", rounds=2), 1),
    "simulated_runs": (lambda: s.simulated_runs(rounds=2, runs=2), 2),
    "crash_scenarios": (lambda: s.crash_scenarios(rounds=1), 1),
    "all_crash_points": (lambda: s.all_crash_points(1, ["pipeline, 4 retries"]), 1),
    "shrinking": (lambda: s.shrinking(rounds=1), 1),
    "seeds_repeat": (lambda: s.seeds_repeat(20), 1),
    "durable_steps": (lambda: d.durable_steps(5, rounds=2), 1),
    "group_commit": (lambda: c.group_commit(3, 3, rounds=2), 1),
    "workers": (lambda: c.workers((1, 2), jobs=3, rounds=1), 2),
    "waiting_jobs": (lambda: c.waiting_jobs(3, 0.001, 5, FakeClock()), 2),
    "long_history": (lambda: c.long_history(300), 2),
    "hosted_steps": (lambda: servers.hosted_steps(5, jobs=2, rounds=2), 2),
    "start_up": (lambda: u.start_up(rounds=1), 1),
    "loading": (lambda: d.loading([(5, 20), (300, 20)], 3, rounds=2), 3),
}


NAMES = [*m.__all__, *s.__all__, *d.__all__, *c.__all__, *servers.__all__, *u.__all__]
SLOW = {"start_up", "hosted_steps", "workers", "long_history"}


@pytest.mark.parametrize("name", sampled(NAMES, {*NAMES} - SLOW))
def test_a_benchmark_runs_and_says_something(name: str) -> None:
    make: Callable[[], Measurement]
    make, lines = TINY[name]
    measurement = make()
    for _ in range(measurement.rounds):
        measurement.race()

    figures = measurement.figures(measurement.race.best)

    assert lines == len(figures)
    said_as_nothing = name.startswith(("growth", "waiting"))  # no growth, and never late
    assert said_as_nothing or all(figure.value > 0 for figure in figures)
    assert len(figures) == table(figures).row_count


def test_a_missed_bound_fails_only_where_it_is_hard() -> None:
    def figure(value: float, bound: Bound | None) -> Figure:
        return Figure("what", "measured", "against", value, "shown", bound)

    assert figure(0.46, Bound(0.45, hard=True)).fails
    assert not figure(0.45, Bound(0.45, hard=True)).fails
    assert not figure(0.46, Bound(0.45, hard=False)).fails
    assert False is figure(0.46, Bound(0.45, hard=False)).reached
    assert True is figure(90_000, Bound(80_000, hard=False, least=True)).reached
    assert figure(79_999, Bound(80_000, hard=True, least=True)).fails
    assert None is figure(1, None).reached


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_fit_finds_the_exponent_that_is_there(power: float) -> None:
    assert pytest.approx(power) == exponent((n, 7 * n**power) for n in (10, 20, 40, 80))
