"""A pytest plugin that proves that flows survive: virtual time, saving, other hosts, reports.

The fixtures are there once the package is installed; the types below are for annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_routilux.assertions import FlowMonitor
    from pytest_routilux.factory import FlowFactory
    from pytest_routilux.hosts import FlowHosts
    from pytest_routilux.report import FlowReport
    from pytest_routilux.roundtrip import SerializeRoundtrip

__all__ = ["FlowFactory", "FlowHosts", "FlowMonitor", "FlowReport", "SerializeRoundtrip"]

_HOMES = {
    "FlowFactory": "pytest_routilux.factory",
    "FlowHosts": "pytest_routilux.hosts",
    "FlowMonitor": "pytest_routilux.assertions",
    "FlowReport": "pytest_routilux.report",
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
