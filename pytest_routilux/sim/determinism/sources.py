"""Records calls that can make two runs differ, such as clock reads.

Invariants:
- A call is recorded with the user's line that made it, also through a library.
- A call that repeats is not recorded: a seeded `Random`. Calls that repeat with the job
  (`ctx.now()`, `ctx.random`, …, or virtual time) are recorded as such.
- The run is profiled with `sys.setprofile`, which is slow, and only once a difference is known.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import is_users
from pytest_routilux.virtual_time.simulated_step import running
from routilux import Context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_GLOBAL: Final[Any] = random._inst  # behind random.random() and its kin
_CLOCKS: Final = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
    *("clock_gettime", "clock_gettime_ns", "process_time", "thread_time"),
    *("localtime", "gmtime", "strftime"),
)
_VIRTUAL: Final = "virtual time"
_OURS: Final = ("routilux", "pytest_routilux")


def _built_in() -> dict[int, str]:
    # By identity: virtual time replaces the names, not the functions.
    found = {id(os.urandom): "os.urandom()", id(id): "id()", id(os.getpid): "os.getpid()"}
    found[id(hash)] = "hash()"
    for name in _CLOCKS:
        clock = getattr(time, name, None)
        found[id(getattr(clock, "__wrapped__", clock))] = f"time.{name}()"
    if hasattr(os, "getrandom"):
        found[id(os.getrandom)] = "os.getrandom()"
    return found


def _codes() -> dict[CodeType, str]:
    found = {
        function.__code__: f"{module.__name__}.{name}()"
        for module, names in (
            (uuid, ("uuid1", "uuid4", "uuid6", "uuid7")),
            (secrets, ("token_bytes", "token_hex", "token_urlsafe", "randbelow")),
        )
        for name in names
        if isinstance(function := getattr(module, name, None), FunctionType)
    }
    for name in ("attempt", "job_id", "idempotency_key", "random"):
        found[getattr(Context, name).fget.__code__] = f"ctx.{name}"
    for name in ("key", "now", "uuid"):
        found[getattr(Context, name).__code__] = f"ctx.{name}()"
    for kind in (random.Random, random.SystemRandom):
        for name, function in vars(kind).items():
            if isinstance(function, FunctionType) and not name.startswith("_"):
                found[function.__code__] = f"random.{name}()"
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """A call whose result may differ between runs."""

    call: str
    where: str  # file:line of the user's code
    routine_id: str
    task_id: str
    attempt: int

    @property
    def repeats(self) -> bool:
        """Whether all runs with one start instant get the same value."""
        # The hash seed of all runs is that of their process.
        return self.call in (_VIRTUAL, "hash()") or self.call.startswith("ctx.")

    @property
    def of_time(self) -> bool:
        """Whether the call reads a clock."""
        return self.call in (_VIRTUAL, "ctx.now()") or self.call.startswith(("time.", "date"))


@contextmanager
def recorded_sources() -> Iterator[list[Source]]:
    """Record the `Source` calls that handlers make in the `with` block."""
    found: list[Source] = []
    built_in, codes = _built_in(), _codes()

    def profile(frame: FrameType, event: str, what: Any) -> None:
        flight = running.flight
        if flight is None:
            return
        if event == "c_call":
            call = built_in.get(id(what)) or _method(what)
            caller: FrameType | None = frame
        elif event == "call":
            call = codes.get(frame.f_code) or _virtual(frame)
            if call is not None and call.startswith("random.") and _repeats(frame):
                return
            caller = frame.f_back
        else:
            return
        if call is None or caller is None:
            return
        directly = call in ("id()", "hash()") or call.startswith(("time.", "ctx."))
        if caller.f_globals.get("__name__", "").partition(".")[0] in _OURS:
            return
        where = _users_line(caller, directly=directly)
        if where is not None:
            step = flight.step
            task = step.task
            found.append(Source(call, where, task.routine_id, task.task_id, step.attempt))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _virtual(frame: FrameType) -> str | None:
    if frame.f_globals.get("__name__") != "pytest_routilux.virtual_time.freeze":
        return None
    return _VIRTUAL if frame.f_code.co_name in ("read", "now", "today", "utcnow") else None


def _method(what: Any) -> str | None:
    owner = getattr(what, "__self__", None)
    name = what.__name__
    if isinstance(owner, type) and name in ("now", "utcnow", "today"):
        if issubclass(owner, datetime):
            return f"datetime.{name}()"
        return f"date.{name}()" if issubclass(owner, date) else None
    if owner is _GLOBAL or isinstance(owner, random.SystemRandom):
        return f"random.{name}()" if name in ("random", "getrandbits") else None
    return None


def _repeats(frame: FrameType) -> bool:
    owner = frame.f_locals.get("self")
    return owner is not _GLOBAL and not isinstance(owner, random.SystemRandom)


def _users_line(frame: FrameType | None, *, directly: bool) -> str | None:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if is_users(module, frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if directly or module.partition(".")[0] in _OURS:
            return None
        frame = frame.f_back
    return None
