"""A fault strikes the steps that it names, counts how often, and is refused if it is invalid."""

from __future__ import annotations

import json
import traceback

import pytest

from pytest_routilux.faults.faults import Fault
from pytest_routilux.faults.flow_faults import FlowFaults
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, Host, World
from routilux import Commit, FakeClock, FlowDefinitionError, JobState
from showcase.flows import data_pipeline
from tests.routines import chain, retrying

START = FakeClock().now_ns()
SECOND = 1_000_000_000


def run(*faults: Fault) -> tuple[Host, JobState]:
    case = Case(lambda: data_pipeline(1), "data_fetch", {"request_id": "r"}, faults=faults)
    for fault in faults:
        fault.begin(0)
    host = run_host(case, World(START))
    assert host.job is not None
    return host, host.job


def test_a_class_is_raised_anew_in_every_attempt():
    fault = FlowFaults().raises("data_process", ValueError)
    _, job = run(fault)
    assert 5 == fault.struck
    assert "failed" == job.status


def test_an_error_is_raised_as_it_was_made_whatever_its_class_asks_for():
    error = json.JSONDecodeError("cut off", "[1, ", 4)  # whose args are the message alone
    _, job = run(FlowFaults().raises("data_process", error, attempts=[1, 2]))
    errors = [commit.error for commit in job.commits if commit.error is not None]
    assert ["json.decoder.JSONDecodeError"] * 2 == [error.type for error in errors][:2]
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert 1 == frames.count("_raise")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_is_lost_after_the_handler_has_done_its_work(is_async):
    pay = Effect("pay", key="key")

    def plain(self, n=0):
        pay(n, key=self.ctx.key("pay"))
        self.emit("out", n=n)

    async def awaited(self, n=0):
        await self.ctx.asleep(1)
        plain(self, n)

    fault = FlowFaults().raises("a", ConnectionError("lost"), attempts=[1], after=True)
    assert "raises('a', ConnectionError('lost'), attempts=[1], after=True)" == repr(fault)

    def build():
        flow = chain(a=awaited if is_async else plain)
        flow.set_error_handler(retrying())
        return flow

    world = World(START)
    fault.begin(0)
    host = run_host(Case(build, "a", faults=(fault,)), world)
    assert [1, 2] == [call.attempt for call in world.calls]
    assert 1 == fault.struck
    assert 1 == len(host.job.outputs)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_set_moves_no_wait(seconds):
    fault = FlowFaults().clock_jump(seconds)
    _, job = run(fault)
    assert 1 == fault.struck
    assert 2_100_000_000 == job.updated_ns - job.started_ns


@pytest.mark.parametrize(("durable", "kept"), [(False, 2), (True, 3)])
def test_a_write_of_the_store_fails_with_the_commit_kept_or_not(durable, kept):
    fault = FlowFaults().store_fails(3, durable=durable)
    world = World(START)
    case = Case(lambda: data_pipeline(1), "data_fetch", {"request_id": "r"}, faults=(fault,))
    host = run_host(case, world)
    assert isinstance(host.error, OSError)
    assert (kept, 1) == (len(world.commits), fault.struck)
    assert 2 == host.job.seq  # it believes what was acknowledged


def test_every_fault_of_the_store_counts_the_writes_that_another_one_fails():
    faults = FlowFaults().store_fails(2), FlowFaults().store_fails(3)
    case = Case(lambda: data_pipeline(0), "data_fetch", {"request_id": "r"}, faults=faults)
    run = run_undisturbed(case, START)
    assert [1, 1] == [fault.struck for fault in faults]
    # The host after the first one that ends does not come to a commit of its own.
    log = [what for _, _, what in run.world.log if not isinstance(what, tuple)]
    assert [True, False, False, True] == [isinstance(what, Commit) for what in log[:4]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f.raises("a", KeyboardInterrupt), "must be an Exception class"),
        (lambda f: f.raises("a", UnicodeDecodeError), "without arguments .*; give an instance"),
        (lambda f: f.raises("a", ValueError, attempts=[]), "give at least one"),
        (lambda f: f.slow("a", 1, attempts=[0]), "whole numbers of 1 or more"),
        (lambda f: f.clock_jump(0), "does nothing"),
        (lambda f: f.store_fails(0), "write must be a whole number of 1 or more"),
        (lambda f: f.store_fails(True), "write must be a whole number of 1 or more"),
        (
            lambda f: f.raises("a", OSError, attempts=1),
            r"a fault of 'a' got attempts=1; give a list: attempts=\[1\]",
        ),
        (lambda f: f.slow("a", -1), r"slow\('a', -1\): "),
        (lambda f: f.slow("a", "1"), r"slow\('a', '1'\): "),
        (lambda f: f.clock_jump("back"), r"clock_jump\('back'\): seconds must be a number"),
    ],
)
def test_an_invalid_fault_is_refused(make, says):
    with pytest.raises(FlowDefinitionError, match=says):
        make(FlowFaults())


def test_the_repr_of_a_fault_is_the_call_that_makes_it():
    faults = FlowFaults()
    assert "raises('a', ValueError('x'), attempts=[1, 2])" == repr(
        faults.raises("a", ValueError("x"), attempts=[2, 1])
    )
    assert "raises('a', OSError)" == repr(faults.raises("a", OSError))
    assert "slow('a', 0.5)" == repr(faults.slow("a", 0.5))
    assert "clock_jump(-60)" == repr(faults.clock_jump(-60))
    assert "store_fails(2, durable=True)" == repr(faults.store_fails(2, durable=True))
    assert 5 == len(faults.live)
