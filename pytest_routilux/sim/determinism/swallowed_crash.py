"""Detects handlers that swallow a BaseException, such as KeyboardInterrupt.

Invariants:
- Every handler that the undisturbed run calls is called again with its first input, once for each
  `ctx.sleep`, `ctx.once` and effect in it. There a BaseException is raised.
- A handler that returns swallows it. A handler that raises anything does not.
- The check runs in a process of its own where it can, since a handler may end its process.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import definition_of
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.results import Coverage
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.virtual_time.simulated_step import Flight, SimClock, running
from routilux.engine.step import run_step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pytest_routilux.sim.simulator.model import Case
    from routilux import Context, Flow, StepInput
    from routilux.graph.messages import RecordedEffect

_MOST: Final = 8


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
                return _finding(flow, step, trap.sprung)
    return None


class _Trap:
    """A host that dies at a step's n-th `ctx` or effect call."""

    def __init__(self, step: StepInput, number: int) -> None:
        self.clock = SimClock(step.started_ns)
        self.sprung: str | None = None
        self._start = step.started_ns
        self._left = number

    def step_on(self, call: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.sprung = call
            raise _HostDies(call)

    cancelled = False

    def now_ns(self) -> int:
        return self._start + self.clock.mono

    def sleep(self, step: StepInput, length: int) -> None:
        self.step_on("ctx.sleep")
        self.clock.mono += length

    async def asleep(self, step: StepInput, length: int) -> None:
        self.step_on("ctx.asleep")
        self.clock.mono += length

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        import asyncio

        return asyncio.run(coroutine)

    def check(self, step: StepInput) -> None:
        """Do nothing: this host never loses the job."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self.step_on(f"ctx.once({name!r})")

    def opened(self, context: Context) -> None:
        """Do nothing: no step continues after its timeout."""


class _Events(deque[Any]):
    """A step's event list that reports each effect call to the trap."""

    def __init__(self, trap: _Trap) -> None:
        super().__init__()
        self._trap = trap

    def append(self, event: Any) -> None:
        super().append(event)
        self._trap.step_on(f"the effect {event[1].effect}")


def _call(flow: Flow, step: StepInput, trap: _Trap) -> bool:
    """Run a step on `trap`, and return whether the step succeeded."""
    plan, routine_id = flow.plan(), step.task.routine_id
    outer = running.flight, running.clock
    flight = Flight(None, step)  # type: ignore[arg-type]  # a double needs no driver
    flight.events = _Events(trap)
    running.flight, running.clock = flight, trap.clock
    try:
        outcome = run_step(
            step,
            plan.routines[routine_id],
            plan.slot(routine_id, step.task.slot),
            plan.handlers[routine_id],
            trap,
        )
    except BaseException:
        return False
    finally:
        running.flight, running.clock = outer
    return outcome.error is None


def _finding(flow: Flow, step: StepInput, call: str) -> Finding:
    routine_id, slot = step.task.routine_id, step.task.slot
    handler = flow.routines[routine_id].slots[slot].handler
    name = getattr(handler, "__qualname__", repr(handler))
    what = (
        f"{routine_id} continues when its host dies in {call}: {name} catches BaseException and"
        " returns"
    )
    path = f"swallowed.{routine_id}.{slot}"
    where = definition_of(handler)
    return Finding("swallowed-crash", what, path, routine_id, hint=where)
