"""The plan: a flow as the engine reads it.

Laws:
- A plan stays as it is when its flow is changed later; any number of jobs follow it.
- `shape` is the graph in sorted lines. It has no arguments, policies and strategy in it: they may
  change while jobs are under way.
- Whatever of an emission and its connection can be known before a job runs is in the route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux.flow import Connection
    from routilux.policy import ErrorHandler
    from routilux.routine import Routine, Slot

__all__ = ["Graph", "Plan", "Route", "graph_of"]


@dataclass(slots=True)
class Route:
    """A connection as the engine follows it."""

    target: str
    slot: str
    mapping: dict[str, str] | None
    fields: int  # of the event; a payload that has them all has what the handler needs
    required: frozenset[str]  # event fields without which the handler can't be called


@dataclass(slots=True)
class Plan:
    """A flow as the engine reads it; it stays as it is when the flow is changed later."""

    flow_id: str
    shape: tuple[str, ...]
    routines: dict[str, Routine]
    routes: dict[tuple[str, str], tuple[Route, ...]]
    width: int
    handlers: dict[str, ErrorHandler]  # who decides when a routine fails

    def slot(self, routine_id: str, slot: str) -> Slot:
        """Return a slot, which must exist."""
        return self.routines[routine_id]._slots[slot]


Graph = tuple[tuple[str, ...], dict[tuple[str, str], tuple[Route, ...]]]
"""The shape of a flow, and the routes by (routine, event)."""


def graph_of(routines: Mapping[str, Routine], connections: Sequence[Connection]) -> Graph:
    """Return the shape of a flow, and the routes that emissions take."""
    lines = []
    for routine_id, routine in routines.items():
        lines.append(f"routine {routine_id}: {routine.saved_name()}")
        lines += [f"slot {routine_id}.{slot}" for slot in routine.slots]
        for event in routine.events.values():
            lines.append(f"event {routine_id}.{event.name}({', '.join(event.fields)})")
    lines += [f"connection {c}{_renamed(c.param_mapping)}" for c in connections]
    routes: dict[tuple[str, str], tuple[Route, ...]] = {}
    for c in connections:
        back = {parameter: field for field, parameter in c.param_mapping.items()}
        required = routines[c.target].slots[c.slot].binding.required
        route = Route(
            c.target,
            c.slot,
            dict(c.param_mapping) or None,
            len(routines[c.source].events[c.event].fields),
            frozenset(back.get(name, name) for name in required),
        )
        routes[c.source, c.event] = (*routes.get((c.source, c.event), ()), route)
    return tuple(sorted(lines)), routes


def _renamed(mapping: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{field} as {parameter}" for field, parameter in sorted(mapping.items()))
    return f" ({pairs})" if pairs else ""
