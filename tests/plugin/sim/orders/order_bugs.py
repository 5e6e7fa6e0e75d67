"""Flows whose result depends on the order of concurrent tasks, each with a twin without the bug.

Invariants:
- A twin differs from its bug only by the cure.
- The FIFO order of a flow completes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, Flow, Routine
from tests.routines import Body, Wide, Works, sends

outside: dict[object, object] = {}
"""What an external service keeps; each flow is built with an empty one."""


def book_if_free(who: object) -> bool:
    return outside.setdefault("seat", who) == who


is_free = Effect("seats.is_free", returns=lambda: "seat" not in outside, reads=True)
take = Effect("seats.take", returns=lambda who: outside.update(seat=who))
take_if_free = Effect("seats.take_if_free", returns=book_if_free)
next_number = Effect(
    "invoices.next", returns=lambda: outside.setdefault(len(outside), 1 + len(outside))
)
pay = Effect("gateway.pay", key="key")
undo = Effect("gateway.undo", key="key")


@dataclass(frozen=True)
class Graph:
    """A flow: a body for each routine, and arrows such as `go>fee`."""

    arrows: str
    bodies: Mapping[str, Body]
    wide: Sequence[str] = ()
    gathers: Sequence[str] = ()
    strategies: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> Flow:
        outside.clear()
        flow = Flow("orders", execution_strategy="concurrent", max_workers=4)
        for name, body in self.bodies.items():
            kind = Wide if name in self.wide else Collects if name in self.gathers else Works
            strategy = self.strategies.get(name)
            flow.add_routine(kind(body, strategy and ErrorHandler(strategy)), name)
        for arrow in self.arrows.split():
            first, _, then = arrow.partition(">")
            flow.connect(first, "out", then, "trigger")
        return flow

    @property
    def case(self) -> Case:
        return Case(self.build, "go")


class Collects(Routine):
    """A routine whose body gets the sorted `n` of all results."""

    def __init__(self, body: Body, handler: ErrorHandler | None = None) -> None:
        super().__init__()
        self.body = body
        self.define_slot("trigger", handler=self.collect, gather=True)
        self.define_event("out", ["n"])

    def collect(self, found: Sequence[Any]) -> None:
        self.body(self, sorted((one["n"] for one in found), key=repr))


def branches(first: Body, second: Body, **more: Any) -> Graph:
    """A graph in which two routines run at the same time."""
    return Graph("go>a go>b", {"go": sends(1), "a": first, "b": second}, **more)


def fan(
    work: Body, join: Body, *, sent: Sequence[object] = (0, 1, 2), gather: bool = False
) -> Graph:
    """A graph in which tasks of one routine run at the same time, and another joins them."""
    bodies = {"go": sends(*sent), "work": work, "join": join}
    return Graph("go>work work>join", bodies, ["work"], ["join"] if gather else [])


def chains(load: Callable[[int], Body], store: Body, **more: Any) -> Graph:
    """A graph of two chains of two steps, which run at the same time."""
    bodies = {"go": sends(0), "a": load(5), "b": load(7), "put_a": store, "put_b": store}
    return Graph("go>a go>b a>put_a b>put_b", bodies, **more)


def passes(self: Any, n: object) -> None:
    self.ctx.sleep(0.1)
    self.emit("out", n=n)


# --- bodies, each bug before its cure -------------------------------------------------------------


def writes_a(self: Any, n: int) -> None:
    self.ctx.shared["best"] = 3


def writes_b(self: Any, n: int) -> None:
    self.ctx.shared["best"] = 4


def maximum_a(self: Any, n: int) -> None:
    self.ctx.shared.maximum("best", 3)


def maximum_b(self: Any, n: int) -> None:
    self.ctx.shared.maximum("best", 4)


def loads(amount: int) -> Body:
    def load(self: Any, n: int) -> None:
        self.emit("out", n=self.ctx.shared.get("balance", 100) + amount)

    return load


def stores(self: Any, n: int) -> None:
    self.ctx.shared["balance"] = n


def sends_amount(amount: int) -> Body:
    def load(self: Any, n: int) -> None:
        self.emit("out", n=amount)

    return load


def increments(self: Any, n: int) -> None:
    self.ctx.shared["balance"] = self.ctx.shared.get("balance", 100) + n


def adds(self: Any, n: int) -> None:
    self.ctx.shared.add("balance", n)


def sums_by_arrival(self: Any, n: float) -> None:
    self.ctx.state["sum"] = self.ctx.state.get("sum", 0.0) + n


def sums_exactly(self: Any, n: Sequence[float]) -> None:
    self.ctx.state["sum"] = math.fsum(n)


def adds_floats(self: Any, n: float) -> None:
    self.ctx.shared.add("sum", n)


def first_wins(self: Any, n: int) -> None:
    if "done" not in self.ctx.state:
        self.ctx.state["done"] = True
        self.emit("out", n=n)


def least_wins(self: Any, n: Sequence[int]) -> None:
    self.emit("out", n=n[0])


def closes_at_the_last_index(self: Any, n: int) -> None:
    self.ctx.state["got"] = self.ctx.state.get("got", 0) + n
    if n == 2:
        self.emit("out", n=self.ctx.state["got"])


def appends_until_the_last_index(self: Any, n: int) -> None:
    self.ctx.state.append("got", n)
    if n == 2:
        self.emit("out", n=sorted(self.ctx.state["got"]))


def counts_to_two(self: Any, n: int) -> None:
    self.ctx.state.add("count", 1)
    if self.ctx.state["count"] == 2:
        self.emit("out", n=n)


def keeps_the_largest_so_far(self: Any, n: int) -> None:
    self.ctx.state.maximum("most", n)
    self.emit("out", n=self.ctx.state["most"])


def closes_after_two(self: Any, n: int) -> None:
    got = [*self.ctx.state.get("got", []), n]
    self.ctx.state["got"] = got
    if len(got) == 2:
        self.emit("out", n=sorted(got))


def closes(self: Any, n: Sequence[int]) -> None:
    self.emit("out", n=sum(n))


def checks_stock(self: Any, n: int) -> None:
    if self.ctx.shared.get("sold", 0) == 0:
        self.emit("out", n=0)


def sells(self: Any, n: int) -> None:
    self.ctx.shared["sold"] = self.ctx.shared.get("sold", 0) + 1


def checks_and_sells(self: Any, n: int) -> None:
    if self.ctx.shared.get("sold", 0) == 0:
        self.ctx.shared["sold"] = 1


def checks_then_takes(self: Any, n: int) -> None:
    if is_free():
        take("somebody")


def takes_if_free(self: Any, n: int) -> None:
    take_if_free("somebody")


def numbers_by_arrival(self: Any, n: int) -> None:
    count = self.ctx.state.get("count", 0) + 1
    self.ctx.state["count"] = count
    self.emit("out", n=f"invoice {count} of order {n}")


def numbers_by_order(self: Any, n: int) -> None:
    self.emit("out", n=f"invoice {n + 1} of order {n}")


def numbers_outside(self: Any, n: int) -> None:
    self.emit("out", n=f"invoice {next_number()} of order {n}")


def first_two_get_in(self: Any, n: int) -> None:
    count = self.ctx.state.get("count", 0) + 1
    self.ctx.state["count"] = count
    if count <= 2:
        pay(n, key=f"order {n}")


def least_two_get_in(self: Any, n: Sequence[int]) -> None:
    for one in n[:2]:
        pay(one, key=f"order {one}")


def fills_the_cache(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.shared.setdefault("rate", n))


def computes_its_rate(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.shared.setdefault(f"rate {n}", n))


def sets_rate(self: Any, n: int) -> None:
    self.ctx.shared["rate"] = 2
    self.emit("out", n=n)


def needs_rate(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.shared["rate"] * n)


def closes_the_shop(self: Any, n: int) -> None:
    self.ctx.shared["closed"] = True


def pays_while_open(self: Any, n: int) -> None:
    pay(n, key=f"order {n}")
    if self.ctx.shared.get("closed"):
        raise LookupError("the shop is closed")
    self.emit("out", n=n)


def pays(self: Any, n: int) -> None:
    pay(n, key=f"order {n}")
    self.emit("out", n=n)


def records_booking(self: Any, n: int) -> None:
    self.ctx.shared["booked"] = [*self.ctx.shared.get("booked", []), n]
    self.emit("out", n=n)


def undoes_what_is_booked(self: Any, n: int) -> None:
    for one in self.ctx.shared.get("booked", []):
        undo(one, key=f"undo {one}")


def undoes_all(self: Any, n: Sequence[int]) -> None:
    for one in n:
        undo(one, key=f"undo {one}")


def doubles(self: Any, n: int) -> None:
    self.ctx.shared["total"] = self.ctx.shared.get("total", 10) * 2


def increases(self: Any, n: int) -> None:
    self.ctx.shared["total"] = self.ctx.shared.get("total", 10) + 3


def sets_factor(self: Any, n: int) -> None:
    self.ctx.shared["factor"] = 2


def sets_summand(self: Any, n: int) -> None:
    self.ctx.shared["summand"] = 3


def loads_cart(item: int) -> Body:
    def load(self: Any, n: int) -> None:
        self.emit("out", n={**self.ctx.shared.get("cart", {}), f"item {item}": 1})

    return load


def stores_cart(self: Any, n: dict[str, int]) -> None:
    self.ctx.shared["cart"] = n


def sends_item(item: int) -> Body:
    def load(self: Any, n: int) -> None:
        self.emit("out", n=f"item {item}")

    return load


def puts_into_cart(self: Any, n: str) -> None:
    self.ctx.shared["cart"] = {**self.ctx.shared.get("cart", {}), n: 1}


def keeps_last(self: Any, n: int) -> None:
    self.ctx.state["last"] = n


def keeps_largest(self: Any, n: int) -> None:
    self.ctx.state.maximum("last", n)


def first_of_an_id_counts(self: Any, n: int) -> None:
    seen = self.ctx.state.get("seen", {})
    self.ctx.state["seen"] = {f"order {n % 2}": n, **seen}


def largest_of_an_id_counts(self: Any, n: int) -> None:
    self.ctx.state.maximum(f"order {n % 2}", n)


def sees_how_many(self: Any, n: int) -> None:
    self.ctx.shared[f"seen {n}"] = True
    self.emit("out", n=f"{n} saw {len(self.ctx.shared)}")


def sees_itself(self: Any, n: int) -> None:
    self.ctx.shared[f"seen {n}"] = True
    self.emit("out", n=f"{n} saw {n}")


def joins_text(self: Any, n: int) -> None:
    self.ctx.state["text"] = self.ctx.state.get("text", "") + str(n)


def joins_sorted(self: Any, n: Sequence[int]) -> None:
    self.ctx.state["text"] = "".join(map(str, n))


FLOATS = (0.1, 1e16, -1e16)


@dataclass(frozen=True)
class Pair:
    """A flow with a bug, its twin, the kind of its finding, and what the report must name."""

    bug: Graph
    twin: Graph
    kind: str
    names: Sequence[str]


PAIRS: dict[str, Pair] = {
    "last writer wins": Pair(
        branches(writes_a, writes_b),
        branches(maximum_a, maximum_b),
        "depends-on-order",
        ['ctx.shared["best"]', "a", "b"],
    ),
    "lost update through a payload": Pair(
        chains(loads, stores),
        chains(sends_amount, increments),
        "lost-update",
        ['"balance"', "put_"],
    ),
    "lost update, cured by an accumulator": Pair(
        chains(loads, stores), chains(sends_amount, adds), "lost-update", ['"balance"', "put_"]
    ),
    "lost update of a dict": Pair(
        chains(loads_cart, stores_cart),
        chains(sends_item, puts_into_cart),
        "lost-update",
        ['"cart"', "put_"],
    ),
    "sum of floats by arrival": Pair(
        fan(passes, sums_by_arrival, sent=FLOATS),
        fan(passes, sums_exactly, sent=FLOATS, gather=True),
        "depends-on-order",
        ['ctx.state["sum"]', "join", "fsum"],
    ),
    "sum of floats in an accumulator": Pair(
        fan(passes, adds_floats, sent=FLOATS),
        fan(passes, sums_exactly, sent=FLOATS, gather=True),
        "depends-on-order",
        ['ctx.shared["sum"]', "join", "fsum"],
    ),
    "first answer wins": Pair(
        fan(passes, first_wins), fan(passes, least_wins, gather=True), "depends-on-order", ["join"]
    ),
    "join closes at the last index": Pair(
        fan(passes, closes_at_the_last_index),
        fan(passes, closes, gather=True),
        "depends-on-order",
        ["join", "gather"],
    ),
    "accumulating join closes at the last index": Pair(
        fan(passes, appends_until_the_last_index),
        fan(passes, closes, gather=True),
        "depends-on-order",
        ['join reads ctx.state["got"]', "adds to it", "gather=True"],
    ),
    "join counts by an accumulator": Pair(
        fan(passes, counts_to_two),
        fan(passes, closes, gather=True),
        "depends-on-order",
        ['join reads ctx.state["count"]', "adds to it", "gather=True"],
    ),
    "largest so far by an accumulator": Pair(
        fan(passes, keeps_the_largest_so_far),
        fan(passes, closes, gather=True),
        "depends-on-order",
        ['join reads ctx.state["most"]', "adds to it", "gather=True"],
    ),
    "counting join closes early": Pair(
        fan(passes, closes_after_two),
        fan(passes, closes, gather=True),
        "depends-on-order",
        ["join", "gather"],
    ),
    "check then act across two steps": Pair(
        Graph("go>a a>b", {"go": sends(0, 1), "a": checks_stock, "b": sells}, wide=["a"]),
        Graph("go>a", {"go": sends(0, 1), "a": checks_and_sells}, wide=["a"]),
        "lost-update",
        ['"sold"'],
    ),
    "check then act outside, one routine": Pair(
        Graph("go>a", {"go": sends(0, 1), "a": checks_then_takes}, wide=["a"]),
        Graph("go>a", {"go": sends(0, 1), "a": takes_if_free}, wide=["a"]),
        "race",
        ["seats.is_free", "seats.take"],
    ),
    "check then act outside, both branches": Pair(
        branches(checks_then_takes, checks_then_takes),
        branches(takes_if_free, takes_if_free),
        "race",
        ["seats.is_free", "seats.take", "a", "b"],
    ),
    "numbers by arrival": Pair(
        fan(passes, numbers_by_arrival), fan(passes, numbers_by_order), "depends-on-order", ["join"]
    ),
    "numbers of a service": Pair(
        fan(passes, numbers_outside),
        fan(passes, numbers_by_order),
        "depends-on-order",
        ["join", "invoices.next"],
    ),
    "the first two get in": Pair(
        fan(passes, first_two_get_in),
        fan(passes, least_two_get_in, gather=True),
        "depends-on-order",
        ["join", "gateway.pay"],
    ),
    "the first fills the cache": Pair(
        fan(passes, fills_the_cache), fan(passes, computes_its_rate), "depends-on-order", ['"rate"']
    ),
    "needs what the other branch writes": Pair(
        branches(sets_rate, needs_rate),
        Graph("go>a a>b", {"go": sends(1), "a": sets_rate, "b": needs_rate}),
        "raises-in-order",
        ["b", "KeyError", '"rate"'],
    ),
    "a paid order is dropped": Pair(
        branches(pays_while_open, closes_the_shop, strategies={"a": "continue"}),
        branches(pays, closes_the_shop, strategies={"a": "continue"}),
        "depends-on-order",
        ['"closed"', "a", "b"],
    ),
    "compensation before all is booked": Pair(
        Graph(
            "go>a go>b go>undo",
            {
                "go": sends(1),
                "a": records_booking,
                "b": records_booking,
                "undo": undoes_what_is_booked,
            },
        ),
        Graph(
            "go>a go>b a>undo b>undo",
            {"go": sends(1), "a": records_booking, "b": records_booking, "undo": undoes_all},
            gathers=["undo"],
        ),
        "depends-on-order",
        ['"booked"', "undo"],
    ),
    "two changes that do not commute": Pair(
        branches(doubles, increases),
        branches(sets_factor, sets_summand),
        "depends-on-order",
        ['"total"', "a", "b"],
    ),
    "the last message stays": Pair(
        fan(passes, keeps_last), fan(passes, keeps_largest), "depends-on-order", ['"last"', "join"]
    ),
    "the first of an id counts": Pair(
        fan(passes, first_of_an_id_counts),
        fan(passes, largest_of_an_id_counts),
        "depends-on-order",
        ['"seen"', "join"],
    ),
    "counts the keys of others": Pair(
        fan(passes, sees_how_many), fan(passes, sees_itself), "depends-on-order", ["join"]
    ),
    "text by arrival": Pair(
        fan(passes, joins_text),
        fan(passes, joins_sorted, gather=True),
        "depends-on-order",
        ['"text"', "join"],
    ),
}
