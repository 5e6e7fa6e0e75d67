"""A worker, a flow that retries, and readings of jobs, shared by the tests of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routilux import Acquired, ErrorHandler, Flow, MemoryStore, Routine, Runtime, Worker
from tests.routines import Body, Works, chain

TAKEN_OVER = (
    "was taken over by an operator, or by another host while this host was suspended for"
    " longer than its lease"
)


def worker(runtime: Runtime, *flows: Flow, lease: float = 30.0, **options: Any) -> Worker:
    assert runtime.store is not None
    return Worker(runtime.store, flows, runtime=runtime, lease=lease, **options)


def hosted(runtime: Runtime, flow: Flow, lease: float = 30.0) -> tuple[Worker, str]:
    """A worker of the flow, and the id of a job that waits for it."""
    return worker(runtime, flow, lease=lease), runtime.submit(flow, "a")


def statuses(runtime: Runtime, job_ids: list[str]) -> set[str]:
    return {runtime.load(job_id).status.value for job_id in job_ids}


def retrying(attempts: int, delay: float = 60.0) -> Flow:
    """A flow whose only routine succeeds at its n-th attempt."""

    def tries(self: Routine) -> None:
        if self.ctx.attempt < attempts:
            raise ValueError("not yet")

    handler = ErrorHandler("retry", max_retries=attempts, retry_delay=delay, retry_backoff=1.0)
    return chain(a=Works(tries, handler))


def working(seconds: float, log: list[str]) -> Body:
    """A body that logs its start and, some seconds later, its end."""

    def works(self: Routine) -> None:
        log.append("begins")
        self.ctx.sleep(seconds)
        log.append("ends")

    return works


def story(runtime: Runtime, job_id: str) -> list[str]:
    """The kinds of the commits of a job in their order."""
    return [commit.kind.value for commit in runtime.load(job_id).commits]


def suspends(store: MemoryStore, meanwhile: Callable[[], None]) -> None:
    """Let the next host that acquires a job there be suspended before it gets the answer."""
    acquire = store.acquire

    def acquires(*asked: Any) -> list[Acquired]:
        acquired = acquire(*asked)
        store.acquire = acquire
        meanwhile()
        return acquired

    store.acquire = acquires
