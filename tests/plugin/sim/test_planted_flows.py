"""Bugs planted in flows of users: each is found and named; its twin without the bug is clean."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_routilux.faults.faults import Raises, Slow
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, FakeClock, Flow, Routine
from tests.soak import sampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.faults.faults import Fault
    from pytest_routilux.sim.results import Exploration

START = FakeClock().now_ns()
charge = Effect("gateway.charge", key="key")
mail = Effect("mail.send", key="key")


class GatewayDown(Exception):
    """The gateway does not answer."""


class Orders(Routine):
    """Sends out the order that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.order)
        self.define_event("output", ["order", "amount"])

    def order(self, order: str) -> None:
        self.emit("output", order=order, amount=19.9)


class Charge(Routine):
    """Charges an order and tells what it paid; each subclass does so in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.charge)
        self.define_event("output", ["receipt", "note"])
        self.tries = 0
        self.paid: list[str] = []

    def charge(self, order: str, amount: float) -> None:
        raise NotImplementedError

    def paid_for(self, receipt: object, note: object = "") -> None:
        self.emit("output", receipt=receipt, note=note)


class ChargesWithKey(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.ctx.sleep(0.36)
        self.paid_for(charge(order, amount, key=self.ctx.key("charge")))


class ChargesWithoutKey(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.ctx.sleep(0.36)
        self.paid_for(charge(order, amount))


class ChargesOnceWithoutKey(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.paid_for(self.ctx.once("charge", charge, order, amount))


class ChargesOnceWithKey(Charge):
    def charge(self, order: str, amount: float) -> None:
        key = self.ctx.key("charge")
        self.paid_for(self.ctx.once("charge", charge, order, amount, key=key))


class ChargesUnderAFreshKey(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.paid_for(charge(order, amount, key=str(uuid.uuid4())))


class ChargesUnderAKeyOfTheHour(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.paid_for(charge(order, amount, key=f"{order}/{self.ctx.now():%H}"))


class ChargesUnderAKeyOfTheTask(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.paid_for(charge(order, amount, key=str(self.ctx.uuid())))


class ChargesThenFails(Charge):
    """The first attempt fails after it has charged."""

    def key(self) -> str:
        return self.ctx.key("charge")

    def charge(self, order: str, amount: float) -> None:
        receipt = charge(order, amount, key=self.key())
        if self.ctx.attempt == 1:
            raise GatewayDown
        self.paid_for(receipt)


class ChargesUnderAKeyOfTheAttempt(ChargesThenFails):
    def key(self) -> str:
        return f"{self.ctx.idempotency_key}/{self.ctx.attempt}"


class CountsOnTheInstance(Charge):
    """Gives up by its own count, which the process keeps and the job does not."""

    def charge(self, order: str, amount: float) -> None:
        self.tries += 1
        if self.tries < 4:
            raise GatewayDown
        self.paid_for(order, note=self.tries)


class CountsAttempts(Charge):
    def charge(self, order: str, amount: float) -> None:
        if self.ctx.attempt < 4:
            raise GatewayDown
        self.paid_for(order, note=self.ctx.attempt)


class ShipsFromTheInstance(Charge):
    """Remembers on the instance what the next step is to send."""

    def charge(self, order: str, amount: float) -> None:
        if order not in self.paid:
            self.paid.append(order)
            self.paid_for("charged", note=order)


class Ship(Routine):
    def __init__(self, memory: Charge | None) -> None:
        super().__init__()
        self.memory = memory
        self.define_slot("input", handler=self.ship)
        self.define_event("output", ["parcels"])

    def ship(self, note: str) -> None:
        if self.memory is None:
            self.ctx.state["parcels"] = [note]
            self.emit("output", parcels=[note])
        else:
            self.emit("output", parcels=list(self.memory.paid))


class MailsTwice(Charge):
    """Mails the customer and the shop; the second mail has a key, the first has none."""

    def charge(self, order: str, amount: float) -> None:
        mail("customer", order)
        self.ctx.sleep(1)
        mail("shop", order, key=self.ctx.key("shop"))
        self.paid_for(order)


class MailsUnderKeys(Charge):
    def charge(self, order: str, amount: float) -> None:
        mail("customer", order, key=self.ctx.key("customer"))
        self.ctx.sleep(1)
        mail("shop", order, key=self.ctx.key("shop"))
        self.paid_for(order)


def order_flow(routine: type[Charge], ship: str = "") -> Callable[[], Flow]:
    def build() -> Flow:
        flow = Flow("orders")
        charging = routine()
        flow.add_routine(Orders(), "orders")
        flow.add_routine(charging, "charge")
        flow.connect("orders", "output", "charge", "input")
        if ship:
            flow.add_routine(Ship(charging if ship == "instance" else None), "ship")
            flow.connect("charge", "output", "ship", "input")
        flow.set_error_handler(
            ErrorHandler("retry", max_retries=5, retry_delay=0.1, retryable_exceptions=GatewayDown)
        )
        return flow

    return build


def examined(build: Callable[[], Flow], *faults: Fault, **checks: Any) -> Exploration:
    case = Case(build, "orders", {"order": "A7"}, faults=faults)
    return explore(case, START, Checks(**checks))


@dataclass(frozen=True)
class Planted:
    """A bug: the flow with it, its twin, how it is found, and what must be said of it."""

    buggy: Callable[[], Flow]
    clean: Callable[[], Flow]
    kind: str
    routine: str
    says: str
    faults: Sequence[Fault] = ()


PLANTED = {
    "a charge without a key is made twice": Planted(
        order_flow(ChargesWithoutKey),
        order_flow(ChargesWithKey),
        "effect-repeated",
        "charge",
        "gateway.charge('A7', 19.9) ran 2x, undisturbed run 1x",
    ),
    "once alone can not close the gap before its record": Planted(
        order_flow(ChargesOnceWithoutKey),
        order_flow(ChargesOnceWithKey),
        "effect-repeated",
        "charge",
        "gateway.charge('A7', 19.9) ran 2x, undisturbed run 1x",
    ),
    "a key drawn anew on each host": Planted(
        order_flow(ChargesUnderAFreshKey),
        order_flow(ChargesUnderAKeyOfTheTask),
        "key-unstable",
        "charge",
        "gateway.charge('A7', 19.9) ran 2x under different keys",
    ),
    "a key with the time in it": Planted(
        order_flow(ChargesUnderAKeyOfTheHour),
        order_flow(ChargesUnderAKeyOfTheTask),
        "key-unstable",
        "charge",
        "gateway.charge('A7', 19.9) ran 2x under different keys: A7/00, A7/01",
    ),
    "a key with the attempt in it": Planted(
        order_flow(ChargesUnderAKeyOfTheAttempt),
        order_flow(ChargesThenFails),
        "key-unstable",
        "charge",
        "gateway.charge('A7', 19.9) ran 2x under different keys: job/0.0/1, job/0.0/2",
    ),
    "a count of tries on the instance": Planted(
        order_flow(CountsOnTheInstance),
        order_flow(CountsAttempts),
        "attempts-differ",
        "charge",
        "attempts",
    ),
    "progress on the instance of another routine": Planted(
        order_flow(ShipsFromTheInstance, "instance"),
        order_flow(ShipsFromTheInstance, "state"),
        "emissions-differ",
        "ship",
        "parcels",
    ),
    "one mail of two without a key": Planted(
        order_flow(MailsTwice),
        order_flow(MailsUnderKeys),
        "effect-repeated",
        "charge",
        "mail.send('customer', 'A7') ran 2x",
    ),
    "an outage that only comes by a fault": Planted(
        order_flow(ChargesWithoutKey),
        order_flow(ChargesWithKey),
        "effect-repeated",
        "charge",
        "gateway.charge('A7', 19.9) ran",
        [Raises("charge", GatewayDown("down"), attempts=[1, 2]), Slow("orders", 0.5)],
    ),
}


@pytest.mark.parametrize("name", sampled(PLANTED, [*PLANTED][::3]))
def test_a_planted_bug_is_found_and_its_twin_is_clean(name: str) -> None:
    planted = PLANTED[name]
    result = examined(planted.buggy, *planted.faults)
    finding = result.reference.finding or result.failures[0][1]
    assert (planted.kind, planted.routine) == (finding.kind, finding.routine)
    assert planted.says in finding.what

    twin = examined(planted.clean, *planted.faults)
    assert twin.reference.finding is None
    assert [] == [(point.name, finding.what) for point, finding in twin.failures]
    assert twin.coverage.planned == twin.coverage.executed
    assert twin.coverage.planned.total() > 15


def test_a_double_charge_comes_from_the_points_between_the_effect_and_its_commit() -> None:
    result = examined(order_flow(ChargesWithoutKey))
    names = {point.name for point, _ in result.failures}
    assert {f"0.0@a1.{place}" for place in ("effect1", "effect1.long", "end", "end.refused")} == (
        names
    )


# --- what the user asks for -----------------------------------------------------------------------


def test_an_invariant_is_asked_of_every_outcome() -> None:
    def receipts(outcome: Any) -> None:
        assert 1 == len(outcome.calls), f"{len(outcome.calls)} calls"

    result = examined(order_flow(ChargesWithKey), invariant=receipts)
    assert {"invariant"} == {finding.kind for _, finding in result.failures}
    assert "the invariant does not hold: 2 calls" in result.failures[0][1].what
    assert [] == examined(order_flow(ChargesWithKey), invariant=lambda outcome: True).failures
    false = examined(order_flow(ChargesWithKey), invariant=lambda outcome: False)
    assert false.reference.finding is not None
    assert "it returned False" in false.reference.finding.what


def test_a_view_says_what_is_compared() -> None:
    def status(outcome: Any) -> object:
        return outcome.job.status.value

    def tries(outcome: Any) -> object:
        return outcome.job.routine_states["charge"].attempts

    assert [] == examined(order_flow(ShipsFromTheInstance, "instance"), view=status).failures
    [*_, (_, finding)] = examined(order_flow(CountsOnTheInstance), view=tries).failures
    assert "view-differs" == finding.kind


def test_always_is_asked_after_every_commit() -> None:
    def none_pending(job: Any) -> bool:
        return len(job.pending_tasks) < 2

    def few_commits(job: Any) -> None:
        assert job.seq < 3, f"commit {job.seq}"

    case = Case(order_flow(ChargesWithKey), "orders", {"order": "A7"}, always=none_pending)
    assert explore(case, START, Checks()).reference.finding is None
    case = Case(order_flow(ChargesWithKey), "orders", {"order": "A7"}, always=few_commits)
    finding = explore(case, START, Checks()).reference.finding
    assert finding is not None
    assert "always() does not hold after commit 3: commit 3" in finding.what
