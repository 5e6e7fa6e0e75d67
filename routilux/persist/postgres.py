"""`PostgresStore`: keeps jobs in a PostgreSQL database that many hosts can share.

Invariants:
- A write is one statement and one round trip, so a host that is suspended in the middle of it
  locks no other host out. It locks the job's entry first: owner and rows change together.
- Each entry is sealed by a hash, which the server computes. A statement that changes an entry
  changes only an intact one, so that no damage gets a new seal.
- A statement whose answer was lost with the connection is sent again. Each statement is written so
  that the second execution changes nothing and gives the same answer.
- A job is found by an index, whatever plan the server would choose: no statement joins a table. A
  host that looks for a free job skips those that other hosts are acquiring, and takes no lock if
  none is free.
- The time is that of the server, which all hosts have in common. If it is set back, a wait begins
  again, and is no longer than it was. If it is set forward, a host takes over leases only after it
  has seen them last for their whole length by its own monotonic clock.
- An id that PostgreSQL can't hold is refused before it is sent.
"""

from __future__ import annotations

from secrets import randbits
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND
from routilux.core.commits import JobStatus
from routilux.persist.postgres_connection import INTACT, Answer, Database
from routilux.persist.store import (
    ABANDONED,
    FREE,
    LIVE,
    STOPPED,
    UNKNOWN,
    Acquired,
    Append,
    Entry,
    Hold,
    SharedStore,
    complete,
    damaged,
    duplicate,
    refusal,
    refusals,
    undeletable,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routilux.clocks.clock import Clock
    from routilux.errors import NotResumableError, RoutiluxError

_TOLERANCE: Final = SECOND  # for the time of a round trip, and for clocks that differ in speed
# Of the store's clock, if it was given one. Stable within a statement, so an index can be used.
_NOW: Final = (
    "coalesce(%(now)s::bigint, (extract(epoch FROM statement_timestamp()) * 1000000000)::bigint)"
)
_CREATE: Final = f"""
WITH made AS (
    INSERT INTO routilux_jobs (job_id, flow_id, owner, free_at, wait, status, seq) VALUES (
        %(job_id)s, %(flow_id)s, CASE WHEN %(queued)s THEN '{FREE}' ELSE %(owner)s END,
        CASE WHEN %(queued)s THEN {_NOW} + %(after_ns)s END,
        CASE WHEN %(queued)s THEN %(after_ns)s END, %(status)s, 1)
    ON CONFLICT DO NOTHING RETURNING job
)
INSERT INTO routilux_commits SELECT job, 1, %(owner)s, %(row)b FROM made RETURNING job
"""
# Counts a row in the job's entry if the row before it is the last, and adds the row.
_ADD: Final = f"""
WITH counted AS (
    UPDATE routilux_jobs SET seq = %(seq)s, status = %(status)s, {{}}
    WHERE job_id = %(job_id)s AND seq = %(seq)s - 1 AND {INTACT} AND {{}} RETURNING job
)
INSERT INTO routilux_commits SELECT job, %(seq)s, %(owner)s, %(row)b FROM counted RETURNING job
"""
_ENDS: Final = "free_at = CASE WHEN {0} THEN free_at END, wait = CASE WHEN {0} THEN wait END"
_APPEND: Final = _ADD.format(_ENDS.format("%(live)s"), "owner = %(owner)s")
# Appends several rows. The caller sorts them, so that no two hosts wait for each other's locks.
_APPEND_ALL: Final = f"""
WITH held AS (
    SELECT job, asked.* FROM unnest(%(job_ids)b::text[], %(seqs)b::bigint[], %(owners)b::text[],
        %(rows)b::bytea[], %(statuses)b::text[]) AS asked (job_id, number, holder, data, ends),
    LATERAL (
        SELECT job FROM routilux_jobs AS jobs
        WHERE jobs.job_id = asked.job_id AND owner = asked.holder AND seq = asked.number - 1
        AND {INTACT} FOR NO KEY UPDATE
    ) AS locked
), counted AS (
    UPDATE routilux_jobs SET seq = seq + 1, status = {{0}},
        {_ENDS.format("{0} = ANY(%(live)b::text[])")}
    WHERE job = ANY(ARRAY(SELECT job FROM held))
)
INSERT INTO routilux_commits SELECT job, number, holder, data FROM held
RETURNING (SELECT job_id FROM held WHERE held.job = routilux_commits.job)
""".format("(ARRAY(SELECT ends FROM held))[array_position(ARRAY(SELECT job FROM held), job)]")
_UNLEASED: Final = f"""
(owner IN ('{FREE}', '{ABANDONED}', %(owner)s) OR free_at IS NULL OR free_at <= {_NOW})
"""
_CLAIM: Final = _ADD.format(
    f"owner = %(owner)s, {_ENDS.format('%(live)s AND owner = %(owner)s')}", _UNLEASED
)
_OVERRULE: Final = _ADD.format(
    f"""owner = CASE WHEN %(live)s THEN '{FREE}' ELSE %(owner)s END,
    free_at = CASE WHEN %(live)s THEN {_NOW} END, wait = CASE WHEN %(live)s THEN 0 END""",
    "true",
)
_STATE: Final = f"""
SELECT owner, seq, coalesce((
    SELECT found.owner = %(owner)s AND data = %(row)b FROM routilux_commits AS found
    WHERE found.job = jobs.job AND found.seq = %(seq)s
), false), {INTACT} FROM routilux_jobs AS jobs WHERE job_id = %(job_id)s
"""
# The job of each flow that has been free longest, so that jobs of other flows cost nothing.
_FIRSTS: Final = """
unnest(%(flow_ids)s::text[]) AS asked (flow_id), LATERAL (
    SELECT job, free_at, owner, wait FROM routilux_jobs AS jobs
    WHERE jobs.flow_id = asked.flow_id AND {} AND INTACT ORDER BY free_at, job LIMIT {}
) AS firsts
""".replace("INTACT", INTACT)
# A lease of another host has ended only if its length has passed on the caller's own clock too.
_ENDED: Final = f"""
(owner IN ('{FREE}', '{ABANDONED}') OR (wait <= %(steady)s AND {_NOW} <= %(expected)s))
"""
_FREE: Final = _FIRSTS.format(
    f"free_at <= {_NOW} AND {_ENDED} AND NOT EXISTS (SELECT FROM given)",
    "%(limit)s FOR NO KEY UPDATE SKIP LOCKED",
)
# A lease has the random number of its call, so that a repeated call finds it; negative if the stop
# was not clean.
_ACQUIRE: Final = f"""
WITH given AS (
    SELECT job, job_id, lease FROM routilux_jobs
    WHERE owner = %(owner)s AND free_at IS NOT NULL AND abs(lease) = %(lease)s
), free AS (
    SELECT job, free_at FROM {_FREE} ORDER BY free_at, job LIMIT %(limit)s
), taken AS (
    UPDATE routilux_jobs SET owner = %(owner)s, free_at = {_NOW} + %(lease_ns)s,
        wait = %(lease_ns)s,
        lease = CASE WHEN owner = '{FREE}' THEN %(lease)s ELSE -%(lease)s END
    WHERE job = ANY(ARRAY(SELECT job FROM free)) RETURNING job, job_id, lease
)
SELECT job_id, lease > 0 FROM (SELECT * FROM given UNION ALL SELECT * FROM taken) AS acquired
ORDER BY (SELECT free_at FROM free WHERE free.job = acquired.job), job
"""
_RENEW: Final = f"""
WITH mine AS (
    SELECT job FROM routilux_jobs WHERE owner = %(owner)s AND free_at IS NOT NULL AND {INTACT}
    ORDER BY job_id FOR NO KEY UPDATE
)
UPDATE routilux_jobs SET free_at = {_NOW} + %(lease_ns)s, wait = %(lease_ns)s
WHERE job = ANY(ARRAY(SELECT job FROM mine)) RETURNING job_id
"""
_FREE_IN: Final = f"""
SELECT min(greatest(
    0, least(free_at - {_NOW}, wait),
    CASE WHEN owner NOT IN ('{FREE}', '{ABANDONED}') THEN wait - %(steady)s END
)), {_NOW} FROM {_FIRSTS.format("free_at IS NOT NULL", "1")}
"""
# After the server's clock was set back, by an index that has only the jobs with a wait.
_CLAMP: Final = f"""
UPDATE routilux_jobs SET free_at = {_NOW} + wait
WHERE free_at IS NOT NULL AND free_at > {_NOW} + wait AND {INTACT} RETURNING job
"""
# Locked in the order of the ids, so that no two hosts wait for each other's locks.
_DELETE: Final = f"""
WITH held AS (
    SELECT job FROM routilux_jobs WHERE job_id = ANY(%(job_ids)s::text[])
    AND (%(force)s OR status = ANY(%(stopped)s) OR ({INTACT}) IS NOT TRUE)
    ORDER BY job_id FOR UPDATE
)
DELETE FROM routilux_jobs WHERE job = ANY(ARRAY(SELECT job FROM held)) RETURNING job_id
"""
_OF_JOB: Final = "job = (SELECT job FROM routilux_jobs WHERE job_id = %(job_id)s)"
_KEEP: Final = """
INSERT INTO routilux_snapshots
SELECT job, %(seq)s, %(data)b FROM routilux_jobs WHERE job_id = %(job_id)s AND seq >= %(seq)s
ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, data = excluded.data
WHERE excluded.seq > routilux_snapshots.seq RETURNING job
"""
_ROWS: Final = f"""
SELECT entry.seq, intact, found.seq, data
FROM (SELECT job, seq, {INTACT} AS intact FROM routilux_jobs WHERE job_id = %(job_id)s) AS entry
LEFT JOIN LATERAL (
    SELECT seq, data FROM routilux_commits AS commits
    WHERE commits.job = entry.job AND commits.seq > %(after)s
) AS found ON true ORDER BY found.seq
"""
_ENTRIES: Final = f"""
SELECT job_id, flow_id, status, seq, owner, least(free_at, {_NOW} + wait), {_NOW}, {INTACT}
FROM routilux_jobs WHERE {{}} ORDER BY job DESC
"""


class PostgresStore(SharedStore):
    """A store in a PostgreSQL database that many hosts can share.

    `dsn` is a connection string such as `postgresql://user@host/database`. The store creates its
    tables, whose names begin with `routilux_`, in the first schema of the `search_path`, unless
    they exist. With `read_only` they must exist, and nothing is written. A connection pooler must
    keep one connection for a session. `clock` gives the store's time, by default the server's.
    Raises `OSError` if the database can't be used, and `SavedStateError` if its tables are damaged
    or have a newer version. Needs PostgreSQL 14 or later, and psycopg 3 (extra `postgres`).

    >>> with PostgresStore("postgresql://shop@db.example/jobs") as store:  # doctest: +SKIP
    ...     store.job_ids()
    ['A7']
    """

    def __init__(self, dsn: str, *, clock: Clock | None = None, read_only: bool = False) -> None:
        self._clock = clock
        self._monotonic = (clock if clock is not None else SystemClock()).monotonic_ns
        self._place = dsn
        self._database = Database(dsn, read_only=read_only)
        # The server's time and this host's, when they were last read together.
        self._seen = self._server_ns(), self._monotonic()
        self._steady_since = self._seen[1]
        if not read_only:
            try:
                self._do(_CLAMP)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        self._database.close()

    def create(
        self,
        job_id: str,
        row: bytes,
        owner: str,
        *,
        flow_id: str,
        status: str,
        after_ns: int = 0,
    ) -> None:
        added = Append(job_id, 1, row, owner, status)
        queued = status == JobStatus.PENDING
        made, repeated = self._do(
            _CREATE, **added._asdict(), flow_id=flow_id, queued=queued, after_ns=after_ns
        )
        if not made:
            _, count, same = self._state(added)
            # If the answer was lost, another host may already have resumed the job.
            if not same or (count > 1 and not repeated):
                raise duplicate(job_id)

    def delete_all(
        self, job_ids: Sequence[str], *, force: bool = False
    ) -> list[bool | NotResumableError]:
        # The rows are deleted by the foreign keys: also one that another host adds meanwhile.
        rows, repeated = self._do(_DELETE, job_ids=list(job_ids), force=force, stopped=STOPPED)
        gone = {job_id for (job_id,) in rows}
        rest = [job_id for job_id in job_ids if job_id not in gone]
        left = self._entries("job_id = ANY(%(rest)s)", rest=rest) if rest else []
        refused = {e.job_id: undeletable(e.job_id, e.status, e.hold) for e in left}
        return [refused.get(job_id, job_id in gone or repeated) for job_id in job_ids]

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        # Most commits come this way; with _APPEND_ALL they would take 1.7 x as long.
        added = Append(job_id, seq, row, owner, status)
        if not self._add(_APPEND, added).rows:
            self._accept_same(added)

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        asked = sorted(appends)
        added = self._do(
            _APPEND_ALL,
            job_ids=[row.job_id for row in asked],
            seqs=[row.seq for row in asked],
            owners=[row.owner for row in asked],
            rows=[row.row for row in asked],
            statuses=[row.status for row in asked],
            live=list(LIVE),
        ).rows
        kept = {job_id for (job_id,) in added}
        return refusals(appends, lambda row: None if row.job_id in kept else self._accept_same(row))

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        added = Append(job_id, seq, row, owner, status)
        if not self._add(_CLAIM, added).rows:
            self._accept_same(added, claims=True)

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, status: str) -> None:
        added = Append(job_id, seq, row, operator, status)
        made, repeated = self._add(_OVERRULE, added)
        if not made:
            _, count, same = self._state(added)
            if not same or seq < 2 or (count > seq and not repeated):
                raise refusal(job_id, seq, operator, count=count, held_by=operator, claims=True)

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        self._do(_KEEP, job_id=job_id, seq=seq, data=data)

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        return complete(job_id, after, self._do(_ROWS, job_id=job_id, after=after).rows)

    def job_ids(self) -> list[str]:
        found = self._do("SELECT job_id FROM routilux_jobs ORDER BY job_id").rows
        return [job_id for (job_id,) in found]

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        found = self._do(
            f"SELECT seq, data FROM routilux_snapshots WHERE {_OF_JOB}", job_id=job_id
        ).rows
        return found[0] if found else None

    def acquire(
        self, owner: str, flow_ids: Collection[str], lease_ns: int, limit: int = 1
    ) -> list[Acquired]:
        given = self._do(
            _ACQUIRE,
            owner=owner,
            flow_ids=list(flow_ids),
            lease_ns=lease_ns,
            lease=randbits(62) + 1,
            limit=limit,
            steady=self._monotonic() - self._steady_since,
            expected=self._expected_ns() + _TOLERANCE,
        ).rows
        return [Acquired(*job) for job in given]

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        renewed = self._do(_RENEW, owner=owner, lease_ns=lease_ns).rows
        return [job_id for (job_id,) in renewed]

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        self._do(
            f"UPDATE routilux_jobs SET owner = %(nobody)s, free_at = {_NOW} + %(after_ns)s,"
            " wait = %(after_ns)s WHERE job_id = %(job_id)s AND owner = %(owner)s"
            f" AND free_at IS NOT NULL AND {INTACT} RETURNING job",
            job_id=job_id,
            owner=owner,
            after_ns=after_ns,
            nobody=FREE if clean else ABANDONED,
        )

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        entries = self._entries("true" if job_id is None else "job_id = %(job_id)s", job_id=job_id)
        if job_id is not None and entries and entries[0].damage is not None:
            raise entries[0].damage
        return {entry.job_id: entry.hold for entry in entries if entry.damage is None}

    def entries(self, *, live: bool = False) -> list[Entry]:
        return self._entries("status <> ALL(%(stopped)s)" if live else "true", stopped=STOPPED)

    def _entries(self, where: str, **values: object) -> list[Entry]:
        return [
            Entry(job_id, flow_id, status, seq, Hold.of(owner, free_at, now=now))
            if intact
            else Entry(job_id, flow_id, status, seq, UNKNOWN, damaged(job_id))
            for job_id, flow_id, status, seq, owner, free_at, now, intact in self._do(
                _ENTRIES.format(where), **values
            ).rows
        ]

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        steady = self._monotonic() - self._steady_since
        before = self._expected_ns()
        [(free_in, now)] = self._do(_FREE_IN, flow_ids=list(flow_ids), steady=steady).rows
        set_forward = now > self._expected_ns() + _TOLERANCE
        self._seen = now, self._monotonic()
        if set_forward:
            self._steady_since = self._seen[1]
            return self.free_in(flow_ids)
        if now < before - _TOLERANCE:
            self._do(_CLAMP)
        return None if free_in is None else int(free_in)

    def _expected_ns(self) -> int:
        """Predict the server's time from this host's monotonic clock."""
        server_ns, own_ns = self._seen
        return server_ns + self._monotonic() - own_ns

    def _server_ns(self) -> int:
        [(now,)] = self._do(f"SELECT {_NOW}").rows
        return int(now)

    def _add(self, statement: str, added: Append) -> Answer:
        return self._do(statement, **added._asdict(), live=added.status in LIVE)

    def _accept_same(self, added: Append, *, claims: bool = False) -> None:
        """Raise an error unless the owner has already written this row."""
        job_id, seq, _, owner, _ = added
        held_by, count, same = self._state(added)
        if held_by != owner or not same:
            raise refusal(job_id, seq, owner, count=count, held_by=held_by, claims=claims)

    def _state(self, added: Append) -> tuple[str, int, bool]:
        """Return the job's owner and row count, and whether `added` is stored."""
        found = self._do(_STATE, **added._asdict()).rows
        if not found:
            return "", 0, False
        owner, count, same, intact = found[0]
        if not intact:
            raise damaged(added.job_id)
        return owner, count, same

    def _do(self, statement: str, **values: object) -> Answer:
        now = None if self._clock is None else self._clock.now_ns()
        return self._database.do(statement, {**values, "now": now})
