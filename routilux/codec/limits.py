"""Size limits of JSON texts, and functions to measure a text.

Invariants:
- Bytes, values, depth and digits have limits, the same for writing and for reading.
- Only the marks of a text are counted: the commas, colons and brackets outside its strings. This
  takes a fifth of the time of parsing.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

MAX_BYTES: Final = 256 * 1024 * 1024
MAX_NODES: Final = 5_000_000  # values in a document, counted by their commas and brackets
MAX_DEPTH: Final = 100  # JSON arrays and objects within each other, in a whole document
MAX_DIGITS: Final = 4_000  # of an integer; CPython refuses more than 4,300

_NOT_OUTLINE: Final = bytes(set(range(256)) - set(b'",:[{]}'))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_DIGITS: Final = bytes(ord("0") if code in b"0123456789" else ord(" ") for code in range(256))
_STRIDE: Final = 97  # a prime, so that no list of short numbers has the same period
_LONG: Final = b"0" * ((MAX_DIGITS + 1) // _STRIDE)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def outline(text: bytes) -> bytes:
    """Return the commas, colons and brackets outside the strings of a text."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # An empty string can go: the marks after it stay inside or outside of strings.
    marks = text.translate(None, _NOT_OUTLINE).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2]) if b'"' in marks else marks


def nodes(marks: bytes) -> int:
    """Count the values in the JSON text with the outline `marks`."""
    return 1 + sum(map(marks.count, (b",", b"[", b"{")))


def members(marks: bytes) -> int:
    """Count all object members in the JSON text with the outline `marks`."""
    return marks.count(b":")


def depth(marks: bytes) -> int:
    """Return the nesting depth of the JSON text with the outline `marks`."""
    steps = marks.translate(_STEPS, b",:")
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def is_doubtful(text: bytes) -> bool:
    """Return whether `text` may contain too long integers or lone surrogates."""
    return _LONG in text[::_STRIDE].translate(_DIGITS) or (
        b"\\" in text and _SURROGATE.search(text) is not None
    )
