"""The command line of a long program: its arguments, its time, its verdict and its exit status.

It ends with 1 if a rule is broken, and keeps the stores; with 2 if too little was done.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.persist import postgres_server
from tests.routines import let_sigint_through


class Program:
    """One run of a program such as `python -m tests.kills`; use it in a `with` block."""

    def __init__(self, name: str, option: str, number: int, what: str) -> None:
        self.parser = argparse.ArgumentParser(prog=f"python -m {name}")
        self.parser.add_argument(option, type=int, default=number, help=what)
        self.parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
        self.parser.add_argument("--seed", type=int, default=0)
        self.parser.add_argument("--minutes", type=float, default=60, help="the longest time")
        self._begun = time.monotonic()

    def __enter__(self) -> argparse.Namespace:
        asked = self.parser.parse_args()
        let_sigint_through()
        self.until = self._begun + 60 * asked.minutes
        self.folder = Path(tempfile.mkdtemp(prefix="routilux-"))
        return asked

    def __exit__(self, *_: object) -> None:
        postgres_server.stop()

    @property
    def is_over(self) -> bool:
        """Whether the longest time has passed."""
        return time.monotonic() >= self.until

    @property
    def seconds(self) -> str:
        """The time since the program began, as text."""
        return f"{time.monotonic() - self._begun:.0f} s"

    def verdict(self, lines: Iterable[str], broken: list[str], missing: str, good: str) -> int:
        """Print the result and return the exit status; `missing` says what was too little."""
        say(*lines)
        if broken:
            say(*broken[:50], f"{len(broken)} broken rules; the stores are in {self.folder}")
            return 1
        shutil.rmtree(self.folder)
        say(missing or good)
        return 2 if missing else 0


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)
