"""`PostgresStore`: one PostgreSQL database that any number of hosts share.

Laws:
- A write is one statement, so that a host that stands still in the middle of it locks nobody out,
  and one round trip. It locks the row of the job first: owner and rows never change apart.
- A statement may be sent twice, where its answer was lost with the connection. Each is made so that
  the second does nothing, and answers the same.
- A job is found by an index, whatever the planner believes: no statement joins a table. Who looks
  for a free one passes over what others are just taking, and locks nothing where there is none.
- The time is the server's, which all who share the database have in common.
- An id that PostgreSQL can't hold is refused before it is sent.
"""

from __future__ import annotations

from secrets import randbits
from typing import TYPE_CHECKING, Final, Self

from routilux.errors import LeaseLostError, UnserializableError
from routilux.persist.postgres_connection import Answer, Database
from routilux.persist.store import (
    ABANDONED,
    FREE,
    Acquired,
    Append,
    Hold,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock

__all__ = ["PostgresStore"]

# Of a clock where the store was given one. Stable within a statement, so that an index serves.
_NOW: Final = (
    "coalesce(%(now)s::bigint, (extract(epoch FROM statement_timestamp()) * 1000000000)::bigint)"
)
_CREATE: Final = f"""
WITH made AS (
    INSERT INTO routilux_jobs (job_id, flow_id, owner, free_at) VALUES (
        %(job_id)s, %(flow_id)s, CASE WHEN %(queued)s THEN '{FREE}' ELSE %(owner)s END,
        CASE WHEN %(queued)s THEN {_NOW} END)
    ON CONFLICT DO NOTHING RETURNING job
)
INSERT INTO routilux_commits SELECT job, 1, %(owner)s, %(row)b FROM made RETURNING job
"""
# Locks the job for whoever may write to it, and adds a row where the one before it stands.
_HELD: Final = """
WITH held AS (
    SELECT job FROM routilux_jobs WHERE job_id = %(job_id)s AND {} FOR NO KEY UPDATE
)"""
_ADD: Final = """
INSERT INTO routilux_commits SELECT job, %(seq)s, %(owner)s, %(row)b FROM held
WHERE (
    SELECT true FROM routilux_commits AS before
    WHERE before.job = held.job AND before.seq = %(seq)s - 1
) ON CONFLICT DO NOTHING RETURNING job
"""
_APPEND: Final = f"{_HELD.format('owner = %(owner)s')} {_ADD}"
# Several, which the caller has in the one order of all hosts: so none waits for a lock of one that
# waits for it.
_APPEND_ALL: Final = """
WITH held AS (
    SELECT job, asked.* FROM unnest(%(job_ids)b::text[], %(seqs)b::bigint[], %(owners)b::text[],
        %(rows)b::bytea[], %(stopped)b::boolean[]) AS asked (job_id, seq, owner, data, stopped),
    LATERAL (
        SELECT job FROM routilux_jobs AS jobs
        WHERE jobs.job_id = asked.job_id AND jobs.owner = asked.owner FOR NO KEY UPDATE
    ) AS locked
), added AS (
    INSERT INTO routilux_commits SELECT job, seq, owner, data FROM held
    WHERE (
        SELECT true FROM routilux_commits AS before
        WHERE before.job = held.job AND before.seq = held.seq - 1
    ) ON CONFLICT DO NOTHING RETURNING job
), rested AS (
    UPDATE routilux_jobs SET free_at = NULL
    WHERE job = ANY(ARRAY(SELECT job FROM held JOIN added USING (job) WHERE stopped))
)
SELECT job_id FROM held JOIN added USING (job)
"""
_UNLEASED: Final = f"""
(owner IN ('{FREE}', '{ABANDONED}', %(owner)s) OR free_at IS NULL OR free_at <= {_NOW})
"""
_CLAIM: Final = f"""{_HELD.format(_UNLEASED)}, added AS ({_ADD})
UPDATE routilux_jobs SET owner = %(owner)s,
    free_at = CASE WHEN %(stopped)s OR owner <> %(owner)s THEN NULL ELSE free_at END
WHERE job = (SELECT job FROM added) RETURNING job
"""
_OVERRULE: Final = f"""{_HELD.format("true")}, added AS ({_ADD})
UPDATE routilux_jobs SET owner = CASE WHEN %(free)s THEN '{FREE}' ELSE %(owner)s END,
    free_at = CASE WHEN %(free)s THEN {_NOW} END
WHERE job = (SELECT job FROM added) RETURNING job
"""
_STANDS: Final = """
coalesce((
    SELECT found.owner = %(owner)s AND data = %(row)b FROM routilux_commits AS found
    WHERE found.job = jobs.job AND seq = %(seq)s
), false)
"""
_REPEAT: Final = f"""
UPDATE routilux_jobs AS jobs SET free_at = CASE WHEN %(stopped)s THEN NULL ELSE free_at END
WHERE job_id = %(job_id)s AND owner = %(owner)s AND {_STANDS} RETURNING job
"""
_STANDING: Final = f"""
SELECT owner, (SELECT count(*) FROM routilux_commits AS found WHERE found.job = jobs.job), {_STANDS}
FROM routilux_jobs AS jobs WHERE job_id = %(job_id)s
"""
# Of each flow the one that has been free longest; so the jobs of other flows cost nothing.
_FIRSTS: Final = """
unnest(%(flow_ids)s::text[]) AS asked (flow_id), LATERAL (
    SELECT job, free_at FROM routilux_jobs AS jobs
    WHERE jobs.flow_id = asked.flow_id AND {} ORDER BY free_at, job LIMIT 1 {}
) AS firsts
"""
_FREE: Final = _FIRSTS.format(
    f"free_at <= {_NOW} AND NOT EXISTS (SELECT FROM given)", "FOR NO KEY UPDATE SKIP LOCKED"
)
# The lease is kept by the number that the call has drawn; below 0 where the stop was not clean.
_ACQUIRE: Final = f"""
WITH given AS (
    SELECT job_id, lease FROM routilux_jobs
    WHERE owner = %(owner)s AND free_at IS NOT NULL AND abs(lease) = %(lease)s
), free AS (
    SELECT job FROM {_FREE} ORDER BY free_at, job LIMIT 1
), taken AS (
    UPDATE routilux_jobs SET owner = %(owner)s, free_at = {_NOW} + %(lease_ns)s,
        lease = CASE WHEN owner = '{FREE}' THEN %(lease)s ELSE -%(lease)s END
    WHERE job = (SELECT job FROM free) RETURNING job_id, lease
)
SELECT job_id, lease > 0 FROM given UNION ALL SELECT job_id, lease > 0 FROM taken
"""
_RENEW: Final = f"""
WITH mine AS (
    SELECT job FROM routilux_jobs WHERE owner = %(owner)s AND free_at IS NOT NULL
    ORDER BY job_id FOR NO KEY UPDATE
)
UPDATE routilux_jobs SET free_at = {_NOW} + %(lease_ns)s
WHERE job = ANY(ARRAY(SELECT job FROM mine)) RETURNING job_id
"""
_FREE_IN: Final = f"""
SELECT greatest(0, min(free_at) - {_NOW}) FROM {_FIRSTS.format("free_at IS NOT NULL", "")}
HAVING min(free_at) IS NOT NULL
"""
_OF_JOB: Final = "job = (SELECT job FROM routilux_jobs WHERE job_id = %(job_id)s)"
_KEEP: Final = f"""
INSERT INTO routilux_snapshots
SELECT job, seq, %(data)b FROM routilux_commits WHERE {_OF_JOB} AND seq = %(seq)s
ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data
WHERE excluded.seq > routilux_snapshots.seq RETURNING job
"""


class PostgresStore:
    """A store in a PostgreSQL database, 14 or later; for many processes of many hosts.

    `dsn` is a connection string such as `postgresql://user@host/database`. The tables, whose names
    begin with `routilux_`, are made in the first schema of its `search_path` where they are not
    there; with `read_only` they must be there, and nothing is written. A pooler in between must
    leave a session its connection. `clock` is the store's time, by default the server's. Raises
    `OSError` where the database can't be used, and `SavedStateError` where its tables are damaged
    or of a newer version. Needs psycopg 3, which the extra `postgres` installs.
    """

    def __init__(self, dsn: str, *, clock: Clock | None = None, read_only: bool = False) -> None:
        self._clock = clock
        self._database = Database(dsn, read_only=read_only)

    def close(self) -> None:
        """Close the connections; they are opened again if the store is used again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1; see `JobStore.create`."""
        made, mended = self._do(
            _CREATE, job_id=job_id, row=row, owner=owner, flow_id=flow_id, queued=queued
        )
        if made:
            return
        _, count, stands = self._standing(job_id, 1, row, owner)
        # Where the answer was lost, another host may have gone on with what this call has made.
        if not stands or (count > 1 and not mended):
            raise duplicate(job_id)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Keep the row of commit `seq`; see `JobStore.append`."""
        added = Append(job_id, seq, row, owner, stopped)
        if stopped:
            [refused] = self.append_all([added])
            if refused is not None:
                raise refused
        # By itself, as most commits come: as one of several it takes 1.7 x as long.
        elif not self._do(_APPEND, job_id=job_id, seq=seq, row=row, owner=owner).rows:
            self._repeat(added)

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each; see `JobStore.append_all`."""
        asked = sorted(appends, key=lambda append: append.job_id)
        added = self._do(
            _APPEND_ALL,
            job_ids=[append.job_id for append in asked],
            seqs=[append.seq for append in asked],
            owners=[append.owner for append in asked],
            rows=[append.row for append in asked],
            stopped=[append.stopped for append in asked],
        ).rows
        kept = {job_id for (job_id,) in added}
        return refusals(
            appends,
            lambda append: None if append.job_id in kept else self._repeat(append),
        )

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Make `owner` the one owner of a job; see `JobStore.claim`."""
        claimed = self._do(_CLAIM, job_id=job_id, seq=seq, row=row, owner=owner, stopped=stopped)
        if not claimed.rows:
            self._repeat(Append(job_id, seq, row, owner, stopped), claims=True)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of an operator's commit; see `JobStore.overrule`."""
        made, mended = self._do(
            _OVERRULE, job_id=job_id, seq=seq, row=row, owner=operator, free=free
        )
        if made:
            return
        _, count, stands = self._standing(job_id, seq, row, operator)
        if not stands or seq < 2 or (count > seq and not mended):
            raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`; see `JobStore.keep_snapshot`."""
        self._do(_KEEP, job_id=job_id, seq=seq, data=data)

    # --- reading --------------------------------------------------------------------------------

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job in order; see `JobStore.rows`."""
        found = self._do(
            f"SELECT data FROM routilux_commits WHERE {_OF_JOB} AND seq > %(after)s ORDER BY seq",
            job_id=job_id,
            after=after,
        ).rows
        return [row for (row,) in found]

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        found = self._do("SELECT job_id FROM routilux_jobs ORDER BY job_id").rows
        return [job_id for (job_id,) in found]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see `JobStore.snapshot`."""
        found = self._do(
            f"SELECT seq, data FROM routilux_snapshots WHERE {_OF_JOB}", job_id=job_id
        ).rows
        return (found[0][0], found[0][1]) if found else None

    # --- leases ---------------------------------------------------------------------------------

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on a job that is free; see `JobStore.acquire`."""
        given = self._do(
            _ACQUIRE,
            owner=owner,
            flow_ids=list(flow_ids),
            lease_ns=lease_ns,
            lease=randbits(62) + 1,
        ).rows
        return Acquired(given[0][0], given[0][1]) if given else None

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end later; see `JobStore.renew`."""
        renewed = self._do(_RENEW, owner=owner, lease_ns=lease_ns).rows
        return [job_id for (job_id,) in renewed]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired; see `JobStore.release`."""
        self._do(
            f"UPDATE routilux_jobs SET owner = %(nobody)s, free_at = {_NOW} + %(after_ns)s"
            " WHERE job_id = %(job_id)s AND owner = %(owner)s AND free_at IS NOT NULL"
            " RETURNING job",
            job_id=job_id,
            owner=owner,
            after_ns=after_ns,
            nobody=FREE if clean else ABANDONED,
        )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job; see `JobStore.holders`."""
        found = self._do(
            f"SELECT job_id, owner, free_at, {_NOW} FROM routilux_jobs"
            f" WHERE {'true' if job_id is None else 'job_id = %(job_id)s'}",
            job_id=job_id,
        ).rows
        return {name: Hold.of(owner, free_at, now=now) for name, owner, free_at, now in found}

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return when the next job will be free; see `JobStore.free_in`."""
        found = self._do(_FREE_IN, flow_ids=list(flow_ids)).rows
        return found[0][0] if found else None

    # --- how ------------------------------------------------------------------------------------

    def _repeat(self, added: Append, *, claims: bool = False) -> None:
        """Accept a row that stands already, of the owner; else raise why it is refused."""
        job_id, seq, row, owner = added.job_id, added.seq, added.row, added.owner
        repeated = self._do(
            _REPEAT, job_id=job_id, seq=seq, row=row, owner=owner, stopped=added.stopped
        )
        if not repeated.rows:
            held_by, count, _ = self._standing(job_id, seq, row, owner)
            raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)

    def _standing(self, job_id: str, seq: int, row: bytes, owner: str) -> tuple[str, int, bool]:
        found = self._do(_STANDING, job_id=job_id, seq=seq, row=row, owner=owner).rows
        return (found[0][0], found[0][1], found[0][2]) if found else ("", 0, False)

    def _do(self, statement: str, **values: object) -> Answer:
        for name, value in values.items():
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    _check(name.removesuffix("s"), text)
        now = None if self._clock is None else self._clock.now_ns()
        return self._database.do(statement, {**values, "now": now})


def _check(name: str, text: str) -> None:
    if "\0" in text:
        reason = "has a NUL, which no text of PostgreSQL can hold; choose one without it"
    elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        reason = "has half of a surrogate pair, which is no text; choose one without it"
    else:
        return
    raise UnserializableError(f"$.{name}", f"{text!r} {reason}")
