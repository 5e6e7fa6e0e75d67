"""Who decides what is left open: which task starts first, which of the steps in flight goes on.

Laws:
- Every decision of a simulation is one call of `choose`; there is no other source of variety.
- Option 0 is what a run without any disturbance does: first in, first out.
- The same chooser asked the same questions gives the same answers.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FIFO", "Choices", "Decision", "Fifo", "Recorded", "Seeded"]

Decision = Literal["start", "commit"]
"""`start`: which task begins next. `commit`: whose next event comes next, or that time passes."""


class Choices(Protocol):
    """Answers the decisions of one run."""

    def choose(self, kind: Decision, options: Sequence[str]) -> int:
        """Return the index of one of at least two options, which are named for people."""


@final
class Fifo:
    """First in, first out: always the first option."""

    def choose(self, kind: Decision, options: Sequence[str]) -> int:
        """Return 0."""
        return 0


FIFO = Fifo()


@final
class Seeded:
    """A random order that repeats for the same seed, on every machine.

    >>> [Seeded(7).choose("start", ["a", "b", "c"]) for _ in range(3)]
    [1, 1, 1]
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._draw = Random(seed).randrange

    def choose(self, kind: Decision, options: Sequence[str]) -> int:
        """Return an index drawn from the seed's own stream."""
        return self._draw(len(options))


@final
class Recorded:
    """Keeps what another one decides, so that it can be told, repeated and made smaller.

    >>> recorded = Recorded(Seeded(7))
    >>> recorded.choose("start", ["a", "b", "c"])
    1
    >>> recorded.made
    [('start', 1, ('a', 'b', 'c'))]
    """

    def __init__(self, inner: Choices) -> None:
        self._inner = inner
        self.made: list[tuple[Decision, int, tuple[str, ...]]] = []

    def choose(self, kind: Decision, options: Sequence[str]) -> int:
        """Return and keep the index that the other one gives."""
        index = self._inner.choose(kind, options)
        self.made.append((kind, index, tuple(options)))
        return index
