"""`Capacity`: how many jobs a worker may take from the store.

Invariants:
- A worker holds at most `concurrency` jobs that have a step to run; jobs that wait for a retry
  don't count. So jobs that it can't run now are free for other workers.
- One claim takes twice as many jobs as the last one if that was full, so that workers share a few
  jobs. It takes one after an unclean stop: if a job kills its hosts, few other jobs' runs end with
  each host.
- A job that has waited for a thread since the renewal before is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from threading import RLock

    from routilux.engine.drive import Drive

_MOST: Final = 32  # jobs that one claim takes


class Capacity:
    """The jobs of a worker that have a step to run, at most `concurrency` of them.

    `lock` is the runtime's lock, under which jobs change.
    """

    def __init__(self, lock: RLock, concurrency: int) -> None:
        self._lock = lock
        self._concurrency = concurrency
        self._active: set[Drive] = set()  # had a step to run at the last check, or have one since
        self._late: dict[Drive, int] = {}  # waited for a thread at the last renewal, since a commit
        self._batch = 1

    @property
    def full(self) -> bool:
        """Whether as many jobs as may run had a step to run at the last check."""
        return len(self._active) >= self._concurrency

    def check(self) -> bool:
        """Return whether the worker may take another job."""
        if self.full:
            with self._lock:
                self._active = {
                    drive
                    for drive in self._active
                    if drive.loop is not None and (drive.can_start or drive.machine.in_flight)
                }
        return not self.full

    def batch(self) -> int:
        """Return how many jobs the next claim may take."""
        room = self._concurrency - len(self._active)
        self._batch = max(1, min(self._batch, _MOST, room))  # a wait may have ended meanwhile
        return self._batch

    def note_claim(self, resumed: int, *, clean: bool) -> None:
        """Note how many jobs of a claim were resumed, and whether all had stopped cleanly."""
        self._batch = 2 * self._batch if clean and resumed == self._batch else 1

    def add(self, drive: Drive) -> None:
        """Count a job that has a step to run."""
        self._active.add(drive)

    def discard(self, drive: Drive) -> None:
        """Stop counting a job."""
        self._active.discard(drive)

    def give_back_late(self) -> None:
        """Let the jobs leave that have waited for a thread since the call before."""
        with self._lock:
            late = {
                drive: drive.machine.job.seq
                for drive in self._active
                if drive.can_start and not drive.machine.in_flight
            }
            for drive, seq in late.items():
                if self._late.get(drive) == seq:
                    drive.leave()
            self._late = late
