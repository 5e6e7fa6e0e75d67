"""`PostgresStore`: a database that many hosts share.

Laws:
- When a write returns, the server has it as safely as it keeps anything: `synchronous_commit`.
- A write is one transaction, and one statement where nothing but a row is added. It locks the job
  while it looks at the owner, so that no other host becomes the owner in between.
- The time is the server's.
- A connection belongs to the process that opened it. One that broke is opened again at the next
  use; what was asked of it then is the caller's to ask again.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, cast

from routilux.errors import (
    CorruptStateError,
    DuplicateJobError,
    LeaseLostError,
    UnsupportedVersionError,
)
from routilux.persist.leases import FALLEN, FREE, NOBODY, Acquired, Hold
from routilux.persist.store import Append, refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["PostgresStore"]

_VERSION: Final = 1
_MAKING: Final = 0x726F7574696C7578  # the lock of whoever makes the tables
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS routilux_version (version int NOT NULL);
CREATE TABLE IF NOT EXISTS routilux_jobs (
    job bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id text COLLATE "C" NOT NULL UNIQUE,
    flow_id text NOT NULL,
    owner text NOT NULL,     -- '' or '?' for nobody
    free_at bigint           -- UTC nanoseconds; NULL for never
);
CREATE INDEX IF NOT EXISTS routilux_free
    ON routilux_jobs (free_at, flow_id) WHERE free_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS routilux_leased ON routilux_jobs (owner) WHERE free_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS routilux_commits (
    job bigint NOT NULL REFERENCES routilux_jobs,
    seq bigint NOT NULL,
    owner text NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (job, seq)
);
CREATE TABLE IF NOT EXISTS routilux_snapshots (
    job bigint PRIMARY KEY REFERENCES routilux_jobs,
    seq bigint NOT NULL,
    data bytea NOT NULL
);
"""
_FOLLOWS: Final = """
EXISTS (SELECT FROM routilux_commits c WHERE c.job = j.job AND c.seq = %(seq)s - 1)
"""
# Adds a row where the one before it stands and the owner is the owner: the whole fence.
_ADD: Final = f"""
INSERT INTO routilux_commits
SELECT job, %(seq)s, %(owner)s, %(row)s FROM routilux_jobs j
WHERE job_id = %(job_id)s AND owner = %(owner)s AND {_FOLLOWS} FOR SHARE
ON CONFLICT DO NOTHING
"""
# The same for whoever becomes the owner; the job is locked already.
_CLAIM: Final = f"""
INSERT INTO routilux_commits
SELECT job, %(seq)s, %(owner)s, %(row)s FROM routilux_jobs j
WHERE job_id = %(job_id)s AND {_FOLLOWS}
ON CONFLICT DO NOTHING
"""


class PostgresStore:
    """A store in a PostgreSQL database, for many hosts; needs `pip install routilux[postgres]`.

    `dsn` is a connection string such as `postgresql://user@host/database`; the tables, whose names
    begin with `routilux_`, are made where they are not there. With `read_only` they must be there,
    and nothing is written. Raises `OSError` where the server can't be reached, `SavedStateError`
    where the tables are of a newer version, or can't be made.
    """

    def __init__(self, dsn: str, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._psycopg = _driver()
        self._dsn = dsn
        self._lock = threading.Lock()
        self._connection: Any = None
        self._process = 0
        with self._using():
            pass

    def close(self) -> None:
        """Close the connection; it is opened again if the store is used again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1; see `JobStore.create`."""
        with self._writing() as db:
            made = db.execute(
                "INSERT INTO routilux_jobs (job_id, flow_id, owner, free_at)"
                f" VALUES (%s, %s, %s, CASE WHEN %s THEN {self._now()} END)"
                " ON CONFLICT DO NOTHING RETURNING job",
                (job_id, flow_id, FREE if queued else owner, queued),
            ).fetchone()
            if made is not None:
                db.execute(
                    "INSERT INTO routilux_commits VALUES (%s, 1, %s, %s)", (made[0], owner, row)
                )
            elif self._count(db, job_id) > 1 or not self._stands(db, job_id, 1, row, owner):
                raise DuplicateJobError(
                    f"the store holds a job {job_id!r} already; choose another job_id, or resume it"
                )

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        with self._writing() if rests else self._using() as db:
            self._append(db, Append(job_id, seq, row, owner, rests))

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each; see `JobStore.append_all`."""
        refusals: dict[str, LeaseLostError] = {}
        with self._writing() as db:
            # In one order on all hosts, so that none waits for a lock of one that waits for it.
            for added in sorted(appends, key=lambda added: added.job_id):
                try:
                    self._append(db, added)
                except LeaseLostError as error:
                    refusals[added.job_id] = error
        return [refusals.get(added.job_id) for added in appends]

    def _append(self, db: Any, added: Append) -> None:
        job_id, seq, row, owner = added.job_id, added.seq, added.row, added.owner
        values = {"job_id": job_id, "seq": seq, "row": row, "owner": owner}
        if not db.execute(_ADD, values).rowcount:
            held_by, _, _ = self._held(db, job_id)
            if held_by != owner or not self._stands(db, job_id, seq, row, owner):
                raise self._refusal(db, job_id, seq, owner)
        if added.rests:
            db.execute("UPDATE routilux_jobs SET free_at = NULL WHERE job_id = %s", (job_id,))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, rests: bool) -> None:
        """Make `owner` the one owner of a job; see `JobStore.claim`."""
        added = {"job_id": job_id, "seq": seq, "row": row, "owner": owner}
        with self._writing() as db:
            held_by, free_at, leased = self._held(db, job_id, "FOR UPDATE")
            if leased and held_by not in (*NOBODY, owner):
                raise self._refusal(db, job_id, seq, owner, claims=True)
            if not db.execute(_CLAIM, added).rowcount and not (
                held_by == owner and self._stands(db, job_id, seq, row, owner)
            ):
                raise self._refusal(db, job_id, seq, owner, claims=True)
            if rests or held_by != owner:
                free_at = None
            db.execute(
                "UPDATE routilux_jobs SET owner = %s, free_at = %s WHERE job_id = %s",
                (owner, free_at, job_id),
            )

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of an operator's commit; see `JobStore.overrule`."""
        added = {"job_id": job_id, "seq": seq, "row": row, "owner": operator}
        with self._writing() as db:
            self._held(db, job_id, "FOR UPDATE")
            if db.execute(_CLAIM, added).rowcount:
                db.execute(
                    "UPDATE routilux_jobs SET owner = %s,"
                    f" free_at = CASE WHEN %s THEN {self._now()} END WHERE job_id = %s",
                    (FREE if free else operator, free, job_id),
                )
                return
            count = self._count(db, job_id)
            if count != seq or not self._stands(db, job_id, seq, row, operator):
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`; see `JobStore.keep_snapshot`."""
        with self._using() as db:
            db.execute(
                "INSERT INTO routilux_snapshots AS s"
                " SELECT job, seq, %s FROM routilux_jobs JOIN routilux_commits USING (job)"
                " WHERE job_id = %s AND seq = %s"
                " ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data"
                " WHERE excluded.seq > s.seq",
                (data, job_id, seq),
            )

    # --- reading --------------------------------------------------------------------------------

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job in order; see `JobStore.rows`."""
        with self._using() as db:
            found = db.execute(
                "SELECT data FROM routilux_commits JOIN routilux_jobs USING (job)"
                " WHERE job_id = %s AND seq > %s ORDER BY seq",
                (job_id, after),
                binary=True,
            ).fetchall()
        return [row for (row,) in found]

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        with self._using() as db:
            found = db.execute("SELECT job_id FROM routilux_jobs ORDER BY job_id").fetchall()
        return [job_id for (job_id,) in found]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see `JobStore.snapshot`."""
        with self._using() as db:
            found = db.execute(
                "SELECT seq, data FROM routilux_snapshots JOIN routilux_jobs USING (job)"
                " WHERE job_id = %s",
                (job_id,),
                binary=True,
            ).fetchone()
        return cast("tuple[int, bytes] | None", found)

    # --- leases ---------------------------------------------------------------------------------

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on a job that is free; see `JobStore.acquire`."""
        with self._using() as db:
            found = db.execute(
                "WITH free AS MATERIALIZED"
                f" (SELECT job, owner FROM routilux_jobs WHERE free_at <= {self._now()}"
                " AND flow_id = ANY(%s) ORDER BY free_at, job LIMIT 1 FOR UPDATE SKIP LOCKED)"
                f" UPDATE routilux_jobs j SET owner = %s, free_at = {self._now()} + %s"
                " FROM free WHERE j.job = free.job RETURNING job_id, free.owner",
                (list(flow_ids), owner, lease_ns),
            ).fetchone()
        return None if found is None else Acquired(found[0], found[1] == FREE)

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end later; see `JobStore.renew`."""
        with self._using() as db:
            found = db.execute(
                f"UPDATE routilux_jobs SET free_at = {self._now()} + %s"
                " WHERE owner = %s AND free_at IS NOT NULL RETURNING job_id",
                (lease_ns, owner),
            ).fetchall()
        return [job_id for (job_id,) in found]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired; see `JobStore.release`."""
        with self._using() as db:
            db.execute(
                f"UPDATE routilux_jobs SET owner = %s, free_at = {self._now()} + %s"
                " WHERE job_id = %s AND owner = %s AND free_at IS NOT NULL",
                (FREE if clean else FALLEN, after_ns, job_id, owner),
            )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job; see `JobStore.holders`."""
        with self._using() as db:
            found = db.execute(
                f"SELECT job_id, owner, free_at, {self._now()} FROM routilux_jobs"
                " WHERE %(job_id)s::text IS NULL OR job_id = %(job_id)s",
                {"job_id": job_id},
            ).fetchall()
        return {name: Hold.of(owner, free_at, now=now) for name, owner, free_at, now in found}

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return when the next job will be free; see `JobStore.free_in`."""
        with self._using() as db:
            found = db.execute(
                f"SELECT greatest(0, min(free_at) - {self._now()}) FROM routilux_jobs"
                " WHERE flow_id = ANY(%s) HAVING min(free_at) IS NOT NULL",
                (list(flow_ids),),
            ).fetchone()
        return None if found is None else cast(int, found[0])

    # --- how ------------------------------------------------------------------------------------

    def _now(self) -> str:
        return "((extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000)"

    def _stands(self, db: Any, job_id: str, seq: int, row: bytes, owner: str) -> bool:
        found = db.execute(
            "SELECT c.owner, data FROM routilux_commits c JOIN routilux_jobs USING (job)"
            " WHERE job_id = %s AND seq = %s",
            (job_id, seq),
            binary=True,
        ).fetchone()
        return bool(found == (owner, row))

    def _held(self, db: Any, job_id: str, lock: str = "") -> tuple[str, int | None, bool]:
        found = db.execute(
            f"SELECT owner, free_at, free_at > {self._now()} FROM routilux_jobs"
            f" WHERE job_id = %s {lock}",
            (job_id,),
        ).fetchone()
        return ("", None, False) if found is None else found

    def _count(self, db: Any, job_id: str) -> int:
        (count,) = db.execute(
            "SELECT count(*) FROM routilux_commits JOIN routilux_jobs USING (job)"
            " WHERE job_id = %s",
            (job_id,),
        ).fetchone()
        return cast(int, count)

    def _refusal(
        self, db: Any, job_id: str, seq: int, owner: str, *, claims: bool = False
    ) -> Exception:
        held_by, _, _ = self._held(db, job_id)
        count = self._count(db, job_id)
        return refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        with self._using() as db, db.transaction():
            yield db

    @contextmanager
    def _using(self) -> Iterator[Any]:
        with self._lock:
            try:
                if self._connection is None or self._process != os.getpid():
                    _inherited.append(self._connection)
                    self._connection = self._opened()
                    self._process = os.getpid()
                yield self._connection
            except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
                if self._connection is not None and self._connection.closed:
                    self._connection = None
                raise OSError(
                    f"the store {self._name()}: {str(error).strip()}; what was committed before is"
                    " there when the server answers again"
                ) from error

    def _opened(self) -> Any:
        try:
            db = self._psycopg.connect(self._dsn, autocommit=True)
        except self._psycopg.ProgrammingError:  # its message repeats the string, password and all
            raise OSError(
                "the connection string can't be read; write postgresql://user@host/database"
            ) from None
        try:
            with db.transaction():
                if not self._read_only:
                    db.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
                (there,) = db.execute("SELECT to_regclass('routilux_version')").fetchone()
                if there is None:
                    if self._read_only:
                        raise CorruptStateError(
                            self._name(), "holds no store: its tables were never made"
                        )
                    db.execute(_SCHEMA)
                    db.execute("INSERT INTO routilux_version VALUES (%s)", (_VERSION,))
                (version,) = db.execute("SELECT max(version) FROM routilux_version").fetchone()
            if version != _VERSION:
                raise UnsupportedVersionError(
                    self._name(),
                    f"has version {version}; this one reads {_VERSION}: install a newer routilux",
                )
            db.execute("SET synchronous_commit = on")
            if self._read_only:
                db.execute("SET default_transaction_read_only = on")
        except BaseException:
            db.close()
            raise
        return db

    def _name(self) -> str:
        # Where it is, without the password.
        known = self._psycopg.conninfo.conninfo_to_dict(self._dsn)
        return " ".join(f"{key}={known[key]}" for key in ("host", "port", "dbname") if key in known)


# Connections of the process before a fork: to close them in the child would end the parent's.
_inherited: Final[list[Any]] = []


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise ImportError(
            "PostgresStore needs psycopg 3: pip install 'routilux[postgres]'"
        ) from error
    return psycopg
