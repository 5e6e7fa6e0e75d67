"""Runs pytest in a fresh interpreter with our plugin, installed or not, and no others unasked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PLUGIN: Final = ("-p", "pytest_routilux.plugin", "-p", "no:cacheprovider")


def run_inside(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run the tests of `pytester`; warnings are errors there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the run that this test is in
        return pytester.runpytest_subprocess(
            "-W", "error", "-p", "no:cacheprovider", "-p", "pytest_routilux.plugin", *args
        )


def assert_golden(golden: str, lines: list[str]) -> None:
    """Assert that the lines of a golden text are among those printed, side by side.

    `⏱` in it is a length of real time, such as 0.21: the one thing that may differ.
    """
    wanted = dedent(golden).strip("\n").splitlines()
    patterns = [re.escape(line).replace("⏱", r"\d+\.\d\d") for line in wanted]
    for at in range(len(lines)):
        if re.fullmatch(patterns[0], lines[at]):
            found = lines[at : at + len(wanted)]
            if len(found) == len(wanted) and all(map(re.fullmatch, patterns, found)):
                return
    shown = "\n".join(lines)
    raise AssertionError("\n".join(["expected:", *wanted, "", "printed:", shown]))
