"""The command line as the tests call it: in this process, or as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from tests.routines import PATIENCE

ROOT = Path(__file__).parents[2]


class Told(Protocol):
    """Calls the command line, and gives what it writes."""

    def __call__(self, *arguments: object, status: int = 0) -> str: ...


def command(
    *arguments: object, folder: Path, encoding: str = "utf-8", **options: Any
) -> subprocess.CompletedProcess[str]:
    env = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "routilux", *map(str, arguments)],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
        **{"capture_output": True, **options},
    )
