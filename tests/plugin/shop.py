"""A shop that fails, for tests of saving and of hosts; small, since hosts import it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from time import sleep, time
from typing import Any

from routilux import ErrorHandler, ExecutionStrategy, Flow, Routine, SavedState, register_type
from tests.routines import chain, saveable


class GatewayDown(Exception):
    pass


@register_type(name="tests.shop.money")
@dataclass(frozen=True)
class Money:
    amount: Decimal


class Loose:
    """Its saved form forgets a type: a Decimal comes back as a float."""

    def __init__(self, price: Any) -> None:
        self.price = price


register_type(Loose, name="tests.shop.loose", encode=lambda loose: float(loose.price), decode=Loose)


@dataclass
class Home:
    """Is saved as the process that saves it."""

    pid: int


register_type(Home, name="tests.shop.home", encode=lambda _: os.getpid(), decode=Home)


class Order(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.order)
        self.define_event("output", ["amount"])

    def order(self, price: Decimal) -> None:
        self.ctx.sleep(0.8)
        self.emit("output", amount=Money(price))


class Charge(Routine):
    """Charges at attempt `tries`, and writes every attempt to the file `calls`."""

    def __init__(self, tries: int = 1, calls: str | None = None) -> None:
        super().__init__()
        self.tries = tries
        self.calls = calls
        self.rate = 1.5
        self.client = object()
        self._cache: dict[str, int] = {}
        self.define_slot("trigger", handler=self.charge)
        self.define_event("output", ["charged", "at"])
        self.set_error_handler(
            ErrorHandler(
                "retry",
                max_retries=4,
                retry_delay=0.3,
                retry_backoff=1.5,
                retryable_exceptions=(GatewayDown,),
            )
        )

    def charge(self, amount: Money) -> None:
        if self.calls is not None:
            with Path(self.calls).open("a") as calls:
                calls.write(
                    f"{os.getpid()} {self.ctx.attempt} {self.ctx.idempotency_key}"
                    f" {threading.current_thread().name}\n"
                )
        self.ctx.state["amounts"] = {amount}
        if self.ctx.attempt < self.tries:
            raise GatewayDown(f"try {self.ctx.attempt}")
        self.emit("output", charged=amount, at=self.ctx.now())


class Break(Routine):
    """Makes a host die or hang."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.define_slot("trigger", handler=self.end)

    def end(self) -> None:
        print(f"about to {self.how}", flush=True)  # noqa: T201 - the host's output is shown
        if self.how == "exit":
            os._exit(3)
        if self.how == "abort":
            os.abort()
        if self.how == "hang":
            os.read(os.pipe()[0], 1)
        raise KeyboardInterrupt(self.how)


def naps(self: Routine) -> None:
    """Read the time before and after a sleep, with functions of the standard library."""
    before = datetime.now(), time()
    sleep(3600)
    self.emit("out", times=[*before, datetime.now(), time(), self.ctx.now()])


def napping() -> Flow:
    return chain(nap=saveable(naps, out=["times"]))


def shop(
    tries: int = 1, calls: str | None = None, execution_strategy: ExecutionStrategy = "sequential"
) -> Flow:
    flow = Flow("shop", execution_strategy=execution_strategy, max_workers=2)
    flow.add_routine(Order(), "order")
    flow.add_routine(Charge(tries, calls=calls), "charge")
    flow.connect("order", "output", "charge", "trigger")
    flow.set_error_handler(ErrorHandler("skip", timeout=5))
    return flow


def breaking(how: str) -> Flow:
    flow = Flow("breaking")
    flow.add_routine(Break(how), "break")
    return flow


def nothing() -> int:
    return 7


def facts(state: SavedState) -> dict[str, object]:
    """Return the contents of a document that a host has loaded."""
    [task] = state.job.pending_tasks
    return {
        "pid": os.getpid(),
        "retries": state.retry_count,
        "amount": task.payload["amount"],
        "history": [record.event for record in state.job.execution_history],
        "pytest": "pytest" in sys.modules,
    }


def doubts(state: SavedState) -> None:
    raise AssertionError(f"retry {state.retry_count} is not 7")
