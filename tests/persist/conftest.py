"""New stores for a test, and an administrator's connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routilux import FakeClock, JobStore, PostgresStore, SqliteStore
from tests.persist.stores import STORES


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "jobs.db") as store:
        yield store


@pytest.fixture
def postgres(dsn: str) -> Iterator[PostgresStore]:
    with PostgresStore(dsn) as store:
        yield store


@pytest.fixture
def admin(dsn: str) -> Iterator[Any]:
    """A connection of an administrator."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as db:
        yield db


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[JobStore]:
    with STORES[request.param](tmp_path, clock) as made:
        yield made
