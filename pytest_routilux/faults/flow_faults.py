"""The fixture `flow_faults`: injects faults into the jobs of a runtime.

Invariants:
- `faults.py` has the behaviour of each fault, for simulations and runtimes alike. In a runtime this
  module replaces `run_step`, `run_async_step` and `journal`, and restores them at the end.
- A fault that was given to a simulation strikes only there. Any other fault strikes on every
  runtime that `on` was called for, in jobs that begin after that.
- A fault that can't strike on a runtime aborts the job at its first step, with what to do.
- A fault that never struck fails the test at its end. So does one that names no routine.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pytest_routilux.faults.faults import (
    NEVER_STRUCK,
    ClockJump,
    Fault,
    OfRoutine,
    Raises,
    Slow,
    StoreFails,
    failing_write,
    slot_with_faults,
)
from routilux import Commit, FlowDefinitionError
from routilux.persist.journal import Journal
from routilux.persist.rows import load_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from routilux import Append, ErrorHandler, JobStore, Routine, Runtime, Slot, StepInput
    from routilux.engine.driver import Driven

T = TypeVar("T")


class FlowFaults:
    """Makes faults and injects them into jobs.

    Faults strike in the jobs of `flow_runtime` if the test uses it too, of each runtime that is
    passed to `on`, and of a simulation that gets them as `faults=[...]`. `attempts` are counted
    from 1; without it a fault hits all attempts. Invalid arguments raise `FlowDefinitionError`.

    A test with it::

        from routilux import ErrorHandler

        def test_an_outage(flow_factory, flow_runtime, flow_monitor, flow_faults):
            def charge(order):
                return {"paid": order}

            flow = flow_factory(chain=[charge], error_handler=ErrorHandler("retry"))
            flow_faults.raises("charge", ConnectionError, attempts=[1, 2])

            flow.execute("charge", {"order": "A7"})

            flow_monitor.assert_retried("charge", times=2)
    """

    def __init__(self) -> None:
        self._made: list[Fault] = []
        self._runtimes: list[Runtime] = []
        self._undo = ExitStack()
        self._routines: dict[str, None] = {}  # of the flows that ran with the faults
        self._lock = threading.Lock()  # steps of several threads share the faults

    def raises(
        self,
        routine: str,
        error: Exception | type[Exception],
        attempts: Iterable[int] | None = None,
        *,
        after: bool = False,
    ) -> Fault:
        """Return a fault that raises `error` instead of running the handler of `routine`.

        With `after` the handler runs to its end first: what it did outside is done, and its answer
        is lost. If it raises an error itself, it keeps that error.
        """
        return self._make(Raises(routine, error, attempts, after=after))

    def slow(
        self, routine: str, seconds: float | timedelta, attempts: Iterable[int] | None = None
    ) -> Fault:
        """Return a fault that delays the handler of `routine` by `seconds`.

        The delay passes on the job's clock, and lasts at most until the attempt's timeout. On the
        system's clock it would be a real sleep, so such a runtime is refused.
        """
        return self._make(Slow(routine, seconds, attempts))

    def clock_jump(self, seconds: float) -> Fault:
        """Return a fault that moves the wall clock at each host's first step."""
        return self._make(ClockJump(seconds))

    def store_fails(self, write: int, *, durable: bool = False) -> Fault:
        """Return a fault that makes write number `write` of the store fail.

        Writes count from 1. With `durable` the store keeps the commit, but does not acknowledge it.
        """
        return self._make(StoreFails(write, durable=durable))

    def on(self, runtime: Runtime) -> Runtime:
        """Inject the faults into each new job of `runtime`.

        Faults that are made later strike there too. Raises `FlowDefinitionError` if the runtime
        runs steps in other processes, which no fault reaches. Returns `runtime`.
        """
        executor = runtime.executor
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            raise FlowDefinitionError(
                "faults can't be injected in other processes: the runtime's executor is a"
                f" {type(executor).__name__}; make the runtime without executor= in this test"
            )
        if runtime not in self._runtimes:
            self._runtimes.append(runtime)
            environment = runtime.environment
            for name in ("run_step", "run_async_step", "journal"):
                self._undo.callback(setattr, environment, name, getattr(environment, name))
            environment.run_step = partial(self._run, runtime, environment.run_step)
            environment.run_async_step = partial(self._run, runtime, environment.run_async_step)
            if environment.store is not None:
                environment.journal = _FailingJournal(environment.store, self)
        return runtime

    def close(self) -> None:
        """Remove the faults from all runtimes."""
        self._undo.close()
        self._runtimes.clear()

    @property
    def live(self) -> list[Fault]:
        """The faults that the test has not passed to a simulation."""
        return [fault for fault in self._made if not fault.used]

    def problems(self, *, after_failure: bool = False) -> list[str]:
        """Return messages about the faults that were never injected.

        With `after_failure` only faults of misspelt routines are reported, since the failed test
        may have ended before other faults could strike.
        """
        idle = [fault for fault in self.live if not (fault.struck or fault.may_miss)]
        if not idle or (after_failure and not self._routines):
            return []
        if not self._routines:
            text = (
                f"no job ran with {', '.join(map(repr, idle))}; use flow_runtime in the test too,"
                " call flow_faults.on(runtime), or pass faults=[...] to a simulation"
            )
            return [text]
        known = list(self._routines)
        misnamed = [f for f in idle if isinstance(f, OfRoutine) and f.routine not in known]
        lines = [fault.misnamed("the flows that ran", known) for fault in misnamed]
        rest = [repr(fault) for fault in idle if fault not in misnamed]
        if rest and not after_failure:
            lines.append(NEVER_STRUCK.format(", ".join(rest)))
        return lines

    def _run(
        self,
        runtime: Runtime,
        run_step: Callable[[StepInput, Routine, Slot, ErrorHandler, Driven], T],
        step: StepInput,
        routine: Routine,
        slot: Slot,
        handler: ErrorHandler,
        driven: Driven,
    ) -> T:
        with self._lock:
            self._routines.update(dict.fromkeys(driven.plan.routines))
            live = self.live
            for fault in live:
                why = fault.unfit(runtime)
                if why is not None:
                    raise FlowDefinitionError(f"{fault!r} {why}")
            slot = slot_with_faults(live, step, slot, runtime.clock)
        return run_step(step, routine, slot, handler, driven)

    def _make(self, fault: Fault) -> Fault:
        self._made.append(fault)
        return fault


class _FailingJournal(Journal):
    def __init__(self, store: JobStore, faults: FlowFaults) -> None:
        super().__init__(store)
        self._faults = faults

    def write(
        self, job_id: str, commit: Commit, owner: str, *, claims: bool, after_ns: int = 0
    ) -> None:
        commit.dumps()  # raises for a commit that can't be saved, which counts as no write
        with failing_write(self._faults.live, commit):
            super().write(job_id, commit, owner, claims=claims, after_ns=after_ns)

    def append_all(self, added: Sequence[Append]) -> Sequence[Exception | None]:
        # One at a time, so that each one counts and a failed one delays no other.
        refusals: list[Exception | None] = []
        for row in added:
            try:
                [(place, data)] = load_rows([row.row], row.job_id, row.seq - 1)
                commit = Commit.load(data, place)
                with failing_write(self._faults.live, commit):
                    [refusal] = super().append_all([row])
            except Exception as error:
                refusal = error
            refusals.append(refusal)
        return refusals
