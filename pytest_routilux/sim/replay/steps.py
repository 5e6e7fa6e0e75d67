"""Runs one recorded attempt again, by the code of today.

Invariants:
- The handler gets what was recorded: payload, attempt, state, shared data, the results of `once`.
  `ctx.random`, `ctx.uuid()` and the keys are those of the recorded attempt. The clock starts at the
  recorded start.
- The function of a `once` never runs, and no call leaves the process.
- An attempt whose result depends on something that no commit records is not judged: the text of
  `unknown` says on what.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from pytest_routilux.sim.replay.outside import OutsideCall, refused
from pytest_routilux.sim.simulator.driver import TEST_OUTCOMES, simulation
from pytest_routilux.sim.simulator.host_loop import HostLoop
from pytest_routilux.text import error_text
from pytest_routilux.virtual_time.simulated_step import Flight, SimClock, running
from routilux import Runtime, StepInput, StepOutcome, use_runtime
from routilux.core.transitions import commit_of_outcome
from routilux.engine.step import run_async_step, run_step
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from pytest_routilux.sim.simulator.model import Call
    from routilux import Commit, JobState, PendingTask
    from routilux.graph.context import Context
    from routilux.graph.messages import RecordedEffect
    from routilux.graph.plan import Plan

_NUMBER: Final = 1


class UnrecordedEffect(BaseException):
    """Raised in a handler in place of a `once` that has no recorded result."""


@dataclass(slots=True)
class Repeated:
    """What an attempt does today.

    `commit` is what the engine would record; None if the attempt can't be judged, `unknown` says
    why. `new_effect` and `left_out` are names of `once` that only one of both calls.
    """

    commit: Commit | None = None
    unknown: str = ""
    new_effect: str = ""
    left_out: str = ""


class _Flight(Flight):
    """A step that runs again; it keeps the calls of doubles."""

    __slots__ = ("calls",)

    def __init__(self, driven: Any, step: StepInput, loop: HostLoop) -> None:
        super().__init__(driven, step, loop)
        self.calls: list[Call] = []

    def add_call(self, at: int, call: object) -> None:
        self.calls.append(cast("Call", call))


class _StepHost:
    """Implements `ctx` for a step that runs again: time passes only in its sleeps."""

    cancelled = False

    def __init__(self, clock: SimClock, flight: Flight, loop: HostLoop) -> None:
        self._clock = clock
        self._loop = loop
        self.flight = flight
        self.context: Context | None = None
        self.new_effect = ""

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def sleep(self, step: StepInput, length: int) -> None:
        self._clock.mono += length

    async def asleep(self, step: StepInput, length: int) -> None:
        await asyncio.sleep(length / 1e9)

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        return self._loop.result_of(coroutine, self.flight)

    def check(self, step: StepInput) -> None:
        """Raise if a `once` without a recorded result is about to call its function."""
        context = self.context or active.get()
        named = set() if context is None else context.named or set()
        new = named - set(step.effects or ())
        if new:
            self.new_effect = min(new)
            raise UnrecordedEffect(self.new_effect)

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        raise AssertionError("no function of a `once` runs")

    def opened(self, context: Context) -> None:
        """Do nothing: no timeout cuts off a step."""


def repeat(
    plan: Plan,
    job: JobState,
    recorded: Commit,
    state: dict[str, object],
    made: Collection[str],
    *,
    late: bool = False,
) -> Repeated:
    """Run the attempt of `recorded` again, on the job as it was before.

    `state` is the state when it began, `made` the names of `once` that it recorded. With `late` the
    clock starts at the end of the attempt, and random numbers of the process differ: a value that
    changes then is no result of the recorded input.
    """
    pending = job._pending[recorded.task_id or ""]
    started = recorded.at_ns if late else recorded.started_ns or recorded.at_ns
    step = _step_of(plan, job, recorded, pending, state, started)
    task = step.task
    routine, handler = plan.routines[task.routine_id], plan.handlers[task.routine_id]
    clock = SimClock(started)
    loop = HostLoop(clock)
    flight = _Flight(SimpleNamespace(offset=clock.wall, ordinal=0), step, loop)
    host = _StepHost(clock, flight, loop)
    slot = plan.slot(task.routine_id, task.slot)

    def watched(**payload: object) -> object:
        host.context = active.get()
        return slot.handler(**payload)

    own = replace(slot, handler=watched)
    outcome: StepOutcome | None = None
    before = set(threading.enumerate())
    outer = running.flight, running.clock
    running.flight, running.clock = flight, clock
    try:
        with use_runtime(Runtime(clock=clock)), simulation(clock), refused() as refusal:
            if slot.is_async:
                coroutine = run_async_step(step, routine, own, handler, cast("Any", host))
                outcome = cast("StepOutcome", loop.result_of(coroutine, flight))
            else:
                outcome = run_step(step, routine, own, handler, cast("Any", host))
    except TEST_OUTCOMES:
        raise
    except (OutsideCall, UnrecordedEffect):
        pass
    except BaseException as error:
        return Repeated(unknown=f"it ends its host: {error_text(error)}")
    finally:
        running.flight, running.clock = outer
        loop.close()
    if refusal.call:
        return Repeated(unknown=f"it calls {refusal.call} outside of once")
    if host.new_effect:
        if recorded.error is not None:
            what = f"once({host.new_effect!r}) has no recorded result: the recorded attempt failed"
            return Repeated(unknown=what)
        return Repeated(new_effect=host.new_effect)
    threads = [thread.name for thread in set(threading.enumerate()) - before]
    if threads:
        return Repeated(unknown=f"it leaves a thread: {threads[0]}")
    assert outcome is not None
    named = (host.context and host.context.named) or set()
    left_out = sorted(set(made) - named)
    commit = commit_of_outcome(plan, job, step, outcome, recorded.at_ns)
    found = Repeated(commit)
    if left_out and recorded.error is None and commit.error is None:
        found.left_out = left_out[0]
    if flight.calls:
        call = flight.calls[0]
        found.unknown = f"it calls {call.effect} outside of once at {call.where}"
    return found


def _step_of(
    plan: Plan,
    job: JobState,
    recorded: Commit,
    pending: PendingTask,
    state: dict[str, object],
    started: int,
) -> StepInput:
    task = pending.task
    handler = plan.handlers[task.routine_id]
    return StepInput(
        _NUMBER,
        task,
        recorded.attempt,
        job.job_id,
        state,
        job._shared,
        job.seq,
        pending.effects,
        started,
        None,  # no timeout: the recorded attempt ended before it
        recorded.worker,
        (pending.seq, pending.position),
        pending.retries >= handler.most_retries,
        None if pending.gathering is None else pending.gathering.collected,
    )
