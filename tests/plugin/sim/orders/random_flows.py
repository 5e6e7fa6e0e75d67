"""Random small concurrent flows, as a Hypothesis strategy.

Invariants:
- A flow is a graph without a circle; its first routine sends numbered messages to others.
- Nothing in a flow is random but the strategy: the same recipe builds the same flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, Flow, Routine

MOST_TASKS: Final = 6

put = Effect("store.put", key="key")
kept: list[object] = []
"""What lies outside of the job; `numbered` answers with its length."""
numbered = Effect("store.numbered", returns=lambda n: (kept.append(n), len(kept))[1])


def reads(self: Any, n: int) -> int:
    return n + int(self.ctx.shared.get("x", 0))


def reads_and_calls(self: Any, n: int) -> int:
    read = n + int(self.ctx.shared.get("x", 0))
    put(n)  # without a key: an attempt that meets a conflict repeats it
    return read


def writes(self: Any, n: int) -> int:
    self.ctx.shared["x"] = n + 1
    return n


def increments(self: Any, n: int) -> int:
    self.ctx.shared["x"] = self.ctx.shared.get("x", 0) * 2 + n + 1
    return n


def writes_another_key(self: Any, n: int) -> int:
    self.ctx.shared[f"y{n}"] = n
    return n


def reads_all_keys(self: Any, n: int) -> int:
    return n + 10 * len(self.ctx.shared)


def adds_int(self: Any, n: int) -> int:
    self.ctx.shared.add("sum", n + 1)
    return n


def adds_float(self: Any, n: int) -> int:
    self.ctx.shared.add("float", (0.1, 1e16, -1e16)[n % 3])
    return n


def reads_sum(self: Any, n: int) -> int:
    return n + int(self.ctx.shared.get("sum", 0))


def maximum(self: Any, n: int) -> int:
    self.ctx.shared.maximum("sum", n)
    return n


def appends(self: Any, n: int) -> int:
    self.ctx.shared.append("list", n)
    return n


def unites(self: Any, n: int) -> int:
    self.ctx.shared.union("set", [n])
    return n


def counts(self: Any, n: int) -> int:
    self.ctx.state["n"] = self.ctx.state.get("n", 0) + 1
    return n + 10 * int(self.ctx.state["n"])


def sleeps(self: Any, n: int) -> int:
    self.ctx.sleep(0.1)
    return n


def fails_once(self: Any, n: int) -> int:
    if self.ctx.attempt == 1:
        raise ValueError(n)
    return n


def refuses_odd(self: Any, n: int) -> int:
    if n % 2:
        raise ValueError(n)
    return n


def calls(self: Any, n: int) -> int:
    put(n, key=self.ctx.key("put"))
    return n


def calls_numbered(self: Any, n: int) -> int:
    return n + 10 * int(numbered(n))


Op = Callable[[Any, int], int]
SAFE_OPS: Final = (writes_another_key, adds_int, unites, sleeps, calls)
"""What gives the same result in each order."""
OPS: Final = (
    *SAFE_OPS,
    *(
        reads,
        reads_and_calls,
        writes,
        increments,
        reads_all_keys,
        adds_float,
        reads_sum,
        maximum,
        appends,
    ),
    *(counts, fails_once, refuses_odd, calls_numbered),
)


@dataclass(frozen=True)
class Node:
    """One routine: what its handler does, and the numbers of the routines that it sends to."""

    ops: tuple[Op, ...]
    targets: tuple[int, ...]
    concurrency: int
    strategy: str
    gathers: bool

    def __repr__(self) -> str:
        ops = ", ".join(op.__name__ for op in self.ops)
        kind = "gather" if self.gathers else f"x{self.concurrency}"
        return f"[{ops} -> {[*self.targets]} {kind} {self.strategy}]"


class Live(Routine):
    def __init__(self, node: Node, messages: int) -> None:
        super().__init__()
        self.node = node
        self.messages = messages
        self.max_concurrency = node.concurrency
        slot = self.take_all if node.gathers else self.take
        self.define_slot("trigger", handler=slot, gather=node.gathers)
        self.define_event("output", ["n"])
        if node.strategy == "retry":
            self.set_error_handler(ErrorHandler("retry", max_retries=1, retry_delay=0))
        else:
            self.set_error_handler(ErrorHandler(node.strategy))

    def take(self, n: int = 0) -> None:
        for op in self.node.ops:
            n = op(self, n)
        for number in range(self.messages):
            self.emit("output", n=n + number)

    def take_all(self, found: Sequence[Any]) -> None:
        self.take(sum(one["n"] for one in found))


@dataclass(frozen=True)
class Recipe:
    """A flow: its routines, the messages that the first one sends, and `max_workers`."""

    nodes: tuple[Node, ...]
    messages: int
    width: int

    def build(self) -> Flow:
        kept.clear()
        flow = Flow("random", execution_strategy="concurrent", max_workers=self.width)
        for number, node in enumerate(self.nodes):
            flow.add_routine(Live(node, 1 if number else self.messages), f"r{number}")
        for number, node in enumerate(self.nodes):
            for target in node.targets:
                flow.connect(f"r{number}", "output", f"r{target}", "trigger")
        return flow

    @property
    def case(self) -> Case:
        return Case(self.build, "r0")

    @property
    def tasks(self) -> int:
        """The most tasks that a job of it has."""
        of = [0] * len(self.nodes)
        of[0] = 1
        for number, node in enumerate(self.nodes):
            if node.gathers:
                of[number] = min(1, of[number])
            for target in node.targets:
                of[target] += of[number] * (1 if number else self.messages)
        return sum(of)


@st.composite
def recipes(draw: st.DrawFn, ops: Sequence[Op] = OPS, *, gathers: bool = True) -> Recipe:
    size = draw(st.integers(3, 5))
    nodes = []
    for number in range(size):
        later = [*range(number + 1, size)]
        targets = (
            draw(st.sets(st.sampled_from(later), min_size=1 if number else min(2, len(later))))
            if later
            else ()
        )
        chosen = draw(
            st.lists(st.sampled_from(ops), min_size=number > 0, max_size=2 * (number > 0))
        )
        nodes.append(
            Node(
                ops=tuple(chosen),
                targets=tuple(sorted(targets)),
                concurrency=draw(st.sampled_from((1, 2, 4))),
                strategy=draw(st.sampled_from(("continue", "skip", "retry"))),
                gathers=number > 1 and gathers and draw(st.sampled_from((False, False, True))),
            )
        )
    return Recipe(tuple(nodes), draw(st.integers(1, 3)), draw(st.integers(2, 4)))
