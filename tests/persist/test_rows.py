"""Rows: their checksum, their batches, and the refusal of a damaged row by its number."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from routilux import FakeClock, MemoryStore, Runtime, SavedStateError, codec
from routilux.persist.rows import (
    CHECKSUM_BYTES,
    load_rows,
    row_place,
    with_checksum,
    without_checksum,
)
from tests.persist.stores import counter, driven
from tests.routines import calls_of, refused_at


def ended(text: bytes) -> Callable[[str], bytes]:
    """A row for any place, with the right checksum and this text, which ends with a brace."""

    def row(place: str) -> bytes:
        assert text == without_checksum(with_checksum(text, place), place)
        return with_checksum(text, place)

    return row


NO_CHECKSUM = "has no checksum at its end: it is cut off, or was not written by routilux"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"", NO_CHECKSUM),
        (b"{", NO_CHECKSUM),
        (b"no JSON at all", NO_CHECKSUM),
        (ended(b"  }"), "is not JSON"),
        (ended(b"{]}"), "is not JSON"),
        (ended(b'{"seq":"17}'), "is cut off"),
        (ended(b"\xff\xfe}"), "is not UTF-8"),
        (ended(b'{"seq":NaN}'), "is nan: JSON has no such number"),
        (ended(b'{"seq":' + b"[" * 200 + b"]" * 200 + b"}"), "is nested deeper"),
        (ended(b'{"seq":' + b"9" * 5000 + b"}"), "is an integer of 5,000 characters"),
        (ended(b'{"$type":"of another program","value":1}'), "has the unknown"),
        (
            ended(b'{"$type":"tuple","value":[{}]}'),
            "is of type tuple, not a JSON object|is missing",
        ),
        (ended(b'{"format":"routilux/1"}'), "is missing"),
        (ended(b'{"format":{}}'), "was not written by routilux"),
    ],
)
def test_an_invalid_row_is_reported_by_its_job_and_number(row, reason):
    store = MemoryStore()
    job_id = "a [strange] $.id"
    with Runtime(clock=FakeClock(), store=store) as runtime:
        counter(300).execute("a", job_id=job_id, runtime=runtime)
    rows = store._jobs[job_id].rows
    for number in (1, 17, 300):
        place = row_place(job_id, number)
        rows[number - 1], whole = row(place) if callable(row) else row, rows[number - 1]
        with pytest.raises(SavedStateError, match=reason) as caught:
            runtime.load(job_id, history=True)
        assert caught.value.path.startswith(f"$.{job_id}[{number}]")
        rows[number - 1] = whole


def test_rows_that_make_sense_only_together_are_refused():
    store = MemoryStore()
    driven(store, counter(10, prints=True))
    rows = store._jobs["j"].rows
    third, fourth, fifth = (
        without_checksum(row, row_place("j", seq)) for seq, row in enumerate(rows[2:5], 3)
    )
    head, tail = fifth.split(b"},", 1)
    texts = [third + b"," + fourth, head + b"}", tail]
    rows[2:5] = [ended(text)(row_place("j", seq)) for seq, text in enumerate(texts, 3)]
    assert 11 == len(rows)
    with refused_at("$.j[3]", "is not JSON: Extra data"):
        Runtime(store=store).load("j")


def test_only_the_batch_of_a_damaged_row_is_read_row_by_row(monkeypatch):
    calls = []
    loads = codec.loads
    monkeypatch.setattr(
        "routilux.codec.loads", lambda text, **how: calls.append(text) or loads(text, **how)
    )
    store = MemoryStore()
    job = driven(store, counter(199))
    runtime = Runtime(store=store)
    assert job == runtime.load("j")
    assert 4 == len(calls)
    store._jobs["j"].rows[70] = ended(b"no JSON}")("$.j[71]")
    calls.clear()
    with refused_at("$.j[71]", "is not JSON"):
        runtime.load("j")
    assert 2 + 7 == len(calls)  # two batches, and the rows up to the damaged one


def test_a_row_of_another_commit_or_another_job_is_refused_by_its_place():
    store = MemoryStore()
    for job_id in "jk":
        with Runtime(clock=FakeClock(), store=store) as runtime:
            counter(70).execute("a", job_id=job_id, runtime=runtime)
    rows, others = store._jobs["j"].rows, store._jobs["k"].rows
    for number, moved in ((40, rows[38]), (40, others[39]), (71, others[70])):
        whole, rows[number - 1] = rows[number - 1], moved
        with refused_at(f"$.j[{number}]", "was damaged: its checksum does not match"):
            Runtime(store=store).load("j")
        rows[number - 1] = whole
    kept = store._jobs["j"]
    kept.snapshot = 5, with_checksum(b'{"format":"routilux/1"}', "$.k.snapshot")
    with refused_at("$.j.snapshot", "was damaged: its checksum does not match"):
        Runtime(store=store).load("j")


def flipped(data: bytes, bit: int) -> bytes:
    number = int.from_bytes(data) ^ 1 << bit
    return number.to_bytes(len(data))


def test_a_bit_that_changes_anywhere_in_a_row_or_a_snapshot_is_reported():
    store = MemoryStore()
    driven(store, counter(260))
    kept = store._jobs["j"]
    seq, data = kept.snapshot
    runtime = Runtime(store=store)
    whole = kept.rows[258]
    bits = len(whole) * 8
    for at in (*range(0, bits, 7), *range(bits - CHECKSUM_BYTES * 8, bits)):
        kept.rows[258] = flipped(whole, at)
        with pytest.raises(SavedStateError, match=r"^\$\.j\[259\]"):
            runtime.load("j")
    kept.rows[258] = whole
    for at in range(0, len(data) * 8, 7):
        kept.snapshot = seq, flipped(data, at)
        with pytest.raises(SavedStateError, match=r"^\$\.j\.snapshot"):
            runtime.load("j")


def test_a_first_row_whose_shape_is_damaged_is_refused_by_its_place():
    store = MemoryStore()
    driven(store, counter(3))
    rows = store._jobs["j"].rows
    data = json.loads(without_checksum(rows[0], row_place("j", 1)))
    data["detail"]["shape"] = [1]
    rows[0] = ended(json.dumps(data).encode())(row_place("j", 1))

    with refused_at("$.j[1]", "must be a list of strings"):
        Runtime(store=store).load("j")


def test_large_rows_are_read_one_by_one_and_small_ones_at_once(monkeypatch):
    calls = calls_of(monkeypatch, codec, "loads")
    half = (1 << 19) - len(b'{"n":""}')
    for extra, expected in ((0, 1), (1, 2)):
        texts = [b'{"n":"%b"}' % (b"x" * size) for size in (half, half + extra)]
        rows = [with_checksum(text, row_place("j", seq)) for seq, text in enumerate(texts, 2)]
        calls.clear()
        assert texts == [codec.dumps(data).encode() for _, data in load_rows(rows, "j", after=1)]
        assert expected == len(calls)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_that_holds_two_objects_is_refused_in_any_batch(rows):
    texts = [b'{"seq":2},{"seq":3}', b'{"seq":4}'][:rows]
    written = [with_checksum(text, row_place("j", seq)) for seq, text in enumerate(texts, 2)]
    with refused_at("$.j[2]", "is not JSON: Extra data"):
        list(load_rows(written, "j", after=1))


def test_a_row_of_another_type_is_refused_by_its_place():
    with refused_at("$.j[2]", "is of type str, not bytes"):
        list(load_rows(["no bytes"], "j", after=1))  # as a user's store may return it
