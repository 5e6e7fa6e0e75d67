"""Fails a test that missed an error or forgot an `await`.

Invariants:
- An error that reached the code that waits for the job is not reported again. Any other recorded
  error fails the test at the end of the block.
- A coroutine that a step creates and never awaits fails the test. So does an `aexecute` that is
  never awaited. Python warns of any other coroutine as usual.
- Everything is as before when the block ends.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import outwards, place_of, users_frame
from routilux import FakeClock, Flow, Run, Runtime
from routilux.engine.threads import Threads
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator

_recorded: Final[list[BaseException]] = []
# Code that waits for a job is in one of these functions, or in a method of flow_sim.
_WAITS: Final = {
    f.__code__ for f in (Threads.drive, Run.wait, Runtime.aexecute, FakeClock._advance)
}
_SIMULATION: Final = "pytest_routilux.sim.flow_sim"
_EXECUTES: Final = {Flow.aexecute.__code__, Runtime.aexecute.__code__}
_HOOK: Final = "_warn_unawaited_coroutine"  # the function of `warnings` that Python calls


def record_failure(error: BaseException) -> None:
    """Record `error`, so that `fail_at_end` can fail the test."""
    _recorded.append(error)


@contextmanager
def fail_at_end() -> Iterator[None]:
    """At the end of the block, fail a test that missed errors."""
    before = len(_recorded)
    warn = getattr(warnings, _HOOK)

    def record_or_warn(coroutine: Any) -> None:
        text = _lost(coroutine)
        if text is None:
            warn(coroutine)
        else:
            import pytest

            record_failure(pytest.fail.Exception(text, pytrace=False))

    setattr(warnings, _HOOK, record_or_warn)
    try:
        yield
        missed = [error for error in _recorded[before:] if not _was_raised_at_a_wait(error)]
    finally:
        setattr(warnings, _HOOK, warn)
        del _recorded[before:]
    if missed:
        import pytest

        pytest.fail(str(missed[0]), pytrace=False)


def _was_raised_at_a_wait(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code in _WAITS or frame.f_globals.get("__name__") == _SIMULATION:
            return True
        trace = trace.tb_next
    return False


def _lost(coroutine: Any) -> str | None:
    """Return the failure text for a coroutine that was never awaited."""
    at = users_frame(outwards(sys._getframe(2)))
    where = "" if at is None else f" at {place_of(at)}"
    context = active.get()
    name = f"{coroutine.__qualname__}()"
    if getattr(coroutine, "cr_code", None) in _EXECUTES:
        return f"{name} was called{where} without await, so the job never started; await the call"
    if context is None or context.step is None or at is None:
        return None  # Python's warning is enough
    return (
        f"{context.step.who} called {name}{where} without await, so {name} never ran; await"
        " the call"
    )
