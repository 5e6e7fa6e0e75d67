"""`Leases`: the leases of the jobs that one worker has acquired from a store.

Invariants:
- A job that was acquired is to be given back until `keep` says that the worker runs it. So a job
  that an exception kept from running is given back, too.
- A lease is renewed three times in its length, so that one late renewal does no harm.
- The store and the environment's `leases` change together, under the environment's `lease_lock`.
- A job leaves one list only after it was added to the next, so each step can be repeated after an
  interrupt.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from routilux.engine.environment import Environment
    from routilux.persist.store import Acquired, JobStore

_log = logging.getLogger("routilux")
_RENEWALS: Final = 3  # in a lease


class Leases:
    """The leases of one worker, each `length_ns` long.

    `lose` is called, in any thread, with the id of a job whose lease is lost. `renew_at` is the
    instant of the next renewal. `to_release` holds the jobs to give back: the instant from which
    each is free, and whether it stopped cleanly.
    """

    def __init__(
        self,
        environment: Environment,
        store: JobStore,
        length_ns: int,
        lose: Callable[[str], None],
    ) -> None:
        self._environment = environment
        self._store = store
        self._clock = environment.clock
        self._lose = lose
        self.length_ns = length_ns
        self.interval_ns = length_ns // _RENEWALS
        self.renew_at = 0
        self.to_release: dict[str, tuple[int, bool]] = {}

    def plan_renewal(self) -> None:
        """Plan the first renewal of jobs that are acquired from now on."""
        self.renew_at = self._clock.monotonic_ns() + self.interval_ns

    def acquire(self, flow_ids: Collection[str], count: int) -> list[Acquired]:
        """Acquire at most `count` jobs of these flows; each is to be given back unless kept."""
        environment = self._environment
        lost: dict[str, Callable[[str], None]] = {}
        with environment.lease_lock:
            taken = self._store.acquire(environment.owner, flow_ids, self.length_ns, count)
            for job_id, clean in taken:
                if job_id in environment.leases:
                    lost[job_id] = environment.leases[job_id]
                environment.leases[job_id] = self._lose
                self.release_later(job_id, 0, clean=clean)
        for job_id, lose in lost.items():  # this worker or another one of this owner lost the job
            lose(job_id)
        return taken

    def keep(self, job_id: str) -> None:
        """Don't give back a job that was acquired: the worker runs it."""
        del self.to_release[job_id]

    def release_later(self, job_id: str, after_ns: int, *, clean: bool) -> None:
        """Have a job given back by the next `release`, free after `after_ns`."""
        self.to_release[job_id] = self._clock.monotonic_ns() + after_ns, clean

    def release(self) -> None:
        """Give back the jobs that are to be given back."""
        environment = self._environment
        for job_id, (free_at, clean) in list(self.to_release.items()):
            with environment.lease_lock:
                if environment.leases.get(job_id) == self._lose:  # else another worker owns it
                    wait = max(0, free_at - self._clock.monotonic_ns())
                    self._store.release(job_id, environment.owner, wait, clean=clean)
                    self._remove(job_id)
            del self.to_release[job_id]

    def release_unknown(self, driven: Mapping[str, object]) -> None:
        """Have each job given back that this worker holds, but neither drives nor gives back."""
        with self._environment.lease_lock:
            for job_id, lose in self._environment.leases.items():
                known = job_id in driven or job_id in self.to_release
                if lose == self._lose and not known:
                    self.release_later(job_id, 0, clean=False)

    def forget(self, job_id: str) -> None:
        """Forget the lease of a job that the store no longer has under it."""
        with self._environment.lease_lock:
            self._remove(job_id)

    def _remove(self, job_id: str) -> None:
        leases = self._environment.leases
        if leases.get(job_id) == self._lose:
            del leases[job_id]

    def renew(self) -> set[str]:
        """Renew all leases of this owner, and return the jobs that it still holds."""
        # Counted from before the call, so that the next renewal comes early enough.
        now = self._clock.monotonic_ns()
        environment, store = self._environment, self._store
        with environment.lease_lock:
            held = set(store.renew(environment.owner, self.length_ns))
            for job_id in sorted(held - environment.leases.keys()):
                _log.info("the worker releases job %s: no worker here runs it", job_id)
                # How it stopped is unknown, so it counts as unclean, as if the lease had ended.
                store.release(job_id, environment.owner, 0, clean=False)
        self.renew_at = now + self.interval_ns
        return held
