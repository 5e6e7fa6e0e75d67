"""New stores for a test, and an administrator's connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routilux import PostgresStore, SqliteStore


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
