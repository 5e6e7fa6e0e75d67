"""Equality of values, and the text of the first difference."""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import PureWindowsPath
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux.codec import equality
from routilux.codec.equality import Difference, first_difference, same_value
from tests.codec.values import SMALL_HASHABLE, SMALL_SCALARS, SMALL_VALUES, Level, Plain
from tests.routines import calls_of
from tests.soak import examples


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x: object, y: object) -> None:
        self.x = x
        self.y = y


@dataclass
class Order:
    price: object
    note: str = field(default="", compare=False)


class Pair(NamedTuple):
    first: object
    second: object


class Row(list[object]):
    def __init__(self, items: list[object], note: str = "") -> None:
        super().__init__(items)
        self.note = note


class Flattering(Plain):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


class Moody(Plain):
    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


class Spiteful(Plain):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __hash__ = object.__hash__


@settings(max_examples=examples(3))
@given(SMALL_VALUES, SMALL_VALUES)
def test_sameness_and_the_first_difference_agree_in_both_directions(a, b):
    same = same_value(a, b)
    assert (first_difference(a, b) is None) == same
    assert (first_difference(b, a) is None) == same
    assert same_value([a], [b]) == same
    assert same_value({"k": a}, {"k": b}) == same


@given(SMALL_SCALARS, SMALL_SCALARS)
def test_the_same_scalars_have_one_type_and_one_repr(a, b):
    assert same_value(a, b) == (type(a) is type(b) and repr(a) == repr(b))


@given(st.lists(SMALL_HASHABLE, max_size=4))
def test_the_order_of_a_dict_and_of_a_set_is_no_difference(keys):
    value = dict.fromkeys(keys)
    backwards = list(reversed(value))
    assert same_value(value, dict.fromkeys(backwards))
    assert same_value(set(value), set(backwards))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, Level.LOW),
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
        (dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
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
def test_unlike_values_are_not_the_same_value(a, b):
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
def test_equal_values_of_one_type_are_the_same_value(a, b):
    assert same_value(a, b)


def test_a_difference_reads_like_a_sentence():
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
def test_a_difference_names_its_place(a, b, text):
    assert str(first_difference(a, b)) == text


def test_a_difference_of_objects_whose_repr_fails_has_a_text():
    text = str(first_difference([Spiteful(1)], [1]))
    assert text == "$[0]: <Spiteful whose repr() raised RuntimeError> became int 1"


def test_a_long_value_is_cut_in_the_message():
    assert len(str(first_difference("a" * 10_000, "b" * 10_000))) < 300


def test_values_that_contain_themselves_are_compared():
    def looped(last):
        value: dict[str, object] = {"n": 1}
        value["self"] = [value, last]
        return value

    assert same_value(looped(1), looped(1))
    assert not same_value(looped(1), looped(2))


NEVER_EQUAL = {
    "complex NaN": lambda i: complex(float("nan"), i % 7 if i < 500 else i),
    "decimal NaN": lambda i: Decimal(f"NaN{i // 400}"),
    "tuples of NaN": lambda i: (i, Decimal("NaN")),
    "frozen sets of NaN": lambda i: frozenset({(i, Decimal("NaN"))}),
    "objects": lambda i: Plain(i),
}


@pytest.mark.parametrize("make", NEVER_EQUAL.values(), ids=NEVER_EQUAL)
def test_keys_that_a_lookup_does_not_find_are_compared_a_few_times_each(make, monkeypatch):
    compared = calls_of(monkeypatch, equality, "_compare")
    a, b = ({make(i) for i in range(500)} for _ in range(2))
    assert same_value(a, b)
    assert len(compared) < 20 * len(a)
    compared.clear()
    assert not same_value(a, {*list(b)[1:], make(10_000)})
    assert len(compared) < 20 * len(a)


def test_sets_without_a_common_key_are_compared_a_few_times_each(monkeypatch):
    compared = calls_of(monkeypatch, equality, "_compare")
    assert not same_value({*range(1000)}, {*range(1000, 2000)})
    assert not same_value({*range(1000)}, {*map(float, range(1000))})
    assert len(compared) < 10 * 1000


def test_keys_are_paired_in_their_order_if_they_are_the_same():
    a, b = ({complex(float("nan"), 0): i for i in range(3)} for _ in range(2))
    assert same_value(a, b)
    assert not same_value(a, dict(reversed(b.items())))
