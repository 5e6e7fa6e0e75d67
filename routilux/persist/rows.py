"""Converts commits to the rows of a store, and back.

Invariants:
- The first row that a host writes carries the version; it holds for the rows that follow.
- A row or a snapshot ends with a checksum, the last member of its object. It covers the text and
  its place: the job's id and the commit's number. A disk may return other bytes than were written,
  or the bytes of another place: this is reported with the place, and never replayed.
- Data of a newer version may have no checksum: it is refused by its version.
- Rows are read in batches, which costs two thirds of reading them one by one. If a row of a batch
  is refused, each is read by itself, so that the error names its number.
"""

from __future__ import annotations

from os import urandom
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
_BETWEEN: Final = urandom(8).hex().encode()
"""The mark between the rows of a batch."""


def row_place(job_id: str, seq: int) -> str:
    """Return the path of a row, for checksums and errors."""
    return f"$.{job_id}[{seq}]"


def with_checksum(text: bytes, place: str) -> bytes:
    """Add a checksum as the last member of a JSON object.

    >>> with_checksum(b'{"seq":8}', "$.job-1[8]")
    b'{"seq":8,"crc":"a060ee9a"}'
    """
    body = text[:-1]
    return b'%b%b%08x"}' % (body, _NAME, _checksum(body, place))


def _checksum(body: bytes, place: str) -> int:
    return crc32(body, crc32(place.encode(errors="surrogatepass")))


def without_checksum(data: object, place: str) -> bytes:
    """Check and remove the checksum of a JSON object's text.

    Raises `SavedStateError` if the checksum is missing or does not match.

    >>> row = with_checksum(b'{"seq":8}', "$.job-1[8]")
    >>> without_checksum(row, "$.job-1[8]")
    b'{"seq":8}'
    >>> without_checksum(row, "$.job-1[9]")
    Traceback (most recent call last):
    routilux.CorruptStateError: $.job-1[9]: was damaged: its checksum does not match
    """
    if not isinstance(data, bytes):  # a user's store may return anything
        raise CorruptStateError(place, f"is of type {type(data).__name__}, not bytes")
    if not data[-CHECKSUM_BYTES:].startswith(_NAME):
        refuse_newer(data, place)
        raise CorruptStateError(
            place, "has no checksum at its end: it is cut off, or was not written by routilux"
        )
    body = data[:-CHECKSUM_BYTES]
    if data != b'%b%b%08x"}' % (body, _NAME, _checksum(body, place)):
        raise CorruptStateError(place, "was damaged: its checksum does not match")
    return body + b"}"


def dump(job_id: str, commit: Commit, *, first: bool) -> bytes:
    """Return the row of a commit.

    `first` adds the version. Raises `UnserializableError` for a value that can't be saved.
    """
    text = commit.dumps()
    if first:
        text = codec.bounded(f'{{"format":{codec.quoted(FORMAT)},{text[1:]}')
    return with_checksum(text.encode(), row_place(job_id, commit.seq))


def load_rows(rows: Sequence[bytes], job_id: str, after: int) -> Iterator[tuple[str, object]]:
    """Yield the path and the decoded data of each row.

    The first row is commit `after` + 1. Raises `SavedStateError` with the path of a refused row.

    >>> rows = [with_checksum(b'{"seq":%d}' % seq, f"$.job-1[{seq}]") for seq in (8, 9)]
    >>> list(load_rows(rows, "job-1", after=7))
    [('$.job-1[8]', {'seq': 8}), ('$.job-1[9]', {'seq': 9})]
    """
    for first in range(0, len(rows), _AT_ONCE):
        batch = rows[first : first + _AT_ONCE]
        start = after + first + 1
        places = [row_place(job_id, start + number) for number in range(len(batch))]
        parts = _parts(batch, places, first=start == 1)
        for number, row in enumerate(batch):
            place = places[number]
            if parts is None:
                yield (
                    place,
                    loads_versioned(
                        without_checksum(row, place), place, required=start + number == 1
                    ),
                )
            else:
                yield place, parts[number]


def _parts(rows: Sequence[bytes], places: Sequence[str], *, first: bool) -> list[object] | None:
    try:
        texts = [*map(without_checksum, rows, places)]
        if sum(map(len, texts)) > _MOST_BYTES:
            return None
        found: list[object] = codec.loads(b"[%b]" % (b',"%b",' % _BETWEEN).join(texts))
    except SavedStateError:
        return None
    # Texts that are no objects by themselves might become some when they are joined; then the marks
    # between them, which no text can know, are at other places.
    if found[1::2] != [_BETWEEN.decode()] * (len(rows) - 1):
        return None
    parts = found[::2]
    version = None if first else FORMAT
    for part in parts:
        if type(part) is not dict or part.pop("format", version) != FORMAT:
            return None
        version = FORMAT
    return parts
