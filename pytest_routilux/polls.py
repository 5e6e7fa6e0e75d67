"""Whether a thread polls: stands in a wait with nothing done between one wait and the next.

Laws:
- A poll is a line of the user that by itself calls a wait of the standard library, a real sleep or
  a lock. Where a library waits for the user, its wait may bring something, and is no poll.
- One look proves nothing. Whoever is found in the wait of one and the same line at every look, and
  computes for less than a quarter of the time, does nothing but wait.
- Looking runs no code of the user: what a line calls is read off its source and looked up.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
from itertools import islice
from types import BuiltinFunctionType, MethodDescriptorType, ModuleType
from typing import TYPE_CHECKING, Final

from pytest_routilux.blocked import stack_of
from pytest_routilux.places import users_frame

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["polled_line"]

_WAITING: Final = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "queue", "selectors", "subprocess", "threading"}
)
_COMPILED: Final = frozenset(
    {"RLock.acquire", "SimpleQueue.get", "epoll.poll", "lock.acquire", "poll.poll", "select"}
    | {"sleep"}
)
_FREEZE: Final = "pytest_routilux.freeze"


def polled_line(frame: FrameType) -> tuple[CodeType, int] | None:
    """Return the user's line whose wait a thread is in; None where it is in none."""
    stack = stack_of(frame)
    at = users_frame(reversed(stack))
    if at is None:
        return None
    stands, line = at.f_lasti, at.f_lineno  # before anything else: it may go on meanwhile
    inner = stack[stack.index(at) + 1 :]
    waits = all(map(_waits, inner)) if inner else _calls_a_wait(at, stands)
    return (at.f_code, line) if waits else None


def _waits(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    if module == _FREEZE:
        return frame.f_code.co_name in ("read", "_sleep")  # of a sleep that stays real
    return module.partition(".")[0] in _WAITING


def _calls_a_wait(frame: FrameType, at: int) -> bool:
    """Return whether what the frame calls there, which has no frame of its own, only waits."""
    called = _called(frame, at)
    return (
        isinstance(called, BuiltinFunctionType | MethodDescriptorType)
        and called.__qualname__ in _COMPILED
    )


def _called(frame: FrameType, at: int) -> object:
    """Return what a frame is calling at one of its instructions, or None."""
    code = frame.f_code
    position = next(islice(code.co_positions(), at // 2, None), (None,) * 4)
    first, last, begin, end = position
    if first is None or last is None or begin is None or end is None:
        return None  # python -X no_debug_ranges
    lines = [
        linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)
    ]
    lines[-1] = lines[-1][:end]  # in bytes, and first, for where the line is one and the same
    lines[0] = lines[0][begin:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except SyntaxError:  # the file has changed since
        return None
    return _looked_up(call.func, frame) if isinstance(call, ast.Call) else None


def _looked_up(name: ast.expr, frame: FrameType) -> object:
    if isinstance(name, ast.Name):
        for names in (frame.f_locals, frame.f_globals, vars(builtins)):
            if name.id in names:
                found: object = names[name.id]
                return found
    if isinstance(name, ast.Attribute):
        owner = _looked_up(name.value, frame)
        if isinstance(owner, ModuleType):
            return vars(owner).get(name.attr)
        return inspect.getattr_static(owner, name.attr, None)
    return None
