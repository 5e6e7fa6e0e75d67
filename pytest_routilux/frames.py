"""Finds user code in stack frames, and hides routilux in tracebacks.

Invariants:
- A traceback hides our frames if the error names its culprit and what to do. It shows them if the
  error may be a bug of ours, and with `--full-trace`.
- Frames of user code are always shown, also between ours: a handler, an observer, a `build`.
"""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from routilux import IllegalTransitionError, RoutiluxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType, TracebackType

    import pytest

    from routilux import Flow

_OURS: Final = frozenset({"routilux", "pytest_routilux", "pytest", "_pytest", "freezegun"})
_HIDDEN: Final = frozenset({"routilux", "pytest_routilux"})
_LIBRARY: Final = tuple(
    f"{form(place)}{os.sep}"
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (place := sysconfig.get_path(name))
    for form in (os.path.abspath, os.path.realpath)
)


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield `frame` and all frames of its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_users(module: str, file: str | None) -> bool:
    """Return whether a module is user code, not a library."""
    if file is None or module.partition(".")[0] in _OURS or file.startswith("<"):
        return False
    return not file.startswith(_LIBRARY)


def users_modules() -> list[ModuleType]:
    """Return all imported modules that are user code."""
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and is_users(name, module.__dict__.get("__file__"))
    ]


def users_frame(frames: Iterable[FrameType]) -> FrameType | None:
    """Return the first frame of user code; None if there is none."""
    for frame in frames:
        if is_users(frame.f_globals.get("__name__", ""), frame.f_code.co_filename):
            return frame
    return None


def object_named(name: str) -> object:
    """Return the object called `module:qualname`; None if not loaded."""
    module, _, qualname = name.partition(":")
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def definition_of(function: Callable[..., object]) -> str:
    """Return the `file:line` of a function's definition; "" if unknown."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def handler_of(flow: Flow, routine_id: str | None) -> str:
    """Return the `file:line` of a routine's first handler; "" if unknown."""
    routine = flow.routines.get(routine_id or "")
    places = [] if routine is None else [definition_of(s.handler) for s in routine.slots.values()]
    return next(filter(None, places), "")


def place_of(frame: FrameType) -> str:
    """Return the `file:line` that `frame` runs."""
    return seen_from_here(f"{frame.f_code.co_filename}:{frame.f_lineno}")


def is_engine_bug(error: BaseException) -> bool:
    """Return whether the engine itself failed: its code raised, and not to name a culprit."""
    if isinstance(error, IllegalTransitionError):
        return True
    if not isinstance(error, Exception) or isinstance(error, RoutiluxError | OSError):
        return False
    entry = _innermost(error)
    module = "" if entry is None else str(entry.tb_frame.f_globals.get("__name__"))
    # A store raises what its database raises.
    return module.partition(".")[0] == "routilux" and not module.startswith("routilux.persist.")


def raised_at(error: BaseException) -> str:
    """Return the `file:line` that raised an error; "" if unknown."""
    entry = _innermost(error)
    return "" if entry is None else f"{entry.tb_frame.f_code.co_filename}:{entry.tb_lineno}"


def _innermost(error: BaseException) -> TracebackType | None:
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    return entry


def seen_from_here(where: str) -> str:
    """Make a `file:line` in the current folder relative; keep others."""
    path = Path(where)  # its last part contains the line
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else where


def hide_ours(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Hide routilux's frames in the traceback of a user's error."""
    if not _names_its_culprit(excinfo):
        return
    for entry in excinfo.traceback:
        names = entry.frame.f_globals
        if str(names.get("__name__")).partition(".")[0] in _HIDDEN:
            names["__tracebackhide__"] = _names_its_culprit


def show_notes(error: BaseException) -> None:
    """Add the notes of a failure to its text, such as the example with which Hypothesis failed.

    pytest shows the text alone if the failure has no traceback.
    """
    import pytest  # here, so that a new host process does not load it

    if isinstance(error, pytest.fail.Exception) and not error.pytrace:
        notes = getattr(error, "__notes__", ())
        if notes and error.msg is not None and notes[0] not in error.msg:
            error.msg = "\n".join([error.msg, "", *notes])


def _names_its_culprit(excinfo: pytest.ExceptionInfo[BaseException] | None) -> bool:
    if excinfo is None or issubclass(excinfo.type, IllegalTransitionError):
        return False
    if issubclass(excinfo.type, RoutiluxError | TimeoutError):  # by run.wait(timeout)
        return True
    return excinfo.type.__module__.partition(".")[0] == "pytest_routilux"
