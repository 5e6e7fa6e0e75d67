"""Saved forms of errors and of recorded effects.

Invariants:
- An error that was read stays data; it is never turned into an exception.
"""

from __future__ import annotations

from routilux import codec
from routilux.codec.schema import check_fields
from routilux.core.wire.ranges import texts
from routilux.graph.messages import ErrorInfo, RecordedEffect

_ERROR_REQUIRED: codec.Fields = {"type": str, "message": str}
_ERROR_OPTIONAL: codec.Fields = {"where": str, "traceback": str, "notes": list, "leaves": list}
_EFFECT_FIELDS: codec.Fields = {"arguments": str, "result": object}


def error_data(error: ErrorInfo) -> dict[str, object]:
    """Return the saved form of an error."""
    data: dict[str, object] = {"type": error.type, "message": error.message}
    if error.where is not None:
        data["where"] = error.where
    if error.traceback is not None:
        data["traceback"] = error.traceback
    if error.notes:
        data["notes"] = list(error.notes)
    if error.leaves:
        data["leaves"] = [error_data(leaf) for leaf in error.leaves]
    return data


def load_error(data: object, path: str) -> ErrorInfo:
    """Make an `ErrorInfo` from its saved form."""
    f = check_fields(data, path, _ERROR_REQUIRED, _ERROR_OPTIONAL)
    info = ErrorInfo(f["type"], f["message"], f.get("where"), f.get("traceback"))
    if "notes" in f:
        info.notes = tuple(texts(f["notes"], f"{path}.notes"))
    if "leaves" in f:
        leaves = enumerate(f["leaves"])
        info.leaves = tuple(load_error(leaf, f"{path}.leaves[{i}]") for i, leaf in leaves)
    return info


def effect_data(effect: RecordedEffect, path: str) -> dict[str, object]:
    """Return the saved form of an effect."""
    return {
        "arguments": effect.arguments,
        "result": codec.encode(effect.result, f"{path}.result"),
    }


def load_effect(data: object, path: str) -> RecordedEffect:
    """Make a `RecordedEffect` from its saved form."""
    f = check_fields(data, path, _EFFECT_FIELDS)
    return RecordedEffect(**f)
