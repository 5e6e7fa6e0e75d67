"""Raises `KeyboardInterrupt` at the n-th place of a thread at which CPython may see a signal.

CPython looks for signals and for exceptions of other threads when a Python function starts, when a
call of a C function returns, and when a loop goes back; nearly every loop makes a call. So these
are the places: each start of a function, and each return of a C function, whose result is then
lost. That counts all code, also the standard library's.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tests.routines import PATIENCE


class Interrupter:
    """Raises once, at the n-th place since `armed`; without `nth` it only counts the places."""

    def __init__(self, nth: int = 0) -> None:
        self.nth = nth
        self.passed = 0
        self.place = ""

    def where(self) -> str:
        return f"place {self.nth}, {self.place}"

    @contextmanager
    def armed(self) -> Iterator[None]:
        gc.disable()  # what it calls is another thing each time
        sys.setprofile(self._count)
        try:
            yield
        finally:
            sys.setprofile(None)
            gc.enable()

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code.co_name in _NOT_OURS:
            return
        if getattr(arg, "__name__", "") == "setprofile":
            return
        file = frame.f_code.co_filename
        if file == threading.__file__ and _starts_a_thread(frame):
            return
        self.passed += 1
        if self.passed == self.nth:
            sys.setprofile(None)
            after = f" after {arg.__qualname__}" if event == "c_return" else ""
            code = frame.f_code
            self.place = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}{after}"
            raise KeyboardInterrupt


def _starts_a_thread(frame: FrameType | None) -> bool:
    """Whether `threading` waits for a thread to start, which an interrupt may stop for ever."""
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        if frame.f_code is threading.Thread.start.__code__:
            return True
        frame = frame.f_back
    return False


_NOT_OURS = ("armed", "__del__", "_remove", "<genexpr>")  # what these raise is lost


def in_a_thread(does: Callable[[], None], what: Callable[[], str]) -> None:
    """Call it in a thread of its own; fail if it raises, or hangs."""
    raised: list[BaseException] = []

    def calls() -> None:
        try:
            does()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=calls, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        faulthandler.dump_traceback()
        raise AssertionError(f"it hangs after an interrupt at {what()}")
    for error in raised:
        raise AssertionError(f"after an interrupt at {what()}: {error!r}") from error
