"""`SavedState`: the contents of a document, loading, writing, and flows that no longer match."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from routilux import (
    CorruptStateError,
    ExecutionMonitor,
    FakeClock,
    Flow,
    FlowMismatchError,
    JobState,
    JobStatus,
    Routine,
    Runtime,
    SavedState,
    UnserializableError,
)
from routilux.codec.equality import first_difference
from tests.persist.orders import GOLDEN, KEY, START, Audit, at_retry, pipeline, run

DOCUMENT = GOLDEN / "routilux-1.json"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def retried() -> bytes:
    """The pipeline at retry 2 of 4."""
    return at_retry(pipeline(9), 2).to_bytes()


# --- what is in it ------------------------------------------------------------------------------


def test_the_document_has_the_keys_in_order_and_the_counts_of_retry_two(retried):
    document = json.loads(retried)
    keys = "format flow job_state saved_at saved_at_iso retry_count execution_history_count"
    assert [*keys.split(), "monitor_summary", "digest"] == list(document)
    assert "routilux/1" == document["format"]
    assert 2 == document["retry_count"]
    assert 2 == document["execution_history_count"]
    assert {"events": 2, "data_flows": 1, "state_changes": 1} == document["monitor_summary"]


def test_saved_at_is_read_from_the_clock_that_drives_the_job(retried):
    # fetch 0.8, attempt 0.5, wait 0.3, attempt 0.5
    document = json.loads(retried)
    assert "2026-01-03T12:59:05.100000+00:00" == document["saved_at_iso"]
    assert datetime(2026, 1, 3, 12, 59, 5, 100_000, tzinfo=UTC).timestamp() == document["saved_at"]


def test_an_instant_of_a_distant_century_is_read_exactly_as_it_was_written():
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


def test_the_job_of_the_golden_document_is_resumed_where_it_was():
    saved = SavedState.read(DOCUMENT)
    clock = FakeClock("2026-01-03T12:59:05.100000+00:00")
    job = saved.flow.resume(saved.job, runtime=Runtime(clock=clock))
    assert (JobStatus.COMPLETED, 3) == (job.status, job.routine_states["process"].attempts)
    assert timedelta(milliseconds=450) == (
        datetime.fromtimestamp(job.commits[-1].started_ns / 1e9, UTC)
        - saved.job.commits[-1].finished_at
    )
    assert [Decimal("3.00")] == [output.data["total"] for output in job.outputs]
    assert date(2026, 1, 3) == job.shared_data["day"]


# --- writing ------------------------------------------------------------------------------------


def test_a_file_is_written_for_its_owner_alone_and_read_back_equal(tmp_path, retried):
    saved = SavedState.from_bytes(retried)
    path = tmp_path / "job.json"
    saved.write(path)
    assert retried == path.read_bytes()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert saved.job == SavedState.read(str(path)).job
    assert [path] == list(tmp_path.iterdir())


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


def test_a_class_that_is_not_imported_is_named_and_importing_it_helps(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    write = "import shop; from routilux import SavedState; f = shop.flow();"
    assert "" == python(
        tmp_path, write + "SavedState.capture(f, f.execute('charge', {'cents': 5})).write('j.json')"
    )
    read = "from routilux import SavedState; s = SavedState.read('j.json');"
    error = python(tmp_path, read).splitlines()[-2:]
    assert [
        (
            "routilux.UnknownRoutineError: $.flow.routines[0].routine: no routine class"
            " 'shop:Charge' is defined in this program; import the module that defines it before"
            " loading (a class of another program's __main__ or one made inside a function needs a"
            " routine_name) (in j.json)"
        ),
        "exit 1",
    ] == error
    cured = f"import shop; {read} print(s.job.outputs[0].data, s.flow.routines['charge'].currency)"
    assert "{'paid': '5 CHF'} CHF\n" == python(tmp_path, cured)


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
        UnserializableError, match=f"takes {body:,} bytes; keep it under {body - 1:,}"
    ):
        saved.to_bytes()


def test_an_edited_file_is_read_without_its_digest_if_it_is_valid(tmp_path, retried):
    path = tmp_path / "job.json"
    path.write_bytes(retried.replace(b'"request_id":"r-1"', b'"request_id":"r-2"'))
    with pytest.raises(CorruptStateError, match=r"^\$\.digest: "):
        SavedState.read(path)
    (waiting,) = SavedState.read(path, verify=False).job.pending_tasks
    assert "r-2" == waiting.payload["metadata"]["request_id"]


# --- flows that no longer match -----------------------------------------------------------------


def renamed(version: int) -> type[Routine]:
    """A class whose second version has other slots and events."""

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


def test_a_changed_class_is_a_mismatch_that_lists_the_change_and_the_cure_works():
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
        f"the routines' slots and events differ from those that were saved ({CHANGES}); use the"
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
