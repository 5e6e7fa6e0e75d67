"""A runtime on a store in memory and a fake clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routilux import FakeClock, MemoryStore, Runtime


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def runtime(clock: FakeClock, store: MemoryStore) -> Iterator[Runtime]:
    with Runtime(clock=clock, store=store) as made:
        yield made
