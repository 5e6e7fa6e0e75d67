"""`Environment`: the objects that all jobs of one runtime share.

Invariants:
- A runtime drives a job at most once: `driven` holds the machine of each job by the job's id.
- Without a store the runtime itself knows which ids its callers have chosen: `job_ids`. It keeps no
  random id, so that a runtime that runs for months needs no more memory.
- A job changes only under `lock`; no handler runs under it.
- A forked child is another host: it has another owner name, a new lock and no jobs.
"""

from __future__ import annotations

import os
import threading
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

from routilux.engine.observers import Observers
from routilux.engine.step import run_async_step, run_step
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from routilux.clocks.clock import Clock
    from routilux.core.machine import Machine
    from routilux.engine.async_steps import AsyncSteps
    from routilux.engine.driver import Driven
    from routilux.graph.messages import StepInput, StepOutcome
    from routilux.graph.routine import Routine, Slot
    from routilux.monitor import Observer
    from routilux.persist.store import JobStore
    from routilux.retry.error_handler import ErrorHandler

RunStep: TypeAlias = "Callable[[StepInput, Routine, Slot, ErrorHandler, Driven], StepOutcome]"
"""Runs one attempt: `run_step`, or a function that replaces it in a test."""
RunAsyncStep: TypeAlias = (
    "Callable[[StepInput, Routine, Slot, ErrorHandler, Driven], Coroutine[Any, Any, StepOutcome]]"
)
"""Runs one attempt of an async handler: `run_async_step`, or a function that replaces it."""


class Environment:
    """The clock, store, observers and jobs of one runtime.

    `run_step` and `run_async_step` run each attempt of the jobs that start later. `leases` holds
    the jobs that the workers of this owner have under a lease, each with the function that its
    worker wants called when the lease is lost; `lease_lock` is held while leases change.
    """

    def __init__(
        self,
        clock: Clock,
        store: JobStore | None,
        observers: Iterable[Observer],
        max_steps: int | None,
    ) -> None:
        self.clock = clock
        self.store = store
        self.journal = None if store is None else Journal(store)
        self.observers = Observers(observers)
        self.max_steps = max_steps
        self.run_step: RunStep = run_step
        self.run_async_step: RunAsyncStep = run_async_step
        self.begin_process()

    def begin_process(self) -> None:
        """Make new locks, and forget all jobs and leases."""
        self.lock = threading.RLock()
        # Weak, so that a job that an exception kept from running leaves no entry.
        self.driven: WeakValueDictionary[str, Machine] = WeakValueDictionary()
        self.job_ids: set[str] = set()
        self.lease_lock = threading.Lock()
        self.leases: dict[str, Callable[[str], None]] = {}
        self.observers.begin_process()
        for made_later in ("owner", "async_steps"):
            vars(self).pop(made_later, None)

    def forget(self, machine: Machine) -> None:
        """Forget the machine of a job; the caller holds `lock`."""
        job_id = machine.job.job_id
        if self.driven.get(job_id) is machine:
            del self.driven[job_id]

    @cached_property
    def owner(self) -> str:
        """This runtime's unique name in a store."""
        import platform  # slow to import, and only a runtime with a store needs it

        return f"{platform.node()}:{os.getpid()}:{token_hex(8)}"

    @cached_property
    def async_steps(self) -> AsyncSteps:
        """The event loops for the async handlers of this runtime."""
        # asyncio takes 40 ms to import, and only async handlers need it.
        from routilux.engine.async_steps import AsyncSteps

        return AsyncSteps(self.clock)

    def close_event_loop(self) -> None:
        """End the event loop of this runtime when its last handler has ended."""
        steps: AsyncSteps | None = vars(self).get("async_steps")
        if steps is not None:
            steps.close()
