"""The place of a process: each thread writes its place to memory that outlives the process.

Invariants:
- The process kills itself at a place by SIGKILL, or a timer of the kernel ends it at any
  instruction by SIGALRM, which nothing handles.
- The parent process reads the place from the memory afterwards. A place ranks above the places
  around it; of several threads, the place with the highest rank counts.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

IDLE = "idle: nothing to drive"
BACKOFF = "in a backoff wait"
HANDLER = "in a handler"
EFFECT = "in an effect, before its record"
OPENING = "opening a connection"
BETWEEN = "between these"

_RANKS = (IDLE, BACKOFF, HANDLER, EFFECT)  # below all writes, these below all statements
_WRITE, _STATEMENT, _KILLED = range(len(_RANKS), len(_RANKS) + 3)
_WIDTH = 64
_THREADS = 64


class Places:
    """The places of one process at a time, a fork of the process that created this."""

    def __init__(self) -> None:
        self._board = mmap.mmap(-1, _WIDTH * _THREADS)
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all places, before a fork."""
        self._board[:] = bytes(len(self._board))
        self._mine = threading.local()
        self._slots = 1  # the first is for the place of a kill
        self._aim: tuple[str, int] | None = None
        self._within_ns = 0
        self._signal = signal.SIGKILL
        self.passed: Counter[str] = Counter()
        # Held while the process is suspended, so that no thread is suspended in a write.
        self.quiet: AbstractContextManager[Any] = nullcontext()

    def last(self) -> str:
        """Return where the process was when it ended."""
        entries = (self._board[i : i + _WIDTH] for i in range(0, len(self._board), _WIDTH))
        return max(entries).rstrip(b"\0")[1:].decode() or BETWEEN

    # --- in the process itself --------------------------------------------------------------------

    def aim(self, place: str, nth: int, within_ns: int = 0, *, stops: bool = False) -> None:
        """Be killed when `place` is entered for the n-th time from now, or soon after.

        `stops` makes it a SIGSTOP.
        """
        with self._lock:
            self._aim = place, self.passed[place] + nth
            self._within_ns = within_ns
            self._signal = signal.SIGSTOP if stops else signal.SIGKILL

    def enter(self, place: str) -> None:
        """Be at a place from now on."""
        self._write(self._slot(), place)
        with self._lock:
            self.passed[place] += 1
            here = self._aim == (place, self.passed[place])
        if here and self._within_ns:
            kill_in(self._within_ns)
        elif here:
            if self._signal is signal.SIGKILL:
                self._write(0, place, _KILLED)
                os.kill(os.getpid(), self._signal)
            else:
                with self.quiet:  # this thread stops at once, the others soon
                    signal.pthread_kill(threading.get_ident(), self._signal)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Be at a place in the block, and then at the place before it."""
        slot = self._slot()
        before = self._board[slot : slot + _WIDTH]
        self.enter(place)
        try:
            yield
        finally:
            self._board[slot : slot + _WIDTH] = before

    def _slot(self) -> int:
        if not hasattr(self._mine, "slot"):
            with self._lock:
                self._mine.slot = self._slots * _WIDTH
                self._slots += 1
        return self._mine.slot

    def _write(self, slot: int, place: str, rank: int | None = None) -> None:
        rank = _rank(place) if rank is None else rank
        # The rank is a digit, so that the highest entry is the greatest text.
        self._board[slot : slot + _WIDTH] = f"{rank}{place}".encode().ljust(_WIDTH, b"\0")


def _rank(place: str) -> int:
    if place in _RANKS:
        return _RANKS.index(place)
    return _WRITE if place.startswith(("before ", "after ")) else _STATEMENT


def kill_in(length_ns: int) -> None:
    """Let the kernel end this process after this time, by a SIGALRM that nothing handles."""
    signal.setitimer(signal.ITIMER_REAL, max(length_ns, 1_000) / 10**9)
