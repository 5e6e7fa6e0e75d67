"""The flow of an order: intake, charge, pack."""

from __future__ import annotations

from datetime import UTC, datetime

from orderdesk import gateway
from routilux import ErrorHandler, Flow, Routine


class Intake(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.take)
        self.define_event("output", ["order", "amount", "at"])

    def take(self, order: str, amount: float) -> None:
        self.emit("output", order=order, amount=amount, at=datetime.now(UTC))


class Charge(Routine):
    """Charges an order; the gateway is down at the first `outages` attempts."""

    def __init__(self, outages: int = 0) -> None:
        super().__init__()
        self.outages = outages
        self.define_slot("input", handler=self.charge)
        self.define_event("output", ["order", "receipt", "at"])

    def charge(self, order: str, amount: float, at: datetime) -> None:
        if self.ctx.attempt <= self.outages:
            raise ConnectionError("the gateway does not answer")
        receipt = self.pay(order, amount)
        self.emit("output", order=order, receipt=receipt, at=at)

    def pay(self, order: str, amount: float) -> str:
        return gateway.charge(order, amount, key=self.ctx.key("charge"))


class Pack(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.pack)
        self.define_event("output", ["parcel", "waited"])

    def pack(self, order: str, receipt: str, at: datetime) -> None:
        self.ctx.shared["packed"] = self.ctx.shared.get("packed", 0) + 1
        waited = (datetime.now(UTC) - at).total_seconds()
        self.emit("output", parcel=f"{order}: {receipt}", waited=waited)


def build(outages: int = 0, charge: type[Charge] = Charge) -> Flow:
    flow = Flow("orders")
    flow.add_routine(Intake(), "intake")
    flow.add_routine(charge(outages), "charge")
    flow.add_routine(Pack(), "pack")
    flow.connect("intake", "output", "charge", "input")
    flow.connect("charge", "output", "pack", "input")
    flow.set_error_handler(
        ErrorHandler(
            "retry",
            max_retries=3,
            retry_delay=0.5,
            retry_backoff=2,
            retryable_exceptions=(ConnectionError,),
        )
    )
    return flow
