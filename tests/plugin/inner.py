"""Runs pytest in a fresh interpreter, with our plugin whether it is installed or not."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "pytest_routilux.plugin"


def run_inside(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run the tests of `pytester`; warnings are errors there too."""
    installed = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        return pytester.runpytest_subprocess(
            "-W", "error", "-p", "no:cacheprovider", *(() if installed else ("-p", PLUGIN)), *args
        )
