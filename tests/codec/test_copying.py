"""Copies of values: they are equal and share nothing mutable."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given

from routilux.codec.copying import copy_value, is_flat
from routilux.codec.equality import SCALARS, same_value
from tests.codec.values import SMALL_VALUES, Level, Plain


def mutable_ids(value: object) -> set[int]:
    found: set[int] = set()
    if isinstance(value, dict):
        found = {id(value)}.union(*map(mutable_ids, value), *map(mutable_ids, value.values()))
    elif isinstance(value, list | set | tuple | frozenset):
        found = set().union(*map(mutable_ids, value))
        if isinstance(value, list | set):
            found.add(id(value))
    return found


@given(SMALL_VALUES)
def test_a_copy_is_the_same_value_and_shares_nothing_mutable(value):
    private = copy_value(value)
    assert same_value(value, private)
    assert not mutable_ids(value) & mutable_ids(private)


def test_a_list_that_contains_itself_is_copied_with_its_shape():
    loop: list[Any] = [1]
    loop.append(loop)
    private = copy_value(loop)
    assert private is not loop
    assert private[1] is private


def test_a_value_nested_beyond_the_watched_depth_is_copied_and_compared():
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    private = copy_value(deep)
    assert private is not deep
    assert same_value(deep, private)
    assert not same_value(deep, [private])


def test_other_values_are_copied_by_deepcopy():
    original = {"order": Plain([1])}
    private = copy_value(original)
    assert private["order"] is not original["order"]
    assert same_value(private, original)


def test_a_value_that_can_not_be_copied_raises_a_type_error():
    with pytest.raises(TypeError, match="lock"):
        copy_value([threading.Lock()])


def test_a_flat_payload_holds_exact_scalars_only():
    assert is_flat({})
    assert is_flat({"n": 1, "at": dt.datetime(2026, 1, 1), "none": None})
    assert not is_flat({"n": 1, "items": []})
    assert not is_flat({"level": Level.LOW})
    assert not is_flat({"pair": (1, 2)})


def test_every_scalar_type_is_shared_by_copies_of_it():
    values = [None, True, 5**30, 1.5, 2j, "text" * 9, b"x" * 9, dt.timedelta(1), UUID(int=7)]
    assert {type(value) for value in values} <= SCALARS
    assert all(copy_value(value) is value for value in values)
    assert all(a is b for a, b in zip(copy_value(values), values, strict=True))
