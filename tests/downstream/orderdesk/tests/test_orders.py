"""What the project tests of its flow, with the plugin as it was installed."""

from __future__ import annotations

from datetime import datetime

import pytest
from orderdesk import gateway
from orderdesk.pipeline import build

from pytest_routilux.hosts.flow_hosts import At
from routilux import Flow, SavedState

ORDER = {"order": "A7", "amount": 19.9}


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
def test_an_order_is_charged_and_packed(flow_runtime, flow_monitor, strategy):
    flow = build()
    flow.execution_strategy = strategy
    job = flow.execute("intake", ORDER)
    flow_monitor.assert_order(["intake", "charge", "pack"])
    flow_monitor.assert_status("completed")
    assert job.outputs[0].data == {"parcel": "A7: receipt of A7 over 19.9", "waited": 0.25}
    assert datetime.now() == datetime(2026, 1, 1, 0, 0, 0, 250_000)


@pytest.mark.parametrize("outages", [1, 2, 3])
def test_an_outage_is_waited_out(flow_runtime, flow_monitor, flow_clock, outages):
    job = build(outages).execute("intake", ORDER)
    delays = [0.5, 1.0, 2.0][:outages]
    flow_monitor.assert_retried("charge", times=outages, delays=delays)
    assert job.outputs[0].data["waited"] == sum(delays) + 0.25


def test_a_long_outage_fails_the_order(flow_runtime, flow_monitor):
    job = build(outages=4).execute("intake", ORDER)
    flow_monitor.assert_status("failed")
    flow_monitor.assert_not_run("pack")
    assert job.retry_count("charge") == 3


def test_an_order_survives_every_crash(flow_sim, monkeypatch):
    monkeypatch.setattr(gateway, "charge", flow_sim.effect("gateway.charge", key="key"))
    coverage = flow_sim.crash_everywhere(lambda: build(outages=2), "intake", ORDER)
    assert coverage.word == "complete"


@pytest.mark.parametrize("via", ["memory", "file", "process"])
def test_flow_and_job_can_be_saved(flow_runtime, serialize_roundtrip, via):
    flow = build(outages=1)
    assert list(serialize_roundtrip(flow, via=via).routines) == ["intake", "charge", "pack"]
    serialize_roundtrip(flow.execute("intake", ORDER), via=via)


def test_another_host_goes_on_with_the_retries_that_are_left(flow_hosts):
    retry = At(kind="retry", routine_id="charge", attempt=2)
    first = flow_hosts.start(
        build, "intake", ORDER, build_args={"outages": 3}, save_at=retry, kill_at=retry
    )
    assert SavedState.read(first.document).retry_count == 2
    second = flow_hosts.resume(first.document, imports=["orderdesk.pipeline"])
    assert [c.attempt for c in second.job.commits if c.routine_id == "charge"] == [1, 2, 3, 4]
    # The waits, and the 0.25 s of the gateway's time.sleep(), which follows the host's clock.
    assert second.job.updated_ns - second.job.started_ns == 3_750_000_000


def test_functions_make_a_flow(flow_factory, flow_runtime):
    job = flow_factory(chain=[priced, total]).execute("priced", {"order": "A7"})
    assert job.outputs[0].data == {"total": 39.8}


def priced(order):
    return {"price": 19.9}


def total(price):
    return {"total": 2 * price}


def test_a_report_can_be_shown(flow_runtime, flow_report):
    job = build(outages=1).execute("intake", ORDER)
    flow_report.timeline(job, title="the order")
    with flow_report.verification("the order", brief=True) as verify:
        verify("packed", 1, job.shared_data["packed"])


def test_time_is_real_where_nothing_of_the_plugin_is_used():
    assert abs(datetime.now() - datetime(2026, 1, 1)).total_seconds() > 60
    assert isinstance(build(), Flow)
