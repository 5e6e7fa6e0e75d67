"""Comments, docstrings and messages of both packages keep to plain English.

Each of these words made readers stop in this project; CONTRIBUTING.md says what to write instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
RIDDLES: Final = re.compile(
    r"\b(told|untold|tells|stands|rests|whoever|borne|goes on|go on|said|looked at|brought|has it"
    r"|comes to|laws:)\b",
    re.IGNORECASE,
)


def riddles(source: str) -> list[str]:
    """Return `line: word` for each word of the list in a comment or a string of a source."""
    return [
        f"{line}: {match[0]}" for line, text in _texts(source) for match in RIDDLES.finditer(text)
    ]


def _texts(source: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.splitlines(), 1):
        if "#" in line:  # a comment, or a part of a string, which is searched too
            yield number, line.partition("#")[2]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


@pytest.mark.parametrize("package", ["routilux", "pytest_routilux"])
def test_a_package_has_no_riddles(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{riddle}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for riddle in riddles(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["write what the thing is or does:", *found])


@pytest.mark.parametrize(
    "source",
    ["# whoever waits", '"""What is told.\n"""', 'raise OSError(f"job {1} stands already")'],
)
def test_a_planted_riddle_is_found(source: str) -> None:
    assert 1 == len(riddles(source))
