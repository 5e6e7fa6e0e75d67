"""What the engine has to reach, measured on this machine: `make bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import measurements as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.flow import ExecutionStrategy
    from tests.benchmarks.race import Measurement

    Measure = Callable[[Measurement], None]


@pytest.mark.parametrize(("failures", "rounds"), [(1, 2_000), (10, 500), (1_000, 15)])
def test_a_failed_attempt_costs_less_than_half_of_tenacitys(
    failures: int, rounds: int, measure: Measure
) -> None:
    measure(m.retry_overhead(failures, rounds))


@pytest.mark.parametrize(("length", "rounds"), [(3, 5), (100, 1)])
def test_ten_thousand_events_go_through_a_chain(length: int, rounds: int, measure: Measure) -> None:
    measure(m.throughput(10_000, length, rounds))


def test_the_cost_grows_in_line_with_the_events(measure: Measure) -> None:
    measure(m.growth_with_events((1_000, 2_000, 4_000, 8_000), rounds=5))


def test_the_cost_grows_in_line_with_the_history(measure: Measure) -> None:
    measure(m.growth_with_history((2_000, 4_000, 8_000, 16_000), rounds=5))


@pytest.mark.parametrize(("records", "rounds"), [(100, 50), (1_000, 10), (10_000, 3)])
def test_saving_and_loading_costs_a_few_times_json(
    records: int, rounds: int, measure: Measure
) -> None:
    measure(m.save_and_load(records, rounds))


def test_a_test_of_four_retries_takes_no_time_to_speak_of(measure: Measure) -> None:
    measure(m.one_test(rounds=100))


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
def test_nobody_waits_for_a_job_that_is_over(strategy: ExecutionStrategy, measure: Measure) -> None:
    measure(m.return_latency(strategy, rounds=500))
