"""A flow: the graph of routines, as its author builds and runs it.

Laws:
- A flow says what is to be done and is not changed by running; any number of jobs share it.
- Everything is checked when it is said: an unknown end, a field that nobody emits, a connection
  that stands already is refused at once and leaves the flow as it was.
- What a job follows is a plan, made when it begins; `fingerprint` is the digest of its shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, cast

from routilux import codec
from routilux.errors import FlowDefinitionError
from routilux.plan import Graph, Plan, graph_of
from routilux.policy import ErrorHandler
from routilux.routine import Routine, checked_handler
from routilux.saved_flow import flow_data, load_flow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.core.state import JobState
    from routilux.run import Run
    from routilux.runtime import Runtime

__all__ = ["Connection", "ExecutionStrategy", "Flow"]

ExecutionStrategy = Literal["sequential", "concurrent"]
_STRATEGIES: Final = ("sequential", "concurrent")


@dataclass(frozen=True, slots=True)
class Connection:
    """One edge: an event of one routine to a slot of another.

    `param_mapping` renames event fields to handler parameters.
    """

    source: str
    event: str
    target: str
    slot: str
    param_mapping: Mapping[str, str]

    @property
    def ends(self) -> tuple[str, str, str, str]:
        """What makes it a connection of its own: source, event, target and slot."""
        return self.source, self.event, self.target, self.slot

    def __str__(self) -> str:
        return f"{self.source}.{self.event} -> {self.target}.{self.slot}"


_STOP: Final = ErrorHandler()


class Flow:
    """A graph of routines, connected by events and slots.

    `execution_strategy` "sequential" runs one step at a time, "concurrent" up to `max_workers`.

    >>> flow = Flow("greetings")
    >>> flow.execution_strategy
    'sequential'
    """

    def __init__(
        self,
        flow_id: str | None = None,
        *,
        execution_strategy: ExecutionStrategy = "sequential",
        max_workers: int = 4,
    ) -> None:
        if flow_id is not None and (not isinstance(flow_id, str) or not flow_id):
            raise FlowDefinitionError(f"a flow's id is a text, not {flow_id!r}")
        if execution_strategy not in _STRATEGIES:
            raise FlowDefinitionError(
                f"execution_strategy is {execution_strategy!r}; choose 'sequential' or 'concurrent'"
            )
        if type(max_workers) is not int or max_workers < 1:
            raise FlowDefinitionError(
                f"max_workers is {max_workers!r}; it is a whole number from 1"
            )
        self.flow_id = flow_id if flow_id is not None else "flow"
        self.execution_strategy = execution_strategy
        self.max_workers = max_workers
        self._routines: dict[str, Routine] = {}
        self._connections: list[Connection] = []
        self._error_handler: ErrorHandler | None = None
        self._graph: Graph | None = None  # made when first asked for
        self._declared = 0  # slots and events that were there when it was made

    # --- building it ----------------------------------------------------------------------------

    def add_routine(self, routine: Routine, routine_id: str | None = None) -> str:
        """Add a routine and return its id, by default the name of its class.

        Raises `FlowDefinitionError` where the id is taken.
        """
        if not isinstance(routine, Routine):
            raise FlowDefinitionError(
                f"{routine!r} is no Routine; derive its class from routilux.Routine"
            )
        routine._slots_or_die()
        name = type(routine).__name__ if routine_id is None else routine_id
        if not isinstance(name, str) or not name:
            raise FlowDefinitionError(f"a routine's id is a text, not {routine_id!r}")
        if name in self._routines:
            raise FlowDefinitionError(
                f"flow {self.flow_id!r} has a routine {name!r} already;"
                " pass another routine_id to add_routine"
            )
        self._routines[name] = routine
        self._graph = None
        return name

    def connect(
        self,
        source: str,
        event: str,
        target: str,
        slot: str,
        param_mapping: Mapping[str, str] | None = None,
    ) -> Connection:
        """Deliver an event of `source` to a slot of `target`.

        `param_mapping` is {event field: handler parameter}. Raises `FlowDefinitionError` for an
        unknown end, a field or parameter that does not exist, a required parameter that no field
        covers, or a connection that stands already.
        """
        events = self._routine(source).events
        if not isinstance(event, str) or event not in events:
            raise FlowDefinitionError(
                f"routine {source!r} has no event {event!r}; it has {_names(events)}"
            )
        slots = self._routine(target).slots
        if not isinstance(slot, str) or slot not in slots:
            raise FlowDefinitionError(
                f"routine {target!r} has no slot {slot!r}; it has {_names(slots)}"
            )
        declared = events[event]
        binding = slots[slot].binding
        connection = Connection(
            source, event, target, slot, MappingProxyType(_mapping(param_mapping, source, event))
        )
        for field, parameter in connection.param_mapping.items():
            if field not in declared.allowed:
                raise FlowDefinitionError(
                    f"{connection}: param_mapping names field {field!r}, but event {event!r}"
                    f" has {_names(declared.fields)}"
                )
            if parameter not in binding.names and not binding.takes_rest:
                raise FlowDefinitionError(
                    f"{connection}: param_mapping names parameter {parameter!r}, but the handler"
                    f" takes {_names(sorted(binding.names))}"
                )
        delivered = [connection.param_mapping.get(field, field) for field in declared.fields]
        twice = sorted({name for name in delivered if delivered.count(name) > 1})
        if twice:
            raise FlowDefinitionError(
                f"{connection}: two fields would be delivered as {_names(twice)};"
                " map one of them to another parameter"
            )
        missing = sorted(binding.required - set(delivered))
        if missing:
            raise FlowDefinitionError(
                f"{connection}: the handler needs {_names(missing)}, but the event carries"
                f" {_names(delivered)}; emit it, map it with param_mapping, or give it a default"
            )
        if any(connection.ends == other.ends for other in self._connections):
            raise FlowDefinitionError(f"{connection} stands already; each edge is made once")
        self._connections.append(connection)
        self._graph = None
        return connection

    def set_error_handler(self, handler: ErrorHandler | None) -> None:
        """Set what happens when a routine without a handler of its own fails; None means STOP."""
        self._error_handler = checked_handler(handler, f"flow {self.flow_id!r}")

    @property
    def routines(self) -> Mapping[str, Routine]:
        """The routines by id (read-only)."""
        return MappingProxyType(self._routines)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections, in the order in which they were made."""
        return tuple(self._connections)

    @property
    def error_handler(self) -> ErrorHandler | None:
        """The flow's error handler."""
        return self._error_handler

    def _routine(self, routine_id: str) -> Routine:
        if not isinstance(routine_id, str) or routine_id not in self._routines:
            raise FlowDefinitionError(
                f"flow {self.flow_id!r} has no routine {routine_id!r}; it has"
                f" {_names(self._routines)}"
            )
        return self._routines[routine_id]

    # --- reading it -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[str, ...]:
        """The graph as sorted lines: routines with their slots and events, and connections."""
        return self.plan().shape

    @property
    def fingerprint(self) -> str:
        """A digest of the shape; equal for flows on which the same jobs can run."""
        return "sha256:" + hashlib.sha256("\n".join(self.shape).encode()).hexdigest()

    def plan(self, execution_strategy: ExecutionStrategy | None = None) -> Plan:
        """Return what the engine follows; it does not change when the flow does."""
        strategy = execution_strategy or self.execution_strategy
        if strategy not in _STRATEGIES:
            raise FlowDefinitionError(
                f"execution_strategy is {strategy!r}; choose 'sequential' or 'concurrent'"
            )
        # A routine may have been given slots and events after it was added.
        declared = sum(len(r._slots) + len(r._events) for r in self._routines.values())
        if self._graph is None or self._declared != declared:
            self._graph, self._declared = graph_of(self._routines, self._connections), declared
        shape, routes = self._graph
        rest = self._error_handler or _STOP
        return Plan(
            self.flow_id,
            shape,
            dict(self._routines),
            routes,
            self.max_workers if strategy == "concurrent" else 1,
            {name: routine._error_handler or rest for name, routine in self._routines.items()},
        )

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart.

        >>> print(Flow("empty").to_mermaid())
        flowchart LR
        """
        number = {routine_id: f"r{i}" for i, routine_id in enumerate(self._routines)}
        lines = ["flowchart LR"]
        lines += [f'    {number[r]}["{_quoted(r)}"]' for r in self._routines]
        lines += [
            f'    {number[c.source]} -->|"{_quoted(c.event)}"| {number[c.target]}'
            for c in self._connections
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Flow({self.flow_id!r}, {len(self._routines)} routines,"
            f" {len(self._connections)} connections, {self.execution_strategy})"
        )

    # --- running it -----------------------------------------------------------------------------

    def execute(
        self,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runtime | None = None,
    ) -> JobState:
        """Run a new job from `entry` and return it when it rests.

        A failed job is returned, not raised: see `JobState.raise_for_status`. Raises
        `FlowDefinitionError` where `entry`, `slot` or `params` don't fit.
        """
        return _runtime(runtime).execute(self, entry, params, slot=slot, job_id=job_id)

    async def aexecute(
        self,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runtime | None = None,
    ) -> JobState:
        """Do what `execute` does without holding up the event loop."""
        return await _runtime(runtime).aexecute(self, entry, params, slot=slot, job_id=job_id)

    def start(
        self,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runtime | None = None,
    ) -> Run:
        """Run a new job in the background and return its handle."""
        return _runtime(runtime).start(self, entry, params, slot=slot, job_id=job_id)

    def resume(
        self,
        job: JobState,
        *,
        runtime: Runtime | None = None,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
    ) -> JobState:
        """Go on with a job that was loaded, paused or cut off, and return it when it rests.

        The job that is passed stays as it is. `retry_failed` gives failed tasks a fresh budget;
        `allow_changed_flow` goes on where every pending task still has its slot. Raises
        `NotResumableError` and `FlowMismatchError`.
        """
        return _runtime(runtime).resume(
            self,
            job,
            retry_failed=retry_failed,
            allow_changed_flow=allow_changed_flow,
            execution_strategy=execution_strategy,
        )

    # --- saving it ------------------------------------------------------------------------------

    def serialize(self) -> dict[str, object]:
        """Return the flow as JSON-able data, from which `deserialize` builds it again.

        Raises `UnserializableError` for constructor arguments that have no saved form.
        """
        return flow_data(self)

    @classmethod
    def deserialize(cls, document: Mapping[str, object]) -> Flow:
        """Build a flow from what `serialize` gave.

        The routines' classes must have been imported. Raises `SavedStateError` with the path of
        what does not fit.
        """
        return cls.load(codec.decode(document), "$")

    @classmethod
    def load(cls, document: object, path: str, shape: Sequence[str] = ()) -> Flow:
        """Build a flow from decoded data; `path` is where in the document it stands.

        `shape` is what a job knows of it, to say what has changed since.
        """
        return load_flow(cls, document, path, shape)


def _mapping(mapping: object, source: str, event: str) -> dict[str, str]:
    if mapping is None:
        return {}
    if not isinstance(mapping, Mapping) or not all(
        isinstance(name, str) for pair in mapping.items() for name in pair
    ):
        raise FlowDefinitionError(
            f"param_mapping for {source}.{event} is {mapping!r}; it is a mapping"
            " {event field: handler parameter} of names"
        )
    return dict(mapping)


def _runtime(runtime: Runtime | None) -> Runtime:
    if runtime is not None:
        return runtime
    from routilux.runtime import default_runtime

    return default_runtime()


def _names(names: object) -> str:
    found = [repr(name) for name in cast("list[str]", names)]
    return ", ".join(found) or "none"


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")
