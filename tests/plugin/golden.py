"""Stored texts ("golden"), which messages are compared with line by line.

Invariants:
- A file has sections: `[name]`, and the lines of the text up to the next section.
- A text is right if every line is equal. The first line that differs is shown with the stored one.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"


def sections(file: str) -> dict[str, str]:
    """Return the texts of a file by name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (FOLDER / file).read_text("utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            lines = found.setdefault(line[1:-1], [])
        else:
            lines.append(line)
    return {name: "\n".join(text).strip("\n") for name, text in found.items()}


def compare(golden: str, text: str, name: str = "the text") -> None:
    """Raise `AssertionError` at the first line that differs from the golden text."""
    pairs = zip_longest(golden.splitlines(), text.splitlines())
    for number, (expected, actual) in enumerate(pairs, 1):
        if expected != actual:
            raise AssertionError(
                f"{name}, line {number}:\n  expected  {expected!r}\n  is        {actual!r}\n"
                f"the whole text:\n{text}"
            )
