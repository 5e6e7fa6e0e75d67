"""The saved form of a flow, and how a flow is built from it.

Invariants:
- The saved form holds names, arguments and connections; the code is that of the loading program.
- Routines are built by their classes, which the program has already imported, and are connected
  with the same checks as any other flow. A refusal names the path.
- A flow that differs from the saved one is refused, and the error lists all differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from routilux import codec
from routilux.errors import (
    CorruptStateError,
    FlowDefinitionError,
    FlowMismatchError,
    UnknownRoutineError,
)
from routilux.policy import ErrorHandler
from routilux.routine import find_class
from routilux.shape import mismatch
from routilux.tags import said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux.flow import ExecutionStrategy, Flow

__all__ = ["flow_data", "load_flow"]


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


def flow_data(flow: Flow) -> dict[str, object]:
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


def load_flow(new: type[Flow], document: object, path: str, shape: Sequence[str]) -> Flow:
    """Build a flow from decoded data; `shape` is the flow's shape as the job has saved it."""
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
            place, f"{name} can't be built from its saved arguments: {said(error)}"
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
