"""The codec: values are saved as JSON and come back equal, or are refused with their path."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import json
import os
import re
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from math import inf, nan
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import codec
from routilux.codec import (
    check_fields,
    decode,
    decoding,
    dumps,
    encode,
    encoding,
    limits,
    loads,
    register_type,
    registry,
)
from routilux.codec.encoding import VALUE_DEPTH
from routilux.codec.equality import first_difference
from routilux.codec.schema import fits
from routilux.errors import (
    CorruptStateError,
    FlowDefinitionError,
    SavedStateError,
    UnserializableError,
)
from tests.routines import refused_at
from tests.soak import examples

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


@settings(max_examples=examples(2.5))
@given(VALUES)
def test_a_value_comes_back_equal_and_of_the_same_type(value: object) -> None:
    text = dumps(encode(value))
    for back in (loads(text), loads(text.encode()), decode(json.loads(text))):
        assert first_difference(value, back) is None


@given(VALUES)
def test_the_careful_way_reads_the_same_value_as_the_fast_one(value: object) -> None:
    text = dumps(encode(value))
    careful = decode(decoding._CAREFUL.decode(text))
    fast = decoding._read(text, limits.members(limits.outline(text.encode())))
    assert first_difference(careful, fast) is None


@given(VALUES, st.sampled_from(["", "\\ud83d\\ude00"]))
def test_tags_can_be_left_as_they_stand_and_decoded_later(value: object, doubtful: str) -> None:
    text = f'[{dumps(encode(value))},"{doubtful}"]'
    data = loads(text, untag=False)
    assert json.dumps(data) == json.dumps(json.loads(text))
    assert first_difference(loads(text), decode(data)) is None


@given(VALUES)
def test_a_value_is_written_as_plain_json_that_shares_nothing_with_it(value: object) -> None:
    data = encode(value)

    def containers(data: object) -> Iterator[object]:
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
def test_the_order_of_a_dict_is_kept(value: dict[str, int]) -> None:
    assert list(loads(dumps(encode(value)))) == list(value)


SNIPPETS = st.sampled_from(
    [
        *('{"$type":', '"value":', "[", "]", "{", "}", ",", '"', "\\", "\\ud800", ":", " ", "\x00"),
        *("1e999", "NaN", "Infinity", "9" * 400, "-", "0", "null", "\ufeff", '"zone"'),
        *('"datetime"', '"set"', '"dict"', '"timedelta"', '"float"', '"Decimal"', '"test-money"'),
    ]
)


@settings(max_examples=examples(4))
@given(VALUES, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), SNIPPETS), max_size=4))
def test_damaged_text_is_read_or_refused_as_saved_state(
    value: object, edits: list[tuple[int, int, str]]
) -> None:
    text = dumps(encode(value))
    for place, length, snippet in edits:
        text = text[:place] + snippet + text[place + length :]
    try:
        back = loads(text)
    except SavedStateError:
        return
    assert first_difference(back, loads(dumps(encode(back)))) is None


@settings(max_examples=examples(3))
@given(st.binary() | st.lists(SNIPPETS).map(lambda parts: "".join(parts).encode()))
def test_random_bytes_are_read_or_refused_as_saved_state(text: bytes) -> None:
    with contextlib.suppress(SavedStateError):
        loads(text)


TAGS = [form.tag for form in registry._FORMS] + ["none"]  # other tests register what they like
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.fixed_dictionaries({"$type": st.sampled_from(TAGS), "value": inner})
        | st.fixed_dictionaries({"$type": inner, "value": inner})
    ),
    max_leaves=8,
)


@settings(max_examples=examples(3))
@given(JSON)
def test_any_data_is_decoded_or_refused_as_saved_state(data: object) -> None:
    try:
        value = decode(data)
    except SavedStateError:
        return
    assert first_difference(value, loads(dumps(encode(value)))) is None


# --- what is written ------------------------------------------------------------------------------


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
def test_the_form_of_a_value_is_fixed(value: object, text: str) -> None:
    assert dumps(encode(value)) == text


def test_a_set_is_written_in_the_same_order_under_every_hash_seed() -> None:
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


class Loud(str):
    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


class Zone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    dst = utcoffset

    def tzname(self, moment: dt.datetime | None) -> str:
        return "here"


class Unregistered:
    pass


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
            f"{__name__}.Unregistered has no saved form; give it a form with register_type",
        ),
    ],
)
def test_a_value_without_a_saved_form_is_refused_with_its_path(
    value: object, path: str, reason: str
) -> None:
    with refused_at(path, reason, UnserializableError):
        encode(value)


def test_a_value_that_contains_itself_is_refused_where_it_closes() -> None:
    value: dict[str, Any] = {"items": [1]}
    value["items"].append((value["items"],))
    with refused_at("$.items[1][0]", "contains itself: it is", UnserializableError):
        encode(value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_value_at_the_bound_of_depth_is_saved_and_one_beyond_it_is_refused() -> None:
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
def test_every_deep_value_that_can_be_saved_can_be_loaded(value: Any, wrap: Any) -> None:
    for _ in range(VALUE_DEPTH // 4):
        value = wrap(value)
    with contextlib.suppress(UnserializableError):
        while text := dumps([[[[[[[[[[[[[[[encode(value)]]]]]]]]]]]]]]]):
            assert first_difference([[[[[[[[[[[[[[[value]]]]]]]]]]]]]]], loads(text)) is None
            value = wrap(value)
    with pytest.raises(UnserializableError, match="nested in more than"):
        encode(value)


@pytest.mark.parametrize("data", [{"a": {1, 2}}, [nan], ["\ud800"], nested(100_000)])
def test_data_that_was_not_encoded_is_refused_by_dumps(data: object) -> None:
    with pytest.raises(UnserializableError):
        dumps(data)


def test_a_text_that_could_not_be_loaded_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_BYTES", 10)
    assert dumps([1, 2, 3, 4]) == "[1,2,3,4]"
    with pytest.raises(UnserializableError, match="takes 13 bytes"):
        dumps(["éé", "é"])
    monkeypatch.setattr(encoding, "MAX_BYTES", 1000)
    monkeypatch.setattr(encoding, "MAX_NODES", 4)
    assert dumps(["a,b,c", "[[[[", 3]) == '["a,b,c","[[[[",3]'
    with pytest.raises(UnserializableError, match="more than 4 values"):
        dumps([1, 2, 3, 4])


@given(st.lists(VALUES), st.integers(0, 120))
def test_an_iterator_in_an_object_is_written_as_the_array_of_its_entries(
    values: list[object], more: int
) -> None:
    entries = [encode(value) for value in values] + [{"n": n} for n in range(more)]
    for names in (("at", "é", "entries", "end"), ("entries", "at"), ("é", "entries"), ("entries",)):
        data = {name: entries if name == "entries" else [2] for name in names}
        given = {
            name: map(dumps, value) if value is entries else value for name, value in data.items()
        }
        assert codec.dumps_object(given) == dumps(data)


def test_an_object_is_written_within_the_bounds_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "MAX_BYTES", 500)
    assert len(codec.dumps_object({"n": map(str, range(100))})) == 297
    with pytest.raises(UnserializableError, match="takes 795 bytes"):
        codec.dumps_object({"n": map(str, range(100, 297))})
    monkeypatch.setattr(encoding, "MAX_BYTES", 1000)
    monkeypatch.setattr(encoding, "MAX_NODES", 100)
    with pytest.raises(UnserializableError, match="more than 100 values"):
        codec.dumps_object({"n": map(str, range(100))})
    with pytest.raises(UnserializableError, match=r"\$\[1\]\.a"):
        codec.dumps_object({"n": [1, {"a": object()}]})


TEXTS = st.lists(st.sampled_from([*'[]{},:"\\ a1', '""', '\\"', '"a,b"', '["']) | st.text()).map(
    "".join
)


@given(TEXTS | VALUES.map(lambda value: dumps(encode(value))))
def test_the_outline_has_the_punctuation_outside_of_strings(text: str) -> None:
    outline, inside = "", False
    for mark in re.findall(r'[,:{}"]|\[|\]', re.sub(r'\\["\\]', "", text)):
        inside ^= mark == '"'
        outline += mark * (mark != '"' and not inside)
    assert limits.outline(text.encode()).decode() == outline


@given(VALUES)
def test_an_outline_tells_the_values_the_members_and_the_depth(value: object) -> None:
    def measured(data: Any) -> tuple[int, int, int]:
        inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else []
        parts = [measured(item) for item in inner]
        return (
            # An empty container counts as one more value: there is a comma less than values.
            sum(n for n, _, _ in parts) + 1 + (not parts and isinstance(data, dict | list)),
            sum(m for _, m, _ in parts) + (len(parts) if isinstance(data, dict) else 0),
            max((d for _, _, d in parts), default=0) + isinstance(data, dict | list),
        )

    data = encode(value)
    outline = limits.outline(dumps(data).encode())
    assert measured(data) == (
        limits.nodes(outline),
        limits.members(outline),
        limits.depth(outline),
    )


@given(st.integers(0, 300), st.text("0,9a"))
def test_an_integer_of_too_many_digits_is_doubtful_at_any_place(at: int, rest: str) -> None:
    assert limits.is_doubtful(f"[{' ' * at}{'7' * (codec.MAX_DIGITS + 1)}{rest}]".encode())
    assert not limits.is_doubtful(b"[" + b"1234567890," * 5000 + b"1]")


# --- what is refused when loading -----------------------------------------------------------------


def tagged(tag: str, value: str) -> str:
    return f'{{"n":[{{"$type":"{tag}","value":{value}}}]}}'


def test_foreign_types_are_read_and_written_unchanged_where_that_is_allowed() -> None:
    text = (
        '{"a":[{"$type":"shop:Order","value":{"id":7,"at":{"$type":"date","value":"2026-01-03"}}}]}'
    )
    with codec.foreign_types():
        value = loads(text)
        assert [value["a"][0]] == loads(text)["a"]
        assert value["a"][0] != loads(text.replace("7", "8"))["a"][0]
        assert value["a"][0] != loads(text.replace("Order", "Parcel"))["a"][0]
        held = loads('{"$type":"set","value":[{"$type":"shop:Kind","value":"A"}]}')
    assert "Order({'id': 7, 'at': datetime.date(2026, 1, 3)})" == str(value["a"][0])
    assert text == dumps(encode(value))
    assert "{Kind('A')}" == str(held)
    with pytest.raises(CorruptStateError, match="unknown \\$type 'shop:Order'"):
        loads(text)


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ('{"jobs":[{"id":1,"id":1}]}', "$.jobs[0].id", "is a duplicate key; remove one"),
        (b'"\xff"', "$", "is not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "$", "is not UTF-8"),
        ('{"a":[1,NaN]}', "$.a[1]", "is NaN"),
        ('{"a":-Infinity}', "$.a", "is -Infinity"),
        ('{"a":1e999}', "$.a", "is 1e999, too big"),
        (f'{{"a":{"9" * 400}.5}}', "$.a", "too big for a float"),
        (f'{{"a":-{"9" * 4001}}}', "$.a", "4,002 characters"),
        ('{"a":["\\ud800"]}', "$.a[0]", "lone surrogate"),
        ('{"\\udc00":1}', '$["\\udc00"]', "lone surrogate"),
        ('{"a":{"$type":"nobody","value":1}}', "$.a", "unknown $type 'nobody'"),
        ('{"a":{"$type":"tuple"}}', "$.a", "is not a tagged value"),
        ('{"a":{"$type":"tuple","value":[],"x":1}}', "$.a", "is not a tagged value"),
        ('{"a":{"$type":1,"value":[]}}', "$.a", "is not a tagged value"),
        (tagged("tuple", '"ab"'), "$.n[0]", "not a list"),
        (tagged("set", "[1,true]"), "$.n[0]", "duplicate"),
        (tagged("set", "[[]]"), "$.n[0]", "unhashable"),
        (tagged("dict", "[[1,2],[1.0,3]]"), "$.n[0]", "duplicate"),
        (tagged("dict", "[[1,2,3]]"), "$.n[0]", "saved form of dict"),
        (tagged("dict", '["ab"]'), "$.n[0]", "saved form of dict"),
        (tagged("date", '"20260103"'), "$.n[0]", "another way"),
        (tagged("date", "5"), "$.n[0]", "saved form of datetime.date"),
        (tagged("datetime", '"2026-01-03"'), "$.n[0]", "another way"),
        (tagged("datetime", '{"local":"2026-01-03T00:00:00","fold":true}'), "$.n[0]", "way"),
        (
            tagged("time", '{"local":"00:00:00","fold":0,"zone":"../../etc/passwd"}'),
            "$.n[0]",
            "saved form of datetime.time",
        ),
        (tagged("timedelta", "[0,0,true]"), "$.n[0]", "another way"),
        (tagged("timedelta", "[1e300,0,0]"), "$.n[0]", "saved form of datetime.timedelta"),
        (tagged("bytes", '"YWI"'), "$.n[0]", "saved form of bytes"),
        (tagged("float", '"1.5"'), "$.n[0]", "saved form of float"),
        (tagged("Decimal", "1"), "$.n[0]", "another way"),
        (tagged("UUID", '"x"'), "$.n[0]", "saved form of uuid.UUID"),
        (tagged("test-colour", '"GREEN"'), "$.n[0]", "KeyError: 'GREEN'"),
        (tagged("test-rights", "64"), "$.n[0]", "saved form of"),
        (tagged("test-money", '{"amount":1}'), "$.n[0]", "its fields are amount, currency"),
        (tagged("test-money", "[NaN]"), "$.n[0].value[0]", "is NaN"),
        (tagged("tuple", '[{"$type":"date","value":""}]'), "$.n[0].value[0]", "datetime.date"),
        ("[" * 101 + "]" * 101, "$" + "[0]" * 100, "deeper than 100"),
        ("[" * 100_000, "$", "deeper than 100"),
        ("[" * 100_000 + "]" * 100_000, "$", "deeper than 100"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "$", "deeper than 100"),
        ("", "$", "is empty"),
        (" \n", "$", "is empty"),
        ('{"a":\n  [1,', "$", "is cut off in a value"),
        ('{"a":\n  "tex', "$", "line 2, column 3"),
        ('{"a":\n 1}}', "$", "is not JSON: Extra data at line 2, column 4"),
        ("{'a':1}", "$", "is not JSON"),
        ('"\ufeff', "$", "is cut off"),
        ('\ufeff{"a":1}', "$", "is not JSON: Expecting value at line 1, column 1"),
        ('"a\tb"', "$", "is not JSON: Invalid control character"),
        ("\ud800", "$", "is not UTF-8"),
    ],
)
def test_text_that_routilux_did_not_save_is_refused_with_its_path(
    text: str | bytes, path: str, reason: str
) -> None:
    with refused_at(path, reason):
        loads(text)


def test_every_prefix_of_a_document_is_refused() -> None:
    text = dumps(encode({"a": [1.5, 'é\\"', None], "at": dt.date(2026, 1, 3)}))
    for end in range(len(text)):
        with pytest.raises(CorruptStateError):
            loads(text[:end])


def test_too_many_bytes_are_refused_before_they_are_parsed() -> None:
    assert loads('"é"', max_bytes=4) == "é"
    for text in ('"éé"', '"éé"'.encode(), "[[[[["):
        with pytest.raises(CorruptStateError, match="longer than 4 bytes"):
            loads(text, max_bytes=4)


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_NODES", 4)
    assert loads('["\\"],[,,,,,,","\\\\",3]') == ['"],[,,,,,,', "\\", 3]
    with pytest.raises(CorruptStateError, match="more than 4 values"):
        loads('{"a":1,"b":[2,3]}')


def test_brackets_in_a_string_neither_count_as_depth_nor_hide_it() -> None:
    assert loads(json.dumps(["[" * 500, '"' + "{" * 500])) == ["[" * 500, '"' + "{" * 500]
    for text in ('"]]]]\\"]]"', '"\\\\"'):
        with pytest.raises(CorruptStateError, match="deeper than 100"):
            loads(f"[{text}," * 101 + "1" + "]" * 101)


def test_a_surrogate_pair_of_another_writer_is_one_character() -> None:
    assert loads('["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ({"a": (1,)}, "$.a", "is of type tuple"),
        ({"a": [Decimal(1)]}, "$.a[0]", "is of type decimal.Decimal"),
        ({"a": nan}, "$.a", "is of type float"),
        ({1: 2}, "$[1]", "a key of type int"),
        ({"a": "\ud800"}, "$.a", "lone surrogate"),
    ],
)
def test_data_that_no_json_parser_gives_is_refused(data: object, path: str, reason: str) -> None:
    with refused_at(path, reason):
        decode(data)


def test_decode_starts_at_the_given_path_and_bounds_the_depth() -> None:
    with refused_at("$.commits[7][0]", "x"):
        decode([{"$type": "x", "value": 1}], "$.commits[7]")
    assert decode(nested(100)) == nested(100)
    with pytest.raises(CorruptStateError, match="deeper than 100"):
        decode(nested(101))


def test_near_the_end_of_the_call_stack_errors_are_still_ours() -> None:
    def fall(left: int) -> None:
        actions: list[Callable[[], object]] = [
            lambda: encode(value),
            lambda: loads(text),
            lambda: decode(value),
        ]
        if left:
            fall(left - 1)
        for action in actions:
            try:
                action()
            except SavedStateError:
                refusals.append(left)

    refusals: list[int] = []
    value, text = nested(70), "[" * 90 + "]" * 90
    depth = sys.getrecursionlimit() - len(list(_frames())) - 60
    fall(depth)
    assert refusals


def _frames() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop


def test_loading_imports_nothing() -> None:
    for name in ("antigravity:x", "antigravity", "os:system", "builtins:eval"):
        with pytest.raises(CorruptStateError, match="unknown"):
            loads(json.dumps({"$type": name, "value": "echo"}))
    assert "antigravity" not in sys.modules


def test_forms_do_not_follow_a_patched_datetime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(dt.datetime):
        pass

    real = dt.datetime(2026, 1, 3, 12, fold=1)
    monkeypatch.setattr(dt, "datetime", Fake)
    assert first_difference(real, loads(dumps(encode(real)))) is None


# --- registered types -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """Forget the types that a test has registered."""
    by_tag, by_kind = dict(registry._by_tag), dict(registry._by_kind)
    yield
    registry._by_tag.clear()
    registry._by_tag.update(by_tag)
    registry._by_kind.clear()
    registry._by_kind.update(by_kind)


def test_a_dataclass_comes_back_through_its_constructor_with_its_saved_fields() -> None:
    seen = []

    @register_type
    @dataclass(slots=True, kw_only=True, frozen=True)
    class Line:
        price: int
        total: int = field(init=False)

        def __post_init__(self) -> None:
            seen.append(self.price)
            object.__setattr__(self, "total", -1)

    line = Line(price=2)
    object.__setattr__(line, "total", 20)
    seen.clear()
    text = dumps(encode(line))
    assert json.loads(text) == {
        "$type": f"{__name__}:{Line.__qualname__}",
        "value": {"price": 2, "total": 20},
    }
    assert loads(text) == line
    assert seen == [2]
    object.__delattr__(line, "total")
    with pytest.raises(UnserializableError, match=r"Line can't be saved: AttributeError"):
        encode(line)


def test_a_type_with_functions_of_its_own_comes_back() -> None:
    register_type(
        range, name="range", encode=lambda r: (r.start, r.stop), decode=lambda v: range(*v)
    )
    assert loads(dumps(encode({"r": range(1, 5)}))) == {"r": range(1, 5)}


def test_an_error_in_a_users_encoder_or_decoder_names_the_path() -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def rude(value: object) -> Any:
        raise RudeError

    register_type(Unregistered, name="rude", encode=rude, decode=rude)
    with refused_at("$.a[0]", "Unregistered can't be saved: RudeError", UnserializableError):
        encode({"a": [Unregistered()]})
    with refused_at("$.a[0]", "RudeError"):
        loads('{"a":[{"$type":"rude","value":1}]}')


def unused(value: object) -> Any:
    raise AssertionError("not called")


def test_a_form_that_reads_another_type_or_never_gets_simpler_is_refused() -> None:
    register_type(Unregistered, name="odd", encode=lambda v: 1, decode=lambda v: v)
    with pytest.raises(CorruptStateError, match="read as int"):
        loads(dumps(encode(Unregistered())))
    register_type(Loud, name="self", encode=lambda v: v, decode=unused)
    with refused_at("$.a[0]", "nested in more than", UnserializableError):
        encode({"a": [Loud()]})


def test_a_subclass_of_a_registered_class_needs_a_form_of_its_own() -> None:
    class Gold(Money):
        pass

    with pytest.raises(UnserializableError, match="Gold is not saved as"):
        encode(Gold(1))


def test_a_name_has_one_meaning() -> None:
    with pytest.raises(FlowDefinitionError, match=r"'test-money' is taken by .*Money"):
        register_type(Unregistered, name="test-money", encode=unused, decode=unused)
    for name in ("datetime", "dict", "list", "NoneType"):
        with pytest.raises(FlowDefinitionError, match="built-in"):
            register_type(Unregistered, name=name, encode=unused, decode=unused)
    with pytest.raises(FlowDefinitionError, match="printable"):
        register_type(Unregistered, name="", encode=unused, decode=unused)
    with pytest.raises(FlowDefinitionError, match="already has a saved form"):
        register_type(dt.date, name="day", encode=unused, decode=unused)
    assert loads(dumps(encode(Money(1)))) == Money(1)


def test_a_reloaded_class_takes_the_place_of_the_old_one() -> None:
    def define() -> Any:
        @register_type
        @dataclass
        class Reloaded:
            n: int

        return Reloaded

    old, new = define(), define()
    assert type(loads(dumps(encode(new(1))))) is new
    with pytest.raises(UnserializableError, match="Reloaded has no saved form"):
        encode(old(1))


def test_a_class_without_a_form_of_its_own_is_refused_at_registration() -> None:
    @dataclass
    class WithInitVar:
        n: int
        seed: InitVar[int]

    @dataclass
    class Problem(Exception):
        n: int

    class Derived(Money):
        pass

    for cls in (Unregistered, WithInitVar, Problem, Derived):
        with pytest.raises(FlowDefinitionError, match=cls.__name__):
            register_type(cls)
    with pytest.raises(FlowDefinitionError, match="both"):
        register_type(Unregistered, encode=unused)
    with pytest.raises(FlowDefinitionError, match="a class"):
        register_type(Money(1))  # type: ignore[call-overload]  # the mistake under test


# --- records --------------------------------------------------------------------------------------

RECORD: dict[str, Any] = {"seq": int, "error": (str, type(None)), "any": object}


def test_a_record_with_its_fields_is_given_back_as_it_is() -> None:
    record = {"seq": 1, "error": None, "any": [1]}
    assert check_fields(record, "$", RECORD, {}) is record
    assert check_fields({**record, "more": 2}, "$", RECORD, {"more": int, "less": int})


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ([], "$.commits[2]", "is of type list, not an object"),
        ({"seq": True, "error": "", "any": 1}, "$.commits[2].seq", "is of type bool, not int"),
        ({"seq": 1, "error": 1, "any": 1}, "$.commits[2].error", "not str or NoneType"),
        ({"seq": 1, "error": None}, "$.commits[2].any", "is missing"),
        ({"seq": 1, "error": "", "any": 1, "x y": 1}, '$.commits[2]["x y"]', "unknown field"),
        ({"seq": 1, "error": "", "any": 1, "more": ""}, "$.commits[2].more", "str, not int"),
        ({"seq": 1, "error": "", "any": 1, 5: ""}, "$.commits[2][5]", "unknown field"),
    ],
)
def test_a_record_that_is_not_as_expected_is_refused_with_the_path(
    data: object, path: str, reason: str
) -> None:
    with refused_at(path, reason):
        check_fields(data, "$.commits[2]", RECORD, {"more": int})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seq": st.sampled_from([1, 1, True]),
            "error": st.sampled_from(["", "", 1]),
            "more": st.sampled_from([1, None]),
            "any": st.sampled_from([[1], ()]),
            "x": st.just(1),
        },
    )
)
def test_the_quick_check_of_a_record_agrees_with_the_check_field_by_field(
    data: dict[Any, Any],
) -> None:
    required: dict[str, Any] = {"seq": int, "error": str}
    optional: dict[str, Any] = {"more": int, "any": list}
    fitting = (
        data.keys() >= required.keys()
        and data.keys() <= required.keys() | optional.keys()
        and all(type(value) is {**required, **optional}[name] for name, value in data.items())
    )
    assert fits(data, required, optional) is fitting
    with contextlib.nullcontext() if fitting else pytest.raises(CorruptStateError):
        check_fields(data, "$", required, optional)
