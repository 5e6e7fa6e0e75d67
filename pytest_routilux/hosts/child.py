"""A child process with bounded output and a real time limit, which dies with its parent.

Invariants:
- A child's whole process group is killed at its end, before the child is reaped: until then the
  group's number belongs to no other process.
- A child holds the reading end of a pipe, and its parent the only writing end. When that end
  closes, for whatever reason, the child kills itself. So it outlives no killed test run.
- Its output on both streams goes to one file, in order.
- Waiting uses the kernel's clock, which no test freezes.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_routilux.text import shorten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Child", "die_with_parent", "shown"]

_MOST_KEPT: Final = 1 << 20  # bytes of output
_MOST_LINES: Final = 40  # that a message shows
_WIDEST: Final = 400


class Child:
    """A fresh interpreter that runs a module: `python -m module arguments… FD`.

    The last argument is the pipe that it has to give to `die_with_parent`.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self._lock = threading.Lock()
        self._said = folder / "output.txt"
        lifeline, self._held = os.pipe()
        try:
            with self._said.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", "-P", "-m", module, *arguments, str(lifeline)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environ,
                    start_new_session=True,
                    pass_fds=[lifeline],
                )
            # Now, since a number that was reaped may belong to another.
            self._end = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        except BaseException:
            os.close(self._held)
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group too."""
        return self._process.pid

    @property
    def status(self) -> int:
        """Its exit status, or minus the signal that killed it."""
        status = self._process.returncode
        assert status is not None
        return status

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end; return whether it ended in time. It is not reaped."""
        if self._end is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.returncode is not None
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def kill(self) -> None:
        """Kill what is left of it and of its children, and reap it."""
        with self._lock:
            if self._process.returncode is not None:
                return
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._held)

    def close(self) -> None:
        """Release its handle; call this once, after `kill`, when no thread waits for its end."""
        if self._end is not None:
            os.close(self._end)

    def output(self) -> str:
        """Return its output, or the last mebibyte of it."""
        with self._said.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_KEPT))
            return file.read().decode(errors="replace")


def shown(output: str) -> str:
    """Return the last lines of an output for a message, each of them marked.

    >>> print(shown("one\\ntwo"))
      | one
      | two
    """
    lines = output.splitlines()
    told = [f"  | {shorten(line, _WIDEST)}" for line in lines]
    if len(told) > _MOST_LINES:
        told = [f"  | … {len(told) - _MOST_LINES} lines before these", *told[-_MOST_LINES:]]
    return "\n".join(told)


def die_with_parent(lifeline: int) -> None:
    """Kill the process group of this process as soon as the other end of a pipe is closed."""
    os.set_inheritable(lifeline, False)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
