"""Finds handlers that return although their host dies; one that cleans up or fails is clean."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.determinism.swallowed_crash import swallowed_crash
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import Flow, LeaseLostError, Routine
from tests.plugin.sim.steps import START, STEP, Work, chain, same

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="needs os.fork")
charge = Effect("charge")


def in_a_sleep(routine: Any, number: Any) -> object:
    try:
        routine.ctx.sleep(1)
    except BaseException:
        return None
    return number


def in_the_second_effect(routine: Any, number: Any) -> object:
    charge(1)
    try:
        charge(2)
    except:  # noqa: E722 - the bug
        return None
    return number


def in_once(routine: Any, number: Any) -> object:
    try:
        number = routine.ctx.once("add", abs, -1)
    finally:
        return number  # noqa: B012 - the bug


def in_none(routine: Any, number: Any) -> object:
    try:
        charge(1)
        routine.ctx.sleep(1)
        return routine.ctx.once("charge", charge, 2)
    except ValueError:
        return None
    finally:
        routine.ctx.shared["seen"] = 1


def turned_into_an_error(routine: Any, number: Any) -> object:
    try:
        routine.ctx.sleep(1)
    except BaseException as error:
        raise RuntimeError from error
    return number


def answered_by_an_exit(routine: Any, number: Any) -> object:
    try:
        routine.ctx.sleep(1)
    except BaseException:
        os._exit(1)
    return number


class Async(Routine):
    """Sleeps in a coroutine, and swallows the exception that ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.step)

    async def step(self) -> None:
        try:
            await self.ctx.asleep(1)
        except BaseException:
            return


@pytest.mark.parametrize(
    ("work", "place"),
    [
        (in_a_sleep, "ctx.sleep"),
        (in_the_second_effect, "the effect charge"),
        (in_once, "ctx.once('add')"),
    ],
)
def test_a_handler_that_swallows_a_crash_is_found(work: Work, place: str) -> None:
    finding = swallowed_crash(chain(same, work), START)
    assert finding is not None
    assert ("swallowed-crash", "r1") == (finding.kind, finding.routine)
    assert f"r1 continues when its host dies in {place}:" in finding.what
    assert STEP == finding.hint


@pytest.mark.parametrize("work", [in_none, turned_into_an_error, answered_by_an_exit, same])
def test_a_handler_that_cleans_up_or_fails_or_ends_its_process_is_clean(work: Work) -> None:
    assert swallowed_crash(chain(same, work), START) is None


def test_a_coroutine_that_swallows_a_crash_is_found() -> None:
    def build() -> Flow:
        flow = Flow("async")
        flow.add_routine(Async(), "async")
        return flow

    finding = swallowed_crash(Case(build, "async"), START)
    assert finding is not None
    assert f"{__file__}:{Async.step.__code__.co_firstlineno}" == finding.hint


# --- a host that is slow, and has lost the job ----------------------------------------------------


def without_a_key(routine: Any, number: Any) -> object:
    try:
        key = routine.ctx.key("charge")
    except Exception:
        key = None  # the bug: the service gets the call of a host that does not own the job
    return charge(1, key)


def without_an_answer(routine: Any, number: Any) -> object:
    routine.ctx.key("other")
    with suppress(Exception):
        return routine.ctx.once("charge", charge, 1)
    return None


def by_a_retry_of_its_own(routine: Any, number: Any) -> object:
    for _ in range(3):
        try:
            return charge(1, routine.ctx.key("charge"))
        except Exception:
            continue
    return None


async def in_a_coroutine(routine: Any) -> None:
    async def send() -> int:
        return 1

    with suppress(Exception):
        await routine.ctx.aonce("send", send)


def key_before_the_try(routine: Any, number: Any) -> object:
    key = routine.ctx.key("charge")
    try:
        return charge(1, key)
    except Exception:
        return None


def lost_lease_raised_again(routine: Any, number: Any) -> object:
    try:
        return charge(1, routine.ctx.key("charge"))
    except LeaseLostError:
        raise
    except Exception:
        return None


def turned_into_a_failed_attempt(routine: Any, number: Any) -> object:
    try:
        return routine.ctx.once("charge", charge, 1)
    except Exception as error:
        raise ConnectionError from error


@pytest.mark.parametrize(
    ("case", "call"),
    [
        (chain(same, without_a_key), "ctx.key"),
        (chain(same, without_an_answer), "ctx.once"),
        (chain(same, by_a_retry_of_its_own), "ctx.key"),
    ],
)
def test_a_handler_that_swallows_the_loss_of_its_job_is_found(case: Case, call: str) -> None:
    finding = swallowed_crash(case, START)
    assert finding is not None
    assert ("swallowed-lease", "r1", STEP) == (finding.kind, finding.routine, finding.hint)
    assert f"r1 continues when its host has lost the job in {call}: " in finding.what
    assert finding.what.endswith("catches LeaseLostError and returns")


def test_a_coroutine_that_swallows_the_loss_of_its_job_is_found() -> None:
    finding = swallowed_crash(of_async(in_a_coroutine), START)
    assert finding is not None
    assert "swallowed-lease" == finding.kind
    assert "its host has lost the job in ctx.once" in finding.what


@pytest.mark.parametrize(
    "work", [key_before_the_try, lost_lease_raised_again, turned_into_a_failed_attempt]
)
def test_a_handler_that_lets_the_loss_of_its_job_pass_is_clean(work: Work) -> None:
    assert swallowed_crash(chain(same, work), START) is None


# --- async handlers -------------------------------------------------------------------------------


def of_async(handler: Callable[[Any], Any]) -> Case:
    def build() -> Flow:
        class Awaits(Routine):
            def __init__(self) -> None:
                super().__init__()
                self.define_slot("trigger", handler=partial(handler, self))

        flow = Flow("async")
        flow.add_routine(Awaits(), "async")
        return flow

    return Case(build, "async")


async def at_the_second_await(routine: Any) -> None:
    await asyncio.sleep(1)
    try:
        await asyncio.sleep(1)
    except BaseException:
        return


async def cancelled_in_a_group(routine: Any) -> None:
    with suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))


async def cancelled_without_end(routine: Any) -> None:
    for _ in range(100):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("handler", "kind", "what"),
    [
        (at_the_second_await, "swallowed-crash", "its host dies in the await of {}:3: {} catches"),
        (
            cancelled_in_a_group,
            "swallowed-cancellation",
            "it is cancelled in the await of {}:2: {}",
        ),
        (
            cancelled_without_end,
            "swallowed-cancellation",
            "it is cancelled in the await of {}:3: {}",
        ),
    ],
)
def test_an_async_handler_that_swallows_at_an_await_is_found(
    handler: Callable[[Any], Any], kind: str, what: str
) -> None:
    finding = swallowed_crash(of_async(handler), START)
    assert finding is not None
    assert kind == finding.kind
    file, _, line = what.partition("{}:")
    number = handler.__code__.co_firstlineno + int(line[0])
    assert f"{file}{Path(__file__).name}:{number}" in finding.what


async def cleans_up(routine: Any) -> None:
    try:
        await asyncio.sleep(1)
    finally:
        await asyncio.sleep(0.5)


async def cancels_its_own_task(routine: Any) -> None:
    task = asyncio.create_task(asyncio.sleep(9))
    await asyncio.sleep(1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def has_a_timeout(routine: Any) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.sleep(9)


@pytest.mark.parametrize("handler", [cleans_up, cancels_its_own_task, has_a_timeout])
def test_an_async_handler_that_passes_its_cancellation_on_is_clean(
    handler: Callable[[Any], Any],
) -> None:
    assert swallowed_crash(of_async(handler), START) is None
