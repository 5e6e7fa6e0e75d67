"""Cases whose flow is a chain of steps, each a plain function of its routine and a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, Flow, Routine
from routilux.clocks.durations import instant_ns

START = instant_ns("2026-01-01")
Work = Callable[[Any, Any], object]


class Step(Routine):
    """Emits what its function returns for the routine and a number."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.define_slot("trigger", handler=self.step)
        self.define_event("output", ["number"])
        self.define_event("other", ["number"])

    def step(self, number: object = 0) -> None:
        self.emit("output", number=self.work(self, number))


STEP = f"{__file__}:{Step.step.__code__.co_firstlineno}"
"""The place of the handler of every step."""


def chain(*works: Work, **retry: Any) -> Case:
    """Return a case with the routines r0, r1, …; with `retry` options each is retried."""

    def build() -> Flow:
        flow = Flow("chain")
        for index, work in enumerate(works):
            flow.add_routine(Step(work), f"r{index}")
            if index:
                flow.connect(f"r{index - 1}", "output", f"r{index}", "trigger")
        if retry:
            flow.set_error_handler(ErrorHandler("retry", **retry))
        return flow

    return Case(build, "r0")


def same(routine: Any, number: Any) -> object:
    return number
