"""Makes deep copies of values.

Invariants:
- A copy is the same value and shares nothing mutable with its original.
- A typed walk copies the built-in containers, several times as fast as `copy.deepcopy`, which
  copies everything else.
- A value that contains itself, or is nested too deep for the walk, is copied too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeVar, cast

from routilux.codec.equality import SCALARS

_T = TypeVar("_T")


def is_flat(payload: Mapping[str, object]) -> bool:
    """Return whether all values of `payload` are scalars.

    >>> is_flat({"n": 1, "text": "abc"}), is_flat({"items": [1]})
    (True, False)
    """
    return SCALARS.issuperset(map(type, payload.values()))


def copy_value(value: _T) -> _T:
    """Return a copy that shares no mutable object with `value`.

    An object that occurs twice in the value is copied twice. Raises what `copy.deepcopy` raises
    for an object that can't be copied.

    >>> order = {"items": [1, 2]}
    >>> private = copy_value(order)
    >>> private["items"].append(3)
    >>> order
    {'items': [1, 2]}
    """
    if type(value) in SCALARS:
        return value
    try:
        return cast(_T, _copy(value))
    except RecursionError:  # the value contains itself, or is nested deep
        return copy.deepcopy(value)


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        new = value.copy()  # then replacing what is mutable takes 15 % less than a comprehension
        for key, item in value.items():
            if type(key) not in SCALARS:
                return {_copy(key): _copy(item) for key, item in value.items()}
            if type(item) not in SCALARS:
                new[key] = _copy(item)
        return new
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        if kind is list and len(value) >= _MANY:
            if SCALARS.issuperset(map(type, value)):
                return value.copy()
            if are_flat_rows(value):
                return list(map(dict.copy, value))
        items = [item if type(item) in SCALARS else _copy(item) for item in value]
        return items if kind is list else kind(items)
    return value if kind in SCALARS else copy.deepcopy(value)


def are_flat_rows(items: Sequence[object]) -> bool:
    """Return whether all items are dicts of scalars, which `dict.copy` copies.

    >>> are_flat_rows([{"n": 1}, {}]), are_flat_rows([{"n": [1]}])
    (True, False)
    """
    return (
        _DICT.issuperset(map(type, items))
        and SCALARS.issuperset(map(type, chain.from_iterable(cast("Any", items))))
        and SCALARS.issuperset(map(type, chain.from_iterable(map(dict.values, cast("Any", items)))))
    )


_DICT: Final = frozenset({dict})
_MANY: Final = 16  # items, from which on a look at all types costs less than it saves
