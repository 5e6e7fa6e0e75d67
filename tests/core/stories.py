"""Routines and a `Story` for the tests of the core.

A story drives the machine in place of a runtime: its time is an integer, it begins steps and gives
each of them an outcome. No handler runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routilux import codec
from routilux.codec.copying import is_flat
from routilux.core.commits import Commit
from routilux.core.machine import Machine
from routilux.core.requests import request
from routilux.core.state import JobState
from routilux.flow import Flow
from routilux.graph.messages import (
    Emission,
    ErrorInfo,
    RecordedEffect,
    StepInput,
    StepOutcome,
    Writes,
)
from routilux.graph.routine import Routine
from routilux.retry.error_handler import ErrorHandler
from tests.routines import retrying


class Stage(Routine):
    """Takes `n` and may emit each of its events with `n`; an event `error` has the engine's."""

    def __init__(self, *events: str, handler: ErrorHandler | None = None) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.take)
        for event in events:
            self.define_event(event, ["task_id", "message"] if event == "error" else ["n"])
        self.set_error_handler(handler)

    def take(self, n: int = 0) -> None:
        raise AssertionError("a story runs no handlers")


class Strict(Stage):
    """A stage that can't be called without `n`."""

    def take(self, n: int) -> None:  # type: ignore[override]
        raise AssertionError("a story runs no handlers")


class Wide(Stage):
    """A stage of which three steps may be in flight."""

    max_concurrency = 3


class Collect(Stage):
    """A stage that takes any fields, such as those of an `error` event."""

    def take(self, **fields: object) -> None:  # type: ignore[override]
        raise AssertionError("a story runs no handlers")


def flow_of(
    routines: Mapping[str, Routine], *connections: str, width: int = 1, **options: Any
) -> Flow:
    """A flow from routines and edges written as `a.out -> b`."""
    flow = Flow(
        "flow", execution_strategy="concurrent" if width > 1 else "sequential", max_workers=width
    )
    for routine_id, routine in routines.items():
        flow.add_routine(routine, routine_id)
    for edge in connections:
        start, target = edge.split(" -> ")
        source, event = start.split(".")
        flow.connect(source, event, target, "trigger", **options)
    return flow


def fan(width: int = 1, **others: Stage) -> Flow:
    """a.out goes to b, c and d, in this order; any of them can be replaced."""
    routines: dict[str, Stage] = {"a": Stage("out"), "b": Stage(), "c": Stage(), "d": Stage()}
    return flow_of({**routines, **others}, "a.out -> b", "a.out -> c", "a.out -> d", width=width)


def alone(handler: ErrorHandler | None = None, *events: str) -> Flow:
    return flow_of({"a": Stage(*events, handler=handler)})


def emission(event: str, **payload: object) -> Emission:
    return Emission(event, payload, is_flat(payload))


def done(
    step: StepInput,
    *emitted: str | Emission,
    state: dict[str, object] | None = None,
    shared: dict[str, object] | None = None,
    reads: Iterable[str] | None = (),
) -> StepOutcome:
    return StepOutcome(
        step.number,
        [emission(e, n=0) if isinstance(e, str) else e for e in emitted],
        None if state is None else Writes(state),
        None if shared is None else Writes(shared),
        None if reads is None else frozenset(reads),
    )


def broken(
    step: StepInput,
    error: Exception | None = None,
    *,
    after_ns: int | None = None,
    reads: Iterable[str] | None = (),
) -> StepOutcome:
    error = ValueError("broken") if error is None else error
    return StepOutcome(
        step.number,
        [],
        shared_reads=None if reads is None else frozenset(reads),
        error=ErrorInfo.of(error),
        error_type=type(error),
        retry_after_ns=after_ns,
    )


def by_document(job: JobState) -> JobState:
    return JobState.deserialize(job.serialize())


def by_text(job: JobState) -> JobState:
    return JobState.load(codec.loads(codec.dumps(job.serialize())), "$")


def by_folding(job: JobState) -> JobState:
    """As a store reads it: each commit from its own text, folded one after the other."""
    restored = JobState(job.job_id)
    for commit in job.commits:
        restored.fold(Commit.load(codec.loads(commit.dumps()), f"$.row[{commit.seq}]"))
    return restored


def text_of(job: JobState) -> str:
    return codec.dumps(job.serialize())


class Story:
    """One job that is driven by hand; `now` is the time in nanoseconds."""

    def __init__(
        self,
        flow: Flow,
        entry: str = "a",
        *,
        now: int = 0,
        job_id: str = "job",
        limit: int | None = None,
        **params: object,
    ) -> None:
        self.plan = flow.plan()
        self.now = now
        job = JobState(job_id)
        job.history_limit = limit
        self.machine = Machine(self.plan, job)
        self.accept(self.machine.start(entry, "trigger", params, now))

    @property
    def job(self) -> JobState:
        return self.machine.job

    def accept(self, commit: Commit) -> Commit:
        self.machine.accept(commit)
        return commit

    def startable(self) -> list[str]:
        return [task.task_id for task in self.machine.startable(self.now)]

    def pending(self) -> list[str]:
        return [task.task_id for task in self.job.pending_tasks]

    def begin(self, task_id: str | None = None) -> StepInput:
        """Begin the first choice, or the startable task of that id."""
        for task in self.machine.startable(self.now):
            if task_id in (None, task.task_id):
                return self.machine.begin(task, self.now)
        raise AssertionError(f"{task_id or 'no task'} may start now; {self.startable()} may")

    def end(self, step: StepInput, outcome: StepOutcome) -> Commit:
        commit = self.machine.finish(step, outcome, self.now)
        assert commit is not None, f"the outcome of task {step.task.task_id} is too late"
        return self.accept(commit)

    def run(self, *emitted: str | Emission, task_id: str | None = None) -> Commit:
        """Begin a step, and let it succeed at once."""
        step = self.begin(task_id)
        return self.end(step, done(step, *emitted))

    def fail(self, error: Exception | None = None, *, task_id: str | None = None) -> Commit:
        """Begin a step, and let it fail at once."""
        step = self.begin(task_id)
        return self.end(step, broken(step, error))

    def due(self) -> int | None:
        task = self.machine.next_task()
        return None if task is None else task.due_ns

    def wait(self) -> int:
        """Let the time pass until the next task is due; return the length of the wait."""
        due = self.due()
        assert due is not None, "nothing is due"
        waited, self.now = due - self.now, max(due, self.now)
        return waited

    def record(self, step: StepInput, name: str, result: object) -> Commit:
        commit = self.machine.effect(step, name, RecordedEffect("arguments", result), self.now)
        assert commit is not None
        return self.accept(commit)

    def resume(
        self, *, retry_failed: bool = False, most: int | None = 3, clean: bool = False
    ) -> Commit:
        return self.accept(
            self.machine.resume(
                self.now, retry_failed=retry_failed, max_recoveries=most, clean=clean
            )
        )

    def request(self, kind: str) -> Commit:
        if kind == "resume":
            return self.resume()
        return self.accept(request(self.job, kind, self.now))  # type: ignore[arg-type]

    def crash(self) -> None:
        """Lose the process; another one reads the job from its saved form."""
        self.machine = Machine(self.plan, by_text(self.job))


def reporting(handler: ErrorHandler, limit: int | None = None) -> Story:
    """b and d run at the same time; b fails, and c takes its event `error`."""
    flow = flow_of(
        {
            "a": Stage("out"),
            "b": Stage("error", "out", handler=handler),
            "c": Collect(),
            "d": Wide("out"),
            "e": Stage(),
        },
        "a.out -> b",
        "a.out -> d",
        "b.error -> c",
        "b.out -> e",
        "d.out -> e",
        width=9,
    )
    story = Story(flow, limit=limit)
    story.run("out")
    return story


def eventful(limit: int | None = None, *, n: object = 1) -> Story:
    """A job with commits of every kind but `failed` and `cancelled`; it waits for a retry."""
    flow = flow_of(
        {
            "a": Stage("out", "extra", handler=retrying(retry_delay=1)),
            "b": Stage("out", "error", handler=ErrorHandler("continue")),
            "c": Collect(),
            "d": Stage("out"),
            "e": Stage("out", handler=retrying(retry_delay=5)),
        },
        "a.out -> b", "a.out -> d", "a.out -> e", "b.error -> c",
        width=3,
    )  # fmt: skip
    story = Story(flow, limit=limit, n=n)
    story.fail()
    story.wait()
    step = story.begin()
    story.record(step, "charge", ("ch_1", n))
    outcome = done(step, emission("out", n=n), "extra", state={"seen": {n}}, shared={"total": 1})
    story.end(step, outcome)
    story.fail(task_id="0.0")
    unlucky, lucky = story.begin("0.0.0"), story.begin("0.1")
    story.end(lucky, done(lucky, "out", shared={"total": [n]}))
    story.end(unlucky, done(unlucky, reads=["total"]))
    story.run(task_id="0.0.0")
    story.request("pause")
    story.resume()
    story.fail(task_id="0.2")
    return story


def failed() -> Story:
    story = Story(flow_of({"a": Stage()}))
    story.fail(ValueError("no stock"))
    return story
