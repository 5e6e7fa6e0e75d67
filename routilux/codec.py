"""Values ⇄ JSON.

Laws:
- A value comes back equal and of the same type, or saving it fails and names the path.
- What JSON can't say stands as `{"$type": tag, "value": data}`. A dict of the user's own that has
  a "$type" key, or a key that is no string, is tagged itself, so it is never taken for a tag.
- Loading never imports, calls by name or unpickles: a tag is looked up among the forms that this
  program knows.
- Bytes, values, depth and digits are bounded, before anything is built. What was saved can be
  loaded: writing keeps to the same bounds.
- Nothing but `SavedStateError` escapes from loading, whatever the input.
- Loading has a fast way, which says yes, and a careful way, which gives the same values and says
  where and why not. Whatever the fast way is not sure of goes the careful way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import NoneType
from typing import Any, Final

from routilux import bounds
from routilux.bounds import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, MAX_NODES
from routilux.errors import CorruptStateError, UnserializableError
from routilux.fields import Fields, check_fields, member
from routilux.tags import foreign, form_of, form_tagged, register_type, said, type_name

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_NODES",
    "Fields",
    "bounded",
    "check_fields",
    "decode",
    "dumps",
    "dumps_object",
    "encode",
    "foreign_types",
    "loads",
    "quoted",
    "register_type",
    "saved",
]

_TAG: Final = "$type"
_takes_foreign: Final = ContextVar("takes_foreign", default=False)
_VALUE_DEPTH: Final = MAX_DEPTH - 20  # so that a value at the bound fits into a document
_TOO_BIG: Final = 10**MAX_DIGITS
_SMALL: Final = 1 << 62


class _RefusalError(Exception):
    """Why a value is refused; on its way up each level adds its step, so success builds no paths.

    A step is the container and the text that leads from it to the member.
    """

    def __init__(self, reason: str, *, too_deep: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.too_deep = too_deep
        self.steps: list[tuple[object, str]] = []

    def path(self, start: str) -> str:
        return start + "".join(step for _, step in reversed(self.steps))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _RefusalError(
            f"str has a lone surrogate at {error.start}, which no UTF-8 file can hold;"
            " save it as bytes (os.fsencode, or errors='surrogateescape')"
        ) from None


def _too_deep() -> _RefusalError:
    return _RefusalError(f"is nested in more than {_VALUE_DEPTH} levels of JSON", too_deep=True)


# --- writing --------------------------------------------------------------------------------------


def encode(value: object, path: str = "$") -> Any:
    """Return a value as JSON data of its own, sharing nothing mutable; `path` is where it stands.

    Raises `UnserializableError` with the exact path of what has no form: an unregistered type, a
    subclass of a built-in, a lone surrogate, an integer of more than `MAX_DIGITS` digits, a value
    that is nested too deep or contains itself.

    >>> encode({"at": (1, 2.5)})
    {'at': {'$type': 'tuple', 'value': [1, 2.5]}}
    """
    try:
        return _ENCODERS.get(type(value), _encode_form)(value, 0)
    except _RefusalError as refusal:
        place, reason = refusal.path(path), refusal.reason
        if refusal.too_deep:
            place, reason = _explain_depth(refusal, path)
        raise UnserializableError(place, reason) from None
    except RecursionError:
        raise UnserializableError(path, "the call stack has no room left to save it") from None


def _explain_depth(refusal: _RefusalError, path: str) -> tuple[str, str]:
    seen: dict[int, str] = {}
    place = path
    for container, step in reversed(refusal.steps):
        if id(container) in seen:
            return (
                place,
                f"{type_name(type(container))} contains itself: it is {seen[id(container)]}",
            )
        seen[id(container)] = place
        place += step
    return place, refusal.reason


def _encode(value: object, depth: int) -> object:
    return _ENCODERS.get(type(value), _encode_form)(value, depth)


def _encode_same(value: object, depth: int) -> object:
    return value


def _encode_str(value: str, depth: int) -> str:
    if not value.isascii():
        _check_text(value)
    return value


def _encode_int(value: int, depth: int) -> int:
    if -_TOO_BIG < value < _TOO_BIG:
        return value
    raise _RefusalError(f"int has more than {MAX_DIGITS:,} digits; save it as hex(…) or as bytes")


def _encode_float(value: float, depth: int) -> object:
    return value if value - value == 0.0 else {_TAG: "float", "value": repr(value)}


# Scalars are handled in the loops: a call for each member would cost half as much again.
def _encode_list(value: list[Any] | tuple[Any, ...], depth: int) -> list[object]:
    if depth >= _VALUE_DEPTH:
        raise _too_deep()
    encoded: list[object] = []
    try:
        for item in value:
            kind = type(item)
            if not ((kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL)):
                item = _ENCODERS.get(kind, _encode_form)(item, depth + 1)
            encoded.append(item)
    except _RefusalError as refusal:
        refusal.steps.append((value, f"[{len(encoded)}]"))
        raise
    return encoded


def _encode_dict(value: dict[Any, Any], depth: int) -> dict[str, object]:
    if depth >= _VALUE_DEPTH:
        raise _too_deep()
    if _TAG in value:
        return {_TAG: "dict", "value": _encode_pairs(value, depth + 2)}
    encoded: dict[str, object] = {}
    key: object = None
    try:
        for key, item in value.items():
            if type(key) is not str:
                break
            if not key.isascii():
                _check_text(key)
            kind = type(item)
            if (kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL):
                encoded[key] = item
            else:
                encoded[key] = _ENCODERS.get(kind, _encode_form)(item, depth + 1)
        else:
            return encoded
    except _RefusalError as refusal:
        refusal.steps.append((value, member(key)))
        raise
    return {_TAG: "dict", "value": _encode_pairs(value, depth + 2)}


def _encode_pairs(value: dict[object, object], depth: int) -> list[object]:
    pairs: list[object] = []
    for key, item in value.items():
        try:
            pairs.append([_encode(key, depth + 1), _encode(item, depth + 1)])
        except _RefusalError as refusal:
            refusal.steps.append((value, member(key)))
            raise
    return pairs


def _encode_tuple(value: tuple[object, ...], depth: int) -> dict[str, object]:
    return {_TAG: "tuple", "value": _encode_list(value, depth + 1)}


def _encode_set(value: set[object] | frozenset[object], depth: int) -> dict[str, object]:
    if depth >= _VALUE_DEPTH:
        raise _too_deep()
    # In the order of their saved text, which is the same in every process.
    encoded = sorted((_encode(item, depth + 2) for item in value), key=_to_text)
    return {_TAG: type(value).__name__, "value": encoded}


def _encode_form(value: object, depth: int) -> dict[str, object]:
    kind = type(value)
    name = type_name(kind)
    form = form_of(kind)
    if form is None:
        base = next(
            (base for base in kind.__mro__[1:-1] if form_of(base) or base in _ENCODERS), None
        )
        known = "has no saved form" if base is None else f"is not saved as {type_name(base)}"
        raise _RefusalError(
            f"{name} {known}; give it a form with register_type, or keep plain data instead"
        )
    if depth >= _VALUE_DEPTH:
        raise _too_deep()
    try:
        data = form.write(value)
    except Exception as error:
        raise _RefusalError(f"{name} can't be saved: {said(error)}") from None
    return {_TAG: form.tag, "value": _encode(data, depth + 1)}


_ENCODERS: Final[dict[type, Callable[[Any, int], object]]] = {
    NoneType: _encode_same,
    bool: _encode_same,
    int: _encode_int,
    float: _encode_float,
    str: _encode_str,
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
"""Return a text as JSON text; one with a lone surrogate is `bounded`'s to refuse."""


def _encoder() -> Callable[[object], str]:
    # `JSONEncoder.encode` makes the encoder in C anew for each text: a third of the cost of a row.
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _ENCODER.encode
    encode_in_c = make(None, _ENCODER.default, quoted, None, ":", ",", False, False, False)
    return lambda data: "".join(encode_in_c(data, 0))


_to_text: Final = _encoder()


def dumps(data: object) -> str:
    """Return encoded data as compact JSON text.

    Raises `UnserializableError` for data that `encode` would not have given, and for more than
    `MAX_BYTES` or `MAX_NODES`.

    >>> dumps(encode({"n": [1, 2.0]}))
    '{"n":[1,2.0]}'
    """
    return bounded(_text(data))


def saved(value: object, path: str) -> str:
    """Return the JSON text of a value, which is to be a part of one that is `bounded`.

    >>> saved((1, 2.5), "$")
    '{"$type":"tuple","value":[1,2.5]}'
    """
    return _to_text(encode(value, path))


def dumps_object(members: Mapping[str, object]) -> str:
    """Return an object of encoded data as compact JSON text, with the same bounds as `dumps`.

    A member that is an iterator is an array, and yields the texts of its entries: as data, many
    that are alive at once would set the garbage collector going, which costs more than the text.

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
        raise UnserializableError("$", f"is not encoded data: {error}") from None


def bounded(text: str, path: str = "$") -> str:
    """Return a JSON text that can be loaded again; `path` is where it stands.

    Raises `UnserializableError` for more than `MAX_BYTES` or `MAX_NODES`, and for a lone surrogate.

    >>> bounded('{"n":1}')
    '{"n":1}'
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        encode(json.loads(text, parse_int=len), path)
        raise UnserializableError(path, f"is no UTF-8 text: {error}") from None
    if size > MAX_BYTES:
        raise UnserializableError(
            path, f"takes {size:,} bytes; at most {MAX_BYTES:,} can be loaded"
        )
    if size > MAX_NODES and bounds.nodes(bounds.outline(text.encode())) > MAX_NODES:
        raise UnserializableError(path, f"has more than {MAX_NODES:,} values")
    return text


# --- reading --------------------------------------------------------------------------------------


def loads(text: str | bytes, *, max_bytes: int = MAX_BYTES, untag: bool = True) -> Any:
    """Return the value that a JSON text holds, its tagged values decoded.

    Without `untag` they stay the JSON objects that they are in the text, for `decode` to decode.

    Raises `CorruptStateError` with the path for all that `dumps(encode(…))` does not write: bytes
    that are not UTF-8, JSON that is cut off or of another dialect (NaN, numbers out of range, a
    key twice), tags that nobody registered or whose value does not fit, and whatever is beyond
    `max_bytes`, `MAX_NODES`, `MAX_DEPTH` or `MAX_DIGITS`.

    >>> loads(b'{"at":{"$type":"tuple","value":[1,2.5]}}')
    {'at': (1, 2.5)}
    """
    try:
        data, chars = (text, text.decode()) if isinstance(text, bytes) else (text.encode(), text)
    except UnicodeError as error:
        raise CorruptStateError("$", f"is not UTF-8: {error}") from None
    if len(data) > max_bytes:
        raise CorruptStateError("$", f"is longer than the {max_bytes:,} bytes that are allowed")
    outline = bounds.outline(data)
    if bounds.nodes(outline) > MAX_NODES:
        raise CorruptStateError("$", f"has more than {MAX_NODES:,} values")
    if bounds.depth(outline) <= MAX_DEPTH and not bounds.is_doubtful(data):
        try:
            return _read(chars, bounds.members(outline), _untag if untag else _as_it_stands)
        except (_RefusalError, ValueError, RecursionError):
            pass
    try:
        parsed = _CAREFUL.decode(chars)
    except json.JSONDecodeError as error:
        raise CorruptStateError("$", _describe(error)) from None
    except RecursionError:
        raise CorruptStateError(
            "$", f"is nested deeper than {MAX_DEPTH} levels or the stack has room for"
        ) from None
    return _decoded(parsed, "$", _untag if untag else _as_it_stands)


def decode(data: object, path: str = "$") -> Any:
    """Return the value that parsed JSON data holds; `path` is where the data stands.

    Raises `CorruptStateError` with the path, as `loads` does.

    >>> decode({"$type": "date", "value": "2026-01-03"})
    datetime.date(2026, 1, 3)
    """
    return _decoded(data, path, _untag)


def _decoded(data: object, path: str, tagged: _Tagged) -> object:
    try:
        return _decode(data, 0, tagged)
    except _RefusalError as refusal:
        raise CorruptStateError(refusal.path(path), refusal.reason) from None
    except RecursionError:
        raise CorruptStateError(path, "the call stack has no room left to load it") from None


@contextmanager
def foreign_types() -> Iterator[None]:
    """Read values of types that nobody registered here: for who looks at data and runs nothing.

    They are written again as they were read.

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
        return f"is cut off: JSON ends in the middle of a value that is open at {place}"
    return f"is not JSON: {error.msg} at {place}"


def _untag(members: dict[str, object]) -> object:
    """Return the value of a tagged object whose members are decoded already."""
    tag = members[_TAG]
    if len(members) != 2 or "value" not in members or type(tag) is not str:
        raise _RefusalError('is not a tagged value, which has a "$type" of text and a "value" only')
    form = form_tagged(tag)
    if form is None and _takes_foreign.get():
        form = foreign(tag)
    if form is None:
        raise _RefusalError(
            f"has the unknown $type {tag!r}; import the module that registers it (register_type)"
            " before loading"
        )
    try:
        return form.read(members["value"])
    except ValueError as error:
        raise _RefusalError(str(error)) from None


def _as_it_stands(members: dict[str, object]) -> object:
    return members


_Tagged = Callable[[dict[str, object]], object]


def _read(text: str, members: int, tagged: _Tagged = _untag) -> object:
    """Return what a text holds, which has so many members; of a key that stands twice one is lost.

    Counting costs half of what it costs to look for such keys in each object.
    """
    lengths: list[int] = []
    count = lengths.append

    def counted(found: dict[str, object]) -> object:
        count(len(found))
        return tagged(found) if _TAG in found else found

    value = json.JSONDecoder(
        object_hook=counted, parse_float=_read_float, parse_constant=_refuse_constant
    ).decode(text)
    if sum(lengths) != members:
        raise _RefusalError("holds a key twice")
    return value


def _read_float(text: str) -> float:
    value = float(text)
    if value - value == 0.0:
        return value
    raise _RefusalError("is too big for a float")


def _refuse_constant(name: str) -> object:
    raise _RefusalError(f"is {name}, which JSON does not have")


class _Pairs(list[tuple[str, object]]):
    """An object as it was parsed the careful way: with the keys that stand twice."""


class _Unusable:
    """A number that can't be read, kept until its path is known."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _careful_int(text: str) -> object:
    if len(text.lstrip("-")) <= MAX_DIGITS:
        try:
            return int(text)
        except ValueError:
            pass
    return _Unusable(f"is an integer of {len(text):,} characters, which is too long")


def _careful_float(text: str) -> object:
    value = float(text)
    return value if value - value == 0.0 else _Unusable(f"is {text[:40]}, too big for a float")


def _careful_constant(name: str) -> object:
    return _Unusable(f"is {name}, which JSON does not have")


_CAREFUL: Final = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_int=_careful_int,
    parse_float=_careful_float,
    parse_constant=_careful_constant,
)


def _decode(data: Any, depth: int, tagged: _Tagged) -> object:
    kind = type(data)
    if kind is str:
        return _encode_str(data, depth)
    if kind is bool or kind is NoneType:
        return data
    if kind is int:
        return _encode_int(data, depth)
    if kind is float and data - data == 0.0:
        return data
    if kind is list:
        return _decode_list(data, depth, tagged)
    if kind is dict:
        return _decode_object(data.items(), depth, tagged)
    if kind is _Pairs:
        return _decode_object(data, depth, tagged)
    raise _RefusalError(
        data.reason if kind is _Unusable else f"is of type {type_name(kind)}, which JSON has not"
    )


def _decode_list(data: list[object], depth: int, tagged: _Tagged) -> list[object]:
    if depth >= MAX_DEPTH:
        raise _RefusalError(f"is nested deeper than {MAX_DEPTH} levels")
    decoded: list[object] = []
    try:
        for item in data:
            decoded.append(_decode(item, depth + 1, tagged))  # noqa: PERF401  # the length is the index
    except _RefusalError as refusal:
        refusal.steps.append((data, f"[{len(decoded)}]"))
        raise
    return decoded


def _decode_object(pairs: Any, depth: int, tagged: _Tagged) -> object:
    if depth >= MAX_DEPTH:
        raise _RefusalError(f"is nested deeper than {MAX_DEPTH} levels")
    members: dict[str, object] = {}
    key: object = None
    try:
        for key, item in pairs:
            if type(key) is not str:
                raise _RefusalError(f"has a key of type {type_name(type(key))}; JSON has text only")
            _encode_str(key, depth)
            if key in members:
                raise _RefusalError("stands twice; one of the two has to go")
            members[key] = _decode(item, depth + 1, tagged)
    except _RefusalError as refusal:
        refusal.steps.append((pairs, member(key)))
        raise
    return tagged(members) if _TAG in members else members
