"""Encoding: a value is saved as JSON and comes back equal, or is refused with its path."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from math import inf, nan
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import codec
from routilux.codec import decode, dumps, encode, loads
from routilux.codec.encoding import VALUE_DEPTH
from routilux.codec.equality import first_difference
from routilux.errors import UnserializableError
from tests.codec.values import (
    KEYS,
    VALUES,
    Colour,
    Level,
    Loud,
    Money,
    Rights,
    Unregistered,
    nested,
)
from tests.routines import refused_at
from tests.soak import examples


@settings(max_examples=examples(2.5))
@given(VALUES)
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    text = dumps(encode(value))
    for back in (loads(text), loads(text.encode()), decode(json.loads(text))):
        assert first_difference(value, back) is None


@given(VALUES)
def test_a_value_is_written_as_plain_json_that_shares_nothing_with_it(value):
    data = encode(value)

    def containers(data):
        assert type(data) in (type(None), bool, int, float, str, list, dict)
        if isinstance(data, list | dict):
            yield data
            for item in data.values() if isinstance(data, dict) else data:
                yield from containers(item)

    first = {id(container) for container in containers(data)}
    second = encode(value)
    assert not first & {id(container) for container in containers(second)}
    assert json.dumps(data) == json.dumps(second)


@given(st.dictionaries(KEYS, st.integers()))
def test_the_order_of_a_dict_is_kept(value):
    assert list(loads(dumps(encode(value)))) == list(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, -0.0, "é", None, True]}, '{"a":[1,-0.0,"é",null,true]}'),
        (
            dt.datetime(2026, 1, 3, tzinfo=dt.UTC),
            '{"$type":"datetime","value":"2026-01-03T00:00:00+00:00"}',
        ),
        ((1, (2,)), '{"$type":"tuple","value":[1,{"$type":"tuple","value":[2]}]}'),
        (nan, '{"$type":"float","value":"nan"}'),
        (-inf, '{"$type":"float","value":"-inf"}'),
        (b"ab", '{"$type":"bytes","value":"YWI="}'),
        ({1: "a"}, '{"$type":"dict","value":[[1,"a"]]}'),
        ({"$type": "x"}, '{"$type":"dict","value":[["$type","x"]]}'),
        ({3, 1, 2}, '{"$type":"set","value":[1,2,3]}'),
        (Colour.CRIMSON, '{"$type":"test-colour","value":"RED"}'),
        (Rights.READ | Rights.WRITE, '{"$type":"test-rights","value":3}'),
    ],
)
def test_the_form_of_a_value_is_fixed(value, text):
    assert dumps(encode(value)) == text


def test_a_set_is_written_in_the_same_order_under_every_hash_seed():
    code = (
        "from routilux.codec import dumps, encode\n"
        "print(dumps(encode({('a', 1), 'b', 'c', frozenset('xyz'), None, 2.5})))"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(written) == 1


class Zone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    dst = utcoffset

    def tzname(self, moment: dt.datetime | None) -> str:
        return "here"


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"pending": [0, {"frame": Unregistered()}]}, "$.pending[1].frame", "Unregistered has no"),
        ([(1, Loud("x"))], "$[0][1]", "Loud is not saved as str"),
        ({"level": Level.LOW}, "$.level", "Level is not saved as int"),
        ({"pair": Pair(1, 2)}, "$.pair", "Pair is not saved as tuple"),
        ({"d": OrderedDict()}, "$.d", "collections.OrderedDict is not saved as dict"),
        ({"d": defaultdict(int)}, "$.d", "collections.defaultdict is not saved as dict"),
        ({"a b": "\ud800"}, '$["a b"]', "str has a lone surrogate"),
        ({"\ud800": 1}, '$["\\ud800"]', "str has a lone surrogate"),
        (["a", "\ud800"], "$[1]", "str has a lone surrogate"),
        ([1, 10**4000], "$[1]", "int has more than 4,000 digits"),
        ({"p": Path(os.fsdecode(b"\xff"))}, "$.p", "str has a lone surrogate"),
        ({"n": 10**4000}, "$.n", "int has more than 4,000 digits"),
        ({10**5000: 1}, "$[int]", "int has more than 4,000 digits"),
        ({(1, 2): Unregistered()}, "$[(1, 2)]", "Unregistered"),
        ({1: Unregistered()}, "$[1]", "Unregistered"),
        ({Unregistered: 1}, f"$[{Unregistered!r}]", "type has no saved form"),
        ({"s": {Loud("a")}}, "$.s", "Loud"),
        (Money(Money(Unregistered())), "$.amount.amount", "Unregistered"),
        ({"at": dt.datetime(2026, 1, 1, tzinfo=Zone())}, "$.at", "datetime.datetime can't be"),
        ({"f": len}, "$.f", "builtin_function_or_method has no saved form"),
        (
            {UUID(int=1): Unregistered()},
            "$[UUID('00000000-0000-0000-0000-000000000001')]",
            "tests.codec.values.Unregistered has no saved form; register a form with register_type",
        ),
    ],
)
def test_a_value_without_a_saved_form_is_refused_with_its_path(value, path, reason):
    with refused_at(path, reason, UnserializableError):
        encode(value)


def test_a_value_that_contains_itself_is_refused_with_its_steps():
    value: dict[str, Any] = {"items": [1]}
    value["items"].append((value["items"],))
    with pytest.raises(UnserializableError, match=r"^\$\.items(\[1\]\[0\])+.*or contains itself"):
        encode(value)


def test_a_value_at_the_bound_of_depth_is_saved_and_one_beyond_it_is_refused():
    deepest = nested(VALUE_DEPTH)
    document = {"job": {"tasks": [{"payload": encode(deepest)}]}}
    assert loads(dumps(document))["job"]["tasks"][0]["payload"] == deepest
    for too_deep in (nested(VALUE_DEPTH + 1), [(x := nested(60), x), nested(5000)]):
        with pytest.raises(UnserializableError, match="nested in more than"):
            encode(too_deep)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: (value,),
        lambda value: frozenset({value}),
        lambda value: {1: value},
        lambda value: [value],
        Money,
    ],
)
@pytest.mark.parametrize(
    "value", [(), complex(nan, inf), dt.time(tzinfo=dt.timezone(dt.timedelta(0), "zero"))]
)
def test_every_deep_value_that_can_be_saved_can_be_loaded(value, wrap):
    for _ in range(VALUE_DEPTH // 4):
        value = wrap(value)
    with contextlib.suppress(UnserializableError):
        while text := dumps([[[[[[[[[[[[[[[encode(value)]]]]]]]]]]]]]]]):
            assert first_difference([[[[[[[[[[[[[[[value]]]]]]]]]]]]]]], loads(text)) is None
            value = wrap(value)
    with pytest.raises(UnserializableError, match="nested in more than"):
        encode(value)


@pytest.mark.parametrize("data", [{"a": {1, 2}}, [nan], ["\ud800"], nested(100_000)])
def test_data_that_was_not_encoded_is_refused_by_dumps(data):
    with pytest.raises(UnserializableError):
        dumps(data)


@given(st.lists(VALUES), st.integers(0, 120))
def test_an_iterator_in_an_object_is_written_as_the_array_of_its_entries(values, more):
    entries = [encode(value) for value in values] + [{"n": n} for n in range(more)]
    for names in (("at", "é", "entries", "end"), ("entries", "at"), ("é", "entries"), ("entries",)):
        data = {name: entries if name == "entries" else [2] for name in names}
        given = {
            name: map(dumps, value) if value is entries else value for name, value in data.items()
        }
        assert codec.dumps_object(given) == dumps(data)
