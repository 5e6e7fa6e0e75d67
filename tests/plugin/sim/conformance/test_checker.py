"""A sound engine breaks no rule of the model; a record that was tampered with breaks one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pytest_routilux.faults.flow_faults import FlowFaults
from pytest_routilux.sim.conformance.checker import broken_rule
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator import execution
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, Undisturbed, World
from pytest_routilux.sim.simulator.scheduler import Seeded
from routilux import (
    Commit,
    CommitKind,
    ErrorHandler,
    Flow,
    JobStatus,
    RetryAfter,
    Routine,
)
from tests.plugin.sim.steps import START, Step
from tests.soak import sampled

Tamper = Callable[[Undisturbed], object]


class Down(Exception):
    pass


class Slow(Down):
    pass


class Wrong(Exception):
    pass


# --- no false alarm -------------------------------------------------------------------------------


class Node(Routine):
    """Sleeps, writes, reads, fails and emits as its seed says."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.seed = seed
        draw = Random(seed)
        self.chances = {
            name: draw.choice([0, 0.5, 1]) for name in ("sleep", "state", "shared", "once", "fail")
        }
        self.errors = draw.sample([Down, Slow, Wrong, RetryAfter], draw.randint(1, 3))
        self.fan = draw.choice([[1], [0, 1], [1, 2], [2]])
        self.define_slot("trigger", handler=self.work)
        self.define_slot("failed", handler=self.note_failure)
        self.define_event("a", ["n", "data"])
        self.define_event("b", ["n", "data"])
        if draw.random() < 0.6:
            self.define_event("error", ["task_id", "message"])

    def work(self, n: int, data: object = None) -> None:
        draw = Random(f"{self.seed}/{self.ctx.task_id}")
        does = {name: draw.random() < chance for name, chance in self.chances.items()}
        if does["sleep"]:
            self.ctx.sleep(draw.choice([0.01, 0.1, 0.1, 0.25, 1.0]))
        if does["state"] and self.max_concurrency == 1:
            self.ctx.state["seen"] = [self.ctx.state.get("seen"), n][-1:]
        if does["shared"]:
            total: Any = self.ctx.shared.get("total", 0)
            self.ctx.sleep(draw.choice([0.0, 0.1, 0.2]))
            self.ctx.shared["total"] = total + 1
        if does["once"]:
            self.ctx.once("add", lambda number: number + 1, n)
        fails = draw.choice([0, 0, 0, 1, 1, 2, 3, 9])
        kind = draw.choice(self.errors)
        if does["fail"] and self.ctx.attempt <= fails:
            raise kind(0.7)
        for _ in range(draw.choice(self.fan)):
            if n:
                self.emit(draw.choice("ab"), n=n - 1, data={"n": (n, [n])})

    def note_failure(self, **payload: object) -> None:
        if self.max_concurrency == 1:
            self.ctx.state["failure"] = payload


class Pair(Node):
    max_concurrency = 2


class Four(Node):
    max_concurrency = 4


def handler_of(draw: Random) -> ErrorHandler:
    strategy = draw.choice(["retry", "retry", "retry", "stop", "continue", "skip"])
    options: dict[str, Any] = {"timeout": draw.choice([None, None, 0.1, 0.3])}
    if strategy == "retry":
        options |= {
            "max_retries": draw.choice([0, 1, 2, 4]),
            "retry_delay": draw.choice([0, 0.1, 0.3]),
            "retry_backoff": draw.choice([1, 1.5, 2, 3.3]),
            "retryable_exceptions": draw.choice([(Down,), (Exception,), (Slow, Wrong)]),
            "non_retryable_exceptions": draw.choice([(), (), (Slow,)]),
            "max_delay": draw.choice([None, None, 0.5]),
            "jitter": draw.choice([0, 0, 0.1, 1]),
            "deadline": draw.choice([None, None, 1, 2]),
            "on_exhausted": draw.choice(["stop", "continue", "skip"]),
        }
    return ErrorHandler(strategy, **options)


def flow_of(seed: int) -> Flow:
    draw = Random(seed)
    width = draw.choice([1, 2, 4, 8])
    strategy: Any = "concurrent" if width > 1 else "sequential"
    flow = Flow("drawn", execution_strategy=strategy, max_workers=width)
    names = [f"r{number}" for number in range(draw.randint(2, 4))]
    for name in names:
        node = draw.choice([Node, Pair, Four])(f"{seed}/{name}")
        if draw.random() < 0.8:
            node.set_error_handler(handler_of(draw))
        flow.add_routine(node, name)
    flow.set_error_handler(handler_of(draw))
    for source in names:
        for event in "ab":
            for target in names:
                if draw.random() < 0.4:
                    flow.connect(source, event, target, "trigger")
        if "error" in flow.routines[source].events:
            flow.connect(source, "error", draw.choice(names), "failed")
    return flow


@pytest.mark.parametrize("tenth", sampled(range(10), [0]))
def test_a_sound_engine_breaks_no_rule(tenth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_MOST_STEPS", 60)
    for seed in range(20 * tenth, 20 * tenth + 20):
        case = Case(lambda seed=seed: flow_of(seed), "r0", {"n": 3})  # type: ignore[misc]
        run = run_undisturbed(case, START)
        assert [] == run.host.findings
        assert broken_rule(run.world, [run.host], case) is None, seed
        points = crash_points(run, documents=False)
        for point in Random(seed).sample(points, min(12, len(points))):
            after = recover(run, point)
            finding = broken_rule(after.world, after.hosts, case)
            assert finding is None, (seed, point.name, finding)
        for number in range(2):
            world = World(START)
            host = run_host(case, world, scheduler=Seeded(number).scheduler())
            finding = broken_rule(world, [host], case)
            assert finding is None, (seed, number, finding)


class Odd:
    """Has no saved form."""


class SendsOdd(Step):
    def __init__(self) -> None:
        super().__init__(lambda routine, number: Odd())


def odd(handler: ErrorHandler | None = None) -> Flow:
    flow = Flow("odd")
    flow.add_routine(SendsOdd(), "r0")
    flow.set_error_handler(handler)
    return flow


def test_a_value_without_a_saved_form_is_refused_after_a_crash_as_before() -> None:
    run = run_undisturbed(Case(odd, "r0"), START)
    for point in crash_points(run):
        job = recover(run, point).host.job
        assert job is not None
        assert job.error is not None
        assert "routilux.UnserializableError" == job.error.type


def test_a_mistake_of_the_author_is_a_finding_though_the_job_completes() -> None:
    case = Case(lambda: odd(ErrorHandler("continue")), "r0")
    finding = explore(case, START, Checks()).reference.finding
    assert finding is not None
    assert ("mistake", "r0") == (finding.kind, finding.routine)
    assert f"$.emissions[0].payload.number: {__name__}.Odd has no" in finding.what


class Ends(BaseException):
    pass


class Exits(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.exits)

    async def exits(self) -> None:
        raise Ends


def test_a_job_whose_handler_ends_each_host_is_stuck_and_one_whose_store_fails_is_not() -> None:
    def build() -> Flow:
        flow = Flow("odd")
        flow.add_routine(Exits(), "exits")
        return flow

    finding = explore(Case(build, "exits"), START, Checks()).reference.finding
    assert finding is not None
    assert "stuck" == finding.kind
    down = tuple(FlowFaults().store_fails(write) for write in (2, 4, 6, 8))
    asked_for = explore(Case(worked, "first", {"data": "a"}, faults=down), START, Checks())
    assert asked_for.reference.finding is None
    assert "routilux.PoisonJobError" == asked_for.reference.view["error"]


# --- every rule can be broken ---------------------------------------------------------------------


class Work(Routine):
    """Fails once, has an effect once, and passes on what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.work)
        self.define_event("output", ["data"])

    def work(self, data: str) -> None:
        self.ctx.once("effect", str, data)
        self.ctx.state["data"] = self.ctx.shared["data"] = data
        if self.ctx.attempt == 1:
            raise Down
        self.emit("output", data=data)


def worked() -> Flow:
    """first -> second; each of the two is tried twice."""
    flow = Flow("work")
    flow.add_routine(Work(), "first")
    flow.add_routine(Work(), "second")
    flow.connect("first", "output", "second", "trigger")
    handler = ErrorHandler("retry", retry_delay=0.5, timeout=9, retryable_exceptions=Down)
    flow.set_error_handler(handler)
    return flow


# start, effect, retry, done; effect, retry, done: the commits by their places.
FIRST_EFFECT, FIRST_RETRY, FIRST_DONE, EFFECT, RETRY, DONE = 1, 2, 3, 4, 5, 6


def _changed(target: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(target, name, value(getattr(target, name)) if callable(value) else value)


def _set(place: int, **values: Any) -> Tamper:
    return lambda run: _changed(run.world.commits[place], values)


def _task(**values: Any) -> Tamper:
    return lambda run: _changed(run.world.commits[FIRST_DONE].tasks[0], values)


def _step(place: int, **values: Any) -> Tamper:
    return lambda run: _changed(run.host.steps[place][1], values)


def _job_continues(run: Undisturbed) -> None:
    last = copy.deepcopy(run.world.commits[-1])
    last.seq, last.status = last.seq + 1, JobStatus.RUNNING
    run.world.commits.append(last)


def _resumed_after_its_end(run: Undisturbed) -> None:
    last = run.world.commits[-1]
    run.world.commits.append(Commit(8, CommitKind.RESUMED, last.at_ns, JobStatus.RUNNING))


def _in_memory(change: Callable[[Any], object]) -> Tamper:
    return lambda run: change(run.job)


def _more(old: int) -> int:
    return old + 7


TAMPERED: dict[str, Tamper] = {
    "unknown-task": _set(FIRST_RETRY, task_id="9"),
    "attempt-skipped": _set(FIRST_RETRY, attempt=2),
    "attempt-repeated": _job_continues,
    "time-ran-back": _set(DONE, at_ns=START),
    "due-wrong": _set(FIRST_RETRY, due_ns=_more),
    "backoff-wrong": _set(FIRST_RETRY, due_ns=_more, delay_ns=_more),
    "task-id-wrong": _task(task_id="0.7"),
    "task-id-twice": _task(task_id="0"),
    "payload-wrong": _task(payload={"data": 1}),
    "edge-missing": _task(slot="other"),
    "task-unexpected": _set(FIRST_DONE, emissions=()),
    "failed-attempt-wrote": lambda run: _set(RETRY, state=run.world.commits[DONE].state)(run),
    "retry-too-early": _step(1, started_ns=lambda old: old - 1),
    "retry-late": _step(1, started_ns=lambda old: old + 1),
    "started-late": _step(2, started_ns=lambda old: old + 1),
    "snapshot-wrong": _step(3, kept_shared=lambda old: {**old, "data": 2}),
    "record-lost": _step(1, effects=None),
    "record-twice": lambda run: run.world.commits.insert(2, run.world.commits[FIRST_EFFECT]),
    "started-twice": lambda run: run.host.steps.insert(1, run.host.steps[0]),
    "ran-after-failure": _set(0, status=JobStatus.FAILED),
    "ran-while-stopped": _set(DONE - 1, status=JobStatus.PENDING),
    "changed-after-end": _resumed_after_its_end,
    "failure-ignored": _set(DONE, kind=CommitKind.FAILED, state=None, shared=None, emissions=()),
    "strategy-wrong": _set(
        DONE,
        kind=CommitKind.DROPPED,
        state=None,
        shared=None,
        emissions=(),
        detail={"as": "skipped"},
    ),
    "completed-too-early": _set(FIRST_DONE, status=JobStatus.COMPLETED),
    "not-completed": _set(DONE, status=JobStatus.RUNNING),
    "timeout-ignored": _set(DONE, at_ns=lambda old: old + 10**10),
    "state-not-folded": _in_memory(lambda job: job.routine_states["first"].kept.clear()),
    "attempts-miscounted": _in_memory(
        lambda job: setattr(job.routine_states["first"], "attempts", 9)
    ),
    "shared-not-folded": _in_memory(lambda job: setattr(job, "_shared", {})),
    "status-not-folded": _in_memory(lambda job: setattr(job, "status", JobStatus.FAILED)),
    "pending-not-folded": _in_memory(
        lambda job: job._pending.update(job.at(RETRY)._pending),
    ),
    "outputs-not-folded": _in_memory(lambda job: job.outputs.clear()),
}


@pytest.fixture
def run() -> Undisturbed:
    run = run_undisturbed(Case(worked, "first", {"data": "x"}), START)
    assert broken_rule(run.world, [run.host], run.case) is None
    run.world.commits = copy.deepcopy(run.world.commits)
    return run


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_record_that_was_tampered_with_breaks_a_rule(kind: str, run: Undisturbed) -> None:
    TAMPERED[kind](run)
    finding = broken_rule(run.world, [run.host], run.case)
    assert finding is not None
    assert kind == finding.kind, finding.what
