"""Saved states that are refused: damaged files, and documents with impossible contents."""

from __future__ import annotations

import copy
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routilux import (
    CorruptStateError,
    FakeClock,
    Flow,
    Runtime,
    SavedState,
    SavedStateError,
    UnsupportedVersionError,
)
from tests.persist.orders import GOLDEN, START, Fetch, at_retry, pipeline, run, seal
from tests.routines import refused_at
from tests.soak import examples

DOCUMENT = GOLDEN / "routilux-1.json"


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


def edited(text: bytes, old: bytes, new: bytes) -> bytes:
    assert 1 == text.count(old), old
    return text.replace(old, new)


EMPTY = "is empty: no state was written to it"
FOREIGN = "is missing: this was not written by routilux"
CURE = "; restore the file or read another one"
UNCHECKED = "read(path, verify=False) reads it all the same"
FILES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "empty": (lambda text: b"", "$", EMPTY),
    "blank": (lambda text: b" \n", "$", EMPTY),
    "cut off": (
        lambda text: text[: len(text) // 2],
        "$",
        "is cut off in a value that starts at line 3, column *",
    ),
    "no JSON": (
        lambda text: b"PK\x03\x04",
        "$",
        "is not JSON: Expecting value at line 1, column 1",
    ),
    "no UTF-8": (lambda text: b'{"format": "\xff"}', "$", "is not UTF-8: *"),
    "another program's": (lambda text: b'{"version": 3, "cells": []}', "$.format", FOREIGN),
    "a list": (lambda text: b"[1]", "$.format", FOREIGN),
    "a newer version": (
        lambda text: b'{"format": "routilux/12", "state": {"$type": "of the future"}}',
        "$.format",
        (
            "is 'routilux/12', which a newer routilux wrote; this one reads 'routilux/1': install"
            " the newer one here, or resume the job where it was saved"
        ),
    ),
    "edited": (
        lambda text: edited(text, b'"retry_count": 2', b'"retry_count": 3'),
        "$.digest",
        f"does not match: the file was changed after it was written; {UNCHECKED}",
    ),
    "without a digest": (
        lambda text: text[: text.index(b',\n"digest"')] + b"}\n",
        "$.digest",
        f"is missing at the end; {UNCHECKED}",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_an_invalid_file_is_refused_by_place_reason_and_file(case, tmp_path, retried):
    spoil, place, reason = FILES[case]
    error = UnsupportedVersionError if case == "a newer version" else CorruptStateError
    path = tmp_path / "job.json"
    path.write_bytes(spoil(retried))
    before = path.read_bytes()
    with pytest.raises(SavedStateError) as caught:
        SavedState.read(path)
    assert (error, place) == (type(caught.value), caught.value.path)
    cure = "" if ";" in reason or error is UnsupportedVersionError else CURE
    pattern = re.escape(f"{reason} (in {path}){cure}").replace(r"\*", ".*")
    assert re.fullmatch(pattern, caught.value.reason), caught.value.reason
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
    assert ("$", "is longer than 2,000,000 bytes; no job is (in /dev/zero)") == (
        caught.value.path,
        caught.value.reason,
    )


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


def loads_or_refuses(text: bytes) -> bool:
    """Whether the text was read; then it can be written and read again."""
    try:
        loaded = SavedState.from_bytes(text, verify=False)
    except SavedStateError as error:
        if not (error.path.startswith("$") and error.reason):
            pytest.fail(f"the refusal has no path or no reason: {error!r}")
        return False
    again = SavedState.from_bytes(loaded.to_bytes())
    assert again.job == loaded.job
    assert again.to_bytes() == loaded.to_bytes()
    return True


def test_without_the_digest_any_one_byte_changed_is_read_or_refused_and_nothing_else(small):
    read = 0
    for place in range(len(small)):
        changed = bytearray(small)
        changed[place] ^= 0x01
        read += loads_or_refuses(bytes(changed))
    assert 0 < read < len(small) // 2


# --- documents whose digest is right and whose contents are wrong -------------------------------

DROPPED, DOUBLED = object(), object()
Row = tuple[str, object, str | None, str]
"""A path, its new value, the path of the refusal (None: the same), a part of the reason.

The value is removed if `DROPPED`; if `DOUBLED`, the last entry of a list is repeated.
"""

# The commits of the job at retry 2: 0 start, 1 done, 2 effect, 3 retry, 4 retry.
FIRST_TASK = {"task_id": "0.0", "routine_id": "process", "slot": "i", "emission": -1, "payload": {}}
JOB: list[Row] = [
    ("status", "lost", None, "'lost' is not a valid JobStatus"),
    ("status", "failed", None, "contradicts the job's commits"),
    ("seq", -1, None, "-1 is not a number from 0 to 2**53"),
    ("seq", 4, "commits", "are not numbered without a gap up to the job's seq"),
    ("updated_ns", 1000000000000000000000, None, "1000000000000000000000 ns is not an instant in"),
    ("pending_tasks", DOUBLED, "pending_tasks[1].task_id", "is a duplicate"),
    ("pending_tasks[0]", DROPPED, "pending_tasks", "contradicts the job's commits"),
    ("pending_tasks[0].retries", 3, None, "is not less than the number of the next attempt"),
    ("pending_tasks[0].failed", True, "pending_tasks[0].delay_ns", "a failed task has no delay"),
    ("pending_tasks[0].attempt", 0, "pending_tasks[0].retries", "is not less than the number of"),
    ("pending_tasks[0].payload.metadata", {}, "pending_tasks", "contradicts the job's commits"),
    ("routine_states.fetch.status", "failed", "routine_states['fetch'].status", "'failed'"),
    ("routine_states.fetch.attempts", 0, "routine_states['fetch'].attempts", "is less than the"),
    ("recoveries", True, None, "is of type bool, not int"),
    ("commits[0].tasks", DROPPED, None, "is missing in a commit of kind 'start'"),
    ("commits[3].error", DROPPED, None, "is missing in a commit of kind 'retry'"),
    ("commits[3].emissions", [], None, "is no field of a commit of kind 'retry'"),
    ("commits[1].kind", "undone", "commits[1]", "'undone' is not a valid CommitKind"),
    ("commits[2].detail", {}, "commits[2].detail.name", "is missing"),
    ("commits[1].tasks[0].emission", 7, None, "the commit has no emission 7"),
    ("commits[1].tasks[0]", FIRST_TASK, "commits[1].tasks[0].emission", "only the task that a job"),
    ("commits[4].at_ns", 0, "commits[4]", "it is earlier than the one before"),
    ("commits[1].started_ns", 10000000000000000000, "commits[1]", "its attempt starts after it"),
    ("commits[3].delay_ns", 1, "commits[3]", "its due_ns is not its at_ns plus its delay_ns"),
    ("commits[4].attempt", 3, "commits[4]", "attempt 3 of task 0.0 of 'process' is not the next"),
    ("commits[4].routine_id", "fetch", "commits[4]", "attempt 2 of task 0.0 of 'fetch' is not the"),
    ("commits[1].tasks[0].routine_id", "ghost", "commits[1]", "it creates a task of 'ghost',"),
    ("commits[1].tasks", DOUBLED, "commits[1]", "it creates task 0.0 again"),
    ("commits[0].tasks", DOUBLED, None, "a job starts with one task, not 2"),
    ("commits[1].status", "completed", "commits[1]", "1 tasks are left after it, and the job is"),
    ("commits[3].status", "paused", "commits[3]", "a commit 'retry' can't turn a job from running"),
]
HANDLER = "flow.routines[1].error_handler"
WHOLE: list[Row] = [
    ("note", 1, None, "is an unknown field"),
    ("saved_at", DROPPED, None, "is missing"),
    ("retry_count", 3, None, "is 3, but the job has 2"),
    (f"{HANDLER}.retry_count", 3, None, "is 3, but the job has 2"),
    ("execution_history_count", 3, None, "is 3, but the job has 2"),
    ("monitor_summary.events", -1, None, "-1 is not a number from 0 to 2**53"),
    ("saved_at_iso", "yesterday", None, "is not a UTC instant: Invalid isoformat string:"),
    ("saved_at_iso", "2026-01-03T13:59:05.100000+01:00", None, "is not a UTC instant: is written"),
    ("saved_at", 1.0, None, "is 1.0, but saved_at_iso is '2026-01-03T12:59:05.100000+00:00'"),
    ("flow.routines[0].kwargs", {"volume": 11}, "flow.routines[0]", "document/fetch can't be"),
    ("flow.routines", DOUBLED, "flow.routines[2]", "flow 'orders' already has a routine"),
    ("flow.max_workers", 0, "flow", "max_workers is 0; give a whole number from 1"),
    ("flow.execution_strategy", "parallel", "flow", "execution_strategy is 'parallel'; choose"),
    (f"{HANDLER}.retry_backoff", 0.5, None, "ErrorHandler: retry_backoff=0.5"),
    (
        f"{HANDLER}.retryable_exceptions",
        ["x:E"],
        f"{HANDLER}.retryable_exceptions[0]",
        "'x:E' is no",
    ),
    ("flow.connections[0].param_mapping", {"data": ["x"]}, "flow.connections[0]", "param_mapping"),
    ("flow.connections", DOUBLED, "flow.connections[1]", "fetch.output -> process.input already"),
]
DROPPED_TASK: list[Row] = [
    ("dropped[0].outcome", "lost", None, "a task can't be dropped as 'lost'"),
    ("commits[4].detail.as", "lost", "commits[4]", "a task can't be dropped as 'lost'"),
    ("dropped[0].outcome", "error_continued", "dropped", "contradicts the job's commits"),
]
LATER_COMMITS: list[Row] = [
    ("status", "completed", "pending_tasks", "a completed job has none"),
    ("pending_tasks[0].seq", 99, None, "99 is after the last commit"),
    ("pending_tasks[0].routine_id", "ghost", None, "'ghost' is no routine of the job"),
    ("commits[0].attempt", 0, None, "0 is not a number from 1 to 2**53"),
]


def spoil(document: Any, path: str, value: object) -> None:
    """Change the member of a document that has a path such as `commits[4].attempt`."""
    *above, last = (int(n) if n.isdigit() else n for n in re.findall(r"[^.\[\]]+", path))
    for step in above:
        document = document[step]
    if value is DROPPED:
        del document[last]
    elif value is DOUBLED:
        document[last].append(copy.deepcopy(document[last][-1]))
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("base", "place", "row"),
    [
        *(("retried", "$", row) for row in WHOLE),
        *(("retried", "$.job_state", row) for row in JOB),
        *(("golden", "$.job_state", row) for row in DROPPED_TASK),
        *(("shortened", "$.job_state", row) for row in LATER_COMMITS),
    ],
)
def test_impossible_contents_are_refused_although_the_digest_is_right(
    base, place, row, retried, shortened
):
    text = {"golden": DOCUMENT.read_bytes(), "shortened": shortened, "retried": retried}[base]
    document = json.loads(text)
    assert loads_or_refuses(seal(document))
    path, value, refused, reason = row
    spoil(document if place == "$" else document["job_state"], path, value)
    with refused_at(f"{place}.{refused or path}", reason, SavedStateError):
        SavedState.from_bytes(seal(document))


def test_an_error_about_endless_data_is_short(retried):
    endless = "x" * 1_000_000
    for path, place, start, end in (
        ("flow.execution_strategy", "$.flow", "execution_strategy is 'xxx", "t'"),
        ("job_state.status", "$.job_state.status", "'xxx", " JobStatus"),
        (endless, f"$.{endless}", "is an unknown field", " field"),
    ):
        document = json.loads(retried)
        spoil(document, path, endless)
        with pytest.raises(CorruptStateError) as caught:
            SavedState.from_bytes(seal(document))
        error = caught.value
        assert error.path == place if len(place) < 500 else len(error.path) <= 500
        assert place[:300] == error.path[:300]
        assert error.reason.startswith(start)
        assert error.reason.endswith(end)
        assert (error.path, error.reason) == error.args
        assert len(str(error)) < 4_600


@settings(max_examples=examples(2))
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b'{"format":' * 5_000)
@example(b'{"format": "routilux/1"}')
@example(b'{"format": 1e999}')
@example(b'{"format": "routilux/1", "format": "routilux/1"}')
def test_any_bytes_are_refused_with_a_saved_state_error(text):
    for verify in (True, False):
        with pytest.raises(SavedStateError):
            SavedState.from_bytes(text, verify=verify)
