"""Makes a flow from routines and plain functions: `flow_factory(chain=[parse, double])`.

Invariants:
- A function is called like a handler: its parameters name fields of the payload, and `**rest` takes
  the others. A single parameter called `payload` takes the whole payload as a dict.
- A function of `gather=` takes one parameter, a `Gathered`, and runs once with all results.
- The dict that a function returns is emitted as `output`; None emits nothing.
- The fields of `output` are the parameters of the next functions. If there are none, or if a next
  function takes the whole payload or gathers, the function may emit any field.
- A function is saved by its name. Loading finds it in a module that is imported already, and
  neither imports nor calls it. A function without such a name, such as a lambda, can't be saved.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, cast

from pytest_routilux.frames import definition_of, object_named
from pytest_routilux.text import shown
from routilux import Emission, Flow, FlowDefinitionError, Routine, Slot, register_type
from routilux.codec.copying import copy_value, is_flat
from routilux.graph.routine import Binding

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from routilux import ErrorHandler, ExecutionStrategy

Function = Callable[..., object]
Node = Routine | Function


class FlowFactory:
    """A factory of flows with the shapes `chain`, `fan_out`, `fan_in` and `gather`.

    `chain=[a, b]` connects each entry to the next, `fan_out=(source, [a, b])` one to several, and
    `fan_in=([a, b], target)` several to one, which runs once for each result. The target of
    `gather=([a, b], target)` runs once, with all results as a `Gathered`. The shapes can be
    combined. A function or routine that two shapes share is one routine of the flow, so `fan_out`
    and `gather` with the same middle make a diamond. Within one shape each entry is a routine of
    its own. Ids are the names of functions and of routine classes; a name that is taken gets `_2`,
    `_3`, …

    Routines are connected from `output` (else their only event) to `input` (else their only slot
    besides `trigger`, else `trigger`), and for `gather` to their only gather slot. The other
    options are those of `Flow`. Raises `FlowDefinitionError` for routines that can't be connected.

    >>> def parse(text): return {"n": int(text)}
    >>> def double(n): return {"n": 2 * n}
    >>> flow = FlowFactory()(chain=[parse, double, double])
    >>> list(flow.routines)
    ['parse', 'double', 'double_2']
    >>> flow.execute("parse", {"text": "21"}).outputs[0].data
    {'n': 84}
    >>> def negate(n): return {"n": -n}
    >>> def both(found): return {"all": [result["n"] for result in found]}
    >>> flow = FlowFactory()(fan_out=(parse, [double, negate]), gather=([double, negate], both))
    >>> [output.data for output in flow.execute("parse", {"text": "21"}).outputs]
    [{'all': [42, -21]}]
    """

    def __call__(
        self,
        *,
        chain: Sequence[Node] = (),
        fan_out: tuple[Node, Sequence[Node]] | None = None,
        fan_in: tuple[Sequence[Node], Node] | None = None,
        gather: tuple[Sequence[Node], Node] | None = None,
        flow_id: str | None = None,
        execution_strategy: ExecutionStrategy = "sequential",
        max_workers: int = 4,
        error_handler: ErrorHandler | None = None,
    ) -> Flow:
        """Return a new flow of the given routines and functions."""
        draft = _Draft()
        draft.edges += pairwise(draft.add(chain, "chain"))
        if fan_out is not None:
            source, targets = _pair(fan_out, "fan_out=(source, [target, ...])")
            first, *rest = draft.add([cast(Node, source), *_nodes(targets, "fan_out")], "fan_out")
            draft.edges += [(first, target) for target in rest]
        for name, shape in (("fan_in", fan_in), ("gather", gather)):
            if shape is None:
                continue
            sources, target = _pair(shape, f"{name}=([source, ...], target)")
            *rest, last = draft.add([*_nodes(sources, name), cast(Node, target)], name)
            draft.edges += [(source, last) for source in rest]
            if name == "gather":
                draft.gathers.add(last)
        if not draft.nodes:
            raise FlowDefinitionError(
                "the flow would be empty; give chain=[...], fan_out=(source, [...]),"
                " fan_in=([...], target) or gather=([...], target)"
            )
        flow = Flow(flow_id, execution_strategy=execution_strategy, max_workers=max_workers)
        flow.set_error_handler(error_handler)
        return draft.build(flow)


class FunctionRoutine(Routine):
    """A routine whose slots `trigger` and `input` both call one plain function.

    `fields` are the fields of the event `output`; with `more` the function may return others too.
    With `gather` it has the gather slot `input` alone.
    """

    routine_name = "pytest_routilux.FunctionRoutine"

    def __init__(
        self, function: PlainFunction, fields: Sequence[str], more: bool, gather: bool = False
    ) -> None:
        super().__init__()
        self.function = function
        self.more = more
        handler = self._handler(takes_payload=function.takes_payload and not gather)
        if not gather:
            self.define_slot("trigger", handler=handler)
        self.define_slot("input", handler=handler, gather=gather)
        self.output = self.define_event("output", fields)

    def _handler(self, *, takes_payload: bool) -> Function:
        function = self.function.function
        if takes_payload:

            def take_all(**payload: object) -> object:
                return self._returned(function(payload))

            async def await_all(**payload: object) -> None:
                result: Any = function(payload)
                self._emit_output(await result)

            return await_all if inspect.iscoroutinefunction(function) else take_all

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def await_fields(**payload: object) -> None:
                self._emit_output(await function(**payload))

            return await_fields

        @wraps(function)
        def take_fields(**payload: object) -> object:
            return self._returned(function(**payload))

        return take_fields

    def _returned(self, result: object) -> object:
        if inspect.iscoroutine(result):
            return self._emit_awaited(result)
        self._emit_output(result)
        return None

    async def _emit_awaited(self, coroutine: Coroutine[object, object, object]) -> None:
        self._emit_output(await coroutine)

    def _emit_output(self, result: object) -> None:
        name = self.function.name
        if result is None:
            return
        if type(result) is not dict or not all(type(key) is str for key in result):
            raise FlowDefinitionError(
                f"{name} returned {shown(result)}; return the fields of the"
                " event 'output' as a dict with str keys, or None to emit no event"
            )
        if not self.more and not self.output.allowed.issuperset(result):
            unknown = [key for key in result if key not in self.output.allowed]
            raise FlowDefinitionError(
                f"{name} returned the keys {_list(unknown)}, but no next function takes them; the"
                f" next functions take {_list(self.output.fields) or 'no fields'}; add parameters"
                " or **rest to a next function"
            )
        flat = is_flat(result)
        payload = result.copy() if flat else copy_value(result)
        self.ctx.outbox.append(Emission("output", payload, flat))


@dataclass(frozen=True, slots=True)
class PlainFunction:
    """A plain function that is saved by name."""

    function: Function

    @property
    def name(self) -> str:
        """The function's `__name__`, or `lambda` for a lambda."""
        name: str = self.function.__name__
        return "lambda" if name == "<lambda>" else name

    @property
    def takes_payload(self) -> bool:
        """Whether the function's only parameter is called `payload`."""
        parameters = inspect.signature(self.function).parameters
        return [p.kind for p in parameters.values()] == [
            inspect.Parameter.POSITIONAL_OR_KEYWORD
        ] and "payload" in parameters

    @property
    def module(self) -> str:
        """The name of the module that defines the function."""
        return self.function.__module__

    def saved_name(self) -> str:
        """Return the importable name `module:qualname`, or raise `ValueError`."""
        name = f"{self.module}:{self.function.__qualname__}"
        if _found(name) is not self.function:
            place = f" ({where})" if (where := definition_of(self.function)) else ""
            raise ValueError(
                f"another process can't import {self.name}{place} as {name};"
                " define the function with def at the top level of a module"
            )
        return name

    @classmethod
    def of_saved_name(cls, name: object) -> PlainFunction:
        """Find the function called `name` (`module:qualname`) in the imported modules."""
        found = _found(name) if type(name) is str else None
        if found is None:
            raise ValueError(
                f"no imported module defines the function {name!r}; import the module of the"
                " function, then load again"
            )
        return cls(found)


register_type(
    PlainFunction,
    name="pytest_routilux.function",
    encode=PlainFunction.saved_name,
    decode=PlainFunction.of_saved_name,
)


def _found(name: str) -> Function | None:
    found = object_named(name)
    return found if inspect.isfunction(found) else None


_ANY: Final = Binding(frozenset(), frozenset(), True)  # a gather takes every payload


class _Draft:
    """The nodes and edges of a flow that is not built yet."""

    def __init__(self) -> None:
        self.nodes: dict[str, Routine | PlainFunction] = {}
        self.edges: list[tuple[str, str]] = []
        self.gathers: set[str] = set()
        self._ids: dict[tuple[Node, int], str] = {}

    def add(self, nodes: Sequence[Node], where: str) -> list[str]:
        """Add all new nodes, and return the ids of `nodes`."""
        seen: Counter[Node] = Counter()
        ids = []
        for node in _nodes(nodes, where):
            seen[node] += 1
            key = (node, seen[node])
            if key not in self._ids:
                self._ids[key] = self._new(node, where)
            ids.append(self._ids[key])
        return ids

    def _new(self, node: Node, where: str) -> str:
        entry: Routine | PlainFunction
        if isinstance(node, Routine):
            entry, name = node, type(node).__name__
        elif inspect.isfunction(node) or inspect.ismethod(node):
            entry = PlainFunction(node)
            name = entry.name
        elif isinstance(node, type) and issubclass(node, Routine):
            raise FlowDefinitionError(
                f"{where}: {node.__name__} is a class; pass an instance, {node.__name__}(...)"
            )
        else:
            raise FlowDefinitionError(
                f"{where}: {shown(node)} is neither a routine nor a function; pass one of these"
            )
        routine_id, number = name, 1
        while routine_id in self.nodes:
            number += 1
            routine_id = f"{name}_{number}"
        self.nodes[routine_id] = entry
        return routine_id

    def build(self, flow: Flow) -> Flow:
        """Add the draft's routines and connections to the empty `flow`."""
        for routine_id, node in self.nodes.items():
            if isinstance(node, PlainFunction):
                node = self._function_routine(routine_id, node)
            flow.add_routine(node, routine_id)
        for source, target in self.edges:
            event = _event_of(flow.routines[source], source)
            flow.connect(source, event, target, self._slot(flow.routines[target], target).name)
        return flow

    def _function_routine(self, routine_id: str, function: PlainFunction) -> FunctionRoutine:
        targets = [self._binding(target) for source, target in self.edges if source == routine_id]
        fields = list(dict.fromkeys(name for target in targets for name in sorted(target.names)))
        more = not targets or any(target.takes_rest for target in targets)
        if routine_id in self.gathers:
            return FunctionRoutine(function, fields, more, True)
        return FunctionRoutine(function, fields, more)

    def _binding(self, routine_id: str) -> Binding:
        node = self.nodes[routine_id]
        if isinstance(node, PlainFunction):
            node = FunctionRoutine(node, (), True, routine_id in self.gathers)
        slot = self._slot(node, routine_id)
        return _ANY if slot.gather else slot.binding

    def _slot(self, routine: Routine, routine_id: str) -> Slot:
        if routine_id not in self.gathers:
            return _slot_of(routine, routine_id)
        gathers = [name for name, slot in routine.slots.items() if slot.gather]
        if not gathers:
            raise FlowDefinitionError(
                f"gather: {routine_id} has no gather slot; define one by define_slot(...,"
                " gather=True), or use fan_in"
            )
        return routine.slots[_one_of(gathers, "input", "gather slot", routine_id)]


def _event_of(routine: Routine, routine_id: str) -> str:
    own = [name for name in routine.events if name != "error"]
    return _one_of(own, "output", "event", routine_id)


def _slot_of(routine: Routine, routine_id: str) -> Slot:
    own = [name for name in routine.slots if name != "trigger"] or list(routine.slots)
    return routine.slots[_one_of(own, "input", "slot", routine_id)]


def _one_of(names: Sequence[str], preferred: str, noun: str, routine_id: str) -> str:
    if preferred in names:
        return preferred
    if len(names) == 1:
        return names[0]
    raise FlowDefinitionError(
        f"{routine_id} has these {noun}s: {_list(names) or 'none'}; flow_factory can't"
        f" choose one, since none is named {preferred!r}; connect this routine with Flow.connect"
    )


def _pair(value: object, form: str) -> tuple[object, object]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise FlowDefinitionError(f"expected {form}, got {shown(value)}")
    return value


def _nodes(value: object, where: str) -> list[Node]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise FlowDefinitionError(
            f"{where} needs a list of routines and functions, not {shown(value)}"
        )
    return list(value)


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names)
