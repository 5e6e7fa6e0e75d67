"""Saved states that are refused: damaged files, and documents with impossible contents."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from routilux import CorruptStateError, FakeClock, Flow, Runtime, SavedState, SavedStateError
from tests.persist.orders import (
    DOUBLED,
    DROPPED,
    START,
    Fetch,
    at_retry,
    pipeline,
    run,
    seal,
    spoil,
)
from tests.routines import refused_at


@pytest.fixture(scope="module")
def retried() -> bytes:
    """The pipeline at retry 2 of 4."""
    return at_retry(pipeline(9), 2).to_bytes()


@pytest.fixture(scope="module")
def shortened() -> bytes:
    """The pipeline at retry 4, without its first commits."""
    _, captures = run(pipeline(9), history_limit=1)
    return captures.taken[-2].to_bytes()


@pytest.fixture(scope="module")
def small() -> bytes:
    """A job of one step."""
    flow = Flow("f")
    flow.add_routine(Fetch(took=0), "fetch")
    with Runtime(clock=FakeClock(START)) as runtime:
        job = flow.execute("fetch", {"request_id": "r"}, job_id="j", runtime=runtime)
    return SavedState.capture(flow, job).to_bytes()


# --- files that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "place", "reason"),
    [
        (lambda text: b"", "$", "is empty: no state was written to it"),
        (lambda text: text[: len(text) // 2], "$", "is cut off in a value that starts at"),
        (lambda text: b"PK\x03\x04", "$", "is not JSON: Expecting value at line 1"),
        (lambda text: b'{"format": "\xff"}', "$", "is not UTF-8: "),
        (lambda text: b"[1]", "$.format", "is missing: the data was not written by routilux"),
        (lambda text: text.replace(b"r-1", b"r-2"), "$.digest", "does not match: the file"),
        (lambda text: text.replace(b"digest", b"sum"), "$.digest", "is missing at"),
    ],
)
def test_an_invalid_file_is_refused_by_place_reason_and_file(
    damage, place, reason, tmp_path, retried
):
    path = tmp_path / "job.json"
    path.write_bytes(damage(retried))
    before = path.read_bytes()
    with pytest.raises(CorruptStateError) as caught:
        SavedState.read(path)
    assert place == caught.value.path
    assert caught.value.reason.startswith(reason)
    cure = (
        "read(path, verify=False) reads the file" if place == "$.digest" else "restore the file or"
    )
    assert cure in caught.value.reason
    assert f"(in {path})" in caught.value.reason
    assert before == path.read_bytes()


def test_a_file_that_never_ends_is_refused_without_being_read_to_its_end(monkeypatch):
    monkeypatch.setattr("routilux.codec.MAX_BYTES", 2_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptStateError) as caught:
            SavedState.read("/dev/zero")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    reason = (
        "must have at most 2,000,000 bytes (in /dev/zero); restore the file or read another one"
    )
    assert ("$", reason) == (caught.value.path, caught.value.reason)


def test_a_document_cut_off_anywhere_before_its_last_line_break_is_refused(small):
    for length in range(len(small) - 1):
        with pytest.raises(SavedStateError):
            SavedState.from_bytes(small[:length])
        with pytest.raises(SavedStateError):
            SavedState.from_bytes(small[:length], verify=False)
    assert small == SavedState.from_bytes(small[:-1]).to_bytes()


def test_a_document_with_any_one_byte_changed_is_refused(small):
    for place in range(len(small)):
        for bit in (0x01, 0x20):
            changed = bytearray(small)
            changed[place] ^= bit
            with pytest.raises(SavedStateError):
                SavedState.from_bytes(bytes(changed))


# --- documents whose digest is right and whose contents are wrong -------------------------------

Row = tuple[str, object, str | None, str]
"""A path, its new value as of `spoil`, the path of the refusal (None: the same), its reason."""

HANDLER = "flow.routines[1].error_handler"
WHOLE: list[Row] = [
    ("note", 1, None, "is an unknown field"),
    ("saved_at", DROPPED, None, "is missing"),
    ("retry_count", 3, None, "is 3, but the commits of the job show 2"),
    (f"{HANDLER}.retry_count", 3, None, "is 3, but the commits of the job show 2"),
    ("execution_history_count", 3, None, "is 3, but the commits of the job show 2"),
    ("monitor_summary.events", -1, None, "must be a number from 0 to 2**53, not -1"),
    ("saved_at_iso", "yesterday", None, "is not a UTC instant: 'yesterday' is no instant"),
    ("saved_at_iso", "2026-01-03T13:59:05.100000+01:00", None, "is not a UTC instant: the text"),
    ("saved_at", 1.0, None, "is 1.0, but saved_at_iso says '2026-01-03T12:59:05.100000+00:00'"),
    ("flow.routines[0].kwargs", {"volume": 11}, "flow.routines[0]", "building document/fetch"),
    ("flow.routines", DOUBLED, "flow.routines[2]", "flow 'orders' already has a routine"),
    ("flow.max_workers", 0, "flow", "max_workers must be an int of 1 or more, not 0"),
    ("flow.execution_strategy", "parallel", "flow", "execution_strategy is 'parallel'; choose"),
    (f"{HANDLER}.retry_backoff", 0.5, None, "ErrorHandler: retry_backoff=0.5"),
    (
        f"{HANDLER}.retryable_exceptions",
        ["x:E"],
        f"{HANDLER}.retryable_exceptions[0]",
        "'x:E' is not an",
    ),
    ("flow.connections[0].param_mapping", {"data": ["x"]}, "flow.connections[0]", "param_mapping"),
    ("flow.connections", DOUBLED, "flow.connections[1]", "fetch.output -> process.input already"),
]


@pytest.mark.parametrize(("path", "value", "refused", "reason"), WHOLE)
def test_impossible_contents_are_refused_although_the_digest_is_right(
    path, value, refused, reason, retried
):
    document = json.loads(retried)
    SavedState.from_bytes(seal(document))
    spoil(document, path, value)
    with refused_at(f"$.{refused or path}", reason, SavedStateError):
        SavedState.from_bytes(seal(document))


def test_a_job_without_its_first_commits_must_agree_with_itself(shortened):
    for path, value, reason in (
        ("pending_tasks[0].seq", 99, "is 99, but the job's last commit is"),
        ("pending_tasks[0].routine_id", "ghost", "'ghost' is not a routine of the job"),
        ("commits[0].attempt", 0, "must be a number from 1 to 2**53, not 0"),
        ("status", "completed", "must be empty in a completed job"),
    ):
        document = json.loads(shortened)
        spoil(document, f"job_state.{path}", value)
        refused = "pending_tasks" if path == "status" else path
        with refused_at(f"$.job_state.{refused}", reason):
            SavedState.from_bytes(seal(document))


def test_an_error_about_endless_data_is_short(retried):
    endless = "x" * 1_000_000
    for path, place in (("job_state.status", "$.job_state.status"), (endless, f"$.{endless}")):
        document = json.loads(retried)
        spoil(document, path, endless)
        with pytest.raises(CorruptStateError) as caught:
            SavedState.from_bytes(seal(document))
        error = caught.value
        assert place[:300] == error.path[:300]
        assert (error.path, error.reason) == error.args
        assert len(error.path) <= 500
        assert len(str(error)) < 4_600
