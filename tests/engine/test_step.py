"""One attempt of a handler: its input, its outcome, and its cleanup."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from routilux import (
    ClockStalledError,
    Context,
    ErrorHandler,
    NoActiveStepError,
    RetryAfter,
    StepInput,
)
from routilux.clocks.durations import SECOND
from routilux.codec.copying import is_flat
from routilux.engine.step import run_async_step, run_step
from routilux.graph.context import active
from routilux.graph.messages import RecordedEffect, Task
from tests.routines import MODES, Works, chain, error_of, kinds, retrying, run

START = 1_767_225_600 * SECOND


class Desk:
    """A host whose time changes only while a handler sleeps."""

    def __init__(self) -> None:
        self.now = START
        self.recorded: dict[str, RecordedEffect] = {}

    cancelled = False

    def now_ns(self) -> int:
        return self.now

    def sleep(self, step: StepInput, length: int) -> None:
        self.now += length

    def check(self, step: StepInput) -> None:
        pass

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        self.recorded[name] = effect

    def opened(self, context: Context) -> None:
        pass

    async def asleep(self, step: StepInput, length: int) -> None:
        self.now += length

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        return asyncio.run(coroutine)


def step(payload: dict[str, object] | None = None, **changes: Any) -> StepInput:
    values = payload or {}
    known: dict[str, Any] = {
        "number": 7,
        "task": Task("0", "a", "trigger", values, is_flat(values), -1),
        "attempt": 1,
        "job_id": "j",
        "kept_state": {},
        "kept_shared": {},
        "seq": 1,
        "effects": {},
        "started_ns": START,
        "timeout_ns": None,
        "worker": 0,
        "order": (1, 0),
        "final": False,
    }
    return StepInput(**{**known, **changes})


def attempt(body: Any, given: StepInput | None = None, handler: ErrorHandler | None = None) -> Any:
    routine = Works(body)
    slot = routine.slots["trigger"]
    return run_step(given or step(), routine, slot, handler or ErrorHandler(), Desk())


def test_an_outcome_has_the_emissions_the_writes_and_the_step_number():
    def body(self, n):
        self.ctx.state["count"] = n
        del self.ctx.shared["old"]
        self.emit("out", n=n + 1)
        self.emit("out", n=[n])

    outcome = attempt(body, step({"n": 1}, kept_shared={"old": 1, "kept": 2}))
    assert 7 == outcome.number
    assert [{"n": 2}, {"n": [1]}] == [emission.payload for emission in outcome.emissions]
    assert [True, False] == [emission.flat for emission in outcome.emissions]
    assert {"count": 1} == outcome.state.values
    assert ("old",) == outcome.shared.removed
    assert frozenset({"old"}) == outcome.shared_reads
    assert outcome.error is None


def test_a_failed_outcome_has_the_error_as_data_and_no_emissions_or_writes():
    def body(self):
        self.emit("out", n=1)
        self.ctx.shared["seen"] = self.ctx.shared.get("before")
        raise KeyError("gone")

    outcome = attempt(body)
    assert ([], None, None) == (outcome.emissions, outcome.state, outcome.shared)
    assert frozenset({"before"}) == outcome.shared_reads
    assert KeyError is outcome.error_type
    assert ("KeyError", "'gone'") == (outcome.error.type, outcome.error.message)


def test_an_error_names_the_line_of_every_attempt():
    def body(self, first):
        if first:
            raise KeyError("one")
        raise KeyError("two")

    line = body.__code__.co_firstlineno
    places = [attempt(body, step({"first": n})).error.where for n in (True, True, False, True)]
    assert [f"{__file__}:{line + n}" for n in (2, 2, 3, 2)] == places


def test_an_error_whose_str_raises_still_has_a_message():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def body(self):
        raise Mute

    assert "<its str() raised RuntimeError>" == attempt(body).error.message


@pytest.mark.parametrize(
    ("error", "final", "kept"),
    [(ValueError, False, False), (ValueError, True, True), (KeyError, False, True)],
)
def test_a_traceback_is_kept_if_no_retry_follows(error, final, kept):
    def body(self):
        raise error("here")

    handler = retrying(retryable_exceptions=(ValueError,))
    outcome = attempt(body, step(final=final), handler)
    assert kept is (f"{error.__name__}: " in (outcome.error.traceback or ""))


def test_retry_after_travels_in_nanoseconds():
    def body(self):
        raise RetryAfter(0.3)

    assert 300_000_000 == attempt(body, handler=retrying()).retry_after_ns


@pytest.mark.parametrize("passes", [KeyboardInterrupt, SystemExit, ClockStalledError])
def test_an_interrupt_passes_through_a_step_and_closes_its_context(passes):
    leaked: list[Context] = []

    def body(self):
        leaked.append(self.ctx)
        raise passes

    with pytest.raises(passes):
        attempt(body)
    assert active.get() is None
    with pytest.raises(NoActiveStepError):
        _ = leaked[0].attempt


def test_no_exception_and_no_frame_outlives_a_failed_attempt():
    class Big:
        pass

    seen: list[weakref.ref[Big]] = []

    def body(self):
        big = Big()
        seen.append(weakref.ref(big))
        raise ValueError(len(seen))

    gc.disable()
    try:
        outcome = attempt(body, handler=retrying())
        assert seen[0]() is None, "only the collector could free it"
    finally:
        gc.enable()
    assert "1" == outcome.error.message


@pytest.mark.parametrize(("slept", "late"), [(1.9, False), (2, True), (5, True)])
def test_an_attempt_is_late_from_its_timeout_on(slept, late):
    routine = Works(lambda self: desk.sleep(None, round(slept * SECOND)))
    desk = Desk()
    outcome = run_step(
        step(timeout_ns=2 * SECOND), routine, routine.slots["trigger"], ErrorHandler(), desk
    )
    assert late is (outcome.error is not None)


def test_an_async_handler_sees_the_context_of_its_step_and_its_errors_are_failures():
    async def body(self, n):
        await asyncio.sleep(0)
        self.emit("out", n=self.ctx.attempt)
        if n:
            raise ValueError("async")

    def attempt_async(given: StepInput) -> Any:
        routine = Works(body)
        slot = routine.slots["trigger"]
        return asyncio.run(run_async_step(given, routine, slot, ErrorHandler(), Desk()))

    emitted = attempt_async(step({"n": 0}, attempt=3)).emissions
    assert [{"n": 3}] == [e.payload for e in emitted]
    assert "async" == attempt_async(step({"n": 1})).error.message


# --- what a handler returns -----------------------------------------------------------------------


@pytest.mark.parametrize("returned", [{"n": 1}, [], 0, False, "", object(), (None,)])
@pytest.mark.parametrize("handler", ["sync", "async", "wrapped"])
@MODES
def test_a_handler_that_returns_a_value_fails_with_an_error_that_says_emit(
    returned, handler, workers
):
    def body(self, n=0):
        return returned

    async def async_body(self, n=0):
        return returned

    def wrapped_body(self, n=0):
        return async_body(self, n)

    bodies = {"sync": body, "async": async_body, "wrapped": wrapped_body}
    flow = chain(workers=workers, a=bodies[handler])
    flow.set_error_handler(retrying())
    job = run(flow)
    kind, message = error_of(job)
    assert ("FlowDefinitionError", ["start", "failed"]) == (kind, kinds(job))
    assert "the handler of slot 'trigger' returned " in message
    assert "use emit to send it" in message


def test_an_awaitable_that_a_handler_returns_is_refused():
    class Later:
        def __await__(self):
            yield

    assert "use emit" in error_of(run(chain(a=lambda self: Later())))[1]
