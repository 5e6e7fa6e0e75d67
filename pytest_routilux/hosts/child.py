"""`Child`: a child process that never outlives its parent.

Invariants:
- The whole process group of a child is killed before the child is reaped. Until then no other
  process can get the group's number.
- A child holds the reading end of a pipe, and its parent the only writing end. When that end
  closes, for any reason, the child kills itself. So it never outlives a killed test run.
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

_MOST_KEPT: Final = 1 << 20  # bytes of output
_MOST_LINES: Final = 40  # that a message shows
_WIDEST: Final = 400


class Child:
    """A fresh interpreter that runs `python -m module arguments… FD`.

    The last argument, `FD`, is the pipe that the module passes to `die_with_parent`.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self._lock = threading.Lock()
        self._output = folder / "output.txt"
        lifeline, self._held = os.pipe()
        try:
            with self._output.open("wb") as output:
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
            # Opened now, since the number of a reaped process may belong to another one.
            self._end = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        except BaseException:
            os.close(self._held)
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """The id of the child process and of its process group."""
        return self._process.pid

    @property
    def status(self) -> int:
        """The child's exit status, in the form of `Popen.returncode`."""
        status = self._process.returncode
        assert status is not None
        return status

    def ends_within(self, seconds: float) -> bool:
        """Return whether the child ends within `seconds`."""
        if self._end is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.returncode is not None
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def kill(self) -> None:
        """Kill the process group, and reap the child."""
        with self._lock:
            if self._process.returncode is not None:
                return
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._held)

    def close(self) -> None:
        """Close the process handle."""
        if self._end is not None:
            os.close(self._end)  # once, after `kill` and all calls of `ends_within`

    def output(self) -> str:
        """Return the last mebibyte of the child's output."""
        with self._output.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_KEPT))
            return file.read().decode(errors="replace")


def quoted(output: str) -> str:
    """Quote the last lines of `output` for a message.

    >>> print(quoted("one\\ntwo"))
      | one
      | two
    """
    lines = output.splitlines()
    omitted = len(lines) - _MOST_LINES
    head = [f"… {omitted} lines before these"] if omitted > 0 else []
    return "\n".join(f"  | {shorten(line, _WIDEST)}" for line in head + lines[-_MOST_LINES:])


def end_text(status: int) -> str:
    """Describe the end of a process with this exit `status`.

    >>> end_text(3), end_text(-9)
    ('exit status 3', 'SIGKILL')
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def die_with_parent(lifeline: int) -> None:
    """Start a thread that kills this process group when `lifeline` closes."""
    os.set_inheritable(lifeline, False)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
