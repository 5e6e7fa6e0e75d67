"""Checks the fields and types of a record from JSON.

Invariants:
- A field that is missing, unknown or of another type is refused with its path, never repaired.
- Paths are built on failure only: one load checks ten thousand records.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from routilux.codec.equality import path_step
from routilux.codec.registry import type_name
from routilux.errors import CorruptStateError

Fields = Mapping[str, type | tuple[type, ...]]
"""The fields of a record, each with its exact type or types; `object` allows any."""


_NONE: Final[Fields] = MappingProxyType({})


def fits(data: Mapping[str, object], required: Fields, optional: Fields = _NONE) -> bool:
    """Return whether a quick check already shows that `data` is valid.

    >>> fits({"seq": 1}, {"seq": int}), fits({"seq": True}, {"seq": int})
    (True, False)
    """
    found = 0
    for name, value in data.items():
        kind = type(value)
        if required.get(name) is kind:
            found += 1
        elif optional.get(name) is not kind:
            return False
    return found == len(required)


def check_fields(
    data: object, path: str, required: Fields, optional: Fields = _NONE
) -> dict[str, Any]:
    """Check the names and types of all fields, and return `data`.

    A subclass does not count: True is no int. Raises `CorruptStateError` with the path of the field
    that is missing, unknown or of another type.

    >>> check_fields({"seq": 1}, "$", {"seq": int}, {"error": (str, type(None))})
    {'seq': 1}
    """
    if type(data) is not dict:
        raise CorruptStateError(path, f"is of type {type_name(type(data))}, not a JSON object")
    if fits(data, required, optional):
        return data
    if not required.keys() <= data.keys():
        missing = next(name for name in required if name not in data)
        raise CorruptStateError(f"{path}{path_step(missing)}", "is missing")
    for name, value in data.items():
        expected = required.get(name) or optional.get(name)
        kind = type(value)
        if kind is expected or expected is object:
            continue
        if expected is None:
            raise CorruptStateError(f"{path}{path_step(name)}", "is an unknown field")
        kinds = expected if isinstance(expected, tuple) else (expected,)
        if kind not in kinds:
            names = " or ".join(map(type_name, kinds))
            reason = f"is of type {type_name(kind)}, not {names}"
            raise CorruptStateError(f"{path}{path_step(name)}", reason)
    return data
