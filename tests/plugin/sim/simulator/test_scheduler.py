"""Orders of work repeat exactly, go stale loudly, and find bugs as often as they promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pytest_routilux.sim.recovery import run_in_order
from pytest_routilux.sim.simulator.model import Case
from pytest_routilux.sim.simulator.scheduler import (
    FIFO_ORDER,
    Choice,
    First,
    OneAtATime,
    Order,
    OrderScheduler,
    Pct,
    Reversed,
    Seeded,
    StaleTapeError,
    Tape,
)
from routilux import Flow
from tests.plugin.sim.steps import START
from tests.routines import Works, send
from tests.soak import also, sampled


def chains(lengths: Sequence[int], workers: int) -> Case:
    """Chains of tasks that run at the same time: a0, a1, …, b0, b1, …"""

    def build() -> Flow:
        flow = Flow("chains", execution_strategy="concurrent", max_workers=workers)
        flow.add_routine(Works(send), "go")
        for name, length in zip("abcdefghijklmnop", lengths, strict=False):
            before = "go"
            for number in range(length):
                flow.add_routine(Works(send), f"{name}{number}")
                flow.connect(before, "out", f"{name}{number}", "trigger")
                before = f"{name}{number}"
        return flow

    return Case(build, "go")


def run(case: Case, order: Order) -> tuple[list[object], list[str], OrderScheduler]:
    """Return the commits of a run, the routines in their order, and the scheduler."""
    scheduler = order.scheduler()
    assert isinstance(scheduler, OrderScheduler)
    world, hosts = run_in_order(case, START, scheduler, serial=order.serial)
    assert len(hosts) == 1
    routines = [commit.routine_id or "" for commit in world.commits if commit.task_id]
    return [commit.dumps() for commit in world.commits], routines, scheduler


SMALL = chains([2, 2, 2], 2)
ORDERS: list[Order] = [
    *(Tape({}), Reversed(), First("0.2"), Seeded(1), Seeded(2), Pct(1, 3, 8), Pct(2, 2, 8)),
    *(OneAtATime(FIFO_ORDER), OneAtATime(Reversed()), OneAtATime(Seeded(3))),
]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_tape_of_an_order_repeats_its_run(order):
    commits, _, scheduler = run(SMALL, order)
    again, _, repeated = run(SMALL, Tape.parse(str(scheduler.tape)))
    assert commits == again
    assert scheduler.choices == repeated.choices
    scheduler.tape.check(repeated.choices)


def test_orders_differ():
    assert len({tuple(run(SMALL, order)[1]) for order in ORDERS}) > 5


def test_a_tape_with_an_option_that_is_missing_ends_the_run():
    with pytest.raises(StaleTapeError, match=r"decision 0 has 3 options, .* chooses option 7"):
        run(chains([1, 1, 1], 3), Tape({0: 7}))


def test_a_tape_with_a_decision_that_is_missing_is_stale():
    _, _, scheduler = run(SMALL, Tape({900: 1}))
    with pytest.raises(StaleTapeError, match="chooses at number 900"):
        Tape({900: 1}).check(scheduler.choices)


def test_one_task_at_a_time_runs_all_that_comes_from_a_task_before_the_next_one():
    _, routines, _ = run(SMALL, OneAtATime(Reversed()))
    assert ["go", "c0", "c1", "b0", "b1", "a0", "a1"] == routines


def test_first_runs_a_task_and_all_that_comes_from_it_before_others():
    _, routines, _ = run(SMALL, First("0.1"))
    assert ["go", "b0", "b1"] == routines[:3]


def test_a_tape_names_what_it_changes():
    scheduler = OrderScheduler(lambda tasks: len(tasks) - 1)
    scheduler.choose(["0.0", "0.1"])
    assert [Choice(1, ("0.0", "0.1"))] == scheduler.choices
    assert (("0.1", "0.0"),) == scheduler.tape.changes


# --- how often bugs are found ---------------------------------------------------------------------

Bug = Callable[[list[str]], bool]


def comes_as(*names: str) -> Bug:
    """A bug that shows if these tasks end in this order."""

    def shows(ended: list[str]) -> bool:
        at = [ended.index(name) for name in names]
        return at == sorted(at)

    return shows


def first_of_all(ended: list[str]) -> bool:
    return ended[1:4] == ["p0", "p1", "p2"]


PLANTED = {
    "one task inside two": ([2, 2, 2, 2], 4, 2, comes_as("a0", "d1", "a1")),
    "first of all": ([3] * 16, 4, 2, first_of_all),
    "inside two and two": ([3, 2, 2, 2], 4, 3, comes_as("a0", "d1", "a1", "c1", "a2")),
}


def rate(case: Case, bug: Bug, orders: Sequence[Order]) -> float:
    return sum(bug(run(case, order)[1]) for order in orders) / len(orders)


@pytest.mark.parametrize("seeds", also(range(100), range(1_000)), ids=len)
@pytest.mark.parametrize("name", sampled(PLANTED, ["one task inside two", "inside two and two"]))
def test_pct_finds_bugs_at_the_rate_of_its_bound(name, seeds):
    lengths, workers, depth, bug = PLANTED[name]
    case = chains(lengths, workers)
    _, ended, scheduler = run(case, Tape({}))
    assert not bug(ended), "FIFO order must not show it"
    count = len(scheduler.choices)
    bound = 1 / (len(lengths) * count ** (depth - 1))
    if name == "inside two and two":  # it is rare
        seeds = range(max(400, len(seeds)))
    assert rate(case, bug, [Pct(seed, depth, count) for seed in seeds]) >= bound


def test_pct_finds_what_random_orders_do_not():
    case = chains([3] * 16, 4)
    count = len(run(case, Tape({}))[2].choices)
    assert 0 == rate(case, first_of_all, [Seeded(seed) for seed in range(25)])
    assert 0 < rate(case, first_of_all, [Pct(seed, 2, count) for seed in range(25)])
