"""Runs a concurrent flow in several orders, without a crash.

Invariants:
- First the flow runs one task at a time; these runs are the standard, see `races`.
- `all` tries all orders that can differ until half of the budget is used, then random ones. It says
  how many are left, and never calls a search complete that was cut.
- The search for a bug ends at the first finding.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.oracle import view_of
from pytest_routilux.sim.orders.choose import (
    mixed_orders,
    sampled_orders,
    serial_orders,
    some_orders,
)
from pytest_routilux.sim.orders.races import OrderChecks
from pytest_routilux.sim.orders.search import Search
from pytest_routilux.sim.recovery import run_in_order
from pytest_routilux.sim.results import Budget, Sample
from pytest_routilux.sim.simulator.model import Disturbed
from pytest_routilux.sim.simulator.scheduler import (
    FIFO_ORDER,
    OneAtATime,
    OrderScheduler,
    Reversed,
    Seeded,
    StaleTapeError,
    Tape,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_routilux.sim.oracle import View
    from pytest_routilux.sim.results import Coverage, Reference, Scope
    from pytest_routilux.sim.simulator.model import Finding, Host, World
    from pytest_routilux.sim.simulator.scheduler import Choice, Order

_UNCHECKED: Final = 6  # orders of which "fifo" only learns what varies


class OrderRuns:
    """The runs of one case in several orders.

    `views` are what they have shown.
    """

    def __init__(self, start_ns: int, checks: OrderChecks, coverage: Coverage) -> None:
        self.views: list[View] = []
        self.shown: tuple[Finding, Disturbed] | None = None
        """The finding, and the run that shows it."""
        self.choices: list[Choice] = []
        """The decisions of the run in FIFO order that had several options."""
        self._fifo = checks.fifo
        self._case = checks.fifo.case
        self._start_ns = start_ns
        self._checks = checks
        self._scope: Scope = checks.checks.scope
        self._coverage = coverage
        self._seen: set[tuple[object, ...]] = set()  # the orders of the commits
        self._budget = Budget(self._scope)

    def run(self, reference: Reference) -> None:
        """Run the case in the orders of the scope, until one shows a finding.

        `reference` has what its run in FIFO order has shown.
        """
        scope, coverage = self._scope, self._coverage
        schedules = scope.schedules
        orders: Iterable[Order]
        if schedules == "fifo":
            for number in range(_UNCHECKED):
                self._try(Seeded(scope.seed + number), checked=False)
            coverage.notes.append("concurrent work ran in FIFO order: schedules='fifo'")
            coverage.orders_left = None
            return
        if self.run_serially():
            return
        found = self._checks.check_fifo(reference.view, reference.custom)
        if self._found(found, FIFO_ORDER, self._fifo.world, [self._fifo.host]):
            return
        if self._try(Tape({})):
            return
        if not self.choices:
            if scope.tape is not None:
                raise StaleTapeError("the flow has one order of work alone")
            return
        if scope.tape is not None and (scope.tape.serial or self._try(scope.tape)):
            return
        if schedules == "all" and scope.tape is None:
            self._search()
            return
        coverage.orders_left = None
        if scope.tape is not None and scope.crashes == "none":
            orders = []
        elif isinstance(schedules, Sample):
            orders = sampled_orders(schedules, self.choices, scope.seed)
        else:
            orders = some_orders(self.choices, scope.seed)
        for order in self._part(orders):
            if self._try(order):
                return

    def _search(self) -> None:
        coverage = self._coverage
        plan, shard = self._fifo.host.flow.plan(), self._scope.shard
        test = self._checks.checks  # its own checks may look at the order
        ordered = test.invariant is not None or test.view is not None
        search = Search(self._case, self._start_ns, plan, ordered=ordered, shard=shard)
        one_host = True
        for world, hosts, tape in search.runs():
            one_host = one_host and len(hosts) == 1
            if self._check(tape, world, hosts):
                return
            if self._budget.over(0.5):
                break
        coverage.orders_left = search.left if one_host else None  # other hosts run in FIFO order
        if not search.left:
            return
        for order in self._part(chain([Reversed()], mixed_orders(self.choices, self._scope.seed))):
            if self._budget.over() or self._try(order):
                return

    def _part(self, orders: Iterable[Order]) -> Iterable[Order]:
        """Return those of `orders` that belong to the shard."""
        shard = self._scope.shard
        return orders if shard is None else islice(orders, shard.number - 1, None, shard.of)

    def shows(self, order: Order) -> tuple[Finding, Disturbed] | None:
        """Run the case in an order; return a finding and its run, or None."""
        return self.shown if self._try(order) else None

    def run_serially(self) -> bool:
        """Run the case one task at a time; return whether that shows a finding."""
        tape = self._scope.tape
        orders: Iterable[Order] = serial_orders(self._scope.seed)
        if tape is not None and tape.serial:
            orders = (OneAtATime(FIFO_ORDER), tape)
        return any(self._try(order) for order in orders)

    def _try(self, order: Order, *, checked: bool = True) -> bool:
        """Run the case in an order; return whether that shows a finding."""
        scheduler, world, hosts = self._run(order)
        if isinstance(order, Tape):
            order.check(scheduler.choices)
        if not self.choices and not order.serial:
            self.choices = scheduler.choices
        if checked:
            return self._check(scheduler.tape, world, hosts)
        self._add(world, hosts)
        return False

    def _run(self, order: Order) -> tuple[OrderScheduler, World, list[Host]]:
        pausing = self._case.pausing
        while True:
            known = len(pausing)
            scheduler = order.scheduler()
            assert isinstance(scheduler, OrderScheduler), "FIFO is another run"
            world, hosts = run_in_order(self._case, self._start_ns, scheduler, serial=order.serial)
            if known == len(pausing):  # else a handler paused anew, and the tape fits no other run
                return scheduler, world, hosts

    def _add(self, world: World, hosts: list[Host]) -> None:
        host = hosts[-1]
        self._budget.used += 1
        self._coverage.runs += len(hosts)
        self._checks.checks.progress(self._coverage)
        if host.job is not None and host.error is None:
            self.views.append(view_of(host.job, world))

    def _check(self, order: Order, world: World, hosts: list[Host]) -> bool:
        self._add(world, hosts)
        check = self._checks.add_serial if order.serial else self._checks.check
        return self._found(check(world, hosts), order, world, hosts)

    def _found(
        self, finding: Finding | None, order: Order, world: World, hosts: list[Host]
    ) -> bool:
        if not order.serial:
            self._seen.add(tuple((commit.task_id, commit.kind) for commit in world.commits))
            self._coverage.orders = len(self._seen)
        if finding is None:
            return False
        self.shown = finding, Disturbed(None, world, hosts, executed=True, order=order)
        return True
