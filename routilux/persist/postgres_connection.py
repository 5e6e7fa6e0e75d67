"""`Database`: this process's connections to a PostgreSQL database.

Invariants:
- A statement is sent alone and is a transaction. When it returns, the server has flushed what it
  changed, even if the server's default is not to wait.
- A lost connection is noticed by the next statement, which is sent once more over a new connection.
  So each statement must be one that may be executed twice. The two executions never overlap: the
  server's process of the lost connection is ended first.
- The first host creates all tables at once; the others wait for it. A reader creates no table and
  changes nothing.
- A connection belongs to the process that opened it; after a fork the child opens its own.
- Each error names the database, never the password: `OSError` for the server and its rights,
  `SavedStateError` for the content.
"""

from __future__ import annotations

import os
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from routilux.errors import CorruptStateError, UnserializableError
from routilux.persist.versions import newer_store

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION: Final = 1
_CREATING: Final = 0x726F7574696C7578  # the lock of the host that creates the tables
_CONNECTIONS: Final = 8  # of a process; what they commit at once, the server flushes together
_SEALED: Final = ("job_id", "flow_id", "owner", "free_at", "wait", "lease", "status", "seq")
_SEAL: Final = "hashtextextended({}, 0)".format(
    " || chr(31) || ".join(f"coalesce({name}::text, '')" for name in _SEALED)
)
INTACT: Final = f"seal = {_SEAL}"
"""SQL that is true for an entry that is as the server wrote it."""
_SCHEMA: Final = f"""
CREATE TABLE routilux_version (version int NOT NULL);
INSERT INTO routilux_version VALUES ({_VERSION});
CREATE TABLE routilux_jobs (
    job bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id text COLLATE "C" NOT NULL UNIQUE,
    flow_id text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,   -- '' or '?' for nobody
    free_at bigint,                    -- UTC nanoseconds; NULL for never
    wait bigint,                       -- the nanoseconds of the wait that ends then
    lease bigint,                      -- the call of acquire that gave it
    status text COLLATE "C" NOT NULL,  -- of the last commit
    seq bigint NOT NULL,               -- the number of the last commit
    seal bigint NOT NULL GENERATED ALWAYS AS ({_SEAL}) STORED
);
CREATE INDEX routilux_free ON routilux_jobs (flow_id, free_at, job) WHERE free_at IS NOT NULL;
CREATE INDEX routilux_leased ON routilux_jobs (owner, job_id) WHERE free_at IS NOT NULL;
CREATE TABLE routilux_commits (
    job bigint NOT NULL REFERENCES routilux_jobs ON DELETE CASCADE,
    seq bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (job, seq)
);
CREATE TABLE routilux_snapshots (
    job bigint PRIMARY KEY REFERENCES routilux_jobs ON DELETE CASCADE,
    seq bigint NOT NULL,
    data bytea NOT NULL
);
"""
# A statement that waited for a lock sees what the other one has written: a stricter isolation would
# make that an error. A plan is made once, and uses the indexes however few jobs there are then.
# A scan of a table without an index has so high a cost then that the server would compile it: 0.1 s
# for each new connection.
_SETTINGS: Final = """
SELECT set_config(name, setting, false) FROM (VALUES
    ('default_transaction_isolation', 'read committed'),
    ('synchronous_commit',
        coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on')),
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_bitmapscan', 'off'),
    ('jit', 'off')
) AS settings (name, setting)
"""
_BACKEND: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END: Final = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE pid = %s AND backend_start = %s
"""
_SHOWN: Final = ("service", "host", "hostaddr", "port", "user", "dbname")
# Without these a connection to a server that has vanished waits for hours.
_DEFAULTS: Final[dict[str, str | int]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "fallback_application_name": "routilux",
}
_CURES: Final = {
    "25006": "connect to the primary server, and open the store without read_only",
    "3F000": "the schema of search_path must exist; the store creates only its tables",
    "42501": "grant the right to this user, who must be able to create tables at the first use",
    "42P07": "its tables are of another program or have lost their version; choose another schema",
    "53100": "the disk is full; make room, then resume the jobs: no commit is half written",
    "55P03": "another program keeps a table locked; end its open transaction",
    "57014": "statement_timeout or an administrator of the server ended the statement; try again",
}
_UNREACHED: Final = (
    "check that the server runs and lets this user connect; jobs keep all earlier commits"
)
_DAMAGE: Final = ("XX", "42P01", "42703")  # an internal error; a missing table or column
# Connections of the parent process, kept open: a forked child must not end them.
_inherited: Final[list[list[_Slot]]] = []


class Answer(NamedTuple):
    """A statement's rows, and whether the statement was sent twice."""

    rows: list[tuple[Any, ...]]
    repeated: bool


class _Link(NamedTuple):
    db: Any
    backend: tuple[Any, ...]  # its process on the server, and when that started


class _Slot:
    """A place for one connection, locked during use.

    A lock that `with` takes and releases is the only thing that no interrupt can leave locked; a
    queue of connections would lose one, or keep its own lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.link: _Link | None = None

    def drop(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.db.close()


class Database:
    """A pool of connections to the database `dsn`."""

    def __init__(self, dsn: str, *, read_only: bool) -> None:
        self._psycopg = _driver()
        try:
            parts = self._psycopg.conninfo.conninfo_to_dict(dsn)
        except self._psycopg.ProgrammingError:  # its message repeats the string, password and all
            raise OSError(
                "the connection string can't be read; write postgresql://user@host/database,"
                " with special characters percent-encoded"
            ) from None
        self.name = " ".join(f"{key}={parts[key]}" for key in _SHOWN if key in parts)
        defaults = {key: value for key, value in _DEFAULTS.items() if key not in parts}
        self._dsn = self._psycopg.conninfo.make_conninfo(dsn, **defaults)
        self._read_only = read_only
        self._turns = count()
        self._slots, self._process = _fresh_slots(), os.getpid()
        self.do("SELECT 1", {})

    def close(self) -> None:
        """Close the idle connections; later statements open new ones."""
        for slot in self._of_this_process():
            if not slot.lock.locked():
                with slot.lock:
                    slot.drop()

    def do(self, statement: str, values: Mapping[str, object]) -> Answer:
        """Execute a statement on a free connection and return the answer."""
        slot = self._free_slot()
        lost: _Link | None = None
        with slot.lock:
            try:
                while True:
                    try:
                        if slot.link is None:
                            slot.link = self._opened(lost)
                        found = slot.link.db.execute(statement, values, binary=True).fetchall()
                        return Answer(found, lost is not None)
                    except UnicodeEncodeError as error:
                        raise UnserializableError(
                            self.name, f"can't store this value: {error}"
                        ) from None
                    except self._psycopg.Error as error:
                        if lost is not None or slot.link is None or not slot.link.db.closed:
                            raise self._named(error) from error
                        lost, slot.link = slot.link, None
            except Exception:
                if slot.link is not None and slot.link.db.info.transaction_status:  # not idle
                    slot.drop()  # lost, or in the middle of an answer
                raise
            except BaseException:
                slot.drop()  # an interrupt may have come anywhere in the driver
                raise

    def _free_slot(self) -> _Slot:
        slots = self._of_this_process()
        for slot in slots:
            if not slot.lock.locked():
                return slot
        return slots[next(self._turns) % _CONNECTIONS]  # all are in use: wait for one of them

    def _of_this_process(self) -> list[_Slot]:
        if self._process != os.getpid():
            _inherited.append(self._slots)
            self._slots, self._process = _fresh_slots(), os.getpid()
        return self._slots

    def _opened(self, lost: _Link | None) -> _Link:
        db = self._psycopg.connect(self._dsn, autocommit=True, client_encoding="UTF8")
        try:
            if lost is not None:
                db.execute(_END, lost.backend)
            db.execute(_SETTINGS)
            if not self._has_tables(db):
                self._create(db)
            if self._read_only:
                db.execute("SET default_transaction_read_only = on")
            return _Link(db, db.execute(_BACKEND).fetchone())
        except BaseException:
            db.close()
            raise

    def _create(self, db: Any) -> None:
        if self._read_only:
            reason = "has no tables of routilux; check database and schema"
            raise CorruptStateError(self.name, reason)
        # A lock of the session: a transaction that waits for a lock may not see a table that was
        # created meanwhile.
        db.execute("SELECT pg_advisory_lock(%s)", (_CREATING,))
        if not self._has_tables(db):  # another host may have been faster
            db.execute(_SCHEMA)  # one transaction, since it is sent as one
        db.execute("SELECT pg_advisory_unlock(%s)", (_CREATING,))

    def _has_tables(self, db: Any) -> bool:
        (there,) = db.execute("SELECT to_regclass('routilux_version')").fetchone()
        if there is None:
            return False
        (version,) = db.execute("SELECT max(version) FROM routilux_version").fetchone()
        if version is None or version < 1:
            reason = f"has version {version} in routilux_version; restore that table from a backup"
            raise CorruptStateError(self.name, reason)
        if version > _VERSION:
            raise newer_store(self.name, version, _VERSION)
        return True

    def _named(self, error: Any) -> Exception:
        code = error.sqlstate or ""
        message = error.diag.message_primary or " ".join(str(error).split())
        if code.startswith(_DAMAGE):
            reason = f"has no valid tables ({message}); restore them from a backup"
            return CorruptStateError(self.name, reason)
        if isinstance(error, self._psycopg.DataError):
            return UnserializableError(self.name, f"can't store this value: {message}")
        lost = _UNREACHED if isinstance(error, self._psycopg.OperationalError) else ""
        cure = _CURES.get(code, lost)
        return OSError(f"the store {self.name}: {message}; {cure}") if cure else error


def _fresh_slots() -> list[_Slot]:
    return [_Slot() for _ in range(_CONNECTIONS)]


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise ImportError(
            "PostgresStore needs psycopg 3; run: pip install 'psycopg[binary]>=3.1'"
        ) from error
    return psycopg
