"""`Journal`: saves commits as rows, and rebuilds jobs from rows.

Invariants:
- A commit is a row. The first row that a host writes carries the version.
- A job that is read is as it was after its last row. Each row is checked against those before it.
- A snapshot only saves reading the rows before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from routilux import codec
from routilux.core.commits import Commit
from routilux.core.replay import replay
from routilux.core.state import JobState
from routilux.errors import CorruptStateError, SavedStateError, UnsupportedVersionError
from routilux.persist import rows
from routilux.persist.rows import with_checksum, without_checksum
from routilux.persist.store import Append, damaged, refusals
from routilux.persist.versions import FORMAT, loads_versioned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.persist.store import Entry, JobStore

SNAPSHOT_EVERY: Final = 256
"""The fewest commits between two snapshots of a job."""

_BYTES_PER_ROW: Final = 256  # of a snapshot, about, take as long to read as one row


class Journal:
    """Writes commits to a store, and rebuilds jobs from commits."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def write(
        self, job_id: str, commit: Commit, owner: str, *, claims: bool, after_ns: int = 0
    ) -> None:
        """Write a commit durably.

        With `claims`, `owner` becomes the only owner of the job. A queued job is free `after_ns`
        later. Raises `UnserializableError` before writing, and the store's errors.
        """
        status = commit.status.value
        row = rows.dump(job_id, commit, first=claims or commit.seq == 1)
        if claims:
            self._store.claim(job_id, commit.seq, row, owner, status=status)
        elif commit.seq > 1:
            self._store.append(job_id, commit.seq, row, owner, status=status)
        else:
            flow_id = cast("dict[str, str]", commit.detail)["flow_id"]
            self._store.create(
                job_id, row, owner, flow_id=flow_id, status=status, after_ns=after_ns
            )

    def row(self, job_id: str, commit: Commit, owner: str, *, first: bool = False) -> Append:
        """Return a commit as a row for `append_all`.

        `first` is set for the first commit of an owner that has a lease on the job. Raises
        `UnserializableError` for a value that can't be saved.
        """
        row = rows.dump(job_id, commit, first=first)
        return Append(job_id, commit.seq, row, owner, commit.status.value)

    def append_all(self, added: Sequence[Append]) -> Sequence[Exception | None]:
        """Append rows of different jobs in one write."""
        if len(added) > 1:
            return self._store.append_all(added)
        return refusals(added, self._append)

    def _append(self, added: Append) -> None:
        self._store.append(*added[:4], status=added.status)

    def overrule(self, job_id: str, commit: Commit, operator: str) -> None:
        """Write an operator's commit, even if a host owns the job."""
        row = rows.dump(job_id, commit, first=True)
        self._store.overrule(job_id, commit.seq, row, operator, status=commit.status.value)

    def write_snapshot(self, job: JobState) -> int:
        """Write a snapshot, and return the next snapshot's commit number."""
        members = job.dumps(history=False)[1:]
        text = codec.bounded(f'{{"format":{codec.dumps(FORMAT)},{members}')
        data = with_checksum(text.encode(), snapshot_place(job.job_id))
        self._store.keep_snapshot(job.job_id, job.seq, data)
        # A large job gets few snapshots, so that they cost no more than its rows.
        return job.seq + max(SNAPSHOT_EVERY, len(data) // _BYTES_PER_ROW)

    def damage(self) -> list[SavedStateError]:
        """Read the whole store, and return an error for each damage."""
        found: list[SavedStateError] = [*self._store.damage()]
        try:
            entries = self._store.entries()
        except SavedStateError as error:
            return [*found, error]
        for entry in entries:
            try:
                if entry.damage is not None:
                    raise entry.damage
                for history in (True, False):
                    job = self.read(entry.job_id, history=history)
                    if job is None or (job.seq, job.status, job.flow_id) != (
                        entry.seq,
                        entry.status,
                        entry.flow_id,
                    ):
                        raise damaged(entry.job_id)
            except SavedStateError as error:
                found.append(error)
        return found

    def last_ns(self, entry: Entry) -> int | None:
        """Return the time of a job's last commit; None if the job was deleted meanwhile.

        Raises `SavedStateError` for a damaged row.
        """
        job_id, before = entry.job_id, entry.seq - 1
        found = rows.load_rows(self._store.rows(job_id, before), job_id, before)
        times = [Commit.load(data, place).at_ns for place, data in found]
        return times[-1] if times else None

    def read(
        self, job_id: str, *, history: bool, history_limit: int | None = None
    ) -> JobState | None:
        """Return a job as of its last commit; None if unknown.

        With `history` the job has all its commits, else those since the last snapshot. The latest
        `history_limit` commits are kept. Raises `SavedStateError` for a damaged row or snapshot.
        """
        kept = None if history else self._store.snapshot(job_id)
        job = JobState(job_id) if kept is None else _snapshot(job_id, *kept)
        since = self._store.rows(job_id, job.seq)
        if not job.seq and not since:
            return None
        job.history_limit = history_limit
        loaded = rows.load_rows(since, job_id, job.seq)
        replay(job, ((place, Commit.load(data, place)) for place, data in loaded))
        return job


def snapshot_place(job_id: str) -> str:
    """Return the path of a job's snapshot, for checksums and errors."""
    return f"$.{job_id}.snapshot"


def _snapshot(job_id: str, seq: int, data: bytes) -> JobState:
    place = snapshot_place(job_id)
    try:
        job = JobState.load(loads_versioned(without_checksum(data, place), place), place)
        if (job.job_id, job.seq) != (job_id, seq):
            found = f"commit {job.seq} of job {job.job_id!r}"
            raise CorruptStateError(place, f"holds {found}, but was stored for commit {seq}")
    except UnsupportedVersionError:
        raise  # the rows have that version too
    except SavedStateError as error:
        cure = f"load({job_id!r}, history=True) reads the job without the snapshot"
        raise type(error)(error.path, f"{error.reason}; {cure}") from None
    return job
