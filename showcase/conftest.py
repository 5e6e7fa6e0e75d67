"""Sorts the scenarios: the smallest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

_ORDER: Final = (
    "test_basic_retry.py",
    "test_data_pipeline.py",
    "test_cross_host.py",
    "test_api_to_database.py",
    "test_fan_out.py",
    "test_web_service.py",
    "test_strategies.py",
    "test_crash_everywhere.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the scenarios; other tests keep their place in front."""
    items.sort(key=lambda item: _ORDER.index(item.path.name) if item.path.name in _ORDER else -1)
