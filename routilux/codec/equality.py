"""Compares two values and finds the first difference.

Invariants:
- Two values are the same if they are equal and of the same type at every level: `1`, `True` and
  `1.0` differ, `-0.0` is not `0.0`, `Decimal("1.0")` is not `Decimal("1.00")`, NaN is the same as
  NaN. The order of a dict does not matter.
- One function finds sameness and the first difference, so they can't disagree.
- A dataclass is compared by its compared fields, another class by its `__eq__`. An `__eq__` that
  answers always yes or always no is ignored; then, or without an `__eq__`, the state that `copy`
  and `pickle` see is compared.
- A value that contains itself can be compared.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from decimal import Decimal
from math import copysign, isnan
from operator import eq
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

_ABSENT: Final = object()
_TEXT: Final = frozenset({str})
_IDENTITY: Final[object] = object.__eq__
_LEVELS: Final = 100  # deeper values are checked for containing themselves
_LONGEST: Final = 120
_NO_REPR: Final = " whose repr() raised "


def _same_float(a: float, b: float) -> bool:
    return (a == b and copysign(1.0, a) == copysign(1.0, b)) or (isnan(a) and isnan(b))


def _same_moment(a: Any, b: Any) -> bool:
    # For == two instants in different zones, or in both halves of a fold, can be equal.
    return (
        a.replace(tzinfo=None) == b.replace(tzinfo=None)
        and a.fold == b.fold
        and same_value(a.tzinfo, b.tzinfo)
    )


def _same_text(a: object, b: object) -> bool:
    return str(a) == str(b)


_SAME: Final[dict[type, Callable[[Any, Any], bool]]] = {
    NoneType: eq,
    bool: eq,
    int: eq,
    float: _same_float,
    complex: lambda a, b: _same_float(a.real, b.real) and _same_float(a.imag, b.imag),
    str: eq,
    bytes: eq,
    dt.datetime: _same_moment,
    dt.date: eq,
    dt.time: _same_moment,
    dt.timedelta: eq,
    dt.timezone: lambda a, b: a == b and a.tzname(None) == b.tzname(None),
    ZoneInfo: lambda a, b: a.key is not None and a.key == b.key,
    Decimal: _same_text,
    UUID: eq,
    PosixPath: _same_text,
    WindowsPath: _same_text,
    PurePosixPath: _same_text,
    PureWindowsPath: _same_text,
}


def _moment_text(value: Any) -> str:
    zone = value.tzinfo
    mark = _MARKS.get(type(zone))
    return f"{value.replace(tzinfo=None)!r} {type(zone)} {mark and mark(zone)}"


# Texts that are equal for values that are the same.
_MARKS: Final[dict[type, Callable[[Any], str]]] = {
    **dict.fromkeys(_SAME, str),
    int: hex,
    bytes: bytes.hex,
    float: repr,
    complex: repr,
    dt.datetime: _moment_text,
    dt.time: _moment_text,
    dt.timezone: lambda zone: f"{zone.utcoffset(None)} {zone.tzname(None)}",
    ZoneInfo: lambda zone: str(zone.key),
}

SCALARS: Final[frozenset[type]] = frozenset(_SAME)
"""The types of immutable values, which a copy of a container may share with the original."""


class _Memo(set[tuple[int, int]]):
    """The pairs of values that are being compared.

    Hashable values also have numbers. Values that are the same have the same number, so that only
    values of one number must be compared. A number is found once, in the time of the value's size.
    """

    __slots__ = ("_numbers", "_of")

    def number(self, value: Any) -> int:
        if not hasattr(self, "_of"):
            self._numbers: dict[object, int] = {}
            self._of: dict[int, tuple[object, int]] = {}
        known = self._of.get(id(value))
        if known is None:
            mark = self._mark(value, False)
            known = self._of[id(value)] = value, self._numbers.setdefault(mark, len(self._numbers))
        return known[1]  # the value is kept, since its id is that of another one after its end

    def _mark(self, value: Any, inside: bool) -> object:
        kind = type(value)
        text = _MARKS.get(kind)
        if text is not None:
            return kind, text(value)  # a text, since a file can choose the hashes of numbers
        if kind is tuple:
            return kind, *map(self.number, value)
        if kind is frozenset:
            return kind, *sorted(map(self.number, value))
        if inside:
            return kind
        if is_dataclass(value):
            state: Any = _present(value, [field.name for field in fields(value) if field.compare])
        elif type(value).__eq__ is not _IDENTITY and _distinguishes(value):
            return kind, hash(value)
        else:
            try:
                state = _state(value)
            except Exception:
                return kind
        return kind, *((name, self._mark(item, True)) for name, item in sorted(state.items()))


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two values at `path`.

    `what` is "type", "value", "missing" (`actual` is None) or "added" (`expected` is None).

    >>> str(Difference("$.items[0].price", 1, 2, "value"))
    '$.items[0].price: 1 became 2'
    """

    path: str
    expected: object
    actual: object
    what: Literal["type", "value", "missing", "added"]

    @property
    def sides(self) -> tuple[str, str]:
        """The texts that show `expected` and `actual`."""
        if self.what == "type":
            return _typed(self.expected), _typed(self.actual)
        expected, actual = _shown(self.expected), _shown(self.actual)
        return expected, f"another {actual}" if expected == actual else actual

    def __str__(self) -> str:
        expected, actual = self.sides
        if self.what == "missing":
            return f"{self.path}: {expected} is missing"
        if self.what == "added":
            return f"{self.path}: {actual} was added"
        return f"{self.path}: {expected} became {actual}"


def same_value(a: object, b: object) -> bool:
    """Return whether two values are equal and of the same type at every level.

    >>> same_value([1, float("nan")], [1, float("nan")]), same_value({"n": 1}, {"n": True})
    (True, False)
    """
    return a is b or _compare(a, b, 0, _Memo()) is None


def first_difference(expected: object, actual: object, path: str = "$") -> Difference | None:
    """Return the first difference between two values, or None.

    The path of the difference begins with `path`.

    >>> print(first_difference({"n": [1, 2]}, {"n": [1, 2.0]}))
    $.n[1]: int 2 became float 2.0
    """
    found = _compare(expected, actual, 0, _Memo())
    return None if found is None else _below(path, found)


def _below(step: str, found: Difference) -> Difference:
    return replace(found, path=f"{step}{found.path}")


def _compare(a: Any, b: Any, level: int, memo: _Memo) -> Difference | None:
    if a is b:
        return None
    kind = type(a)
    if kind is not type(b):
        return Difference("", a, b, "type")
    rule = _SAME.get(kind)
    if rule is not None:
        return None if rule(a, b) else Difference("", a, b, "value")
    if level > _LEVELS:
        # The same pair occurs again only in values that contain themselves; it is the same so far.
        pair = (id(a), id(b))
        if pair in memo:
            return None
        memo.add(pair)
    level += 1
    if kind is dict:
        return _compare_dicts(a, b, level, memo)
    if kind is list or kind is tuple:
        return _compare_sequences(a, b, level, memo)
    if kind is set or kind is frozenset:
        return _compare_sets(a, b, level, memo)
    return _compare_objects(a, b, level, memo)


def _compare_sequences(a: Any, b: Any, level: int, memo: _Memo) -> Difference | None:
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        found = _compare(x, y, level, memo)
        if found is not None:
            return _below(f"[{index}]", found)
    if len(a) > len(b):
        return Difference(f"[{len(b)}]", a[len(b)], None, "missing")
    if len(a) < len(b):
        return Difference(f"[{len(a)}]", None, b[len(a)], "added")
    return None


def _compare_dicts(a: Any, b: Any, level: int, memo: _Memo) -> Difference | None:
    if _TEXT.issuperset(map(type, a)) and _TEXT.issuperset(map(type, b)) and a.keys() == b.keys():
        for key, item in a.items():
            found = _compare(item, b[key], level, memo)
            if found is not None:
                return _below(path_step(key), found)
        return None
    partners, added = _partners(a, b, level, memo)
    for key, item in a.items():
        partner = partners.get(id(key), _ABSENT)
        if partner is _ABSENT:
            return Difference(path_step(key), item, None, "missing")
        found = _compare(item, b[partner], level, memo)
        if found is not None:
            return _below(path_step(key), found)
    for key in added:
        return Difference(path_step(key), None, b[key], "added")
    return None


def _compare_sets(a: Any, b: Any, level: int, memo: _Memo) -> Difference | None:
    partners, added = _partners(a, b, level, memo)
    for item in a:
        if id(item) not in partners:
            return Difference("", item, None, "missing")
    for item in added:
        return Difference("", None, item, "added")
    return None


def _partners(
    a: Iterable[Any], b: Iterable[Any], level: int, memo: _Memo
) -> tuple[dict[int, Any], list[Any]]:
    """Match each key of `a` to the same key of `b`.

    Returns {id(key of `a`): key of `b`}, and the keys of `b` that `a` does not have.
    """
    by_hash = {key: key for key in b}
    partners: dict[int, Any] = {}
    strays = []
    for key in a:
        twin = by_hash.get(key, _ABSENT)  # 1 finds True, and NaN does not find NaN
        if twin is _ABSENT or _compare(key, twin, level, memo) is not None:
            strays.append(key)
        else:
            partners[id(key)] = twin
    if not strays and len(partners) == len(by_hash):
        return partners, []
    taken = set(map(id, partners.values()))
    rest: dict[int, list[Any]] = {}  # the keys of `b` without a partner, by number
    for key in b:
        if id(key) not in taken:
            rest.setdefault(memo.number(key), []).append(key)
    for key in reversed(strays):  # both from their ends, so that the first gets the first
        alike = rest.get(memo.number(key), [])
        for index in reversed(range(len(alike))):
            if _compare(key, alike[index], level, memo) is None:
                partners[id(key)] = twin = alike.pop(index)
                taken.add(id(twin))
                break
    return partners, [key for key in b if id(key) not in taken]


def _compare_objects(a: Any, b: Any, level: int, memo: _Memo) -> Difference | None:
    if is_dataclass(a) and not isinstance(a, type):
        names = [field.name for field in fields(a) if field.compare]
        return _compare_dicts(_present(a, names), _present(b, names), level, memo)
    for base, compare in _CONTAINERS:
        if isinstance(a, base):
            found = compare(a, b, level, memo)
            if found is None and hasattr(a, "__dict__"):
                found = _compare_dicts(vars(a), vars(b), level, memo)
            return found
    trusted = type(a).__eq__ is not _IDENTITY and _distinguishes(a)
    if trusted:
        try:
            if a == b:
                return None
        except Exception:
            return Difference("", a, b, "value")
    try:
        state_a, state_b = _state(a), _state(b)
    except Exception:
        return Difference("", a, b, "value")
    found = _compare_dicts(state_a, state_b, level, memo)
    if found is None and trusted:
        return Difference("", a, b, "value")
    return found


def _distinguishes(value: object) -> bool:
    """Return whether `value` equals itself but not a different object."""
    try:
        return bool(value == value) and not bool(value == _ABSENT)
    except Exception:
        return False


_CONTAINERS: Final = (
    (dict, _compare_dicts),
    ((list, tuple), _compare_sequences),
    ((set, frozenset), _compare_sets),
)


def _present(value: object, names: Iterable[str]) -> dict[str, object]:
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _state(value: object) -> dict[str, object]:
    """Return the state that `pickle` saves, as a dict."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        raise TypeError(f"pickle saves this value only by its name {reduced}, without a state")
    parts: tuple[Any, ...] = (*reduced, None)
    _, arguments, state, *items = parts
    found: dict[str, object] = {"args": [item for item in arguments if item is not type(value)]}
    slots: object = None
    if type(state) is tuple and len(state) == 2 and isinstance(state[1], dict):
        state, slots = state
    for part in (state, slots):
        if isinstance(part, dict):
            found.update(part)
        elif part is not None:
            found["state"] = part
    found["items"] = [list(iterator) for iterator in items[:2] if iterator is not None]
    return found


def path_step(key: object) -> str:
    """Return the part of a JSON path that selects a key.

    >>> path_step("name"), path_step("two words"), path_step(1)
    ('.name', '["two words"]', '[1]')
    """
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{json.dumps(key)}]"
    text = _shown(key)
    # Without addresses, the same error has the same path in every process.
    return f"[{type(key).__qualname__}]" if " at 0x" in text or _NO_REPR in text else f"[{text}]"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}{_NO_REPR}{type(error).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _typed(value: object) -> str:
    name = type(value).__qualname__
    text = _shown(value)
    return text if value is None or text.startswith((name, f"<{name}")) else f"{name} {text}"
