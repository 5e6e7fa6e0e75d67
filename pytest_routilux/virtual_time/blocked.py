"""Describes where and in which step a thread is blocked.

Invariants:
- The line is the innermost line of user code. The call is the function that it calls or awaits.
- The report changes nothing: it reads the frames of other threads and releases them.
"""

from __future__ import annotations

import linecache
import sys
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import outwards, place_of, users_frame
from routilux.engine.step import run_async_step, run_step

if TYPE_CHECKING:
    from types import FrameType

_MOST_LINES: Final = 12
_RUN_STEP: Final = {run_step.__code__, run_async_step.__code__}


def blocked_report(frame: FrameType, who: str, seconds: float) -> str:
    """Return the report on a thread that is blocked in real time."""
    stack = _stack_of(frame)
    lines = [
        f"{who} is blocked: it has neither ended nor waited on its virtual clock for {seconds:g} s"
    ]
    at = users_frame(reversed(stack))
    if at is not None:
        lines.append(f"  at {_line(at)}")
        inner = stack[stack.index(at) + 1 :]
        if inner:
            lines.append(f"  in {_name(inner[0])}")
    return "\n".join(
        [
            *lines,
            "  to let time pass, call self.ctx.sleep(seconds); to wait for other work, let that",
            "  work emit an event; to allow longer waits, raise routilux_blocked_after (seconds;",
            "  0: no limit)",
            "  the stack of the blocked thread, innermost last:",
            *(f"    {_shown(f)} in {f.f_code.co_qualname}" for f in stack[-_MOST_LINES:]),
        ]
    )


def waits_at(frame: FrameType) -> str:
    """Return the user's line in which the innermost step of a thread waits."""
    stack = _stack_of(frame)
    at = users_frame(reversed(stack))
    return "an unknown line" if at is None else _line(at)


def _line(frame: FrameType) -> str:
    source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{place_of(frame)}: {source}"


def _stack_of(frame: FrameType) -> list[FrameType]:
    """Return the frames of the innermost step, without the engine's frames."""
    inside = list(takewhile(lambda outer: outer.f_code not in _RUN_STEP, outwards(frame)))
    inside.reverse()
    stack = inside + _awaited(inside)
    return [f for f in stack if f.f_globals.get("__name__", "").partition(".")[0] != "routilux"]


def _awaited(frames: list[FrameType]) -> list[FrameType]:
    # While an event loop waits, its coroutines are not on the stack.
    found: list[FrameType] = []
    for frame in frames:
        if frame.f_code.co_qualname == "Runner.run":
            coroutine: Any = frame.f_locals.get("coro")
            while (inner := getattr(coroutine, "cr_frame", None)) is not None:
                found.append(inner)
                coroutine = coroutine.cr_await
    return [] if found and found[0] in frames else found


def _shown(frame: FrameType) -> str:
    where = place_of(frame)
    return where if users_frame([frame]) is frame else Path(where).name


def _name(frame: FrameType) -> str:
    module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
    if module == "pytest_routilux.virtual_time.freeze":
        return "time.sleep()"
    top = module.partition(".")[0]
    public = getattr(sys.modules.get(top), name, None)
    if getattr(public, "__code__", None) is frame.f_code:
        module = top
    return f"{module}.{name}()"
