"""Saved forms of the values in jobs and commits.

Invariants:
- A saved form is plain JSON with integer nanoseconds; a missing optional field has its default.
- Reading checks every field and the range of every number.
- An error that was read stays data; it is never turned into an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from routilux import codec
from routilux.codec import quoted
from routilux.codec.copying import is_flat
from routilux.codec.schema import check_fields, fits
from routilux.errors import CorruptStateError
from routilux.graph.messages import GATHER, Emission, ErrorInfo, RecordedEffect, Task, Writes
from routilux.graph.patches import ACCUMULATORS, Patch, operand_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_EARLIEST: Final = -62_135_596_800 * 10**9
_LATEST: Final = 253_402_300_799 * 10**9
_LONGEST: Final = _LATEST - _EARLIEST
_LARGEST_COUNT: Final = 2**53
_TEXT: Final = frozenset({str})
LONGEST_ID: Final = 64
"""The most characters of a task's id, so that the ids of its tasks take little time."""
_EMISSION_FIELDS: codec.Fields = {"event": str, "payload": dict}
_TASK_REQUIRED: codec.Fields = {"task_id": str, "routine_id": str, "slot": str, "emission": int}
_TASK_OPTIONAL: codec.Fields = {"payload": dict, "keeps": list, "into": str}
_WRITES_FIELDS: codec.Fields = {"values": dict, "removed": list, "patches": dict}
_ENTRIES: codec.Fields = {"values": list, "removed": list, "inside": list}
_ERROR_REQUIRED: codec.Fields = {"type": str, "message": str}
_ERROR_OPTIONAL: codec.Fields = {"where": str, "traceback": str, "notes": list, "leaves": list}
_EFFECT_FIELDS: codec.Fields = {"arguments": str, "result": object}


def in_range(number: int, path: str, least: int = 0) -> int:
    """Check and return a saved number from `least` to 2**53."""
    if not least <= number <= _LARGEST_COUNT:
        raise CorruptStateError(path, f"must be a number from {least} to 2**53, not {number}")
    return number


def instant(number: int, path: str) -> int:
    """Check and return a saved instant (ns) in the years 1 to 9999."""
    if not _EARLIEST <= number <= _LATEST:
        raise CorruptStateError(path, f"must be an instant in the years 1 to 9999, not {number} ns")
    return number


def duration(number: int, path: str) -> int:
    """Check and return a saved duration (ns) of 0 to 9999 years."""
    if not 0 <= number <= _LONGEST:
        raise CorruptStateError(path, f"must be a duration from 0 to 9999 years, not {number} ns")
    return number


def payload(data: dict[str, object], path: str) -> dict[str, object]:
    """Check and return a saved payload, whose keys must be strings."""
    if not _TEXT.issuperset(map(type, data)):
        key = next(key for key in data if type(key) is not str)
        raise CorruptStateError(path, f"must have only strings as keys, but has the key {key!r}")
    return data


def texts(value: object, path: str) -> list[str]:
    """Check and return a saved list of strings."""
    if not isinstance(value, list) or not _TEXT.issuperset(map(type, value)):
        raise CorruptStateError(path, "must be a list of strings")
    return value


def task_id(text: str, path: str) -> str:
    """Check and return a saved task id of at most `LONGEST_ID` characters."""
    if len(text) > LONGEST_ID:
        raise CorruptStateError(path, f"must have at most {LONGEST_ID} characters")
    return text


def load_keeps(f: dict[str, Any], path: str) -> tuple[str, ...]:
    """Return the gathers that a saved task keeps open."""
    keeps = texts(f.get("keeps", []), f"{path}.keeps")
    if len(set(keeps)) < len(keeps):
        raise CorruptStateError(f"{path}.keeps", "names a gather twice")
    return tuple(keeps)


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


def writes_text(writes: Writes, path: str) -> str:
    """Return the saved form of a step's writes as JSON text."""
    parts = []
    if writes.values:
        parts.append(f'"values":{codec.value_text(writes.values, f"{path}.values")}')
    if writes.removed:
        parts.append(f'"removed":[{",".join(map(quoted, writes.removed))}]')
    if writes.patches:
        found = ",".join(
            f"{quoted(key)}:{_patches_text(each, f'{path}.patches[{key!r}]')}"
            for key, each in writes.patches.items()
        )
        parts.append(f'"patches":{{{found}}}')
    return f"{{{','.join(parts)}}}"


def _patches_text(patches: Sequence[Patch], path: str) -> str:
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


def load_emission(f: Any, index: int) -> Emission:
    """Make emission number `index` of a commit from saved data."""
    if type(f) is not dict or not fits(f, _EMISSION_FIELDS):
        check_fields(f, f".emissions[{index}]", _EMISSION_FIELDS)
    values = f["payload"]
    if not _TEXT.issuperset(map(type, values)):
        payload(values, f".emissions[{index}].payload")
    return Emission(f["event"], values, is_flat(values))


def load_task(f: Any, emissions: Sequence[Emission], position: int) -> Task:
    """Make a task of a commit from saved data.

    A task that was saved without a payload gets the payload of its emission.
    """
    if type(f) is not dict or not fits(f, _TASK_REQUIRED, _TASK_OPTIONAL):
        check_fields(f, f".tasks[{position}]", _TASK_REQUIRED, _TASK_OPTIONAL)
    if len(f["task_id"]) > LONGEST_ID:
        task_id(f["task_id"], f".tasks[{position}].task_id")
    index = f["emission"]
    if not GATHER <= index < len(emissions):
        in_range(index, f".tasks[{position}].emission", least=GATHER)
        raise CorruptStateError(
            f".tasks[{position}].emission", f"the commit has no emission {index}"
        )
    if "payload" in f:
        values = payload(f["payload"], f".tasks[{position}].payload")
        flat = is_flat(values)
    elif index < 0:
        raise CorruptStateError(f".tasks[{position}].payload", "is missing")
    else:
        delivered = emissions[index]
        values, flat = delivered.payload, delivered.flat
    task = Task(f["task_id"], f["routine_id"], f["slot"], values, flat, index)
    if "keeps" in f:
        task.keeps = load_keeps(f, f".tasks[{position}]")
    if "into" in f:
        task.into = f["into"]
    return task
