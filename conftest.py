"""What every test of the project shares: the plugin's own test bed, and one Hypothesis profile."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# The same examples in every run, so that a red run is red again; `explore` looks for new ones.
# So few examples as in `ci` say nothing about how many of them a strategy filters out.
for name, count in ("ci", 25), ("soak", 200):
    settings.register_profile(
        name,
        derandomize=True,
        deadline=None,
        database=None,
        print_blob=True,
        max_examples=count,
        suppress_health_check=[HealthCheck.filter_too_much] if name == "ci" else [],
    )
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    # Where the folder of the project can't be written, nothing is remembered from run to run.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
