"""`flow_faults`: makes faults, and lets them strike in the jobs of a runtime.

Laws:
- What a fault does is in `faults.py`, for simulations and for runtimes alike. A runtime has two
  places where it is let loose, `run_step` and `journal`, and both are put back at the end.
- A fault that was given to a simulation is of that simulation alone. Any other strikes on every
  runtime that `on` was called for, in jobs that begin after that.
- One that can't strike on a runtime breaks the job off at its first step, with the cure.
- One that has never struck when the test is over fails it; so does one that names nothing.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

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
from routilux import Commit, FlowDefinitionError, codec
from routilux.persist.journal import Journal
from routilux.persist.rows import without_checksum

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta

    from routilux import Append, ErrorHandler, JobStore, Routine, Runtime, Slot, StepInput
    from routilux.engine.driver import Driven
    from routilux.engine.environment import RunStep
    from routilux.graph.messages import StepOutcome

__all__ = ["FlowFaults"]


class FlowFaults:
    """Makes faults; the fixture `flow_faults`.

    They strike in the jobs of `flow_runtime` where the test uses that too, in those of any runtime
    that `on` is given, and in a simulation that gets them as `faults=[...]`. `attempts` are counted
    from 1, and are all where they are left out. Raises `FlowDefinitionError` for what can't be a
    fault.

        def test_an_outage(flow_runtime, flow_monitor, flow_faults):
            flow_faults.raises("charge", ConnectionError, attempts=[1, 2])
            build().execute("orders")
            flow_monitor.assert_retried("charge", times=2)

        flow_sim.crash_everywhere(build, "orders", faults=[flow_faults.raises("charge", OSError)])
    """

    def __init__(self) -> None:
        self._made: list[Fault] = []
        self._attached: list[_Attached] = []
        self._routines: dict[str, None] = {}  # of the flows that ran with them
        self._lock = threading.Lock()  # steps of several threads meet the same faults

    def raises(
        self,
        routine: str,
        error: Exception | type[Exception],
        attempts: Iterable[int] | None = None,
    ) -> Fault:
        """Return a fault that raises an error in place of a routine's handler."""
        return self._make(Raises(routine, error, attempts))

    def slow(
        self, routine: str, seconds: float | timedelta, attempts: Iterable[int] | None = None
    ) -> Fault:
        """Return a fault that lets a routine's handler begin its work so much later.

        It sleeps by the job's clock, and no longer than the attempt's timeout. A runtime on the
        system's clock is refused, since that would be a real sleep.
        """
        return self._make(Slow(routine, seconds, attempts))

    def clock_jump(self, seconds: float) -> Fault:
        """Return a fault that sets the wall clock of each host, once its first step has begun."""
        return self._make(ClockJump(seconds))

    def store_fails(self, write: int, *, durable: bool = False) -> Fault:
        """Return a fault that fails a write of the store, counted from 1.

        With `durable` the commit is kept all the same, only its acknowledgement is lost.
        """
        return self._make(StoreFails(write, durable=durable))

    def on(self, runtime: Runtime) -> Runtime:
        """Let the faults strike in jobs that begin on a runtime, until the test ends; returns it.

        Faults that are made later strike there too, from then on. Raises `FlowDefinitionError`
        where its steps run in other processes, which no fault reaches.
        """
        executor = runtime.executor
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            raise FlowDefinitionError(
                f"faults can't strike where steps run elsewhere: the runtime's executor is a"
                f" {type(executor).__name__}; leave executor=None in this test"
            )
        if all(attached.runtime is not runtime for attached in self._attached):
            self._attached.append(_Attached(self, runtime))
        return runtime

    def close(self) -> None:
        """Leave all runtimes as they were found."""
        while self._attached:
            self._attached.pop().detach()

    @property
    def live(self) -> list[Fault]:
        """The faults that no simulation was given."""
        return [fault for fault in self._made if not fault.used]

    def trouble(self, *, after_failure: bool = False) -> list[str]:
        """Say of each fault that has struck nowhere why that is, the misspelt ones first.

        After a failure of the test only those: it may have ended before the others could strike.
        """
        idle = [fault for fault in self.live if not fault.struck]
        if not idle:
            return []
        if not self._routines:
            if after_failure:
                return []
            faults = ", ".join(map(repr, idle))
            said = (
                f"{faults}: made, and met no job; use flow_runtime in the test too, call"
                " flow_faults.on(runtime), or give it to a simulation as faults=[...]"
            )
            return [said]
        known = list(self._routines)
        misnamed = [f for f in idle if isinstance(f, OfRoutine) and f.routine not in known]
        lines = [fault.misnamed("the flows that ran", known) for fault in misnamed]
        rest = [repr(fault) for fault in idle if fault not in misnamed]
        if rest and not after_failure:
            lines.append(NEVER_STRUCK.format(", ".join(rest)))
        return lines

    def affect(self, step: StepInput, slot: Slot, driven: Driven, runtime: Runtime) -> Slot:
        """Return the slot whose handler runs for a step of a runtime."""
        with self._lock:
            self._routines.update(dict.fromkeys(driven.plan.routines))
            live = self.live
            for fault in live:
                why = fault.unfit(runtime)
                if why is not None:
                    raise FlowDefinitionError(f"{fault!r} {why}")
            return slot_with_faults(live, step, slot, runtime.clock)

    def _make(self, fault: Fault) -> Fault:
        self._made.append(fault)
        return fault


class _Attached:
    """What stands in the two places of one runtime."""

    def __init__(self, faults: FlowFaults, runtime: Runtime) -> None:
        self.runtime = runtime
        self._faults = faults
        environment = runtime.environment
        self._run_step: RunStep = environment.run_step
        self._journal = environment.journal
        environment.run_step = self._run
        if environment.store is not None:
            environment.journal = _FailingJournal(environment.store, faults)

    def detach(self) -> None:
        environment = self.runtime.environment
        environment.run_step, environment.journal = self._run_step, self._journal

    def _run(
        self, step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, driven: Driven
    ) -> StepOutcome:
        slot = self._faults.affect(step, slot, driven, self.runtime)
        return self._run_step(step, routine, slot, handler, driven)


class _FailingJournal(Journal):
    def __init__(self, store: JobStore, faults: FlowFaults) -> None:
        super().__init__(store)
        self._faults = faults

    def write(
        self, job_id: str, commit: Commit, owner: str, *, claims: bool, acquired: bool = False
    ) -> None:
        commit.dumps()  # what can't be saved is no write, and is not counted
        with failing_write(self._faults.live, commit):
            super().write(job_id, commit, owner, claims=claims, acquired=acquired)

    def append_all(self, added: Sequence[Append]) -> Sequence[Exception | None]:
        # One at a time, so that each of them counts, and one that fails holds up no other.
        refusals: list[Exception | None] = []
        for row in added:
            try:
                commit = Commit.load(codec.loads(without_checksum(row.row, "$")), "$")
                with failing_write(self._faults.live, commit):
                    [refusal] = super().append_all([row])
            except Exception as error:
                refusal = error
            refusals.append(refusal)
        return refusals
