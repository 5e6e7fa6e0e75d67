"""Virtual time for code that asks `time` and `datetime`: `frozen_clock()`, `frozen_simulation()`.

Laws:
- A clock owns the time, and every reading asks it; nothing is moved when it moves. In a handler of
  a simulation that is the clock of its host, else the one of the block.
- `time()`, `localtime()`, `ctime()`, `datetime.now()` and their kin tell the clock's wall time,
  `monotonic()` and `perf_counter()` its progress: a wall clock that is set moves no timer. Real are
  `process_time()` and `thread_time()`, which count work, and `clock_gettime()`, which asks for a
  clock of the system by name.
- `time.sleep` in a step is the step's `ctx.sleep`, or fails the test, or stays real, as
  `routilux_sleep` says. Elsewhere it is real: in a test's body, and in threads that a handler
  starts by itself.
- Nobody else freezes the time meanwhile.
- Who calls decides, not who is on the stack: the timers of threads, queues, processes and event
  loops, of pytest and its companions, stay real in every thread, also while a handler is running.
- What `datetime.now()` returns is an ordinary `datetime`, so it is copied, saved, pickled and
  compared like any other.
- Local time is UTC. Everything is as before when the block ends, however it ends.

freezegun alone does not do this. It leaves `time.sleep` alone, lets `monotonic()` follow the wall
time, looks five frames up to see who calls, matches modules by prefix, rounds `time_ns()` through a
float, and makes instances of a class of its own, which no saved form knows. So it is told to patch
no module (every name begins with ""), which also saves most of its cost, and the names are replaced
here: those that modules have imported, other than the standard library's, and those of `time` and
`datetime`. A function kept elsewhere (a default argument, a class attribute) keeps being real.
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
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import freezegun
import pytest
from freezegun import api

from pytest_routilux.virtual_time.freeze_conflicts import refuse_around, refused_inside
from pytest_routilux.virtual_time.late_failures import all_told, note
from routilux import FakeClock
from routilux.clocks.clock import real_sleep
from routilux.clocks.durations import SECOND, from_ns
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from types import FrameType

    from pytest_routilux.settings import Sleeping
    from pytest_routilux.virtual_time.simulated_step import running
    from routilux import Context

__all__ = ["frozen_clock", "frozen_simulation"]

# Their timers measure or bound what really happens. (Those of threading are out of reach already:
# a module of the standard library keeps the functions that it has imported by name.)
_REAL_CALLERS: Final = frozenset(
    {
        "_pytest",
        "asyncio",
        "concurrent",
        "execnet",
        "freezegun",
        "hypothesis",
        "multiprocessing",
        "pluggy",
        "pytest",
        "pytest_benchmark",
        "pytest_routilux",
        "pytest_timeout",
        "queue",
        "routilux",
        "socketserver",
        "subprocess",
        "trio",
        "xdist",
    }
)
# freezegun leaves these alone, so what stands in `time` is the real one.
_real_asctime, _real_ctime = time.asctime, time.ctime
_UNTOUCHED: Final = _REAL_CALLERS | sys.stdlib_module_names


class _Clock(Protocol):
    def now_ns(self) -> int: ...
    def monotonic_ns(self) -> int: ...
    def runs_here(self) -> bool: ...


class _Standing:
    """What a simulation shows where no handler runs: its first instant."""

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns

    def now_ns(self) -> int:
        return self._start_ns

    def monotonic_ns(self) -> int:
        return 0

    def runs_here(self) -> bool:
        return False


_block: _Clock | None = None
_simulation: type[running] | None = None
_sleeping: Sleeping = "virtual"


# --- what callers get -----------------------------------------------------------------------------


def _clock() -> _Clock | None:
    if _simulation is not None and _simulation.clock is not None:
        return _simulation.clock
    return _block


def _reads_real(caller: str) -> bool:
    return _block is None or caller.partition(".")[0] in _REAL_CALLERS


def _wall() -> int:
    clock = _clock()  # None: a thread that outlives the block reads after its end
    now: int = api.real_time_ns() if clock is None else clock.now_ns()
    return now // 1000


def _wall_seconds() -> float:
    return _wall() / 1_000_000


def _monotonic_ns() -> int:
    clock = _clock()
    return api.real_monotonic_ns() if clock is None else clock.monotonic_ns()


def _monotonic() -> float:
    return _monotonic_ns() / SECOND


def _sleep(seconds: Any, /) -> None:
    context, clock = active.get(), _clock()
    # A handler's thread has the turn; one that it started, even with its context, has none.
    if context is None or clock is None or not clock.runs_here() or _sleeping == "real":
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
        f"{context.step.who} called time.sleep({seconds!r}) at {where}, which"
        f" routilux_sleep = error forbids: use self.ctx.sleep({seconds!r})",
        pytrace=False,
    )
    note(error)
    raise error


def _localtime(seconds: float | None = None, /) -> time.struct_time:
    return api.real_localtime(_wall_seconds() if seconds is None else seconds)


def _gmtime(seconds: float | None = None, /) -> time.struct_time:
    return api.real_gmtime(_wall_seconds() if seconds is None else seconds)


def _strftime(form: str, moment: Any = None, /) -> str:
    return api.real_strftime(form, _localtime() if moment is None else moment)


def _asctime(moment: Any = None, /) -> str:
    return _real_asctime(_localtime() if moment is None else moment)


def _ctime(seconds: float | None = None, /) -> str:
    return _real_asctime(_localtime(seconds))


def _stand_in(real: Callable[..., Any], virtual: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(real)
    def read(*args: Any, **kwargs: Any) -> Any:
        if _reads_real(sys._getframe(1).f_globals.get("__name__", "")):
            return real(*args, **kwargs)
        return virtual(*args, **kwargs)

    return read


class _StandIn(type):
    """Of classes that pass for the real one in isinstance, issubclass, == and as keys of a dict."""

    def __instancecheck__(cls, value: object) -> bool:
        return type.__instancecheck__(_passes_for(cls), value)

    def __subclasscheck__(cls, kind: type) -> bool:
        return type.__subclasscheck__(_passes_for(cls), kind)

    def __eq__(cls, other: object) -> bool:
        return cls is other or _passes_for(cls) is other

    def __hash__(cls) -> int:
        return hash(_passes_for(cls)) if _passes_for(cls) is not cls else type.__hash__(cls)


def _passes_for(kind: type) -> type:
    # A class that user code derives from one of ours passes for nothing but itself.
    found: type = vars(kind).get("_real", kind)
    return found


class _Date(api.real_date, metaclass=_StandIn):
    _real = api.real_date

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls if "_real" not in vars(cls) else cls._real, *args, **kwargs)

    @classmethod
    def today(cls) -> Any:
        if _reads_real(sys._getframe(1).f_globals.get("__name__", "")):
            return super().today()
        return cls.fromordinal(_local_now().toordinal())


class _Datetime(api.real_datetime, metaclass=_StandIn):
    _real = api.real_datetime

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls if "_real" not in vars(cls) else cls._real, *args, **kwargs)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        if _reads_real(sys._getframe(1).f_globals.get("__name__", "")):
            return super().now(tz)
        now = _local_now() if tz is None else from_ns(_wall() * 1000).astimezone(tz)
        return cls.combine(now.date(), now.timetz())

    @classmethod
    def today(cls) -> Any:
        if _reads_real(sys._getframe(1).f_globals.get("__name__", "")):
            return super().today()
        now = _local_now()
        return cls.combine(now.date(), now.timetz())

    @classmethod
    def utcnow(cls) -> Any:
        if _reads_real(sys._getframe(1).f_globals.get("__name__", "")):
            return super().utcnow()
        now = from_ns(_wall() * 1000)
        return cls.combine(now.date(), now.time())


def _local_now() -> dt.datetime:
    return from_ns(_wall() * 1000).astimezone().replace(tzinfo=None)


for _kind, _name in ((_Date, "date"), (_Datetime, "datetime")):
    # A pickle names the class as anybody's would, so it can be read anywhere.
    _kind.__module__, _kind.__qualname__, _kind.__name__ = "datetime", _name, _name


def _reduced(moment: Any) -> tuple[Any, ...]:
    _, *rest = moment.__reduce_ex__(4)
    return (getattr(dt, type(moment).__name__), *rest)


_FUNCTIONS: Final = {
    "asctime": _stand_in(_real_asctime, _asctime),
    "ctime": _stand_in(_real_ctime, _ctime),
    "gmtime": _stand_in(api.real_gmtime, _gmtime),
    "localtime": _stand_in(api.real_localtime, _localtime),
    "monotonic": _stand_in(api.real_monotonic, _monotonic),
    "monotonic_ns": _stand_in(api.real_monotonic_ns, _monotonic_ns),
    "perf_counter": _stand_in(api.real_perf_counter, _monotonic),
    "perf_counter_ns": _stand_in(api.real_perf_counter_ns, _monotonic_ns),
    "sleep": _stand_in(real_sleep, _sleep),
    "strftime": _stand_in(api.real_strftime, _strftime),
    "time": _stand_in(api.real_time, _wall_seconds),
    "time_ns": _stand_in(api.real_time_ns, lambda: _wall() * 1000),
}
_CLASSES: Final[dict[str, Any]] = {"date": _Date, "datetime": _Datetime}
_REAL_OF: Final[dict[int, object]] = {
    **{id(fake): vars(fake)["__wrapped__"] for fake in _FUNCTIONS.values()},
    **{id(fake): fake._real for fake in _CLASSES.values()},
}
_FAKE_OF: Final[dict[int, object]] = {
    id(real): fake
    for fake in (*_FUNCTIONS.values(), *_CLASSES.values())
    for real in (_REAL_OF[id(fake)],)
}


# --- putting it in place --------------------------------------------------------------------------


@contextmanager
def frozen_clock(
    sleeping: Sleeping = "virtual", *, start: datetime | str = "2026-01-01"
) -> Iterator[FakeClock]:
    """Yield a fake clock that `time` and `datetime` follow until the block ends, in all threads.

    Fails the test where something else freezes the time, around it or inside it.
    """
    if not isinstance(_block, _Standing):
        refuse_around("flow_clock")
    clock = FakeClock(start)
    with _owned_by(clock, "flow_clock", sleeping):
        yield clock


@contextmanager
def frozen_simulation(start_ns: int, sleeping: Sleeping = "virtual") -> Iterator[None]:
    """Let `time` and `datetime` follow the simulated handler that runs, until the block ends.

    Where none runs they show `start_ns`, or the clock of a `frozen_clock()` around this.
    Fails the test where something else freezes the time, around it or inside it.
    """
    global _simulation
    from pytest_routilux.virtual_time.simulated_step import running

    if _block is None:
        refuse_around("flow_sim")
    outer, _simulation = _simulation, running
    try:
        with _owned_by(_Standing(start_ns) if _block is None else _block, "flow_sim", sleeping):
            yield
    finally:
        _simulation = outer


@contextmanager
def _owned_by(clock: _Clock, fixture: str, sleeping: Sleeping) -> Iterator[None]:
    global _block, _sleeping
    outer = _block, _sleeping
    with ExitStack() as undo:
        undo.enter_context(all_told())
        if _block is None:
            _put_in_place(undo, clock)
            undo.enter_context(refused_inside(fixture))
        _block, _sleeping = clock, sleeping
        try:
            yield
        finally:
            _block, _sleeping = outer


def _put_in_place(undo: ExitStack, clock: _Clock) -> None:
    undo.callback(_restore_zone, os.environ.get("TZ"))
    _set_zone("UTC")
    undo.callback(_drop_clock_of_python_2, hasattr(time, "clock"))
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
    """Replace in the names of modules; of the untouched ones, in those not loaded at the start."""
    wanted = by_id.keys()
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] in _UNTOUCHED and name in loaded:
            continue
        try:
            # Not vars(): a lazy module would load itself.
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


_restore_zone = _set_zone


def _drop_clock_of_python_2(had_it: bool) -> None:
    if not had_it:
        with suppress(AttributeError):
            del time.clock  # type: ignore[attr-defined]  # freezegun adds it
