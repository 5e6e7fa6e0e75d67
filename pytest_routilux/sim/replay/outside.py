"""Refuses calls that leave the process, while a recorded step runs again.

Invariants:
- A call is refused before it happens: a connection, a message, a process, a change of a file.
- Reading a file, and the sockets that an event loop makes for itself, are allowed.
- Only code that runs inside `refused` is affected; the hook is added once and then does nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import outwards, place_of, users_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

_CALLS: Final = frozenset(
    (
        *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo"),
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
        *("os.chmod", "os.chown", "os.utime", "os.kill", "os.putenv", "os.unsetenv"),
        *("shutil.rmtree", "shutil.move", "sqlite3.connect", "smtplib.connect", "ftplib.connect"),
    )
)
_CHANGES: Final = frozenset("wax+")


class OutsideCall(BaseException):
    """Raised in a handler in place of a call that leaves the process."""


class Refusal:
    """The first refused call of a step, and its line; "" if there was none."""

    def __init__(self) -> None:
        self.call = ""


_refusals: Final[list[Refusal]] = []  # of the step that runs again; empty outside of one
_hooked: Final[list[bool]] = []


@contextmanager
def refused() -> Iterator[Refusal]:
    """Refuse calls that leave the process in the `with` block."""
    if not _hooked:
        sys.addaudithook(_refuse)  # it can't be removed
        _hooked.append(True)
    refusal = Refusal()
    compiles = sys.dont_write_bytecode
    _refusals.append(refusal)
    sys.dont_write_bytecode = True  # a late import writes no file
    try:
        yield refusal
    finally:
        sys.dont_write_bytecode = compiles
        _refusals.pop()


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if not _refusals or not (event in _CALLS or (event == "open" and _writes(*args[1:3]))):
        return
    frame = users_frame(outwards(sys._getframe(1)))
    if frame is None:
        return  # of an event loop, a debugger or a coverage tool
    refusal = _refusals[-1]
    refusal.call = refusal.call or f"{event}() at {place_of(frame)}"
    raise OutsideCall(refusal.call)


def _writes(mode: object = None, flags: object = 0) -> bool:
    if isinstance(mode, str):
        return not _CHANGES.isdisjoint(mode)
    return isinstance(flags, int) and bool(flags & 3)  # O_WRONLY or O_RDWR
