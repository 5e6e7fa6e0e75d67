"""Errors that are raised where a test may never see them: in a thread, under a bare `except`.

Laws:
- Nothing is told twice: an error that came out at whoever waits for the job is left alone.
- One that did not fails the test at the end of the block.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from routilux import FakeClock, Run
from routilux.engine.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["all_told", "note"]

_noted: Final[list[BaseException]] = []
# Whoever waits for a job is in one of these, or in a method of flow_sim.
_WAITS: Final = {f.__code__ for f in (Threads.drive, Run.wait, FakeClock._advance)}
_SIMULATION: Final = "pytest_routilux.sim.flow_sim"


def note(error: BaseException) -> None:
    """Have an error told by the end of the innermost block, if nobody has heard of it by then."""
    _noted.append(error)


@contextmanager
def all_told() -> Iterator[None]:
    """Fail the test at the end of the block for the first error that nobody has heard of."""
    before = len(_noted)
    try:
        yield
    except BaseException:
        del _noted[before:]
        raise
    untold = [error for error in _noted[before:] if not _was_heard(error)]
    del _noted[before:]
    if untold:
        pytest.fail(str(untold[0]), pytrace=False)


def _was_heard(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code in _WAITS or frame.f_globals.get("__name__") == _SIMULATION:
            return True
        trace = trace.tb_next
    return False
