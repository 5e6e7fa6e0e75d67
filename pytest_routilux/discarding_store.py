"""The store behind `flow_runtime`, which keeps nothing.

Invariants:
- Each commit takes its saved form first, so a job fails here for the same values as with any store.
- No write is refused: a test may resume jobs that were saved elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux import RoutiluxError
    from routilux.persist.store import Append


class DiscardingStore(MemoryStore):
    """Accepts every row, and keeps none."""

    def create(
        self,
        job_id: str,
        row: bytes,
        owner: str,
        *,
        flow_id: str,
        status: str,
        after_ns: int = 0,
    ) -> None:
        """Do nothing."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        """Do nothing."""

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        return [None] * len(appends)

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        """Do nothing."""
