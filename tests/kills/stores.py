"""Stores whose every write, and every statement of a write, is a place at which to be killed.

Laws:
- A place is named after what runs, `before claim`, `claim: UPDATE jobs`, `after claim`, so nothing
  here knows how a store does its writes.
- A statement that goes to a server has two: before it is sent, and `…, sent`, before its answer.
- What is asked of a new connection belongs to no write: it is chance which of them opens it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from typing import Any, Final, Self

from routilux import JobStore, PostgresStore, SqliteStore
from tests.kills.places import OPENING, Places

__all__ = ["WRITES", "opened", "plain"]

WRITES: Final = (
    "create",
    "append",
    "append_all",
    "claim",
    "overrule",
    "keep_snapshot",
    "acquire",
    "renew",
    "release",
)
_STATEMENT: Final = re.compile(r"\s*(\w+)")
_TABLE: Final = re.compile(r"\b(?:INTO|UPDATE|FROM)\s+(?:routilux_)?(jobs|commits|snapshots)\b")
_FRAMES: Final = ("BEGIN", "COMMIT", "ROLLBACK")


def plain(where: str) -> SqliteStore | PostgresStore:
    """Return a store that nobody watches; `where` is a path, or `postgres:` and how to connect."""
    kind, _, dsn = where.partition(":")
    return PostgresStore(dsn) if kind == "postgres" else SqliteStore(where)


def opened(where: str, places: Places) -> JobStore:
    """Return a store that is watched, from now to the end of the process."""
    watch = _Watch(places)
    kind, _, dsn = where.partition(":")
    store: Any
    if kind == "postgres":
        _watch_driver(watch)
        store = PostgresStore(dsn)
    else:
        store = _TracedStore(where, watch)
    for name in WRITES:
        setattr(store, name, watch.write(name, getattr(store, name)))
    return store  # type: ignore[no-any-return]  # it is the one class or the other


class _Watch:
    """Which write each thread is in."""

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
        """Be in a statement, and return its name; "" for one that is no part of a write."""
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


class _TracedStore(SqliteStore):
    def __init__(self, path: str, watch: _Watch) -> None:
        super().__init__(path)
        with self._file.using() as db:
            db.set_trace_callback(watch.statement)


def _watch_driver(watch: _Watch) -> None:
    import psycopg

    class Connection(psycopg.Connection[Any]):
        def wait(self: Self, gen: Any, *arguments: Any, **named: Any) -> Any:
            name = watch.statement(_text(gen))
            asked = _sends(gen, watch, name) if name else gen
            return super().wait(asked, *arguments, **named)

    psycopg.connect = Connection.connect


def _text(gen: Any) -> str:
    """Return what a generator of the driver is about to ask of the server."""
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
                sent = True  # it waits for an answer and for nothing else
                watch.sent(name)
            asks = gen.send((yield asks))
    except StopIteration as end:
        return end.value
