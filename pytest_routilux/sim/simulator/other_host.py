"""Another host: its time zone, host name, process id and environment differ.

Invariants:
- Only code of the user sees the other host: a library that compares process ids, to find out
  whether it was forked, sees the real one.
- A function that the test has patched stays as it is.
- `reads` has the user's lines that asked for what differs.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType, ModuleType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from pytest_routilux.frames import is_users, outwards, users_modules
from pytest_routilux.virtual_time.simulated_step import running

Trait: TypeAlias = Literal["zone", "host-name", "process-id", "environment"]
"""What differs on another host."""
TRAITS: Final[tuple[Trait, ...]] = get_args(Trait)
ANOTHER: Final = "another-host"
"""The name of the other host, and the value of each environment variable that differs there."""
_EAST: Final = ("Asia/Kathmandu", "Asia/Kolkata")
_WEST: Final = ("Pacific/Marquesas", "Pacific/Honolulu")
_SUMMER: Final = 1_782_864_000  # 2026-07-01
_FREEZE: Final = "pytest_routilux.virtual_time.freeze"
_OURS: Final = ("routilux", "pytest_routilux")
_LOCAL_TIME: Final = frozenset(
    (
        "now",
        "today",
        "fromtimestamp",
        "astimezone",
        "timestamp",
        "localtime",
        "mktime",
        "ctime",
    )
)
_tzset: Final[Callable[[], None] | None] = getattr(time, "tzset", None)
_localtime: Final = time.localtime


class Read(NamedTuple):
    """A line of the user (file:line) that reads a trait or an environment variable.

    `routine` is the id of the routine whose handler runs; None outside of handlers.
    """

    what: str
    routine: str | None
    where: str


class OtherHost:
    """A host that differs in `traits`.

    Its zone is east of the usual ones, or with `west` in the west. `variables` are the environment
    variables that differ, of those that the user reads. `watches_time` finds the lines that ask for
    the local time, which is slow.
    """

    def __init__(
        self,
        *traits: Trait,
        variables: frozenset[str] = frozenset(),
        west: bool = False,
        watches_time: bool = False,
    ) -> None:
        self.traits = traits
        self.variables = variables
        self.reads: list[Read] = []
        self.west = west
        self._watches_time = watches_time
        self._places: list[tuple[dict[str, Any], str, Any, Any]] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """In the `with` block, let this process be this host."""
        undo: list[Callable[[], None]] = []
        try:
            if "zone" in self.traits:
                undo.append(_set_zone(_WEST if self.west else _EAST))
                if self._watches_time:
                    undo.append(partial(sys.setprofile, sys.getprofile()))
                    sys.setprofile(self._watch_time)
            if self._places is None:
                self._places = list(self._found())
            for names, key, real, elsewhere in self._places:
                names[key] = elsewhere
                undo.append(partial(names.__setitem__, key, real))
            if "environment" in self.traits:
                undo.append(self._change_environment())
            yield
        finally:
            for put_back in reversed(undo):
                put_back()

    def _found(self) -> Iterator[tuple[dict[str, Any], str, Any, Any]]:
        """Yield each name of a module that holds a function to replace: real and replacement."""
        changed: dict[int, tuple[Any, Any]] = {}
        for module, name, trait, change in _FUNCTIONS:
            real = _REAL.get((module.__name__, name))
            if trait in self.traits and real is not None:
                changed[id(real)] = real, self._replacement(real, trait, change)
        for holder in (socket, platform, os, *users_modules()):
            names = holder.__dict__
            for key, value in list(names.items()):
                if (found := changed.get(id(value))) is not None:
                    yield names, key, *found

    def _replacement(self, real: Any, trait: Trait, change: Callable[[Any], Any]) -> Any:
        def elsewhere() -> Any:
            caller = sys._getframe(1)
            if not _is_users(caller):
                return real()
            self._add(trait, caller)
            return change(real())

        return elsewhere

    def _change_environment(self) -> Callable[[], None]:
        kind: Any = type(os.environ)
        real = kind.__getitem__

        def read(environ: Any, key: Any) -> Any:
            frame = _users_frame(sys._getframe(1))
            if type(key) is not str or environ is not os.environ or frame is None:
                return real(environ, key)
            self._add(key, frame)
            return ANOTHER if key in self.variables else real(environ, key)

        kind.__getitem__ = read
        return lambda: setattr(kind, "__getitem__", real)

    def _watch_time(self, frame: FrameType, event: str, what: Any) -> None:
        name = getattr(what, "__name__", "") if event == "c_call" else frame.f_code.co_name
        if name == "read" and frame.f_globals.get("__name__") == _FREEZE:
            name = frame.f_locals.get("name", "")  # of the function of `time` that is called
        if name in _LOCAL_TIME and event in ("call", "c_call"):
            caller = frame if event == "c_call" else frame.f_back
            if caller is not None and _is_users(caller):
                self._add("zone", caller)

    def _add(self, what: str, frame: FrameType) -> None:
        flight = running.flight
        routine = None if flight is None else flight.step.task.routine_id
        read = Read(what, routine, f"{frame.f_code.co_filename}:{frame.f_lineno}")
        if read not in self.reads:
            self.reads.append(read)

    def read_by(self, what: str, routine: str | None) -> Read:
        """Return the read of a trait or variable that is the most likely cause for `routine`."""
        reads = [read for read in self.reads if read.what == what]
        own = [read for read in reads if read.routine == routine]
        return (own or reads or [Read(what, routine, "")])[0]


def _users_frame(frame: FrameType) -> FrameType | None:
    """Return the frame of the handler or `build` that `frame` works for; None if it is ours."""
    for outer in outwards(frame):
        if outer.f_globals.get("__name__", "").partition(".")[0] in _OURS:
            return None
        if _is_users(outer):
            return outer
    return None


def _is_users(frame: FrameType) -> bool:
    return is_users(frame.f_globals.get("__name__", ""), frame.f_code.co_filename)


def _renamed(real: Any) -> Any:
    parts = list(real)
    parts[1] = ANOTHER
    return type(real)(parts)


_FUNCTIONS: Final[tuple[tuple[ModuleType, str, Trait, Callable[[Any], Any]], ...]] = (
    (socket, "gethostname", "host-name", lambda real: ANOTHER),
    (platform, "node", "host-name", lambda real: ANOTHER),
    (os, "uname", "host-name", _renamed),
    (os, "getpid", "process-id", lambda real: real + 1),
)
_REAL: Final[dict[tuple[str, str], Any]] = {
    (module.__name__, name): getattr(module, name)
    for module, name, _, _ in _FUNCTIONS
    if hasattr(module, name)
}


def _set_zone(zones: tuple[str, ...]) -> Callable[[], None]:
    before = os.environ.get("TZ")
    here = _localtime(_SUMMER).tm_gmtoff

    def put_back() -> None:
        _put_zone(before)

    for zone in zones:
        if _known(zone):
            _put_zone(zone)
            if _localtime(_SUMMER).tm_gmtoff != here:
                return put_back
    _put_zone(before)
    return put_back


@cache
def _known(zone: str) -> bool:
    """Return whether this system knows a zone; one that it does not know would be UTC."""
    if _tzset is None:  # on Windows
        return False
    before = os.environ.get("TZ")
    _put_zone(zone)
    known = _localtime(_SUMMER).tm_gmtoff != 0
    _put_zone(before)
    return known


def _put_zone(zone: str | None) -> None:
    if zone is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = zone
    if _tzset is not None:
        _tzset()
