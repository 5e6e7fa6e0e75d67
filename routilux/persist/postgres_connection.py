"""`Database`: the connections of a process to the PostgreSQL database that has a store's tables.

Laws:
- A statement is sent alone and is a transaction. When it returns, the server has flushed what it
  changed, also where the server's own default is not to wait.
- A connection that was lost is found by the statement that needs it. That is sent once more, over a
  new one: so it must be one that may be done twice. It is never done twice at once: what is left of
  the lost connection on the server is ended first.
- Whoever comes first makes the tables, all at once; the others wait for it. One that only reads
  makes none and changes nothing.
- A connection belongs to the process that opened it; after a fork the child opens its own.
- What goes wrong names the database, never the password. Its surroundings are `OSError`, its
  content is `SavedStateError`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from routilux.errors import CorruptStateError, UnserializableError, UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Database"]

_VERSION: Final = 1
_MAKING: Final = 0x726F7574696C7578  # the lock of whoever makes the tables
_CONNECTIONS: Final = 8  # at once, in a process; the server flushes what they commit together
_SCHEMA: Final = f"""
CREATE TABLE routilux_version (version int NOT NULL);
INSERT INTO routilux_version VALUES ({_VERSION});
CREATE TABLE routilux_jobs (
    job bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id text COLLATE "C" NOT NULL UNIQUE,
    flow_id text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,   -- '' or '?' for nobody
    free_at bigint,                    -- UTC nanoseconds; NULL for never
    lease bigint                       -- which call of acquire has given it
);
CREATE INDEX routilux_free ON routilux_jobs (flow_id, free_at, job) WHERE free_at IS NOT NULL;
CREATE INDEX routilux_leased ON routilux_jobs (owner, job_id) WHERE free_at IS NOT NULL;
CREATE TABLE routilux_commits (
    job bigint NOT NULL REFERENCES routilux_jobs,
    seq bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (job, seq)
);
CREATE TABLE routilux_snapshots (
    job bigint PRIMARY KEY REFERENCES routilux_jobs,
    seq bigint NOT NULL,
    data bytea NOT NULL
);
"""
# Who waits for a lock goes on with what the one before has left; stricter, that were an error. And
# every statement is planned once, by the indexes, however few jobs the server has counted by then.
_SETTINGS: Final = """
SELECT set_config(name, setting, false) FROM (VALUES
    ('default_transaction_isolation', 'read committed'),
    ('synchronous_commit',
        coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on')),
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off')
) AS settings (name, setting)
"""
_BACKEND: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END: Final = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE pid = %s AND backend_start = %s
"""
_SHOWN: Final = ("service", "host", "hostaddr", "port", "user", "dbname")
# A host that has vanished says nothing: without these a connection to it waits for hours.
_DEFAULTS: Final[dict[str, str | int]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "fallback_application_name": "routilux",
}
_CURES: Final = {
    "25006": "nothing can be written to it: name the primary, and open it without read_only",
    "3F000": "the schema of search_path must exist; the store makes only its tables",
    "42501": "grant the right to this user, who must be able to make tables at the first use",
    "42P07": "it is not the store's, or has lost its version; choose another schema",
    "53100": "the disk is full; make room, then resume the jobs: no commit is half written",
    "55P03": "somebody keeps a table locked; is a transaction open in another program?",
    "57014": "the server's statement_timeout is too short, or somebody cancelled it",
}
_UNREACHED: Final = (
    "does the server run, and may this user connect? What was committed before is there when it"
    " answers again"
)
_DAMAGE: Final = ("XX", "42P01", "42703")  # an internal error; a table or column that is gone
# Connections of the process before a fork, which are not the child's to end.
_inherited: Final[list[LifoQueue[_Link | None]]] = []


class Answer(NamedTuple):
    """What a statement has answered; `mended` where an earlier answer to it may have been lost."""

    rows: list[tuple[Any, ...]]
    mended: bool


class _Link(NamedTuple):
    db: Any
    backend: tuple[Any, ...]  # its process on the server, and when that began


class Database:
    """Connections to the database of `dsn`, opened when they are needed."""

    def __init__(self, dsn: str, *, read_only: bool) -> None:
        self._psycopg = _driver()
        try:
            parts = self._psycopg.conninfo.conninfo_to_dict(dsn)
        except self._psycopg.ProgrammingError:  # its message repeats the string, password and all
            raise OSError(
                "the connection string can't be read; write postgresql://user@host/database,"
                " with what is special in it percent-encoded"
            ) from None
        self.name = " ".join(f"{key}={parts[key]}" for key in _SHOWN if key in parts)
        defaults = {key: value for key, value in _DEFAULTS.items() if key not in parts}
        self._dsn = self._psycopg.conninfo.make_conninfo(dsn, **defaults)
        self._read_only = read_only
        self._pool, self._process = _closed(), os.getpid()
        self.do("SELECT 1", {})

    def close(self) -> None:
        """Close the connections; they are opened again when they are needed."""
        pool = self._connections()
        closed = 0
        with suppress(Empty):
            while True:
                link = pool.get_nowait()
                closed += 1
                if link is not None:
                    link.db.close()
        for _ in range(closed):
            pool.put(None)

    def do(self, statement: str, values: Mapping[str, object]) -> Answer:
        """Send a statement and return what it has answered."""
        pool = self._connections()
        link = pool.get()
        lost: _Link | None = None
        try:
            while True:
                try:
                    if link is None:
                        link = self._opened(lost)
                    found = link.db.execute(statement, values, binary=True).fetchall()
                    return Answer(found, lost is not None)
                except self._psycopg.Error as error:
                    if lost is not None or link is None or not link.db.closed:
                        raise self._named(error) from error
                    lost, link = link, None
        finally:
            if link is not None and link.db.info.transaction_status:  # not idle
                link.db.close()  # lost, or left in the middle of an answer
                link = None
            pool.put(link)

    def _connections(self) -> LifoQueue[_Link | None]:
        if self._process != os.getpid():
            _inherited.append(self._pool)
            self._pool, self._process = _closed(), os.getpid()
        return self._pool

    def _opened(self, lost: _Link | None) -> _Link:
        db = self._psycopg.connect(self._dsn, autocommit=True, client_encoding="UTF8")
        try:
            if lost is not None:
                db.execute(_END, lost.backend)
            db.execute(_SETTINGS)
            if not self._is_known(db):
                self._make(db)
            if self._read_only:
                db.execute("SET default_transaction_read_only = on")
            return _Link(db, db.execute(_BACKEND).fetchone())
        except BaseException:
            db.close()
            raise

    def _make(self, db: Any) -> None:
        if self._read_only:
            raise CorruptStateError(self.name, "holds no store: its tables were never made")
        # Held by the session: within a transaction that waits for a lock, a table that was made
        # meanwhile may stay unseen.
        db.execute("SELECT pg_advisory_lock(%s)", (_MAKING,))
        if not self._is_known(db):  # another host may have been faster
            db.execute(_SCHEMA)  # one transaction, since it is sent as one
        db.execute("SELECT pg_advisory_unlock(%s)", (_MAKING,))

    def _is_known(self, db: Any) -> bool:
        (there,) = db.execute("SELECT to_regclass('routilux_version')").fetchone()
        if there is None:
            return False
        (version,) = db.execute("SELECT max(version) FROM routilux_version").fetchone()
        if version is None or version < 1:
            raise CorruptStateError(
                self.name, f"routilux_version says {version}; restore it from a copy"
            )
        if version > _VERSION:
            raise UnsupportedVersionError(
                self.name,
                f"has version {version}; this one reads {_VERSION}; install a newer version",
            )
        return True

    def _named(self, error: Any) -> Exception:
        code = error.sqlstate or ""
        said = error.diag.message_primary or " ".join(str(error).split())
        if code.startswith(_DAMAGE):
            return CorruptStateError(
                self.name, f"has no sound tables ({said}); restore them from a copy"
            )
        if isinstance(error, self._psycopg.DataError):
            return UnserializableError(self.name, f"can't keep this: {said}")
        lost = _UNREACHED if isinstance(error, self._psycopg.OperationalError) else ""
        cure = _CURES.get(code, lost)
        whole: Exception = OSError(f"the store {self.name}: {said}; {cure}") if cure else error
        return whole


def _closed() -> LifoQueue[_Link | None]:
    pool: LifoQueue[_Link | None] = LifoQueue()
    for _ in range(_CONNECTIONS):
        pool.put(None)
    return pool


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise ImportError(
            "PostgresStore needs psycopg 3; run: pip install 'psycopg[binary]>=3.1'"
        ) from error
    return psycopg
