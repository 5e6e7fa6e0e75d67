"""Observers of a runtime: order, errors, and commits that they cause."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from routilux import Commit, FakeClock, JobState, JobStatus, RoutiluxError, Run, Runtime, StepInput
from tests.engine.concurrency import Gate, in_a_child, no_thread_remains
from tests.routines import (
    MODES,
    PATIENCE,
    Works,
    chain,
    fails,
    fan,
    kinds,
    rest,
    retrying,
    run,
    run_by,
    send,
    sleeps,
)


class Notes:
    """An observer that notes each commit."""

    def __init__(self, name: str = "", notes: list[Any] | None = None) -> None:
        self.name = name
        self.notes: list[Any] = [] if notes is None else notes

    def on_commit(self, job: JobState, commit: Commit) -> None:
        self.notes.append((self.name, commit.kind.value))


class StepNotes(Notes):
    def on_step(self, job: JobState, step: StepInput) -> None:
        self.notes.append((self.name, f"{step.task.routine_id} attempt {step.attempt}"))


@MODES
def test_observers_get_every_commit_in_order_and_steps_that_start(workers):
    notes: list[Any] = []
    flow = chain(workers=workers, a=Works(fails(1), retrying()))
    run(flow, observers=[StepNotes("x", notes), Notes("y", notes)])
    assert [
        ("x", "start"),
        ("y", "start"),
        ("x", "a attempt 1"),
        ("x", "retry"),
        ("y", "retry"),
        ("x", "a attempt 2"),
        ("x", "done"),
        ("y", "done"),
    ] == notes


@pytest.mark.parametrize("how", ["execute", "start"])
def test_an_error_in_an_observer_is_logged_once_counted_and_changes_nothing(how, caplog):
    class Broken(Notes):
        def on_commit(self, job, commit):
            raise RuntimeError("no disk")

        def on_step(self, job, step):
            raise RuntimeError("no disk")

    broken, well = Broken(), Notes()
    with Runtime(clock=FakeClock(), observers=[broken, well]) as runtime:
        job = run_by(how, chain(a=send, b=rest), "a", runtime)
    assert JobStatus.COMPLETED is job.status
    assert ["start", "done", "done"] == [kind for _, kind in well.notes] == kinds(job)
    (failure,) = runtime.observer_failures
    assert (broken, 5, "no disk") == (failure.observer, failure.count, str(failure.error))
    (record,) = caplog.records
    assert ("routilux", logging.ERROR) == (record.name, record.levelno)
    assert "RuntimeError; the job continues" in record.getMessage()


def test_all_observers_get_a_commit_before_the_commit_that_an_observer_causes():
    notes: list[Any] = []
    gate = Gate()

    class Cancels(Notes):
        def on_commit(self, job, commit):
            super().on_commit(job, commit)
            if commit.kind == "done":
                handle.cancel("seen enough")

    observers = [Cancels("x", notes), Notes("y", notes)]
    with no_thread_remains(), Runtime(clock=FakeClock(), observers=observers) as runtime:
        handle = chain(a=gate.holds, b=rest).start("a", runtime=runtime)
        gate.open()
        job = handle.wait()
    assert JobStatus.CANCELLED is job.status
    assert ["start", "done", "cancelled"] == kinds(job)
    assert [(name, kind) for kind in kinds(job) for name in "xy"] == notes
    assert [] == runtime.observer_failures


def test_an_observer_that_waits_for_a_job_gets_an_error_and_no_job_hangs():
    class Waits:
        def on_commit(self, job, commit):
            chain(a=rest).execute("a", runtime=runtime)

    runtime = Runtime(clock=FakeClock(), observers=[Waits()])
    job = chain(a=rest).execute("a", runtime=runtime)
    assert "completed" == job.status
    [failure] = runtime.observer_failures
    assert isinstance(failure.error, RoutiluxError)
    assert "an observer can't execute a job" in str(failure.error)


def test_an_observer_can_not_wait_for_a_job_in_any_of_its_methods():
    class Waits(StepNotes):
        def on_step(self, job, step):
            runs[0].pause()
            runs[0].wait(timeout=1)

    class Resumes:
        def on_commit(self, job, commit):
            if commit.kind.value == "paused":
                runtime.resume(flow, job.copy())

    runs: list[Run] = []
    notes = Notes()
    flow = chain(a=lambda routine, n=0: notes.notes.append(("", "the handler runs")))
    observers = [Waits(), Resumes(), notes]
    with Runtime(observers=observers) as runtime:
        with runtime.environment.lock:  # no step starts before the run is known
            runs.append(flow.start("a", runtime=runtime))
        assert JobStatus.PAUSED is runs[0].wait(PATIENCE).status
    assert ["an observer can't wait for a job", "an observer can't resume a job"] == [
        str(failure.error).partition(":")[0] for failure in runtime.observer_failures
    ]
    assert ["start", "paused", "the handler runs", "done"] == [what for _, what in notes.notes]


def test_a_forked_child_notifies_of_no_commit_of_its_parent():
    seen: list[tuple[str, str]] = []

    class Forks:
        def on_commit(self, job, commit):
            seen.append((job.job_id, commit.kind.value))
            if (job.job_id, commit.kind) == ("parent", "done"):
                runs[0].cancel()  # its commit waits until this method has returned
                in_a_child(runs_a_job)

    def runs_a_job():
        seen.clear()
        chain(a=rest).execute("a", job_id="child", runtime=runtime)
        assert [("child", "start"), ("child", "done")] == seen

    runs: list[Run] = []
    with Runtime(clock=FakeClock(), observers=[Forks()]) as runtime:
        flow = chain(a=sleeps(1), b=rest)
        runs.append(flow.start("a", job_id="parent", runtime=runtime))
        runs[0].wait()
    assert () == tuple(runtime.observer_failures)
    assert [("parent", kind) for kind in ("start", "done", "cancelled")] == seen


def test_a_step_has_the_smallest_number_of_a_free_worker():
    workers: list[int] = []

    class Workers:
        def on_step(self, job, step):
            workers.append(step.worker)

        def on_commit(self, job, commit):
            pass

    flow = fan(send, workers=2, a=sleeps(1), b=sleeps(3))
    flow.add_routine(Works(rest), "c")
    flow.connect("a", "out", "c", "trigger")
    run(flow, "source", observers=[Workers()])
    assert [0, 0, 1, 0] == workers
