"""`JobStore`: the interface of all stores of jobs.

Invariants:
- A store sees bytes. It never reads what is in them.
- A commit is a row with the key (job id, sequence number). A row that another owner has written
  is refused with `LeaseLostError`. Writing the same row again changes nothing.
- When a write returns, the row is as durable as this store can make it. Rows of several jobs may
  share one write, because making a row durable costs more than the row.
- Besides its rows a job has an entry: its owner, a time from which any host may acquire it, and the
  status and number of its last commit. A job that stopped and a job that is held without a lease
  have no such time. The host that acquires a job learns whether the last owner gave it back: only
  that is a clean stop.
- A store that keeps jobs on a disk seals each entry with a checksum. A job whose entry is damaged,
  or whose rows are not those that its entry counts, is never handed out, and raises
  `CorruptStateError` when it is used by its name. No other job is affected.
- Only the store's clock counts. A host passes a duration, never a time, so that the clocks of
  hosts need not agree. No wait that is left is longer than the whole wait was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from routilux.clocks.durations import wait_text
from routilux.core.commits import JobStatus
from routilux.errors import (
    CorruptStateError,
    DuplicateJobError,
    LeaseLostError,
    NotResumableError,
    RoutiluxError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

FREE: Final = ""
"""The owner of a job that was queued or given back."""
ABANDONED: Final = "?"
"""The owner of a job that its host released after the run of the job broke off."""
_NO_OWNER: Final = (FREE, ABANDONED)
LIVE: Final = [status.value for status in JobStatus if status.is_live]
"""The statuses of a job that a host runs, or that a worker may take."""
STOPPED: Final = [status.value for status in JobStatus if not status.is_live]
POLL: Final = 0.1
"""The longest time, in seconds, until a host sees a change by another process."""
BACKUP: Final = "restore the store from a backup"
"""The cure of a damaged job."""


class Acquired(NamedTuple):
    """A leased job, and whether the last owner gave the job back.

    >>> Acquired("job-1", clean=True).job_id
    'job-1'
    """

    job_id: str
    """The id of the job."""
    clean: bool
    """Whether the last owner gave the job back; False after a crash."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A job's owner, and the time until the job is free.

    >>> print(Hold.of("web-1:4711:9f86d081", 5_000_000_000, now=0))
    held by web-1:4711:9f86d081, whose lease ends in 5 s
    >>> print(Hold.of("", 5_000_000_000, now=0))
    held by nobody, and free to be taken in 5 s
    """

    owner: str | None
    """The host that owns the job; None if none does."""
    free_in_ns: int | None
    """The nanoseconds until any host may take the job; None if it stopped or has no lease."""
    clean: bool
    """Whether the last owner gave the job back."""

    @classmethod
    def of(cls, owner: str, free_at: int | None, *, now: int) -> Hold:
        """Make a hold from a store's values `owner` and `free_at`."""
        free_in = None if free_at is None else max(0, free_at - now)
        return cls(None if owner in _NO_OWNER else owner, free_in, owner == FREE)

    @property
    def is_leased(self) -> bool:
        """Whether a host has a lease that has not ended."""
        return self.owner is not None and bool(self.free_in_ns)

    def is_leased_to_other(self, owner: str) -> bool:
        """Whether a host other than `owner` has a lease that has not ended."""
        return self.is_leased and self.owner != owner

    def __str__(self) -> str:
        soon = f"in {wait_text(self.free_in_ns or 0)}"
        if self.owner is None:
            return f"held by nobody, and free to be taken {soon if self.free_in_ns else 'now'}"
        if self.free_in_ns is None:
            return f"held by {self.owner} without a lease"
        if not self.free_in_ns:
            return f"left by {self.owner}, whose lease has ended"
        return f"held by {self.owner}, whose lease ends {soon}"


UNKNOWN: Final = Hold(None, None, clean=False)
"""The hold of a job whose entry is damaged."""


class Entry(NamedTuple):
    """A job's entry in a store, without the job's rows.

    `status` and `seq` are those of the last commit. `damage` is the error of an entry that is
    damaged: its other fields may be wrong.
    """

    job_id: str
    flow_id: str
    status: str
    seq: int
    hold: Hold
    damage: CorruptStateError | None = None


class Append(NamedTuple):
    """A row to append: the arguments of `JobStore.append`, for `JobStore.append_all`."""

    job_id: str
    """The id of the job."""
    seq: int
    """The number of the commit."""
    row: bytes
    """The commit as bytes."""
    owner: str
    """The host that writes it."""
    status: str
    """The status of the job after the commit."""


class JobStore(Protocol):
    """A store of jobs, safe for concurrent use.

    Each method is atomic. `owner` is a text that no other host uses, and neither empty nor `"?"`.
    `status` is the value of the `JobStatus` after the commit. Durations are nanoseconds. A method
    raises `OSError` if the store can't be used now; the call may have taken effect or not, and the
    caller may repeat it. A method that is given a job id raises `CorruptStateError` if the entry of
    that job is damaged; only the methods that delete jobs don't.
    """

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
        """Store a new job with the row of its first commit.

        If it is pending, any host may acquire the job after `after_ns`; else `owner` holds it. The
        same call again does nothing while this is the only row. Raises `DuplicateJobError` if the
        job exists.
        """

    def delete(self, job_id: str, *, force: bool = False) -> bool:
        """Remove a job that has stopped, with its rows; return whether the store held the job.

        A new job may then have the id. The rows are not read, and a job with a damaged entry is
        removed, too: no host can run it. Raises `NotResumableError` if the job is pending or
        running, unless `force` is true, for a damaged job that can't be cancelled. A host that runs
        the job can commit no more.

        >>> from routilux import MemoryStore
        >>> store = MemoryStore()
        >>> store.create("job-1", b"{}", "host-a", flow_id="orders", status="completed")
        >>> store.delete("job-1"), store.delete("job-1")
        (True, False)
        """
        [deleted] = self.delete_all([job_id], force=force)
        if isinstance(deleted, NotResumableError):
            raise deleted
        return deleted

    def delete_all(
        self, job_ids: Sequence[str], *, force: bool = False
    ) -> list[bool | NotResumableError]:
        """Remove several jobs with one write, which removes all of them or, if it fails, none.

        Returns for each job what `delete` would return, or the error that it would raise.
        """

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        """Store the row of commit `seq`.

        A status that is not live ends the lease. The owner's same row again does nothing. Raises
        `LeaseLostError` for another owner, another row of this number, or a missing row before.
        """

    def append_all(self, appends: Sequence[Append]) -> list[RoutiluxError | None]:
        """Append one row to each of several jobs, in one write.

        Returns for each row None if it is kept, or the error that `append` would raise; the other
        rows are kept anyway. If it raises, any of the rows may be kept.
        """

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        """Store the row by which `owner` becomes the job's only owner.

        A host that acquired the job keeps its lease. Any other host then holds it without a lease
        until it stops or is claimed again. The same row of the owner again does nothing. Raises
        `LeaseLostError` if another owner has a lease, or another row has the number `seq`;
        `NotResumableError` if there is no such job.
        """

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, status: str) -> None:
        """Store an operator's row, even if a host owns the job.

        The owner before can't write any more. If the status is live, any host may acquire the job.
        The same call again does nothing while its row is the last. Raises `LeaseLostError` if
        another host was faster, `NotResumableError` if there is no such job.
        """

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the job's rows after commit `after`; [] if unknown.

        They are in order. Raises `CorruptStateError` if they are not those that the entry counts.
        """

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs in this store, sorted."""

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Store the snapshot after commit `seq`, instead of any earlier one.

        Any host may write it: commits never change, so every host's snapshot is the same.
        """

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return a job's (commit number, snapshot); None if there is none."""

    def acquire(
        self, owner: str, flow_ids: Collection[str], lease_ns: int, limit: int = 1
    ) -> list[Acquired]:
        """Give `owner` leases on free jobs of these flows.

        Returns at most `limit` jobs, longest free first, and whether each was given back. The
        owners before can't write any more. The jobs are not free until the lease ends.
        """

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Renew all leases of `owner`, and return the jobs' ids."""

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """End the lease on a job, and free the job after `after_ns`.

        Does nothing if `owner` has no lease on the job. Without `clean`, the next host that
        acquires the job learns of an unclean stop.
        """

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return each job's hold, by job id.

        With `job_id`, returns only that job's hold, if any; else omits jobs with damaged entries.
        """

    def entries(self, *, live: bool = False) -> list[Entry]:
        """Return the entries of all jobs, newest first.

        Includes damaged entries. With `live`, omits the jobs that have stopped.
        """

    def damage(self) -> list[CorruptStateError]:
        """Return an error for each damage that concerns no job."""
        return []

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return the nanoseconds until the first job of these flows becomes free.

        Returns 0 if a job is free now, and None if every job stopped or is held without a lease.
        """


class SharedStore(JobStore, Protocol):
    """A store that several processes can open at once."""

    def close(self) -> None:
        """Close all connections; later calls open new ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refusal(
    job_id: str, seq: int, owner: str, *, count: int, held_by: str, claims: bool = False
) -> Exception:
    """Return the error for a row that a store refuses."""
    if not count:  # the number of the job's rows
        if claims:
            return NotResumableError(
                f"the store holds no job {job_id!r}; only an existing job can be resumed"
            )
        return LeaseLostError(f"the store holds no job {job_id!r}; commit {seq} was refused")
    if owner != held_by:
        whose = _whose(None if held_by in _NO_OWNER else held_by)
        return LeaseLostError(f"job {job_id!r} {whose} now; commit {seq} of {owner!r} was refused")
    return LeaseLostError(
        f"the last commit of job {job_id!r} is {count}, so commit {seq} can't be added: another"
        " host has resumed the job"
    )


def keeps_same_jobs(one: object, other: object) -> bool:
    """Whether two stores are one: several may have the same file or database open."""
    place = getattr(one, "_place", None)
    return one is other or (place is not None and place == getattr(other, "_place", None))


def undeletable(job_id: str, status: str, hold: Hold) -> NotResumableError:
    """Return the error for a pending or running job that is to be deleted."""
    return NotResumableError(
        f"job {job_id!r} is {status}, {hold}; only a job that has stopped can be deleted: cancel"
        " the job first, or wait until it has stopped"
    )


def lost(job_id: str, hold: Hold | None) -> LeaseLostError:
    """Return the error for a host that lost its job."""
    whose = "is not in the store" if hold is None else _whose(hold.owner)
    return LeaseLostError(
        f"job {job_id!r} {whose} now: this host runs no further effect of it and ignores its steps"
    )


def _whose(owner: str | None) -> str:
    return "is free to be taken by any host" if owner is None else f"belongs to {owner!r}"


def damaged(job_id: str) -> CorruptStateError:
    """Return the error for a job with a damaged entry."""
    return CorruptStateError(
        f"$.{job_id}", f"its entry in the store was damaged: its checksum does not match; {BACKUP}"
    )


def complete(job_id: str, after: int, found: Sequence[tuple[int, bool, int, bytes]]) -> list[bytes]:
    """Return a job's rows after row `after`, if none is missing.

    `found` has for each row the number of the job's last row, whether the job's entry is intact,
    the row's number (None if there is no row), and the row. Raises `CorruptStateError` if the entry
    is damaged or a row is missing. For an unknown job, `found` is empty.

    >>> complete("job-1", 6, [(8, True, 7, b"seven"), (8, True, 8, b"eight")])
    [b'seven', b'eight']
    >>> complete("job-1", 6, [(8, True, 7, b"seven")])
    Traceback (most recent call last):
    routilux.CorruptStateError: $.job-1: its last commit is 8, but the store returns no...
    """
    if not found:
        return []
    last, intact = found[0][:2]
    if not intact:
        raise damaged(job_id)
    rows = [numbered[2:] for numbered in found if numbered[2] is not None]
    if [seq for seq, _ in rows] == [*range(after + 1, last + 1)] and after <= last:
        return [row for _, row in rows]
    known = {seq for seq, _ in rows}
    lost = next((seq for seq in range(after + 1, last + 1) if seq not in known), None)
    if lost is not None:
        what = f"its last commit is {last}, but the store returns no commit {lost}"
    else:
        what = f"its last commit is {last}, but the store returns commit {max([after, *known])}"
    raise CorruptStateError(f"$.{job_id}", f"{what}; {BACKUP}")


def duplicate(job_id: str) -> DuplicateJobError:
    """Return the error for a job id that already exists."""
    return DuplicateJobError(
        f"the store already holds a job {job_id!r}; if it is the same work, there is nothing to do:"
        " a worker runs it, or `Flow.resume` continues it; else choose another job_id"
    )


def refusals(
    appends: Iterable[Append], append: Callable[[Append], None]
) -> list[RoutiluxError | None]:
    """Call `append` for each row, and return each error or None."""
    refused: list[RoutiluxError | None] = []
    for added in appends:
        try:
            append(added)
            refused.append(None)
        except (LeaseLostError, CorruptStateError) as error:
            refused.append(error)
    return refused
