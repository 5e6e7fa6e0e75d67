"""Converts a job's commits to rows for a store, and rows back to the data of commits.

Invariants:
- The first row that a host writes carries the version; it holds for the rows that follow.
- A row or a snapshot ends with a checksum, the last member of its object. A disk may return other
  bytes than were written: this is reported with the row's number, and never replayed.
- Data of a newer version may have no checksum: it is refused by its version.
- Rows are read in batches, which costs two thirds of reading them one by one. If a row of a batch
  is refused, each is read by itself, so that the error names its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

from routilux import codec
from routilux.errors import CorruptStateError, SavedStateError
from routilux.persist.versions import FORMAT, loads_versioned, refuse_newer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from routilux.core.commits import Commit

_NAME: Final = b',"crc":"'
CHECKSUM_BYTES: Final = len(b'%b%08x"}' % (_NAME, 0))
"""The length of a checksum in bytes, with the end of the object."""
_AT_ONCE: Final = 64
_MOST_BYTES: Final = 1 << 20  # at once; large rows gain nothing


def with_checksum(text: bytes) -> bytes:
    """Add a checksum to the text of a JSON object, as the object's last member.

    >>> with_checksum(b'{"seq":8}')
    b'{"seq":8,"crc":"f5bfced8"}'
    """
    body = text[:-1]
    return b'%b%b%08x"}' % (body, _NAME, crc32(body))


def without_checksum(data: object, place: str) -> bytes:
    """Check the checksum in the text of a JSON object, and return the text without the checksum.

    Raises `SavedStateError` if the checksum is missing or does not match.

    >>> without_checksum(with_checksum(b'{"seq":8}'), "$.job-1[8]")
    b'{"seq":8}'
    >>> without_checksum(with_checksum(b'{"seq":8}').replace(b"8", b"9", 1), "$.job-1[8]")
    Traceback (most recent call last):
    routilux.CorruptStateError: $.job-1[8]: was damaged: its checksum does not match
    """
    if not isinstance(data, bytes):  # a user's store may return anything
        raise CorruptStateError(place, f"is of type {type(data).__name__}, not bytes")
    if not data[-CHECKSUM_BYTES:].startswith(_NAME):
        refuse_newer(data, place)
        raise CorruptStateError(
            place, "has no checksum at its end: it is cut off, or was not written by routilux"
        )
    body = data[:-CHECKSUM_BYTES]
    if data != b'%b%b%08x"}' % (body, _NAME, crc32(body)):
        raise CorruptStateError(place, "was damaged: its checksum does not match")
    return body + b"}"


def dump(commit: Commit, *, first: bool) -> bytes:
    """Return the row of a commit; `first` adds the version, for the first row that a host writes.

    Raises `UnserializableError` with the path of a value that can't be saved.
    """
    text = commit.dumps()
    if first:
        text = codec.bounded(f'{{"format":{codec.quoted(FORMAT)},{text[1:]}')
    return with_checksum(text.encode())


def load(rows: Sequence[bytes], job_id: str, after: int) -> Iterator[tuple[str, object]]:
    """Yield the path and the decoded data of each row; the first row is commit `after` + 1.

    Raises `SavedStateError` with the path of the row that is refused.

    >>> rows = [with_checksum(b'{"seq":8}'), with_checksum(b'{"seq":9}')]
    >>> list(load(rows, "job-1", after=7))
    [('$.job-1[8]', {'seq': 8}), ('$.job-1[9]', {'seq': 9})]
    """
    for first in range(0, len(rows), _AT_ONCE):
        batch = rows[first : first + _AT_ONCE]
        start = after + first + 1
        parts = _parts(batch, first=start == 1)
        for number, row in enumerate(batch):
            seq = start + number
            place = f"$.{job_id}[{seq}]"
            if parts is None:
                yield place, loads_versioned(without_checksum(row, place), place, required=seq == 1)
            else:
                yield place, parts[number]


def _parts(rows: Sequence[bytes], *, first: bool) -> list[object] | None:
    try:
        texts = [without_checksum(row, "$") for row in rows]
        # A text that is no object by itself might become one when it is joined with others.
        if sum(map(len, texts)) > _MOST_BYTES or not all(text[:1] == b"{" for text in texts):
            return None
        parts: list[object] = codec.loads(b"[%b]" % b",".join(texts))
    except SavedStateError:
        return None
    if len(parts) != len(rows):
        return None
    version = None if first else FORMAT
    for part in parts:
        if type(part) is not dict or part.pop("format", version) != FORMAT:
            return None
        version = FORMAT
    return parts
