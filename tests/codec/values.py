"""Values of every saved kind, and classes with and without a saved form."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from routilux.codec import register_type

ZONES = st.sampled_from(
    [
        None,
        dt.UTC,
        dt.timezone(dt.timedelta(hours=-5, seconds=7, microseconds=9)),
        dt.timezone(dt.timedelta(hours=1), "CET"),
        ZoneInfo("Europe/Berlin"),
        ZoneInfo("UTC"),
    ]
)


@register_type(name="test-money")
@dataclass(frozen=True)
class Money:
    amount: object
    currency: str = "EUR"


@register_type(name="test-colour")
class Colour(enum.Enum):
    RED = "r"
    CRIMSON = RED
    BLUE = object()


@register_type(name="test-rights")
class Rights(enum.Flag):
    READ = 1
    WRITE = 2


def moments(kind: Any) -> st.SearchStrategy[Any]:
    return st.builds(lambda m, fold: m.replace(fold=fold), kind, st.integers(0, 1))


SCALAR_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([63, 4000]).map(lambda n: 10**n - 1)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | moments(st.datetimes(timezones=ZONES))
    | moments(st.times(timezones=ZONES))
    | st.sampled_from([PosixPath("/a/é"), PurePosixPath("."), PureWindowsPath("C:\\Ab"), Path("x")])
    | st.sampled_from([*Colour, Rights(0), Rights.READ | Rights.WRITE, Money(1)])
)


HASHABLE = st.recursive(
    SCALAR_VALUES.filter(lambda value: type(value) is not Decimal or not value.is_snan()),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


KEYS = st.sampled_from(["$type", "value", "a b", ""]) | st.text()


VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALAR_VALUES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.builds(Money, inner)
    ),
    max_leaves=10,
)


class Loud(str):
    __slots__ = ()


class Unregistered:
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


SMALL_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), Decimal(1), Decimal("1.0"), 1j, -0j])
    | st.sampled_from(["", "a", "b", b"a", dt.date(2026, 1, 1), UUID(int=1), PurePosixPath("a")])
)
SMALL_HASHABLE = st.recursive(
    SMALL_SCALARS, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2), max_leaves=3
)
SMALL_VALUES: st.SearchStrategy[object] = st.recursive(
    SMALL_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(SMALL_HASHABLE, max_size=3)
        | st.dictionaries(SMALL_HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)
"""Small values, of which many are alike."""


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value


class Level(enum.IntEnum):
    LOW = 1
