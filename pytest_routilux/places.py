"""Where code stands: the user's frame of a stack, and `file:line` as a test's output shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

__all__ = ["outwards", "place_of", "users_frame"]


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame, the one that called it, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def users_frame(frames: Iterable[FrameType]) -> FrameType | None:
    """Return the first frame that is neither ours nor a library's."""
    from pytest_routilux.hidden import is_users  # with all that simulates: for failures only

    for frame in frames:
        if is_users(frame.f_globals.get("__name__", ""), frame.f_code.co_filename):
            return frame
    return None


def place_of(frame: FrameType) -> str:
    """Return `file:line`, as seen from the current folder; of a file elsewhere the whole path."""
    path = Path(frame.f_code.co_filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{frame.f_lineno}"
