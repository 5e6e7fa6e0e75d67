"""`Plan`: a fixed copy of a flow for the engine.

Invariants:
- A plan does not change when its flow changes later; any number of jobs can use it.
- A connection is checked when it is made: both ends exist, and the event's fields cover what the
  handler requires.
- `shape` is the graph in sorted lines, without arguments, policies and strategy: these may change
  while jobs run.
- A route holds everything about a connection that can be computed before a job runs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from routilux.errors import FlowDefinitionError
from routilux.graph.routine import names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.graph.gathers import Gathers
    from routilux.graph.messages import Task
    from routilux.graph.routine import Routine, Slot
    from routilux.retry.error_handler import ErrorHandler

ExecutionStrategy = Literal["sequential", "concurrent"]
"""How a flow runs the steps of a job: one at a time, or up to `max_workers` at once."""
STRATEGIES: Final = ("sequential", "concurrent")


@dataclass(frozen=True, slots=True)
class Connection:
    """One edge of a flow, from an event to a slot; see `Flow.connections`."""

    source: str
    """The id of the routine that emits."""
    event: str
    """The name of its event."""
    target: str
    """The id of the routine that receives."""
    slot: str
    """The name of its slot."""
    param_mapping: Mapping[str, str]
    """{event field: handler parameter} for the fields that are renamed."""

    @property
    def ends(self) -> tuple[str, str, str, str]:
        """The identity of the connection: source, event, target and slot."""
        return self.source, self.event, self.target, self.slot

    def __str__(self) -> str:
        return f"{self.source}.{self.event} -> {self.target}.{self.slot}"


def checked_connection(
    start: tuple[str, Routine, object],
    end: tuple[str, Routine, object],
    param_mapping: object,
) -> Connection:
    """Check that an event fits a slot, and return the connection.

    `start` is (routine id, routine, event), and `end` is (routine id, routine, slot).

    Raises `FlowDefinitionError` for an event, slot, field or parameter that does not exist, and
    for a required parameter that no field covers.
    """
    (source, sender, event), (target, receiver, slot) = start, end
    events, slots = sender.events, receiver.slots
    if not isinstance(event, str) or event not in events:
        raise FlowDefinitionError(
            f"routine {source!r} has no event {event!r}; its events: {names_of(events)}"
        )
    if not isinstance(slot, str) or slot not in slots:
        raise FlowDefinitionError(
            f"routine {target!r} has no slot {slot!r}; its slots: {names_of(slots)}"
        )
    declared = events[event]
    gather, binding = slots[slot].gather, slots[slot].binding
    mapping = {} if param_mapping is None else param_mapping
    if not isinstance(mapping, Mapping) or not all(
        isinstance(name, str) for pair in mapping.items() for name in pair
    ):
        raise FlowDefinitionError(
            f"param_mapping for {source}.{event} must be a mapping of strings,"
            f" {{event field: handler parameter}}, not {mapping!r}"
        )
    connection = Connection(source, event, target, slot, MappingProxyType(dict(mapping)))
    for field, parameter in connection.param_mapping.items():
        if field not in declared.allowed:
            raise FlowDefinitionError(
                f"{connection}: param_mapping names field {field!r}, but event {event!r}"
                f" has {names_of(declared.fields)}"
            )
        if parameter not in binding.names and not (gather or binding.takes_rest):
            raise FlowDefinitionError(
                f"{connection}: param_mapping names parameter {parameter!r}, but the handler"
                f" takes {names_of(sorted(binding.names))}"
            )
    # Not all fields are visited: thousands of connections may share an event with thousands.
    kept, moved = declared.allowed, connection.param_mapping
    renamed = Counter(moved.values()) if moved else {}
    twice = sorted(n for n, count in renamed.items() if count > 1 or (n in kept and n not in moved))
    if twice:
        raise FlowDefinitionError(
            f"{connection}: two fields would be delivered as {names_of(twice)};"
            " map one of them to another parameter"
        )
    missing = sorted(
        n for n in binding.required if n not in renamed and (n not in kept or n in moved)
    )
    if missing and not gather:  # a gather takes any payload
        delivered = (moved.get(field, field) for field in declared.fields)
        raise FlowDefinitionError(
            f"{connection}: the handler needs {names_of(missing)}, but the event carries"
            f" {names_of(delivered)}; add a field, map a field to the"
            " parameter, or give the parameter a default"
        )
    return connection


@dataclass(slots=True)
class Route:
    """A connection in the form that the engine uses to deliver payloads."""

    target: str
    slot: str
    mapping: dict[str, str] | None
    fields: int  # of the event; a payload that has them all has what the handler needs
    required: frozenset[str]  # event fields without which the handler can't be called


@dataclass(slots=True)
class Plan:
    """A fixed copy of a flow for the engine."""

    flow_id: str
    shape: tuple[str, ...]
    routines: dict[str, Routine]
    routes: dict[tuple[str, str], tuple[Route, ...]]
    width: int
    handlers: dict[str, ErrorHandler]  # by routine
    gathers: Gathers | None
    has_async: bool  # whether any handler is an `async def` function
    # What other processes rebuild the routines from; made once, when a job first needs it.
    forms: dict[str, tuple[str, ...]] | None = dataclasses.field(default=None, compare=False)

    def slot(self, routine_id: str, slot: str) -> Slot:
        """Return a slot of a routine; the slot must exist."""
        return self.routines[routine_id]._slots[slot]

    def is_async(self, task: Task) -> bool:
        """Return whether the handler of `task` is an `async def` function."""
        return self.routines[task.routine_id]._slots[task.slot].is_async


Graph = tuple[tuple[str, ...], dict[tuple[str, str], tuple[Route, ...]]]
"""The shape of a flow, and the routes by (routine, event)."""


def gather_line(routine_id: str, slot: str, split: str | None) -> str:
    """Return the line of a gather slot in a shape."""
    return f"slot {routine_id}.{slot} (gathers{'' if split is None else f' per {split}'})"


def graph_of(
    routines: Mapping[str, Routine],
    connections: Sequence[Connection],
    splits: Mapping[str, str],
) -> Graph:
    """Return a flow's shape, and the routes by (routine, event)."""
    lines = []
    for routine_id, routine in routines.items():
        lines.append(f"routine {routine_id}: {routine.saved_name()}")
        lines += [
            gather_line(routine_id, slot.name, splits.get(routine_id))
            if slot.gather
            else f"slot {routine_id}.{slot.name}"
            for slot in routine.slots.values()
        ]
        for event in routine.events.values():
            lines.append(f"event {routine_id}.{event.name}({', '.join(event.fields)})")
    routes: dict[tuple[str, str], list[Route]] = {}
    for c in connections:
        line = f"connection {c}"
        slot = routines[c.target].slots[c.slot]
        required = frozenset[str]() if slot.gather else slot.binding.required
        if c.param_mapping:
            moved = sorted(c.param_mapping.items())
            line += f" ({', '.join(f'{field} as {name}' for field, name in moved)})"
            back = {parameter: field for field, parameter in moved}
            required = frozenset(back.get(name, name) for name in required)
        lines.append(line)
        fields = len(routines[c.source].events[c.event].fields)
        route = Route(c.target, c.slot, dict(c.param_mapping) or None, fields, required)
        routes.setdefault((c.source, c.event), []).append(route)
    return tuple(sorted(lines)), {start: tuple(found) for start, found in routes.items()}
