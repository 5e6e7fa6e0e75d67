"""A pytest plugin that proves that flows survive: virtual time, saving, other hosts, reports.

The fixtures are there once the package is installed; the types below are for annotations.

PYTEST_DONT_REWRITE: no assertion of ours gains by it; see `_leave_as_they_are` of the plugin.
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
    from pytest_routilux.sim.results import Coverage, Outcome
    from pytest_routilux.sim.simulator.effects import Effect

__all__ = [
    "At",
    "Coverage",
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
    "SerializeRoundtrip",
    "Verification",
]

_HOMES = {
    "At": "pytest_routilux.hosts.flow_hosts",
    "Coverage": "pytest_routilux.sim.results",
    "Effect": "pytest_routilux.sim.simulator.effects",
    "Fault": "pytest_routilux.faults.faults",
    "FlowFactory": "pytest_routilux.factory",
    "FlowFaults": "pytest_routilux.faults.flow_faults",
    "FlowHosts": "pytest_routilux.hosts.flow_hosts",
    "FlowMonitor": "pytest_routilux.monitor.assertions",
    "FlowReport": "pytest_routilux.report.flow_report",
    "FlowSim": "pytest_routilux.sim.flow_sim",
    "HostError": "pytest_routilux.hosts.flow_hosts",
    "HostResult": "pytest_routilux.hosts.flow_hosts",
    "Outcome": "pytest_routilux.sim.results",
    "SerializeRoundtrip": "pytest_routilux.hosts.roundtrip",
    "Verification": "pytest_routilux.report.flow_report",
}


if not TYPE_CHECKING:  # a type checker takes the imports above, and tells a misspelt name

    def __getattr__(name: str) -> object:
        # The plugin is loaded by every pytest of the environment; nothing heavy before it is used.
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(home), name)
