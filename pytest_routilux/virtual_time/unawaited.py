"""A coroutine that a handler has made and nobody awaits fails the test; Python only warns of it.

Laws:
- Told are coroutines that are lost in a step, and jobs that never began: `aexecute` without
  `await`. Of any other Python warns, as ever.
- Everything is as before when the block ends.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_routilux.frames import outwards, place_of, users_frame
from pytest_routilux.virtual_time.late_failures import all_told, note
from routilux import Flow, Runtime
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["all_awaited"]

_BEGINS: Final = {Flow.aexecute.__code__, Runtime.aexecute.__code__}
_HOOK: Final = "_warn_unawaited_coroutine"  # which Python calls by this name to warn


@contextmanager
def all_awaited() -> Iterator[None]:
    """Fail the test at the end of the block for the first coroutine that was lost."""
    warn = getattr(warnings, _HOOK, None)
    if warn is None:
        yield
        return

    def tell(coroutine: Any) -> None:
        text = _told(coroutine)
        if text is None:
            warn(coroutine)
        else:
            note(pytest.fail.Exception(text, pytrace=False))

    with all_told():
        setattr(warnings, _HOOK, tell)
        try:
            yield
        finally:
            setattr(warnings, _HOOK, warn)


def _told(coroutine: Any) -> str | None:
    at = users_frame(outwards(sys._getframe(2)))
    where = "" if at is None else f" at {place_of(at)}"
    context = active.get()
    name = f"{coroutine.__qualname__}()"
    if getattr(coroutine, "cr_code", None) in _BEGINS:
        return f"{name} was called{where} and not awaited, so its job never began: await it"
    if context is None or context.step is None or at is None:
        return None
    return (
        f"{context.step.who} called {name}{where} and did not await it, so it never ran: await it"
    )
