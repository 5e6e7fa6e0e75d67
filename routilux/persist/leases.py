"""Who has a job: what a store tells of it, and by which texts it keeps that nobody has.

Laws:
- A stop is clean where whoever had the job gave it back, unclean where the job was let fall or its
  lease ended with an owner. Only a store can tell the two apart.
- A store tells lengths of time by its own clock, never instants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from routilux.instants import seconds_text

__all__ = ["FALLEN", "FREE", "NOBODY", "Acquired", "Hold"]

FREE: Final = ""
"""Stands for the owner of a job that was queued or given back."""
FALLEN: Final = "?"
"""Stands for the owner of a job that broke off where it was driven, and was let fall."""
NOBODY: Final = (FREE, FALLEN)


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
