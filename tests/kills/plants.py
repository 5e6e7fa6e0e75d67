"""Faults of a store or the engine, which a worker gets by name.

A fault breaks the store, or what the engine reads from it, for that worker alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routilux import JobState, codec
from routilux.engine.drive import Drive
from routilux.persist.journal import Journal
from routilux.persist.rows import row_place, with_checksum, without_checksum
from tests.persist.stores import using


def _loses(store: Any) -> None:
    """The store loses the last commit of a job that a host acquires."""
    acquire = store.acquire

    def acquires(*arguments: Any) -> Any:
        acquired = acquire(*arguments)
        for job in acquired:
            with using(store) as db:
                db.execute(
                    "DELETE FROM commits WHERE seq > 1 AND (job, seq) = (SELECT job, seq FROM jobs"
                    " WHERE job_id = ?)",
                    (job.job_id,),
                )
                db.execute(
                    "UPDATE jobs SET seq = seq - 1, seal = seal - (1 << 32)"
                    " WHERE seq > 1 AND job_id = ?",
                    (job.job_id,),
                )
        return acquired

    store.acquire = acquires


def _keeps_twice(store: Any) -> None:
    """The store keeps the commit of a step twice."""
    append = store.append

    def appends(job_id: str, seq: int, row: bytes, owner: str, *, status: str) -> None:
        append(job_id, seq, row, owner, status=status)
        data: Any = codec.loads(without_checksum(row, row_place(job_id, seq)))
        if data["kind"] == "done":
            again = codec.dumps({**data, "seq": seq + 1})
            second = with_checksum(again.encode(), row_place(job_id, seq + 1))
            append(job_id, seq + 1, second, owner, status=status)

    store.append = appends


def _read(change: Callable[[JobState], None]) -> Callable[[Any], None]:
    """The engine reads a job that is changed."""

    def plant(store: Any) -> None:
        read = Journal.read

        def reads(self: Journal, job_id: str, **how: Any) -> Any:
            job = read(self, job_id, **how)
            if job is not None:
                change(job)
            return job

        Journal.read = reads

    return plant


def _forgets_effects(job: JobState) -> None:
    for task in job._pending.values():
        task.effects = None


def _resets_retries(job: JobState) -> None:
    for task in job._pending.values():
        task.retries = 0


def _asks_nobody(store: Any) -> None:
    """The engine does not ask the store before an effect."""
    Drive._check_owner = lambda self, store: None


PLANTS: dict[str, Callable[[Any], None]] = {
    "loses a commit": _loses,
    "keeps a commit twice": _keeps_twice,
    "forgets effects": _read(_forgets_effects),
    "resets retries": _read(_resets_retries),
    "asks nobody": _asks_nobody,
}
