"""Fails a test that freezes the time twice.

Invariants:
- One freeze owns the time of a test. A `freeze_time()` around a fixture of ours fails the test when
  the fixture is set up. One inside it fails the test where it begins, before it changes anything.
- The message names the fixture, and the other freeze with its instant and its place.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest
from freezegun import api

from pytest_routilux.frames import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_owners: Final[list[str]] = []


def refuse_around(fixture: str) -> None:
    """Fail the test if routilux or freezegun already freezes the time."""
    if _owners:
        _refuse(fixture, f"the {_owners[-1]} of an outer test")
    if api.freeze_factories:
        frozen = getattr(api.freeze_factories[-1], "time_to_freeze", None)
        _refuse(fixture, f"freeze_time({str(frozen)!r}) around it")


@contextmanager
def refused_inside(fixture: str) -> Iterator[None]:
    """Fail the test if freezegun freezes the time inside the `with` block."""
    start = api._freeze_time.start

    def refuse(freeze: Any) -> NoReturn:
        _refuse(fixture, f"freeze_time({str(freeze.time_to_freeze)!r}) {_origin()}")

    api._freeze_time.start = refuse  # type: ignore[method-assign, assignment]  # undone below
    _owners.append(fixture)
    try:
        yield
    finally:
        _owners.pop()
        api._freeze_time.start = start  # type: ignore[method-assign]  # as it was


def _origin() -> str:
    frame = sys._getframe(2)
    while (module := frame.f_globals.get("__name__", "")).partition(".")[0] == "freezegun":
        assert frame.f_back is not None
        frame = frame.f_back
    if module.partition(".")[0] == "_pytest":
        return "that decorates the test"
    return f"at {place_of(frame)} in {frame.f_code.co_name}"


def _refuse(fixture: str, freeze: str) -> NoReturn:
    advance = "; to set the time, call flow_clock.move_to(...)" if fixture == "flow_clock" else ""
    pytest.fail(
        f"{fixture} and {freeze} both set the time of this test; remove one of the two{advance}",
        pytrace=False,
    )
