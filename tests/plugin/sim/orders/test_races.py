"""What is compared between orders, and what may differ."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Exploration, Scope
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, FakeClock, Flow, JobStatus
from tests.routines import Body, Wide, fan, rest, send, sends

START = FakeClock().now_ns()
SCHEDULES = pytest.mark.parametrize("schedules", ["some", "all"])


def explored(flow: Any, schedules: Any, ends: JobStatus = JobStatus.COMPLETED) -> Exploration:
    checks = Checks(isolated=False, ends=ends, scope=Scope(schedules, "none"))
    return explore(Case(flow, "source"), START, checks)


def fails_for(bad: int) -> Body:
    def body(self: Any, n: int) -> None:
        if n == bad:
            raise ValueError(n)
        self.emit("out", n=n)

    return body


def several(strategy: str) -> Flow:
    """Three tasks of one routine, the second of which fails, and what comes after them."""
    flow = fan(sends(0, 1, 2), workers=3, works=Wide(fails_for(1), ErrorHandler(strategy)))
    flow.add_routine(Wide(send), "after")
    flow.connect("works", "out", "after", "trigger")
    return flow


@SCHEDULES
@pytest.mark.parametrize("strategy", ["continue", "skip"])
def test_a_task_that_is_dropped_in_every_order_is_no_finding(strategy, schedules):
    assert explored(lambda: several(strategy), schedules).reference.finding is None


@SCHEDULES
def test_how_far_other_tasks_came_before_a_job_failed_is_not_compared(schedules):
    found = explored(lambda: several("stop"), schedules, JobStatus.FAILED)
    assert found.reference.finding is None


@SCHEDULES
def test_a_job_that_fails_in_some_orders_only_is_found(schedules):
    def reads(self: Any, n: int) -> None:
        if self.ctx.shared.get("closed"):
            raise ValueError("the shop is closed")

    def closes(self: Any, n: int) -> None:
        self.ctx.shared["closed"] = True

    found = explored(lambda: fan(sends(1), workers=2, buys=reads, closes=closes), schedules)
    finding = found.reference.finding
    assert finding is not None
    assert ("raises-in-order", "status") == (finding.kind, finding.path)
    assert "'completed' or 'failed'" in finding.what


@SCHEDULES
def test_a_query_may_be_repeated_or_left_out(schedules):
    ask = Effect("shop.ask", returns=lambda: 7, reads=True)

    def asks_unless_known(self: Any, n: int) -> None:
        if "price" not in self.ctx.shared:
            self.ctx.shared["price"] = ask()

    def flow() -> Flow:
        return fan(sends(1), workers=2, a=asks_unless_known, b=asks_unless_known, c=rest)

    assert explored(flow, schedules).reference.finding is None


@SCHEDULES
@pytest.mark.parametrize("keyed", [True, False])
def test_a_step_that_runs_again_after_a_conflict_repeats_its_call_only_without_a_key(
    schedules, keyed
):
    pay = Effect("bank.pay", key="key")

    def pays(self: Any, n: int) -> None:
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + 1
        pay(n, key=self.ctx.key("pay") if keyed else None)

    finding = explored(
        lambda: fan(sends(1), workers=2, a=pays, b=pays), schedules
    ).reference.finding
    if keyed:
        assert finding is None
    else:
        assert finding is not None
        assert ("race", "bank.pay ran 3x; one at a time 2x") == (finding.kind, finding.what)
