"""The error strategies: at a routine or its flow, at the entry or downstream."""

from __future__ import annotations

import pytest

from routilux import ErrorHandler
from tests.routines import MODES, Works, chain, fails, outputs, rest, retrying, run, send, sends

HANDLERS = {
    "none": None,
    "stop": ErrorHandler("stop"),
    "continue": ErrorHandler("continue"),
    "skip": ErrorHandler("skip"),
    "retry": retrying(),
}
# The status of the job, of the routine that fails, and of the one after it.
ENDS = {
    "none": ("failed", "failed", "pending"),
    "stop": ("failed", "failed", "pending"),
    "continue": ("completed", "error_continued", "pending"),
    "skip": ("completed", "skipped", "pending"),
    "retry": ("completed", "completed", "completed"),
}
REPORTS = {"none": "error", "stop": "error", "continue": "error_continued", "skip": "skipped"}


@pytest.mark.parametrize("strategy", HANDLERS)
@pytest.mark.parametrize("level", ["routine", "flow"])
@pytest.mark.parametrize("place", ["entry", "downstream"])
@MODES
def test_a_failing_routine_ends_as_its_strategy_says(strategy, level, place, workers):
    failing, after = ("a", "b") if place == "entry" else ("b", "c")
    flow = chain(workers=workers, **{"a": send, "b": send, "c": rest, failing: fails(1)})
    (flow.routines[failing] if level == "routine" else flow).set_error_handler(HANDLERS[strategy])
    job = run(flow, n=1)
    state = job.routine_states[failing]
    assert ENDS[strategy] == (job.status, state.status, job.routine_states[after].status)
    report = [REPORTS[strategy]] if strategy in REPORTS else []
    history = [record for record in job.execution_history if record.event in REPORTS.values()]
    assert report == [record.event for record in history if record.data["message"] == "attempt 1"]
    if job.status == "failed":
        assert [] == job.dropped
        assert [True] == [task.failed for task in job.pending_tasks]
        assert "ValueError: attempt 1" == str(job.error)
    else:
        assert report == [task.outcome for task in job.dropped]
        assert job.error is None
    assert (strategy == "retry") is (state.error is None)


@pytest.mark.parametrize("own", HANDLERS)
@pytest.mark.parametrize("flows", HANDLERS)
def test_the_handler_of_a_routine_comes_before_the_handler_of_the_flow(own, flows):
    flow = chain(a=Works(fails(1), HANDLERS[own]), b=rest)
    flow.set_error_handler(HANDLERS[flows])
    decides = flows if own == "none" else own
    assert ENDS[decides][1] == run(flow, n=1).routine_states["a"].status


@pytest.mark.parametrize("strategy", ["continue", "skip"])
@MODES
def test_dropping_one_task_leaves_the_others_of_its_routine(strategy, workers):
    def picky(self, n):
        if n == 2:
            raise ValueError
        self.emit("out", n=n)

    flow = chain(workers=workers, a=sends(0, 1, 2, 3), b=Works(picky, ErrorHandler(strategy)))
    job = run(flow)
    assert ("completed", [0, 1, 3]) == (job.status, outputs(job))
    assert [("b", {"n": 2}, 1)] == [(d.routine_id, d.payload, d.attempt) for d in job.dropped]
    state = job.routine_states["b"]
    assert (ENDS[strategy][1], 3) == (state.status, state.completed)
