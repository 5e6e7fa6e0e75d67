"""Decides the order of work in a simulation.

Invariants:
- Every decision of a simulation is one call of `choose`; there is no other source of variety.
- Option 0 is what a run without any disturbance does: first in, first out.
- The same scheduler gives the same answers to the same questions.
"""

from __future__ import annotations

from random import Random
from typing import Protocol, final


class Scheduler(Protocol):
    """Chooses between starting a task, continuing a step and letting time pass."""

    def choose(self, options: int) -> int:
        """Choose one of `options` options, and return the option's index."""


@final
class FifoScheduler:
    """A scheduler that always chooses the first option (first in, first out)."""

    def choose(self, options: int) -> int:
        """Return 0, the index of the first option."""
        return 0


FIFO = FifoScheduler()


class SeededScheduler:
    """A scheduler with a random order that the seed determines.

    >>> [SeededScheduler(7).choose(3) for _ in range(3)]
    [1, 1, 1]
    """

    def __init__(self, seed: int) -> None:
        self._draw = Random(seed).randrange

    def choose(self, options: int) -> int:
        """Return a random index below `options`."""
        return self._draw(options)
