"""A pytest plugin for routilux flows: virtual time, injected faults, simulated crashes, reports.

pytest finds the fixtures once the package is installed; the types below are for annotations.

PYTEST_DONT_REWRITE: the package has no assertions that pytest could explain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_routilux.factory import FlowFactory
    from pytest_routilux.faults.faults import Fault
    from pytest_routilux.faults.flow_faults import FlowFaults
    from pytest_routilux.hosts.flow_hosts import At, FlowHosts, HostError, HostResult
    from pytest_routilux.hosts.roundtrip import SerializeRoundtrip
    from pytest_routilux.monitor.assertions import FlowMonitor
    from pytest_routilux.report.flow_report import FlowReport, Verification
    from pytest_routilux.sim.flow_sim import FlowSim
    from pytest_routilux.sim.replay.judge import Replay
    from pytest_routilux.sim.results import Coverage, CrashAt, Outcome, Shard, shards
    from pytest_routilux.sim.simulator.effects import Effect

__all__ = [
    "At",
    "Coverage",
    "CrashAt",
    "Effect",
    "Fault",
    "FlowFactory",
    "FlowFaults",
    "FlowHosts",
    "FlowMonitor",
    "FlowReport",
    "FlowSim",
    "HostError",
    "HostResult",
    "Outcome",
    "Replay",
    "SerializeRoundtrip",
    "Shard",
    "Verification",
    "shards",
]

_DEFINED_IN = {
    "At": "hosts.flow_hosts",
    "Coverage": "sim.results",
    "CrashAt": "sim.results",
    "Effect": "sim.simulator.effects",
    "Fault": "faults.faults",
    "FlowFactory": "factory",
    "FlowFaults": "faults.flow_faults",
    "FlowHosts": "hosts.flow_hosts",
    "FlowMonitor": "monitor.assertions",
    "FlowReport": "report.flow_report",
    "FlowSim": "sim.flow_sim",
    "HostError": "hosts.flow_hosts",
    "HostResult": "hosts.flow_hosts",
    "Outcome": "sim.results",
    "Replay": "sim.replay.judge",
    "SerializeRoundtrip": "hosts.roundtrip",
    "Shard": "sim.results",
    "Verification": "report.flow_report",
    "shards": "sim.results",
}


if not TYPE_CHECKING:  # a type checker reads the imports above, and reports a misspelt name

    def __getattr__(name: str) -> object:
        # Every pytest of the environment loads this module, so the heavy ones wait until used.
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
