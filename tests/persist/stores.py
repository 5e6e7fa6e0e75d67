"""The stores on which the contract is tested; each is fresh, and has the clock for its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from routilux import Clock, JobStore, MemoryStore, PostgresStore, SqliteStore
from tests.persist import postgres_server

__all__ = ["STORES", "Make"]

Make = Callable[[Path, Clock], AbstractContextManager[JobStore]]


@contextmanager
def _memory(folder: Path, clock: Clock) -> Iterator[JobStore]:
    yield MemoryStore(clock)


@contextmanager
def _sqlite(folder: Path, clock: Clock) -> Iterator[JobStore]:
    with SqliteStore(folder / "jobs.db", clock=clock) as store:
        yield store


@contextmanager
def _postgres(folder: Path, clock: Clock) -> Iterator[JobStore]:
    postgres_server.need()
    with PostgresStore(postgres_server.fresh_dsn(), clock=clock) as store:
        yield store


STORES: Final[dict[str, Make]] = {"memory": _memory, "sqlite": _sqlite, "postgres": _postgres}
