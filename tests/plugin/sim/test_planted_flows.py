"""Bugs planted in flows of users: each is found and named; its twin without the bug is clean."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_routilux.faults.faults import Fault, Raises, Slow
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import FakeClock, Flow
from tests.routines import Body, Works, chain, retrying, saveable
from tests.soak import sampled

START = FakeClock().now_ns()
charge = Effect("gateway.charge", key="key")


class GatewayDown(Exception):
    """The gateway does not answer."""


def answers_once(order: str, amount: float, key: str | None = None) -> str:
    raise GatewayDown("no answer")


def query(order: str) -> str:
    return f"{order} is open"


refused = Effect("gateway.refuse", key="key", returns=answers_once)
look = Effect("gateway.look", returns=query, reads=True)
ledger = Effect("ledger.put")


def paid(self: Any, receipt: object, note: object = "") -> None:
    self.emit("out", receipt=receipt, note=note)


def charges_with_key(self: Any, order: str, amount: float) -> None:
    self.ctx.sleep(0.36)
    paid(self, charge(order, amount, key=self.ctx.key("charge")))


def charges_without_key(self: Any, order: str, amount: float) -> None:
    self.ctx.sleep(0.36)
    paid(self, charge(order, amount))


def charges_once_without_key(self: Any, order: str, amount: float) -> None:
    paid(self, self.ctx.once("charge", charge, order, amount))


def charges_once_with_key(self: Any, order: str, amount: float) -> None:
    paid(self, self.ctx.once("charge", charge, order, amount, key=self.ctx.key("charge")))


def charges_under_a_new_key(self: Any, order: str, amount: float) -> None:
    paid(self, charge(order, amount, key=str(uuid.uuid4())))


def charges_under_a_key_of_the_hour(self: Any, order: str, amount: float) -> None:
    paid(self, charge(order, amount, key=f"{order}/{self.ctx.now():%H}"))


def charges_under_a_key_of_the_task(self: Any, order: str, amount: float) -> None:
    paid(self, charge(order, amount, key=str(self.ctx.uuid())))


def charges_then_fails(self: Any, order: str, amount: float, key: str | None = None) -> None:
    """The first attempt fails after it has charged."""
    receipt = charge(order, amount, key=key or self.ctx.key("charge"))
    if self.ctx.attempt == 1:
        raise GatewayDown
    paid(self, receipt)


def charges_under_a_key_of_the_attempt(self: Any, order: str, amount: float) -> None:
    charges_then_fails(self, order, amount, f"{self.ctx.idempotency_key}/{self.ctx.attempt}")


def counts_on_the_instance(self: Any, order: str, amount: float) -> None:
    """Gives up by its own count, which the process keeps and the job does not."""
    self.tries = getattr(self, "tries", 0) + 1
    if self.tries < 4:
        raise GatewayDown
    paid(self, order, note=self.tries)


def counts_attempts(self: Any, order: str, amount: float) -> None:
    if self.ctx.attempt < 4:
        raise GatewayDown
    paid(self, order, note=self.ctx.attempt)


def charges_and_undoes(self: Any, order: str, amount: float) -> None:
    """Undoes its charge in `finally`, which a crash must not run."""
    try:
        receipt = charge(order, amount)
    finally:
        charge(f"undo {order}", amount, key="undo")
    paid(self, receipt)


def charges_and_books_under_one_key(self: Any, order: str, amount: float) -> None:
    receipt = charge(order, amount, key=self.ctx.idempotency_key)
    charge(f"fee of {order}", 1, key=self.ctx.idempotency_key)
    paid(self, receipt)


def charges_and_books_under_two_keys(self: Any, order: str, amount: float) -> None:
    receipt = charge(order, amount, key=self.ctx.key("charge"))
    charge(f"fee of {order}", 1, key=self.ctx.key("fee"))
    paid(self, receipt)


def ignores_a_lost_answer(self: Any, order: str, amount: float) -> None:
    try:
        refused(order, amount)
    except GatewayDown:
        paid(self, "unknown")


def ignores_a_lost_answer_with_a_key(self: Any, order: str, amount: float) -> None:
    try:
        refused(order, amount, key=self.ctx.key("charge"))
    except GatewayDown:
        paid(self, "unknown")


def looks_with_an_effect_that_writes(self: Any, order: str, amount: float) -> None:
    ledger(order)
    paid(self, order)


def looks(self: Any, order: str, amount: float) -> None:
    paid(self, look(order))


def charges_twice_after_a_crash(self: Any, order: str, amount: float) -> None:
    """The second attempt of a new host makes the call twice, under one key."""
    self.tries = getattr(self, "tries", 0) + 1
    key = self.ctx.key("charge")
    if self.ctx.attempt == 1:
        raise GatewayDown
    charge(order, amount, key=key)
    if self.tries == 1:
        charge(order, amount, key=key)
    paid(self, order)


def charges_once_after_a_crash(self: Any, order: str, amount: float) -> None:
    if self.ctx.attempt == 1:
        raise GatewayDown
    paid(self, charge(order, amount, key=self.ctx.key("charge")))


def orders(self: Any, order: str) -> None:
    self.emit("out", order=order, amount=19.9)


def keeps_parcels(self: Any, order: str, amount: float) -> None:
    """Keeps the parcels of the next step on its instance."""
    self.parcels = getattr(self, "parcels", [])
    if order not in self.parcels:
        self.parcels.append(order)
        paid(self, "charged", note=order)


def pays_for_parcels(self: Any, order: str, amount: float) -> None:
    paid(self, "charged", note=order)


def ships_from_the_state(self: Any, note: str) -> None:
    self.ctx.state["parcels"] = [note]
    self.emit("out", n=[note])


def order_flow(charging: Body, shipping: Body | None = None) -> Callable[[], Flow]:
    def build() -> Flow:
        routines = {
            "orders": saveable(orders, out=["order", "amount"]),
            "charge": saveable(charging, out=["receipt", "note"]),
        }
        if shipping is not None:
            routines["ship"] = saveable(shipping)
        flow = chain(**routines)
        flow.set_error_handler(
            retrying(max_retries=5, retry_delay=0.1, retryable_exceptions=GatewayDown)
        )
        return flow

    return build


def ships_from_the_instance() -> Flow:
    flow = order_flow(keeps_parcels)()
    charging = flow.routines["charge"]

    def ships(self: Any, note: str) -> None:
        self.emit("out", n=list(getattr(charging, "parcels", [])))

    flow.add_routine(Works(ships), "ship")
    flow.connect("charge", "out", "ship", "trigger")
    return flow


def explored(build: Callable[[], Flow], *faults: Fault, **checks: Any) -> Exploration:
    case = Case(build, "orders", {"order": "A7"}, faults=faults)
    return explore(case, START, Checks(**checks))


@dataclass(frozen=True)
class Planted:
    """A bug: the flow with it, its twin, how it is found, and a text of the finding."""

    buggy: Callable[[], Flow]
    clean: Callable[[], Flow]
    kind: str
    says: str
    routine: str = "charge"
    faults: Sequence[Fault] = ()


TWICE = "gateway.charge('A7', 19.9) ran 2x"
ONCE_ALONE = f"{TWICE}, undisturbed run 1x"
KEYS = f"{TWICE} under different keys"


def planted(bug: Body, twin: Body, *expected: str, faults: Sequence[Fault] = ()) -> Planted:
    return Planted(order_flow(bug), order_flow(twin), *expected, faults=faults)


PLANTED = {
    "a charge without a key is made twice": planted(
        charges_without_key, charges_with_key, "effect-repeated", ONCE_ALONE
    ),
    "once alone can not close the gap before its record": planted(
        charges_once_without_key, charges_once_with_key, "effect-repeated", ONCE_ALONE
    ),
    "a key drawn anew on each host": planted(
        charges_under_a_new_key, charges_under_a_key_of_the_task, "key-unstable", KEYS
    ),
    "a key with the time in it": planted(
        charges_under_a_key_of_the_hour,
        charges_under_a_key_of_the_task,
        "key-unstable",
        f"{KEYS}: A7/00, A7/01",
    ),
    "a key with the attempt in it": planted(
        charges_under_a_key_of_the_attempt,
        charges_then_fails,
        "key-unstable",
        f"{KEYS}: job/0.0/1, job/0.0/2",
    ),
    "a count of tries on the instance": planted(
        counts_on_the_instance, counts_attempts, "attempts-differ", "attempts"
    ),
    "progress on the instance of another routine": Planted(
        ships_from_the_instance,
        order_flow(pays_for_parcels, ships_from_the_state),
        "emissions-differ",
        "out",
        "ship",
    ),
    "one key for two calls": planted(
        charges_and_books_under_one_key,
        charges_and_books_under_two_keys,
        "key-reused",
        "gateway.charge('fee of A7', 1) has the key of gateway.charge('A7', 19.9): job/0.0",
    ),
    "a call whose answer is lost": planted(
        ignores_a_lost_answer,
        ignores_a_lost_answer_with_a_key,
        "effect-repeated",
        "gateway.refuse('A7', 19.9) ran 2x",
    ),
    "a write without a key, and a read": planted(
        looks_with_an_effect_that_writes, looks, "effect-repeated", "ledger.put('A7') ran 2x"
    ),
    "two calls in one attempt of a new host": planted(
        charges_twice_after_a_crash,
        charges_once_after_a_crash,
        "effect-repeated",
        "gateway.charge('A7', 19.9) ran 2x in one attempt, undisturbed run 1x",
    ),
    "an answer that is lost by a fault": planted(
        charges_without_key,
        charges_with_key,
        "effect-repeated",
        "gateway.charge('A7', 19.9) ran",
        faults=[Raises("charge", GatewayDown("no answer"), attempts=[1], after=True)],
    ),
    "an outage that only comes by a fault": planted(
        charges_without_key,
        charges_with_key,
        "effect-repeated",
        "gateway.charge('A7', 19.9) ran",
        faults=[Raises("charge", GatewayDown("down"), attempts=[1, 2]), Slow("orders", 0.5)],
    ),
}


@pytest.mark.parametrize("name", sampled(PLANTED, [*PLANTED][::3]))
def test_a_planted_bug_is_found_and_its_twin_is_clean(name):
    bug = PLANTED[name]
    result = explored(bug.buggy, *bug.faults)
    finding = result.reference.finding or result.failures[0][1]
    assert (bug.kind, bug.routine) == (finding.kind, finding.routine)
    assert bug.says in finding.what
    twin = explored(bug.clean, *bug.faults)
    assert twin.reference.finding is None
    assert [] == [(point.name, finding.what) for point, finding in twin.failures]
    assert twin.coverage.planned == twin.coverage.executed
    assert twin.coverage.planned.total() > 15


def test_a_double_charge_comes_from_the_points_between_the_effect_and_its_commit():
    result = explored(order_flow(charges_without_key))
    places = ("effect1", "effect1.long", "end", "end.refused")
    assert {f"0.0@a1.{place}" for place in places} == {point.name for point, _ in result.failures}


def test_what_a_handler_does_after_its_host_died_has_not_happened():
    names = {point.name for point, _ in explored(order_flow(charges_and_undoes)).failures}
    assert {"0.0@a1.effect1", "0.0@a1.effect2.before"} <= names


def test_an_invariant_is_checked_for_every_outcome():
    def receipts(outcome: Any) -> None:
        assert 1 == len(outcome.calls), f"{len(outcome.calls)} calls"

    result = explored(order_flow(charges_with_key), invariant=receipts)
    assert {"invariant"} == {finding.kind for _, finding in result.failures}
    assert "the invariant does not hold: 2 calls" in result.failures[0][1].what
    assert [] == explored(order_flow(charges_with_key), invariant=lambda outcome: True).failures
    false = explored(order_flow(charges_with_key), invariant=lambda outcome: False)
    assert "the function returned False" in false.reference.finding.what


def test_a_view_returns_the_value_that_is_compared():
    def status(outcome: Any) -> object:
        return outcome.job.status.value

    def tries(outcome: Any) -> object:
        return outcome.job.routine_states["charge"].attempts

    assert [] == explored(ships_from_the_instance, view=status).failures
    [*_, (_, finding)] = explored(order_flow(counts_on_the_instance), view=tries).failures
    assert "view-differs" == finding.kind


def test_always_is_checked_after_every_commit():
    def none_pending(job: Any) -> bool:
        return len(job.pending_tasks) < 2

    def few_commits(job: Any) -> None:
        assert job.seq < 3, f"commit {job.seq}"

    def finding_with(always: Callable[[Any], object]) -> Any:
        build = order_flow(charges_with_key)
        case = Case(build, "orders", {"order": "A7"}, always=always)
        return explore(case, START, Checks()).reference.finding

    assert finding_with(none_pending) is None
    what = finding_with(few_commits).what
    assert "always() does not hold after commit 3: commit 3" in what
