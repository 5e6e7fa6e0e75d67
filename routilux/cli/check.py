"""`routilux check`: reads everything in a store, and reports what is damaged.

Invariants:
- It changes nothing.
- A job that is damaged hides no other one.
- SQLite checks the pages of its file first. Then each job is read with all its commits, and once
  more from its snapshot, as a worker reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from routilux.errors import CorruptStateError, SavedStateError
from routilux.persist.journal import Journal
from routilux.persist.sqlite import SqliteStore

if TYPE_CHECKING:
    from routilux.persist.store import JobStore


@dataclass(frozen=True, slots=True)
class Checked:
    """The number of jobs, the damaged places of the file, and the damaged jobs."""

    jobs: int
    file: list[str]
    damaged: dict[str, SavedStateError]

    def data(self) -> dict[str, object]:
        """Return the members that `routilux check --json` writes."""
        damaged = [{"job_id": name, "reason": str(why)} for name, why in self.damaged.items()]
        return {"jobs": self.jobs, "file": self.file, "damaged": damaged}


def check_store(store: JobStore) -> Checked:
    """Read a whole store. Raises `OSError` and `SavedStateError` as the store does."""
    file = store.integrity() if isinstance(store, SqliteStore) else []
    journal = Journal(store)
    entries = store.entries()
    damaged: dict[str, SavedStateError] = {}
    for entry in entries:
        job_id = entry.job_id
        try:
            if entry.damage is not None:
                raise entry.damage
            for history in (True, False):
                job = journal.read(job_id, history=history)
                if job is None:
                    raise CorruptStateError(f"$.{job_id}", "has no commits")
                if (job.flow_id, job.status.value) != (entry.flow_id, entry.status):
                    reason = (
                        f"is {entry.status} in the store, and {job.status.value} by its commits"
                    )
                    raise CorruptStateError(f"$.{job_id}", reason)
        except SavedStateError as error:
            damaged[job_id] = error
    return Checked(len(entries), file, dict(sorted(damaged.items())))
