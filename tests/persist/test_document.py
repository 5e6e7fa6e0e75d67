"""A job and its flow as one document: what is in it, that it comes back, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routilux import (
    CorruptStateError,
    ErrorHandler,
    ExecutionMonitor,
    FakeClock,
    Flow,
    FlowMismatchError,
    JobState,
    JobStatus,
    Routine,
    Runtime,
    SavedState,
    SavedStateError,
    UnknownRoutineError,
    UnserializableError,
    UnsupportedVersionError,
)
from routilux.values import first_difference
from tests.persist.orders import (
    GOLDEN,
    KEY,
    START,
    Audit,
    Captures,
    Fetch,
    at_retry,
    pipeline,
    run,
    seal,
)
from tests.soak import examples

FIRST = GOLDEN / "routilux-1.json"
ROOT = Path(__file__).parents[2]


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
    """The smallest job worth saving."""
    flow = Flow("f")
    flow.add_routine(Fetch(took=0), "fetch")
    with Runtime(clock=FakeClock(START)) as runtime:
        job = flow.execute("fetch", {"request_id": "r"}, job_id="j", runtime=runtime)
    return SavedState.capture(flow, job).to_bytes()


# --- what is in it ------------------------------------------------------------------------------


def test_the_document_has_the_keys_in_order_and_the_counts_of_retry_two(retried):
    document = json.loads(retried)
    assert [
        "format",
        "flow",
        "job_state",
        "saved_at",
        "saved_at_iso",
        "retry_count",
        "execution_history_count",
        "monitor_summary",
        "digest",
    ] == list(document)
    assert "routilux/1" == document["format"]
    assert 2 == document["retry_count"]
    assert 2 == document["execution_history_count"]
    assert {"events": 2, "data_flows": 1, "state_changes": 1} == document["monitor_summary"]


def test_saved_at_is_read_from_the_clock_that_drives_the_job(retried):
    # fetch 0.8, attempt 0.5, wait 0.3, attempt 0.5
    document = json.loads(retried)
    assert "2026-01-03T12:59:05.100000+00:00" == document["saved_at_iso"]
    assert datetime(2026, 1, 3, 12, 59, 5, 100_000, tzinfo=UTC).timestamp() == document["saved_at"]


def test_an_instant_of_a_far_century_is_read_as_exactly_as_it_was_written():
    flow = pipeline(0)
    clock = FakeClock("9000-01-01T00:00:00.000003+00:00")
    job = flow.execute("fetch", {"request_id": "r"}, runtime=Runtime(clock=clock))
    saved = SavedState.capture(flow, job)
    assert saved.saved_at_ns == SavedState.from_bytes(saved.to_bytes()).saved_at_ns


def test_the_digest_covers_the_bytes_before_its_own_member(retried):
    body, digest = retried.split(b',\n"digest": "sha256:')
    assert hashlib.sha256(body).hexdigest().encode() + b'"}\n' == digest


def test_the_flow_is_saved_by_names_and_constructor_arguments(retried):
    flow = json.loads(retried)["flow"]
    tuple_ = {"$type": "tuple", "value": ["tea", "cup", "pot"]}
    assert [
        ("fetch", "document/fetch", [tuple_], {}),
        ("process", "document/process", [9], {}),
    ] == [(r["id"], r["routine"], r["args"], r["kwargs"]) for r in flow["routines"]]
    assert [
        {
            "source": "fetch",
            "event": "output",
            "target": "process",
            "slot": "input",
            "param_mapping": {},
        }
    ] == flow["connections"]


def test_a_monitor_of_ones_own_gives_its_own_counts():
    flow, monitor = pipeline(0), ExecutionMonitor()
    job, _ = run(flow)
    assert {"events": 0, "data_flows": 0, "state_changes": 0} == (
        SavedState.capture(flow, job, monitor).monitor_summary
    )


def test_error_handlers_mirror_the_retries_of_the_job_when_it_is_captured_and_loaded(retried):
    flow = pipeline(9)
    handler = flow.routines["process"].error_handler
    assert handler is not None
    assert 0 == handler.retry_count
    at_retry(flow, 4)
    assert 4 == handler.retry_count
    loaded = SavedState.from_bytes(retried).flow.routines["process"].error_handler
    assert loaded is not None
    assert (2, handler) == (loaded.retry_count, loaded)


def test_a_handler_shared_by_routines_is_saved_with_the_retries_of_each():
    flow = pipeline(9)
    handler = flow.routines["process"].error_handler
    flow.routines["fetch"].set_error_handler(handler)
    flow.set_error_handler(handler)
    text = at_retry(flow, 2).to_bytes()
    saved = json.loads(text)["flow"]
    assert [0, 2] == [r["error_handler"]["retry_count"] for r in saved["routines"]]
    assert 0 == saved["error_handler"]["retry_count"]
    assert text == SavedState.from_bytes(text).to_bytes()


# --- it comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"execution_strategy": "concurrent", "max_workers": 2}])
def test_every_commit_can_be_saved_and_loaded_and_the_job_goes_on_to_the_same_end(options):
    whole, captures = run(pipeline(audit=True, **options))
    assert JobStatus.COMPLETED is whole.status
    for number, saved in enumerate(captures.taken, 1):
        loaded = SavedState.from_bytes(saved.to_bytes())
        assert loaded.job == saved.job == whole.at(number)
        if loaded.job.is_final:
            continue
        clock = FakeClock(captures.commits[number - 1].finished_at)
        ended = loaded.flow.resume(loaded.job, runtime=Runtime(clock=clock))
        for name in ("status", "routine_states", "shared_data", "pending_tasks"):
            assert None is first_difference(getattr(whole, name), getattr(ended, name), name)
        assert None is first_difference(
            sorted((o.task_id, o.event) for o in whole.outputs),
            sorted((o.task_id, o.event) for o in ended.outputs),
        )
        assert loaded.job == saved.job, "resuming leaves the loaded job as it is"


def test_a_loaded_job_can_go_on_under_another_strategy(retried):
    for strategy in ("sequential", "concurrent"):
        loaded = SavedState.from_bytes(retried)
        job = loaded.flow.resume(
            loaded.job,
            runtime=Runtime(clock=FakeClock("2026-01-03T12:59:05.100000+00:00")),
            execution_strategy=strategy,
        )
        # waits 0.45, 0.675 and 1.0125 s, and three attempts of 0.5 s
        assert (JobStatus.FAILED, 5) == (job.status, job.routine_states["process"].attempts)
        assert datetime(2026, 1, 3, 12, 59, 8, 737_500, tzinfo=UTC) == job.commits[-1].finished_at


def test_what_is_in_flight_is_pending_in_what_an_observer_captures():
    class Nap(Routine):
        routine_name = "document/nap"

        def __init__(self, seconds: int) -> None:
            super().__init__()
            self.seconds = seconds
            self.define_slot("input", handler=self.nap)

        def nap(self, data: object) -> None:
            self.ctx.sleep(self.seconds)
            self.ctx.shared[f"slept {self.seconds}"] = True

    flow = Flow("naps", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(Fetch(took=0), "fetch")
    for seconds in (1, 2):
        flow.add_routine(Nap(seconds), f"nap{seconds}")
        flow.connect("fetch", "output", f"nap{seconds}", "input")
    job, captures = run(flow)
    assert ["fetch", "nap1", "nap2"] == [c.routine_id for c in captures.commits[1:]]
    loaded = SavedState.from_bytes(captures.taken[2].to_bytes())
    assert [("nap2", 1, 0)] == [
        (t.routine_id, t.attempt, t.retries) for t in loaded.job.pending_tasks
    ]
    assert {"slept 1": True} == loaded.job.shared_data
    ended = loaded.flow.resume(loaded.job, runtime=Runtime(clock=FakeClock(START)))
    assert job.shared_data == ended.shared_data


def test_a_job_whose_first_commits_are_gone_is_saved_and_goes_on():
    flow = pipeline(9)
    _, captures = run(flow, history_limit=1)
    saved = next(taken for taken in captures.taken if taken.retry_count == 3)
    loaded = SavedState.from_bytes(saved.to_bytes())
    assert len(loaded.job.commits) < loaded.job.seq
    assert saved.job == loaded.job
    ended = loaded.flow.resume(loaded.job, runtime=Runtime(clock=FakeClock(START)))
    assert 5 == ended.routine_states["process"].attempts


def test_what_was_captured_stays_what_it_was_when_flow_and_job_go_on():
    flow = pipeline()
    _, captures = run(flow)
    texts = [saved.to_bytes() for saved in captures.taken]
    flow.add_routine(Audit(), "late")
    assert texts == [saved.to_bytes() for saved in captures.taken]


# --- any flow, any payload ----------------------------------------------------------------------


class Node(Routine):
    routine_name = "document/node"

    def __init__(self, failures: int, *, keep: object = None) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("trigger", handler=self.handle)
        self.define_event("output", ["value"])
        self.define_event("error", ["message", "payload"])

    def handle(self, **payload: object) -> None:
        if self.ctx.attempt <= self.failures:
            raise ValueError(f"failure {self.ctx.attempt}")
        self.ctx.state["seen"] = payload
        self.ctx.shared[self.ctx.task_id] = payload
        self.emit("output", value=payload.get("value"))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.binary(max_size=5),
    st.decimals(),
    st.uuids(),
    st.datetimes(timezones=st.sampled_from([None, UTC])),
    st.timedeltas(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text("ab$type", max_size=5), inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.uuids()), inner, max_size=2),
    ),
    max_leaves=6,
)
handlers = st.sampled_from(
    [
        None,
        ErrorHandler("stop", timeout=5),
        ErrorHandler("continue"),
        ErrorHandler("skip"),
        ErrorHandler("retry", max_retries=1, retry_delay=0.3, jitter=0.5),
        ErrorHandler("retry", max_retries=None, deadline=3, on_exhausted="continue"),
    ]
)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    count = draw(st.integers(1, 4))
    flow = Flow(
        draw(st.text("ab .", min_size=1, max_size=4)),
        execution_strategy=draw(st.sampled_from(["sequential", "concurrent"])),
        max_workers=draw(st.integers(1, 3)),
    )
    flow.set_error_handler(draw(handlers))
    for number in range(count):
        node = Node(draw(st.integers(0, 2)), keep=draw(values))
        node.set_error_handler(draw(handlers))
        flow.add_routine(node, f"n{number}")
        for earlier in range(number):
            if draw(st.booleans()):
                mapping = draw(st.sampled_from([None, {"value": "renamed"}]))
                flow.connect(f"n{earlier}", "output", f"n{number}", "trigger", mapping)
    return flow


@settings(max_examples=examples(0.6))
@given(flow=flows(), value=values, point=st.integers(0, 10))
def test_any_flow_and_job_come_back_equal_and_are_written_again_byte_by_byte(flow, value, point):
    captures = Captures(flow)
    with Runtime(clock=FakeClock(START), observers=[captures]) as runtime:
        flow.execute("n0", {"value": value}, runtime=runtime)
    assert [] == runtime.observer_failures
    saved = captures.taken[min(point, len(captures.taken) - 1)]
    text = saved.to_bytes()
    loaded = SavedState.from_bytes(text)
    assert None is first_difference(saved.job.pending_tasks, loaded.job.pending_tasks)
    assert None is first_difference(saved.job.shared_data, loaded.job.shared_data)
    assert saved.job == loaded.job
    assert flow.fingerprint == loaded.flow.fingerprint
    assert text == loaded.to_bytes()


# --- the golden file ----------------------------------------------------------------------------


def test_the_document_that_the_first_version_wrote_is_read_and_written_again_byte_by_byte():
    saved = SavedState.read(FIRST)
    assert FIRST.read_bytes() == saved.to_bytes()
    job = saved.job
    assert ("job-1", JobStatus.RUNNING, 2, 6) == (
        job.job_id,
        job.status,
        saved.retry_count,
        job.seq,
    )
    assert ["skipped", "completed", "pending"] == [
        job.routine_states[name].status.value for name in ("audit", "fetch", "process")
    ]
    (waiting,) = job.pending_tasks
    assert (3, 2, timedelta(milliseconds=450)) == (
        waiting.attempt,
        waiting.retries,
        waiting.delay,
    )
    assert {
        "items": ("tea", "cup", "pot"),
        "price": Decimal("1.50"),
        "day": date(2026, 1, 3),
    } == waiting.payload["data"]
    assert {"request_id": "r-1", "ids": {1, 2}} == waiting.payload["metadata"]


def test_a_job_of_the_golden_file_goes_on_where_it_was():
    saved = SavedState.read(FIRST)
    clock = FakeClock("2026-01-03T12:59:05.100000+00:00")
    job = saved.flow.resume(saved.job, runtime=Runtime(clock=clock))
    assert (JobStatus.COMPLETED, 3) == (job.status, job.routine_states["process"].attempts)
    assert timedelta(milliseconds=450) == (
        datetime.fromtimestamp(job.commits[-1].started_ns / 1e9, UTC)
        - saved.job.commits[-1].finished_at
    )
    assert [Decimal("3.00")] == [output.data["total"] for output in job.outputs]


# --- writing ------------------------------------------------------------------------------------


def test_a_file_is_written_for_its_owner_alone_and_read_back_equal(tmp_path, retried):
    saved = SavedState.from_bytes(retried)
    path = tmp_path / "job.json"
    saved.write(path)
    assert retried == path.read_bytes()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert saved.job == SavedState.read(str(path)).job
    assert [path] == list(tmp_path.iterdir())


def test_a_folder_in_the_way_or_no_folder_at_all_is_the_systems_own_error(tmp_path, retried):
    saved = SavedState.from_bytes(retried)
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        saved.write(tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        saved.write(tmp_path / "nowhere" / "job.json")
    assert [tmp_path / "taken"] == list(tmp_path.iterdir())


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path, retried):
    path = tmp_path / ("j" * 255)
    SavedState.from_bytes(retried).write(path)
    assert retried == path.read_bytes()


# --- another interpreter ------------------------------------------------------------------------

SHOP = """
from routilux import Flow, Routine, SavedState

class Charge(Routine):
    def __init__(self, currency="EUR"):
        super().__init__()
        self.currency = currency
        self.define_slot("trigger", handler=self.charge)
        self.define_event("output", ["paid"])

    def charge(self, cents: int):
        self.emit("output", paid=f"{cents} {self.currency}")

def flow():
    made = Flow("shop")
    made.add_routine(Charge("CHF"), "charge")
    return made
"""


def python(folder: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def test_a_class_that_is_not_imported_is_named_and_importing_it_is_the_cure(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    write = "import shop; from routilux import SavedState; f = shop.flow();"
    assert "" == python(
        tmp_path, write + "SavedState.capture(f, f.execute('charge', {'cents': 5})).write('j.json')"
    )
    read = "from routilux import SavedState; s = SavedState.read('j.json');"
    told = python(tmp_path, read).splitlines()[-2:]
    assert [
        (
            "routilux.errors.UnknownRoutineError: $.flow.routines[0].routine: no routine class"
            " 'shop:Charge' is defined in this program; import the module that defines it before"
            " loading (a class of another program's __main__ or one made inside a function needs a"
            " routine_name) (in j.json)"
        ),
        "exit 1",
    ] == told
    cured = f"import shop; {read} print(s.job.outputs[0].data, s.flow.routines['charge'].currency)"
    assert "{'paid': '5 CHF'} CHF\n" == python(tmp_path, cured)


# --- files that are refused ---------------------------------------------------------------------


def test_a_missing_file_is_the_systems_own_error_and_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        SavedState.read(tmp_path / "nothing.json")


def edited(text: bytes, old: bytes, new: bytes) -> bytes:
    assert 1 == text.count(old), old
    return text.replace(old, new)


FILES: dict[str, tuple[Callable[[bytes], bytes], type[SavedStateError], str, str]] = {
    "empty": (
        lambda text: b"",
        CorruptStateError,
        "$",
        "the file is empty; the state was never written to it",
    ),
    "blank": (
        lambda text: b" \n",
        CorruptStateError,
        "$",
        "the file is empty; the state was never written to it",
    ),
    "cut off": (
        lambda text: text[: len(text) // 2],
        CorruptStateError,
        "$",
        "is cut off: JSON ends in the middle of a value that is open at line 3, column *",
    ),
    "no JSON": (
        lambda text: b"PK\x03\x04",
        CorruptStateError,
        "$",
        "is not JSON: Expecting value at line 1, column 1",
    ),
    "no UTF-8": (lambda text: b'{"format": "\xff"}', CorruptStateError, "$", "is not UTF-8: *"),
    "another program's": (
        lambda text: b'{"version": 3, "cells": []}',
        CorruptStateError,
        "$.format",
        "is missing: this was not written by routilux",
    ),
    "a list": (
        lambda text: b"[1]",
        CorruptStateError,
        "$.format",
        "is missing: this was not written by routilux",
    ),
    "another format": (
        lambda text: seal({**json.loads(text), "format": "notebook/4"}),
        CorruptStateError,
        "$.format",
        "is 'notebook/4': this was not written by routilux",
    ),
    "a newer version": (
        lambda text: seal({"format": "routilux/2", "state": {"$type": "of the future"}}),
        UnsupportedVersionError,
        "$.format",
        (
            "is 'routilux/2', of a newer routilux; this one reads up to 'routilux/1': install a"
            " newer one here, or go on with the job where it was saved"
        ),
    ),
    "a newer version without our digest": (
        lambda text: b'{"format": "routilux/12", "state": {"$type": "of the future"}}',
        UnsupportedVersionError,
        "$.format",
        (
            "is 'routilux/12', of a newer routilux; this one reads up to 'routilux/1': install a"
            " newer one here, or go on with the job where it was saved"
        ),
    ),
    "edited": (
        lambda text: edited(text, b'"retry_count": 2', b'"retry_count": 3'),
        CorruptStateError,
        "$.digest",
        (
            "the file was changed after it was written: its digest is another one;"
            " read(path, verify=False) reads it all the same"
        ),
    ),
    "without a digest": (
        lambda text: text[: text.index(b',\n"digest"')] + b"}\n",
        CorruptStateError,
        "$.digest",
        "is missing at the end; read(path, verify=False) reads it all the same",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_sound_document_is_refused_by_place_reason_and_file(
    case, tmp_path, retried
):
    spoil, error, place, reason = FILES[case]
    path = tmp_path / "job.json"
    path.write_bytes(spoil(retried))
    before = path.read_bytes()
    with pytest.raises(SavedStateError) as caught:
        SavedState.read(path)
    assert (error, place) == (type(caught.value), caught.value.path)
    pattern = re.escape(f"{reason} (in {path})").replace(r"\*", ".*")
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


def test_no_more_is_written_than_can_be_read(monkeypatch):
    saved = at_retry(pipeline(9), 2)
    size = len(saved.to_bytes(key=KEY))
    body = len(saved.to_bytes().partition(b',\n"digest"')[0]) + 1
    for module in ("bounds", "codec", "encoding", "decoding"):
        monkeypatch.setattr(f"routilux.{module}.MAX_BYTES", body)
    read = SavedState.from_bytes(saved.to_bytes(key=KEY), key=KEY)
    assert (size, saved.job) == (len(read.to_bytes(key=KEY)), read.job)
    monkeypatch.setattr("routilux.encoding.MAX_BYTES", body - 1)
    with pytest.raises(
        UnserializableError, match=f"takes {body:,} bytes; at most {body - 1:,} can"
    ):
        saved.to_bytes()


def test_an_edited_file_is_read_without_its_digest_if_it_makes_sense(tmp_path, retried):
    path = tmp_path / "job.json"
    path.write_bytes(retried.replace(b'"request_id":"r-1"', b'"request_id":"r-2"'))
    with pytest.raises(CorruptStateError, match=r"^\$\.digest: "):
        SavedState.read(path)
    (waiting,) = SavedState.read(path, verify=False).job.pending_tasks
    assert "r-2" == waiting.payload["metadata"]["request_id"]


def test_a_document_cut_off_anywhere_is_refused_and_only_its_last_line_break_is_no_loss(small):
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
    """Whether it was read; what was read can be written and read again."""
    try:
        loaded = SavedState.from_bytes(text, verify=False)
    except SavedStateError as error:
        if not (error.path.startswith("$") and error.reason):
            pytest.fail(f"the refusal names no place or no reason: {error!r}")
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


def member(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def put(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        member(document, path[:-1])[path[-1]] = to

    return change


def drop(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        del member(document, path[:-1])[path[-1]]

    return change


def twice(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        entries = member(document, path)
        entries.append(copy.deepcopy(entries[-1]))

    return change


J = "job_state"
# Commits of the pipeline at retry 2: 0 start, 1 done, 2 effect, 3 retry, 4 retry
WRONG: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "a member too many": (put("note", to=1), "$.note", "is a field that is not known here"),
    "a member too few": (drop("saved_at"), "$.saved_at", "is missing"),
    "another count of retries": (put("retry_count", to=3), "$.retry_count", "is 3, but the job *"),
    "another count of records": (
        put("execution_history_count", to=3),
        "$.execution_history_count",
        "is 3, but the job has 2",
    ),
    "a negative count": (
        put("monitor_summary", "events", to=-1),
        "$.monitor_summary.events",
        "-1 is no number from 0 to 2**53",
    ),
    "an instant that is none": (
        put("saved_at_iso", to="yesterday"),
        "$.saved_at_iso",
        "is no UTC instant: *",
    ),
    "a local instant": (
        put("saved_at_iso", to="2026-01-03T13:59:05.100000+01:00"),
        "$.saved_at_iso",
        "is no UTC instant: is written '2026-01-03T12:59:05.100000+00:00', not *",
    ),
    "two instants": (put("saved_at", to=1.0), "$.saved_at", "is 1.0, but saved_at_iso is *"),
    "an unknown status": (put(J, "status", to="lost"), "$.job_state.status", "'lost' is not a *"),
    "another status": (
        put(J, "status", to="failed"),
        "$.job_state.status",
        "contradicts the job's commits",
    ),
    "a negative seq": (put(J, "seq", to=-1), "$.job_state.seq", "-1 is no number from 0 to 2**53"),
    "a seq past the commits": (
        put(J, "seq", to=4),
        "$.job_state.commits",
        "their numbers don't lead up to seq",
    ),
    "an instant beyond the calendar": (
        put(J, "updated_ns", to=10**30),
        "$.job_state.updated_ns",
        f"{10**30} ns is no instant of the years 1 to 9999",
    ),
    "a pending task twice": (
        twice(J, "pending_tasks"),
        "$.job_state.pending_tasks[1].task_id",
        "stands twice",
    ),
    "a pending task too few": (
        drop(J, "pending_tasks", 0),
        "$.job_state.pending_tasks",
        "contradicts the job's commits",
    ),
    "more retries than attempts": (
        put(J, "pending_tasks", 0, "retries", to=3),
        "$.job_state.pending_tasks[0].retries",
        "were not made by the attempts before",
    ),
    "a failed task that waits": (
        put(J, "pending_tasks", 0, "failed", to=True),
        "$.job_state.pending_tasks[0].delay_ns",
        "a failed task waits for nothing",
    ),
    "attempt zero": (
        put(J, "pending_tasks", 0, "attempt", to=0),
        "$.job_state.pending_tasks[0].*",
        "*",
    ),
    "another payload than was emitted": (
        put(J, "pending_tasks", 0, "payload", "metadata", to={}),
        "$.job_state.pending_tasks",
        "contradicts the job's commits",
    ),
    "a routine's status against its counts": (
        put(J, "routine_states", "fetch", "status", to="failed"),
        "$.job_state.routine_states['fetch'].status",
        "'failed' contradicts its counts: completed",
    ),
    "fewer attempts than ends": (
        put(J, "routine_states", "fetch", "attempts", to=0),
        "$.job_state.routine_states['fetch'].attempts",
        "is less than what they came to",
    ),
    "True for a number": (
        put(J, "recoveries", to=True),
        "$.job_state.recoveries",
        "is of type bool, not int",
    ),
    "a first commit that starts nothing": (
        drop(J, "commits", 0, "tasks"),
        "$.job_state.commits[0].tasks",
        "is missing in a commit of kind 'start'",
    ),
    "a retry without an error": (
        drop(J, "commits", 3, "error"),
        "$.job_state.commits[3].error",
        "is missing in a commit of kind 'retry'",
    ),
    "a retry that emits": (
        put(J, "commits", 3, "emissions", to=[]),
        "$.job_state.commits[3].emissions",
        "is no field of a commit of kind 'retry'",
    ),
    "an unknown kind": (
        put(J, "commits", 1, "kind", to="undone"),
        "$.job_state.commits[1]",
        "'undone' is not a valid CommitKind",
    ),
    "an effect without a name": (
        put(J, "commits", 2, "detail", to={}),
        "$.job_state.commits[2].detail.name",
        "is missing",
    ),
    "an emission that is not there": (
        put(J, "commits", 1, "tasks", 0, "emission", to=7),
        "$.job_state.commits[1].tasks[0].emission",
        "the commit has no emission 7",
    ),
    "a delivery of nothing": (
        put(
            J,
            "commits",
            1,
            "tasks",
            0,
            to={
                "task_id": "0.0",
                "routine_id": "process",
                "slot": "i",
                "emission": -1,
                "payload": {},
            },
        ),
        "$.job_state.commits[1].tasks[0].emission",
        "only the task that a job starts with delivers no emission",
    ),
    "time that runs back": (
        put(J, "commits", 4, "at_ns", to=0),
        "$.job_state.commits[4]",
        "the commit can't follow: it is earlier than the one before",
    ),
    "an attempt that begins after its end": (
        put(J, "commits", 1, "started_ns", to=10**19),
        "$.job_state.commits[1]",
        "the commit can't follow: its attempt begins after it has ended",
    ),
    "a due time that is not the delay's": (
        put(J, "commits", 3, "delay_ns", to=1),
        "$.job_state.commits[3]",
        "the commit can't follow: its due_ns is not its at_ns plus its delay_ns",
    ),
    "an attempt out of turn": (
        put(J, "commits", 4, "attempt", to=3),
        "$.job_state.commits[4]",
        "the commit can't follow: attempt 3 of task 0.0 of 'process' is not the next one",
    ),
    "another routine's attempt": (
        put(J, "commits", 4, "routine_id", to="fetch"),
        "$.job_state.commits[4]",
        "the commit can't follow: attempt 2 of task 0.0 of 'fetch' is not the next one",
    ),
    "a task of an unknown routine": (
        put(J, "commits", 1, "tasks", 0, "routine_id", to="ghost"),
        "$.job_state.commits[1]",
        "the commit can't follow: it creates a task of 'ghost', which is no routine of the job",
    ),
    "a task that is created twice": (
        twice(J, "commits", 1, "tasks"),
        "$.job_state.commits[1]",
        "the commit can't follow: it creates task 0.0 again",
    ),
    "a job that starts with two tasks": (
        twice(J, "commits", 0, "tasks"),
        "$.job_state.commits[0].tasks",
        "a job starts with one task, not 2",
    ),
    "a job completed too early": (
        put(J, "commits", 1, "status", to="completed"),
        "$.job_state.commits[1]",
        "the commit can't follow: it leaves 1 tasks to do, and the job completed",
    ),
    "a retry that pauses": (
        put(J, "commits", 3, "status", to="paused"),
        "$.job_state.commits[3]",
        "the commit can't follow: a 'retry' makes no job that is running paused",
    ),
    "a constructor that takes other arguments": (
        put("flow", "routines", 0, "kwargs", to={"volume": 11}),
        "$.flow.routines[0]",
        "document/fetch can't be built from its saved arguments: TypeError: *'volume'",
    ),
    "a routine twice": (
        twice("flow", "routines"),
        "$.flow.routines[2]",
        "flow 'orders' has a routine 'process' already; *",
    ),
    "no workers": (put("flow", "max_workers", to=0), "$.flow", "max_workers is 0; *"),
    "an unknown strategy": (
        put("flow", "execution_strategy", to="parallel"),
        "$.flow",
        "execution_strategy is 'parallel'; *",
    ),
    "an error handler that makes no sense": (
        put("flow", "routines", 1, "error_handler", "retry_backoff", to=0.5),
        "$.flow.routines[1].error_handler.retry_backoff",
        "ErrorHandler: retry_backoff=0.5 is refused; *",
    ),
    "an exception class that nobody imported": (
        put("flow", "routines", 1, "error_handler", "retryable_exceptions", to=["no.such:Error"]),
        "$.flow.routines[1].error_handler.retryable_exceptions[0]",
        "'no.such:Error' is no exception class of an imported module; *",
    ),
    "a mapping to no name": (
        put("flow", "connections", 0, "param_mapping", to={"data": ["x"]}),
        "$.flow.connections[0]",
        "param_mapping for fetch.output is {'data': ['x']}; *",
    ),
    "a connection twice": (
        twice("flow", "connections"),
        "$.flow.connections[1]",
        "fetch.output -> process.input stands already; *",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_contents_that_can_not_be_are_refused_although_the_digest_is_right(case, retried):
    change, place, reason = WRONG[case]
    document = json.loads(retried)
    change(document)
    with pytest.raises(SavedStateError) as caught:
        SavedState.from_bytes(seal(document))
    for expected, told in ((place, caught.value.path), (reason, caught.value.reason)):
        assert re.fullmatch(
            re.escape(expected).replace(r"\*", ".*").replace(r"2.*.*53", r"2\*\*53"), told
        ), told


def test_what_the_data_holds_without_end_is_not_told_without_end(retried):
    endless = "x" * 1_000_000
    for change, place, start, end in (
        (
            put("flow", "execution_strategy", to=endless),
            "$.flow",
            "execution_strategy is 'xxx",
            "t'",
        ),
        (put(J, "status", to=endless), "$.job_state.status", "'xxx", " JobStatus"),
        (put(endless, to=1), f"$.{endless}", "is a field that is not known here", " here"),
    ):
        document = json.loads(retried)
        change(document)
        with pytest.raises(CorruptStateError) as caught:
            SavedState.from_bytes(seal(document))
        told = caught.value
        assert told.path == place if len(place) < 500 else len(told.path) <= 500
        assert place[:300] == told.path[:300]
        assert told.reason.startswith(start)
        assert told.reason.endswith(end)
        assert (told.path, told.reason) == told.args
        assert len(str(told)) < 4_600


def test_an_attempt_of_no_number_is_refused_where_its_task_is_no_longer_known(shortened):
    document = json.loads(shortened)
    document[J]["commits"][0]["attempt"] = 0
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(seal(document))
    assert ("$.job_state.commits[0].attempt", "0 is no number from 1 to 2**53") == (
        caught.value.path,
        caught.value.reason,
    )


def test_the_cases_above_start_from_a_document_that_is_read(retried):
    assert retried == seal(json.loads(retried))
    assert loads_or_refuses(retried)


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        (
            put(J, "dropped", 0, "outcome", to="lost"),
            "dropped[0].outcome",
            "'lost' is not how a task drops",
        ),
        (
            put(J, "commits", 4, "detail", "as", to="lost"),
            "commits[4]",
            "the commit can't follow: no task is dropped as 'lost'",
        ),
        (
            put(J, "dropped", 0, "outcome", to="error_continued"),
            "dropped",
            "contradicts the job's commits",
        ),
    ],
)
def test_a_task_is_dropped_in_one_of_two_ways(change, place, reason):
    document = json.loads(FIRST.read_bytes())
    change(document)
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(seal(document))
    assert (f"$.job_state.{place}", reason) == (caught.value.path, caught.value.reason)


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        (put(J, "status", to="completed"), "pending_tasks", "a completed job has none"),
        (
            put(J, "pending_tasks", 0, "seq", to=99),
            "pending_tasks[0].seq",
            "99 is after the last commit",
        ),
        (
            put(J, "pending_tasks", 0, "routine_id", to="ghost"),
            "pending_tasks[0].routine_id",
            "'ghost' is no routine of the job",
        ),
    ],
)
def test_a_job_whose_first_commits_are_gone_is_checked_as_far_as_it_goes(
    change, place, reason, shortened
):
    document = json.loads(shortened)
    assert len(document[J]["commits"]) < document[J]["seq"]
    change(document)
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(seal(document))
    assert (f"$.job_state.{place}", reason) == (caught.value.path, caught.value.reason)


def paths(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(data, dict | list):
        for step, inner in data.items() if isinstance(data, dict) else enumerate(data):
            yield from paths(inner, (*path, step))


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", "0", "done", "failed", "completed", "process", "fetch", "input"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["$type", "value", "seq", "a"]), inner, max_size=3),
        st.builds(
            lambda tag, value: {"$type": tag, "value": value},
            st.sampled_from(["tuple", "dict", "set", "float", "datetime", "x"]),
            inner,
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=examples(4))
@given(data=st.data(), sealed=st.booleans(), whole=st.booleans())
def test_whatever_is_done_to_a_document_it_is_read_or_refused_as_saved_state(
    data, sealed, whole, retried, shortened
):
    document = json.loads(retried if whole else shortened)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(paths(document))))
        holder, last = member(document, path[:-1]), path[-1]
        what = data.draw(st.sampled_from(["replace", "delete", "swap"]))
        if what == "replace":
            holder[last] = data.draw(json_values)
        elif what == "delete":
            del holder[last]
        else:
            other = data.draw(st.sampled_from(list(paths(document))))
            holder[last] = copy.deepcopy(member(document, other))
    text = seal(document)
    if not sealed:
        place = data.draw(st.integers(0, len(text) - 1))
        text = text[:place] + data.draw(st.binary(max_size=3)) + text[place + 1 :]
    loads_or_refuses(text)


@settings(max_examples=examples(2))
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b'{"format":' * 5_000)
@example(b'{"format": "routilux/1"}')
@example(b'{"format": 1e999}')
@example(b'{"format": "routilux/1", "format": "routilux/1"}')
def test_any_bytes_are_refused_as_saved_state(text):
    for verify in (True, False):
        with pytest.raises(SavedStateError):
            SavedState.from_bytes(text, verify=verify)


# --- flows that no longer match -----------------------------------------------------------------


def renamed(version: int) -> type[Routine]:
    """One class at one place, of which a later version has other slots and events."""

    class Renamed(Routine):
        routine_name = "document/renamed"

        def __init__(self) -> None:
            super().__init__()
            self.define_slot("trigger", handler=self.go)
            self.define_event("output" if version == 1 else "result", ["n"])

        def go(self, n: int) -> None:
            if self.ctx.attempt == 1:
                raise ValueError("not yet")
            self.emit("result", n=n)

    return Renamed


CHANGES = "- event a.output(n); + event a.result(n)"


def test_a_class_that_has_changed_since_is_a_mismatch_that_lists_the_change_and_the_cure_works():
    old = Flow("changing")
    old.add_routine(renamed(1)(), "a")
    job = old.execute("a", {"n": 7}, job_id="j1")
    text = SavedState.capture(old, job).to_bytes()

    new = Flow("changing")
    new.add_routine(renamed(2)(), "a")
    with pytest.raises(FlowMismatchError) as caught:
        SavedState.from_bytes(text)
    assert "$.flow.fingerprint" == caught.value.path
    assert (
        f"the routines' slots and events are not those that were saved ({CHANGES}); go on with the"
        " classes as they were, or read the job alone by"
        " JobState.deserialize(document['job_state']) and resume it on a flow that fits with"
        " allow_changed_flow=True"
    ) == caught.value.reason

    alone = JobState.deserialize(json.loads(text)["job_state"])
    before = alone.serialize()
    with pytest.raises(FlowMismatchError) as caught:
        new.resume(alone, retry_failed=True)
    assert (
        f"job j1 was started on another flow than 'changing' is now ({CHANGES}); resume it on the"
        " flow of its time, or with allow_changed_flow=True"
    ) == caught.value.reason
    assert before == alone.serialize()
    done = new.resume(alone, retry_failed=True, allow_changed_flow=True)
    assert (JobStatus.COMPLETED, new.shape) == (done.status, done.shape)
    assert done == SavedState.from_bytes(SavedState.capture(new, done).to_bytes()).job


def test_a_pending_task_without_its_slot_can_not_go_on_even_on_a_changed_flow(retried):
    job = SavedState.from_bytes(retried).job
    before = job.serialize()
    other = Flow("other")
    other.add_routine(Fetch(), "fetch")
    with pytest.raises(FlowMismatchError) as caught:
        other.resume(job, allow_changed_flow=True)
    assert (
        "$.job_state.pending_tasks",
        (
            "of job job-1, task 0.0 waits for process.input; flow 'other' does not have that: give"
            " it the slot, or resume the job on the flow of its time"
        ),
    ) == (caught.value.path, caught.value.reason)
    assert before == job.serialize()


def test_a_flow_alone_names_an_unknown_class_by_its_place():
    document = pipeline().serialize()
    document["routines"][1]["routine"] = "shop:Gone"
    with pytest.raises(UnknownRoutineError) as caught:
        Flow.deserialize(document)
    assert "$.routines[1].routine" == caught.value.path
    assert caught.value.reason.startswith(
        "no routine class 'shop:Gone' is defined in this program;"
    )


def test_uuids_and_times_of_a_job_come_back_of_the_same_type():
    flow = Flow()
    flow.add_routine(Node(0), "n0")
    value = {"id": UUID(int=7), "at": datetime(2026, 1, 3, tzinfo=UTC), "for": timedelta(1)}
    job = flow.execute("n0", {"value": value})
    loaded = SavedState.from_bytes(SavedState.capture(flow, job).to_bytes()).job
    assert None is first_difference(value, loaded.outputs[0].data["value"])
