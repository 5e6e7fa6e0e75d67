"""Checks the version of saved data.

Invariants:
- A document and a snapshot carry the version. Of the rows of a job, each first row of a host
  carries it; the version holds for the rows that follow.
- Data of a newer version is refused before anything else in it is decoded.
- Data without a version was not written by routilux and is refused.
- The tables of a store carry a version of their own.
"""

from __future__ import annotations

import re
from typing import Any, Final

from routilux import codec
from routilux.errors import CorruptStateError, SavedStateError, UnsupportedVersionError

FORMAT: Final = "routilux/1"
PACKAGE: Final = "0.1.0"
"""The version of this package."""

_NEWER: Final = re.compile(r"routilux/(?!1\Z)[1-9]\d{0,8}")
_FIRST_MEMBER: Final = re.compile(rb'\s*\{\s*"format"\s*:\s*"(routilux/\d{1,9})"')


def loads_versioned(data: bytes, place: str = "$", *, required: bool = True) -> Any:
    """Parse a JSON text, and check and remove its version.

    Raises `SavedStateError` with a path that begins at `place`.

    >>> loads_versioned(b'{"format": "routilux/1", "flow": {}}')
    {'flow': {}}
    >>> loads_versioned(b'{"format": "routilux/2", "flow": [}')
    Traceback (most recent call last):
    routilux.UnsupportedVersionError: $.format: is 'routilux/2', which a newer routilux...
    """
    refuse_newer(data, place)
    try:
        value = codec.loads(data)
        if isinstance(value, dict) and "format" in value:
            _check(value.pop("format"), "$")
        elif required:
            raise CorruptStateError("$.format", "is missing: the data was not written by routilux")
    except SavedStateError as error:
        raise type(error)(place + error.path.removeprefix("$"), error.reason) from None
    return value


def refuse_newer(data: bytes, place: str) -> None:
    """Raise `SavedStateError` if a JSON text begins with another version."""
    first = _FIRST_MEMBER.match(data)
    if first is not None:
        _check(first[1].decode(), place)


def newer_store(name: str, found: int, known: int) -> UnsupportedVersionError:
    """Return the error for a store of a newer version."""
    return UnsupportedVersionError(
        name, f"has version {found}; this routilux reads version {known}; upgrade routilux"
    )


def _check(found: object, place: str) -> None:
    if found == FORMAT:
        return
    if isinstance(found, str) and _NEWER.fullmatch(found):
        raise UnsupportedVersionError(
            f"{place}.format",
            f"is {found!r}, which a newer routilux wrote; this routilux reads {FORMAT!r}: install"
            " the newer version here, or resume the job where it was saved",
        )
    raise CorruptStateError(
        f"{place}.format", f"is {found!r}: the data was not written by routilux"
    )
