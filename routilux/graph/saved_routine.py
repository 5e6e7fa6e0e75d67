"""Saved forms of the routines and the error handlers of a flow.

Invariants:
- A saved routine holds its class's name and its constructor's arguments. Loading imports nothing:
  the program must have defined the class already.
- A routine that can't be built is refused with its path in the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux import codec
from routilux.codec.registry import failure_text
from routilux.errors import CorruptStateError, FlowDefinitionError, UnknownRoutineError
from routilux.graph.routine import find_class
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux.graph.routine import Routine

_FIELDS: codec.Fields = {
    "id": str,
    "routine": str,
    "args": list,
    "kwargs": dict,
    "error_handler": (dict, type(None)),
}
_OPTIONAL: codec.Fields = {"gather_per": str}


def saved_routine(
    routine_id: str, routine: Routine, split: str | None, path: str
) -> dict[str, object]:
    """Return a routine as data for JSON; `split` is its `gather_per`."""
    args, kwargs = routine.arguments
    per = {} if split is None else {"gather_per": split}
    return {
        "id": routine_id,
        "routine": routine.saved_name(),
        "args": codec.encode(list(args), f"{path}.args"),
        "kwargs": codec.encode(kwargs, f"{path}.kwargs"),
        "error_handler": saved_handler(routine.error_handler, path),
        **per,
    }


def load_routine(entry: object, path: str) -> tuple[str, Routine, str | None]:
    """Return the id, the routine and the `gather_per` that the decoded data describes."""
    data = codec.check_fields(entry, path, _FIELDS, _OPTIONAL)
    name = data["routine"]
    found = find_class(name)
    if found is None:
        raise UnknownRoutineError(
            f"{path}.routine",
            f"no routine class {name!r} is defined in this program; import the module that"
            " defines it before loading; if a function or another program's __main__"
            " defines the class, give the class a routine_name",
        )
    handler = load_handler(data, path)
    try:
        routine = found(*data["args"], **data["kwargs"])
    except Exception as error:
        raise CorruptStateError(
            path,
            f"building {name} from its saved arguments failed ({failure_text(error)}); keep the"
            " parameters of its constructor, and give new parameters a default",
        ) from error
    try:
        routine.set_error_handler(handler)
    except FlowDefinitionError as error:
        raise CorruptStateError(path, str(error)) from None
    return data["id"], routine, data.get("gather_per")


def saved_handler(handler: ErrorHandler | None, owner: str) -> object:
    """Return the saved form of an error handler."""
    return None if handler is None else handler.serialize(f"{owner}.error_handler")


def load_handler(data: Mapping[str, object], owner: str) -> ErrorHandler | None:
    """Build a flow's or routine's error handler; None if there is none."""
    saved = data["error_handler"]
    return None if saved is None else ErrorHandler.deserialize(saved, f"{owner}.error_handler")
