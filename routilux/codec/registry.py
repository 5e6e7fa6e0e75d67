"""Registry of the saved forms of types that JSON lacks.

Invariants:
- A form is a type, a tag and two functions: `write` returns data of simpler types, and `parse`
  returns an equal value of the same type from it.
- A tag has one type; a type has one tag.
- A time zone is one of the names that the host lists. The list is read once, before the first zone;
  a zone that is not in it makes Python neither open a file nor import a module.
- A built-in form reads only data that it would write: another spelling is refused.
- A form is used only for its exact type: a subclass could hold more, which would be lost.
"""

from __future__ import annotations

import datetime as dt
import inspect
import math
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from enum import Enum, Flag
from functools import cache, partial
from operator import attrgetter
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, TypeVar, overload
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from routilux.codec.equality import same_value
from routilux.codec.hashing import REASON, is_slow
from routilux.errors import FlowDefinitionError

_T = TypeVar("_T")


def class_name(cls: type) -> str:
    """Return a class's name in saved data: `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def type_name(kind: type) -> str:
    """Return the name of a class for messages.

    >>> type_name(Decimal)
    'decimal.Decimal'
    """
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def failure_text(error: Exception) -> str:
    """Return the type and the message of an exception as text.

    >>> failure_text(KeyError("x"))
    "KeyError: 'x'"
    """
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


@dataclass(frozen=True, slots=True)
class Form:
    """The saved form of a type: a tag and two functions.

    A `strict` form refuses data that `write` would not return.

    >>> form_tagged("date").read("2026-01-03")
    datetime.date(2026, 1, 3)
    """

    tag: str
    kind: type
    write: Callable[[Any], object]
    parse: Callable[[Any], object]
    strict: bool = True

    def read(self, data: object) -> object:
        """Decode `data` to a value of `kind`, or raise ValueError."""
        try:
            value = self.parse(data)
            if type(value) is not self.kind:
                found = type_name(type(value))
                raise TypeError(f"it decodes to {found}, not to {type_name(self.kind)}")
            if self.strict and not same_value(self.write(value), data):
                raise ValueError("saving this value again gives different data")
        except Exception as error:
            what = f"is not the saved form of {type_name(self.kind)} ({failure_text(error)})"
            raise ValueError(what) from None
        return value


# The closures keep the real classes: freezegun replaces the names of a module while it is active.
def _moment(tag: str, kind: Any) -> Form:
    """Return the form of `datetime` or `time`: ISO text or a dict."""

    def write(value: Any) -> object:
        zone = value.tzinfo
        plain = zone is None or (
            type(zone) is dt.timezone
            and zone.tzname(None) == dt.timezone(zone.utcoffset(None)).tzname(None)
        )
        if plain and not value.fold:
            return value.isoformat()
        place: dict[str, object] = {
            "local": value.replace(tzinfo=None, fold=0).isoformat(),
            "fold": value.fold,
        }
        if type(zone) is ZoneInfo and zone.key is not None:
            place["zone"] = _known_zone(zone.key)
        elif type(zone) is dt.timezone:
            place["offset"] = _write_delta(zone.utcoffset(None))
            place["name"] = zone.tzname(None)
        elif zone is not None:
            raise ValueError(
                f"the tzinfo {type_name(type(zone))} has no saved form;"
                " use datetime.timezone, or zoneinfo.ZoneInfo with a key"
            )
        return place

    def parse(data: Any) -> object:
        if type(data) is str:
            return kind.fromisoformat(data)
        zone: dt.tzinfo | None = None
        if "zone" in data:
            zone = ZoneInfo(_known_zone(data["zone"]))
        elif "offset" in data:
            offset = _parse_delta(data["offset"])
            plain = dt.timezone(offset)
            name = data["name"]
            zone = plain if plain.tzname(None) == name else dt.timezone(offset, name)
        return kind.fromisoformat(data["local"]).replace(tzinfo=zone, fold=data["fold"])

    return Form(tag, kind, write, parse)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _known_zone(name: Any) -> str:
    # ZoneInfo would open a file, or import a package of tzdata, by any name.
    if type(name) is str and name in _zones():
        return name
    raise ValueError(
        f"{name!r} is not a time zone of this host; use a name of zoneinfo.available_timezones()"
    )


def _write_delta(value: dt.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _parse_delta(data: Any) -> dt.timedelta:
    return dt.timedelta(*data)


def _write_complex(value: complex) -> list[str]:
    return [repr(value.real), repr(value.imag)]


_NON_FINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _distinct(kind: Callable[[Any], Any], keys: list[Any], data: Any) -> Any:
    if is_slow(keys, reading=True):
        raise ValueError(REASON.format(len(keys)))
    found = kind(data)
    if len(found) != len(data):
        raise ValueError("the data has a duplicate element or key")
    return found


def _set_of(kind: Callable[[Any], Any], data: Any) -> Any:
    return _distinct(kind, _list(data), data)


def _dict_of(data: Any) -> Any:
    pairs = [*map(_list, _list(data))]
    return _distinct(dict, [pair[0] for pair in pairs], pairs)


def _list(data: Any) -> list[Any]:
    if type(data) is not list:
        raise TypeError(f"the data is of type {type_name(type(data))}, not a list")
    return data


_PATHS: Final = (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)
_FORMS: Final[tuple[Form, ...]] = (
    _moment("datetime", dt.datetime),
    _moment("time", dt.time),
    Form("date", dt.date, dt.date.isoformat, dt.date.fromisoformat),
    Form("timedelta", dt.timedelta, _write_delta, _parse_delta),
    Form("Decimal", Decimal, str, Decimal),
    Form("UUID", UUID, str, UUID),
    Form("bytes", bytes, lambda v: b64encode(v).decode(), partial(b64decode, validate=True)),
    Form("complex", complex, _write_complex, lambda data: complex(*map(float, data))),
    Form("float", float, repr, _NON_FINITE.__getitem__),
    *(Form(path.__name__, path, str, path) for path in _PATHS),
    Form("tuple", tuple, list, lambda data: tuple(_list(data)), strict=False),
    Form("set", set, list, partial(_set_of, set), strict=False),
    Form("frozenset", frozenset, list, partial(_set_of, frozenset), strict=False),
    Form("dict", dict, list, _dict_of, strict=False),
)

_BUILT_IN: Final = (NoneType, bool, int, str, list, *(form.kind for form in _FORMS))
_RESERVED: Final = frozenset(kind.__name__ for kind in _BUILT_IN)
_by_tag: dict[str, Form] = {form.tag: form for form in _FORMS}
_by_kind: dict[type, Form] = {form.kind: form for form in _FORMS}

form_of: Final = _by_kind.get
form_tagged: Final = _by_tag.get


# --- types of other programs ----------------------------------------------------------------------


class Foreign:
    """The saved data of a value whose type is not registered."""

    __slots__ = ("data",)
    tag = ""

    def __init__(self, data: object) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and same_value(self.data, other.data)

    def __hash__(self) -> int:
        return hash(repr(self.data))

    def __repr__(self) -> str:
        return f"{self.tag.rpartition(':')[2].rpartition('.')[2]}({self.data!r})"


_foreign: dict[str, Form] = {}


def foreign(tag: str) -> Form:
    """Return a form for the unregistered type `tag`.

    >>> foreign("shop.types:Money").read({"amount": 5})
    Money({'amount': 5})
    """
    form = _foreign.get(tag)
    if form is None:
        kind = type("Foreign", (Foreign,), {"tag": tag, "__slots__": ()})
        form = Form(tag, kind, attrgetter("data"), kind, strict=False)
        _foreign[tag] = _by_kind[kind] = form
    return form


# --- the user's own types -------------------------------------------------------------------------


@overload
def register_type(
    cls: type[_T],
    /,
    *,
    name: str | None = None,
    encode: Callable[[_T], object] | None = None,
    decode: Callable[[Any], _T] | None = None,
) -> type[_T]: ...


@overload
def register_type(
    *,
    name: str | None = None,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], object] | None = None,
) -> Callable[[type[_T]], type[_T]]: ...


def register_type(
    cls: type[_T] | None = None,
    /,
    *,
    name: str | None = None,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], object] | None = None,
) -> type[_T] | Callable[[type[_T]], type[_T]]:
    """Register the saved form of a dataclass, an enum or another class.

    `name` is the type's name in saved data, by default `module:qualname`; with a name of its own
    the class can move. `encode` returns any value that can be saved; `decode` returns an equal
    instance from it. A dataclass is rebuilt by its constructor; then its fields get their saved
    values. Attributes that are no fields are lost. A dataclass may gain fields with defaults:
    older data gets these defaults. An enum is saved by the member's name, a flag by its value. A
    member may be renamed, if its old name stays as an alias. A class of the same module and
    qualname may be registered again.

    Raises `FlowDefinitionError` for a name that is taken, and for a class that needs `encode` and
    `decode`: one that is neither an enum nor a plain dataclass.

    >>> from routilux import codec
    >>> @register_type(name="money")
    ... @dataclass(frozen=True)
    ... class Money:
    ...     amount: int
    >>> codec.dumps(codec.encode(Money(5)))
    '{"$type":"money","value":{"amount":5}}'
    >>> codec.loads('{"$type":"money","value":{"amount":5}}')
    Money(amount=5)
    """

    def register(cls: type[_T]) -> type[_T]:
        if not isinstance(cls, type):
            raise FlowDefinitionError(f"register_type needs a class, not {cls!r}")
        _add(_own_form(cls, class_name(cls) if name is None else name, encode, decode))
        return cls

    return register if cls is None else register(cls)


def _own_form(
    cls: type,
    name: str,
    encode: Callable[[Any], object] | None,
    decode: Callable[[Any], object] | None,
) -> Form:
    if encode is not None and decode is not None:
        return Form(name, cls, encode, decode, strict=False)
    if encode is not None or decode is not None:
        raise FlowDefinitionError(f"register_type({cls.__qualname__}): pass both encode and decode")
    if issubclass(cls, Flag):
        return Form(name, cls, attrgetter("value"), cls)
    if issubclass(cls, Enum):
        # Not strict: an alias is the old name of a member.
        return Form(name, cls, attrgetter("name"), partial(_member, cls), strict=False)
    if "__dataclass_params__" not in vars(cls):
        raise FlowDefinitionError(
            f"{cls.__qualname__} is neither a dataclass nor an enum: pass encode and"
            " decode to register_type, or put register_type above @dataclass"
        )
    return _dataclass_form(cls, name)


def _member(cls: type[Enum], name: Any) -> object:
    if name not in cls.__members__:
        raise ValueError(
            f"{cls.__qualname__} has no member {name!r}: keep the member, or upgrade this program"
            " if a newer one has saved it"
        )
    return cls[name]


def _dataclass_form(cls: Any, name: str) -> Form:
    names = [field.name for field in fields(cls)]
    given = [field.name for field in fields(cls) if field.init]
    required = [
        field.name
        for field in fields(cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]
    if {*inspect.signature(cls).parameters} != {*given} or issubclass(
        cls, (BaseException, *_BUILT_IN)
    ):
        raise FlowDefinitionError(
            f"{cls.__qualname__} holds data besides its fields, or its constructor has parameters"
            f" other than {', '.join(given) or 'none'}: pass encode and decode to register_type"
        )

    def write(value: object) -> object:
        return {name: getattr(value, name) for name in names}

    def parse(data: Any) -> object:
        if type(data) is not dict:
            raise TypeError(f"the data is of type {type_name(type(data))}, not a dict of fields")
        unknown = [name for name in data if name not in names]
        if unknown:
            raise ValueError(
                f"{cls.__qualname__} has no field {unknown[0]!r}: keep the field, or upgrade this"
                " program if a newer one has saved it"
            )
        lacks = [name for name in required if name not in data]
        if not lacks:
            value = cls(**{name: data[name] for name in given if name in data})
            for field, saved in data.items():
                object.__setattr__(value, field, saved)
            lacks = [name for name in names if not hasattr(value, name)]
        if lacks:
            raise ValueError(
                f"the field {lacks[0]!r} was not saved and has no default: give"
                f" {cls.__qualname__}.{lacks[0]} a default"
            )
        return value

    return Form(name, cls, write, parse, strict=False)


def _add(form: Form) -> None:
    if form.kind in _BUILT_IN:
        raise FlowDefinitionError(f"{type_name(form.kind)} already has a saved form; use that form")
    if type(form.tag) is not str or not form.tag.isprintable() or not form.tag:
        raise FlowDefinitionError(f"a type's name must be printable text, not {form.tag!r}")
    if form.tag in _RESERVED:
        raise FlowDefinitionError(
            f"the name {form.tag!r} is reserved for a built-in type; give another name"
        )
    identity = class_name(form.kind)
    taken = _by_tag.get(form.tag)
    if taken is not None and class_name(taken.kind) != identity:
        raise FlowDefinitionError(
            f"the name {form.tag!r} is taken by {type_name(taken.kind)}; give another name"
        )
    replaced = [old for old in _by_kind.values() if class_name(old.kind) == identity]
    for old in replaced:
        del _by_tag[old.tag], _by_kind[old.kind]
    _by_tag[form.tag] = _by_kind[form.kind] = form
