"""Decoding: only text that encoding writes is read; other text is refused with its path."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import codec
from routilux.codec import decode, decoding, dumps, encode, limits, loads, registry
from routilux.codec.equality import first_difference
from routilux.errors import CorruptStateError, SavedStateError
from tests.codec.values import VALUES, nested
from tests.routines import refused_at
from tests.soak import examples


@given(VALUES)
def test_the_careful_parser_reads_the_same_value_as_the_fast_one(value):
    text = dumps(encode(value))
    careful = decode(decoding._CAREFUL.decode(text))
    fast = decoding._read(text, limits.members(limits.outline(text.encode())))
    assert first_difference(careful, fast) is None


@given(VALUES, st.sampled_from(["", "\\ud83d\\ude00"]))
def test_tags_can_be_kept_and_decoded_later(value, doubtful):
    text = f'[{dumps(encode(value))},"{doubtful}"]'
    data = loads(text, untag=False)
    assert json.dumps(data) == json.dumps(json.loads(text))
    assert first_difference(loads(text), decode(data)) is None


TAGS = [form.tag for form in registry._FORMS] + ["none"]  # other tests register more types


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
def test_any_data_is_decoded_or_refused_as_saved_state(data):
    try:
        value = decode(data)
    except SavedStateError:
        return
    assert first_difference(value, loads(dumps(encode(value)))) is None


def tagged(tag: str, value: str) -> str:
    return f'{{"n":[{{"$type":"{tag}","value":{value}}}]}}'


def test_foreign_types_are_read_and_written_unchanged_if_allowed():
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
        ('{"jobs":[{"id":1,"id":1}]}', "$.jobs[0].id", "is a duplicate key; keep only"),
        (b'"\xff"', "$", "is not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "$", "is not UTF-8"),
        ('{"a":[1,NaN]}', "$.a[1]", "is nan"),
        ('{"a":-Infinity}', "$.a", "is -inf"),
        ('{"a":1e999}', "$.a", "is inf: JSON has no such number, or it is too big"),
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
        (tagged("date", '"20260103"'), "$.n[0]", "gives different data"),
        (tagged("date", "5"), "$.n[0]", "saved form of datetime.date"),
        (tagged("datetime", '"2026-01-03"'), "$.n[0]", "gives different data"),
        (tagged("datetime", '{"local":"2026-01-03T00:00:00","fold":true}'), "$.n[0]", "form"),
        (
            tagged("time", '{"local":"00:00:00","fold":0,"zone":"../../etc/passwd"}'),
            "$.n[0]",
            "saved form of datetime.time",
        ),
        (tagged("timedelta", "[0,0,true]"), "$.n[0]", "gives different data"),
        (tagged("timedelta", "[1e300,0,0]"), "$.n[0]", "saved form of datetime.timedelta"),
        (tagged("bytes", '"YWI"'), "$.n[0]", "saved form of bytes"),
        (tagged("float", '"1.5"'), "$.n[0]", "saved form of float"),
        (tagged("Decimal", "1"), "$.n[0]", "gives different data"),
        (tagged("UUID", '"x"'), "$.n[0]", "saved form of uuid.UUID"),
        (
            tagged("test-colour", '"GREEN"'),
            "$.n[0]",
            "has no member 'GREEN': keep the member, or upgrade",
        ),
        (tagged("test-rights", "64"), "$.n[0]", "saved form of"),
        (
            tagged("test-money", '{"currency":"EUR"}'),
            "$.n[0]",
            "the field 'amount' was not saved and has no default: give Money.amount a default",
        ),
        (
            tagged("test-money", '{"amount":1,"rate":2}'),
            "$.n[0]",
            "Money has no field 'rate': keep the field, or upgrade this program",
        ),
        (tagged("test-money", "[NaN]"), "$.n[0].value[0]", "is nan"),
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
def test_text_that_routilux_did_not_save_is_refused_with_its_path(text, path, reason):
    with refused_at(path, reason):
        loads(text)


def test_a_surrogate_pair_of_another_writer_is_one_character():
    assert loads('["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ({"a": (1,)}, "$.a", "is of type tuple"),
        ({"a": [Decimal(1)]}, "$.a[0]", "is of type decimal.Decimal"),
        ({"a": nan}, "$.a", "is nan"),
        ({1: 2}, "$[1]", "a key of type int"),
        ({"a": "\ud800"}, "$.a", "lone surrogate"),
    ],
)
def test_data_that_no_json_parser_gives_is_refused(data, path, reason):
    with refused_at(path, reason):
        decode(data)


def test_decode_starts_at_the_given_path_and_bounds_the_depth():
    with refused_at("$.commits[7][0]", "x"):
        decode([{"$type": "x", "value": 1}], "$.commits[7]")
    assert decode(nested(100)) == nested(100)
    with pytest.raises(CorruptStateError, match="deeper than 100"):
        decode(nested(101))


def test_near_the_end_of_the_call_stack_only_saved_state_errors_are_raised():
    def fall(left):
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


def test_loading_imports_nothing():
    for name in ("antigravity:x", "antigravity", "os:system", "builtins:eval"):
        with pytest.raises(CorruptStateError, match="unknown"):
            loads(json.dumps({"$type": name, "value": "echo"}))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("zone", ["no/such", "../../etc/passwd", "/etc/passwd", "os", "", 7, []])
def test_a_zone_that_the_host_does_not_list_opens_no_file_and_imports_nothing(zone, monkeypatch):
    def opened(name):
        raise AssertionError(f"{name!r} was looked up")

    registry._zones()
    monkeypatch.setattr(registry, "ZoneInfo", opened)
    data = {"$type": "datetime", "value": {"local": "2026-01-03", "fold": 0, "zone": zone}}
    with pytest.raises(CorruptStateError, match="is not a time zone of this host") as refused:
        decode({"at": data})
    assert "$.at" == refused.value.path
