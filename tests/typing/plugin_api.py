"""The plugin's fixtures and types as its users annotate them; never run, checked by mypy."""

# ruff: noqa: F403, F405 - every public name is used here, and `test_api.py` checks that

from __future__ import annotations

from typing import assert_type

import pytest

import pytest_routilux
from pytest_routilux import *
from routilux import ExecutionMonitor, FakeClock, Flow, JobState, Runtime


def build() -> Flow:
    return Flow("shop")


def charge(order: str) -> dict[str, object]:
    return {"receipt": f"{order} is paid"}


def on_the_clock(
    flow_clock: FakeClock,
    flow_runtime: Runtime,
    flow_monitor: FlowMonitor,
    flow_factory: FlowFactory,
) -> None:
    flow_clock.advance(1.5)
    flow = assert_type(flow_factory(chain=[charge]), Flow)
    job = assert_type(flow_runtime.execute(flow, "charge", {"order": "A7"}), JobState)
    assert_type(flow_monitor.assert_status("completed", job=job), None)
    monitor: ExecutionMonitor = flow_monitor
    monitor.summary()


def on_the_bare_clock(flow_clock_bare: FakeClock) -> None:
    flow_clock_bare.advance(1.5)


def elsewhere(flow_hosts: FlowHosts, serialize_roundtrip: SerializeRoundtrip) -> None:
    host = assert_type(flow_hosts.start(build, "charge", save_at=At(kind="retry")), HostResult)
    assert_type(host.job, JobState)
    with pytest.raises(HostError):
        flow_hosts.resume(host.document)
    assert_type(serialize_roundtrip({"n": 1}), dict[str, int])


def simulated(flow_sim: FlowSim, flow_faults: FlowFaults) -> None:
    gateway = assert_type(flow_sim.effect("gateway.charge", key="key"), Effect)
    gateway("A7", key="a")
    fault: Fault = flow_faults.raises("charge", ConnectionError, attempts=[1, 2])

    def paid(outcome: Outcome) -> bool:
        return outcome.job.status == "completed"

    coverage = flow_sim.crash_everywhere(build, "charge", faults=[fault], invariant=paid)
    assert_type(coverage, Coverage)
    assert_type(flow_sim.explore(build, "charge", crashes=CrashAt(3)), Coverage)
    assert_type(shards(2), pytest.MarkDecorator)
    flow_sim.explore(build, "charge", crashes="pairs", shard=Shard(1, 2))
    assert_type(flow_sim.replay("jobs.db", build), Replay)


def reported(flow_report: FlowReport, job: JobState) -> None:
    flow_report.timeline(job, title="What happened")
    with flow_report.verification("Counts") as verify:
        assert_type(verify, Verification)
        verify("retries", 4, job.retry_count())


assert_type(pytest_routilux.__all__, list[str])


def misspelt() -> object:
    return pytest_routilux.FlowMonitr  # type: ignore[attr-defined]  # the checker has to say so
