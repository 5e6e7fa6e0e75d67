"""A downtime past a deadline, and outcomes that arrive twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks, Outcome
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import Commit, FakeClock, Flow, JobStatus, StepInput, StepOutcome
from routilux.core.machine import Machine
from routilux.core.transitions import commit_of_outcome
from tests.routines import Works, chain, retrying

START = FakeClock().now_ns()
charge = Effect("gateway.charge", key="key")
refund = Effect("gateway.refund", key="key")


def charges_then_confirms(self: Any, order: str) -> None:
    """Charges at once; the confirmation comes at the third attempt."""
    charge(order, key=self.ctx.key("charge"))
    if self.ctx.attempt < 3:
        raise ConnectionError("no confirmation")
    self.emit("out", order=order)


def refunds(self: Any, **error: object) -> None:
    refund(self.ctx.job_id, key=self.ctx.key("refund"))


def shop(*, refunding: bool) -> Flow:
    dropping = retrying(max_retries=5, retry_delay=1, deadline=60, on_exhausted="continue")
    events = {"error": ["message", "attempt", "payload"]} if refunding else {}
    flow = chain(pay=Works(charges_then_confirms, dropping, out=["order"], **events))
    if refunding:
        flow.add_routine(Works(refunds), "refund")
        flow.connect("pay", "error", "refund", "trigger")
    return flow


def delivered_or_refunded(outcome: Outcome) -> None:
    names = {call.effect for call in outcome.calls}
    assert outcome.job.outputs or "gateway.refund" in names, "paid, and neither sent nor refunded"


@pytest.mark.parametrize("refunding", [False, True])
def test_a_paid_order_that_a_deadline_drops_after_a_downtime_is_found(refunding):
    case = Case(partial(shop, refunding=refunding), "pay", {"order": "A7"})
    result = explore(case, START, Checks(delivered_or_refunded, ends=JobStatus.COMPLETED))
    assert result.reference.finding is None
    if refunding:
        assert result.failures == []
        return
    assert {found.kind for _, found in result.failures} == {"invariant"}
    assert all(point.outlasts for point, _ in result.failures)
    _, finding = result.failures[0]
    assert "paid, and neither sent nor refunded" in finding.what


def test_a_downtime_past_a_deadline_may_change_the_end_but_no_law_of_the_engine():
    case = Case(partial(shop, refunding=False), "pay", {"order": "A7"})
    run = run_undisturbed(case, START)
    points = [point for point in crash_points(run) if point.outlasts]
    assert "0@a1.wait.long" in [point.name for point in points]
    dropped = [bool(recover(run, point).host.job.dropped) for point in points]
    assert {False, True} == set(dropped)
    assert explore(case, START, Checks()).failures == []


def test_an_outcome_that_arrives_twice_is_counted_once(monkeypatch):
    case = Case(partial(shop, refunding=True), "pay", {"order": "A7"})
    assert explore(case, START, Checks()).reference.finding is None

    def finish(machine: Machine, step: StepInput, outcome: StepOutcome, now: int) -> Commit:
        """Accept each outcome: the planted bug."""
        return commit_of_outcome(machine.plan, machine.job, step, outcome, now)

    monkeypatch.setattr(Machine, "finish", finish)
    found = explore(case, START, Checks()).reference.finding
    assert found is not None
    assert found.what.startswith("with longer sleeps and outcomes that arrive twice: ")
