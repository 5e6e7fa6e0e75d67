"""The output of the command line: coloured lines on a terminal, plain text elsewhere.

Invariants:
- Only a terminal gets colours, and only if NO_COLOR is not set.
- Rows of tables, of timelines and of payloads are cut to the width of a terminal, or of COLUMNS,
  and sentences are wrapped; a pipe gets whole lines.
- Text from a store may come from anybody: it is shown, and never controls the terminal.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TextIO

from routilux.timeline import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.timeline import Line, Part

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_LEAST: Final = 40  # columns; lines are not fitted to a narrower terminal


class Page:
    """An output stream that knows its width and whether it can show colours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        terminal = stream.isatty()
        self._colours = (
            terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self.width: int | None = None
        if terminal or os.environ.get("COLUMNS", "").isdigit():
            self.width = max(shutil.get_terminal_size().columns, _LEAST)
        if (stream.encoding or "").lower().replace("-", "") != "utf8":
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")

    def text(self, text: str) -> None:
        """Write `text` unchanged, then a line break."""
        self._stream.write(f"{text}\n")

    def line(self, *parts: Part, cut: bool = False) -> None:
        """Write `parts` as one line; if `cut` is true, cut the line to the page's width."""
        row = [_styled(part) for part in parts]
        self.text(self._coloured(_cut(row, self.width) if cut and self.width else row))

    def wrapped(self, *parts: Part, indent: str = "") -> None:
        """Write `parts` as one line, or wrapped and without styles if the line does not fit.

        The lines after the first one begin with `indent`.
        """
        text = "".join(part for part, _ in map(_styled, parts))
        if self.width is None or cells(text) <= self.width:
            self.line(*parts)
        else:
            self.prose(text, indent=indent)

    def prose(self, text: str, style: str = "", *, indent: str = "") -> None:
        """Write `text`, wrapped to the page's width."""
        rest = plain(text)
        while self.width is not None:
            end = _fitting([(char, "") for char in rest[: 2 * self.width]], self.width)
            if end == len(rest):
                break
            least = len(rest) - len(rest.lstrip()) + 1
            end = rest.rfind(" ", least, end + 1) if " " in rest[least : end + 1] else end
            self.line((rest[:end], style))
            rest = indent + rest[end:].lstrip()
        self.line((rest, style))

    def lines(self, lines: Sequence[Line]) -> None:
        """Write the lines of a timeline, cut, with their texts aligned in one column."""
        head = max((cells(line.mark) + len(line.clock) + 2 for line in lines), default=0)
        for line in lines:
            mark = f"{line.mark} " if line.mark else ""
            gap = " " * (head - cells(mark) - len(line.clock))
            self.line(mark, (line.clock, "dim"), gap, *line.parts, cut=True)

    def flush(self) -> None:
        """Flush the output stream."""
        self._stream.flush()

    def _coloured(self, row: _Row) -> str:
        if not self._colours:
            return "".join(text for text, _ in row).rstrip()
        shown = ""
        for style, group in groupby(row, key=itemgetter(1)):
            text = "".join(text for text, _ in group)
            codes = ";".join(_CODES[name] for name in style.split())
            shown += f"\033[{codes}m{text}\033[0m" if codes and text else text
        return shown


def cells(text: str) -> int:
    """Return the number of terminal columns that `text` takes.

    >>> cells("💥 ok")
    5
    """
    return len(text) if text.isascii() else sum(map(_cell, text))


def shortened(text: str, width: int) -> str:
    """Return printable `text`, cut to at most `width` columns.

    >>> shortened("payments", 6)
    'payme…'
    """
    return "".join(char for char, _ in _cut([_styled(text)], width))


def _cell(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


_Row = list[tuple[str, str]]  # texts, or single chars, with the names of their styles


def _styled(part: Part) -> tuple[str, str]:
    text, style = part if isinstance(part, tuple) else (part, "")
    return plain(text), style


def _fitting(chars: _Row, width: int) -> int:
    # Returns how many of the first chars fit.
    for place, (char, _) in enumerate(chars):
        width -= _cell(char)
        if width < 0:
            return place
    return len(chars)


def _cut(row: _Row, width: int) -> _Row:
    chars = [(char, style) for text, style in row for char in text]
    while chars and chars[-1][0] == " ":
        chars.pop()
    if _fitting(chars, width) == len(chars):
        return chars
    return [*chars[: _fitting(chars, width - 1)], ("…", "")]
