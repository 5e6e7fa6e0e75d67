"""A pytest plugin that proves that flows survive: virtual time, saving, other hosts, reports.

The fixtures are there once the package is installed; the types below are for annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_routilux.assertions import FlowMonitor
    from pytest_routilux.attached import FlowFaults
    from pytest_routilux.examine import Coverage, Outcome
    from pytest_routilux.factory import FlowFactory
    from pytest_routilux.hosts import FlowHosts
    from pytest_routilux.report import FlowReport
    from pytest_routilux.roundtrip import SerializeRoundtrip
    from pytest_routilux.sim import FlowSim

__all__ = [
    "Coverage",
    "FlowFactory",
    "FlowFaults",
    "FlowHosts",
    "FlowMonitor",
    "FlowReport",
    "FlowSim",
    "Outcome",
    "SerializeRoundtrip",
]

_HOMES = {
    "Coverage": "pytest_routilux.examine",
    "FlowFactory": "pytest_routilux.factory",
    "FlowFaults": "pytest_routilux.attached",
    "FlowHosts": "pytest_routilux.hosts",
    "FlowMonitor": "pytest_routilux.assertions",
    "FlowReport": "pytest_routilux.report",
    "FlowSim": "pytest_routilux.sim",
    "Outcome": "pytest_routilux.examine",
    "SerializeRoundtrip": "pytest_routilux.roundtrip",
}


def __getattr__(name: str) -> object:
    # The plugin is loaded by every pytest of the environment; nothing heavy before it is used.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(home), name)
    return found
