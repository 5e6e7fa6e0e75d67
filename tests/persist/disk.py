"""A disk with planned failures: every system call of a writer has a number.

While it is entered, `Disk` records each call of `os` and lets it through. At chosen numbers it
fails before or after the call, does half of it, or kills the process. `left_by_power_loss` lists
what a loss of power may leave of the recorded calls.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Self
from unittest import mock

Real = Callable[..., Any]
Fault = Callable[..., Any]  # does something else instead of a call, with its arguments
_CALLS: Final = ("open", "write", "fsync", "close", "replace", "unlink")


def fails(number: int) -> Fault:
    """The call is not made."""

    def fault(real: Real, *args: Any) -> Any:
        raise OSError(number, os.strerror(number), *args[:1])

    return fault


def fails_late(number: int) -> Fault:
    """The call is made, and reported as failed."""

    def fault(real: Real, *args: Any) -> Any:
        made = real(*args)
        if real.__name__ == "open":
            os.close(made)  # the caller gets no handle to close
        raise OSError(number, os.strerror(number))

    return fault


def torn(then: Fault) -> Fault:
    """Half of the bytes are written before something else happens."""

    def fault(real: Real, handle: int, data: memoryview) -> Any:
        real(handle, data[: len(data) // 2])
        return then(real, handle, data)

    return fault


def short(real: Real, handle: int, data: memoryview) -> Any:
    """A third of the bytes is written, which is no failure."""
    return real(handle, data[: len(data) // 3 + 1])


def dies(real: Real, *args: Any) -> Any:
    """The process is killed before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_late(real: Real, *args: Any) -> Any:
    """The process is killed after the call."""
    real(*args)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made: its name, its file or folder, its bytes or target."""

    name: str
    path: str
    data: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.name} {'folder' if Path(self.path).is_dir() else 'file'}"


class Disk:
    """Records the calls, and replaces those whose number is in `faults`."""

    def __init__(self, faults: dict[int, Fault] | None = None) -> None:
        self.faults = faults or {}
        self.calls: list[Call] = []
        self._paths: dict[int, str] = {}
        self._patch = mock.patch.multiple(
            os, **{name: self._between(name, getattr(os, name)) for name in _CALLS}
        )

    def __enter__(self) -> Self:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()

    def _between(self, name: str, real: Real) -> Real:
        def call(*args: Any) -> Any:
            path = self._paths.get(args[0], "") if type(args[0]) is int else os.fspath(args[0])
            data = bytes(args[1]) if name == "write" else b""
            target = os.fspath(args[1]) if name == "replace" else ""
            fault = self.faults.get(len(self.calls))
            self.calls.append(Call(name, str(path), data, target))
            made = fault(real, *args) if fault else real(*args)
            if name == "open":
                self._paths[made] = str(path)
            return made

        call.__name__ = name
        return call


def left_by_power_loss(calls: list[Call]) -> Iterator[dict[str, bytes]]:
    """Every content that the files may have when the power fails after these calls.

    Bytes that were not flushed may be there in whole, in part or not at all. Renames and new names
    that were not flushed with their folder happened in their order, up to any of them.
    """
    cached: dict[str, bytes] = {}  # by the name under which a file was made
    durable: dict[str, bytes] = {}
    names: list[tuple[str, str]] = []  # each name, and the file behind it
    kept = 0
    for call in calls:
        if call.name == "open" and not Path(call.path).is_dir():
            cached[call.path] = durable[call.path] = b""
            names.append((call.path, call.path))
        elif call.name == "write":
            cached[call.path] += call.data
        elif call.name == "replace":
            names += [(call.target, call.path), (call.path, "")]
        elif call.name == "fsync" and call.path in cached:
            durable[call.path] = cached[call.path]
        elif call.name == "fsync":
            kept = len(names)
    files = list(cached)
    choices = [
        {durable[file], cached[file], durable[file] + cached[file][len(durable[file]) :][:1_000]}
        for file in files
    ]
    for made in range(kept, len(names) + 1):
        for contents in product(*choices):
            content = dict(zip(files, contents, strict=True))
            found = dict(names[:made])
            yield {name: content[file] for name, file in found.items() if file}
