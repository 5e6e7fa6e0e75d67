"""Opens a store by its name: the path of a SQLite file, or the URL of a PostgreSQL database.

Invariants:
- Only this module knows which names belong to which kind of store.
- It never creates a store: a mistyped name would create an empty one.
- Reading changes nothing in the store.
- A name that is shown has no password in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from routilux.errors import RoutiluxError
from routilux.persist.postgres import PostgresStore
from routilux.persist.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.clocks.clock import Clock
    from routilux.persist.store import JobStore, SharedStore

_T = TypeVar("_T")
_URLS: Final = ("postgresql://", "postgres://")
_CONNECTION_STRING: Final = re.compile(r"\s*(host|hostaddr|dbname|user|password|service|port)\s*=")
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):[^/?]*@|([?&](?:ssl)?password=)[^&]*")
# A password with a bare / or ?, which ends the name of the host in a URL; a port has only digits.
_BARE: Final = re.compile(r"(postgres(?:ql)?://[^/?@:]*:)(?!\d*[/?])[^@]*[/?].*@")


def read_store(name: str, read: Callable[[JobStore], _T], clock: Clock) -> _T:
    """Open the store `name`, and return `read(store)`; read again if the store has changed.

    `clock` gives the time for a store without its own clock. Raises `OSError` and `SavedStateError`
    as the store does.
    """
    while True:
        with _opened(name, clock, read_only=True) as store:
            try:
                found = read(store)
            except Exception:
                if not _is_overtaken(store):
                    raise
            else:
                if not _is_overtaken(store):
                    return found


def change_store(name: str, change: Callable[[JobStore], _T], clock: Clock) -> _T:
    """Open the store `name` for writing, and return what `change(store)` returns."""
    with _opened(name, clock, read_only=False) as store:
        return change(store)


def is_server(name: str) -> bool:
    """Return whether a store is in a database on a server, and not in a file."""
    return name.startswith(_URLS)


def without_password(name: str) -> str:
    """Return the name of a store with `***` in place of a password.

    >>> without_password("postgresql://user:secret@host/jobs")
    'postgresql://user:***@host/jobs'
    """
    if not is_server(name):
        return name
    name = _BARE.sub(r"\1***@", name)
    return _PASSWORD.sub(lambda m: f"{m[2]}***" if m[2] else f"{m[1]}:***@", name)


def _is_overtaken(store: SharedStore) -> bool:
    return isinstance(store, SqliteStore) and store.overtaken


def _opened(name: str, clock: Clock, *, read_only: bool) -> SharedStore:
    if _BARE.match(name):
        raise OSError(
            f"{without_password(name)}: the password has a / or a ?; write it as %2F or %3F"
        )
    if not is_server(name):
        return SqliteStore(_path(name), clock=clock, read_only=read_only)
    try:
        return PostgresStore(name, read_only=read_only)
    except ImportError as error:
        raise RoutiluxError(str(error)) from None


def _path(name: str) -> Path:
    if _CONNECTION_STRING.match(name) and not Path(name).exists():
        raise OSError(
            "the store's name can't be a key=value string; give the URL of the database:"
            " postgresql://user@host/database"
        )
    path = Path(name)
    if path.is_dir():
        raise OSError(f"{name} is a folder; give the path of the store's file")
    if not path.exists():
        raise OSError(f"{name} does not exist; check the path")
    return path
