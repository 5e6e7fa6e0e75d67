"""What the tests of the plugin share: an inner pytest that has the plugin and nothing unasked."""

from __future__ import annotations

import pytest


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test bed of 100 columns; the plugin is given by its module, installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return pytester
