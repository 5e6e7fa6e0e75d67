"""Writes a file atomically: completely or not at all.

Invariants:
- If the writing breaks off, at any system call, the file is the old one or the new one.
- The data are written to a hidden file in the same folder, which only its owner can read (mode 0600
  from the start). It is flushed and renamed, and the folder is flushed: then the new file survives
  a loss of power.
- A symbolic link stays: the file that it leads to is replaced, in that file's folder.
- A process that fails removes the hidden file. A process that is killed may leave it (`.NAME.…`).
- An error is the system's own, and says which file it is, whether it changed, and what to do.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_OLD: Final = "the file has not changed"
_NEW: Final = "the new file is there, but a loss of power might bring the old file back"
_NO_ROOM: Final = "make room and write the file again"
_NO_RIGHT: Final = "let this user write in the folder, or choose another folder"
_CURES: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "raise the limit for the size of files (ulimit -f) and write the file again",
    errno.EIO: "the disk or the share fails; write the file to another disk",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: "create the file's folder first",
    errno.ENOTDIR: "create the file's folder first",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.ELOOP: "remove the symbolic link, which leads to itself",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to the file at `path` completely, or leave the old file unchanged.

    Raises `OSError` with the name of the file, whether it changed, and what to do.

    >>> write_atomically("/nowhere/job.json", b"{}")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory; the file has not changed: create the...
    """
    with replacing(path) as (handle, _):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield the handle and the name of a hidden file, which replaces the one at `path` at the end.

    If the block raises, the old file is unchanged. Raises `OSError` as `write_atomically`.
    """
    target = Path(path)
    found = _OLD
    try:
        if target.is_symlink():
            target = Path(os.path.realpath(target))
            if target.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
        try:
            try:
                yield handle, name
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(name, target)  # noqa: PTH105  # exactly one system call
        except BaseException:
            if not os.path.lexists(name):  # a share may report a failure after the rename
                found = _NEW
            with suppress(OSError):  # the first error is the one to report
                os.unlink(name)  # noqa: PTH108  # see above
            raise
        found = _NEW
        if os.name != "nt":  # Windows can't flush a folder
            # Otherwise a loss of power may undo the rename.
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        if error.errno is None:
            raise  # it was raised in the block, and says what to do
        cure = _CURES.get(error.errno, "write the file again")
        message = f"{error.strerror}; {found}: {cure}"
        raise OSError(error.errno, message, os.fspath(target)) from None
