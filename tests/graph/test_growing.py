"""`Growing`: a list or set of which longer versions share the items of shorter ones."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.codec.equality import same_value
from routilux.graph import growing
from routilux.graph.growing import Growing, is_encodable, plain, plain_values, private_copy
from routilux.graph.patches import same

scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=2)
rows = scalars | st.dictionaries(st.sampled_from("abc"), scalars | st.lists(scalars, max_size=2))
lists = st.lists(rows, max_size=4)


@given(lists, st.lists(st.tuples(st.integers(0, 9), lists), max_size=6))
def test_each_version_keeps_its_items_whichever_is_extended(
    first: list[object], steps: list[tuple[int, list[object]]]
) -> None:
    versions, expected = [Growing.of(first)], [first]
    for number, items in steps:
        old = number % len(versions)
        versions.append(versions[old].extended(items))
        expected.append([*expected[old], *items])

        for version, wanted in zip(versions, expected, strict=True):
            assert same_value(wanted, version.plain)
            assert same_value(wanted, version.private())
            assert same_value([], version.extension([*wanted]) or [])


@given(st.sets(st.integers(0, 5)), st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers()))))
def test_each_version_of_a_set_keeps_its_items(
    first: set[int], steps: list[tuple[int, set[int]]]
) -> None:
    versions, expected = [Growing.of(first)], [first]
    for number, items in steps:
        old = number % len(versions)
        versions.append(versions[old].extended([*items]))
        expected.append(expected[old] | items)

    assert expected == [version.plain for version in versions]
    assert expected == [version.private() for version in versions]


@given(lists, lists)
def test_an_extension_is_found_of_exactly_the_lists_that_begin_alike(
    old: list[object], new: list[object]
) -> None:
    found = Growing.of(copy.deepcopy(old)).extension(new)
    begins = same(old, new[: len(old)])

    if found is not None:
        assert begins
        assert same_value(new, [*old, *found])
    elif is_encodable(old) and "nan" not in repr(old):
        assert not begins


@pytest.mark.parametrize("changed", [True, 1.0, Decimal(1), "1"])
def test_an_item_of_another_type_is_another_item(changed: object) -> None:
    kept = Growing.of([{"n": 1}] * 3)
    new = kept.private()
    new[1]["n"] = changed

    assert kept.extension([*new, {"n": 2}]) is None


def test_a_private_copy_shares_no_row_with_the_value() -> None:
    for items in ([{"n": 1}, {"n": 2}], [{"n": [1]}, 2], [[1], [2]]):
        kept = Growing.of(items)
        private = kept.private()
        private[0] = None
        private[1:] = []

        assert items == kept.plain
    nested = Growing.of([{"n": [1]}])
    nested.private()[0]["n"].append(2)
    assert [{"n": [1]}] == nested.plain


def test_rows_of_another_form_that_come_later_are_copied_too() -> None:
    flat = Growing.of([{"n": 1}])
    flat.private()
    mixed = flat.extended([{"n": [1]}])

    mixed.private()[1]["n"].append(2)

    assert [{"n": 1}, {"n": [1]}] == mixed.plain


def test_it_is_equal_to_the_plain_value_and_is_pickled_as_one() -> None:
    kept = Growing.of([1]).extended([2])

    assert kept == [1, 2]
    assert kept != [1, True]
    assert kept != (1, 2)
    assert Growing.of({1, 2}) == {2, 1}
    assert kept == pickle.loads(pickle.dumps(kept))
    assert kept == copy.deepcopy(kept)
    assert "[1, 2]" == repr(kept)
    assert ({"a": [1, 2], "b": 3}, 3) == (plain_values({"a": kept, "b": 3}), plain(3))
    assert [1, 2] == private_copy(kept)


def test_a_child_that_is_forked_while_a_list_is_extended_can_extend_lists():
    with growing._guard.lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a lock that nobody frees ends the child
            os._exit([1, 2] != Growing.of([1]).extended([2]).plain)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_value_that_contains_itself_twice_can_not_be_encoded():
    value: list[object] = []
    value += [value, value]

    assert not is_encodable([value])
