"""Limits of a JSON text: bytes, values, depth and digits, for writing and for reading."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import codec
from routilux.codec import decoding, dumps, encode, encoding, limits, loads
from routilux.errors import CorruptStateError, UnserializableError
from tests.codec.values import VALUES


def test_a_text_that_could_not_be_loaded_is_not_written(monkeypatch):
    monkeypatch.setattr(encoding, "MAX_BYTES", 10)
    assert dumps([1, 2, 3, 4]) == "[1,2,3,4]"
    with pytest.raises(UnserializableError, match="takes 13 bytes"):
        dumps(["éé", "é"])
    monkeypatch.setattr(encoding, "MAX_BYTES", 1000)
    monkeypatch.setattr(encoding, "MAX_NODES", 4)
    assert dumps(["a,b,c", "[[[[", 3]) == '["a,b,c","[[[[",3]'
    with pytest.raises(UnserializableError, match="more than 4 values"):
        dumps([1, 2, 3, 4])


def test_an_object_is_written_within_the_bounds_of_the_whole(monkeypatch):
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
def test_the_outline_has_the_punctuation_outside_of_strings(text):
    outline, inside = "", False
    for mark in re.findall(r'[,:{}"]|\[|\]', re.sub(r'\\["\\]', "", text)):
        inside ^= mark == '"'
        outline += mark * (mark != '"' and not inside)
    assert limits.outline(text.encode()).decode() == outline


@given(VALUES)
def test_an_outline_gives_the_values_the_members_and_the_depth(value):
    def measured(data):
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
    assert measured(data) == (limits.nodes(outline), limits.members(outline), limits.depth(outline))


@given(st.integers(0, 300), st.text("0,9a"))
def test_an_integer_of_too_many_digits_is_doubtful_at_any_place(at, rest):
    assert limits.is_doubtful(f"[{' ' * at}{'7' * (codec.MAX_DIGITS + 1)}{rest}]".encode())
    assert not limits.is_doubtful(b"[" + b"1234567890," * 5000 + b"1]")


def test_too_many_bytes_are_refused_before_they_are_parsed():
    assert loads('"é"', max_bytes=4) == "é"
    for text in ('"éé"', '"éé"'.encode(), "[[[[["):
        with pytest.raises(CorruptStateError, match="longer than the limit of 4 bytes"):
            loads(text, max_bytes=4)


def test_too_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_NODES", 4)
    assert loads('["\\"],[,,,,,,","\\\\",3]') == ['"],[,,,,,,', "\\", 3]
    with pytest.raises(CorruptStateError, match="more values than the limit of 4"):
        loads('{"a":1,"b":[2,3]}')
