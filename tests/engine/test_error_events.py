"""The event `error`: its tasks run before the job is failed, whatever fails the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobFailedError,
    JobState,
    MemoryStore,
    Routine,
    Runtime,
    Worker,
)
from tests.routines import MODES, Works, chain, error_of, fails, kinds, rest, retrying, run, run_by

DRIVERS = pytest.mark.parametrize("how", ["execute", "start", "aexecute", "worker"])


def exits(self: Routine, n: object = 0) -> None:
    raise SystemExit("killed")


# The handler that fails, its error handler, the limits of the runtime, and the type of the error.
WAYS: dict[str, tuple[Any, ErrorHandler | None, dict[str, int], str]] = {
    "stop": (fails(9), None, {}, "ValueError"),
    "retries spent": (fails(9), retrying(max_retries=2), {}, "ValueError"),
    "not retryable": (fails(9), retrying(retryable_exceptions=OSError), {}, "ValueError"),
    "timeout": (fails(9, after=5), ErrorHandler(timeout=1), {}, "StepTimeoutError"),
    "max_steps": (fails(99), retrying(max_retries=None), {"max_steps": 3}, "StepLimitError"),
    "poisoned": (exits, ErrorHandler("skip"), {"max_recoveries": 2}, "PoisonJobError"),
}


def reporting(
    body: Any, handler: ErrorHandler | None, workers: int | None, heard: list[Any]
) -> Flow:
    """A routine that fails, one that reports it to another one, and one that never runs."""

    def listens(self: Routine, **reported: object) -> None:
        heard.append(("listens", reported))
        self.emit("out", n=reported["error_type"])

    def files(self: Routine, n: object) -> None:
        heard.append(("files", n))

    def never(self: Routine, n: object) -> None:
        heard.append(("never", n))

    fields = ["error_type", "message", "task_id"]
    first = Works(lambda self: (self.emit("out", n=1), self.emit("out", n=2), None)[-1])
    flow = chain(workers=workers, first=first, a=Works(body, handler, error=fields), b=never)
    for name, listener in (("listens", listens), ("files", files)):
        flow.add_routine(Works(listener), name)
    flow.connect("a", "error", "listens", "trigger")
    flow.connect("listens", "out", "files", "trigger")
    return flow


def drive(how: str, flow: Flow, runtime: Runtime) -> JobState:
    if how == "worker":
        runtime.submit(flow, "first", job_id="j")
        Worker(runtime.store, [flow], runtime=runtime).run(until_idle=True)
        return runtime.load("j", history=True)
    try:
        return run_by(how, flow, "first", runtime)
    except SystemExit:
        while True:
            try:
                return flow.resume(runtime.load("j", history=True), runtime=runtime)
            except SystemExit:
                continue


@pytest.mark.parametrize("way", WAYS)
@DRIVERS
@MODES
def test_the_error_event_is_heard_before_the_job_rests_as_failed(way, how, workers):
    body, handler, limits, error = WAYS[way]
    heard: list[Any] = []
    flow = reporting(body, handler, workers, heard)
    clock = FakeClock()
    with Runtime(clock=clock, store=MemoryStore(clock), **limits) as runtime:
        job = drive(how, flow, runtime)
    assert error == error_of(job)[0]
    assert job.updated_ns == job.commits[-1].at_ns
    reported = [what for who, what in heard if who == "listens"]
    failed = [task for task in job.pending_tasks if task.failed]
    assert {task.task_id for task in failed} == {what["task_id"] for what in reported}
    assert 1 <= len(reported) == len(failed)
    assert {error} == {what["error_type"].removeprefix("routilux.") for what in reported}
    assert len(reported) == sum(who == "files" for who, _ in heard), (
        "what the listener sent is lost"
    )
    assert "never" not in [who for who, _ in heard]
    assert JobState.deserialize(job.serialize()) == job
    statuses = [commit.status.value for commit in job.commits if commit.seq > 1]
    assert ["failed"] == statuses[-1:]
    assert "failed" not in statuses[:-1], "the job was failed before its failure was reported"


def test_a_failed_listener_leaves_both_tasks_failed_and_both_get_a_fresh_budget():
    ran: list[tuple[str, int]] = []

    def body(self: Routine, **_: object) -> None:
        ran.append((self.ctx.task_id, self.ctx.attempt))
        if self.ctx.attempt == 1:
            raise ValueError

    flow = chain(a=Works(body, error=["message"]), b=rest)
    flow.add_routine(Works(body), "listens")
    flow.connect("a", "error", "listens", "trigger")
    job = run(flow)
    assert ["start", "failed", "failed"] == kinds(job)
    assert [("0", True), ("0.0", True)] == [(t.task_id, t.failed) for t in job.pending_tasks]
    job = flow.resume(job, runtime=Runtime(clock=FakeClock()), retry_failed=True)
    assert "completed" == job.status
    assert [("0", 1), ("0.0", 1), ("0", 2), ("0.0", 2)] == ran


@pytest.mark.parametrize("strategy", ["stop", "continue", "skip", "retry"])
@DRIVERS
@MODES
def test_a_task_that_reports_a_failure_reports_none_of_its_own(strategy, how, workers):
    ran: list[str] = []

    def listens(self: Routine, message: str) -> None:
        ran.append(self.ctx.task_id)
        raise OSError("the dead-letter store is down")

    handler = retrying(max_retries=1) if strategy == "retry" else ErrorHandler(strategy)
    flow = chain(workers=workers, first=Works(fails(9), handler, error=["message"]))
    flow.add_routine(Works(listens, handler, error=["message"]), "listens")
    flow.connect("first", "error", "listens", "trigger")
    flow.connect("listens", "error", "listens", "trigger")
    clock = FakeClock()
    with Runtime(clock=clock, store=MemoryStore(clock), max_steps=30) as runtime:
        job = drive(how, flow, runtime)
    assert ["0.0"] * (1 + (strategy == "retry")) == ran
    assert "StepLimitError" not in {commit.error.type for commit in job.commits if commit.error}
    assert ("completed" if strategy in ("continue", "skip") else "failed") == job.status


@MODES
def test_the_errors_of_a_chain_of_failing_error_handlers_are_all_reported(workers, caplog):
    heard: list[str] = []

    def handles(self: Routine, message: str) -> None:
        raise OSError("the dead-letter store\nis down")

    flow = chain(workers=workers, a=Works(fails(9), error=["message"]))
    flow.add_routine(Works(handles, error=["message"]), "dlq1")
    flow.add_routine(Works(lambda self, message: heard.append(message)), "dlq2")
    flow.connect("a", "error", "dlq1", "trigger")
    flow.connect("dlq1", "error", "dlq2", "trigger")
    store = MemoryStore()
    with Runtime(store=store) as runtime:
        runtime.submit(flow, "a", job_id="j")
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        job = runtime.load("j")
    assert [] == heard, "the task of an error event emits none"
    second = "dlq1 failed at attempt 1: OSError: the dead-letter store is down"
    with pytest.raises(JobFailedError, match=r"ValueError: .*; task 0 of a failed at attempt 1; "):
        job.raise_for_status()
    with pytest.raises(JobFailedError, match=f"; task 0.0 of {second}"):
        job.raise_for_status()
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("job j of flow tale failed for good at a attempt 1: ValueError")
    assert warning.endswith(f"; {second}")


def test_the_task_of_an_error_event_that_kills_its_host_is_poisoned_under_the_same_limit():
    heard: list[str] = []

    def listens(self: Routine, message: str) -> None:
        heard.append(message)
        raise SystemExit

    flow = chain(a=Works(exits, error=["message"]))
    flow.add_routine(Works(listens), "listens")
    flow.connect("a", "error", "listens", "trigger")
    clock = FakeClock()
    with Runtime(clock=clock, store=MemoryStore(clock), max_recoveries=1) as runtime:
        runtime.submit(flow, "a", job_id="j")
        Worker(runtime.store, [flow], runtime=runtime).run(until_idle=True)
        job = runtime.load("j")
    assert 2 == len(heard)
    assert "2 times: SystemExit: killed" in heard[0]
    assert [("a", True), ("listens", True)] == [(t.routine_id, t.failed) for t in job.pending_tasks]
    assert "a (task 0, attempt 1)" in error_of(job)[1]


@pytest.mark.parametrize("paused", [True, False])
def test_the_error_event_survives_a_pause_and_a_dead_host(paused):
    heard: list[Any] = []
    flow, clock = reporting(fails(9), None, None, heard), FakeClock()
    store = MemoryStore(clock)

    class Interferes:
        def on_commit(self, job: Any, commit: Any) -> None:
            if commit.kind == "failed" and not done:
                done.append(1)
                if paused:
                    runs[0].pause()
                else:
                    raise SystemExit

    done: list[int] = []
    runs: list[Any] = []
    with Runtime(clock=clock, store=store, observers=[Interferes()]) as runtime:
        runs.append(flow.start("first", job_id="j", runtime=runtime))
        stops: Callable[[], object] = runs[0].wait
        if paused:
            stops()
        else:
            with pytest.raises(SystemExit):
                stops()
        before = runtime.load("j")
        assert ("paused" if paused else "running") == before.status
        job = flow.resume(before, runtime=runtime)
    assert "failed" == job.status
    assert ["listens", "files"] == [who for who, _ in heard]


def test_a_cycle_of_failing_listeners_ends_at_max_steps():
    flow = chain(a=Works(lambda self, **_: 1 / 0 and None, error=["message"]))
    flow.connect("a", "error", "a", "trigger")
    with Runtime(clock=FakeClock(), max_steps=10) as runtime:
        job = flow.execute("a", runtime=runtime)
    assert "failed" == job.status
    assert 30 > job.seq
