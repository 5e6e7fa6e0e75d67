"""Makes the event loops of a test follow its fake clock.

Invariants:
- While a clock is active, each event loop that a policy of asyncio makes is one of the clock: those
  of `asyncio.run`, of a `Runner` without a factory, of `new_event_loop`, of unittest, of anyio and
  of pytest-asyncio, also in threads. At the end everything is as before.
- The handler of a job gets a loop of the clock of its runtime.
- The fixtures of other plugins may make the loop before they ask for the clock. So the clock of a
  test that names a clock fixture is made before all fixtures.
- A fixture that outlives the test gets a real loop. The loops of uvloop are refused.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_routilux.frames import outwards, place_of, users_frame
from pytest_routilux.settings import flow_time, patience_ns
from pytest_routilux.virtual_time.late_failures import record_failure
from pytest_routilux.virtual_time.simulated_step import running
from routilux import FakeClock
from routilux.engine.drive import Drive
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from routilux import Clock
    from routilux.clocks.real_waits import WatchedThread

_planned: Final[dict[pytest.Item, tuple[FakeClock, ExitStack]]] = {}
_POLICY: Any = (
    getattr(  # since 3.14 it is private
        asyncio.events, "_BaseDefaultEventLoopPolicy", None
    )
    or vars(asyncio.events)["BaseDefaultEventLoopPolicy"]
)
_real_loop: Final = _POLICY.new_event_loop
_clock: FakeClock | None = None
_outliving = 0  # fixtures of a wider scope than the test that are being set up


def plan_clock(item: pytest.Item) -> None:
    """Make the clock of a test before its fixtures make an event loop."""
    import pytest

    try:
        clock = new_clock(item)
    except pytest.fail.Exception:
        return  # the fixture will raise it
    undo = ExitStack()
    undo.enter_context(virtual_loops(clock))
    _planned[item] = clock, undo


def forget_clock(item: pytest.Item) -> None:
    """End what `plan_clock` has begun."""
    if item in _planned:
        _planned.pop(item)[1].close()


@contextmanager
def clock_of(item: pytest.Item) -> Iterator[FakeClock]:
    """Yield the clock of a test, whose loops follow it in the `with` block."""
    if item in _planned:
        yield _planned[item][0]
        return
    clock = new_clock(item)  # a fixture asks for it by `getfixturevalue`
    with virtual_loops(clock):
        yield clock


def new_clock(item: pytest.Item) -> FakeClock:
    """Return a new clock for a test."""
    clock = FakeClock(flow_time(item).start)
    clock.patience_ns = patience_ns(item.config)
    clock.on_lost_thread = _report_lost
    return clock


@contextmanager
def virtual_loops(clock: FakeClock) -> Iterator[None]:
    """In the `with` block, let new event loops pass the time of `clock`."""
    global _clock
    outer, _clock = _clock, clock
    with ExitStack() as undo:
        if outer is None:
            _POLICY.new_event_loop = _new_event_loop
            undo.callback(setattr, _POLICY, "new_event_loop", _real_loop)
            undo.enter_context(_uvloop_refused())
            undo.enter_context(_watched_threads())
        try:
            yield
        finally:
            _clock = outer


@contextmanager
def _watched_threads() -> Iterator[None]:
    """Let the fake clocks wait for the threads that their threads start."""
    real_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        real_start(thread)
        clock = _clock_here()
        if isinstance(clock, FakeClock) and clock.runs_here():
            frame = users_frame(outwards(sys._getframe(1)))
            if frame is not None and not thread.name.startswith("routilux"):
                clock.watch(thread, place_of(frame))

    threading.Thread.start = start  # type: ignore[assignment,method-assign]  # undone below
    try:
        yield
    finally:
        if threading.Thread.start is start:
            threading.Thread.start = real_start  # type: ignore[method-assign]  # as it was


def _report_lost(watched: WatchedThread) -> None:
    import pytest

    record_failure(
        pytest.fail.Exception(
            f"the thread {watched.thread.name!r}, started at {watched.place}, woke the event loop"
            " after virtual time had moved on without it, so a timeout may have ended too early;"
            " run its work by asyncio.to_thread(), or raise routilux_blocked_after (seconds;"
            " 0: no limit)",
            pytrace=False,
        )
    )


@contextmanager
def outliving(fixture: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Let the set-up of a fixture that outlives the test make real loops."""
    global _outliving
    wide = fixture.scope != "function"
    _outliving += wide
    try:
        yield
    finally:
        _outliving -= wide


def _new_event_loop(policy: Any) -> Any:
    clock = _clock_here()
    # A clock asks the policy itself for a real loop.
    asks = sys._getframe(2).f_globals.get("__name__")
    if clock is None or asks == "routilux.clocks.clock":
        return _real_loop(policy)
    return clock.new_event_loop()


def _clock_here() -> Clock | None:
    if running.clock is not None:
        return running.clock
    context = active.get()
    if context is not None and isinstance(context._host, Drive):
        return context._host.environment.clock
    return None if _outliving else _clock


@contextmanager
def _uvloop_refused() -> Iterator[None]:
    if importlib.util.find_spec("uvloop") is None:
        yield
        return
    import uvloop

    names = ("run_forever", "run_until_complete")
    for name in names:
        setattr(uvloop.Loop, name, _refuse_uvloop)
    try:
        yield
    finally:
        for name in names:
            delattr(uvloop.Loop, name)


def _refuse_uvloop(loop: object, *args: object) -> NoReturn:
    import pytest

    for argument in args:  # else Python warns of a coroutine that was never awaited
        found = argument.get_coro() if isinstance(argument, asyncio.Task) else argument
        if asyncio.iscoroutine(found):
            found.close()
    pytest.fail(
        "an event loop of uvloop runs in real time, so it can't follow the fake clock of this test;"
        " run the code with asyncio.run(), or test it without flow_clock, flow_clock_bare and"
        " flow_runtime",
        pytrace=False,
    )
