"""A PostgreSQL database for each test, with its server and an administrator's connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from routilux import PostgresStore
from tests.persist import postgres_server
from tests.persist.postgres_server import Server


@pytest.fixture
def server() -> Server:
    """The server that the tests share; whoever stops it starts it again."""
    postgres_server.need()
    return postgres_server.running()


@pytest.fixture
def dsn(server: Server) -> str:
    """How to connect to an empty schema."""
    return server.dsn()


@pytest.fixture
def postgres(dsn: str) -> Iterator[PostgresStore]:
    with PostgresStore(dsn) as store:
        yield store


@pytest.fixture
def admin(dsn: str) -> Iterator[Any]:
    """A connection beside the store's."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as db:
        yield db
