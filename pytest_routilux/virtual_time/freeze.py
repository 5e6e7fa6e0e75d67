"""Makes `time` and `datetime` follow a virtual clock.

Invariants:
- Every reading asks the clock. In a handler of a simulation this is the clock of its host, in a
  handler of a runtime with another fake clock that one, elsewhere the clock of the block.
- `time()`, `localtime()`, `ctime()`, `datetime.now()` and the like return the clock's wall time.
  `monotonic()` and `perf_counter()` return its progress, which setting the wall clock never moves.
  `process_time()` and `thread_time()`, which count work, and `clock_gettime()` stay real.
- `time.sleep` in a step is the step's `ctx.sleep`, fails the test, or stays real, as
  `routilux_sleep` says. It stays real in the test's body and in threads that a handler starts.
  `asyncio.sleep` passes virtual time; in a step it fails the test or is real, by the same setting.
- No other freeze of the time is active in the block.
- The module that calls decides, not the callers above it: the timers of threads, queues, processes,
  event loops, pytest and its plugins stay real in every thread, also while a handler runs.
- Code of a real caller that calls a function which it was given, as a thread pool does, reads
  virtual time.
- Local time is that of the zone of the block, by default UTC. Everything is as before when the
  block ends, even with an error. What others restore later, `put_back` finds.

freezegun and time-machine do not do this: they leave `time.sleep` real, and they either make the
timers of event loops and threads virtual or leave `monotonic()` real.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from functools import wraps
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_routilux.settings import REAL_CLASSES, REAL_TIME
from pytest_routilux.virtual_time.freeze_conflicts import refuse_around, refused_inside
from pytest_routilux.virtual_time.late_failures import record_failure
from pytest_routilux.virtual_time.local_zone import local_zone
from pytest_routilux.virtual_time.patches import Patches, Replacements
from pytest_routilux.virtual_time.simulated_step import SimClock, running
from routilux import FakeClock
from routilux.clocks.durations import SECOND, from_ns, to_ns
from routilux.clocks.real_waits import PATIENCE_NS
from routilux.engine.drive import Drive
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from types import CodeType, FrameType

    from pytest_routilux.settings import Sleeping
    from routilux import Context

# Their timers measure or limit real work. (`threading` needs no entry: modules of the standard
# library keep the functions that they have imported by name.)
_REAL_CALLERS: Final = frozenset(
    {
        *("_pytest", "execnet", "freezegun", "hypothesis", "pluggy", "pytest", "xdist"),
        *("pytest_benchmark", "pytest_routilux", "pytest_timeout", "routilux"),
        *("asyncio", "concurrent", "multiprocessing", "queue", "socketserver", "subprocess"),
        "trio",
    }
)

real_sleep: Final = REAL_TIME["sleep"]
# Of a simulation: a clock that shows the first instant while no handler runs.
_block: FakeClock | SimClock | None = None
_sleeping: Sleeping = "virtual"
_patience_ns: int = PATIENCE_NS  # of the event loops of a simulation
_MODULES: Final = frozenset({"time", "datetime"})
_SOURCES: Final = (time, dt, *REAL_CLASSES)
_UUID_MAKERS: Final = ("_generate_time_safe", "_UuidCreate")
# The times of the last UUIDs: no later UUID may have an earlier one.
_UUID_TIMES: Final = ("_last_timestamp", "_last_timestamp_v6", "_last_timestamp_v7")


# --- readings -------------------------------------------------------------------------------------


def _clock() -> FakeClock | SimClock | None:
    if running.clock is not None:
        return running.clock
    context = active.get()
    if context is not None and isinstance(context._host, Drive):
        clock = context._host.environment.clock
        if isinstance(clock, FakeClock):
            return clock
    return _block


def _reads_real(name: str) -> bool:
    if _block is None:
        return True
    frame = sys._getframe(2)  # of the caller of the function that asks this
    module: str = frame.f_globals.get("__name__", "")
    if module.partition(".")[0] not in _REAL_CALLERS:
        return False
    return _mentions(frame.f_code, frame.f_globals, name)


def _mentions(code: CodeType, names: dict[str, Any], function: str) -> bool:
    # Otherwise the code calls a function that it was given.
    if function in code.co_names and not _MODULES.isdisjoint(code.co_names):
        return True
    used = [names.get(name) for name in code.co_names]
    return any(_all.real_of(value) is not None for value in used) or (
        function in code.co_names and any(value is each for value in used for each in _SOURCES)
    )


def _microseconds() -> int:
    clock = _clock()  # None: a thread that outlives the block reads after its end
    now: int = REAL_TIME["time_ns"]() if clock is None else clock.now_ns()
    return now // 1000


def _seconds() -> float:
    return _microseconds() / 1_000_000


def _monotonic_ns() -> int:
    clock = _clock()
    now: int = REAL_TIME["monotonic_ns"]() if clock is None else clock.monotonic_ns()
    return now


def _monotonic() -> float:
    return _monotonic_ns() / SECOND


def _sleep(seconds: Any, /) -> None:
    context, clock = active.get(), _clock()
    # The handler's thread has the turn; a thread that it started has none, even with its context.
    if context is None or clock is None or not clock.runs_here() or _sleeping == "real":
        real_sleep(seconds)
        return
    if clock is _block and isinstance(clock, SimClock):  # a job that the test's body runs
        real_sleep(seconds)
        return
    if _sleeping == "error":
        _refuse_sleep(context, "time.sleep", "self.ctx.sleep", seconds, sys._getframe(2))
    length = float(seconds) if isinstance(seconds, float) else int(index(seconds))
    if length < 0:
        raise ValueError("sleep length must be non-negative")
    context.block(to_ns(length))  # in an async handler it blocks the event loop, as it really does


def on_async_sleep(seconds: float, caller: FrameType | None) -> bool:
    """Return whether an `asyncio.sleep` passes real time, or refuse it."""
    context = active.get()
    if context is None or caller is None or _is_engine(caller):
        return False
    if _sleeping == "error":
        _refuse_sleep(context, "asyncio.sleep", "await self.ctx.asleep", seconds, caller)
    return _sleeping == "real"


def simulated_patience_ns() -> int:
    """Return for how long the event loops of a simulation wait for real work, in nanoseconds."""
    return _patience_ns


def _is_engine(caller: FrameType) -> bool:
    name: str = caller.f_globals.get("__name__", "")
    return name.partition(".")[0] == "routilux"


def _refuse_sleep(
    context: Context, function: str, cure: str, seconds: object, caller: FrameType
) -> NoReturn:
    import pytest

    from pytest_routilux.frames import outwards, place_of, users_frame

    where, frame = place_of(caller), users_frame(outwards(caller))
    if frame is not None and frame is not caller:
        where += f" (for {place_of(frame)})"
    if context.step is None:
        context.over()
    error = pytest.fail.Exception(
        f"{context.step.who} called {function}({seconds!r}) at {where}; the setting"
        f" routilux_sleep = error forbids this call: use {cure}({seconds!r})",
        pytrace=False,
    )
    record_failure(error)
    raise error


def _localtime(seconds: float | None = None, /) -> time.struct_time:
    at: time.struct_time = REAL_TIME["localtime"](_seconds() if seconds is None else seconds)
    return at


def _replacement(name: str, virtual: Any) -> Any:
    real = REAL_TIME[name]

    @wraps(real)
    def read(*args: Any, **kwargs: Any) -> Any:
        return (real if _reads_real(name) else virtual)(*args, **kwargs)

    return read


def _utc() -> dt.datetime:
    return from_ns(_microseconds() * 1000)


def _local() -> dt.datetime:
    seconds, rest = divmod(_microseconds(), 1_000_000)
    return dt.datetime.fromtimestamp(seconds).replace(microsecond=rest)  # noqa: DTZ006 - it is local


def _of_class(kind: type[dt.datetime], moment: dt.datetime) -> dt.datetime:
    return kind.combine(moment.date(), moment.timetz())


def now(cls: type[dt.datetime], tz: dt.tzinfo | None = None) -> Any:
    if _reads_real("now"):
        return _real_now.__get__(None, cls)(tz)
    return _of_class(cls, _local() if tz is None else _utc().astimezone(tz))


def utcnow(cls: type[dt.datetime]) -> Any:
    if _reads_real("utcnow"):
        return _real_utcnow.__get__(None, cls)()
    return _of_class(cls, _utc().replace(tzinfo=None))


def today(cls: type[dt.date]) -> Any:
    if _reads_real("today"):
        return _real_today.__get__(None, cls)()
    moment = _local()
    if issubclass(cls, dt.datetime):
        return _of_class(cls, moment)
    return cls.fromordinal(moment.toordinal())


_DATE, _DATETIME = REAL_CLASSES
_real_now, _real_utcnow = vars(_DATETIME)["now"], vars(_DATETIME)["utcnow"]
_real_today = vars(_DATE)["today"]
_text: Final = REAL_TIME["asctime"]
_all: Final = Replacements(
    functions={
        REAL_TIME[name]: _replacement(name, virtual)
        for name, virtual in {
            "asctime": lambda at=None, /: _text(_localtime() if at is None else at),
            "ctime": lambda at=None, /: _text(_localtime(at)),
            "gmtime": lambda at=None, /: REAL_TIME["gmtime"](_seconds() if at is None else at),
            "localtime": _localtime,
            "monotonic": _monotonic,
            "monotonic_ns": _monotonic_ns,
            "perf_counter": _monotonic,
            "perf_counter_ns": _monotonic_ns,
            "sleep": _sleep,
            "strftime": lambda form, at=None, /: REAL_TIME["strftime"](
                form, _localtime() if at is None else at
            ),
            "time": _seconds,
            "time_ns": lambda: _microseconds() * 1000,
        }.items()
    },
    methods={_DATETIME: {"now": now, "utcnow": utcnow}, _DATE: {"today": today}},
)
_patches: Final = Patches(_all, _REAL_CALLERS)


# --- installation ---------------------------------------------------------------------------------


@contextmanager
def frozen_clock(
    sleeping: Sleeping = "virtual",
    *,
    start: datetime | str = "2026-01-01",
    clock: FakeClock | None = None,
    zone: str = "UTC",
    roots: Sequence[dict[str, Any]] = (),
) -> Iterator[FakeClock]:
    """Yield a fake clock that `time` and `datetime` follow in all threads.

    It is `clock`, or a new one that starts at `start`. `roots` are dicts whose functions are
    replaced too. Fails the test if another library sets the time around the block or in it.
    """
    if not isinstance(_block, SimClock):
        refuse_around("flow_clock")
    if clock is None:
        clock = FakeClock(start)
    if sleeping != "virtual":
        clock.on_sleep = on_async_sleep
    with _owned_by(clock, "flow_clock", sleeping, zone, roots):
        yield clock


@contextmanager
def frozen_simulation(
    start_ns: int,
    sleeping: Sleeping = "virtual",
    *,
    zone: str = "UTC",
    roots: Sequence[dict[str, Any]] = (),
    patience_ns: int = PATIENCE_NS,
) -> Iterator[None]:
    """Let `time` and `datetime` follow the simulation's clock in the `with` block.

    While no simulated handler runs they show `start_ns`, or the clock of an outer `frozen_clock()`.
    `roots` are dicts whose functions are replaced too. The event loops of async handlers wait for
    real work for `patience_ns` nanoseconds. Fails the test if another library sets the time around
    the block or in it.
    """
    global _patience_ns
    if _block is None:
        refuse_around("flow_sim")
    with _owned_by(_block or SimClock(start_ns), "flow_sim", sleeping, zone, roots):
        outer, _patience_ns = _patience_ns, patience_ns
        try:
            yield
        finally:
            _patience_ns = outer


@contextmanager
def _owned_by(
    clock: FakeClock | SimClock,
    fixture: str,
    sleeping: Sleeping,
    zone: str,
    roots: Sequence[dict[str, Any]],
) -> Iterator[None]:
    global _block, _sleeping
    outer = _block, _sleeping
    with ExitStack() as undo:
        if _block is None:
            undo.enter_context(local_zone(zone))
            undo.enter_context(_uuids_of_python())
            undo.callback(_patches.uninstall)
            _patches.install(*roots)
            undo.enter_context(refused_inside(fixture))
        _block, _sleeping = clock, sleeping
        try:
            yield
        finally:
            _block, _sleeping = outer


def put_back(*, scope_ended: bool) -> None:
    """Undo what a patch of the ended test has restored after the end of the block.

    `scope_ended`: the test was the last one of its class or module.
    """
    if _block is None:
        _patches.put_back(scope_ended=scope_ended)


def take_stuck() -> list[str]:
    """Return texts about definitions that keep a real function, each once."""
    return _patches.take_stuck()


@contextmanager
def _uuids_of_python() -> Iterator[None]:
    """Let `uuid` read the time by `time`, not by a library of the system."""
    names: dict[str, Any] = vars(uuid)
    makers: dict[str, Any] = {name: names[name] for name in _UUID_MAKERS if name in names}
    unset: dict[str, Any] = dict.fromkeys(name for name in _UUID_TIMES if name in names)
    names.update({**dict.fromkeys(makers), **unset})
    try:
        yield
    finally:
        names.update({**makers, **unset})
