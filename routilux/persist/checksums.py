"""Checksum of a row or a snapshot, which is the last member of its object.

Invariants:
- A disk may return other bytes than it was given: this is reported, and the bytes are never
  replayed.
- Each row and each snapshot has a checksum. Data of a newer version may end in another way: it is
  refused by its version.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from routilux.errors import CorruptStateError
from routilux.persist.upgrades import refuse_newer

__all__ = ["CHECKSUM", "checked", "summed"]

_NAME: Final = b',"crc":"'
CHECKSUM: Final = len(b'%b%08x"}' % (_NAME, 0))
"""The length of a checksum in bytes, with the end of the object."""


def summed(text: bytes) -> bytes:
    """Return an object's text with its checksum.

    >>> summed(b'{"seq":8}')
    b'{"seq":8,"crc":"f5bfced8"}'
    """
    body = text[:-1]
    return b'%b%b%08x"}' % (body, _NAME, crc32(body))


def checked(data: object, place: str) -> bytes:
    """Return an object's text without its checksum; `place` is its path.

    Raises `SavedStateError` where the checksum is missing or does not match.

    >>> checked(summed(b'{"seq":8}'), "$.job-1[8]")
    b'{"seq":8}'
    >>> checked(summed(b'{"seq":8}').replace(b"8", b"9", 1), "$.job-1[8]")
    Traceback (most recent call last):
    routilux.CorruptStateError: $.job-1[8]: was damaged: its checksum does not match
    """
    if not isinstance(data, bytes):  # another program's store may return anything
        raise CorruptStateError(place, f"is of type {type(data).__name__}, not bytes")
    if not data[-CHECKSUM:].startswith(_NAME):
        refuse_newer(data, place)
        raise CorruptStateError(
            place, "has no checksum at its end: it is cut off, or was not written by routilux"
        )
    body = data[:-CHECKSUM]
    if data != b'%b%b%08x"}' % (body, _NAME, crc32(body)):
        raise CorruptStateError(place, "was damaged: its checksum does not match")
    return body + b"}"
