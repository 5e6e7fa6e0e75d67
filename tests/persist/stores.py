"""The stores on which the contract is tested; each gets a clock for its time and a fresh place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from routilux import Clock, JobStore, MemoryStore, SqliteStore

__all__ = ["STORES", "Make"]

Make = Callable[[Path, Clock], JobStore]


def _memory(folder: Path, clock: Clock) -> JobStore:
    return MemoryStore(clock)


def _sqlite(folder: Path, clock: Clock) -> JobStore:
    return SqliteStore(folder / "jobs.db", clock=clock)


STORES: Final[dict[str, Make]] = {"memory": _memory, "sqlite": _sqlite}
