"""SQLite stores that show their files within a write, that fail a given write, or have one bug."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from pytest_routilux.sim.simulator.store_files import Folder, Image
from routilux import Append, RoutiluxError, SqliteStore
from routilux.persist.sqlite import _CREATE, _update
from routilux.persist.store import LIVE
from tests.persist.stores import using

LEASE = 10**10
PUT = "INSERT INTO commits SELECT job, ?2, ?3, ?4 FROM jobs WHERE job_id = ?1"
OWN = _update(owner="?2") + " AND job_id = ?1"


# --- files within a write -------------------------------------------------------------------------


class Stepped(SqliteStore):
    """Keeps the files before each statement of a write, or each few instructions.

    `seen` are (the number of the commit, the statement, the files).
    """

    seen: ClassVar[list[tuple[int, str, Image]]]
    every: ClassVar[int] = 0
    """The number of instructions of SQLite's machine between two images; 0 for statements alone."""

    def __init__(self, path: Path) -> None:
        self._seq = 0
        self._owner = ""
        self._statement = self._traced = ""
        self._folder = Folder(path.parent)
        super().__init__(path)
        with using(self) as db:
            db.set_trace_callback(self._before)
            if self.every:
                db.set_progress_handler(self._within, self.every)

    def _before(self, statement: str) -> None:
        # SQLite names the statement again for its trigger, and for each statement of the trigger.
        again = statement == self._traced and statement.split()[0] == "INSERT"
        self._traced = statement
        self._statement = "the trigger" if again else " ".join(statement.split()[:2])
        self._look()

    def _within(self) -> None:
        self._statement += "."
        self._look()

    def _look(self) -> None:
        if self._seq:
            last = self.seen[-1][2] if self.seen else {}
            self.seen.append((self._seq, self._statement, self._folder.image(last)))

    def create(self, job_id: str, row: bytes, owner: str, **options: Any) -> None:
        self._seq = 1
        super().create(job_id, row, owner, **options)
        self._seq = 0

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._seq = seq if self._owner in ("", owner) else 0  # not of a host that has lost the job
        super().append(job_id, seq, row, owner, status=status)
        self._seq = 0

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._seq = seq
        super().claim(job_id, seq, row, owner, status=status)
        self._seq, self._owner = 0, owner

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        self._seq = appends[0].seq
        refusals = super().append_all(appends)
        self._seq = 0
        return refusals

    def close(self) -> None:
        super().close()
        self._folder.close()


# --- failing at a given write ---------------------------------------------------------------------


class Failing(SqliteStore):
    """Fails the write of one commit, once; see `failing`."""

    seq: ClassVar[int]
    how: ClassVar[str]
    struck: ClassVar[int]

    def create(self, *args: Any, **options: Any) -> None:
        self._write(1, partial(super().create, *args, **options))

    def append(self, job_id: str, seq: int, *args: Any, **options: Any) -> None:
        self._write(seq, partial(super().append, job_id, seq, *args, **options))

    def claim(self, job_id: str, seq: int, *args: Any, **options: Any) -> None:
        self._write(seq, partial(super().claim, job_id, seq, *args, **options))

    def _write(self, seq: int, write: Callable[[], None]) -> None:
        if seq != self.seq or type(self).struck:
            write()
            return
        type(self).struck += 1
        if self.how == "refuses":
            raise OSError("the disk is gone")
        if self.how == "does not answer":
            write()
            raise OSError("the disk is gone, after it was written")
        if self.how == "is full":
            with using(self) as db:
                db.execute("PRAGMA max_page_count = 1")  # as many as there are
            write()
        else:
            with using(self) as db:
                db.patience_ns = 0  # type: ignore[attr-defined]
            other = sqlite3.connect(self.path, isolation_level=None)
            try:
                other.execute("BEGIN IMMEDIATE")
                write()
            finally:
                other.close()


def failing(seq: int, how: str) -> type[Failing]:
    """Return a store that fails the write of commit `seq`, the first time.

    It `refuses`, `does not answer`, `is full` or `is locked`.
    """
    return type("Failing", (Failing,), {"seq": seq, "how": how, "struck": 0})


# --- with one bug ---------------------------------------------------------------------------------


class _Later:
    """A clock that each host reads after all leases of the host before it have ended."""

    _hosts = count(1)

    def __init__(self) -> None:
        self._now = next(self._hosts) * 2 * LEASE

    def now_ns(self) -> int:
        return self._now


class Leased(SqliteStore):
    """No bug: each host has the job under a lease, as a worker has."""

    def __init__(self, path: Path) -> None:
        self._flow_ids: Collection[str] = ["work"]
        super().__init__(path, clock=_Later())  # type: ignore[arg-type]  # all that it asks for

    def create(self, job_id: str, row: bytes, owner: str, **options: Any) -> None:
        super().create(job_id, row, owner, **{**options, "status": "pending"})
        self.acquire(owner, [options["flow_id"]], LEASE)

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self.acquire(owner, self._flow_ids, LEASE)
        super().claim(job_id, seq, row, owner, status=status)


class Grouped(SqliteStore):
    """No bug: each commit is written as several jobs are that end together."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        [refusal] = self.append_all([Append(job_id, seq, row, owner, status)])
        if refusal is not None:
            raise refusal


class ForgetsStops(Leased):
    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        super().append(job_id, seq, row, owner, status="running")


class CommitsLate(SqliteStore):
    """Acknowledges a row whose COMMIT comes with the next one."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        with using(self) as db:
            if db.in_transaction:
                db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
            db.execute(PUT, (job_id, seq, owner, row))


class CommitsAtStop(SqliteStore):
    """Keeps a job in one transaction, which ends when the job stops."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        with using(self) as db:
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")
            db.execute(PUT, (job_id, seq, owner, row))
            if status not in LIVE:
                db.execute("COMMIT")

    def close(self) -> None:
        """Commit the open transaction; a host that dies does not call this."""
        with using(self) as db:
            if db.in_transaction:
                db.execute("COMMIT")
        super().close()


class HalfCreates(Stepped):
    """Makes the job in one transaction, and keeps its first row in another."""

    def create(self, job_id: str, row: bytes, owner: str, **options: Any) -> None:
        flow_id, status = options["flow_id"], options["status"]
        self._seq = 1
        self._file.write(
            lambda db: db.execute(_CREATE, (job_id, flow_id, owner, None, None, status))
        )
        self._file.write(lambda db: db.execute(PUT, (job_id, 1, owner, row)))
        self._seq = 0


class HalfClaims(Stepped):
    """Keeps the row of a claim in one transaction, and the owner in another."""

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._seq = seq
        self._file.write(lambda db: db.execute(PUT, (job_id, seq, owner, row)))
        self._file.write(lambda db: db.execute(OWN, (job_id, owner)))
        self._seq, self._owner = 0, owner


class NoFence(SqliteStore):
    """Replaces a row by the row of a host that lost the job."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._file.write(
            lambda db: db.execute(
                PUT.replace("INSERT", "INSERT OR REPLACE"), (job_id, seq, owner, row)
            )
        )


class ForgetsOwner(SqliteStore):
    """Keeps the row of a claim, and not its owner."""

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        self._file.write(lambda db: db.execute(PUT, (job_id, seq, owner, row)))


class Tidies(SqliteStore):
    """Changes the rows that it keeps."""

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        super().append(job_id, seq, row + b"\n", owner, status=status)
