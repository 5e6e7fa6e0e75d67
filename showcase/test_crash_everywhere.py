"""Every scenario, with a host that crashes at every point, one after the other.

A host crashes before and after each write of its store, around each effect, at the start, in the
middle and at the end of each backoff wait, long after it, and during recovery. The store refuses a
commit, or keeps it and does not answer. The job moves by document. Each time another host resumes
from the store alone, and must reach the same result.
"""

from __future__ import annotations

import http.server
import json
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from routilux import ErrorHandler, Flow, Routine
from showcase.flows import api_to_database, data_pipeline, fan_out_and_in, word_count
from showcase.recovery import TaxService, served_pipeline
from showcase.test_api_to_database import ORDER, ORDER_LINES, PARAMS
from showcase.test_basic_retry import Greet
from showcase.test_fan_out import ALBUM, pictures
from showcase.test_strategies import HANDLERS, RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_routilux import FlowFaults, FlowReport, FlowSim
    from pytest_routilux.sim.results import Outcome
    from pytest_routilux.sim.simulator.effects import Effect
    from routilux import ExecutionStrategy


def greeting() -> Flow:
    flow = Flow("greeting")
    flow.add_routine(Greet(), "greet")
    flow.set_error_handler(ErrorHandler("retry", max_retries=4, retry_delay=0.5))
    return flow


def test_basic_retry_survives(flow_sim: FlowSim) -> None:
    coverage = flow_sim.crash_everywhere(greeting, "greet", {"name": "world"})
    assert "complete" == coverage.word


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
@pytest.mark.parametrize("failures", range(6))
def test_the_data_pipeline_survives(
    failures: int, strategy: ExecutionStrategy, flow_sim: FlowSim
) -> None:
    coverage = flow_sim.crash_everywhere(
        lambda: data_pipeline(failures, strategy),
        "data_fetch",
        {"request_id": "req-1"},
        invariant=lambda outcome: outcome.job.status == ("completed", "failed")[failures > 4],
    )
    assert "complete" == coverage.word
    assert 5 * min(failures, 4) == coverage.executed["in a wait"]


def test_the_cross_host_pipeline_survives_an_outage(
    flow_sim: FlowSim, flow_faults: FlowFaults, tmp_path: Path
) -> None:
    service = TaxService(str(tmp_path / "tax.json"))
    service.refuse_next(0)
    locked = flow_faults.raises("data_process", ValueError("tax table is locked"), attempts=[1, 2])
    coverage = flow_sim.crash_everywhere(
        lambda: served_pipeline(service.address),
        "data_fetch",
        {"request_id": "req-1"},
        faults=[locked],
    )
    assert "complete" == coverage.word


@contextmanager
def steady_api() -> Iterator[str]:
    """Serve the order on the loopback to every caller."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(ORDER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Print nothing on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_api_to_database_writes_every_row_once_wherever_it_crashes(
    flow_sim: FlowSim, flow_faults: FlowFaults, tmp_path: Path
) -> None:
    database = tmp_path / "orders.db"

    def every_row_once(outcome: Outcome) -> None:
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT line, sku FROM order_lines ORDER BY line").fetchall()
        assert rows == [(n, line["sku"]) for n, line in enumerate(ORDER_LINES, 1)]

    with steady_api() as url:
        coverage = flow_sim.crash_everywhere(
            lambda: api_to_database(url, str(database), str(tmp_path / "outbox.txt")),
            "api_call",
            PARAMS,
            faults=[
                flow_faults.raises("api_call", ConnectionError("refused"), attempts=[1]),
                flow_faults.raises("database_write", RuntimeError("locked"), attempts=[1, 2]),
            ],
            invariant=every_row_once,
        )
    assert "complete" == coverage.word


@pytest.mark.parametrize("max_workers", [1, 4])
def test_fan_out_and_fan_in_survives(max_workers: int, flow_sim: FlowSim) -> None:
    coverage = flow_sim.crash_everywhere(
        lambda: fan_out_and_in(max_workers), "split", pictures(ALBUM)
    )
    assert ("sampled" if max_workers > 1 else "complete") == coverage.word


GIVE_UP: Final = ("STOP", "RETRY once")


@pytest.mark.parametrize("name", HANDLERS)
def test_every_strategy_survives(name: str, flow_sim: FlowSim) -> None:
    coverage = flow_sim.crash_everywhere(
        lambda: word_count(HANDLERS[name]),
        "read",
        {"records": RECORDS},
        invariant=lambda outcome: (outcome.job.status == "failed") is (name in GIVE_UP),
    )
    assert "complete" == coverage.word


# --- a flow that does not survive ---------------------------------------------------------------

AMOUNT: Final = 19.9


class Pay(Routine):
    """Charges an order at a gateway, with or without a key by which the gateway sees a repeat."""

    def __init__(self, gateway: Effect, *, keyed: bool) -> None:
        super().__init__()
        self.gateway = gateway
        self.keyed = keyed
        self.define_slot("trigger", handler=self.pay)
        self.define_event("output", ["receipt"])

    def pay(self, order: str) -> None:
        self.ctx.sleep(0.36)
        key = self.ctx.key("charge") if self.keyed else None
        self.emit("output", receipt=self.gateway(order=order, amount=AMOUNT, key=key))


def payment(gateway: Effect, *, keyed: bool) -> Callable[[], Flow]:
    def build() -> Flow:
        flow = Flow("payment")
        flow.add_routine(Pay(gateway, keyed=keyed), "charge")
        return flow

    return build


def test_a_charge_that_could_be_made_twice_is_found(
    flow_sim: FlowSim, flow_report: FlowReport
) -> None:
    gateway = flow_sim.effect("gateway.charge", key="key")

    with pytest.raises(pytest.fail.Exception) as failure:
        flow_sim.crash_everywhere(payment(gateway, keyed=False), "charge", {"order": "A7"})

    flow_report.add(str(failure.value), title="💸 The report on a flow that does not survive")
    assert str(failure.value).startswith("EFFECT REPEATED: gateway.charge")
    assert "crash point     task 0 charge, attempt 1: after effect #1" in str(failure.value)


def test_the_same_charge_under_a_key_survives(flow_sim: FlowSim) -> None:
    gateway = flow_sim.effect("gateway.charge", key="key")
    coverage = flow_sim.crash_everywhere(payment(gateway, keyed=True), "charge", {"order": "A7"})
    assert "complete" == coverage.word
    assert 3 == coverage.executed["around an effect"]
