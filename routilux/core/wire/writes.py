"""Saved forms of what a step changed in the state or in shared data.

Invariants:
- A key is changed once, by a value, a removal or patches.
- A patch that was read has an operand of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from routilux import codec
from routilux.codec import quoted
from routilux.codec.encoding import TAG
from routilux.codec.schema import check_fields
from routilux.core.wire.ranges import in_range, payload
from routilux.errors import CorruptStateError
from routilux.graph.messages import Writes
from routilux.graph.patches import ACCUMULATORS, Patch, operand_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_WRITES_FIELDS: codec.Fields = {"values": dict, "removed": list, "patches": dict}
_ENTRIES: codec.Fields = {"values": list, "removed": list, "inside": list}


def writes_text(writes: Writes, path: str) -> str:
    """Return the saved form of a step's writes as JSON text."""
    parts = []
    if writes.values:
        parts.append(f'"values":{codec.value_text(writes.values, f"{path}.values")}')
    if writes.removed:
        parts.append(f'"removed":[{",".join(map(quoted, writes.removed))}]')
    if writes.patches:
        found = [
            (quoted(key), patches_text(each, f"{path}.patches[{key!r}]"))
            for key, each in writes.patches.items()
        ]
        if TAG in writes.patches:  # as `encode` does with such a dict
            pairs = ",".join([f"[{key},{text}]" for key, text in found])
            parts.append(f'"patches":{{"{TAG}":"dict","value":[{pairs}]}}')
        else:
            parts.append(f'"patches":{{{",".join([f"{key}:{text}" for key, text in found])}}}')
    return f"{{{','.join(parts)}}}"


def patches_text(patches: Sequence[Patch], path: str) -> str:
    """Return the saved form of the patches of one key as JSON text."""
    return f"[{','.join(_patch_text(patch, f'{path}[{i}]') for i, patch in enumerate(patches))}]"


def _patch_text(patch: Patch, path: str) -> str:
    place = f"{path}.{patch.kind}"
    if patch.kind != "entries":
        operand = list(patch.operand) if patch.kind == "splice" else patch.operand
        return f"{{{quoted(patch.kind)}:{codec.value_text(operand, place)}}}"
    values, removed, inside = patch.operand
    pairs = codec.value_text([[key, value] for key, value in values.items()], f"{place}.values")
    below = (
        f"[{codec.value_text(key, place)},{_patch_text(each, f'{place}[{key!r}]')}]"
        for key, each in inside.items()
    )
    return (
        f'{{"entries":{{"values":{pairs},"removed":{codec.value_text(removed, place)},'
        f'"inside":[{",".join(below)}]}}}}'
    )


def load_writes(data: object, path: str) -> Writes:
    """Make a step's `Writes` from their saved form."""
    f = check_fields(data, path, {}, _WRITES_FIELDS)
    removed = f.get("removed", [])
    if not all(type(key) is str for key in removed):
        raise CorruptStateError(f"{path}.removed", "must be a list of strings")
    writes = Writes(payload(f.get("values", {}), f"{path}.values"), tuple(removed))
    for key, each in payload(f.get("patches", {}), f"{path}.patches").items():
        place = f"{path}.patches[{key!r}]"
        if type(each) is not list or not each:
            raise CorruptStateError(place, "must be a list of patches")
        writes.patches[key] = [_load_patch(p, f"{place}[{i}]") for i, p in enumerate(each)]
    keys = writes.keys
    if len(set(keys)) != len(keys):
        raise CorruptStateError(path, "changes a key twice")
    return writes


def _load_patch(data: object, path: str) -> Patch:
    if type(data) is not dict or len(data) != 1:
        raise CorruptStateError(path, "must be an object with the kind of the patch")
    [(kind, operand)] = data.items()
    place = f"{path}.{kind}"
    if kind in ACCUMULATORS:
        problem = operand_problem(kind, operand)
        if problem is not None:
            raise CorruptStateError(place, problem)
        return Patch(kind, operand)
    if kind == "splice":
        at, removed, items = operand if type(operand) is list and len(operand) == 3 else [None] * 3
        if type(items) is not list or type(at) is not int or type(removed) is not int:
            raise CorruptStateError(place, "must be an index, a number of items and a list")
        return Patch(kind, (in_range(at, place), in_range(removed, place), items))
    if kind == "entries":
        f = check_fields(operand, place, _ENTRIES)
        values = _pairs(f["values"], f"{place}.values")
        inside = _pairs(f["inside"], f"{place}.inside")
        patches = {key: _load_patch(each, f"{place}[{key!r}]") for key, each in inside.items()}
        removed = _pairs([[key, None] for key in f["removed"]], f"{place}.removed")
        if len({**values, **patches, **removed}) < len(values) + len(patches) + len(removed):
            raise CorruptStateError(place, "has a key in two of its members")
        return Patch(kind, (values, f["removed"], patches))
    raise CorruptStateError(path, f"{kind!r} is not a valid patch")


def _pairs(data: list[object], path: str) -> dict[Any, Any]:
    pairs: dict[Any, Any] = {}
    for pair in data:
        if type(pair) is not list or len(pair) != 2:
            raise CorruptStateError(path, "must be pairs of a key and a value")
        try:
            pairs[pair[0]] = pair[1]
        except TypeError:
            raise CorruptStateError(path, f"{pair[0]!r} can't be a key") from None
    if len(pairs) != len(data):
        raise CorruptStateError(path, "has a key twice")
    return pairs
