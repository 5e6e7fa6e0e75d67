"""Decides the order of work in a simulation: which task starts first, which step continues.

Invariants:
- Every decision of a simulation is one call of `choose`; there is no other source of variety.
- Option 0 is what a run without any disturbance does: first in, first out.
- The same scheduler gives the same answers to the same questions.
"""

from __future__ import annotations

from random import Random
from typing import Protocol, final


class Scheduler(Protocol):
    """Decides which task starts next, and which step continues next unless time passes first."""

    def choose(self, options: int) -> int:
        """Return the index of one of at least two options."""


@final
class FifoScheduler:
    """First in, first out: always the first option."""

    def choose(self, options: int) -> int:
        """Return 0, the index of the first option."""
        return 0


FIFO = FifoScheduler()


class SeededScheduler:
    """A random order that is the same for the same seed, on every machine.

    >>> [SeededScheduler(7).choose(3) for _ in range(3)]
    [1, 1, 1]
    """

    def __init__(self, seed: int) -> None:
        self._draw = Random(seed).randrange

    def choose(self, options: int) -> int:
        """Return an index from the stream of random numbers that the seed determines."""
        return self._draw(options)
