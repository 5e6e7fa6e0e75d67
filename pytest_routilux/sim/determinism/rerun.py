"""Runs a test again in fresh Python processes with other hash seeds, up to one of its calls.

Invariants:
- The process runs the same test, so closures, parameters, patches and doubles are as in this one.
  At the call it writes the commits of one run to a file, and skips the rest of the test.
- Earlier calls of `check_determinism` in that process check nothing.
- A process that does not come to the call is reported with what it printed, and is no result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.text import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.simulator.model import Case

_REQUEST: Final = "ROUTILUX_HASH_SEED_RUN"
_PATIENCE: Final = 120.0  # seconds of real time
_LONGEST: Final = 300


def answer_request(node: pytest.Item, number: int, case: Case, start_ns: int) -> bool:
    """Return whether this process was started by `rows_by_seed`.

    At the call with the requested `number` of the test the run is written, and the test skipped.
    """
    text = os.environ.get(_REQUEST)
    if text is None:
        return False
    request = json.loads(text)
    if (request["node"], request["number"]) == (node.nodeid, number):
        run = run_undisturbed(case, start_ns)
        rows = [commit.dumps() for commit in run.world.commits]
        Path(request["file"]).write_text(json.dumps(rows), "utf-8")
        pytest.skip("the run with another hash seed is written")
    return True


def rows_by_seed(node: pytest.Item, number: int, seeds: Sequence[int]) -> list[list[str]] | str:
    """Return the commits of one run for each hash seed, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{at}.json") for at in range(len(seeds))]
        started = [
            _start(node, number, seed, file) for seed, file in zip(seeds, files, strict=True)
        ]
        printed = [_output(process) for process in started]
        for file, text in zip(files, printed, strict=True):
            if not file.is_file():
                return f"the test did not come to this call in a new process: {text}"
        return [json.loads(file.read_text("utf-8")) for file in files]


def _start(node: pytest.Item, number: int, seed: int, file: Path) -> subprocess.Popen[str]:
    config = node.config
    path, _, name = node.nodeid.partition("::")
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
    if config.inipath is not None:
        options.append(f"-c{config.inipath}")
    for plugin in config.option.plugins or ():
        options += ["-p", plugin]
    if config.pluginmanager.hasplugin("xdist"):
        options.append("-n0")
    if config.pluginmanager.hasplugin("pytest_cov"):
        options.append("--no-cov")
    request = {"node": node.nodeid, "number": number, "file": str(file)}
    paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")},
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": paths,
        _REQUEST: json.dumps(request),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", f"{config.rootpath / path}::{name}", *options],
        cwd=config.invocation_params.dir,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def _output(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process, and return the end of what it has printed."""
    try:
        printed, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it did not end within {_PATIENCE:g} s of real time"
    return shorten(" ".join(printed.split()), _LONGEST, "end") or "it printed nothing"
