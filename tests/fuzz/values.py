"""Values as JSON data whose reading could cost more than their bytes; they grow with a number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import product
from typing import Any, Final

P: Final = 2**61 - 1
"""Integers that differ by a multiple of it have the same hash."""


def tagged(tag: str, items: Any) -> dict[str, Any]:
    return {"$type": tag, "value": items}


def set_of(items: Any) -> dict[str, Any]:
    return tagged("set", list(items))


def _tuple(*items: Any) -> dict[str, Any]:
    return tagged("tuple", list(items))


def _dict(keys: Any) -> dict[str, Any]:
    return tagged("dict", [[key, 0] for key in keys])


def merging(count: int) -> list[int]:
    """Integers with different hashes that share a long chain of slots in a dict.

    The first ones fill a stretch of the chain that all hashes follow after 13 steps. The others
    find only full slots on their way to that stretch, and then follow it to its end.
    """
    bits = count.bit_length()
    mask = (1 << bits) - 1
    filled, count = int(0.6 * 2**bits), int(0.66 * 2**bits)
    stretch = [1]
    while len(stretch) < filled:
        stretch.append((5 * stretch[-1] + 1) & mask)
    taken, start = {*stretch}, {*stretch[: filled // 2]}
    rng = random.Random(count)

    def follows(value: int) -> bool:
        slot, left = value & mask, value
        for _ in range(13):
            if slot not in taken:
                return False
            left >>= 5
            slot = (5 * slot + left + 1) & mask
        return slot in start

    found: list[int] = []
    while len(found) < count - filled:
        value = rng.getrandbits(60)
        if follows(value):
            found.append(value)
    return stretch + found


def _nest(levels: int, width: int) -> Any:
    """Sets in sets, each with `width` elements whose hashes are alike."""
    inner: Any = 0
    for _ in range(levels):
        inner = tagged("frozenset", [_tuple(inner, i * P) for i in range(width)])
    return inner


def _chain(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = tagged("frozenset", [leaf, -1, -2])
    return leaf


VALUES: Final[dict[str, Callable[[int], Any]]] = {
    "integers": lambda n: set_of(i * P for i in range(1, n)),
    "integers of one chain": lambda n: set_of(merging(n)),
    "integers as keys": lambda n: _dict(i * P for i in range(1, n)),
    "integers of one chain as keys": lambda n: _dict(merging(n)),
    "equal integers": lambda n: set_of([7] * n),
    "decimals": lambda n: tagged("frozenset", [tagged("Decimal", str(i * P)) for i in range(1, n)]),
    "decimals of exponents": lambda n: set_of(
        tagged("Decimal", f"1E+{i * 61 * (P - 1)}") for i in range(1, n)
    ),
    "floats": lambda n: set_of(float(2**30 + i // 34) * 2.0 ** (61 * (i % 17)) for i in range(n)),
    "complex": lambda n: set_of(
        tagged("complex", [repr(float(i)), repr(float(-i))]) for i in range(n)
    ),
    "uuids": lambda n: set_of(
        tagged("UUID", f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}")
        for t in (f"{i * P:032x}" for i in range(1, n))
    ),
    "tuples": lambda n: set_of(_tuple(i * P) for i in range(1, n)),
    "tuples of -1 and -2": lambda n: set_of(
        _tuple(*numbers) for numbers in product((-1, -2), repeat=max(n - 1, 1).bit_length())
    ),
    "long tuples": lambda n: set_of(_tuple(*[0] * n, i * P) for i in range(1, 60)),
    "sets": lambda n: set_of(tagged("frozenset", [i * P]) for i in range(1, n)),
    "sets in sets": lambda n: _nest(max(n.bit_length() - 3, 1), 2),
    "wide sets in sets": lambda n: _nest(max(n.bit_length() // 4, 1), 16),
    "a chain of sets": lambda n: _chain(30, _frozen(range(n))),
    "a chain of sets of NaN": lambda n: _chain(
        30, tagged("frozenset", [*range(n), tagged("complex", ["nan", "0.0"])])
    ),
    "complex NaN": lambda n: set_of(tagged("complex", ["nan", "0.0"]) for _ in range(n)),
    "decimal NaN": lambda n: set_of(tagged("Decimal", "NaN") for _ in range(n)),
    "tuples of NaN": lambda n: set_of(_tuple(tagged("Decimal", f"NaN{i}")) for i in range(n)),
    "NaN as keys": lambda n: _dict(tagged("complex", ["nan", "0.0"]) for _ in range(n)),
    "moments": lambda n: set_of(
        tagged(
            "datetime", {"local": f"2026-01-01T00:00:00.{i:06}", "fold": 0, "zone": "Europe/Berlin"}
        )
        for i in range(min(n, 999_999))
    ),
    "spans": lambda n: set_of(tagged("timedelta", [i, 0, 0]) for i in range(n)),
    "digits": lambda n: [int("9" * 4_000)] * max(n // 500, 1),
    "digits of decimals": lambda n: [tagged("Decimal", "9" * n)] * 8,
    "a set of long decimals": lambda n: set_of(
        tagged("Decimal", f"{i}" + "9" * n) for i in range(8)
    ),
    "small exponents": lambda n: [tagged("Decimal", f"1E-{999_999 + i}") for i in range(n)],
    "large exponents": lambda n: set_of(
        tagged("Decimal", f"1E+{999_999_999 + i}") for i in range(n)
    ),
    "digits of a complex": lambda n: [tagged("complex", [f"0.{'1' * 10 * n}", "0.0"])],
    "a long span": lambda n: tagged("timedelta", list(range(n))),
    "a long date": lambda n: tagged("date", "1" * n),
    "a long path": lambda n: tagged("PosixPath", "/".join("ab" for _ in range(n))),
    "a long zone": lambda n: tagged(
        "datetime", {"local": "2026-01-01", "fold": 0, "zone": "a/" * n}
    ),
    "a long tag": lambda n: tagged("x" * n, 1),
    "deep lists": lambda n: [json.loads("[" * 60 + "1" + "]" * 60) for _ in range(n // 20)],
    "deep tuples": lambda n: [_deep(35) for _ in range(n // 20)],
    "deep keys": lambda n: _dict(_deep(30, i) for i in range(n // 20)),
    "bytes": lambda n: [tagged("bytes", "AAAA" * n)] * 4,
    "texts": lambda n: ["é" * 100] * n,
    "wide objects": lambda n: {f"k{i}": {} for i in range(n)},
}
"""Values as JSON data, which grow with the given number."""


def _frozen(items: Any) -> dict[str, Any]:
    return tagged("frozenset", list(items))


def _deep(levels: int, leaf: Any = 1) -> Any:
    for _ in range(levels):
        leaf = _tuple(leaf)
    return leaf
