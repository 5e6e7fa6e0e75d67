"""Plain values: copies, equality, and the text of the first difference."""

from __future__ import annotations

import copy
import datetime as dt
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux.codec.copying import copy_value, is_flat
from routilux.codec.equality import SCALARS, Difference, first_difference, same_value
from tests.soak import examples

SCALAR_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), Decimal(1), Decimal("1.0"), 1j, -0j])
    | st.sampled_from(["", "a", "b", b"a", dt.date(2026, 1, 1), UUID(int=1), PurePosixPath("a")])
)
HASHABLE = st.recursive(
    SCALAR_VALUES, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2), max_leaves=3
)
VALUES: st.SearchStrategy[object] = st.recursive(
    SCALAR_VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x: object, y: object) -> None:
        self.x = x
        self.y = y


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value


@dataclass
class Order:
    price: object
    note: str = field(default="", compare=False)


class Pair(NamedTuple):
    first: object
    second: object


class Level(IntEnum):
    LOW = 1


class Row(list[object]):
    def __init__(self, items: list[object], note: str = "") -> None:
        super().__init__(items)
        self.note = note


class Named:
    def __init__(self, name: object = None) -> None:
        self.name = name


class Flattering(Named):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


class Moody(Named):
    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


class Spiteful(Named):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __hash__ = object.__hash__


def mutable_ids(value: object) -> set[int]:
    found: set[int] = set()
    if isinstance(value, dict):
        found = {id(value)}.union(*map(mutable_ids, value), *map(mutable_ids, value.values()))
    elif isinstance(value, list | set | tuple | frozenset):
        found = set().union(*map(mutable_ids, value))
        if isinstance(value, list | set):
            found.add(id(value))
    return found


@given(VALUES)
def test_a_copy_is_the_same_value_and_shares_nothing_mutable(value: object) -> None:
    private = copy_value(value)
    assert same_value(value, private)
    assert not mutable_ids(value) & mutable_ids(private)


@given(VALUES)
def test_a_value_is_the_same_as_its_deep_copy(value: object) -> None:
    assert first_difference(value, copy.deepcopy(value)) is None


@settings(max_examples=examples(3))
@given(VALUES, VALUES)
def test_sameness_and_the_first_difference_agree_in_both_directions(a: object, b: object) -> None:
    same = same_value(a, b)
    assert (first_difference(a, b) is None) == same
    assert (first_difference(b, a) is None) == same
    assert same_value([a], [b]) == same
    assert same_value({"k": a}, {"k": b}) == same


@given(SCALAR_VALUES, SCALAR_VALUES)
def test_the_same_scalars_have_one_type_and_one_repr(a: object, b: object) -> None:
    assert same_value(a, b) == (type(a) is type(b) and repr(a) == repr(b))


@given(st.lists(HASHABLE, max_size=4))
def test_the_order_of_a_dict_and_of_a_set_is_no_difference(keys: list[Any]) -> None:
    value = dict.fromkeys(keys)
    backwards = list(reversed(value))
    assert same_value(value, dict.fromkeys(backwards))
    assert same_value(set(value), set(backwards))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (1, Level.LOW),
        (0.0, -0.0),
        (complex(0.0, 0.0), complex(0.0, -0.0)),
        (Decimal("1.0"), Decimal("1.00")),
        ({1: "x"}, {True: "x"}),
        ({1}, {True}),
        ({1, 2}, {True, 2}),
        ((1,), [1]),
        ((1, 2), Pair(1, 2)),
        (Pair(1, 2), Pair(1, 2.0)),
        ({"a": 1}, OrderedDict(a=1)),
        (Row([1]), Row([True])),
        (Row([1], "left"), Row([1], "right")),
        (frozenset(), set[object]()),
        (PureWindowsPath("A"), PureWindowsPath("a")),
        (dt.time(1), dt.time(1, fold=1)),
        (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        (
            dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC),
            dt.datetime(2026, 1, 1, 13, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        ),
        (
            dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
            dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        ),
        (dt.UTC, dt.timezone(dt.timedelta(0), "zero")),
        (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, fold=1)),
        (Point(1, 2), Point(1, 3)),
        (Plain(1), Plain(True)),
        (Plain(1), Plain(Plain(1))),
        (ValueError("a"), ValueError("b")),
        (deque([1]), deque([2])),
        (len, min),
        (threading.Lock(), threading.Lock()),
        (Spiteful(1), Spiteful(2)),
        (Flattering(1), Flattering(2)),
        (Moody(1), Moody(2)),
    ],
)
def test_these_are_not_the_same_value(a: object, b: object) -> None:
    assert not same_value(a, b)
    assert not same_value(b, a)
    assert first_difference(a, b) is not None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (float("nan"), -float("nan")),
        (Decimal("sNaN"), Decimal("sNaN")),
        ({float("nan")}, {float("nan")}),
        ({(float("nan"), 1): 1}, {(float("nan"), 1): 1}),
        ({1: "a", "b": 2}, {"b": 2, 1: "a"}),
        (Pair(1, [2]), Pair(1, [2])),
        (Point(1, [2]), Point(1, [2])),
        (Plain({"a": 1}), Plain({"a": 1})),
        (Order(1, "left"), Order(1, "right")),
        (ValueError("a", 1), ValueError("a", 1)),
        (ZoneInfo("UTC"), ZoneInfo.no_cache("UTC")),
        (deque([1]), deque([1])),
        (Spiteful([1]), Spiteful([1])),
        (Flattering([1]), Flattering([1])),
        (Moody([1]), Moody([1])),
    ],
)
def test_these_are_the_same_value(a: object, b: object) -> None:
    assert same_value(a, b)


def test_a_difference_reads_like_a_sentence() -> None:
    expected = {"items": [Order(Decimal("1.5"))]}
    actual = {"items": [Order(1.5)]}
    found = first_difference(expected, actual)
    assert found == Difference("$.items[0].price", Decimal("1.5"), 1.5, "type")
    assert str(found) == "$.items[0].price: Decimal('1.5') became float 1.5"


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ({"n": 1}, {"n": 2}, "$.n: 1 became 2"),
        ({"n": 1}, {"n": True}, "$.n: int 1 became bool True"),
        ({"n": 1}, {"n": None}, "$.n: int 1 became None"),
        ({"n": 1}, {}, "$.n: 1 is missing"),
        ({}, {"a b": 1}, '$["a b"]: 1 was added'),
        ([1, 2], [1], "$[1]: 2 is missing"),
        ([1], [1, 2], "$[1]: 2 was added"),
        ({1, 2}, {1}, "$: 2 is missing"),
        ({1}, {1, 2}, "$: 2 was added"),
        ({(1, 2): [0]}, {(1, 2): [-0.0]}, "$[(1, 2)][0]: int 0 became float -0.0"),
        (Point(1, [2]), Point(1, [3]), "$.y[0]: 2 became 3"),
        (ValueError("a"), ValueError("b"), "$.args[0]: 'a' became 'b'"),
    ],
)
def test_a_difference_names_its_place(a: object, b: object, text: str) -> None:
    assert str(first_difference(a, b)) == text


def test_a_difference_of_objects_that_fail_to_show_themselves_can_be_shown() -> None:
    text = str(first_difference([Spiteful()], [1]))
    assert text == "$[0]: <Spiteful whose repr() raised RuntimeError> became int 1"


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(str(first_difference("a" * 10_000, "b" * 10_000))) < 300


def test_a_list_that_contains_itself_is_copied_with_its_shape() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    private = copy_value(loop)
    assert private is not loop
    assert private[1] is private


def test_values_that_contain_themselves_are_compared() -> None:
    def looped(last: int) -> dict[str, object]:
        value: dict[str, object] = {"n": 1}
        value["self"] = [value, last]
        return value

    assert same_value(looped(1), looped(1))
    assert not same_value(looped(1), looped(2))


def test_a_value_nested_beyond_the_watched_depth_is_copied_and_compared() -> None:
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    private = copy_value(deep)
    assert private is not deep
    assert same_value(deep, private)
    assert not same_value(deep, [private])


def test_other_values_are_copied_by_deepcopy() -> None:
    original = {"order": Plain([1])}
    private = copy_value(original)
    assert private["order"] is not original["order"]
    assert same_value(private, original)


def test_a_value_that_can_not_be_copied_says_so() -> None:
    with pytest.raises(TypeError, match="lock"):
        copy_value([threading.Lock()])


def test_a_flat_payload_holds_exact_scalars_only() -> None:
    assert is_flat({})
    assert is_flat({"n": 1, "at": dt.datetime(2026, 1, 1), "none": None})
    assert not is_flat({"n": 1, "items": []})
    assert not is_flat({"level": Level.LOW})
    assert not is_flat({"pair": (1, 2)})


def test_every_scalar_type_is_shared_by_copies_of_it() -> None:
    values = [None, True, 5**30, 1.5, 2j, "text" * 9, b"x" * 9, dt.timedelta(1), UUID(int=7)]
    assert {type(value) for value in values} <= SCALARS
    assert all(copy_value(value) is value for value in values)
    assert all(a is b for a, b in zip(copy_value(values), values, strict=True))
