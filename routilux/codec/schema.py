"""Reading a record strictly: exactly these fields, of exactly these types.

Laws:
- A field that is missing, unknown or of another type is refused with its path, never repaired.
- Paths are built on failure only; this runs ten thousand times in one load.
- One look says yes; only what it does not take is looked at field by field, to say where and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from routilux.codec.equality import SCALARS
from routilux.codec.registry import type_name
from routilux.errors import CorruptStateError

__all__ = ["Fields", "check_fields", "fits", "member"]

Fields = Mapping[str, type | tuple[type, ...]]
"""Which fields a record has, and the exact types that each may be of; `object` is any."""


def member(key: object) -> str:
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{json.dumps(key)}]"
    try:
        return f"[{key!r}]" if type(key) in SCALARS else f"[{type_name(type(key))}]"
    except ValueError:
        return "[int]"  # of too many digits to be written


_NONE: Final[Fields] = MappingProxyType({})


def fits(data: Mapping[str, object], required: Fields, optional: Fields = _NONE) -> bool:
    """Return whether a record has exactly such fields; where it says no, `check_fields` judges.

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
    """Return a record whose fields are exactly those expected, of exactly these types.

    A subclass does not count: True is no int. A tuple of types allows each of them, `object` allows
    any. Raises `CorruptStateError` with the path of the field that is missing, unknown or wrong.

    >>> check_fields({"seq": 1}, "$", {"seq": int}, {"error": (str, type(None))})
    {'seq': 1}
    """
    if type(data) is not dict:
        raise CorruptStateError(path, f"is of type {type_name(type(data))}, not an object")
    if fits(data, required, optional):
        return data
    checked = 0
    for fields in (required, optional) if optional else (required,):
        for name, expected in fields.items():
            try:
                kind = type(data[name])
            except KeyError:
                if fields is required:
                    raise CorruptStateError(f"{path}{member(name)}", "is missing") from None
                continue
            checked += 1
            if (
                kind is not expected
                and expected is not object
                and (type(expected) is not tuple or kind not in expected)
            ):
                raise _wrong_type(f"{path}{member(name)}", kind, expected)
    if checked != len(data):
        unknown = next(name for name in data if name not in required and name not in optional)
        raise CorruptStateError(f"{path}{member(unknown)}", "is a field that is not known here")
    return data


def _wrong_type(path: str, found: type, expected: type | tuple[type, ...]) -> CorruptStateError:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    names = " or ".join(map(type_name, kinds))
    return CorruptStateError(path, f"is of type {type_name(found)}, not {names}")
