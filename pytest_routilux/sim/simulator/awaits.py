"""`WatchedCoroutine`: a coroutine of a simulated handler that reports its awaits.

Invariants:
- Each await in the user's code that suspends a coroutine of a handler is reported twice: when the
  coroutine is suspended, and just before it continues. So are the awaits of tasks that the handler
  starts.
- On the event loop of a dead host no coroutine continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pytest_routilux.frames import is_users
from pytest_routilux.virtual_time.simulated_step import Pause, running
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from pytest_routilux.virtual_time.simulated_step import Flight


class WatchedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine of a handler that reports where it is suspended."""

    __slots__ = ("_begun", "_coroutine", "_flight", "_pause")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], flight: Flight) -> None:
        self._coroutine = coroutine
        self._flight = flight
        self._pause: Pause | None = None  # where it is suspended
        self._begun = False

    def __del__(self) -> None:
        if not self._begun:
            self._coroutine.close()  # no code of it runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # such as cr_frame

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # it has all methods of a generator

    def __iter__(self) -> WatchedCoroutine:
        return self

    def __next__(self) -> Any:
        return self._resume(self._coroutine.send, None)

    def send(self, value: Any) -> Any:
        return self._resume(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._resume(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def _resume(self, resume: Callable[..., Any], *args: Any) -> Any:
        flight, pause = self._flight, self._pause
        loop = flight.loop
        if not loop.dead and pause is not None:
            error = flight.continues(pause._replace(over=True))
            if error is not None:
                resume, args = self._coroutine.throw, (error,)
        if loop.dead:
            return loop.never()
        self._begun = True
        outer, running.flight = running.flight, flight
        try:
            waited = resume(*args)
        finally:
            running.flight = outer
        self._pause = None
        where = _users_line(self._coroutine)
        if where:
            flight.awaits += 1
            self._pause = Pause(flight.awaits, where)
            flight.suspended(self._pause, waited)
        return waited


def _users_line(coroutine: Any) -> str:
    """Return the line of the user's code at which a coroutine is suspended."""
    found = ""
    while coroutine is not None:
        frame: FrameType | None = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            file = frame.f_code.co_filename
            if is_users(frame.f_globals.get("__name__", ""), file):
                found = f"{file}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)
    return found


def watched_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Return a new task; one that a handler starts reports its awaits."""
    context = active.get()
    flight = None if context is None else getattr(context._host, "flight", None)
    if flight is not None and not isinstance(coroutine, WatchedCoroutine):
        coroutine = WatchedCoroutine(coroutine, flight)
    return asyncio.Task(coroutine, loop=loop, **options)
