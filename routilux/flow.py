"""`Flow`: the graph of routines, as its author builds, runs and saves it.

Invariants:
- Running a flow does not change it; any number of jobs share it.
- A mistake is refused at the call that makes it, and leaves the flow as it was: an unknown
  routine, event or slot, a field that no event has, a connection that already exists.
- A job follows a plan, which is made when the job starts; `fingerprint` is the digest of its shape.
- The saved form holds names, arguments and connections. The code is that of the program that
  loads it: routines are built by their classes and connected by the same checks as any others.
- A flow that differs from the saved one after loading is refused, with every difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, cast

from routilux import codec
from routilux.codec.registry import error_text
from routilux.errors import (
    CorruptStateError,
    FlowDefinitionError,
    FlowMismatchError,
    UnknownRoutineError,
)
from routilux.graph.diff import mismatch
from routilux.graph.plan import (
    STRATEGIES,
    Connection,
    ExecutionStrategy,
    Graph,
    Plan,
    checked_connection,
    graph_of,
    names_of,
)
from routilux.graph.routine import Routine, checked_handler, find_class
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.core.state import JobState
    from routilux.run import Run

__all__ = ["Flow", "Runner", "set_default_runner"]

_STOP: Final = ErrorHandler()


class Runner(Protocol):
    """Runs flows: a `Runtime`, which this module must not import."""

    def execute(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> JobState:
        """See `Flow.execute`."""

    async def aexecute(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> JobState:
        """See `Flow.aexecute`."""

    def start(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> Run:
        """See `Flow.start`."""

    def resume(
        self,
        flow: Flow,
        job: JobState,
        *,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
    ) -> JobState:
        """See `Flow.resume`."""


_default_runner: Callable[[], Runner]


def set_default_runner(find: Callable[[], Runner]) -> None:
    """Set the function that returns the runner of a call that names none."""
    global _default_runner
    _default_runner = find


def _runner(given: Runner | None) -> Runner:
    return _default_runner() if given is None else given


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
        if execution_strategy not in STRATEGIES:
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
        connection = checked_connection(
            (source, self._routine(source), event),
            (target, self._routine(target), slot),
            param_mapping,
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
                f" {names_of(self._routines)}"
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
        if strategy not in STRATEGIES:
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
        runtime: Runner | None = None,
    ) -> JobState:
        """Run a new job from `entry` and return it when it rests.

        A failed job is returned, not raised: see `JobState.raise_for_status`. Raises
        `FlowDefinitionError` where `entry`, `slot` or `params` don't fit.
        """
        return _runner(runtime).execute(self, entry, params, slot=slot, job_id=job_id)

    async def aexecute(
        self,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runner | None = None,
    ) -> JobState:
        """Do what `execute` does without holding up the event loop."""
        return await _runner(runtime).aexecute(self, entry, params, slot=slot, job_id=job_id)

    def start(
        self,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runner | None = None,
    ) -> Run:
        """Run a new job in the background and return its handle."""
        return _runner(runtime).start(self, entry, params, slot=slot, job_id=job_id)

    def resume(
        self,
        job: JobState,
        *,
        runtime: Runner | None = None,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
    ) -> JobState:
        """Go on with a job that was loaded, paused or cut off, and return it when it rests.

        The job that is passed stays as it is. `retry_failed` gives failed tasks a fresh budget;
        `allow_changed_flow` goes on where every pending task still has its slot. Raises
        `NotResumableError` and `FlowMismatchError`.
        """
        return _runner(runtime).resume(
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
        return _flow_data(self)

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
        return _load_flow(cls, document, path, shape)


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")


# --- the saved form ------------------------------------------------------------------------------

_CHANGED: Final = (
    "use the classes as they were, or read the job alone by"
    " JobState.deserialize(document['job_state']) and resume it on a flow that fits"
    " with allow_changed_flow=True"
)
_FLOW_FIELDS: codec.Fields = {
    "flow_id": str,
    "execution_strategy": str,
    "max_workers": int,
    "error_handler": (dict, type(None)),
    "routines": list,
    "connections": list,
    "fingerprint": str,
}
_ROUTINE_FIELDS: codec.Fields = {
    "id": str,
    "routine": str,
    "args": list,
    "kwargs": dict,
    "error_handler": (dict, type(None)),
}
_CONNECTION_FIELDS: codec.Fields = {
    "source": str,
    "event": str,
    "target": str,
    "slot": str,
    "param_mapping": dict,
}


def _flow_data(flow: Flow) -> dict[str, object]:
    """Return a flow as JSON-able data."""
    return {
        "flow_id": flow.flow_id,
        "execution_strategy": flow.execution_strategy,
        "max_workers": flow.max_workers,
        "error_handler": _saved_handler(flow.error_handler, "$.flow.error_handler"),
        "routines": [
            {
                "id": routine_id,
                "routine": routine.saved_name(),
                "args": codec.encode(list(routine.arguments[0]), f"$.flow.routines[{index}].args"),
                "kwargs": codec.encode(routine.arguments[1], f"$.flow.routines[{index}].kwargs"),
                "error_handler": _saved_handler(
                    routine.error_handler, f"$.flow.routines[{index}].error_handler"
                ),
            }
            for index, (routine_id, routine) in enumerate(flow.routines.items())
        ],
        "connections": [
            {
                "source": c.source,
                "event": c.event,
                "target": c.target,
                "slot": c.slot,
                "param_mapping": dict(c.param_mapping),
            }
            for c in flow.connections
        ],
        "fingerprint": flow.fingerprint,
    }


def _load_flow(new: type[Flow], document: object, path: str, shape: Sequence[str]) -> Flow:
    """Build a flow from decoded data; `shape` is what a job knows of it."""
    data = codec.check_fields(document, path, _FLOW_FIELDS, {})
    try:
        flow = new(
            cast(str, data["flow_id"]),
            execution_strategy=cast("ExecutionStrategy", data["execution_strategy"]),
            max_workers=cast(int, data["max_workers"]),
        )
    except FlowDefinitionError as error:
        raise CorruptStateError(path, str(error)) from None
    flow.set_error_handler(_loaded_handler(data["error_handler"], f"{path}.error_handler"))
    for index, entry in enumerate(cast(list[object], data["routines"])):
        _load_routine(flow, entry, f"{path}.routines[{index}]")
    misfit: tuple[str, str] | None = None
    for index, entry in enumerate(cast(list[object], data["connections"])):
        place = f"{path}.connections[{index}]"
        edge = codec.check_fields(entry, place, _CONNECTION_FIELDS, {})
        try:
            flow.connect(**cast("dict[str, str]", edge))  # type: ignore[arg-type]  # checked
        except FlowDefinitionError as error:
            misfit = misfit or (place, str(error))  # connect the rest, to list all differences
    if misfit is None and flow.fingerprint != data["fingerprint"]:
        misfit = (
            f"{path}.fingerprint",
            "the routines' slots and events differ from those that were saved",
        )
    if misfit is not None:
        place, trouble = misfit
        raise FlowMismatchError(place, mismatch(trouble, _CHANGED, shape or flow.shape, flow.shape))
    return flow


def _load_routine(flow: Flow, entry: object, place: str) -> None:
    data = codec.check_fields(entry, place, _ROUTINE_FIELDS, {})
    name = cast(str, data["routine"])
    found = find_class(name)
    if found is None:
        raise UnknownRoutineError(
            f"{place}.routine",
            f"no routine class {name!r} is defined in this program; import the module that"
            " defines it before loading (a class of another program's __main__ or one made"
            " inside a function needs a routine_name)",
        )
    args = cast(list[object], data["args"])
    kwargs = cast(dict[str, object], data["kwargs"])
    handler = _loaded_handler(data["error_handler"], f"{place}.error_handler")
    try:
        routine = found(*args, **kwargs)
    except Exception as error:
        raise CorruptStateError(
            place, f"{name} can't be built from its saved arguments: {error_text(error)}"
        ) from error
    try:
        flow.add_routine(routine, cast(str, data["id"]))
        routine.set_error_handler(handler)
    except FlowDefinitionError as error:
        raise CorruptStateError(place, str(error)) from None


def _saved_handler(handler: ErrorHandler | None, path: str) -> object:
    return None if handler is None else handler.serialize(path)


def _loaded_handler(data: object, path: str) -> ErrorHandler | None:
    return None if data is None else ErrorHandler.deserialize(data, path)
