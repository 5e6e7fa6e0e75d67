"""Flows with one bug each, for the texts of failures, which name lines of this file."""

from __future__ import annotations

from pytest_routilux.sim.simulator.effects import Effect
from routilux import ErrorHandler, Flow, Routine

gateway = Effect("gateway.charge", key="key")
SEEN: list[str] = []


class GatewayDown(Exception):
    pass


class Orders(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.take)
        self.define_event("output", ["order", "amount"])

    def take(self, order: str, amount: float) -> None:
        self.ctx.sleep(0.2)
        self.emit("output", order=order, amount=amount)


class TwoOrders(Orders):
    def take(self, order: str, amount: float) -> None:
        self.emit("output", order=order, amount=amount)
        self.emit("output", order=order.lower(), amount=amount)


class Charge(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.charge)
        self.define_event("output", ["receipt"])

    def charge(self, order: str, amount: float) -> None:
        self.ctx.sleep(0.36)
        receipt = gateway(order=order, amount=amount)
        self.emit("output", receipt=receipt)


class OnceAlone(Charge):
    def charge(self, order: str, amount: float) -> None:
        receipt = self.ctx.once("charge", gateway, order=order, amount=amount)
        self.emit("output", receipt=receipt)


class AttemptInKey(Charge):
    def __init__(self) -> None:
        super().__init__()
        self.set_error_handler(ErrorHandler("retry", max_retries=3, retry_delay=0.1))

    def charge(self, order: str, amount: float) -> None:
        receipt = gateway(order=order, amount=amount, key=f"{order}-{self.ctx.attempt}")
        if self.ctx.attempt < 2:
            raise GatewayDown("no answer")
        self.emit("output", receipt=receipt)


class OwnBudget(Charge):
    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.set_error_handler(ErrorHandler("retry", max_retries=9, retry_delay=0.1))

    def charge(self, order: str, amount: float) -> None:
        self.tries += 1
        if self.tries < 4:
            raise GatewayDown("no answer")
        self.emit("output", receipt=order)


class ShortBudget(OwnBudget):
    def __init__(self) -> None:
        super().__init__()
        self.set_error_handler(ErrorHandler("retry", max_retries=3, retry_delay=0.1))


class Numbered(Charge):
    def __init__(self) -> None:
        super().__init__()
        self.last = 0

    def charge(self, order: str, amount: float) -> None:
        self.last += 1
        self.ctx.shared["last"] = self.last
        self.emit("output", receipt=f"{order}/{self.last}")


class Remembering(Charge):
    def charge(self, order: str, amount: float) -> None:
        SEEN.append(order)
        self.emit("output", receipt=f"{order}/{len(SEEN)}")


class Ending(Charge):
    def charge(self, order: str, amount: float) -> None:
        self.emit("output", receipt=gateway(order=order, amount=amount, key=self.ctx.key("charge")))


class SecondThoughts(Charge):
    """Charges, without a key, where its first attempt has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.set_error_handler(ErrorHandler("retry", max_retries=3, retry_delay=0.1))

    def charge(self, order: str, amount: float) -> None:
        receipt = order
        if self.ctx.attempt > 1:
            receipt = gateway(order=order, amount=amount)
        self.emit("output", receipt=receipt)


def shop(charge: type[Charge], orders: type[Orders] = Orders, *, clean: bool = True) -> Flow:
    if clean:
        SEEN.clear()
    flow = Flow("shop")
    flow.add_routine(orders(), "orders")
    flow.add_routine(charge(), "charge")
    flow.connect("orders", "output", "charge", "trigger")
    return flow


class MiddlingBudget(OwnBudget):
    """Fails by a crash in two ways: it is tried more often, or fails for good."""

    def __init__(self) -> None:
        super().__init__()
        self.set_error_handler(ErrorHandler("retry", max_retries=5, retry_delay=0.1))


class CountingOrders(Orders):
    """Counts in an attribute that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def take(self, order: str, amount: float) -> None:
        self.taken += 1
        self.emit("output", order=order, amount=amount)


class AtOnce(Charge):
    """Charges several orders at the same instant."""

    max_concurrency = 3

    def charge(self, order: str, amount: float) -> None:
        self.ctx.sleep(0.1)
        self.emit("output", receipt=gateway(order=order, amount=amount))


class ThreeOrders(Orders):
    def take(self, order: str, amount: float) -> None:
        for letter in "abc":
            self.emit("output", order=order + letter, amount=amount)


class FirstTwoFree(Charge):
    """Charges from the third order on, by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.served: list[str] = []

    def charge(self, order: str, amount: float) -> None:
        if len(self.served) > 1:
            gateway(order=order, amount=amount, key=self.ctx.key("charge"))
        self.served.append(order)
        self.emit("output", receipt=order)
