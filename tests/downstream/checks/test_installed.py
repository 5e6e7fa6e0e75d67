"""The wheel in a foreign environment: what pytest imports of it, and from where."""

from __future__ import annotations

import sys
from pathlib import Path


def test_a_suite_that_uses_nothing_imports_three_modules():
    ours = {name for name in sys.modules if name.partition(".")[0] in HEAVY}
    assert ours == {"pytest_routilux", "pytest_routilux.plugin", "pytest_routilux.settings"}


HEAVY = {"routilux", "pytest_routilux", "freezegun", "rich", "asyncio", "sqlite3"}


def test_the_engine_is_that_of_the_wheel_and_is_not_rewritten():
    import pytest_routilux.monitor.assertions
    import routilux.core.machine

    for module in (routilux, routilux.core.machine, pytest_routilux.monitor.assertions):
        assert Path(module.__file__).is_relative_to(sys.prefix)
        loader = type(module.__spec__.loader)
        assert loader.__module__ == "_frozen_importlib_external", loader
