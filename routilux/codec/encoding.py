"""Converts Python values to JSON data, and JSON data to text.

Invariants:
- A value that JSON can't hold is saved as `{"$type": tag, "value": data}`. A dict with a key
  "$type", or with a key that is no string, is tagged itself, so it is never read as a tag.
- A value without a saved form is refused with its path. Paths are built on failure only.
- The same value gives the same text in every process: sets are written in the order of their text.
- Writing has the limits of reading, so that every saved text can be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, Final

from routilux.codec import limits
from routilux.codec.equality import path_step
from routilux.codec.hashing import REASON, is_slow
from routilux.codec.limits import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, MAX_NODES
from routilux.codec.registry import failure_text, form_of, type_name
from routilux.errors import UnserializableError

TAG: Final = "$type"
VALUE_DEPTH: Final = MAX_DEPTH - 20  # so that a value at the limit fits into a document
_TOO_BIG: Final = 10**MAX_DIGITS
_SMALL: Final = 1 << 62


class RefusalError(Exception):
    """A value can't be encoded or decoded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []  # the path to the value, innermost step first

    def path(self, start: str) -> str:
        return start + "".join(reversed(self.steps))


def _too_deep() -> RefusalError:
    return RefusalError(
        f"is nested in more than {VALUE_DEPTH} levels of JSON, or contains itself; make it flatter"
    )


def encode(value: object, path: str = "$") -> Any:
    """Convert a Python value to new JSON data.

    Raises `UnserializableError` with the path (below `path`) of a value without a saved form: an
    unregistered type, a subclass of a built-in, a lone surrogate, an integer of more than
    `MAX_DIGITS` digits, a value that is nested too deep or contains itself.

    >>> encode({"at": (1, 2.5)})
    {'at': {'$type': 'tuple', 'value': [1, 2.5]}}
    """
    try:
        return _ENCODERS.get(type(value), _encode_form)(value, 0)
    except RefusalError as refusal:
        raise UnserializableError(refusal.path(path), refusal.reason) from None
    except RecursionError:
        reason = "is nested too deep for the call stack; save the value from fewer nested calls"
        raise UnserializableError(path, reason) from None


def encoded_object(members: Mapping[str, object]) -> object:
    """Return an object of encoded `members` under any names, such as the ids of routines.

    >>> encoded_object({"$type": 1})
    {'$type': 'dict', 'value': [['$type', 1]]}
    """
    if TAG in members:
        return {TAG: "dict", "value": [[name, member] for name, member in members.items()]}
    return members


def _encode(value: object, depth: int) -> object:
    return _ENCODERS.get(type(value), _encode_form)(value, depth)


def _encode_same(value: object, depth: int) -> object:
    return value


def encode_str(value: str, depth: int = 0) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RefusalError(
                f"str has a lone surrogate at index {error.start}, which UTF-8 can't hold;"
                " save it as bytes (os.fsencode, or errors='surrogateescape')"
            ) from None
    return value


def encode_int(value: int, depth: int) -> int:
    if -_TOO_BIG < value < _TOO_BIG:
        return value
    raise RefusalError(f"int has more than {MAX_DIGITS:,} digits; save it as hex(…) or as bytes")


def _encode_float(value: float, depth: int) -> object:
    return value if value - value == 0.0 else {TAG: "float", "value": repr(value)}


# Scalars are handled in the loops: a call for each member would cost half as much again.
def _encode_list(value: list[Any] | tuple[Any, ...], depth: int) -> list[object]:
    if depth >= VALUE_DEPTH:
        raise _too_deep()
    encoded: list[object] = []
    try:
        for item in value:
            kind = type(item)
            if not ((kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL)):
                item = _ENCODERS.get(kind, _encode_form)(item, depth + 1)
            encoded.append(item)
    except RefusalError as refusal:
        refusal.steps.append(f"[{len(encoded)}]")
        raise
    return encoded


def _encode_dict(value: dict[Any, Any], depth: int) -> dict[str, object]:
    if depth >= VALUE_DEPTH:
        raise _too_deep()
    if TAG in value:
        return {TAG: "dict", "value": _encode_pairs(value, depth + 2)}
    encoded: dict[str, object] = {}
    key: object = None
    try:
        for key, item in value.items():
            if type(key) is not str:
                break
            if not key.isascii():
                encode_str(key)
            kind = type(item)
            if (kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL):
                encoded[key] = item
            else:
                encoded[key] = _ENCODERS.get(kind, _encode_form)(item, depth + 1)
        else:
            return encoded
    except RefusalError as refusal:
        refusal.steps.append(path_step(key))
        raise
    return {TAG: "dict", "value": _encode_pairs(value, depth + 2)}


def _encode_pairs(value: dict[object, object], depth: int) -> list[object]:
    pairs: list[object] = []
    if is_slow(value, reading=False):
        raise RefusalError(REASON.format(len(value)))
    for key, item in value.items():
        try:
            pairs.append([_encode(key, depth + 1), _encode(item, depth + 1)])
        except RefusalError as refusal:
            refusal.steps.append(path_step(key))
            raise
    return pairs


def _encode_tuple(value: tuple[object, ...], depth: int) -> dict[str, object]:
    return {TAG: "tuple", "value": _encode_list(value, depth + 1)}


def _encode_set(value: set[object] | frozenset[object], depth: int) -> dict[str, object]:
    if depth >= VALUE_DEPTH:
        raise _too_deep()
    if is_slow(value, reading=False):
        raise RefusalError(REASON.format(len(value)))
    # In the order of their saved text, which is the same in every process.
    encoded = sorted((_encode(item, depth + 2) for item in value), key=_to_text)
    return {TAG: type(value).__name__, "value": encoded}


def _encode_form(value: object, depth: int) -> dict[str, object]:
    kind = type(value)
    name = type_name(kind)
    form = form_of(kind)
    if form is None:
        base = next(
            (base for base in kind.__mro__[1:-1] if form_of(base) or base in _ENCODERS), None
        )
        known = "has no saved form" if base is None else f"is not saved as {type_name(base)}"
        raise RefusalError(
            f"{name} {known}; register a form with register_type, or save plain data instead"
        )
    if depth >= VALUE_DEPTH:
        raise _too_deep()
    try:
        data = form.write(value)
    except Exception as error:
        raise RefusalError(f"{name} can't be saved: {failure_text(error)}") from None
    return {TAG: form.tag, "value": _encode(data, depth + 1)}


_ENCODERS: Final[dict[type, Callable[[Any, int], object]]] = {
    NoneType: _encode_same,
    bool: _encode_same,
    int: encode_int,
    float: _encode_float,
    str: encode_str,
    list: _encode_list,
    dict: _encode_dict,
    tuple: _encode_tuple,
    set: _encode_set,
    frozenset: _encode_set,
}
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
quoted: Final = json.encoder.encode_basestring
"""Return a string as JSON text; `bounded` later refuses a text with a lone surrogate."""


def _encoder() -> Callable[[object], str]:
    # `JSONEncoder.encode` creates the C encoder for each text, a third of the cost of a row.
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _ENCODER.encode
    encode_in_c = make(None, _ENCODER.default, quoted, None, ":", ",", False, False, False)
    return lambda data: "".join(encode_in_c(data, 0))


_to_text: Final = _encoder()


def dumps(data: object) -> str:
    """Convert JSON data (a result of `encode`) to compact JSON text.

    Raises `UnserializableError` for data that `encode` does not return, and for more than
    `MAX_BYTES` or `MAX_NODES`.

    >>> dumps(encode({"n": [1, 2.0]}))
    '{"n":[1,2.0]}'
    """
    return bounded(_text(data))


def value_text(value: object, path: str) -> str:
    """Convert `value` to JSON text; only `bounded` checks the size.

    >>> value_text((1, 2.5), "$")
    '{"$type":"tuple","value":[1,2.5]}'
    """
    return _to_text(encode(value, path))


def dumps_object(members: Mapping[str, object]) -> str:
    """Convert encoded `members` to the JSON text of an object.

    An iterator among the members yields the JSON texts of an array's entries: many entries held as
    data would start the garbage collector. The limits of `dumps` apply.

    >>> dumps_object({"n": 1, "at": iter(["2", "3"])})
    '{"n":1,"at":[2,3]}'
    """
    return bounded(
        ",".join(
            f"{quoted(name)}:[{','.join(value)}]"
            if isinstance(value, Iterator)
            else f"{quoted(name)}:{_text(value)}"
            for name, value in members.items()
        ).join("{}")
    )


def _text(data: object) -> str:
    try:
        return _to_text(data)
    except (TypeError, ValueError, RecursionError) as error:
        encode(data)
        raise UnserializableError(
            "$", f"is not encoded data ({error}); pass what encode() returns"
        ) from None


def bounded(text: str, path: str = "$") -> str:
    """Check the size of a JSON text, and return the text.

    Raises `UnserializableError` for more than `MAX_BYTES` or `MAX_NODES`, and for a lone surrogate.

    >>> bounded('{"n":1}')
    '{"n":1}'
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        encode(json.loads(text, parse_int=len), path)
        raise UnserializableError(path, f"can't be written as UTF-8: {error}") from None
    if size > MAX_BYTES:
        raise UnserializableError(
            path, f"takes {size:,} bytes, more than the limit of {MAX_BYTES:,}; save less data"
        )
    if size > MAX_NODES and limits.nodes(limits.outline(text.encode())) > MAX_NODES:
        raise UnserializableError(path, f"has more than {MAX_NODES:,} values; save fewer values")
    return text
