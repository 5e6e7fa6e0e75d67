"""`PostgresStore`: keeps jobs in a PostgreSQL database that many hosts can share.

Invariants:
- A write is one statement and one round trip, so a host that is suspended in the middle of it
  locks no other host out. It locks the row of the job first: owner and rows change together.
- A statement whose answer was lost with the connection is sent again. Each statement is written so
  that the second execution changes nothing and gives the same answer.
- A job is found by an index, whatever plan the server would choose: no statement joins a table. A
  host that looks for a free job skips those that other hosts are acquiring, and takes no lock if
  none is free.
- The time is that of the server, which all hosts have in common.
- An id that PostgreSQL can't hold is refused before it is sent.
"""

from __future__ import annotations

from secrets import randbits
from typing import TYPE_CHECKING, Final

from routilux.errors import LeaseLostError
from routilux.persist.postgres_connection import Answer, Database
from routilux.persist.store import (
    ABANDONED,
    FREE,
    Acquired,
    Append,
    Hold,
    SharedStore,
    duplicate,
    refusal,
    refusals,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock

# Of the store's clock, if it was given one. Stable within a statement, so an index can be used.
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
# Locks the job if the caller may write to it; adds a row if the row before it exists.
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
# Appends several rows. The caller sorts them, so that no two hosts wait for each other's locks.
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
), stopped AS (
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
UPDATE routilux_jobs SET owner = CASE WHEN %(stopped)s THEN %(owner)s ELSE '{FREE}' END,
    free_at = CASE WHEN %(stopped)s THEN NULL ELSE {_NOW} END
WHERE job = (SELECT job FROM added) RETURNING job
"""
_SAME_ROW: Final = """
coalesce((
    SELECT found.owner = %(owner)s AND data = %(row)b FROM routilux_commits AS found
    WHERE found.job = jobs.job AND seq = %(seq)s
), false)
"""
_REPEAT: Final = f"""
UPDATE routilux_jobs AS jobs SET free_at = CASE WHEN %(stopped)s THEN NULL ELSE free_at END
WHERE job_id = %(job_id)s AND owner = %(owner)s AND {_SAME_ROW} RETURNING job
"""
_STATE: Final = f"""
SELECT owner, (SELECT count(*) FROM routilux_commits AS found WHERE found.job = jobs.job),
    {_SAME_ROW}
FROM routilux_jobs AS jobs WHERE job_id = %(job_id)s
"""
# The job of each flow that has been free longest, so that jobs of other flows cost nothing.
_FIRSTS: Final = """
unnest(%(flow_ids)s::text[]) AS asked (flow_id), LATERAL (
    SELECT job, free_at FROM routilux_jobs AS jobs
    WHERE jobs.flow_id = asked.flow_id AND {} ORDER BY free_at, job LIMIT 1 {}
) AS firsts
"""
_FREE: Final = _FIRSTS.format(
    f"free_at <= {_NOW} AND NOT EXISTS (SELECT FROM given)", "FOR NO KEY UPDATE SKIP LOCKED"
)
# A lease has the random number of its call, so that a repeated call finds it; negative if the stop
# was not clean.
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


class PostgresStore(SharedStore):
    """A store in a PostgreSQL database (version 14 or later), for processes on many hosts.

    `dsn` is a connection string such as `postgresql://user@host/database`. The store creates its
    tables, whose names begin with `routilux_`, in the first schema of the `search_path`, unless
    they exist. With `read_only` they must exist, and nothing is written. A connection pooler must
    keep one connection for a session. `clock` gives the store's time, by default the server's.
    Raises `OSError` if the database can't be used, and `SavedStateError` if its tables are damaged
    or have a newer version. Needs psycopg 3, which the extra `postgres` installs.
    """

    def __init__(self, dsn: str, *, clock: Clock | None = None, read_only: bool = False) -> None:
        self._clock = clock
        self._database = Database(dsn, read_only=read_only)

    def close(self) -> None:
        self._database.close()

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        made, repeated = self._do(
            _CREATE, job_id=job_id, row=row, owner=owner, flow_id=flow_id, queued=queued
        )
        if not made:
            _, count, same = self._state(Append(job_id, 1, row, owner, stopped=False))
            # If the answer was lost, another host may already have resumed the job.
            if not same or (count > 1 and not repeated):
                raise duplicate(job_id)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        added = Append(job_id, seq, row, owner, stopped)
        if stopped:
            [refused] = self.append_all([added])
            if refused is not None:
                raise refused
        # Most commits come this way; with _APPEND_ALL they would take 1.7 x as long.
        elif not self._do(_APPEND, **added._asdict()).rows:
            self._accept_same(added)

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        asked = sorted(appends)
        added = self._do(
            _APPEND_ALL,
            job_ids=[row.job_id for row in asked],
            seqs=[row.seq for row in asked],
            owners=[row.owner for row in asked],
            rows=[row.row for row in asked],
            stopped=[row.stopped for row in asked],
        ).rows
        kept = {job_id for (job_id,) in added}
        return refusals(appends, lambda row: None if row.job_id in kept else self._accept_same(row))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        added = Append(job_id, seq, row, owner, stopped)
        if not self._do(_CLAIM, **added._asdict()).rows:
            self._accept_same(added, claims=True)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        added = Append(job_id, seq, row, operator, stopped=not free)
        made, repeated = self._do(_OVERRULE, **added._asdict())
        if not made:
            _, count, same = self._state(added)
            if not same or seq < 2 or (count > seq and not repeated):
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        self._do(_KEEP, job_id=job_id, seq=seq, data=data)

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        found = self._do(
            f"SELECT data FROM routilux_commits WHERE {_OF_JOB} AND seq > %(after)s ORDER BY seq",
            job_id=job_id,
            after=after,
        ).rows
        return [row for (row,) in found]

    def job_ids(self) -> list[str]:
        found = self._do("SELECT job_id FROM routilux_jobs ORDER BY job_id").rows
        return [job_id for (job_id,) in found]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        found = self._do(
            f"SELECT seq, data FROM routilux_snapshots WHERE {_OF_JOB}", job_id=job_id
        ).rows
        return found[0] if found else None

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        given = self._do(
            _ACQUIRE,
            owner=owner,
            flow_ids=list(flow_ids),
            lease_ns=lease_ns,
            lease=randbits(62) + 1,
        ).rows
        return Acquired(*given[0]) if given else None

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        renewed = self._do(_RENEW, owner=owner, lease_ns=lease_ns).rows
        return [job_id for (job_id,) in renewed]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
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
        found = self._do(
            f"SELECT job_id, owner, free_at, {_NOW} FROM routilux_jobs"
            f" WHERE {'true' if job_id is None else 'job_id = %(job_id)s'}",
            job_id=job_id,
        ).rows
        return {name: Hold.of(owner, free_at, now=now) for name, owner, free_at, now in found}

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        found = self._do(_FREE_IN, flow_ids=list(flow_ids)).rows
        return found[0][0] if found else None

    def _accept_same(self, added: Append, *, claims: bool = False) -> None:
        """Accept row `added` if its owner has already written it; otherwise raise the refusal."""
        if not self._do(_REPEAT, **added._asdict()).rows:
            job_id, seq, _, owner, _ = added
            held_by, count, _ = self._state(added)
            raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)

    def _state(self, added: Append) -> tuple[str, int, bool]:
        """Return the job's owner, the number of its rows, and whether row `added` is among them."""
        found = self._do(_STATE, **added._asdict()).rows
        return found[0] if found else ("", 0, False)

    def _do(self, statement: str, **values: object) -> Answer:
        now = None if self._clock is None else self._clock.now_ns()
        return self._database.do(statement, {**values, "now": now})
