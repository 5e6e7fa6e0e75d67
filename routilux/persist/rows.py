"""The rows of a job: commits as a store keeps them, and what is read from them again.

Laws:
- The row by which somebody begins to write says in which version; it holds for those that follow.
- Many rows are read at once, which costs two thirds of reading one after the other. Where one of
  them is not as this version writes it, each is read by itself, and an error names its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from routilux import codec
from routilux.errors import SavedStateError
from routilux.persist.upgrades import FORMAT, ROWS, VERSION, loaded_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from routilux.core.records import Commit

__all__ = ["read", "written"]

_AT_ONCE: Final = 64
_MOST_BYTES: Final = 1 << 20  # at once; large rows gain nothing


def written(commit: Commit, *, begins: bool) -> bytes:
    """Return the row of a commit, by which somebody `begins` to write or not.

    Raises `UnserializableError` with the path of what has no saved form.
    """
    text = commit.dumps()
    if begins:
        text = codec.bounded(f'{{"format":{codec.quoted(FORMAT)},{text[1:]}')
    return text.encode()


def read(
    rows: Sequence[bytes], job_id: str, after: int, version: int
) -> Iterator[tuple[str, object]]:
    """Read the rows that follow commit `after`: of each, where it stands, and its data.

    `version` is that of the rows before. Raises `SavedStateError` with the place of a row.

    >>> list(read([b'{"seq":8}', b'{"seq":9}'], "job-1", 7, version=1))
    [('$.job-1[8]', {'seq': 8}), ('$.job-1[9]', {'seq': 9})]
    """
    for first in range(0, len(rows), _AT_ONCE):
        batch = rows[first : first + _AT_ONCE]
        parts = _parts(batch) if version == VERSION else None
        for number, row in enumerate(batch):
            place = f"$.{job_id}[{after + first + number + 1}]"
            if parts is None:
                data, version = loaded_part(row, place, version, ROWS)
            else:
                data = parts[number]
            yield place, data


def _parts(rows: Sequence[bytes]) -> list[object] | None:
    if not all(map(_looks_whole, rows)) or sum(map(len, rows)) > _MOST_BYTES:
        return None
    try:
        parts: list[object] = codec.loads(b"[%b]" % b",".join(rows))
    except SavedStateError:
        return None
    if len(parts) != len(rows):
        return None
    for part in parts:
        if type(part) is not dict or part.pop("format", FORMAT) != FORMAT:
            return None
    return parts


def _looks_whole(row: object) -> bool:
    # What is no object by itself might become one together with what stands beside it.
    return isinstance(row, bytes) and row.startswith(b"{") and row.endswith(b"}")
