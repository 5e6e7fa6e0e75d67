"""A line on the terminal that shows how far a long exploration is.

Invariants:
- It shows after 2 s of real time, and is erased when the exploration ends.
- Only a terminal that can erase a line gets it: no pipe, no dumb terminal, no xdist worker. With
  `-s` the output of the test goes to the terminal too, so there is none.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pytest

_AFTER: Final = 2.0
_EVERY: Final = 0.25


class Progress:
    """The progress line of a test's explorations, each in a `with` block."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._begun = self._shown = 0.0
        self._terminal: bool | None = None  # not known yet

    def __enter__(self) -> None:
        self._begun, self._shown = perf_counter(), 0.0

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._print("")

    def show(self, runs: int, left: int) -> None:
        """Show the number of runs, and of crash points that are left, if it is time."""
        now = perf_counter()
        seconds = now - self._begun
        if seconds < _AFTER or now - self._shown < _EVERY or not self._has_terminal():
            return
        self._shown = now
        parts = [f"{runs:,} runs", f"{runs / seconds:,.0f} runs/s"]
        if left:
            parts.append(f"{left:,} crash points left")
        self._print(f"  exploring: {', '.join(parts)}")

    def _has_terminal(self) -> bool:
        if self._terminal is None:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            self._terminal = terminal is not None and self._config.getoption("capture") != "no"
            if self._terminal:
                with self._uncaptured():  # a captured one is none
                    file = self._config.get_terminal_writer()._file
                    self._terminal = file.isatty() and os.environ.get("TERM") != "dumb"
        return self._terminal

    def _print(self, text: str) -> None:
        from rich.console import Console
        from rich.control import Control
        from rich.segment import ControlType

        erase = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        with self._uncaptured():
            console = Console(file=self._config.get_terminal_writer()._file)
            console.control(erase)
            console.print(text, end="", overflow="ellipsis", no_wrap=True, highlight=False)
            console.file.flush()

    def _uncaptured(self) -> AbstractContextManager[None]:
        manager = self._config.pluginmanager.getplugin("capturemanager")
        return nullcontext() if manager is None else manager.global_and_fixture_disabled()
