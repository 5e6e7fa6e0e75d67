"""The benchmarks' one table, printed at the end of the run."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.benchmarks.race import Figure, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from tests.benchmarks.race import Measurement

_FIGURES = pytest.StashKey[list[Figure]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []


@pytest.fixture
def measure(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> Callable[[Measurement], None]:
    """Run a measurement, keep its figures for the table, and fail where a hard bound is missed."""

    def run(measurement: Measurement) -> None:
        benchmark.pedantic(
            measurement.race, rounds=measurement.rounds, warmup_rounds=int(measurement.rounds > 1)
        )
        figures = measurement.figures(measurement.race.best)
        request.config.stash[_FIGURES] += figures
        benchmark.extra_info.update({figure.what: figure.shown for figure in figures})
        missed = [str(figure) for figure in figures if figure.fails]
        assert not missed, "\n".join(missed)

    return run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash[_FIGURES]
    if figures:
        width = max(config.get_terminal_writer().fullwidth, 120)
        console = Console(file=io.StringIO(), width=width)
        with console.capture() as capture:
            console.print(table(figures))
        terminalreporter.section("benchmarks")
        terminalreporter.write(capture.get())
