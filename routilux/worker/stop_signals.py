"""Handles SIGTERM and SIGINT (Ctrl-C) while a worker runs.

Invariants:
- A signal is only noted, and the worker is woken. It interrupts no statement of the worker, so the
  worker can give back every job that it took.
- The second signal restores the earlier handlers. So a third one acts as if there were no worker.
- A forked child has the earlier handlers. A SIGTERM that arrives during the fork is delivered when
  they are restored. (A SIGINT at that moment is lost: Python ignores what a fork hook raises.)
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

if sys.platform != "win32":
    import os

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
_DEFAULTS: Final = (signal.default_int_handler, signal.SIG_DFL)


class StopSignals:
    """The signals that stop a worker: SIGTERM and SIGINT.

    Does nothing if the worker does not run in the main thread. A SIGINT that the program ignores
    or handles itself is left to the program. Each signal calls `wake` in another thread.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._before: dict[signal.Signals, Any] = {}
        self._received: list[int] = []

    def __bool__(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self._received)

    @property
    def first(self) -> str:
        """The name of the first signal that has arrived."""
        return signal.Signals(self._received[0]).name

    @property
    def repeated(self) -> bool:
        """Whether a second signal has arrived."""
        return len(self._received) > 1

    @property
    def interrupted(self) -> bool:
        """Whether a SIGINT has arrived."""
        return signal.SIGINT in self._received

    def install(self) -> None:
        """Handle the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        _installed.append(self)
        for number in _NUMBERS:  # SIGINT first: it may be raised until it is handled here
            before = signal.getsignal(number)
            if number == signal.SIGTERM or before in _DEFAULTS:
                self._before[number] = before
                signal.signal(number, self._note)

    def remove(self) -> None:
        """Restore the earlier handlers; a second call does nothing."""
        for number in reversed(_NUMBERS):
            if number in self._before:
                before = self._before[number]
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()
        if self in _installed:
            _installed.remove(self)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)
        if self.repeated:
            self.remove()
        # Not in this thread: it may hold a lock that `wake` needs, also one of `threading`.
        with suppress(RuntimeError):  # the system has no thread left
            _thread.start_new_thread(self._wake, ())


_installed: Final[list[StopSignals]] = []
_masks: Final = threading.local()  # of the threads that fork now


def _hold_back() -> None:
    _masks.before = (
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if _installed else None
    )


def _let_through() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _begin_process() -> None:
    while _installed:
        _installed[-1].remove()
    _let_through()


if sys.platform != "win32":
    os.register_at_fork(
        before=_hold_back, after_in_parent=_let_through, after_in_child=_begin_process
    )
