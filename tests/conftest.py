"""What the tests of the engine share: the end of what they have started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.persist import postgres_server


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    postgres_server.stop()
