"""`changes` and `patched`: what a step changed within a value, and the value after it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.codec.equality import same_value
from routilux.graph.growing import Growing, plain
from routilux.graph.patches import (
    ABSENT,
    ACCUMULATORS,
    Patch,
    PatchError,
    changes,
    misfit,
    patched,
)

scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=2)
keys = st.sampled_from(["a", "b", "c", 1, True, (1, "x")])
values = st.recursive(
    scalars | st.sets(st.integers(0, 3), max_size=2),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value after some changes of some of its parts."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 3))):
        part = value
        while isinstance(part, dict | list) and part and draw(st.booleans()):
            places = [*part] if isinstance(part, dict) else [*range(len(part))]
            inner = part[draw(st.sampled_from(places))]
            if not isinstance(inner, dict | list):
                break
            part = inner
        if isinstance(part, list):
            at = draw(st.integers(0, len(part)))
            part[at : at + draw(st.integers(0, 2))] = draw(st.lists(values, max_size=2))
        elif isinstance(part, dict):
            key = draw(keys)
            part.pop(key, None)
            if draw(st.booleans()):
                part[key] = draw(values)
    return value


@given(st.data(), values)
def test_a_patch_turns_the_old_value_into_the_new_one(data: st.DataObject, old: Any) -> None:
    new = data.draw(changed(old))
    before = copy.deepcopy(old)
    kept = Growing.of(old) if type(old) is list and data.draw(st.booleans()) else old

    found = changes(kept, new)

    if found is not None:
        after = plain(patched(kept, found))
        assert same_value(new, after)
        assert _orders(new) == _orders(after)
        assert (found == []) == (same_value(old, new) and _orders(old) == _orders(new))
    assert same_value(before, old)
    assert same_value(before, plain(kept))


def _orders(value: Any) -> Any:
    if isinstance(value, dict):
        return [(repr(key), _orders(item)) for key, item in value.items()]
    return [_orders(item) for item in value] if isinstance(value, list) else None


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ([1, 2], [1, 2, 3], Patch("extend", [3])),
        ([1, 2, 3], [2, 3], Patch("splice", (0, 1, []))),
        ([1, 2, 3, 4], [1, 9, 3, 4], Patch("entries", ({1: 9}, [], {}))),
        ([1, 2, 3, 4], [1, 2], Patch("splice", (2, 2, []))),
        ([1, 2, 3, 4], [1, 2, 7, 3, 4], Patch("splice", (2, 0, [7]))),
        ({"a": 1, "b": 2}, {"a": 1}, None),
        ({"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}, Patch("entries", ({}, ["b"], {}))),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, Patch("entries", ({"c": 3}, [], {}))),
        (
            {"lines": [1, 2, 3, 4]},
            {"lines": [1, 2, 3, 4, 5]},
            Patch("entries", ({}, [], {"lines": Patch("extend", [5])})),
        ),
        ([], [1], None),
        ([1, 2], [3, 4], None),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1, "c": 3}, None),  # another order
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
        (
            [1, 2, ({"a": 1, "b": 2},)],
            [1, 2, ({"b": 2, "a": 1},)],
            Patch("entries", ({2: ({"b": 2, "a": 1},)}, [], {})),
        ),
        ([1, 2, 3], (1, 2, 3, 4), None),
        ("text", "texts", None),
        ({1, 2}, {1, 2, 3}, None),
        ([1, 2, 3], [1, True + 1, 3], []),
        ([1, 2, 3], [True, 2, 3], Patch("entries", ({0: True}, [], {}))),
        ([0.0, 2, 3], [-0.0, 2, 3], Patch("entries", ({0: -0.0}, [], {}))),
    ],
)
def test_a_patch_has_only_what_changed(old: Any, new: Any, patch: Any) -> None:
    wanted = [patch] if isinstance(patch, Patch) else patch
    assert repr(wanted) == repr(changes(old, new))


def test_a_patch_shares_no_value_with_the_handler() -> None:
    row = {"n": [1]}
    [patch] = changes([1, 2], [1, 2, row]) or []
    row["n"].append(2)

    assert [{"n": [1]}] == patch.operand


@pytest.mark.parametrize(
    ("old", "patch", "says"),
    [
        ("text", Patch("add", 1), "str is not a number"),
        (True, Patch("add", 1), "bool is not a number"),
        (1, Patch("add", timedelta(1)), "unsupported operand"),
        (1.0, Patch("add", 10**400), "int too large"),
        (1.0, Patch("add", Decimal(1)), "from float to Decimal is not supported"),
        ((1,), Patch("extend", [1]), "tuple is not a list"),
        ([1], Patch("union", {1}), "list is not a set"),
        (Growing.of({1}), Patch("extend", [1]), "set is not a list"),
        ("a", Patch("maximum", 1), "str and int have no order"),
        (None, Patch("minimum", 1), "NoneType and int have no order"),
        (datetime(2026, 1, 1), Patch("maximum", datetime(2026, 1, 1, tzinfo=UTC)), "can't compare"),
    ],
)
def test_an_accumulator_that_does_not_fit_says_why(old: Any, patch: Patch, says: str) -> None:
    with pytest.raises(PatchError, match=says):
        patched(old, [patch])
    assert says in (misfit(old, [patch]) or "")


@pytest.mark.parametrize(
    ("old", "patch"),
    [
        ([1], Patch("splice", (0, 2, []))),
        ({"a": 1}, Patch("splice", (0, 0, []))),
        ([1], Patch("entries", ({1: 2}, [], {}))),
        ([1], Patch("entries", ({}, [0], {}))),
        ([1], Patch("entries", ({"a": 2}, [], {}))),
        ({"a": 1}, Patch("entries", ({}, ["b"], {}))),
        ({"a": 1}, Patch("entries", ({}, [], {"b": Patch("extend", [])}))),
        ({"a": 1}, Patch("entries", ({}, [], {"a": Patch("extend", [])}))),
        (ABSENT, Patch("entries", ({}, [], {}))),
        (ABSENT, Patch("splice", (0, 0, []))),
        (7, Patch("entries", ({}, [], {}))),
    ],
)
def test_a_patch_of_something_that_is_not_there_is_refused(old: Any, patch: Patch) -> None:
    with pytest.raises(PatchError):
        patched(old, [patch])


@pytest.mark.parametrize(
    ("kind", "operand", "old", "new"),
    [
        ("add", 2, 3, 5),
        ("add", Decimal("0.1"), Decimal("0.2"), Decimal("0.3")),
        ("add", timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=3)),
        ("extend", [3], [1, 2], [1, 2, 3]),
        ("union", {2, 3}, {1, 2}, {1, 2, 3}),
        ("maximum", 2, 3, 3),
        ("maximum", 4.5, 3, 4.5),
        ("minimum", "a", "b", "a"),
    ],
)
def test_an_accumulator_begins_with_its_operand(
    kind: str, operand: Any, old: Any, new: Any
) -> None:
    patch = Patch(kind, operand)

    assert same_value(operand, plain(patched(ABSENT, [patch])))
    assert same_value(new, plain(patched(old, [patch])))
    assert misfit(ABSENT, [patch]) is None
    assert kind in ACCUMULATORS
