"""`SavedState`: the contents of a document, loading, writing, and flows that no longer match."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from routilux import (
    CorruptStateError,
    ExecutionMonitor,
    FakeClock,
    JobStatus,
    Runtime,
    SavedState,
    UnserializableError,
)
from routilux.codec.equality import first_difference
from tests.persist.orders import GOLDEN, KEY, START, Audit, at_retry, pipeline, run
from tests.routines import PATIENCE

DOCUMENT = GOLDEN / "routilux-1.json"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def retried() -> bytes:
    """The pipeline at retry 2 of 4."""
    return at_retry(pipeline(9), 2).to_bytes()


# --- what is in it ------------------------------------------------------------------------------


def test_a_captured_job_has_its_counts_and_the_time_of_the_clock_that_drives_it(retried):
    saved = SavedState.from_bytes(retried)
    assert (2, 2) == (saved.retry_count, json.loads(retried)["execution_history_count"])
    assert {"events": 2, "data_flows": 1, "state_changes": 1} == saved.monitor_summary
    # fetch 0.8, attempt 0.5, wait 0.3, attempt 0.5
    assert datetime(2026, 1, 3, 12, 59, 5, 100_000, tzinfo=UTC).timestamp() == saved.saved_at


def test_an_instant_of_a_distant_century_is_read_exactly_as_it_was_written():
    flow = pipeline(0)
    clock = FakeClock("9000-01-01T00:00:00.000003+00:00")
    job = flow.execute("fetch", {"request_id": "r"}, runtime=Runtime(clock=clock))
    saved = SavedState.capture(flow, job)
    assert saved.saved_at_ns == SavedState.from_bytes(saved.to_bytes()).saved_at_ns


def test_the_counts_of_a_given_monitor_are_saved():
    flow, monitor = pipeline(0), ExecutionMonitor()
    job, _ = run(flow)
    assert {"events": 0, "data_flows": 0, "state_changes": 0} == (
        SavedState.capture(flow, job, monitor).monitor_summary
    )


def test_capturing_changes_no_live_handler_and_the_loaded_one_has_the_retries_of_the_job(retried):
    flow = pipeline(9)
    handler = flow.routines["process"].error_handler
    assert handler is not None
    assert 4 == at_retry(flow, 4).job.retry_count("process")
    assert 0 == handler.retry_count
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
    loaded = SavedState.from_bytes(text)
    assert text == loaded.to_bytes()
    handlers = [routine.error_handler for routine in loaded.flow.routines.values()]
    assert [0, 2, 0] == [h and h.retry_count for h in (*handlers, loaded.flow.error_handler)]


def test_the_handler_of_the_flow_has_the_most_retries_of_the_routines_without_their_own():
    flow = pipeline(9)
    retry = flow.routines["process"].error_handler
    flow.routines["process"].set_error_handler(None)
    flow.set_error_handler(retry)
    loaded = SavedState.from_bytes(at_retry(flow, 2).to_bytes()).flow.error_handler
    assert loaded is not None
    assert 2 == loaded.retry_count


# --- it comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"execution_strategy": "concurrent", "max_workers": 2}])
def test_a_job_saved_at_any_commit_can_be_resumed_to_the_same_end(options):
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
        if captures.commits[number - 1].kind != "effect":  # no attempt was cut off
            assert whole.updated_ns == ended.updated_ns
        assert None is first_difference(
            sorted((o.task_id, o.event) for o in whole.outputs),
            sorted((o.task_id, o.event) for o in ended.outputs),
        )
        assert loaded.job == saved.job, "resuming leaves the loaded job as it is"


def test_a_loaded_job_can_be_resumed_under_another_strategy(retried):
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


def test_a_job_without_its_first_commits_can_be_saved_and_resumed():
    flow = pipeline(9)
    _, captures = run(flow, history_limit=1)
    saved = next(taken for taken in captures.taken if taken.retry_count == 3)
    loaded = SavedState.from_bytes(saved.to_bytes())
    assert len(loaded.job.commits) < loaded.job.seq
    assert saved.job == loaded.job
    ended = loaded.flow.resume(loaded.job, runtime=Runtime(clock=FakeClock(START)))
    assert 5 == ended.routine_states["process"].attempts


def test_a_captured_state_does_not_change_with_its_flow_and_job():
    flow = pipeline()
    _, captures = run(flow)
    texts = [saved.to_bytes() for saved in captures.taken]
    flow.add_routine(Audit(), "late")
    assert texts == [saved.to_bytes() for saved in captures.taken]


# --- the golden file ----------------------------------------------------------------------------


def test_the_golden_document_is_read_and_written_again_byte_by_byte():
    saved = SavedState.read(DOCUMENT)
    assert DOCUMENT.read_bytes() == saved.to_bytes()
    job = saved.job
    assert ("job-1", JobStatus.RUNNING) == (job.job_id, job.status)
    assert (2, 6) == (saved.retry_count, job.seq)
    assert ["skipped", "completed", "pending"] == [
        job.routine_states[name].status.value for name in ("audit", "fetch", "process")
    ]
    (waiting,) = job.pending_tasks
    assert (3, 2) == (waiting.attempt, waiting.retries)
    assert timedelta(milliseconds=450) == waiting.delay
    order = {"items": ("tea", "cup", "pot"), "price": Decimal("1.50"), "day": date(2026, 1, 3)}
    assert order == waiting.payload["data"]
    assert {"request_id": "r-1", "ids": {1, 2}} == waiting.payload["metadata"]


# --- writing ------------------------------------------------------------------------------------


def test_a_file_is_written_and_read_back_equal_under_the_longest_name(tmp_path, retried):
    saved = SavedState.from_bytes(retried)
    path = tmp_path / ("j" * 255)
    saved.write(path)
    assert retried == path.read_bytes()
    assert saved.job == SavedState.read(str(path)).job
    assert [path] == list(tmp_path.iterdir())


# --- another interpreter ------------------------------------------------------------------------

SHOP = """
from routilux import Flow, Routine, SavedState

class Charge(Routine):
    def __init__(self, currency="EUR"):
        super().__init__()
        self.currency = currency
        self.define_slot("trigger", handler=lambda: None)

def save():
    flow = Flow("shop")
    flow.add_routine(Charge("CHF"), "charge")
    SavedState.capture(flow, flow.execute("charge")).write("j.json")
"""


def python(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def test_a_class_that_is_not_imported_is_named_and_importing_it_helps(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    assert "" == python(tmp_path, "import shop; shop.save()")
    read = "from routilux import SavedState; s = SavedState.read('j.json');"
    *_, error, status = python(tmp_path, read).splitlines()
    assert (
        "routilux.UnknownRoutineError: $.flow.routines[0].routine: no routine class 'shop:Charge'"
        " is defined in this program; import the module that defines it before loading; if a"
        " function or another program's __main__ defines the class, give the class a routine_name"
        " (in j.json)"
    ) == error
    assert "exit 1" == status
    cured = f"import shop; {read} print(s.job.status, s.flow.routines['charge'].currency)"
    assert "completed CHF\n" == python(tmp_path, cured)


# --- files that can't be read or written --------------------------------------------------------


def test_a_missing_file_raises_the_systems_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        SavedState.read(tmp_path / "nothing.json")


def test_no_more_is_written_than_can_be_read(monkeypatch):
    saved = at_retry(pipeline(9), 2)
    size = len(saved.to_bytes(key=KEY))
    body = len(saved.to_bytes().partition(b',\n"digest"')[0]) + 1
    for module in ("codec", "codec.limits", "codec.encoding", "codec.decoding"):
        monkeypatch.setattr(f"routilux.{module}.MAX_BYTES", body)
    read = SavedState.from_bytes(saved.to_bytes(key=KEY), key=KEY)
    assert (size, saved.job) == (len(read.to_bytes(key=KEY)), read.job)
    monkeypatch.setattr("routilux.codec.encoding.MAX_BYTES", body - 1)
    with pytest.raises(
        UnserializableError, match=f"takes {body:,} bytes, more than the limit of {body - 1:,}"
    ):
        saved.to_bytes()


def test_an_edited_file_is_read_without_its_digest_if_it_is_valid(tmp_path, retried):
    path = tmp_path / "job.json"
    path.write_bytes(retried.replace(b'"request_id":"r-1"', b'"request_id":"r-2"'))
    with pytest.raises(CorruptStateError, match=r"^\$\.digest: "):
        SavedState.read(path)
    (waiting,) = SavedState.read(path, verify=False).job.pending_tasks
    assert "r-2" == waiting.payload["metadata"]["request_id"]


def test_a_saved_state_does_not_change():
    saved = SavedState.from_bytes(DOCUMENT.read_bytes())
    with pytest.raises(FrozenInstanceError):
        saved.job = saved.job.copy()
