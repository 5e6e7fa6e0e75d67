"""The four strategies as one table: at a routine or its flow, at the entry or downstream."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    JobStatus,
    Routine,
    RoutineStatus,
    Runtime,
)
from tests.drivers.workshop import Works, chain, kinds, rest, retrying, send


@dataclass(frozen=True)
class Ends:
    """What becomes of the job, of the routine that fails, and of its one failing task."""

    job: JobStatus
    routine: RoutineStatus
    history: str | None
    dropped: str | None
    pending: int
    attempts: int
    after: RoutineStatus


_STOPS = Ends(
    JobStatus.FAILED, RoutineStatus.FAILED, "error", None, 1, 1, after=RoutineStatus.PENDING
)
_NEVER_RAN = RoutineStatus.PENDING
TABLE = {
    "none": (None, _STOPS),
    "stop": (ErrorHandler("stop"), _STOPS),
    "continue": (
        ErrorHandler("continue"),
        Ends(
            JobStatus.COMPLETED,
            RoutineStatus.ERROR_CONTINUED,
            "error_continued",
            "error_continued",
            0,
            1,
            after=_NEVER_RAN,
        ),
    ),
    "skip": (
        ErrorHandler("skip"),
        Ends(
            JobStatus.COMPLETED,
            RoutineStatus.SKIPPED,
            "skipped",
            "skipped",
            0,
            1,
            after=_NEVER_RAN,
        ),
    ),
    "retry": (
        retrying(retry_delay=1),
        Ends(
            JobStatus.COMPLETED,
            RoutineStatus.COMPLETED,
            None,
            None,
            0,
            2,
            after=RoutineStatus.COMPLETED,
        ),
    ),
}


def fails_once(self: Routine, n: object = 0) -> None:
    if self.ctx.attempt == 1:
        raise ValueError("out of stock")
    self.emit("out", n=n)


def run(flow: Flow) -> JobState:
    with Runtime(clock=FakeClock()) as runtime:
        return flow.execute("a", {"n": 1}, runtime=runtime)


@pytest.mark.parametrize("strategy", TABLE)
@pytest.mark.parametrize("level", ["routine", "flow"])
@pytest.mark.parametrize("place", ["entry", "downstream"])
@pytest.mark.parametrize("workers", [None, 3], ids=["sequential", "concurrent"])
def test_a_failing_routine_ends_as_its_strategy_says(
    strategy: str, level: str, place: str, workers: int | None
) -> None:
    handler, ends = TABLE[strategy]
    failing, after = ("a", "b") if place == "entry" else ("b", "c")
    flow = chain(
        workers=workers,
        a=Works(fails_once if place == "entry" else send),
        b=Works(fails_once if place == "downstream" else send),
        c=rest,
    )
    if level == "routine":
        flow.routines[failing].set_error_handler(handler)
    else:
        flow.set_error_handler(handler)

    job = run(flow)

    state = job.routine_states[failing]
    assert ends.job is job.status
    assert ends.routine is state.status
    assert ends.attempts == state.attempts
    assert ends.after is job.routine_states[after].status
    assert ends.pending == len(job.pending_tasks)
    told = [r for r in job.execution_history if r.event in ("error", "error_continued", "skipped")]
    assert ([ends.history] if ends.history else []) == [record.event for record in told]
    assert all(record.data["message"] == "out of stock" for record in told)
    assert ([ends.dropped] if ends.dropped else []) == [task.outcome for task in job.dropped]
    if ends.job is JobStatus.FAILED:
        assert job.pending_tasks[0].failed
        assert job.error is not None
        assert "ValueError: out of stock" == str(job.error)
    else:
        assert job.error is None
    if ends.routine is RoutineStatus.COMPLETED:
        assert state.error is None
    else:
        assert state.error is not None


@pytest.mark.parametrize("own", TABLE)
@pytest.mark.parametrize("flows", TABLE)
def test_a_routines_handler_comes_before_its_flows(own: str, flows: str) -> None:
    flow = chain(a=Works(fails_once, TABLE[own][0]), b=rest)
    flow.set_error_handler(TABLE[flows][0])
    decides = flows if own == "none" else own
    assert TABLE[decides][1].routine is run(flow).routine_states["a"].status


@pytest.mark.parametrize("strategy", ["continue", "skip"])
@pytest.mark.parametrize("workers", [None, 3], ids=["sequential", "concurrent"])
def test_dropping_one_task_leaves_the_others_of_its_routine(
    strategy: str, workers: int | None
) -> None:
    def sends(self: Routine, n: object) -> None:
        for number in range(4):
            self.emit("out", n=number)

    def picky(self: Routine, n: int) -> None:
        if n == 2:
            raise ValueError
        self.emit("out", n=n)

    flow = chain(workers=workers, a=sends, b=Works(picky, ErrorHandler(strategy)))
    job = run(flow)
    assert JobStatus.COMPLETED is job.status
    assert [0, 1, 3] == [output.data["n"] for output in job.outputs]
    assert [("b", {"n": 2}, 1)] == [(d.routine_id, d.payload, d.attempt) for d in job.dropped]
    worst = RoutineStatus.SKIPPED if strategy == "skip" else RoutineStatus.ERROR_CONTINUED
    assert worst is job.routine_states["b"].status
    assert 3 == job.routine_states["b"].completed


@pytest.mark.parametrize("workers", [None, 3], ids=["sequential", "concurrent"])
def test_stop_lets_steps_in_flight_commit_and_starts_nothing_new(workers: int | None) -> None:
    def sends(self: Routine, n: object) -> None:
        self.emit("out", n=0)

    def fails_at_1(self: Routine, n: object) -> None:
        self.ctx.sleep(1)
        raise ValueError

    def ends_at_2(self: Routine, n: object) -> None:
        self.ctx.sleep(2)
        self.emit("out", n=0)

    flow = chain(workers=workers, a=sends, b=fails_at_1)
    flow.add_routine(Works(ends_at_2), "beside")
    flow.connect("a", "out", "beside", "trigger")
    flow.add_routine(Works(rest), "after")
    flow.connect("beside", "out", "after", "trigger")
    job = run(flow)
    assert JobStatus.FAILED is job.status
    beside = ["start", "done", "failed", "done"] if workers else ["start", "done", "failed"]
    assert beside == kinds(job)
    pending = {(task.routine_id, task.failed) for task in job.pending_tasks}
    assert {("b", True), ("after" if workers else "beside", False)} == pending
    assert 0 == job.routine_states["after"].attempts
