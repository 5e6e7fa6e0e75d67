"""Decides the order of work in a simulation: which task starts next, and which step continues.

Invariants:
- Every decision of a simulation is one call of `choose`; there is no other source of variety.
- Option 0 is what a run without any disturbance does: first in, first out.
- The same scheduler gives the same answers to the same questions.
"""

from __future__ import annotations

from random import Random
from typing import Protocol, final


class Scheduler(Protocol):
    """Chooses what happens next: a task starts, a step continues, or time passes."""

    def choose(self, options: int) -> int:
        """Choose one of `options` options, at least 2; return the index of the option, from 0."""


@final
class FifoScheduler:
    """A scheduler for "first in, first out": it always chooses the first option."""

    def choose(self, options: int) -> int:
        """Return 0, the index of the first option."""
        return 0


FIFO = FifoScheduler()


class SeededScheduler:
    """A scheduler with a random order; equal seeds give equal orders on every machine.

    >>> [SeededScheduler(7).choose(3) for _ in range(3)]
    [1, 1, 1]
    """

    def __init__(self, seed: int) -> None:
        self._draw = Random(seed).randrange

    def choose(self, options: int) -> int:
        """Return a random index below `options`; the seed determines the sequence of results."""
        return self._draw(options)
