"""How things are compared: contestants that run in turns, the best time of each, and a table.

Laws:
- What is compared is measured in the same run, in turns; the best time of each counts, since
  nothing makes a program faster than it is.
- Ratios and growth are of the thread's own CPU time, which a busy machine hardly changes; what
  somebody waits for is wall time.
- A bound on a ratio, or on a growth, is asserted. A bound on an absolute time is shown and judged
  in the table only: it says as much of the machine as of the program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import thread_time_ns
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Bound", "Figure", "Measurement", "Race", "exponent", "table"]


class Race:
    """Contestants by name; a call runs each of them once. `best` holds nanoseconds.

    `timer` is `thread_time_ns` for what computes, `perf_counter_ns` for what is waited for.
    """

    def __init__(
        self,
        contestants: dict[str, Callable[[], object]],
        timer: Callable[[], int] = thread_time_ns,
    ) -> None:
        self._contestants = contestants
        self._timer = timer
        self.best: dict[str, int] = dict.fromkeys(contestants, 2**63)

    def __call__(self) -> None:
        timer = self._timer
        for name, contestant in self._contestants.items():
            began = timer()
            contestant()
            self.best[name] = min(self.best[name], timer() - began)


@dataclass(frozen=True, slots=True)
class Bound:
    """What is to be reached: at most or at least `limit`; `hard` where a miss fails the test."""

    limit: float
    hard: bool
    least: bool = False
    unit: str = ""

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.limit:,g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: `value` is what the bound, if any, is about."""

    what: str
    measured: str
    against: str
    value: float
    shown: str
    bound: Bound | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.bound is None else self.bound.holds(self.value)

    @property
    def fails(self) -> bool:
        return self.bound is not None and self.bound.hard and not self.reached

    def __str__(self) -> str:
        return f"{self.what}: {self.shown} ({self.measured}, {self.against}); bound {self.bound}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a benchmark runs, how often, and what it then says."""

    race: Race
    rounds: int
    figures: Callable[[dict[str, int]], Sequence[Figure]]


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """Return k of the fit cost = c × size^k through (size, cost), by least squares of the logs.

    >>> round(exponent([(1, 3), (2, 12), (4, 48)]), 6)
    2.0
    """
    logs = [(math.log(size), math.log(cost)) for size, cost in points]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum(
        (x - mean_x) ** 2 for x, _ in logs
    )


def table(figures: Iterable[Figure]) -> Table:
    """Return all figures as a table."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    shown.add_column(no_wrap=True, min_width=2)
    shown.add_column("what", no_wrap=True)
    shown.add_column("measured")
    shown.add_column("against")
    shown.add_column("figure", justify="right", no_wrap=True)
    shown.add_column("bound", no_wrap=True)
    for figure in figures:
        mark = {None: "", True: "✅", False: "❌"}[figure.reached]
        bound = "" if figure.bound is None else str(figure.bound)
        shown.add_row(mark, figure.what, figure.measured, figure.against, figure.shown, bound)
    return shown
