"""Detects handlers that swallow a BaseException, such as KeyboardInterrupt, or a lost lease.

Invariants:
- Every handler that the undisturbed run calls is called again with its first input, once for each
  `ctx.sleep`, `ctx.once` and effect in it. There a BaseException is raised.
- At each await that suspends an async handler a BaseException is raised, and in another call the
  handler is cancelled there. An await for a task that the handler has cancelled itself is left out.
- It is called once more for each key and each `ctx.once` in it. There the host is slow and not
  dead: another host owns the job by now, and a LeaseLostError is raised.
- A handler that returns swallows it. A handler that raises anything does not. A handler that has
  not ended a second after its cancellation swallows that.
- The check runs in a process of its own where it can, since a handler may end its process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import definition_of
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.results import Coverage
from pytest_routilux.sim.simulator.driver import simulation
from pytest_routilux.sim.simulator.host_loop import HostLoop
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.virtual_time.simulated_step import Flight, SimClock, running
from routilux import LeaseLostError
from routilux.clocks.durations import SECOND
from routilux.engine.step import CLEANUP, run_step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pytest_routilux.sim.simulator.model import Case
    from pytest_routilux.virtual_time.simulated_step import Pause
    from routilux import Context, Flow, StepInput
    from routilux.graph.messages import RecordedEffect

_MOST: Final = 8
_MOST_AWAITS: Final = 1_000  # of a handler that was cancelled, in no time


class _HostDies(BaseException):
    pass


def swallowed_crash(case: Case, start_ns: int, *, isolated: bool = True) -> Finding | None:
    """Return a finding on the first handler that swallows a BaseException.

    Without `isolated`, the check runs in this process.
    """
    with ForkedHosts(case, start_ns, Coverage(), isolated=isolated) as hosts:
        killed = hosts.canary()
        if killed is not None:
            return killed.finding
        found: Finding | None = hosts.ask(_swallowed, start_ns).result
        return found


def _swallowed(case: Case, send: object, start_ns: int) -> Finding | None:
    run = run_undisturbed(case, start_ns)
    first: dict[tuple[str, str], StepInput] = {}
    for _, step in run.host.steps:
        first.setdefault((step.task.routine_id, step.task.slot), step)
    flow = case.build()
    for step in first.values():
        for number in range(1, _MOST + 1):
            trap = _Trap(step, number)
            returned = _call(flow, step, trap)
            if trap.sprung is None:
                break
            if returned:
                return _finding(flow, step, trap)
            if trap.at_await:
                trap = _Trap(step, number, cancels=True)
                if _call(flow, step, trap) and trap.at_await:
                    return _finding(flow, step, trap)
        for number in range(1, _MOST + 1):
            trap = _Trap(step, number, is_slow=True)
            returned = _call(flow, step, trap)
            if trap.sprung is None:
                break
            if returned:
                return _finding(flow, step, trap)
    return None


class _Trap(Flight):
    """A host that dies at a step's n-th call of `ctx` or an effect, or at its n-th await.

    With `cancels` the host cancels the handler at that await. With `is_slow` it has lost the job at
    the n-th key or `once`, and does not die.
    """

    __slots__ = (
        *("_left", "_start", "_thrown", "_until", "at_await", "cancels", "clock", "outlived"),
        *("is_slow", "sprung"),
    )

    cancelled = False

    def __init__(
        self, step: StepInput, number: int, *, cancels: bool = False, is_slow: bool = False
    ) -> None:
        self.clock = SimClock(step.started_ns)
        super().__init__(None, step, HostLoop(self.clock))  # type: ignore[arg-type]  # no driver
        self.sprung: str | None = None
        self.at_await = False  # where it was sprung
        self.cancels = cancels
        self.is_slow = is_slow
        self.outlived = False  # whether the handler still runs a second after its cancellation
        self._until = 0  # the end of that second
        self._thrown = False
        self._start = step.started_ns
        self._left = number

    @property
    def flight(self) -> Flight:
        """This step."""
        return self

    def _step_on(self, call: str) -> None:
        if self.is_slow:
            return
        self._left -= 1
        if self._left == 0:
            self.sprung = call
            raise _HostDies(call)

    # --- what a step calls ------------------------------------------------------------------------

    def add_call(self, at: int, call: Any) -> None:
        self._step_on(f"the effect {call.effect}")

    def suspended(self, pause: Pause, waited: object) -> None:
        if self.is_slow:
            return
        self._left -= 1
        if self._left == 0:
            if self.cancels and getattr(waited, "cancelling", _zero)():
                return  # for a task that the handler has cancelled
            self.sprung = f"the await of {Path(pause.where).name}"
            self.at_await = True
            self._until = self.clock.mono + CLEANUP
            if self.cancels:
                self.loop.cancel()
        elif self.at_await and (self.clock.mono > self._until or self._left < -_MOST_AWAITS):
            self.outlived = self.cancels
            self.loop.die()

    def continues(self, pause: Pause) -> BaseException | None:
        if not self.at_await or self._thrown or self.cancels:
            return None
        self._thrown = True
        return _HostDies(self.sprung)

    def now_ns(self) -> int:
        return self._start + self.clock.mono

    def sleep(self, step: StepInput, length: int) -> None:
        self._step_on("ctx.sleep")
        self.clock.mono += length

    async def asleep(self, step: StepInput, length: int) -> None:
        await asyncio.sleep(length / SECOND)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        return self.loop.result_of(coroutine, self)

    def check(self, step: StepInput) -> None:
        """Raise `LeaseLostError` if this host has lost the job."""
        if not self.is_slow:
            return
        self._left -= 1
        if self._left > 0:
            return
        if self.sprung is None:
            of_once = sys._getframe(1).f_code.co_name in ("once", "acall")
            self.sprung = "ctx.once" if of_once else "ctx.key"
        raise LeaseLostError(f"another host owns job {step.job_id}")

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self._step_on(f"ctx.once({name!r})")

    def opened(self, context: Context) -> None:
        """Do nothing: no step continues after its timeout."""


def _zero() -> int:
    return 0


def _call(flow: Flow, step: StepInput, trap: _Trap) -> bool:
    """Run a step on `trap`, and return whether the step succeeded."""
    plan, routine_id = flow.plan(), step.task.routine_id
    outer = running.flight, running.clock
    running.flight, running.clock = trap, trap.clock
    try:
        with simulation(trap.clock):
            outcome = run_step(
                step,
                plan.routines[routine_id],
                plan.slot(routine_id, step.task.slot),
                plan.handlers[routine_id],
                trap,
            )
    except BaseException:
        return trap.outlived
    finally:
        running.flight, running.clock = outer
        trap.loop.close()
    return outcome.error is None


def _finding(flow: Flow, step: StepInput, trap: _Trap) -> Finding:
    routine_id, slot = step.task.routine_id, step.task.slot
    handler = flow.routines[routine_id].slots[slot].handler
    name = getattr(handler, "__qualname__", repr(handler))
    kind, when, error = "swallowed-crash", "its host dies", "BaseException"
    if trap.is_slow:
        kind, when, error = "swallowed-lease", "its host has lost the job", "LeaseLostError"
    elif trap.cancels:
        kind, when, error = "swallowed-cancellation", "it is cancelled", "CancelledError"
    what = (
        f"{routine_id} continues when {when} in {trap.sprung}: {name} catches {error} and"
        f" {'runs on' if trap.outlived else 'returns'}"
    )
    path = f"swallowed.{routine_id}.{slot}"
    return Finding(kind, what, path, routine_id, hint=definition_of(handler))
