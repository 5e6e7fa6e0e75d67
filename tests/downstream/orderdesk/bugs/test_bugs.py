"""The project with bugs in it: each test fails, and says what is wrong."""

from __future__ import annotations

import threading
import time

from orderdesk import gateway
from orderdesk.pipeline import Charge, build

ORDER = {"order": "A7", "amount": 19.9}


class WithoutKey(Charge):
    def pay(self, order, amount):
        return gateway.charge(order, amount)


class Impatient(Charge):
    """Retries by itself, as the error handler does too."""

    def charge(self, order, amount, at):
        for _ in range(2):
            try:
                return super().charge(order, amount, at)
            except ConnectionError:
                time.sleep(0.1)
        raise ConnectionError("the gateway still does not answer")


class WaitsForever(Charge):
    def pay(self, order, amount):
        answered = threading.Event()
        answered.wait()


def test_an_order_is_charged_once(flow_sim, monkeypatch):
    monkeypatch.setattr(gateway, "charge", flow_sim.effect("gateway.charge", key="key"))
    flow_sim.crash_everywhere(lambda: build(1, WithoutKey), "intake", ORDER)


def test_an_outage_is_waited_out(flow_runtime, flow_monitor):
    build(2, Impatient).execute("intake", ORDER)
    flow_monitor.assert_retried("charge", delays=[0.5, 1.0])
    flow_monitor.assert_emitted("pack", times=1, data={"waited": 1.75})


def test_the_gateway_answers(flow_runtime):
    build(0, WaitsForever).execute("intake", ORDER)
