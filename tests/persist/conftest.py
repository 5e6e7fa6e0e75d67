"""Stores for a test: a file, or an empty PostgreSQL schema and an administrator's connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routilux import PostgresStore, SqliteStore
from tests.persist import postgres_server
from tests.persist.postgres_server import Server


@pytest.fixture
def server() -> Server:
    """The server that the tests share; a test that stops it starts it again."""
    postgres_server.need()
    return postgres_server.running()


@pytest.fixture
def dsn(server: Server) -> str:
    """The connection string of an empty schema."""
    return server.dsn()


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a new store that processes can share; see `stores.at`."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    postgres_server.need()
    return postgres_server.fresh_dsn()


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
