"""Sets and dicts whose keys a file has chosen so that a hash table of them takes n² steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import pytest

from routilux import CorruptStateError, UnserializableError, codec
from routilux.codec import hashing
from routilux.codec.hashing import is_slow
from tests.fuzz.values import P, merging
from tests.routines import calls_of
from tests.soak import sampled

ALIKE = {
    "integers": lambda i: i * P,
    "decimals": lambda i: Decimal(i * P),
    "uuids": lambda i: UUID(int=i * P),
    "tuples": lambda i: ("a", (i * P, 0)),
    "frozen sets": lambda i: frozenset({i * P}),
}


@pytest.mark.parametrize("alike", sampled(ALIKE, [*ALIKE][::3]))
def test_many_keys_that_hash_alike_are_neither_written_nor_read(alike):
    keys = [ALIKE[alike](i) for i in range(1, 400)]
    assert 1 == len({*map(hash, keys)})
    few = codec.dumps(codec.encode({*keys[:20]}))
    assert {*keys[:20]} == codec.loads(few)
    reason = r"has 399 elements or keys whose hashes collide too often; keep them in a list"
    for value in ({*keys}, frozenset(keys), dict.fromkeys(keys, 0)):
        with pytest.raises(UnserializableError, match=reason) as refused:
            codec.encode([0, value])
        assert "$[1]" == refused.value.path
    for tag, items in ("set", keys), ("frozenset", keys), ("dict", [[key, 0] for key in keys]):
        data = [0, {"$type": tag, "value": codec.encode(items)}]
        for read in codec.decode, lambda data: codec.loads(codec.dumps(data)):
            with pytest.raises(CorruptStateError, match=reason) as corrupt:
                read(data)
            assert "$[1]" == corrupt.value.path


def test_keys_that_share_a_chain_of_slots_with_different_hashes_are_refused():
    keys = merging(600)
    assert len(keys) == len({*map(hash, keys)})
    assert is_slow(keys, reading=True)
    assert not is_slow(range(len(keys)), reading=False)


def test_sets_in_sets_that_hash_alike_are_refused_before_their_comparisons_multiply():
    value: object = 0
    for _ in range(12):  # each level doubles the values and triples the comparisons
        value = {"$type": "frozenset", "value": [
            {"$type": "tuple", "value": [value, 0]}, {"$type": "tuple", "value": [value, P]},
        ]}  # fmt: skip
    with pytest.raises(CorruptStateError, match="collide too often"):
        codec.decode(value)


ORDINARY = {
    "numbers": [*range(5_000)],
    "times": [i * 10**9 for i in range(5_000)],
    "multiples of a power of two": [i << 40 for i in range(5_000)],
    "fractions": [i / 1024 for i in range(5_000)],
    "points": [*itertools.product(range(-9, 10), repeat=3)],
    "points in five dimensions": [*itertools.product(range(-3, 3), repeat=5)],
    "-1 and -2": [*itertools.product((-1, -2), repeat=6)],
    "texts": [*map(str, range(5_000))],
    "a pair of boards that hash alike": [(*range(500), -1), (*range(500), -2)],
}


@pytest.mark.parametrize("keys", ORDINARY.values(), ids=ORDINARY)
def test_the_keys_of_ordinary_programs_are_saved(keys):
    assert not is_slow(keys, reading=False)
    assert {*keys} == codec.loads(codec.dumps(codec.encode({*keys})))


def test_the_order_of_the_keys_hardly_changes_their_steps():
    keys = [key for i in range(80) for key in (i * P, (i * P, "a"), frozenset({i}))]
    steps = {
        hashing._steps(order, 10**9, {}) for order in (keys, keys[::-1], keys[1::2] + keys[::2])
    }
    assert max(steps) <= 1.5 * min(steps)


def test_equal_keys_are_duplicates_however_many():
    for items in ([7] * 5_000, [*range(300)] * 20, [[1, 2]] * 90):
        data = {
            "$type": "set",
            "value": codec.encode([*map(tuple, items)] if items[0] == [1, 2] else items),
        }
        with pytest.raises(CorruptStateError, match="duplicate element or key"):
            codec.decode(data)


def test_a_light_key_beside_a_heavy_one_costs_the_steps_of_the_light_one(monkeypatch):
    calls = calls_of(monkeypatch, hashing, "_weight")
    heavy = tuple((i,) for i in range(10_000))
    assert 1 == hashing._lighter(heavy, 7, 10**6, {})
    assert 3 > hashing._lighter(heavy, ((0,),), 10**6, {})
    assert len(calls) < 40


def test_objects_cost_more_steps_than_numbers():
    @dataclass(frozen=True)
    class Money:
        amount: object

    assert hashing._lighter(Money(1), Money(2), 100, {}) > 10 * hashing._lighter(1, 2, 100, {})
