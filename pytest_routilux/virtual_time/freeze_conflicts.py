"""Fails a test in which another library sets the time too.

Invariants:
- One owner sets the time of a test. A freeze of freezegun or a journey of time-machine around a
  fixture of ours fails the test when the fixture is set up. One inside it fails the test where it
  begins, before it changes anything.
- On a host, this holds for a time-machine that the modules of the flow import: it imports pytest,
  which a host can do without.
- The message names the fixture, and the other library's call with its instant and its place.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_routilux.frames import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _installed(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


# Imported before the time is ours. Later, freezegun would take our functions for the real ones.
_freezegun: Final = _installed("freezegun.api")
if "pytest" in sys.modules:  # else this is a host
    _installed("time_machine")
_OTHERS: Final = ("freezegun", "time_machine")
_owners: Final[list[str]] = []


def refuse_around(fixture: str) -> None:
    """Fail the test if routilux or another library already sets the time."""
    if _owners:
        _refuse(fixture, f"the {_owners[-1]} of an outer test")
    if _freezegun is not None and _freezegun.freeze_factories:
        frozen = getattr(_freezegun.freeze_factories[-1], "time_to_freeze", None)
        _refuse(fixture, f"freeze_time({str(frozen)!r}) around it")
    time_machine: Any = sys.modules.get("time_machine")
    if time_machine is not None and time_machine.escape_hatch.is_travelling():
        now = datetime.now(UTC).replace(tzinfo=None)
        _refuse(fixture, f"time_machine.travel() to {str(now)!r} around it")


@contextmanager
def refused_inside(fixture: str) -> Iterator[None]:
    """Fail the test if another library sets the time inside the `with` block."""
    with ExitStack() as undo:
        if _freezegun is not None:
            _refuse_start(undo, fixture, _freezegun._freeze_time, _freeze_text)
        time_machine: Any = sys.modules.get("time_machine")
        if time_machine is not None:
            _refuse_start(undo, fixture, time_machine.travel, _travel_text)
        _owners.append(fixture)
        undo.callback(_owners.pop)
        yield


def _refuse_start(undo: ExitStack, fixture: str, kind: type, text: Callable[[Any], str]) -> None:
    def start(other: object) -> NoReturn:
        _refuse(fixture, f"{text(other)} {_origin()}")

    undo.callback(setattr, kind, "start", vars(kind)["start"])
    kind.start = start  # type: ignore[attr-defined]  # of both libraries' classes


def _freeze_text(freeze: Any) -> str:
    return f"freeze_time({str(freeze.time_to_freeze)!r})"


def _travel_text(travel: Any) -> str:
    to_ns = getattr(travel, "destination_timestamp_ns", None)  # since time-machine 3
    seconds = travel.destination_timestamp if to_ns is None else to_ns / 10**9
    to = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"time_machine.travel({str(to)!r})"


def _origin() -> str:
    frame = sys._getframe(2)
    while (module := frame.f_globals.get("__name__", "")).partition(".")[0] in _OTHERS:
        assert frame.f_back is not None
        frame = frame.f_back
    if module.partition(".")[0] == "_pytest":
        return "that decorates the test"
    return f"at {place_of(frame)} in {frame.f_code.co_name}"


def _refuse(fixture: str, freeze: str) -> NoReturn:
    import pytest

    later = ", or call flow_clock.move_to(...)" if fixture == "flow_clock" else ""
    pytest.fail(
        f"{fixture} and {freeze} both set the time of this test; remove one of the two; to set the"
        f" time, mark the test with @pytest.mark.flow_time(start=...){later}",
        pytrace=False,
    )
