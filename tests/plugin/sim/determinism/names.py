"""A flow that a new interpreter imports: it emits names in the order of a set, or sorted."""

from __future__ import annotations

from routilux import Flow, Routine


class Names(Routine):
    """Emits names in the order of a set, or sorted."""

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.in_order = in_order
        self.define_slot("trigger", handler=self.step)
        self.define_event("output", ["names"])

    def step(self) -> None:
        names = {f"name-{n}" for n in range(8)}
        self.emit("output", names=sorted(names) if self.in_order else list(names))


def named(in_order: bool = False) -> Flow:
    flow = Flow("names")
    flow.add_routine(Names(in_order), "names")
    return flow


def named_in_order() -> Flow:
    return named(True)
