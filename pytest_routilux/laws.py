"""What must hold of every run, disturbed or not, by a model that shares no code with the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.oracle import Finding
    from pytest_routilux.simulation import Case, Life
    from pytest_routilux.world import World

__all__ = ["broken_law"]


def broken_law(world: World, lives: Sequence[Life], case: Case) -> Finding | None:
    """Return the first law of the engine that a run has broken."""
    return None
