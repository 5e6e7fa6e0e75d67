"""Stores whose every write, and every statement of a write, is a place at which to kill.

Invariants:
- A place is named after what is executed: `before claim`, `claim: UPDATE jobs`, `after claim`. So
  this module does not know how a store writes.
- A statement that goes to a server has two places: before it is sent, and `…, sent`, before its
  answer.
- Statements of a new connection belong to no write: which write opens one is chance.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any, Self

from routilux import Clock, JobStore, Signal, SqliteStore, SystemClock
from tests.kills.places import OPENING, Places
from tests.persist import postgres_server
from tests.persist.stores import at, using
from tests.routines import SECOND

WRITES = (
    "create",
    "append",
    "append_all",
    "claim",
    "overrule",
    "keep_snapshot",
    "acquire",
    "renew",
    "release",
    "holders",  # asked before each effect
)
_STATEMENT = re.compile(r"\s*(\w+)")
_TABLE = re.compile(r"\b(?:INTO|UPDATE|FROM)\s+(?:routilux_)?(jobs|commits|snapshots)\b")
_FRAMES = ("BEGIN", "COMMIT", "ROLLBACK")


def fresh_stores(kind: str, folder: Path) -> Callable[[], str]:
    """Return a function that returns the place of a new store, sqlite or postgres."""
    numbers = count()
    if kind == "postgres":
        return postgres_server.fresh_dsn
    return lambda: str(folder / f"jobs-{next(numbers)}.db")


def opened(where: str, places: Places, clock: Clock | None = None) -> JobStore:
    """Return a store whose writes are places, until the process ends."""
    watch = _Watch(places)
    if where.startswith("host="):
        _watch_driver(watch)
    store: Any = at(where, clock)
    if isinstance(store, SqliteStore):
        places.quiet = store._file.lock
        with using(store) as db:
            db.set_trace_callback(watch.statement)
    for name in WRITES:
        setattr(store, name, watch.write(name, getattr(store, name)))
    return store


class SetClock(Clock):
    """The system's clock, set wrong by as many seconds as a file says."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._clock = SystemClock()

    def now_ns(self) -> int:
        return self._clock.now_ns() + round(float(self._path.read_text("ascii")) * SECOND)

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()

    def signal(self) -> Signal:
        return self._clock.signal()

    def wait(self, *how: Any, **named: Any) -> bool:
        return self._clock.wait(*how, **named)


class _Watch:
    """Knows the write that each thread is in."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._mine = threading.local()

    def write(self, name: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._places.at(f"before {name}"):
                self._mine.write = name
                try:
                    return does(*arguments, **named)
                finally:
                    self._mine.write = ""
                    self._places.enter(f"after {name}")

        return call

    def statement(self, text: str) -> str:
        """Enter a statement, and return its name; "" if it belongs to no write."""
        write = getattr(self._mine, "write", "")
        begins = _STATEMENT.match(text)
        verb = begins[1] if begins else "?"
        table = _TABLE.search(text)
        if table is None and verb not in _FRAMES:
            with self._places.at(OPENING):
                return ""
        if not write:
            return ""
        name = f"{write}: {verb} {table[1]}" if table else f"{write}: {verb}"
        self._places.enter(name)
        return name

    def sent(self, name: str) -> None:
        self._places.enter(f"{name}, sent")


def _watch_driver(watch: _Watch) -> None:
    import psycopg

    class Connection(psycopg.Connection[Any]):
        def wait(self: Self, gen: Any, *arguments: Any, **named: Any) -> Any:
            name = watch.statement(_text(gen))
            asked = _sends(gen, watch, name) if name else gen
            return super().wait(asked, *arguments, **named)

    psycopg.connect = Connection.connect


def _text(gen: Any) -> str:
    """Return the statement that a generator of the driver is about to send."""
    does, holds = gen.gi_code.co_name, gen.gi_frame.f_locals
    if does == "_enter_gen":
        return "BEGIN"
    if does == "_exit_gen":
        return "COMMIT" if holds.get("exc_type") is None else "ROLLBACK"
    query = holds.get("query", does)
    return query if isinstance(query, str) else str(does)


def _sends(gen: Any, watch: _Watch, name: str) -> Generator[Any, Any, Any]:
    from psycopg.waiting import Wait

    sent = False
    try:
        asks = next(gen)
        while True:
            if asks == Wait.R and not sent:
                sent = True  # it only waits for an answer
                watch.sent(name)
            asks = gen.send((yield asks))
    except StopIteration as end:
        return end.value
