"""Differences that a crash may make and may not make: in views, effects and their keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_routilux.sim.oracle import (
    Expected,
    canonical,
    compare_effects,
    masked,
    repeated_in_attempt,
    reused_key,
    trie_of,
    unordered,
    unstable_key,
    varying,
)
from pytest_routilux.sim.simulator.model import Call, World
from routilux.codec.equality import same_value

VIEW: dict[str, Any] = {
    "status": "completed",
    "error": None,
    "shared": {"sum": 3, "at": "10:00"},
    "routines": {
        "a": {"status": "completed", "state": {"n": 1}, "attempts": 2, "retries": 1, "error": None}
    },
    "tasks": {"a.trigger": [{"payload": {"n": 1}, "attempts": 2, "errors": [], "ended": "done"}]},
    "emissions": {"a.output": [{"n": 1, "at": "10:00"}, {"n": 2, "at": "10:01"}]},
    "outputs": {"a.output": [{"n": 1}]},
    "effects": {},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**VIEW, **parts}


def test_equal_views_have_no_difference():
    assert Expected(VIEW, {}, ordered=True).compare(changed()) is None


@pytest.mark.parametrize(
    ("parts", "kind", "path"),
    [
        ({"status": "failed"}, "status-differs", "status"),
        ({"shared": {"sum": 4, "at": "10:00"}}, "shared-differs", "shared.sum"),
        ({"shared": {"sum": 3.0, "at": "10:00"}}, "shared-differs", "shared.sum"),
        ({"shared": {"at": "10:00"}}, "shared-differs", "shared.sum"),
        ({"outputs": {"a.output": []}}, "outputs-differ", "outputs"),
        ({"emissions": {}}, "emissions-differ", "emissions"),
        ({"tasks": {}}, "attempts-differ", "tasks"),
    ],
)
def test_a_view_that_differs_is_reported_with_its_path(parts, kind, path):
    finding = Expected(VIEW, {}, ordered=True).compare(changed(**parts))
    assert kind == finding.kind
    assert finding.path.startswith(path)


def test_the_order_of_the_users_data_counts_and_that_of_the_engines_work_does_not():
    swapped = changed(emissions={"a.output": VIEW["emissions"]["a.output"][::-1]})
    assert Expected(VIEW, {}, ordered=True).compare(swapped) is None
    mine, other = changed(shared={"words": ["a", "b"]}), changed(shared={"words": ["b", "a"]})
    assert Expected(mine, {}, ordered=True).compare(other) is not None
    assert Expected(mine, {}, ordered=False).compare(other) is None  # several workers
    lost = changed(shared={"words": ["b"]})
    assert Expected(mine, {}, ordered=False).compare(lost) is not None


def test_a_part_that_varies_without_a_crash_is_compared_by_presence():
    later = changed(
        shared={"sum": 3, "at": "11:00"},
        emissions={"a.output": [{"n": 1, "at": "11:00"}, {"n": 2, "at": "11:01"}]},
    )
    mask = varying(VIEW, [later], ordered=True)
    assert {("shared", "at"), ("emissions", "a.output", "*", "at")} == mask
    trie = trie_of(mask)
    assert Expected(VIEW, trie, ordered=True).compare(later) is None
    wrong = changed(shared={"sum": 4, "at": "12:00"})
    finding = Expected(VIEW, trie, ordered=True).compare(wrong)
    assert "shared.sum" == finding.path


def test_a_list_that_varies_in_length_is_one_path():
    more = changed(outputs={"a.output": [{"n": 1}, {"n": 2}]})
    assert {("outputs", "a.output")} == varying(VIEW, [more], ordered=True)


def test_a_path_hides_the_paths_below_it():
    trie = trie_of([("a",), ("a", "b"), ("c", "*", "d")])
    assert {"a": {}, "c": {"*": {"d": {}}}} == trie
    hidden = masked({"a": {"b": 1}, "c": [{"d": 1, "e": 2}], "f": 3}, trie)
    assert "~" == hidden["a"]
    assert [{"d": "~", "e": 2}] == hidden["c"]
    assert 3 == hidden["f"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values, values)
def test_a_canonical_text_is_equal_for_equal_values_alone(a, b):
    assert (canonical(a) == canonical(b)) is same_value(a, b)
    assert canonical(a) == canonical(_turned(a))


def _turned(value: Any) -> Any:
    """Return the same value with its dicts made the other way round."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


@given(st.lists(values, max_size=4), st.randoms(use_true_random=False))
def test_without_order_lists_are_bags(items, random):
    shuffled = items.copy()
    random.shuffle(shuffled)
    assert unordered(items) == unordered(shuffled)


def call(
    inputs: str = "A7",
    key: object = None,
    attempt: int = 1,
    task: str = "0.0",
    number: int = 1,
    effect: str = "pay",
    **more: Any,
) -> Call:
    at = "shop.py:7", "charge", task, attempt, 5
    return Call(effect, number, {"order": inputs}, key, "ok", *at, **more)


def world(*calls: Call) -> World:
    return World(0, calls=list(calls))


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([call()], [call()], None),
        ([call()], [call(), call()], "effect-repeated"),
        ([call(key="k")], [call(key="k"), call(key="k")], None),
        ([call(key="k")], [call(key="k"), call(key="other")], "key-unstable"),
        ([call()], [], "effect-lost"),
        ([call("A7"), call("B2")], [call("B2"), call("A7")], None),
        ([call("A7")], [call("B2")], "effect-repeated"),
        ([call(), call()], [call(), call()], None),
        ([call(key="k")], [call(key="k"), call()], "key-unstable"),
        ([call(key="k")], [call(key="k"), call(key="k", number=2)], "effect-repeated"),
        ([call(key="k"), call(key="k", number=2)], [call(key="k")], "effect-lost"),
        (
            [call(key="k"), call(key="k", number=2)],
            [call(key="k"), call(key="k"), call(key="k", number=2)],
            None,
        ),
        ([call(key="k")], [call(key="k", error="OSError"), call(key="k", number=2)], None),
        ([call(reads=True)], [call(reads=True), call(reads=True)], None),
        ([call(reads=True)], [], None),
    ],
)
def test_an_effect_may_be_repeated_under_its_key_alone(before, after, kind):
    finding = compare_effects(world(*before), world(*after), {})
    assert kind == (finding and finding.kind)
    if finding is not None:
        assert "charge" == finding.routine
        assert "pay('" in finding.what


def test_inputs_that_vary_without_a_crash_do_not_distinguish_effects():
    trie = trie_of([("effects", "pay", "*", "order")])
    assert compare_effects(world(call("10:00")), world(call("11:00")), trie) is None
    twice = compare_effects(world(call("10:00")), world(call("11:00"), call("11:01")), trie)
    assert "effect-repeated" == twice.kind


def test_a_key_must_be_the_same_in_every_attempt_of_a_task():
    assert unstable_key(world(call(key="k"), call(key="k", attempt=2))) is None
    assert unstable_key(world(call(key="k"), call(key="l", task="0.1", attempt=2))) is None
    finding = unstable_key(world(call(key="k"), call(key="l", attempt=2)))
    assert "key-unstable" == finding.kind


def test_an_attempt_may_call_the_same_twice_under_a_key_for_each():
    first, second = call(key="k"), call(key="l")
    again = [call(key="k", attempt=2), call(key="l", attempt=2)]
    assert unstable_key(world(first, second, *again)) is None
    assert unstable_key(world(first, *again)) is None  # only one call was made
    finding = unstable_key(world(first, second, again[0], call(key="m", attempt=2)))
    assert [("key", "attempt 1: l", "attempt 2: m")] == finding.rows


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        ([call(key="k"), call("B2", key="k")], True),
        ([call(key="k"), call(key="k", effect="refund")], True),
        ([call(key="k"), call(key="k", attempt=2)], False),
        ([call(key="k"), call("B2", key="l")], False),
        ([call(), call("B2")], False),
        ([call(key="k", reads=True), call("B2", key="k", reads=True)], False),
    ],
)
def test_one_key_belongs_to_one_effect_with_one_input(calls, found):
    finding = reused_key(world(*calls), {})
    assert found == (finding is not None)
    if finding is not None:
        assert ("key-reused", "charge") == (finding.kind, finding.routine)
        assert finding.what.endswith(" has the key of pay('A7'): k")
    varies = trie_of([("effects", "pay", "*", "order")])
    assert reused_key(world(call(key="k"), call("B2", key="k")), varies) is None


def test_a_call_that_comes_twice_in_one_attempt_is_counted():
    twice = world(call(key="k"), call(key="k", number=2))
    assert "pay('A7') twice in one attempt under one key" in repeated_in_attempt(twice)
    assert repeated_in_attempt(world(call(key="k"), call(key="l", number=2))) is None
    failed = call(key="k", error="OSError: no answer")
    assert repeated_in_attempt(world(failed, call(key="k", number=2))) is None


class Parcel:
    """A value of the user's whose repr is its address."""

    def __init__(self, weight: int) -> None:
        self.weight = weight


def test_copies_of_an_object_whose_repr_is_its_address_are_equal():
    kept = Parcel(1), Parcel(1)  # at two addresses
    assert canonical([kept[0]]) == canonical([kept[1]])
    assert canonical(Parcel(1)) != canonical(Parcel(2))
    itself = Parcel(3)
    itself.weight = itself  # type: ignore[assignment]
    assert "Parcel" in canonical(itself)
