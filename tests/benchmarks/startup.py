"""What the plugin costs a suite that does not use it.

Laws:
- Whole processes are compared, in turns, by the CPU time that they took: what the machine does
  beside them hardly counts.
- Both have every other plugin of this environment.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.benchmarks.measurements import MILLISECOND, _time
from tests.benchmarks.race import Bound, Figure, Measurement, Race

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["start_up"]

_folders: list[TemporaryDirectory[str]] = []  # until the program ends


def _spent_by_children() -> int:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((spent.ru_utime + spent.ru_stime) * 10**9)


def start_up(rounds: int) -> Measurement:
    """Run a suite of one empty test with the plugin and without it."""
    folder: TemporaryDirectory[str] = TemporaryDirectory()
    _folders.append(folder)
    Path(folder.name, "test_nothing.py").write_text("def test_nothing(): pass\n")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

    def suite(*options: str) -> Callable[[], None]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]

        def run() -> None:
            subprocess.run(
                command, cwd=folder.name, env=environment, check=True, stdout=subprocess.DEVNULL
            )

        return run

    race = Race({"with": suite(), "without": suite("-p", "no:routilux")}, _spent_by_children)

    def figures(best: dict[str, int]) -> list[Figure]:
        more = max(best["with"] - best["without"], 1)
        return [
            Figure(
                "start of a suite that does not use the plugin",
                _time(best["with"]),
                f"without it {_time(best['without'])}",
                more / MILLISECOND,
                f"+{_time(more)}",
                Bound(5, hard=False, unit=" ms"),
            )
        ]

    return Measurement(race, rounds, figures)
