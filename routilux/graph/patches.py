"""`Patch`: what a step changed within one value of the state, instead of the whole value.

Invariants:
- A patch that `changes` makes turns the old value into the new one, of the same types and with
  the same order of keys. It has fewer entries than the new value; otherwise there is no patch.
- A patch of an accumulator (`ACCUMULATORS`) depends on nothing that the step has read, so that two
  of different steps can be applied in any order of their commits.
- A patch holds private values. Applying it changes neither the patch nor the old value.
- A patch that does not fit the value it is applied to raises `PatchError` and changes nothing.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation, Overflow
from typing import Any, Final

from routilux.codec import registry
from routilux.codec.copying import copy_value
from routilux.codec.equality import same_value
from routilux.codec.limits import MAX_DIGITS
from routilux.graph.growing import Growing, is_encodable, plain

ABSENT: Final[Any] = object()
"""The value of a key that does not exist."""

_EXACTLY: Final = Context(
    prec=10_000, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation, Overflow]
)
"""Adds decimals alike in every thread, process and program."""
_TOO_BIG: Final = 10**MAX_DIGITS
_NUMBERS: Final = frozenset({int, float, complex, Decimal, timedelta})
_ORDERED: Final = frozenset({int, float, Decimal, timedelta, str, bytes, date, datetime, time})


class PatchError(ValueError):
    """A patch does not fit a value; the message says why."""


@dataclass(slots=True)
class Patch:
    """One change of a value; see `Writes.patches`."""

    kind: str
    """`add`, `extend`, `union`, `maximum`, `minimum`, `splice` or `entries`."""
    operand: Any
    """What the kind needs: a number, a list, a set, or a value to compare.

    `splice` replaces items of a list: (index, how many, list of new items). `entries` changes
    entries of a dict or items of a list: ({key: value}, removed keys, {key: patch}), in which the
    keys of a list are indexes.
    """


# --- accumulators -------------------------------------------------------------------------------


def _add(old: Any, operand: Any) -> Any:
    if type(old) not in _NUMBERS:
        raise PatchError(f"{_type(old)} is not a number")
    try:
        if Decimal in (type(old), type(operand)):
            return _EXACTLY.add(old, operand)
        total = old + operand
    except (TypeError, ArithmeticError) as error:
        raise PatchError(str(error)) from None
    if type(total) is int and not -_TOO_BIG < total < _TOO_BIG:
        raise PatchError(f"the sum has more than {MAX_DIGITS:,} digits")
    return total


def _extend(old: Any, operand: list[Any]) -> Any:
    _check_kind(old, list)
    return (old if type(old) is Growing else Growing.of(old)).extended(operand)


def _union(old: Any, operand: set[Any]) -> Any:
    _check_kind(old, set)
    return (old if type(old) is Growing else Growing.of(old)).extended([*operand])


def _check_kind(old: Any, wanted: type) -> None:
    kind = old.kind if type(old) is Growing else type(old)
    if kind is not wanted:
        raise PatchError(f"{_type(old)} is not a {wanted.__name__}")


def _maximum(old: Any, operand: Any) -> Any:
    return _first(old, operand, max)


def _minimum(old: Any, operand: Any) -> Any:
    return _first(old, operand, min)


def _first(old: Any, operand: Any, choose: Callable[[Any, Any], Any]) -> Any:
    kinds = {type(old), type(operand)}
    if not kinds <= _ORDERED or (len(kinds) > 1 and not kinds <= {int, float}):
        raise PatchError(f"{_type(old)} and {_type(operand)} have no order")
    try:
        return choose(old, operand)  # the old one, if they are equal
    except (TypeError, ArithmeticError) as error:  # an aware and a naive datetime
        raise PatchError(str(error)) from None


ACCUMULATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "add": _add,
    "extend": _extend,
    "union": _union,
    "maximum": _maximum,
    "minimum": _minimum,
}
"""Functions that return the new value of (old value, operand), by the kind of patch."""

_COLLECTS: Final[dict[str, type]] = {"extend": list, "union": set}


def operand_problem(kind: str, operand: Any) -> str | None:
    """Return why a value can't be the operand of an accumulator, or None."""
    if kind == "add":
        return None if type(operand) in _NUMBERS else f"{_type(operand)} is not a number"
    if kind in ("maximum", "minimum"):
        if type(operand) not in _ORDERED:
            return f"{_type(operand)} has no order"
        is_nan = operand.is_nan() if type(operand) is Decimal else operand != operand
        return "NaN has no order" if is_nan else None
    wanted = _COLLECTS[kind]
    return None if type(operand) is wanted else f"{_type(operand)} is not a {wanted.__name__}"


def accumulated(old: Any, patch: Patch) -> Any:
    """Return the value after an accumulator; a key that did not exist begins with the operand."""
    if old is ABSENT:
        return patch.operand
    return ACCUMULATORS[patch.kind](old, patch.operand)


def merge(patches: list[Patch], new: Patch) -> None:
    """Add an accumulator to those of a step; those of one kind are one patch."""
    last = patches[-1] if patches else None
    if last is None or last.kind != new.kind:
        patches.append(new)
    elif new.kind == "extend":
        last.operand += new.operand
    elif new.kind == "union":
        last.operand |= new.operand
    else:
        try:
            last.operand = ACCUMULATORS[new.kind](last.operand, new.operand)
        except PatchError:  # the two operands have no sum of their own
            patches.append(new)


# --- applying -----------------------------------------------------------------------------------

Owned = dict[int, object]
"""The lists, dicts and sets that a replay has made, by id: it changes them in place."""


def patched(old: Any, patches: Iterable[Patch], owned: Owned | None = None) -> Any:
    """Return the value after patches, in their order; `old` may be `ABSENT`.

    Without `owned`, lists and sets grow by `Growing`, which leaves the old value to other steps.
    With it, values are changed in place, so that a replay takes the time of its patches.
    """
    for patch in patches:
        if old is ABSENT or (owned is None and patch.kind in ACCUMULATORS):
            if patch.kind not in ACCUMULATORS:
                raise PatchError("there is no value")
            old = accumulated(old, patch)
        else:
            old = _applied(plain(old), patch, owned)
    return old


def _applied(old: Any, patch: Patch, owned: Owned | None) -> Any:
    kind, operand = patch.kind, patch.operand
    if kind in _COLLECTS:
        _check_kind(old, _COLLECTS[kind])
        new = _own(old, owned)
        (new.extend if kind == "extend" else new.update)(operand)
        return new
    if kind in ACCUMULATORS:
        return accumulated(old, patch)
    if kind == "splice":
        at, removed, items = operand
        if type(old) is not list or at + removed > len(old):
            raise PatchError(f"{_type(old)} has no items {at} to {at + removed}")
        new = _own(old, owned)
        new[at : at + removed] = items
        return new
    values, removed_keys, inside = operand
    if type(old) is list:
        places = [*values, *inside]
        if removed_keys or not all(type(key) is int and 0 <= key < len(old) for key in places):
            raise PatchError(f"a list of {len(old)} items has no such items")
    elif type(old) is not dict or not all(key in old for key in (*removed_keys, *inside)):
        raise PatchError(f"{_type(old)} has no such keys")
    new = _own(old, owned)
    for key in removed_keys:
        del new[key]
    for key, change in inside.items():
        new[key] = _applied(new[key], change, owned)
    for key, value in values.items():
        new[key] = value
    return new


def _own(container: Any, owned: Owned | None) -> Any:
    """Return a container that may be changed: a copy, or the one that the replay has made."""
    if owned is not None and id(container) in owned:
        return container
    new = container.copy()
    if owned is not None:
        owned[id(new)] = new
    return new


def misfit(old: Any, patches: Iterable[Patch]) -> str | None:
    """Return why accumulators do not fit a value, or None; `old` may be `ABSENT`."""
    try:
        for patch in patches:
            if old is not ABSENT and patch.kind in _COLLECTS:
                _check_kind(old, _COLLECTS[patch.kind])
            elif patch.kind in ACCUMULATORS:
                old = accumulated(old, patch)
    except PatchError as error:
        return str(error)
    return None


# --- finding ------------------------------------------------------------------------------------


def changes(old: Any, new: Any) -> list[Patch] | None:
    """Return the patches from `old` to `new`, with private copies.

    They are none if the values are the same. None means that a patch would be no smaller than the
    new value.

    >>> changes([1, 2, 3], [1, 2, 3, 4])
    [Patch(kind='extend', operand=[4])]
    >>> changes({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "c": 3})
    [Patch(kind='entries', operand=({'b': 5}, [], {}))]
    >>> changes([1, 2], [1, 2]), changes([1, 2], [3, 4])
    ([], None)
    """
    if type(old) is Growing and old.kind is list and type(new) is list:
        tail = old.extension(new)
        if tail is not None and len(tail) < len(new):
            return [Patch("extend", copy_value(tail))] if tail else []
    old = plain(old)
    if same(old, new):
        return []
    found = _find(old, new)
    return None if found is None else [found[0]]


def _find(old: Any, new: Any) -> tuple[Patch, float] | None:
    """Return a patch and its size, as a part of the new value's; None if it would be no smaller."""
    if type(old) is not type(new) or type(new) not in (list, dict) or not new:
        return None
    patch, size = _of_lists(old, new) if type(old) is list else _of_dicts(old, new)
    return (patch, size / len(new)) if size < len(new) else None


def _of_lists(old: list[Any], new: list[Any]) -> tuple[Patch, float]:
    shorter = min(len(old), len(new))
    at = 0
    while at < shorter and same(old[at], new[at]):
        at += 1
    if at == len(old):
        return Patch("extend", copy_value(new[at:])), len(new) - at
    if len(old) == len(new):
        pairs = zip(range(at, len(old)), old[at:], new[at:], strict=True)
        return _of_entries(pairs, [], {})
    behind = 0
    while behind < shorter - at and same(old[-1 - behind], new[-1 - behind]):
        behind += 1
    items = new[at : len(new) - behind]
    return Patch("splice", (at, len(old) - behind - at, copy_value(items))), len(items)


def _of_dicts(old: dict[Any, Any], new: dict[Any, Any]) -> tuple[Patch, float]:
    kept = [key for key in old if key in new]
    added = [key for key in new if key not in old]
    for key, place in zip([*kept, *added], new, strict=True):
        if key is not place and not same_value(key, place):
            return _WHOLE  # the order has changed, or a key such as 1 has become True
    removed = [key for key in old if key not in new]
    pairs = [(key, old[key], new[key]) for key in kept]
    return _of_entries(pairs, removed, {key: copy_value(new[key]) for key in added})


def _of_entries(
    pairs: Iterable[tuple[Any, Any, Any]], removed: list[Any], values: dict[Any, Any]
) -> tuple[Patch, float]:
    """Return a patch of entries: (key, old value, new value), removed keys, added values."""
    inside: dict[Any, Patch] = {}
    size: float = len(removed) + len(values)
    changed: dict[Any, Any] = {}
    for key, old, new in pairs:
        if same(old, new):
            continue
        found = _find(old, new)
        if found is None:
            changed[key] = copy_value(new)
            size += 1
        else:
            inside[key], part = found
            size += part
    return Patch("entries", ({**changed, **values}, removed, inside)), size


_WHOLE: Final = Patch("entries", ({}, [], {})), float("inf")


def same(a: Any, b: Any) -> bool:
    """Return whether two values are the same, and so is the order of keys in their dicts.

    It is faster than `same_value` for lists and dicts.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in (list, dict) and is_encodable([a]):
        try:
            if marshal.dumps(a, 2) == marshal.dumps(b, 2):
                return True
        except ValueError:  # the other one holds a value that can't be encoded
            pass
    return same_value(a, b) and _in_same_order(a, b)


def _in_same_order(a: Any, b: Any) -> bool:
    """Return whether the keys of two equal values have the same order, at every level."""
    if type(a) is dict:
        pairs = zip(a.items(), b.items(), strict=True)
        return all(
            same_value(key, other) and _in_same_order(value, its_value)
            for (key, value), (other, its_value) in pairs
        )
    return type(a) not in (list, tuple) or all(map(_in_same_order, a, b))


def _type(value: object) -> str:
    if type(value) is Growing:
        return value.kind.__name__
    return registry.type_name(type(value))
