"""Runs pytest in a fresh interpreter with our plugin, installed or not, and no others unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_inside(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run the tests of `pytester`; warnings are errors there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the run that this test is in
        return pytester.runpytest_subprocess(
            "-W", "error", "-p", "no:cacheprovider", "-p", "pytest_routilux.plugin", *args
        )
