"""Documents of earlier versions, made into documents of this one, a version at a time.

Laws:
- `routilux/n` is version n. What `UPGRADES[n]` holds makes a document of version n + 1 out of one
  of version n; so every version that was ever written is read, by steps that never change again.
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
from routilux.errors import CorruptStateError, UnsupportedVersionError
from routilux.tags import said

__all__ = ["FORMAT", "UPGRADES", "VERSION", "Upgrade", "loaded"]

Upgrade = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes the JSON data of a document of the next version; changes nothing that it is given. What the
`format` in it says is not looked at again."""

VERSION: Final = 1
FORMAT: Final = f"routilux/{VERSION}"
UPGRADES: Final[Mapping[int, Upgrade]] = MappingProxyType({})

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
    for number in range(found, VERSION):
        try:
            document = UPGRADES[number](document)
        except Exception as error:
            raise CorruptStateError(
                "$", f"is no document of routilux/{number}: it can't be upgraded ({said(error)})"
            ) from None
    return cast("dict[str, Any]", codec.decode(document))


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
