"""Makes `time` and `datetime` follow a virtual clock.

Invariants:
- Every reading asks the clock. In a handler of a simulation this is the clock of its host,
  elsewhere the clock of the block.
- `time()`, `localtime()`, `ctime()`, `datetime.now()` and the like return the clock's wall time.
  `monotonic()` and `perf_counter()` return its progress, which setting the wall clock never moves.
  `process_time()` and `thread_time()`, which count work, and `clock_gettime()` stay real.
- `time.sleep` in a step is the step's `ctx.sleep`, fails the test, or stays real, as
  `routilux_sleep` says. It stays real in the test's body and in threads that a handler starts.
- No other freeze of the time is active in the block.
- The module that calls decides, not the callers above it: the timers of threads, queues, processes,
  event loops, pytest and its plugins stay real in every thread, also while a handler runs.
- `datetime.now()` returns an ordinary `datetime`, which is copied, saved, pickled and compared like
  any other.
- Local time is UTC. Everything is as before when the block ends, even with an error.

freezegun alone does not do this: it leaves `time.sleep` real, makes `monotonic()` follow the wall
time, checks the callers five frames up, matches modules by prefix, rounds `time_ns()` through a
float, and returns instances of its own class, which have no saved form. So freezegun patches no
module here (`ignore=[""]` matches every name), which also saves most of its cost. This module
replaces the names of `time` and `datetime`, and the same names in modules that imported them,
except those of the standard library. A function that is kept elsewhere, such as in a default
argument, stays real.
"""

from __future__ import annotations

import copyreg
import datetime as dt
import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn

import freezegun
import pytest
from freezegun import api

from pytest_routilux.virtual_time.freeze_conflicts import refuse_around, refused_inside
from pytest_routilux.virtual_time.late_failures import record_failure
from pytest_routilux.virtual_time.simulated_step import SimClock, running
from routilux import FakeClock
from routilux.clocks.clock import real_sleep
from routilux.clocks.durations import SECOND, from_ns
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from types import FrameType

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
_UNTOUCHED: Final = _REAL_CALLERS | sys.stdlib_module_names


# freezegun never replaces these two, so they are real.
_real_asctime, _real_ctime = time.asctime, time.ctime
# Of a simulation: a clock that shows the first instant while no handler runs.
_block: FakeClock | SimClock | None = None
_sleeping: Sleeping = "virtual"


# --- readings -------------------------------------------------------------------------------------


def _clock() -> FakeClock | SimClock | None:
    return running.clock or _block


def _reads_real() -> bool:
    caller = sys._getframe(2).f_globals.get("__name__", "")  # of the function that asks this
    return _block is None or caller.partition(".")[0] in _REAL_CALLERS


def _microseconds() -> int:
    clock = _clock()  # None: a thread that outlives the block reads after its end
    now: int = api.real_time_ns() if clock is None else clock.now_ns()
    return now // 1000


def _seconds() -> float:
    return _microseconds() / 1_000_000


def _monotonic_ns() -> int:
    clock = _clock()
    return api.real_monotonic_ns() if clock is None else clock.monotonic_ns()


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
        _refuse_sleep(context, seconds, sys._getframe(2))
    length = float(seconds) if isinstance(seconds, float) else int(index(seconds))
    if length < 0:
        raise ValueError("sleep length must be non-negative")
    context.sleep(length)


def _refuse_sleep(context: Context, seconds: object, caller: FrameType) -> NoReturn:
    from pytest_routilux.frames import outwards, place_of, users_frame

    where, frame = place_of(caller), users_frame(outwards(caller))
    if frame is not None and frame is not caller:
        where += f" (for {place_of(frame)})"
    if context.step is None:
        context.over()
    error = pytest.fail.Exception(
        f"{context.step.who} called time.sleep({seconds!r}) at {where}; the setting"
        f" routilux_sleep = error forbids this call: use self.ctx.sleep({seconds!r})",
        pytrace=False,
    )
    record_failure(error)
    raise error


def _localtime(seconds: float | None = None, /) -> time.struct_time:
    return api.real_localtime(_seconds() if seconds is None else seconds)


def _replacement(real: Callable[..., Any], virtual: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(real)
    def read(*args: Any, **kwargs: Any) -> Any:
        return (real if _reads_real() else virtual)(*args, **kwargs)

    return read


class _Replacement(type):
    """Metaclass that makes a replacement class equal to the real class."""

    def __instancecheck__(cls, value: object) -> bool:
        return type.__instancecheck__(_real_class(cls), value)

    def __subclasscheck__(cls, kind: type) -> bool:
        return type.__subclasscheck__(_real_class(cls), kind)

    def __eq__(cls, other: object) -> bool:
        return cls is other or _real_class(cls) is other

    def __hash__(cls) -> int:
        return hash(_real_class(cls)) if _real_class(cls) is not cls else type.__hash__(cls)


def _real_class(kind: type) -> type:
    # A class that user code derives from one of ours is only itself.
    found: type = vars(kind).get("_real", kind)
    return found


class _Date(api.real_date, metaclass=_Replacement):
    _real = api.real_date

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls if "_real" not in vars(cls) else cls._real, *args, **kwargs)

    @classmethod
    def today(cls) -> Any:
        return super().today() if _reads_real() else cls.fromordinal(_local().toordinal())


class _Datetime(api.real_datetime, metaclass=_Replacement):
    _real = api.real_datetime

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls if "_real" not in vars(cls) else cls._real, *args, **kwargs)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        if _reads_real():
            return super().now(tz)
        return _of_class(cls, _local() if tz is None else _utc().astimezone(tz))

    @classmethod
    def today(cls) -> Any:
        return super().today() if _reads_real() else _of_class(cls, _local())

    @classmethod
    def utcnow(cls) -> Any:
        return super().utcnow() if _reads_real() else _of_class(cls, _utc().replace(tzinfo=None))


def _utc() -> dt.datetime:
    return from_ns(_microseconds() * 1000)


def _local() -> dt.datetime:
    return _utc().astimezone().replace(tzinfo=None)


def _of_class(kind: type[_Datetime], moment: dt.datetime) -> _Datetime:
    return kind.combine(moment.date(), moment.timetz())


for _kind, _name in ((_Date, "date"), (_Datetime, "datetime")):
    # A pickle holds the real class's name, so it can be read anywhere.
    _kind.__module__, _kind.__qualname__, _kind.__name__ = "datetime", _name, _name


def _reduced(moment: Any) -> tuple[Any, ...]:
    _, *rest = moment.__reduce_ex__(4)
    return (getattr(dt, type(moment).__name__), *rest)


_FUNCTIONS: Final = {
    "asctime": _replacement(
        _real_asctime, lambda at=None, /: _real_asctime(_localtime() if at is None else at)
    ),
    "ctime": _replacement(_real_ctime, lambda at=None, /: _real_asctime(_localtime(at))),
    "gmtime": _replacement(
        api.real_gmtime, lambda at=None, /: api.real_gmtime(_seconds() if at is None else at)
    ),
    "localtime": _replacement(api.real_localtime, _localtime),
    "monotonic": _replacement(api.real_monotonic, _monotonic),
    "monotonic_ns": _replacement(api.real_monotonic_ns, _monotonic_ns),
    "perf_counter": _replacement(api.real_perf_counter, _monotonic),
    "perf_counter_ns": _replacement(api.real_perf_counter_ns, _monotonic_ns),
    "sleep": _replacement(real_sleep, _sleep),
    "strftime": _replacement(
        api.real_strftime,
        lambda form, at=None, /: api.real_strftime(form, _localtime() if at is None else at),
    ),
    "time": _replacement(api.real_time, _seconds),
    "time_ns": _replacement(api.real_time_ns, lambda: _microseconds() * 1000),
}
_CLASSES: Final[dict[str, Any]] = {"date": _Date, "datetime": _Datetime}
_PAIRS: Final[list[tuple[object, object]]] = [
    *((vars(fake)["__wrapped__"], fake) for fake in _FUNCTIONS.values()),
    *((fake._real, fake) for fake in _CLASSES.values()),
]
_REAL_OF: Final = {id(fake): real for real, fake in _PAIRS}
_FAKE_OF: Final = {id(real): fake for real, fake in _PAIRS}


# --- installation ---------------------------------------------------------------------------------


@contextmanager
def frozen_clock(
    sleeping: Sleeping = "virtual", *, start: datetime | str = "2026-01-01"
) -> Iterator[FakeClock]:
    """Yield a fake clock that `time` and `datetime` follow in all threads.

    Fails the test if another freeze of the time is active around the block or begins in it.
    """
    if not isinstance(_block, SimClock):
        refuse_around("flow_clock")
    clock = FakeClock(start)
    with _owned_by(clock, "flow_clock", sleeping):
        yield clock


@contextmanager
def frozen_simulation(start_ns: int, sleeping: Sleeping = "virtual") -> Iterator[None]:
    """Let `time` and `datetime` follow the simulation's clock in the `with` block.

    While no simulated handler runs they show `start_ns`, or the clock of an outer `frozen_clock()`.
    Fails the test if another freeze of the time is active around the block or begins in it.
    """
    if _block is None:
        refuse_around("flow_sim")
    with _owned_by(_block or SimClock(start_ns), "flow_sim", sleeping):
        yield


@contextmanager
def _owned_by(clock: FakeClock | SimClock, fixture: str, sleeping: Sleeping) -> Iterator[None]:
    global _block, _sleeping
    outer = _block, _sleeping
    with ExitStack() as undo:
        if _block is None:
            _install(undo, clock)
            undo.enter_context(refused_inside(fixture))
        _block, _sleeping = clock, sleeping
        try:
            yield
        finally:
            _block, _sleeping = outer


def _install(undo: ExitStack, clock: FakeClock | SimClock) -> None:
    undo.callback(_set_zone, os.environ.get("TZ"))
    _set_zone("UTC")
    if not hasattr(time, "clock"):
        undo.callback(vars(time).pop, "clock", None)  # which freezegun adds
    loaded = frozenset(sys.modules)
    frozen = freezegun.freeze_time(from_ns(clock.now_ns()), ignore=[""])
    frozen.start()
    undo.callback(frozen.stop)
    for kind in (api.real_date, api.real_datetime):
        copyreg.dispatch_table[kind] = _reduced
    undo.callback(_replace, _REAL_OF, loaded)
    for name in ("asctime", "ctime", "sleep"):
        undo.callback(setattr, time, name, getattr(time, name))
    for name, function in _FUNCTIONS.items():
        setattr(time, name, function)
    for name, kind in _CLASSES.items():
        setattr(dt, name, kind)
    _replace(_FAKE_OF, loaded)


def _replace(by_id: dict[int, object], loaded: frozenset[str]) -> None:
    """In all modules, replace each value whose id is in `by_id`.

    Modules that are both in `_UNTOUCHED` and in `loaded` are skipped.
    """
    wanted = by_id.keys()
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] in _UNTOUCHED and name in loaded:
            continue
        try:
            # Not vars(), which makes a lazy module load itself.
            names = object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue
        if not wanted.isdisjoint(map(id, names.values())):
            for attribute, value in list(names.items()):
                if id(value) in wanted:
                    names[attribute] = by_id[id(value)]


def _set_zone(zone: str | None) -> None:
    if zone is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = zone
    with suppress(AttributeError):  # Windows has no tzset
        time.tzset()
