"""Checks numbers, names and payloads that were saved.

Invariants:
- A saved form is plain JSON with integer nanoseconds; a missing optional field has its default.
- Reading checks every field and the range of every number.
"""

from __future__ import annotations

from typing import Any, Final

from routilux.errors import CorruptStateError

_EARLIEST: Final = -62_135_596_800 * 10**9
_LATEST: Final = 253_402_300_799 * 10**9
_LONGEST: Final = _LATEST - _EARLIEST
_LARGEST_COUNT: Final = 2**53
TEXT: Final = frozenset({str})
"""The types of the keys of a payload."""
LONGEST_ID: Final = 64
"""The most characters of a task's id, so that the ids of its tasks take little time."""


def in_range(number: int, path: str, least: int = 0) -> int:
    """Check and return a saved number from `least` to 2**53."""
    if not least <= number <= _LARGEST_COUNT:
        raise CorruptStateError(path, f"must be a number from {least} to 2**53, not {number}")
    return number


def instant(number: int, path: str) -> int:
    """Check and return a saved instant (ns) in the years 1 to 9999."""
    if not _EARLIEST <= number <= _LATEST:
        raise CorruptStateError(path, f"must be an instant in the years 1 to 9999, not {number} ns")
    return number


def duration(number: int, path: str) -> int:
    """Check and return a saved duration (ns) of 0 to 9999 years."""
    if not 0 <= number <= _LONGEST:
        raise CorruptStateError(path, f"must be a duration from 0 to 9999 years, not {number} ns")
    return number


def payload(data: dict[str, object], path: str) -> dict[str, object]:
    """Check and return a saved payload, whose keys must be strings."""
    if not TEXT.issuperset(map(type, data)):
        key = next(key for key in data if type(key) is not str)
        raise CorruptStateError(path, f"must have only strings as keys, but has the key {key!r}")
    return data


def texts(value: object, path: str) -> list[str]:
    """Check and return a saved list of strings."""
    if not isinstance(value, list) or not TEXT.issuperset(map(type, value)):
        raise CorruptStateError(path, "must be a list of strings")
    return value


def task_id(text: str, path: str) -> str:
    """Check and return a saved task id of at most `LONGEST_ID` characters."""
    if len(text) > LONGEST_ID:
        raise CorruptStateError(path, f"must have at most {LONGEST_ID} characters")
    return text


def load_keeps(f: dict[str, Any], path: str) -> tuple[str, ...]:
    """Return the gathers that a saved task keeps open."""
    keeps = texts(f.get("keeps", []), f"{path}.keeps")
    if len(set(keeps)) < len(keeps):
        raise CorruptStateError(f"{path}.keeps", "names a gather twice")
    return tuple(keeps)
