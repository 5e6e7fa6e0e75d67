"""`Flow`: builds, runs and saves a graph of routines.

Invariants:
- Running a flow does not change it; any number of jobs share it.
- A mistake is refused at the call that makes it, and leaves the flow as it was: an unknown
  routine, event or slot, a field that no event has, a connection that already exists.
- A job follows a plan, which is made when the job starts; `fingerprint` is the digest of its shape.
- The saved form holds names, arguments and connections, no code. The program that loads it builds
  the routines by its own classes and connects them by the same checks.
- A loaded flow that differs from the saved one is refused, and the error lists every difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypedDict, Unpack

from routilux import codec
from routilux.errors import CorruptStateError, FlowDefinitionError, FlowMismatchError
from routilux.graph.diff import mismatch
from routilux.graph.gathers import ReturnCheck, gathers_of
from routilux.graph.plan import (
    STRATEGIES,
    Connection,
    ExecutionStrategy,
    Graph,
    Plan,
    checked_connection,
    graph_of,
)
from routilux.graph.routine import Routine, checked_handler, names_of
from routilux.graph.saved_routine import load_handler, load_routine, saved_handler, saved_routine
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.core.state import JobState
    from routilux.graph.gathers import Gathers
    from routilux.run import Run

_STOP: Final = ErrorHandler()
_CHANGED: Final = (
    "use the old routine classes, or load only the job by"
    " JobState.deserialize(document['job_state']) and resume the job on a changed flow"
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
_CONNECTION_FIELDS: codec.Fields = {
    "source": str,
    "event": str,
    "target": str,
    "slot": str,
    "param_mapping": dict,
}

Params: TypeAlias = "Mapping[str, object] | None"
"""The arguments, by parameter name, of the handler that runs first in a job."""


class JobOptions(TypedDict, total=False):
    """Optional arguments for starting a job; see `Flow.execute`."""

    slot: str
    """The slot of the entry routine that gets `params`; by default `trigger`."""
    job_id: str | None
    """The id of the job; by default 32 random hexadecimal digits."""


class ResumeOptions(TypedDict, total=False):
    """Optional arguments for resuming a job; see `Flow.resume`."""

    retry_failed: bool
    """Whether failed tasks get a fresh budget; without it a failed job is refused."""
    allow_changed_flow: bool
    """Whether a flow of another shape may resume the job, if each pending task has its slot."""
    execution_strategy: ExecutionStrategy | None
    """The strategy for this run; by default that of the flow."""


class Runner(Protocol):  # avoids a circular import
    """The methods of `Runtime` that a flow calls."""

    def execute(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> JobState: ...

    async def aexecute(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> JobState: ...

    def start(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> Run: ...

    def resume(self, flow: Flow, job: JobState, **options: Unpack[ResumeOptions]) -> JobState: ...


_default_runner: Callable[[], Runner]


def set_default_runner(find: Callable[[], Runner]) -> None:
    """Set the function that finds the runner for calls without `runtime`."""
    global _default_runner
    _default_runner = find


def _runner(given: Runner | None) -> Runner:
    return _default_runner() if given is None else given


class Flow:
    """A graph of routines and connections.

    Strategy "sequential" runs one step of a job at a time, "concurrent" up to `max_workers`.
    Running a flow does not change it; any number of jobs may use it at once. An invalid argument
    raises `FlowDefinitionError`.

    >>> from routilux import Flow, Routine
    >>> class Price(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.price)
    ...         self.define_event("output", ["total"])
    ...     def price(self, count):
    ...         self.emit("output", total=2 * count)
    >>> class Charge(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("input", handler=self.charge)
    ...         self.define_event("output", ["paid"])
    ...     def charge(self, amount):
    ...         self.emit("output", paid=amount)
    >>> flow = Flow("orders")
    >>> flow.add_routine(Price(), "price"), flow.add_routine(Charge(), "charge")
    ('price', 'charge')
    >>> print(flow.connect("price", "output", "charge", "input", {"total": "amount"}))
    price.output -> charge.input
    >>> flow.execute("price", {"count": 21}).outputs[0].data
    {'paid': 42}
    """

    def __init__(
        self,
        flow_id: str | None = None,
        *,
        execution_strategy: ExecutionStrategy = "sequential",
        max_workers: int = 4,
    ) -> None:
        if flow_id is not None and (not isinstance(flow_id, str) or not flow_id):
            raise FlowDefinitionError(f"a flow's id must be a non-empty string, not {flow_id!r}")
        _check_strategy(execution_strategy)
        if type(max_workers) is not int or max_workers < 1:
            raise FlowDefinitionError(
                f"max_workers must be an int of 1 or more, not {max_workers!r}"
            )
        self.flow_id: str = flow_id if flow_id is not None else "flow"
        """The id of the flow; a worker finds the flow of a job by it."""
        self.execution_strategy: ExecutionStrategy = execution_strategy
        """"sequential" runs one step of a job at a time, "concurrent" up to `max_workers`."""
        self.max_workers: int = max_workers
        """The most steps of a concurrent job in flight, 1 or more."""
        self._routines: dict[str, Routine] = {}
        self._connections: list[Connection] = []
        self._ends: set[tuple[str, str, str, str]] = set()
        self._error_handler: ErrorHandler | None = None
        self._splits: dict[str, str] = {}  # by the routine that gathers
        self._returns = ReturnCheck()
        self._graph: Graph | None = None  # made when it is first needed
        self._plan: Plan | None = None  # of the last job
        self._gathers: Gathers | None = None  # made with the first plan of that graph
        self._gathers_of: Graph | None = None
        self._declared = 0  # slots and events that existed when the graph was made
        self._has_async = False  # whether a slot had an async handler then

    # --- building it ----------------------------------------------------------------------------

    def add_routine(
        self,
        routine: Routine,
        routine_id: str | None = None,
        *,
        gather_per: str | None = None,
    ) -> str:
        """Add `routine` to the flow, and return the routine's id.

        The default id is the name of the class. `gather_per` is the id of a routine upstream: the
        gather slots of `routine` then run once for each task of that routine, not once for the
        job. Raises `FlowDefinitionError` if the id is taken, or if `routine` has no gather slot
        for `gather_per`. A plan of the flow checks that the routine `gather_per` is upstream.
        """
        if not isinstance(routine, Routine):
            raise FlowDefinitionError(
                f"{routine!r} is not a Routine; derive its class from routilux.Routine"
            )
        name = type(routine).__name__ if routine_id is None else routine_id
        if not isinstance(name, str) or not name:
            raise FlowDefinitionError(
                f"a routine's id must be a non-empty string, not {routine_id!r}"
            )
        if name in self._routines:
            raise FlowDefinitionError(
                f"flow {self.flow_id!r} already has a routine {name!r};"
                " pass another routine_id to add_routine"
            )
        if gather_per is not None:
            self._set_split(name, routine, gather_per)
        self._routines[name] = routine
        self._graph = None
        return name

    def _set_split(self, routine_id: str, routine: Routine, split: object) -> None:
        if not isinstance(split, str) or not split:
            raise FlowDefinitionError(
                f"gather_per of {routine_id!r} must be the id of a routine, not {split!r}"
            )
        if not any(slot.gather for slot in routine.slots.values()):
            raise FlowDefinitionError(
                f"gather_per of {routine_id!r} is {split!r}, but the routine has no gather slot;"
                " define one by define_slot(..., gather=True)"
            )
        self._splits[routine_id] = split

    def connect(
        self,
        source: str,
        event: str,
        target: str,
        slot: str,
        param_mapping: Mapping[str, str] | None = None,
    ) -> Connection:
        """Connect `event` of the routine `source` to `slot` of the routine `target`.

        `param_mapping` is {event field: handler parameter}. Raises `FlowDefinitionError` for an
        unknown end, a field or parameter that does not exist, a required parameter that no field
        covers, a connection that already exists, or a gather that could then reach itself.
        """
        connection = checked_connection(
            (source, self._routine(source), event),
            (target, self._routine(target), slot),
            param_mapping,
        )
        ends = connection.ends
        if ends in self._ends:
            raise FlowDefinitionError(f"{connection} already exists; remove the second connect()")
        self._returns.add(ends, gather=self._routines[target].slots[slot].gather)
        self._connections.append(connection)
        self._ends.add(ends)
        self._graph = None
        return connection

    def set_error_handler(self, handler: ErrorHandler | None) -> None:
        """Set the default error handler of the routines; None means STOP."""
        self._error_handler = checked_handler(handler, f"flow {self.flow_id!r}")

    @property
    def routines(self) -> Mapping[str, Routine]:
        """A read-only mapping from id to routine."""
        return MappingProxyType(self._routines)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections of the flow, in the order of the `connect` calls."""
        return tuple(self._connections)

    @property
    def gather_per(self) -> Mapping[str, str]:
        """A read-only mapping from the id of a routine to its `gather_per`."""
        return MappingProxyType(self._splits)

    @property
    def error_handler(self) -> ErrorHandler | None:
        """The flow's error handler; None if no handler is set."""
        return self._error_handler

    def _routine(self, routine_id: str) -> Routine:
        if not isinstance(routine_id, str) or routine_id not in self._routines:
            raise FlowDefinitionError(
                f"flow {self.flow_id!r} has no routine {routine_id!r}; its routines:"
                f" {names_of(self._routines)}"
            )
        return self._routines[routine_id]

    # --- reading it -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[str, ...]:
        """The flow's graph as sorted lines of text."""
        return self._shape_and_routes()[0]

    @property
    def fingerprint(self) -> str:
        """A digest of `shape`, to compare two flows."""
        return "sha256:" + hashlib.sha256("\n".join(self.shape).encode()).hexdigest()

    def plan(self, execution_strategy: ExecutionStrategy | None = None) -> Plan:
        """Return a fixed copy of the flow for running a job."""
        strategy = execution_strategy or self.execution_strategy
        _check_strategy(strategy)
        graph = shape, routes = self._shape_and_routes()
        if self._gathers_of is not graph:
            self._gathers = gathers_of(
                self.flow_id, self._routines, (c.ends for c in self._connections), self._splits
            )
            self._gathers_of = graph
        default = self._error_handler or _STOP
        handlers = {name: r._error_handler or default for name, r in self._routines.items()}
        width = self.max_workers if strategy == "concurrent" else 1
        plan = self._plan
        if (
            plan is None
            or plan.routes is not routes
            or plan.flow_id != self.flow_id
            or plan.width != width
            or plan.handlers != handlers
            or plan.routines != self._routines
        ):
            plan = self._plan = Plan(
                self.flow_id,
                shape,
                dict(self._routines),
                routes,
                width,
                handlers,
                self._gathers,
                self._has_async,
            )
        return plan  # that of the last job if nothing has changed: jobs share it

    def _shape_and_routes(self) -> Graph:
        # A routine may have been given slots and events after it was added.
        declared = sum(len(r._slots) + len(r._events) for r in self._routines.values())
        if self._graph is None or self._declared != declared:
            self._graph = graph_of(self._routines, self._connections, self._splits)
            self._declared = declared
            self._has_async = any(
                slot.is_async for r in self._routines.values() for slot in r._slots.values()
            )
        return self._graph

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart; a thick line leads to a gather slot.

        >>> print(Flow("empty").to_mermaid())
        flowchart LR
        """
        number = {routine_id: f"r{i}" for i, routine_id in enumerate(self._routines)}
        lines = ["flowchart LR"]
        for routine_id in self._routines:
            split = self._splits.get(routine_id)
            text = routine_id if split is None else f"{routine_id} (gathers per {split})"
            lines.append(f'    {number[routine_id]}["{_quoted(text)}"]')
        for c in self._connections:
            line = "==>" if self._routines[c.target].slots[c.slot].gather else "-->"
            lines.append(f'    {number[c.source]} {line}|"{_quoted(c.event)}"| {number[c.target]}')
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
        params: Params = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runner | None = None,
    ) -> JobState:
        """Run a new job from routine `entry`, and return the stopped job.

        `runtime` is the `Runtime` that runs it, by default that of `use_runtime`. A failed job is
        returned, not raised: see `JobState.raise_for_status`. Raises `FlowDefinitionError` where
        `entry`, `slot` or `params` don't fit.
        """
        return _runner(runtime).execute(self, entry, params, slot=slot, job_id=job_id)

    async def aexecute(
        self,
        entry: str,
        params: Params = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runner | None = None,
    ) -> JobState:
        """Run a new job as `execute` does, without blocking the event loop."""
        return await _runner(runtime).aexecute(self, entry, params, slot=slot, job_id=job_id)

    def start(
        self,
        entry: str,
        params: Params = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        runtime: Runner | None = None,
    ) -> Run:
        """Start a new job in the background, and return the job's `Run`."""
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
        """Resume a loaded, paused or interrupted job, and return the stopped job.

        The given job does not change. `retry_failed` gives failed tasks a fresh budget.
        `allow_changed_flow` accepts a flow of another shape on which every pending task still
        has its slot, and the gathers that have begun are the same. A job that is kept in a store
        needs a runtime with this store. Raises `NotResumableError` and `FlowMismatchError`.
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
        """Return the flow as data for JSON.

        Raises `UnserializableError` for constructor arguments that have no saved form.
        """
        return {
            "flow_id": self.flow_id,
            "execution_strategy": self.execution_strategy,
            "max_workers": self.max_workers,
            "error_handler": saved_handler(self.error_handler, "$.flow"),
            "routines": [
                saved_routine(
                    routine_id, routine, self._splits.get(routine_id), f"$.flow.routines[{index}]"
                )
                for index, (routine_id, routine) in enumerate(self._routines.items())
            ],
            "connections": [
                {name: getattr(edge, name) for name in _CONNECTION_FIELDS}
                | {"param_mapping": dict(edge.param_mapping)}
                for edge in self._connections
            ],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def deserialize(cls, document: Mapping[str, object]) -> Flow:
        """Build a flow from data that `serialize` returned.

        The program must have imported the routines' classes. Raises `SavedStateError` with the
        path of a value that does not fit.
        """
        return cls.load(codec.decode(document), "$")

    @classmethod
    def load(cls, document: object, path: str, shape: Sequence[str] = ()) -> Flow:
        """Build a flow from decoded data.

        `path` is the data's place in a document. `shape` is the shape in a job, to report changes.
        """
        data = codec.check_fields(document, path, _FLOW_FIELDS)
        try:
            flow = cls(
                data["flow_id"],
                execution_strategy=data["execution_strategy"],
                max_workers=data["max_workers"],
            )
        except FlowDefinitionError as error:
            raise CorruptStateError(path, str(error)) from None
        flow.set_error_handler(load_handler(data, path))
        misfit: tuple[str, str] | None = None
        for index, entry in enumerate(data["routines"]):
            place = f"{path}.routines[{index}]"
            routine_id, routine, split = load_routine(entry, place)
            try:
                flow.add_routine(routine, routine_id)
            except FlowDefinitionError as error:
                raise CorruptStateError(place, str(error)) from None
            try:
                if split is not None:
                    flow._set_split(routine_id, routine, split)
            except FlowDefinitionError as error:
                misfit = misfit or (f"{place}.gather_per", str(error))
        for index, entry in enumerate(data["connections"]):
            place = f"{path}.connections[{index}]"
            edge = codec.check_fields(entry, place, _CONNECTION_FIELDS)
            try:
                flow.connect(**edge)
            except FlowDefinitionError as error:
                misfit = misfit or (place, str(error))  # connect the rest, to list all differences
        flow._graph = None
        if misfit is None and flow.fingerprint != data["fingerprint"]:
            misfit = (
                f"{path}.fingerprint",
                "the routines' slots and events differ from those that were saved",
            )
        if misfit is not None:
            place, reason = misfit
            raise FlowMismatchError(
                place, mismatch(reason, _CHANGED, shape or flow.shape, flow.shape)
            )
        return flow


def _check_strategy(strategy: object) -> None:
    if strategy not in STRATEGIES:
        raise FlowDefinitionError(
            f"execution_strategy is {strategy!r}; choose 'sequential' or 'concurrent'"
        )


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")
