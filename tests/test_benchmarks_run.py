"""Every benchmark runs at tiny sizes, and a ratio that got worse fails the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.__main__ import BENCHMARKS, main
from tests.benchmarks.race import Figure, Measurement, Race, Target, exponent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SLOW = {
    *("start_up", "hosted_steps", "workers", "long_history"),
    *("two_cores", "dask_steps", "memory_of_the_owner", "death_of_a_worker"),
}


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        pytest.param(
            make,
            tiny,
            id=make.__name__,
            marks=[] if number % 3 == 0 and make.__name__ not in SLOW else [pytest.mark.soak],
        )
        for number, (make, _, tiny) in enumerate(BENCHMARKS)
    ],
)
def test_a_benchmark_runs_and_yields_figures(
    make: Callable[..., Measurement], sizes: tuple[Any, ...]
) -> None:
    figures = make(*sizes).run()

    assert figures
    # Tiny sizes may show no growth, of memory neither, and a fake clock wakes nobody late.
    no_growth = ("growth", "waiting", "awaited", "memory", "stored")
    assert make.__name__.startswith(no_growth) or all(f.ratio > 0 for f in figures)


def planted(ratio: float, target: Target | None = None, what: str = "planted") -> Any:
    figure = Figure(what, ratio, "2 s", "1 s", target)
    return (lambda: Measurement(Race({}), 1, lambda: [figure]), [()], ())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "stored.json"
    path.write_text(json.dumps({"planted": {"ratio": 2.0, "tolerance": 0.1}}), "utf-8")
    return path


@pytest.mark.parametrize(("ratio", "code"), [(1.0, 0), (2.0, 0), (2.19, 0), (2.21, 1)])
def test_a_ratio_beyond_its_tolerance_fails_the_run(
    ratio: float, code: int, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code == main([], [planted(1.0, what="other"), planted(ratio)], stored)

    last = capsys.readouterr().out.splitlines()[-1]
    line = "planted: 2.21 × is worse than the stored 2 × by more than 10%"
    assert (line if code else "2 rows, 0 miss their target") == last


@pytest.mark.parametrize("target", [Target(3, 2.5), Target(3, 3.5, least=True)])
def test_a_missed_target_is_reported_and_fails_nothing(
    target: Target, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main([], [planted(2.0, target)], stored)

    out = capsys.readouterr().out
    assert f"❌ {'≥' if target.least else '≤'} {target.limit}" in out
    assert "1 rows, 1 miss their target" in out


def test_storing_keeps_tolerances_and_the_rows_that_were_not_measured(stored: Path) -> None:
    before = stored.read_bytes()
    assert 1 == main([], [planted(3.0)], stored)
    assert before == stored.read_bytes()

    assert 0 == main(["--store"], [planted(3.0)], stored)
    assert 0 == main(["--store"], [planted(1.0, what="new")], stored)

    rows = json.loads(stored.read_text("utf-8"))
    assert {"ratio": 3.0, "tolerance": 0.1} == rows["planted"]
    assert {"ratio": 1.0, "tolerance": 0.2} == rows["new"]
    assert 0 == main([], [planted(3.0)], stored)


def test_a_ratio_is_the_median_of_the_rounds_and_not_that_of_the_medians() -> None:
    race = Race({"a": lambda: None, "b": lambda: None, "free": lambda: None})
    race.costs = {"a": [20, 300, 30], "b": [10, 100, 10], "free": [0, 100, 10]}

    assert 3 == race.ratio("a", "b")
    assert 20 == race.cost("a", "free")
    assert 2 == race.ratio("a", "b", less=("free", ""))


def test_a_race_takes_the_cost_that_a_contestant_returns() -> None:
    instants = iter([0, 5, 7, 20])
    race = Race({"timed": lambda: None, "own": lambda: 3}, lambda: next(instants))

    race()

    assert {"timed": [5], "own": [3]} == race.costs


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_fit_finds_the_exponent_that_is_there(power: float) -> None:
    assert pytest.approx(power) == exponent((n, 7 * n**power) for n in (10, 20, 40, 80))
