"""A shop that prices orders and sometimes fails, and the text of a failed assertion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_routilux import FlowMonitor
from routilux import ErrorHandler, FakeClock, Flow, JobState, Routine, Runtime


class LockedError(Exception):
    pass


class Fetch(Routine):
    def __init__(self, orders: int = 1) -> None:
        super().__init__()
        self.orders = orders
        self.define_slot("trigger", handler=self.fetch)
        self.define_event("output", ["order"])
        self.define_event("empty")

    def fetch(self) -> None:
        self.ctx.sleep(0.8)
        for number in range(self.orders):
            self.emit("output", order={"id": number, "items": ["pen", "ink"], "total": 12})


class Price(Routine):
    """Fails `failures` times for each order."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("input", handler=self.price)
        self.define_event("output", ["total"])
        self.set_error_handler(
            ErrorHandler("retry", max_retries=4, retry_delay=0.3, retry_backoff=1.5)
        )

    def price(self, order: dict[str, Any]) -> None:
        self.ctx.sleep(0.5)
        if self.ctx.attempt <= self.failures:
            raise LockedError(f"try {self.ctx.attempt}")
        self.emit("output", total=order["total"])


class Store(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.store)

    def store(self, total: int) -> None:
        pass


class Interrupted(Store):
    def store(self, total: int) -> None:
        raise KeyboardInterrupt


def shop(failures: int = 0, orders: int = 1, store: Store | None = None) -> Flow:
    flow = Flow("shop")
    flow.add_routine(Fetch(orders), "fetch")
    flow.add_routine(Price(failures), "price")
    flow.add_routine(store or Store(), "store")
    flow.connect("fetch", "output", "price", "input")
    flow.connect("price", "output", "store", "input")
    return flow


def execute(
    flow: Flow, monitor: FlowMonitor, entry: str = "fetch", job_id: str | None = "job"
) -> JobState:
    runtime = Runtime(clock=FakeClock(), observers=[monitor])
    return flow.execute(entry, job_id=job_id, runtime=runtime)


def run(monitor: FlowMonitor, *, job_id: str = "job", **options: int) -> JobState:
    return execute(shop(**options), monitor, job_id=job_id)


def message_of(check: Callable[..., None], *args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check(*args, **options)
    return str(caught.value)
