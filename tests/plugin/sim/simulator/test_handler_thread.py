"""Handlers that run in parts: other steps run between their calls of doubles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_routilux.faults.faults import StoreFails
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import run_in_order
from pytest_routilux.sim.results import Checks, Scope
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case, HostCrash
from pytest_routilux.sim.simulator.scheduler import Tape
from routilux import FakeClock, Flow, Routine

START = FakeClock().now_ns()


class Split(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.split)
        self.define_event("output", ["part"])

    def split(self) -> None:
        for part in range(2):
            self.emit("output", part=part)


class Sells(Routine):
    max_concurrency = 2

    def __init__(self, sell: Callable[..., object]) -> None:
        super().__init__()
        self._sell = sell
        self.define_slot("input", handler=self.sells)
        self.define_event("output", ["sold"])

    def sells(self, part: int) -> None:
        self.emit("output", sold=self._sell(self, part))


class Shop:
    """A service outside of the job: a stock of one lamp."""

    def __init__(self) -> None:
        self.reset()
        self.has = Effect("stock.has", returns=lambda: self.lamps, reads=True)
        self.take = Effect("stock.take", returns=self._take)
        self.take_if_there = Effect("stock.take_if_there", returns=self._take_if_there)

    def reset(self) -> None:
        self.lamps = 1

    def _take(self) -> bool:
        self.lamps -= 1
        return True

    def _take_if_there(self) -> bool:
        there = self.lamps > 0
        self.lamps -= there
        return there


def checks_then_takes(shop: Shop) -> Callable[..., object]:
    return lambda routine, part: bool(shop.has() and shop.take())


def checks_sleeps_takes(shop: Shop) -> Callable[..., object]:
    def sell(routine: Any, part: int) -> bool:
        there = shop.has()
        routine.ctx.sleep(1 + part)
        return bool(there and shop.take())

    return sell


def takes_if_there(shop: Shop) -> Callable[..., object]:
    return lambda routine, part: shop.take_if_there()


def sales(shop: Shop, make: Callable[[Shop], Callable[..., object]]) -> Case:
    def build() -> Flow:
        flow = Flow("shop", execution_strategy="concurrent", max_workers=2)
        flow.add_routine(Split(), "split")
        flow.add_routine(Sells(make(shop)), "sells")
        flow.connect("split", "output", "sells", "input")
        return flow

    return Case(build, "split", fresh=shop.reset)


def race_of(make: Callable[[Shop], Callable[..., object]], schedules: Any) -> str | None:
    checks = Checks(isolated=False, scope=Scope(schedules, "none"))
    finding = explore(sales(Shop(), make), START, checks).reference.finding
    return None if finding is None else finding.kind


@pytest.mark.parametrize("schedules", ["some", "all"])
@pytest.mark.parametrize("make", [checks_then_takes, checks_sleeps_takes])
def test_a_check_and_an_act_with_another_task_between_them_is_a_race(make, schedules):
    assert "race" == race_of(make, schedules)


@pytest.mark.parametrize("schedules", ["some", "all"])
def test_one_call_that_checks_and_acts_is_no_race(schedules):
    assert race_of(takes_if_there, schedules) is None


def test_a_paused_handler_ends_with_its_host_and_calls_nothing_more():
    shop, ends = Shop(), []

    def make(shop: Shop) -> Callable[..., object]:
        def sell(routine: Any, part: int) -> object:
            try:
                return shop.has() and shop.take()
            except BaseException as error:
                ends.append(type(error))
                raise

        return sell

    case = sales(shop, make)
    run_in_order(case, START, Tape({}).scheduler())  # learns which handlers call doubles
    threads = threading.active_count()
    failing = replace(case, faults=(StoreFails(3),))
    world, hosts = run_in_order(failing, START, Tape({}).scheduler())
    assert isinstance(hosts[0].error, OSError)
    assert [HostCrash] == ends
    assert threads == threading.active_count()
    assert ["0.0", "0.0"] == [call.task_id for call in world.calls][:2]
    assert 1 == len([call for call in world.calls if call.task_id == "0.1"])
