"""What the engine has to reach, measured on this machine: `make bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import crowds as c
from tests.benchmarks import durability as d
from tests.benchmarks import measurements as m
from tests.benchmarks import servers
from tests.benchmarks import simulations as s
from tests.benchmarks import startup as u

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux import ExecutionStrategy
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


def test_thousands_of_jobs_are_simulated_in_a_second(measure: Measure) -> None:
    measure(s.simulated_runs(rounds=10, runs=200))


def test_thousands_of_crashes_are_survived_in_a_second(measure: Measure) -> None:
    measure(s.crash_scenarios(rounds=20))


def test_every_crash_point_of_a_scenario_is_tried_within_a_second(measure: Measure) -> None:
    measure(s.all_crash_points(rounds=3))


def test_a_double_charge_is_shrunk_within_a_second(measure: Measure) -> None:
    measure(s.shrinking(rounds=20))


def test_ten_thousand_seeds_repeat_to_the_byte(measure: Measure) -> None:
    measure(s.seeds_repeat(10_000))


def test_a_durable_step_costs_little_more_than_its_row_on_the_disk(measure: Measure) -> None:
    measure(d.durable_steps(300, rounds=20))


def test_a_long_job_is_loaded_at_once_however_many_others_there_are(measure: Measure) -> None:
    measure(d.loading([(1_000, 20), (100_000, 1_000)], finished=2_000, rounds=10))


def test_jobs_that_run_at_once_share_what_the_disk_costs(measure: Measure) -> None:
    measure(c.group_commit(16, 100, rounds=10))


def test_more_workers_finish_more_jobs(measure: Measure) -> None:
    measure(c.workers((1, 2, 4), jobs=1_000, rounds=3))


def test_ten_thousand_jobs_wait_and_each_wakes_in_time(measure: Measure) -> None:
    measure(c.waiting_jobs(10_000, pace=0.001, lead=15))


def test_a_job_of_many_steps_takes_no_more_memory_than_one_of_few(measure: Measure) -> None:
    measure(c.long_history(100_000))


def test_a_durable_step_costs_little_more_than_its_row_on_a_server(measure: Measure) -> None:
    measure(servers.hosted_steps(300, jobs=16, rounds=10))


def test_a_suite_without_flows_starts_as_fast_as_without_the_plugin(measure: Measure) -> None:
    measure(u.start_up(rounds=20))
