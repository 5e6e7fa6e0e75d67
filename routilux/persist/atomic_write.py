"""A file that is written in one piece or not at all.

Laws:
- Whatever breaks off the writing, and at whatever call, the file is the old one or the new one.
- It is written beside its place for its owner alone (mode 0600 from its first moment), flushed,
  renamed, and the folder is flushed: when that is done, a loss of power leaves the new one.
- A process that lives on leaves nothing beside it. One that is killed may leave a hidden file,
  `.NAME.…`, which nobody reads.
- An error is the system's own, and tells the file, what stands there now, and what to do.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["write_atomically"]

_OLD: Final = "nothing has changed there"
_NEW: Final = "the new file stands there, but a loss of power might bring the old one back"
_NO_ROOM: Final = "make room for it and write it again"
_NO_RIGHT: Final = "let this user write in its folder, or write it elsewhere"
_CURES: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "raise the limit for the size of files (ulimit -f) and write it again",
    errno.EIO: "its disk or share fails: write it to another one",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "make its folder first",
    errno.EISDIR: "a folder stands there; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Put a file with this content in the place of `path`, or leave the place as it is.

    Raises `OSError` with the file's name, saying what stands there and what to do.

    >>> write_atomically("/nowhere/job.json", b"{}")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory; nothing has changed there: make its...
    """
    target = Path(path)
    stands = _OLD
    try:
        name = _written_beside(target, data)
        try:
            os.replace(name, target)  # noqa: PTH105  # one call to the system, and only that
        except BaseException:
            if not os.path.lexists(name):  # a share may say that it failed when it is done
                stands = _NEW
            _discard(name)
            raise
        stands = _NEW
        _flush_folder(target.parent)
    except OSError as error:
        cure = _CURES.get(error.errno, "write it again")
        told = f"{error.strerror}; {stands}: {cure}"
        raise OSError(error.errno, told, os.fspath(target)) from None


def _written_beside(target: Path, data: bytes) -> str:
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        _discard(name)
        raise
    return name


def _discard(name: str) -> None:
    with suppress(OSError):  # what went wrong before is what has to be told
        os.unlink(name)  # noqa: PTH108  # see above


def _flush_folder(folder: Path) -> None:
    # Without this the rename itself may be lost with the power. Windows can't flush a folder.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
