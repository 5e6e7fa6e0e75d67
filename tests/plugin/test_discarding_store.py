"""`flow_runtime` refuses what no store can keep, and keeps nothing."""

from __future__ import annotations

import pytest

from pytest_routilux.discarding_store import DiscardingStore
from routilux import FakeClock, JobState, MemoryStore, Runtime, SavedState, UnserializableError
from tests.routines import MODES, chain, fails, rest, retrying, saveable, send, sends


class Open:
    """A value without a saved form, such as a connection or a lock."""


def emits(self, n=0):
    self.emit("out", n=n or [Open()])


def assigns(self, n=0):
    self.ctx.state["connection"] = Open()


def shares(self, n=0):
    self.ctx.shared["connections"] = {"main": Open()}


def records(self, n=0):
    self.ctx.once("connect", Open)


def recurses(self, n=0):
    rows = []
    rows.append(rows)
    self.emit("out", n=rows)


def is_too_large(self, n=0):
    self.emit("out", n=1 << 200_000)


def fails_at_first(self, n=0):
    if self.ctx.attempt == 1:
        raise ValueError("the first attempt")


def ended(runtime: Runtime, body, workers) -> tuple[object, ...]:
    flow = chain(workers=workers, first=body, last=rest)
    job = runtime.execute(flow, "first")
    return job.status, job.error.type, job.error.message, job.retry_count()


@MODES
@pytest.mark.parametrize("body", [emits, assigns, shares, records, recurses, is_too_large])
def test_a_value_that_no_store_keeps_fails_its_step_as_with_a_store(body, workers, flow_runtime):
    stored = Runtime(clock=FakeClock(), store=MemoryStore())
    expected = ended(stored, body, workers)
    assert expected == ended(flow_runtime, body, workers)
    assert ("failed", "routilux.UnserializableError") == expected[:2]


@pytest.mark.parametrize("how", ["execute", "start"])
def test_parameters_that_no_store_keeps_are_refused(how, flow_runtime):
    with pytest.raises(UnserializableError, match="Open"):
        getattr(flow_runtime, how)(chain(first=send), "first", {"n": Open()})


def test_nothing_is_kept_and_a_job_from_elsewhere_is_resumed(flow_runtime, tmp_path):
    flow = chain(first=saveable(send), last=saveable(fails_at_first))
    job = Runtime(clock=FakeClock()).execute(flow, "first", {"n": 3})
    assert "failed" == job.status
    SavedState.capture(flow, job).write(tmp_path / "job.json")
    saved = SavedState.read(tmp_path / "job.json")
    resumed = flow_runtime.resume(saved.flow, saved.job, retry_failed=True)
    assert "completed" == resumed.status
    assert flow_runtime.store is None
    with pytest.raises(KeyError, match="holds no job"):
        flow_runtime.load(job.job_id)


def test_a_retried_step_and_a_fan_out_reach_their_end(flow_runtime):
    flow = chain(workers=4, first=sends(*range(40)), last=fails(1))
    flow.set_error_handler(retrying(retry_delay=1.0))
    job: JobState = flow_runtime.execute(flow, "first")
    assert ("completed", 40) == (job.status, len(job.outputs))
    assert [] == DiscardingStore().job_ids()
