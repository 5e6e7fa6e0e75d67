"""Benchmarks as races: contestants run in turns, and ratios of their costs are what counts.

Invariants:
- A ratio compares two costs of the same run. It is the median of the ratios of the rounds, and a
  higher one is worse, so a slow or busy machine changes it little.
- Work in memory costs CPU time of its thread. A disk, a server or a thread that has to wake up
  costs wall time.
- What has no competitor is compared with `loop`, a fixed piece of pure Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import thread_time_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MILLISECOND = 1_000_000
TURNS = 100_000


def loop() -> None:
    """Count through a dict, with a call, a string and a tuple each turn."""
    table: dict[int, tuple[int, str]] = {}
    last = "".join
    for n in range(TURNS):
        table[n & 1023] = (n, last(("n", str(n))))
    assert len(table) == 1024


class Race:
    """Contestants by name; a call runs each of them once. `costs` holds nanoseconds by round.

    A contestant that returns a number has measured its cost itself.
    """

    def __init__(
        self,
        contestants: dict[str, Callable[[], int | None]],
        timer: Callable[[], int] = thread_time_ns,
    ) -> None:
        self._contestants = contestants
        self._timer = timer
        self.costs: dict[str, list[int]] = {name: [] for name in contestants}

    def __call__(self) -> None:
        timer = self._timer
        for name, contestant in self._contestants.items():
            began = timer()
            own = contestant()
            spent = timer() - began
            self.costs[name].append(spent if own is None else own)

    def cost(self, name: str, less: str = "", parts: float = 1) -> float:
        """Return the median cost of one of so many parts, without what `less` costs."""
        return median(self._costs(name, less)) / parts

    def ratio(self, name: str, against: str, less: tuple[str, str] = ("", "")) -> float:
        """Return the median ratio of two costs; each without the cost of the one in `less`."""
        costs, others = self._costs(name, less[0]), self._costs(against, less[1])
        return median(cost / other for cost, other in zip(costs, others, strict=True))

    def turns(self, name: str, parts: float = 1) -> float:
        """Return how many turns of `loop` one of so many parts costs."""
        return self.ratio(name, "loop") * TURNS / parts

    def _costs(self, name: str, less: str) -> list[int]:
        spare = self.costs[less] if less else [0] * len(self.costs[name])
        return [max(cost - free, 1) for cost, free in zip(self.costs[name], spare, strict=True)]


@dataclass(frozen=True, slots=True)
class Target:
    """A limit that the project aims at; a miss is reported and fails nothing."""

    value: float
    limit: float
    unit: str = ""
    least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        mark = "✅" if self.reached else "❌"
        return f"{mark} {'≥' if self.least else '≤'} {self.limit:,g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: a ratio, and the two costs that it was made of."""

    what: str
    ratio: float
    measured: str
    against: str
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A race, how often it is run, and the figures that it yields."""

    race: Race
    rounds: int
    figures: Callable[[], list[Figure]]

    def run(self) -> list[Figure]:
        """Run all rounds, and before them one that does not count where there are several."""
        if self.rounds > 1:
            self.race()
            for costs in self.race.costs.values():
                costs.clear()
        for _ in range(self.rounds):
            self.race()
        return self.figures()


def rate(race: Race, name: str, what: str, parts: int, least: float | None = None) -> Figure:
    """Compare each of so many parts of a contestant with a turn of `loop`."""
    each = race.cost(name, parts=parts)
    target = None if least is None else Target(10**9 / each, least, " /s", least=True)
    measured = f"{10**9 / each:,.0f} /s, {time(each)}"
    return Figure(what, race.turns(name, parts), measured, "a turn of a loop", target)


def duration(
    race: Race, name: str, what: str, most: float, *, note: str = "", parts: int = 1
) -> Figure:
    """Compare one of so many parts, which should take at most so many ms, with a turn of `loop`."""
    cost = race.cost(name, parts=parts)
    target = Target(cost / MILLISECOND, most, " ms")
    return Figure(what, race.turns(name, parts), note + time(cost), "a turn of a loop", target)


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


def percent(share: float, least: float) -> Target:
    """Aim at this share, at least, of what the competitor does in the same time."""
    return Target(100 * share, 100 * least, " % of its rate", least=True)


def time(nanoseconds: float) -> str:
    """Return a time in the unit that fits, with three digits.

    >>> time(12_345), time(1_234_567_890)
    ('12.3 µs', '1.23 s')
    """
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"
