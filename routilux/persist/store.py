"""`JobStore`: where commits are kept, and the rules that all stores share.

Invariants:
- A store sees bytes and knows nothing of what is in them.
- One row a commit, keyed by (job id, sequence number). The key is the fence: a row that another
  owner has written is `LeaseLostError`; writing the same row again is accepted and does nothing.
- When a write returns, the row is kept as safely as this store can. Rows of several jobs may share
  one write, since what makes a row safe costs more than the row.
- Beside its rows a job has two plain facts: its owner, and the instant from which it is free, that
  is, any host may take it. It is never free while it rests, nor while it is held without a lease.
  Who takes it learns whether whoever had it before gave it back: only then was that a clean stop.
- Only the store's own time counts. Whoever asks says how long, never when, so that the clocks of
  hosts need not agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from routilux.clocks.durations import seconds_text
from routilux.errors import DuplicateJobError, LeaseLostError, NotResumableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence


__all__ = [
    "ABANDONED",
    "FREE",
    "NOBODY",
    "Acquired",
    "Append",
    "Hold",
    "JobStore",
    "duplicate",
    "refusal",
    "refusals",
]


FREE: Final = ""
"""Stands for the owner of a job that was queued or given back."""
ABANDONED: Final = "?"
"""Stands for the owner of a job that broke off where it was driven, and was let fall."""
NOBODY: Final = (FREE, ABANDONED)


@dataclass(frozen=True, slots=True)
class Acquired:
    """A job that a host was given a lease on; `clean` where whoever had it before gave it back.

    >>> Acquired("job-1", clean=True).job_id
    'job-1'
    """

    job_id: str
    clean: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Who has a job, and in how many nanoseconds any host may take it.

    `owner` is None where nobody has it. `free_in_ns` is None where no time frees it: it rests, or
    is held without a lease. `clean` tells whether whoever had it before gave it back.

    >>> print(Hold.of("web-1:4711:9f86d081", 5_000_000_000, now=0))
    held by web-1:4711:9f86d081, whose lease ends in 5.0 s
    >>> print(Hold.of("", 5_000_000_000, now=0))
    held by nobody, and free to be taken in 5.0 s
    """

    owner: str | None
    free_in_ns: int | None
    clean: bool

    @classmethod
    def of(cls, owner: str, free_at: int | None, *, now: int) -> Hold:
        """Make it of what a store keeps beside a job's rows."""
        free_in = None if free_at is None else max(0, free_at - now)
        return cls(None if owner in NOBODY else owner, free_in, owner == FREE)

    @property
    def is_leased(self) -> bool:
        """Whether somebody has it under a lease that has not ended."""
        return self.owner is not None and bool(self.free_in_ns)

    def __str__(self) -> str:
        soon = f"in {seconds_text(self.free_in_ns or 0, 1)} s"
        if self.owner is None:
            return f"held by nobody, and free to be taken {soon if self.free_in_ns else 'now'}"
        if self.free_in_ns is None:
            return f"held by {self.owner} without a lease"
        if not self.free_in_ns:
            return f"left by {self.owner}, whose lease has ended"
        return f"held by {self.owner}, whose lease ends {soon}"


@dataclass(slots=True)
class Append:
    """A row that is to be kept; the arguments of `JobStore.append`."""

    job_id: str
    seq: int
    row: bytes
    owner: str
    stopped: bool


class JobStore(Protocol):
    """Keeps the commits of jobs; safe to use from several threads, and whatever shares it.

    All that a method changes is changed at once, or nothing is. `owner` is a text that no other
    host uses, and none of those that stand for nobody. Lengths of time are nanoseconds. A method
    raises `OSError` where the store can't be used just now, whether it has done what was asked or
    not: whoever asked may do the very same again.
    """

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        """Keep the row of commit 1. A `queued` job is free and has no owner, else `owner` holds it.

        The very same call again does nothing, as long as it is the only row. Raises
        `DuplicateJobError` where the job exists.
        """

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Keep the row of commit `seq`; where the job `stopped` after it, it is no longer free.

        A row that stands there already, of the owner, is accepted. Raises `LeaseLostError` where
        `owner` does not own the job, another row stands there, or the one before is missing.
        """

    def append_all(self, appends: Sequence[Append]) -> list[LeaseLostError | None]:
        """Do several appends, of a job each, by one write.

        Returns for each None where its row is kept, or the error that `append` would raise; a row
        that is refused holds up no other. Where it raises, any of them may be kept.
        """

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        """Make `owner` the one owner of a job, and keep the row of the commit that resumes it.

        Who acquired the job keeps the lease; anybody else holds it without one, until it rests or
        is claimed again. A row that stands there already, of the owner, is accepted. Raises
        `LeaseLostError` where another owner has a lease that has not ended, or somebody was
        faster, so that another row stands at `seq`; `NotResumableError` where there is no job.
        """

    def overrule(self, job_id: str, seq: int, row: bytes, operator: str, *, free: bool) -> None:
        """Keep the row of a commit that an operator makes, whoever owns the job or has a lease.

        The owner before it can write no more. Afterwards the job is `free`, or rests. The very
        same call again does nothing, as long as its row is the last. Raises `LeaseLostError` where
        somebody was faster, `NotResumableError` where there is no job.
        """

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        """Return the rows of a job that follow commit `after`, in order; none without the job."""

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""

    def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
        """Keep what the job was after commit `seq`, in place of an earlier snapshot.

        It needs no fence: commits never change, so neither does what they come to.
        """

    def snapshot(self, job_id: str) -> tuple[int, bytes] | None:
        """Return the number of a commit and the job as of it; None where there is no snapshot."""

    def acquire(self, owner: str, flow_ids: Collection[str], lease_ns: int) -> Acquired | None:
        """Give `owner` a lease on the job of these flows that has been free longest.

        Returns which one, and whether it was given back; None where none is free. The owner before
        it can write no more. Until the lease ends the job is not free.
        """

    def renew(self, owner: str, lease_ns: int) -> list[str]:
        """Make all leases of `owner` end so much later than now; return the ids of their jobs."""

    def release(self, job_id: str, owner: str, after_ns: int, *, clean: bool = True) -> None:
        """Give back a job that was acquired, to be free after so long; else do nothing.

        Without `clean` it is let fall: whoever takes it next learns of an unclean stop.
        """

    def holders(self, job_id: str | None = None) -> dict[str, Hold]:
        """Return who has each job, or that one alone; what is not there is not among them."""

    def free_in(self, flow_ids: Collection[str]) -> int | None:
        """Return in how many nanoseconds the next job of these flows will be free.

        It is 0 where one is; None where no time frees any: all of them rest, or are held.
        """


def refusal(
    job_id: str, seq: int, owner: str, *, count: int, held_by: str, claims: bool = False
) -> Exception:
    """Return the error by which a store refuses a row; `count` is how many rows the job has."""
    if not count:
        if claims:
            return NotResumableError(
                f"the store holds no job {job_id!r}; only a job that it holds can be claimed"
            )
        return LeaseLostError(f"the store holds no job {job_id!r} to add commit {seq} to")
    if owner != held_by:
        free = held_by in NOBODY
        whose = "is free to be taken by any host" if free else f"belongs to {held_by!r}"
        return LeaseLostError(f"job {job_id!r} {whose} now; commit {seq} of {owner!r} was refused")
    return LeaseLostError(
        f"job {job_id!r} has {count} commits in the store, so this can't be commit"
        f" {seq}: another host has gone on with it"
    )


def duplicate(job_id: str) -> DuplicateJobError:
    """Return the error by which a store refuses to create a job that it holds."""
    return DuplicateJobError(
        f"the store holds a job {job_id!r} already; choose another job_id, or resume it"
    )


def refusals(
    appends: Iterable[Append], append: Callable[[Append], None]
) -> list[LeaseLostError | None]:
    """Try each append; return None for it, or by what it was refused."""
    told: list[LeaseLostError | None] = []
    for added in appends:
        try:
            append(added)
        except LeaseLostError as error:
            told.append(error)
        else:
            told.append(None)
    return told
