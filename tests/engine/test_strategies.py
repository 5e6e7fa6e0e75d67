"""The error strategies: at a routine or its flow, at the entry or downstream."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from routilux import ErrorHandler, JobStatus, RoutineStatus
from tests.routines import (
    MODES,
    Works,
    chain,
    fails,
    outputs,
    rest,
    retrying,
    run,
    send,
    sends,
)


@dataclass(frozen=True)
class Ends:
    """The end of the job, of the routine that fails, and of its one failing task."""

    job: JobStatus
    routine: RoutineStatus
    history: str | None = None
    dropped: str | None = None
    pending: int = 0
    attempts: int = 1
    after: RoutineStatus = RoutineStatus.PENDING


_STOPS = Ends(JobStatus.FAILED, RoutineStatus.FAILED, "error", None, pending=1)
TABLE = {
    "none": (None, _STOPS),
    "stop": (ErrorHandler("stop"), _STOPS),
    "continue": (
        ErrorHandler("continue"),
        Ends(
            JobStatus.COMPLETED, RoutineStatus.ERROR_CONTINUED, "error_continued", "error_continued"
        ),
    ),
    "skip": (
        ErrorHandler("skip"),
        Ends(JobStatus.COMPLETED, RoutineStatus.SKIPPED, "skipped", "skipped"),
    ),
    "retry": (
        retrying(retry_delay=1),
        Ends(
            JobStatus.COMPLETED, RoutineStatus.COMPLETED, attempts=2, after=RoutineStatus.COMPLETED
        ),
    ),
}


@pytest.mark.parametrize("strategy", TABLE)
@pytest.mark.parametrize("level", ["routine", "flow"])
@pytest.mark.parametrize("place", ["entry", "downstream"])
@MODES
def test_a_failing_routine_ends_as_its_strategy_says(strategy, level, place, workers):
    handler, ends = TABLE[strategy]
    failing, after = ("a", "b") if place == "entry" else ("b", "c")
    flow = chain(
        workers=workers,
        a=Works(fails(1) if place == "entry" else send),
        b=Works(fails(1) if place == "downstream" else send),
        c=rest,
    )
    if level == "routine":
        flow.routines[failing].set_error_handler(handler)
    else:
        flow.set_error_handler(handler)
    job = run(flow, n=1)
    state = job.routine_states[failing]
    assert ends.job is job.status
    assert ends.routine is state.status
    assert ends.attempts == state.attempts
    assert ends.after is job.routine_states[after].status
    assert ends.pending == len(job.pending_tasks)
    reports = [
        r for r in job.execution_history if r.event in ("error", "error_continued", "skipped")
    ]
    assert ([ends.history] if ends.history else []) == [record.event for record in reports]
    assert all(record.data["message"] == "attempt 1" for record in reports)
    assert ([ends.dropped] if ends.dropped else []) == [task.outcome for task in job.dropped]
    if ends.job is JobStatus.FAILED:
        assert job.pending_tasks[0].failed
        assert job.error is not None
        assert "ValueError: attempt 1" == str(job.error)
    else:
        assert job.error is None
    if ends.routine is RoutineStatus.COMPLETED:
        assert state.error is None
    else:
        assert state.error is not None


@pytest.mark.parametrize("own", TABLE)
@pytest.mark.parametrize("flows", TABLE)
def test_the_handler_of_a_routine_comes_before_the_handler_of_the_flow(own, flows):
    flow = chain(a=Works(fails(1), TABLE[own][0]), b=rest)
    flow.set_error_handler(TABLE[flows][0])
    decides = flows if own == "none" else own
    assert TABLE[decides][1].routine is run(flow, n=1).routine_states["a"].status


@pytest.mark.parametrize("strategy", ["continue", "skip"])
@MODES
def test_dropping_one_task_leaves_the_others_of_its_routine(strategy, workers):
    def picky(self, n):
        if n == 2:
            raise ValueError
        self.emit("out", n=n)

    flow = chain(workers=workers, a=sends(0, 1, 2, 3), b=Works(picky, ErrorHandler(strategy)))
    job = run(flow, n=1)
    assert JobStatus.COMPLETED is job.status
    assert [0, 1, 3] == outputs(job)
    assert [("b", {"n": 2}, 1)] == [(d.routine_id, d.payload, d.attempt) for d in job.dropped]
    worst = RoutineStatus.SKIPPED if strategy == "skip" else RoutineStatus.ERROR_CONTINUED
    assert worst is job.routine_states["b"].status
    assert 3 == job.routine_states["b"].completed
