"""`Environment`: what all jobs of one runtime share.

Invariants:
- A job is driven at most once in a runtime: `driven` holds it, by its id.
- Everything that changes a job happens under `lock`; no handler runs under it.
- A forked child is another host: it has another owner name, a new lock and no jobs.
"""

from __future__ import annotations

import os
import threading
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING

from routilux.engine.observers import Observers
from routilux.engine.step import run_step
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from routilux.clocks.clock import Clock
    from routilux.core.machine import Machine
    from routilux.engine.driver import RunStep
    from routilux.monitor import Observer
    from routilux.persist.store import JobStore

__all__ = ["Environment"]


class Environment:
    """The clock, the store, the observers and the jobs of one runtime.

    `run_step` runs each attempt of the jobs that begin from now on. `owner` names this runtime to
    a store: host, process and a random part. `leases` holds the jobs that workers have under a
    lease as this owner, each with a function that a worker gave to learn of its loss;
    `lease_lock` is held while leases change.
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
        self.begin_process()

    def begin_process(self) -> None:
        """Make what belongs to one process; called again in a forked child."""
        self.lock = threading.RLock()
        self.driven: dict[str, Machine] = {}
        self.lease_lock = threading.Lock()
        self.leases: dict[str, Callable[[str], None]] = {}
        self.observers.begin_process()
        vars(self).pop("owner", None)

    @cached_property
    def owner(self) -> str:
        """The name of this runtime in a store."""
        import platform  # slow to import, and only a runtime with a store needs it

        return f"{platform.node()}:{os.getpid()}:{token_hex(8)}"
