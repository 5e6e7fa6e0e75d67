"""A store from its name, as it stands in a configuration or on a command line.

Laws:
- This is the one place that knows which names belong to which stores.
- A store that is not there is never made here: a name that was mistyped would make an empty one.
- Whoever only looks leaves no trace in the store.
- A name that is shown has no password in it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from routilux.errors import RoutiluxError
from routilux.persist.postgres import PostgresStore
from routilux.persist.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from routilux.clocks.clock import Clock
    from routilux.persist.store import JobStore

__all__ = ["changed", "looked", "shown"]

_T = TypeVar("_T")
_DSN: Final = ("postgresql://", "postgres://")
_WORDS: Final = re.compile(r"\s*(host|hostaddr|dbname|user|password|service|port)\s*=")
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):[^/?]*@|([?&](?:ssl)?password=)[^&]*")


def looked(name: str, look: Callable[[JobStore], _T], clock: Clock) -> _T:
    """Return what `look` finds in a store that is there; it may be called more than once.

    `name` is the path of a SQLite file, or postgresql://user@host/database; `clock` is the time of
    a store that has none of its own. Raises `OSError` and `SavedStateError` as the store does.
    """
    if name.startswith(_DSN):
        with _postgres(name, read_only=True) as there:
            return look(there)
    path = _path(name)
    while True:
        with SqliteStore(path, clock=clock, read_only=True) as store:
            try:
                found = look(store)
            except Exception:
                if not store.overtaken:
                    raise
            else:
                if not store.overtaken:
                    return found


def changed(name: str, change: Callable[[JobStore], _T], clock: Clock) -> _T:
    """Return what `change` gives back, which may write to a store that is there; see `looked`."""
    looked(
        name, lambda store: None, clock
    )  # refuses what is no store before anything is written to it
    if name.startswith(_DSN):
        with _postgres(name) as there:
            return change(there)
    with SqliteStore(_path(name), clock=clock) as store:
        return change(store)


def shown(name: str) -> str:
    """Return the name of a store as it may be shown.

    >>> shown("postgresql://user:secret@host/jobs")
    'postgresql://user:***@host/jobs'
    """
    if not name.startswith(_DSN):
        return name
    return _PASSWORD.sub(lambda m: f"{m[2]}***" if m[2] else f"{m[1]}:***@", name)


@contextmanager
def _postgres(dsn: str, *, read_only: bool = False) -> Iterator[JobStore]:
    try:
        store = PostgresStore(dsn, read_only=read_only)
    except ImportError as error:
        raise RoutiluxError(str(error)) from None
    with store:
        yield store


def _path(name: str) -> Path:
    if _WORDS.match(name) and not Path(name).exists():
        raise OSError("a PostgreSQL database is named by its URL: postgresql://user@host/database")
    path = Path(name)
    if path.is_dir():
        raise OSError(f"{name} is a folder; a store is one file in it")
    if not path.exists():
        raise OSError(f"there is no file {name}; is the path right?")
    return path
