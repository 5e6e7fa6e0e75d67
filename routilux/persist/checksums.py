"""How a row or a snapshot ends: with a checksum of its bytes, as the last member of its object.

Laws:
- A disk may give back other bytes than it was given: what it does to them is told, and never taken
  for another commit that would do as well.
- What ends without one was written before there were any. A bit that changes within the member
  itself leaves no JSON, or a member that no row has; so it hides nothing.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from routilux.errors import CorruptStateError

__all__ = ["CHECKSUM", "checked", "summed"]

_NAME: Final = b',"crc":"'
CHECKSUM: Final = len(b'%b%08x"}' % (_NAME, 0))
"""How many bytes it takes, with the end of the object."""


def summed(text: bytes) -> bytes:
    """Return an object's text with its checksum.

    >>> summed(b'{"seq":8}')
    b'{"seq":8,"crc":"f5bfced8"}'
    """
    body = text[:-1]
    return b'%b%b%08x"}' % (body, _NAME, crc32(body))


def checked(data: bytes, place: str) -> bytes:
    """Return an object's bytes without their checksum; `place` is where they stand.

    Raises `CorruptStateError` where they are not those that it was made of.

    >>> checked(summed(b'{"seq":8}'), "$.job-1[8]")
    b'{"seq":8}'
    >>> checked(summed(b'{"seq":8}').replace(b"8", b"9", 1), "$.job-1[8]")
    Traceback (most recent call last):
    routilux.CorruptStateError: $.job-1[8]: was damaged: its checksum is of other bytes
    """
    # A store of others may give back what is no bytes, which whoever reads on tells.
    if isinstance(data, bytes) and data[-CHECKSUM:].startswith(_NAME):
        body = data[:-CHECKSUM]
        if data != b'%b%b%08x"}' % (body, _NAME, crc32(body)):
            raise CorruptStateError(place, "was damaged: its checksum is of other bytes")
        return body + b"}"
    return data
