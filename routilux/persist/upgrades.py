"""Saved forms of earlier versions, made into those of this one, a version at a time.

Laws:
- `routilux/n` is version n. What `UPGRADES[n]` holds makes a document of version n + 1 out of one
  of version n; so every version that was ever written is read, by steps that never change again.
  `ROWS` and `SNAPSHOTS` hold the same for what stands in a store.
- A document says its version, and so does a snapshot. Of the rows of a job those say it by which
  somebody begins to write: it holds for the rows that follow. Rows of old say none: they are of
  the first version.
- An upgrade is pure: JSON data in, new JSON data out, tagged values as the objects that they are in
  the file, nothing validated yet. What it makes is judged like any other document.
- A newer version is refused before anything in it is looked at that only a newer version knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from routilux import codec
from routilux.errors import CorruptStateError, SavedStateError, UnsupportedVersionError
from routilux.tags import said

__all__ = [
    "FIRST",
    "FORMAT",
    "ROWS",
    "SNAPSHOTS",
    "UPGRADES",
    "VERSION",
    "Upgrade",
    "loaded",
    "loaded_part",
]

Upgrade = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes the JSON data of the next version; changes nothing that it is given. What the `format` of a
document says is not looked at again; a row or snapshot is given without it."""

FIRST: Final = 1
VERSION: Final = 1
FORMAT: Final = f"routilux/{VERSION}"
UPGRADES: Final[Mapping[int, Upgrade]] = MappingProxyType({})
ROWS: Final[Mapping[int, Upgrade]] = MappingProxyType({})
SNAPSHOTS: Final[Mapping[int, Upgrade]] = MappingProxyType({})

_FORMAT: Final = re.compile(r"routilux/([1-9]\d{0,8})")
_HEAD: Final = re.compile(rb'\s*\{\s*"format"\s*:\s*"(routilux/\d{1,9})"')


def loaded(text: bytes) -> dict[str, Any]:
    """Return the document of this version that a text holds, or is upgraded to; not validated.

    Raises `UnsupportedVersionError` for a newer version, and `CorruptStateError` for what is no
    document of any.

    >>> loaded(b'{"format": "routilux/1", "flow": {}}')["flow"]
    {}
    """
    head = _HEAD.match(text)
    older = head is not None and _version_of(head[1].decode()) < VERSION
    document = codec.loads(text, untag=not older)
    if not isinstance(document, dict) or "format" not in document:
        raise CorruptStateError("$.format", "is missing: this was not written by routilux")
    found = _version_of(document["format"])
    if found == VERSION:
        return document
    if not older:  # the format does not stand first: the file was laid out anew
        document = codec.loads(text, untag=False)
    upgraded = _upgraded(document, found, UPGRADES, "document")
    return cast("dict[str, Any]", codec.decode(upgraded))


def loaded_part(
    data: object, place: str, version: int, upgrades: Mapping[int, Upgrade]
) -> tuple[object, int]:
    """Return the data of this version that a row or snapshot holds, and the version it is of.

    `version` is the one that it is of where it does not say it; `upgrades` are `ROWS` or
    `SNAPSHOTS`. Raises what `loaded` does, with a path that begins at `place`.

    >>> loaded_part(b'{"format": "routilux/1", "seq": 1}', "$.job-1[1]", FIRST, ROWS)
    ({'seq': 1}, 1)
    """
    if not isinstance(data, bytes):
        raise CorruptStateError(place, f"is of type {type(data).__name__}, not bytes")
    try:
        head = _HEAD.match(data)
        if head is not None:
            version = _version_of(head[1].decode())
        part = codec.loads(data, untag=version == VERSION)
        if isinstance(part, dict) and "format" in part:
            version = _version_of(part.pop("format"))
        if version == VERSION:
            return part, version
        return codec.decode(_upgraded(part, version, upgrades, "part")), version
    except SavedStateError as error:
        raise type(error)(place + error.path.removeprefix("$"), error.reason) from None


def _upgraded(data: Any, version: int, upgrades: Mapping[int, Upgrade], what: str) -> Any:
    for number in range(version, VERSION):
        try:
            data = upgrades[number](data)
        except Exception as error:
            raise CorruptStateError(
                "$", f"is no {what} of routilux/{number}: it can't be upgraded ({said(error)})"
            ) from None
    return data


def _version_of(found: object) -> int:
    match = _FORMAT.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise CorruptStateError("$.format", f"is {found!r}: this was not written by routilux")
    if int(match[1]) > VERSION:
        raise UnsupportedVersionError(
            "$.format",
            f"is {found!r}, of a newer routilux; this one reads up to 'routilux/{VERSION}': install"
            " a newer one here, or go on with the job where it was saved",
        )
    return int(match[1])
