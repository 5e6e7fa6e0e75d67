"""Signed documents: a reader with the key gets the written state, or an error."""

from __future__ import annotations

import hashlib
import hmac
import json
import traceback
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import CorruptStateError, FakeClock, JobState, Runtime, SavedState
from routilux.codec import signature
from tests.persist.orders import GOLDEN, KEY, START, Fetch, at_retry, pipeline, run
from tests.routines import refused_at

OTHER = b"another key of sixteen bytes or more"
MISSING = (
    "is missing, so nothing proves who wrote this file; ask its writer for a file written with"
    " key=..., or read this file without a key if you trust its source"
)
ANOTHER = (
    "does not match this key: the file was signed with another key, or changed after that; pass the"
    " key that signed this file, or ask its writer for a new file"
)


@pytest.fixture(scope="module")
def saved():
    return at_retry(pipeline(9), 2)


@pytest.fixture(scope="module")
def plain(saved):
    return saved.to_bytes()


@pytest.fixture(scope="module")
def signed(saved):
    return saved.to_bytes(key=KEY)


@pytest.fixture
def nothing_is_parsed(monkeypatch):
    def parse(*_):
        pytest.fail("it was parsed although its signature is invalid")

    monkeypatch.setattr("routilux.codec.loads", parse)
    monkeypatch.setattr("routilux.saved_state.loads_versioned", parse)


# --- form ------------------------------------------------------------------------------------


def test_a_signature_is_one_more_member_of_a_document_that_stays_json(plain, signed):
    members, unsigned = json.loads(signed), json.loads(plain)
    assert ["digest", "signature"] == list(members)[-2:]
    assert unsigned == {name: members[name] for name in unsigned}
    assert signed.startswith(plain.removesuffix(b"}\n"))


def test_a_signature_is_the_hmac_sha256_of_the_bytes_before_its_own_member(signed):
    before, own = signed.split(b',\n"signature": "hmac-sha256:')
    assert hmac.new(KEY, before, hashlib.sha256).hexdigest().encode() + b'"}\n' == own
    assert b'"digest": "sha256:' in before


# --- reading -----------------------------------------------------------------------------------


def test_a_signed_file_is_read_with_its_key(tmp_path, saved):
    path = tmp_path / "job.json"
    saved.write(path, key=KEY)
    assert saved.job == SavedState.read(path, key=KEY).job


def test_a_signed_file_is_read_without_a_key_like_any_other(tmp_path, saved, signed):
    path = tmp_path / "job.json"
    path.write_bytes(signed)
    assert saved.job == SavedState.read(path).job
    path.write_bytes(signed.replace(b'"request_id":"r-1"', b'"request_id":"r-2"'))
    with refused_at("$.digest"):
        SavedState.read(path)
    assert (
        "r-2" == SavedState.read(path, verify=False).job.commits[0].tasks[0].payload["request_id"]
    )


def test_a_signed_file_with_another_layout_is_read_without_key_and_digest(signed):
    text = json.dumps(json.loads(signed), indent=2).encode()
    assert "job-1" == SavedState.from_bytes(text, verify=False).job.job_id
    with refused_at("$.signature", MISSING):
        SavedState.from_bytes(text, verify=False, key=KEY)


@given(st.binary(min_size=16, max_size=200))
def test_any_key_of_sixteen_bytes_reads_what_it_signed_and_no_other_key_does(small, key):
    text = small.to_bytes(key=key)
    assert small.job == SavedState.from_bytes(text, key=key).job
    with pytest.raises(CorruptStateError):
        SavedState.from_bytes(text, key=hashlib.sha256(b"other" + key).digest())


@pytest.fixture(scope="module")
def small() -> SavedState:
    flow = pipeline(0)
    return SavedState.capture(flow, JobState("j"))


# --- refusal --------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[bytes], bytes], bytes, str]] = {
    "no signature": (lambda text: text[: text.index(b',\n"signature"')] + b"}\n", KEY, MISSING),
    "another key": (lambda text: text, OTHER, ANOTHER),
    "a longer key": (lambda text: text, KEY + b"s", ANOTHER),
    "a newer format": (lambda text: text.replace(b"routilux/1", b"routilux/2"), KEY, ANOTHER),
    "cut off": (lambda text: text[: len(text) // 2], KEY, MISSING),
    "cut off in its signature": (lambda text: text[:-20], KEY, ANOTHER),
    "another algorithm": (lambda text: text.replace(b"-sha256:", b"-md5:"), KEY, ANOTHER),
}


@pytest.mark.usefixtures("nothing_is_parsed")
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_without_a_valid_signature_is_refused_before_it_is_parsed(
    case, verify, tmp_path, signed
):
    spoil, key, reason = REFUSED[case]
    path = tmp_path / "job.json"
    path.write_bytes(spoil(signed))
    with refused_at("$.signature", f"{reason} (in {path})"):
        SavedState.read(path, verify=verify, key=key)


@pytest.mark.usefixtures("nothing_is_parsed")
def test_any_one_byte_changed_left_out_or_put_in_is_refused_by_the_signature(small):
    text = small.to_bytes(key=KEY)
    for place in range(len(text)):
        before, byte, after = text[:place], text[place], text[place + 1 :]
        for changed in (bytes([byte ^ 1]), bytes([byte ^ 0x80]), b"", bytes([byte, byte])):
            with refused_at("$.signature"):
                SavedState.from_bytes(before + changed + after, key=KEY)


@pytest.mark.usefixtures("nothing_is_parsed")
def test_a_new_digest_does_not_make_a_signature_valid(signed):
    body = signed[: signed.index(b',\n"digest"')].replace(b'"r-1"', b'"r-2"')
    old = signed[signed.index(b',\n"signature"') :]
    forged = signature.with_digest(body).removesuffix(b"}\n") + old
    with refused_at("$.signature"):
        SavedState.from_bytes(forged, key=KEY)


# --- keys -----------------------------------------------------------------------------------------

NO_KEYS: dict[str, tuple[Any, type[Exception], str]] = {
    "empty": (b"", ValueError, "a key must have at least 16 bytes, not 0; make one with *"),
    "short": (b"h" * 15, ValueError, "a key must have at least 16 bytes, not 15; make one with *"),
    "text": ("hush-hush-hush-hush", TypeError, "a key must be bytes, not str; make one with *"),
    "mutable": (bytearray(20), TypeError, "a key must be bytes, not bytearray; make one with *"),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_an_invalid_key_is_refused_before_any_read_or_write(case, tmp_path, saved, signed):
    key, error, message = NO_KEYS[case]
    path = tmp_path / "job.json"
    path.write_bytes(b"as it was")
    for use in (
        lambda: saved.write(path, key=key),
        lambda: saved.to_bytes(key=key),
        lambda: SavedState.read(path, key=key),
        lambda: SavedState.from_bytes(signed, key=key),
    ):
        with pytest.raises(error) as caught:
            use()
        assert message.replace("*", "secrets.token_bytes(32)") == str(caught.value)
    assert (b"as it was", [path]) == (path.read_bytes(), list(tmp_path.iterdir()))


def shown_by(error: BaseException) -> str:
    """All that a traceback shows, with the locals of routilux's frames."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    package = str(Path(signature.__file__).parents[1])
    lines = [str(error), repr(error)]
    for frame in shown.stack:
        if frame.filename.startswith(package):
            assert frame.locals is not None
            lines += [frame.name, frame.line or "", *frame.locals.values()]
    assert any(name in lines for name in ("read", "write", "to_bytes", "from_bytes"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "key", [KEY, b"hush-hush", "hush-hush-hush-hush"], ids=["sound", "short", "text"]
)
def test_no_error_shows_a_key_not_even_in_the_locals_of_its_frames(key, tmp_path, signed):
    job, _ = run(pipeline(0))
    flow = pipeline(0)
    unsaved = SavedState(flow, job, 0, {})
    flow.add_routine(Fetch(items=(object(),)), "late")  # type: ignore[arg-type]  # no saved form
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(signed[:-3])
    forged = signature.with_digest(b'{"format": "routilux/1"', signature.new_mac(KEY))
    sound = SavedState.from_bytes(signed)
    for use in (
        lambda: unsaved.write(tmp_path / "a.json", key=key),
        lambda: unsaved.to_bytes(key=key),
        lambda: sound.write(tmp_path / "nowhere" / "job.json", key=key),
        lambda: SavedState.read(tmp_path / "nothing.json", key=key),
        lambda: SavedState.read(damaged, key=key),
        lambda: SavedState.from_bytes(forged, key=key),
    ):
        with pytest.raises(Exception) as caught:  # each of another type
            use()
        text = shown_by(caught.value)
        shown = key if isinstance(key, str) else key.decode()
        assert shown not in text
        assert "hush" not in text
        assert "golden files" not in text


def test_a_state_that_was_read_with_a_key_does_not_keep_it(signed):
    loaded = SavedState.from_bytes(signed, key=KEY)
    assert KEY not in [getattr(loaded, name) for name in SavedState.__slots__]
    assert KEY.decode() not in repr(loaded)


def test_signatures_are_compared_in_constant_time(signed, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(len(a)) or a == b)
    SavedState.from_bytes(signed, key=KEY)
    assert [len(b',\n"signature": "hmac-sha256:"}\n') + 64] == compared


# --- the golden file ------------------------------------------------------------------------------


def test_the_golden_signed_document_is_read_and_written_again_byte_by_byte():
    path = GOLDEN / "routilux-1-signed.json"
    saved = SavedState.read(path, key=KEY)
    assert path.read_bytes() == saved.to_bytes(key=KEY)
    assert SavedState.read(GOLDEN / "routilux-1.json").job == saved.job
    clock = FakeClock(START)
    ended = saved.flow.resume(saved.job, runtime=Runtime(clock=clock))
    assert [Decimal("3.00")] == [output.data["total"] for output in ended.outputs]
