"""Converts JSON text or parsed JSON data to Python values.

Invariants:
- Loading never imports, calls by name or unpickles: a tag is looked up among the registered forms,
  and a time zone among those of the host.
- No input raises anything but `SavedStateError`. Limits are checked before anything is built.
- The fast parser only accepts. If it refuses a text, the careful parser reads the text again: it
  gives the same values, or the path and the reason of the refusal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import NoneType
from typing import Any, Final

from routilux.codec import limits
from routilux.codec.encoding import TAG, RefusalError, encode_int, encode_str
from routilux.codec.equality import path_step
from routilux.codec.limits import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, MAX_NODES
from routilux.codec.registry import foreign, form_tagged, type_name
from routilux.errors import CorruptStateError

_takes_foreign: Final = ContextVar("takes_foreign", default=False)


def loads(text: str | bytes, *, max_bytes: int = MAX_BYTES, untag: bool = True) -> Any:
    """Parse a JSON text into a Python value.

    Without `untag`, tagged values stay JSON objects, which `decode` can decode later.

    Raises `CorruptStateError` with the path for text that `dumps(encode(…))` does not write: bytes
    that are not UTF-8; JSON that is cut off or of another dialect (NaN, numbers out of range,
    duplicate keys); tags that are not registered or do not fit their value; and text beyond
    `max_bytes`, `MAX_NODES`, `MAX_DEPTH` or `MAX_DIGITS`.

    >>> loads(b'{"at":{"$type":"tuple","value":[1,2.5]}}')
    {'at': (1, 2.5)}
    """
    try:
        data, chars = (text, text.decode()) if isinstance(text, bytes) else (text.encode(), text)
    except UnicodeError as error:
        raise CorruptStateError("$", f"is not UTF-8: {error}") from None
    if len(data) > max_bytes:
        raise CorruptStateError("$", f"is longer than the limit of {max_bytes:,} bytes")
    outline = limits.outline(data)
    if limits.nodes(outline) > MAX_NODES:
        raise CorruptStateError("$", f"has more values than the limit of {MAX_NODES:,}")
    if limits.depth(outline) <= MAX_DEPTH and not limits.is_doubtful(data):
        try:
            return _read(chars, limits.members(outline), untag)
        except (RefusalError, ValueError, RecursionError):
            pass
    try:
        parsed = _CAREFUL.decode(chars)
    except json.JSONDecodeError as error:
        raise CorruptStateError("$", _describe(error)) from None
    except RecursionError:
        raise CorruptStateError(
            "$", f"is nested deeper than {MAX_DEPTH} levels or too deep for the call stack"
        ) from None
    return _decoded(parsed, "$", untag)


def decode(data: object, path: str = "$") -> Any:
    """Convert parsed JSON data to a Python value.

    Raises `CorruptStateError`, as `loads` does, with a path below `path`.

    >>> decode({"$type": "date", "value": "2026-01-03"})
    datetime.date(2026, 1, 3)
    """
    return _decoded(data, path, True)


def _decoded(data: object, path: str, untag: bool) -> object:
    try:
        return _decode(data, 0, untag)
    except RefusalError as refusal:
        raise CorruptStateError(refusal.path(path), refusal.reason) from None
    except RecursionError:
        reason = "is nested too deep for the call stack; load the data from fewer nested calls"
        raise CorruptStateError(path, reason) from None


@contextmanager
def foreign_types() -> Iterator[None]:
    """Let `loads` accept unregistered types until the `with` statement ends.

    For programs that only show data. A value of such a type is saved again as it was loaded.

    >>> with foreign_types():
    ...     loads('{"$type":"shop.types:Money","value":{"amount":5}}')
    Money({'amount': 5})
    """
    before = _takes_foreign.set(True)
    try:
        yield
    finally:
        _takes_foreign.reset(before)


def _describe(error: json.JSONDecodeError) -> str:
    if not error.doc.strip():
        return "is empty"
    place = f"line {error.lineno}, column {error.colno}"
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
        return f"is cut off in a value that starts at {place}"
    return f"is not JSON: {error.msg} at {place}"


def _untag(members: dict[str, object]) -> object:
    """Return the value of a tagged object with decoded `members`."""
    tag = members[TAG]
    if len(members) != 2 or "value" not in members or type(tag) is not str:
        raise RefusalError(
            'is not a tagged value: it must have two members, a string "$type" and a "value"'
        )
    form = form_tagged(tag)
    if form is None and _takes_foreign.get():
        form = foreign(tag)
    if form is None:
        raise RefusalError(
            f"has the unknown $type {tag!r}; before loading, import the module that calls"
            " register_type for this type"
        )
    try:
        return form.read(members["value"])
    except ValueError as error:
        raise RefusalError(str(error)) from None


def _read(text: str, members: int, untag: bool = True) -> object:
    """Parse `text` by the fast parser.

    All objects must have `members` members in total: a duplicate key loses one.
    """
    lengths: list[int] = []
    count = lengths.append

    def counted(found: dict[str, object]) -> object:
        count(len(found))  # takes half the time of a search for duplicates in each object
        return _untag(found) if TAG in found and untag else found

    value = json.JSONDecoder(
        object_hook=counted, parse_float=_read_float, parse_constant=_read_float
    ).decode(text)
    if sum(lengths) != members:
        raise RefusalError("has an object with a duplicate key")
    return value


def _read_float(text: str) -> float:
    value = float(text)
    if value - value == 0.0:
        return value
    raise RefusalError("has a number that is not finite")  # the careful parser says where


class _Pairs(list[tuple[str, object]]):
    """A list of key and value pairs that keeps duplicate keys."""


def _read_int(text: str) -> object:
    """Return the integer in `text`, or an error to raise later."""
    try:
        if len(text.lstrip("-")) <= MAX_DIGITS:
            return int(text)
    except ValueError:
        pass  # this interpreter has a lower limit
    return RefusalError(f"is an integer of {len(text):,} characters, which is too long")


_CAREFUL: Final = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_read_int)


def _decode(data: Any, depth: int, untag: bool) -> object:
    kind = type(data)
    if kind is str:
        return encode_str(data, depth)
    if kind is bool or kind is NoneType:
        return data
    if kind is int:
        return encode_int(data, depth)
    if kind is float:
        if data - data == 0.0:
            return data
        raise RefusalError(f"is {data}: JSON has no such number, or it is too big for a float")
    if kind is list:
        return _decode_list(data, depth, untag)
    if kind is dict:
        return _decode_object(data.items(), depth, untag)
    if kind is _Pairs:
        return _decode_object(data, depth, untag)
    if kind is RefusalError:
        raise data
    raise RefusalError(f"is of type {type_name(kind)}, which JSON does not have")


def _decode_list(data: list[object], depth: int, untag: bool) -> list[object]:
    if depth >= MAX_DEPTH:
        raise RefusalError(f"is nested deeper than {MAX_DEPTH} levels")
    decoded: list[object] = []
    try:
        for item in data:
            decoded.append(_decode(item, depth + 1, untag))  # noqa: PERF401  # the length is the index
    except RefusalError as refusal:
        refusal.steps.append(f"[{len(decoded)}]")
        raise
    return decoded


def _decode_object(pairs: Any, depth: int, untag: bool) -> object:
    if depth >= MAX_DEPTH:
        raise RefusalError(f"is nested deeper than {MAX_DEPTH} levels")
    members: dict[str, object] = {}
    key: object = None
    try:
        for key, item in pairs:
            if type(key) is not str:
                raise RefusalError(
                    f"has a key of type {type_name(type(key))}; JSON keys must be strings"
                )
            encode_str(key, depth)
            if key in members:
                raise RefusalError("is a duplicate key; keep only one member with this key")
            members[key] = _decode(item, depth + 1, untag)
    except RefusalError as refusal:
        refusal.steps.append(path_step(key))
        raise
    return _untag(members) if TAG in members and untag else members
