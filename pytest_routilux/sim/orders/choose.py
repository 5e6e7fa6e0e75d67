"""Chooses the orders in which an exploration runs a concurrent flow.

Invariants:
- The same schedules, seed and run give the same orders.
- Orders that can't differ are left out: only tasks that once had a choice go first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.simulator.scheduler import (
    FIFO_ORDER,
    TIME,
    First,
    OneAtATime,
    Pct,
    Reversed,
    Seeded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.sim.results import Sample
    from pytest_routilux.sim.simulator.scheduler import Choice, Order

_MOST_FIRST: Final = 12
_FEW: Final = 4
_DEPTH: Final = 3


def serial_orders(seed: int) -> Iterator[OneAtATime]:
    """Yield the orders in which a flow is run one task at a time."""
    yield OneAtATime(FIFO_ORDER)
    yield OneAtATime(Reversed())
    for number in range(_FEW):
        yield OneAtATime(Seeded(seed + number))


def some_orders(choices: Sequence[Choice], seed: int) -> Iterator[Order]:
    """Yield a fixed set of orders for a run that had `choices` in FIFO order."""
    yield Reversed()
    rivals = [task for choice in choices for task in choice.tasks if task != TIME]
    tasks = list(dict.fromkeys(rivals))
    step = -(-len(tasks) // _MOST_FIRST) if tasks else 1
    yield from map(First, tasks[::step])
    for number in range(_FEW):
        yield Seeded(seed + number)
        yield Pct(seed + number, _DEPTH, len(choices))


def sampled_orders(sample: Sample, choices: Sequence[Choice], seed: int) -> Iterator[Order]:
    """Yield the orders of a sample."""
    for number in range(sample.orders):
        if sample.depth is None:
            yield Seeded(seed + number)
        else:
            yield Pct(seed + number, sample.depth, len(choices))


def mixed_orders(choices: Sequence[Choice], seed: int) -> Iterator[Order]:
    """Yield orders without end: random ones and those of PCT in turn."""
    number = 0
    while True:
        yield Seeded(seed + number)
        yield Pct(seed + number, _DEPTH, len(choices))
        number += 1
