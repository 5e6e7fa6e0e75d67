"""What every test of the project shares: the plugin's own test bed, and the Hypothesis profiles."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# `ci` has the same examples in every run, so that a red run is red again. The others look for new
# ones: --hypothesis-seed repeats a run of them, and `make soak` prints its seed.
# So few examples as in `ci` say nothing about how many of them a strategy filters out.
for name, count in ("ci", 12), ("soak", 120), ("explore", 2000):
    settings.register_profile(
        name,
        derandomize=name == "ci",
        deadline=None,
        database=None,
        print_blob=True,
        max_examples=count,
        suppress_health_check=[HealthCheck.filter_too_much] if name == "ci" else [],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    # Where the folder of the project can't be written, nothing is remembered from run to run.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
