"""Correct flows that together use every rule of `routilux.core`; the simulation checks each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_routilux.faults.faults import StoreFails
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, Flow, Gathered, RetryAfter, Routine
from tests.plugin.sim.conformance.engine_bugs import (
    CardRefused,
    GatewayDown,
    gathering,
    shop,
)
from tests.plugin.sim.steps import START
from tests.routines import Importable, saveable


class WideImportable(Importable):
    """Two steps at a time."""

    max_concurrency = 2


def split(self: Any, n: int = 4) -> None:
    for part in range(n):
        self.emit("out", n=part)


def collects(self: Any, n: int) -> None:
    """Uses each way to write, sleeps so that later parts end first, and drops some parts."""
    self.ctx.sleep(0.4 - 0.1 * n)
    self.ctx.state.add("sum", n)
    self.ctx.state.union("seen", {n})
    self.ctx.shared.append("order", n)
    self.ctx.shared.maximum("most", n)
    if n == 2:
        raise GatewayDown(n)
    self.emit("out", n=n)
    self.emit("note", n=[n])


def conflicts(self: Any, n: int) -> None:
    before = self.ctx.shared.get("total", 0)
    self.ctx.sleep(0.1 + n / 10)
    self.ctx.shared["total"] = before + n
    rows = self.ctx.state.setdefault("rows", [])
    rows.append(n)


def pays(self: Any, n: int) -> None:
    """Fails after each effect that it records."""
    receipt = self.ctx.once("reserve", str, n)
    if self.ctx.attempt == 1:
        raise GatewayDown(n)
    if self.ctx.attempt == 2:
        raise RetryAfter(0.7, spends=False)
    receipt += self.ctx.once("pay", str, n + 1)
    if self.ctx.attempt == 3:
        raise GatewayDown(n)
    self.emit("out", n=receipt)


def notes_error(self: Any, message: str = "", attempt: int = 0) -> None:
    self.ctx.shared.append("errors", [message, attempt])
    self.emit("out", n=message)


def fails(self: Any, n: int) -> None:
    self.emit("out", n=n)
    raise CardRefused(n)


def fails_to_note(self: Any, message: str) -> None:
    raise CardRefused(message)


def failing_reports() -> Flow:
    """A failure is reported to a routine that fails too; its own failure is reported to nobody."""
    flow = Flow("reports")
    flow.add_routine(saveable(fails, error=["message"]), "body")
    flow.add_routine(saveable(fails_to_note, error=["message"]), "note")
    flow.add_routine(saveable(notes_error), "last")
    flow.connect("body", "error", "note", "trigger")
    flow.connect("note", "error", "last", "trigger")
    flow.set_error_handler(ErrorHandler("continue"))
    return flow


def dropped_at_last() -> Flow:
    """The last task of the job is skipped, and nothing reports it."""
    flow = Flow("dropped")
    flow.add_routine(saveable(split), "split")
    flow.add_routine(saveable(fails), "body")
    flow.connect("split", "out", "body", "trigger")
    flow.set_error_handler(ErrorHandler("skip"))
    return flow


def fan(
    body: Any, *, wide: bool = False, errors: ErrorHandler | None = None, workers: int = 3
) -> Callable[[], Flow]:
    """split -> body -> last, and the errors of body -> last."""

    def build() -> Flow:
        flow = Flow("fan", execution_strategy="concurrent", max_workers=workers)
        kind = WideImportable if wide else Importable
        path = f"{body.__module__}:{body.__qualname__}"
        flow.add_routine(saveable(split), "split")
        events = {"note": ["n"], "error": ["message", "attempt"]}
        flow.add_routine(kind(path, **events), "body")
        flow.add_routine(saveable(notes_error), "errors")
        flow.connect("split", "out", "body", "trigger")
        flow.connect("body", "error", "errors", "trigger")
        flow.set_error_handler(errors)
        return flow

    return build


class Sum(Routine):
    """Gathers what its scope delivered, and fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("parts", handler=self.add_up, gather=True)
        self.define_event("out", ["n"])

    def add_up(self, parts: Gathered) -> None:
        if self.ctx.attempt == 1:
            raise GatewayDown
        self.ctx.shared["sums"] = [part["n"] for part in parts]
        self.emit("out", n=[len(parts), [task.task_id for task in parts.dropped]])


def nested() -> Flow:
    """A gather per split inside a gather of the job."""
    flow = Flow("nested", execution_strategy="concurrent", max_workers=3)
    flow.add_routine(saveable(split), "first")
    flow.add_routine(saveable(split), "second")
    flow.add_routine(WideImportable(f"{__name__}:collects", note=["n"]), "part")
    flow.add_routine(Sum(), "inner", gather_per="second")
    flow.add_routine(Sum(), "outer")
    flow.connect("first", "out", "second", "trigger")
    flow.connect("second", "out", "part", "trigger")
    flow.connect("part", "out", "inner", "parts", {"n": "n"})
    flow.connect("inner", "out", "outer", "parts", {"n": "n"})
    flow.set_error_handler(ErrorHandler("retry", max_retries=1, on_exhausted="skip"))
    return flow


def case(build: Callable[[], Flow], entry: str = "split", **more: Any) -> Case:
    return Case(build, entry, **more)


RETRY = ErrorHandler("retry", max_retries=3, retry_delay=0.3, jitter=0.2)
CASES: list[tuple[str, Case]] = [
    ("a shop", case(shop(), "orders")),
    ("a shop whose job fails", case(shop(fails=(9, 0), max_retries=2), "orders")),
    ("a concurrent shop", case(shop(fails=(2, 1, 0), workers=3), "orders")),
    ("a gather per order list", case(lambda: gathering(workers=3), "orders")),
    ("nested gathers", case(nested, "first", params={"n": 2})),
    ("effects", case(fan(pays, errors=RETRY), params={"n": 2})),
    ("accumulators", case(fan(collects, wide=True, errors=ErrorHandler("continue")))),
    ("conflicts", case(fan(conflicts, wide=False, workers=4))),
    ("skipped tasks", case(fan(fails, errors=ErrorHandler("skip")))),
    ("a report that fails", case(failing_reports, "body", params={"n": 1})),
    ("a last task that is dropped", case(dropped_at_last, params={"n": 2})),
    ("a failed job", case(fan(fails), params={"n": 1})),
    ("a deadline", case(shop(fails=(9,), deadline=1.0, on_exhausted="continue"), "orders")),
    ("a store that fails", case(shop(fails=(1,)), "orders", faults=(StoreFails(3),))),
]


def first_finding(cases: list[tuple[str, Case]] | None = None) -> str | None:
    """Return the first finding of the simulation, with the name of its flow."""
    for name, each in CASES if cases is None else cases:
        result = explore(each, START, Checks(isolated=False))
        finding = result.reference.finding or next((f for _, f in result.failures), None)
        if finding is not None:
            return f"{name}: {finding.kind}: {finding.what}"
        if result.coverage.planned != result.coverage.executed:
            return f"{name}: {result.coverage.word}"
    return None
