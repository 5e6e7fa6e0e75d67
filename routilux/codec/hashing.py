"""Limits the work of building hash tables from saved values.

Invariants:
- Values of a file choose their hashes: integers that differ by a multiple of 2**61 - 1 hash alike,
  and so do tuples of them; other integers share a long chain of slots. A hash table of n such keys
  takes n² steps to build, to compare and to copy.
- The steps are counted in a model of the table before it is built. They are the same on each host.
- Keys of ordinary programs stay far below the limit. -1 and -2 hash alike, and so do their tuples.
- Writing has half the limit of reading, since the order of a set changes the steps a little.
- The hashes of texts and bytes differ from process to process, so that no file can choose them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any, Final

from routilux.codec.equality import SCALARS

_RANDOM: Final = frozenset({str, bytes})
_FEW: Final = 64  # keys that can share a chain of slots without harm if their hashes differ
_WORD: Final = (1 << 64) - 1
_SHIFTS: Final = 13  # after so many steps the rest of a chain depends on the slot alone
_STEPS: Final = 8  # for each key
_MORE_STEPS: Final = 4_000
_AT_ONCE: Final = 4  # scalars in a tuple, which are compared in the time of one step
_OBJECT: Final = 16  # a comparison by a method of a class takes as long as 16 of numbers

REASON: Final = "has {:,} elements or keys whose hashes collide too often; keep them in a list"


def is_slow(keys: Collection[object], *, reading: bool) -> bool:
    """Return whether a hash table of the keys would take too many steps.

    Raises `ValueError` for keys that are equal.

    >>> is_slow(range(1000), reading=True), is_slow(range(0, 2**71, 2**61 - 1), reading=True)
    (False, True)
    """
    most = (_STEPS * len(keys) + _MORE_STEPS) << reading
    return _steps(keys, most, {}) > most


def _steps(keys: Collection[object], most: int, weights: dict[int, int]) -> int:
    """Estimate the steps that collisions add in a hash table, up to `most`.

    A step past a key of the same hash compares the two keys.
    """
    count = len(keys)
    if count < 2 or _RANDOM.issuperset(map(type, keys)):
        return 0
    hashes = [*map(hash, keys)]
    if count <= _FEW and len({*hashes}) == count:
        return 0
    mask = (1 << (count * 3 // 2).bit_length()) - 1  # of the smallest table that CPython may use
    table: list[tuple[int, object] | None] = [None] * (mask + 1)
    steps = 0
    for entry in zip(hashes, keys, strict=True):
        found, key = entry
        left = found & _WORD
        slot = left & mask
        walked = -_SHIFTS
        while (other := table[slot]) is not None:
            if other[0] == found:
                steps += _lighter(key, other[1], most, weights)
                if steps <= most and key == other[1]:
                    raise ValueError("the data has a duplicate element or key")
            else:
                walked += 1
            if steps + walked > most:
                return most + 1
            left >>= 5
            slot = (5 * slot + left + 1) & mask
        table[slot] = entry
        if walked > 0:
            steps += walked
    return steps


def _lighter(a: object, b: object, most: int, weights: dict[int, int]) -> int:
    """Estimate the steps to compare two keys, up to `most`."""
    if type(a) is not type(b) or type(a) in SCALARS:
        return 1
    enough = 16
    while True:
        found = min(_weight(a, enough, weights), _weight(b, enough, weights))
        if found <= enough or enough > most:
            return found
        enough *= 4  # so that a light key beside a heavy one costs the time of the light one


def _weight(value: Any, most: int, weights: dict[int, int]) -> int:
    """Estimate the steps to compare a value with an equal value."""
    kind = type(value)
    if kind in SCALARS:
        return 1
    known = weights.get(id(value))
    if known is not None:
        return known
    inner: Collection[object] = ()
    weight = 1
    if kind is tuple:
        inner = value
    elif kind is frozenset:
        inner = value
        weight += _steps(value, most, weights)
    else:
        weight = _OBJECT
        if is_dataclass(value):
            inner = [getattr(value, field.name, None) for field in fields(value)]
    scalars = 0
    for item in inner:
        if weight > most:
            return weight
        if type(item) in SCALARS:
            scalars += 1
        else:
            weight += _weight(item, most - weight, weights)
    weight += scalars // _AT_ONCE
    if weight <= most and kind in (tuple, frozenset):
        weights[id(value)] = weight
    return weight
