"""The whole public API as its users write it; never run, checked by mypy --strict."""

# ruff: noqa: F403, F405 - every public name is used here, and `test_api.py` checks that

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, ClassVar, assert_type
from uuid import UUID

import routilux
from routilux import *
from routilux.clocks.clock import Party

# --- the user's own types -----------------------------------------------------------------------


@register_type
@dataclass(frozen=True)
class Price:
    cents: int


@register_type(name="colour")
class Colour(Enum):
    RED = 1


class Client:
    def __init__(self, url: str) -> None:
        self.url = url


register_type(Client, encode=lambda client: client.url, decode=Client)
assert_type(Price(1), Price)
assert_type(Colour(1), Colour)


# --- routines -----------------------------------------------------------------------------------


def charge(cents: int, *, key: str) -> UUID:
    raise NotImplementedError


class Fetch(Routine):
    routine_name: ClassVar[str | None] = "fetch"
    max_concurrency = 4

    def __init__(self, url: str, timeout: float = 1.5) -> None:
        super().__init__()
        self.url = url
        assert_type(self.define_slot("trigger", handler=self.fetch), Slot)
        assert_type(self.define_event("output", ["data", "at"]), Event)
        self.define_slot("later", handler=self.fetch_later)
        assert_type(self.define_slot("all", handler=self.fetch_all, gather=True).gather, bool)
        self.set_error_handler(ErrorHandler("retry", timeout=timeout))
        self.set_error_handler(None)

    def fetch_all(self, found: Gathered) -> None:
        assert_type(found[0], Mapping[str, Any])
        assert_type(len(found), int)
        assert_type(found.dropped, tuple[DroppedTask, ...])
        assert_type(found.sources, tuple[tuple[str, str], ...])

    def fetch(self, request_id: str) -> None:
        ctx = assert_type(self.ctx, Context)
        assert_type(ctx.attempt, int)
        assert_type(ctx.cancelled, bool)
        assert_type(ctx.job_id, str)
        assert_type(ctx.task_id, str)
        assert_type(ctx.idempotency_key, str)
        assert_type(ctx.key("charge"), str)
        assert_type(ctx.now(), datetime)
        assert_type(ctx.random, Random)
        assert_type(ctx.uuid(), UUID)
        assert_type(ctx.state["seen"], object)
        ctx.state["seen"] = request_id
        ctx.shared.setdefault("total", 0)
        ctx.sleep(0.5)
        ctx.sleep(timedelta(seconds=1))
        assert_type(ctx.once("charge", charge, 5, key=ctx.key("charge")), UUID)
        self.emit("output", data={"id": request_id}, at=ctx.now())
        raise RetryAfter(1.5, "429", spends=False)

    async def fetch_later(self, request_id: str = "none") -> None:
        self.emit("output", data=request_id)


fetch = Fetch("http://localhost")
assert_type(fetch.slots, Mapping[str, Slot])
assert_type(fetch.events, Mapping[str, Event])
assert_type(fetch.error_handler, ErrorHandler | None)
assert_type(fetch.events["output"].fields, tuple[str, ...])
assert_type(Fetch.saved_name(), str)


# --- error handlers -----------------------------------------------------------------------------

handler = ErrorHandler(
    ErrorStrategy.RETRY,
    max_retries=None,
    retry_delay=0.3,
    retry_backoff=1.5,
    retryable_exceptions=(ValueError, OSError),
    non_retryable_exceptions=FileNotFoundError,
    max_delay=30,
    jitter=0.1,
    timeout=5,
    deadline=60.0,
    on_exhausted="skip",
)
assert_type(handler.strategy, ErrorStrategy)
assert_type(handler.max_retries, int | None)
assert_type(handler.delay_before(2), timedelta)
assert_type(handler.is_retryable(ValueError), bool)
assert_type(handler.retry_count, int)
assert_type(RetryAfter(1).seconds, float)


# --- flows --------------------------------------------------------------------------------------

flow = Flow("shop", execution_strategy="concurrent", max_workers=2)
assert_type(flow.add_routine(fetch), str)
assert_type(flow.add_routine(Fetch("x"), "second"), str)
strategy: ExecutionStrategy = "concurrent"
assert_type(Flow("parallel", execution_strategy=strategy), Flow)
edge = assert_type(flow.connect("Fetch", "output", "second", "trigger", {"data": "x"}), Connection)
assert_type((edge.source, edge.event, edge.target, edge.slot), tuple[str, str, str, str])
assert_type(edge.param_mapping, Mapping[str, str])
flow.set_error_handler(handler)
assert_type(flow.routines, Mapping[str, Routine])
assert_type(flow.connections, tuple[Connection, ...])
assert_type(flow.fingerprint, str)
assert_type(flow.to_mermaid(), str)
assert_type(flow.serialize(), dict[str, object])
assert_type(Flow.deserialize(flow.serialize()), Flow)


# --- running ------------------------------------------------------------------------------------


class Watch:
    def on_commit(self, job: JobState, commit: Commit) -> None:
        assert_type(commit.kind, CommitKind)
        assert_type(commit.status, JobStatus)
        assert_type(commit.started_at, datetime | None)
        assert_type(commit.finished_at, datetime)
        assert_type(commit.error, ErrorInfo | None)
        assert_type(commit.emissions, tuple[Emission, ...])

    def on_step(self, job: JobState, step: StepInput) -> None:
        assert_type(step.attempt, int)


watch: Observer = Watch()
monitor = ExecutionMonitor()
store: JobStore = MemoryStore()
assert_type(
    store.append_all([Append("job-1", 2, b"{}", "host-a", status="running")]),
    list[RoutiluxError | None],
)
durable: JobStore = SqliteStore("jobs.db", clock=FakeClock())
hosted: JobStore = PostgresStore("postgresql://user@host/database")
acquired = store.acquire("host-a", ["orders"], 30 * 10**9)
assert_type(acquired, list[Acquired])
store.release("job-1", "host-a", 0, clean=False)
assert_type(store.holders(), dict[str, Hold])
hold = store.holders("job-1")["job-1"]
assert_type(hold.owner, str | None)
assert_type(hold.free_in_ns, int | None)
assert_type(hold.clean, bool)
clock: Clock = FakeClock("2026-01-03T12:59:03+00:00", autojump=False)
runtime = Runtime(
    clock=clock,
    store=store,
    executor=ThreadPoolExecutor(2),
    observers=[watch, monitor],
    max_steps=1000,
    max_recoveries=None,
    history_limit=100,
)
worker = Worker(
    durable,
    [flow],
    runtime=runtime,
    lease=timedelta(seconds=30),
    concurrency=4,
    allow_changed_flow=True,
)
worker.run(until_idle=True)
worker.stop()
job = assert_type(flow.execute("Fetch", {"request_id": "r"}, slot="trigger"), JobState)
run = assert_type(flow.start("Fetch", job_id="j", runtime=runtime), Run)
assert_type(run.wait(timeout=timedelta(seconds=5)), JobState)
assert_type(run.wait(5.0), JobState)
assert_type(run.job, JobState)
run.pause()
run.cancel("enough")
run.checkpoint("job.json")
run.checkpoint(Path("job.json"), key=b"sixteen bytes or more")
assert_type(
    flow.resume(
        job,
        runtime=runtime,
        retry_failed=True,
        allow_changed_flow=True,
        execution_strategy="sequential",
    ),
    JobState,
)
assert_type(runtime.execute(flow, "Fetch"), JobState)
assert_type(runtime.start(flow, "Fetch"), Run)
assert_type(runtime.submit(flow, "Fetch"), str)
assert_type(runtime.submit(flow, "Fetch", delay=0.5, job_id="j"), str)
assert_type(runtime.submit(flow, "Fetch", delay=timedelta(days=1)), str)
assert_type(retry_job(durable, "j", take_over=True, clock=runtime.clock), JobState)
assert_type(cancel_job(durable, "j", "a reason", clock=None), JobState)
assert_type(durable.delete("j"), bool)
assert_type(runtime.resume(flow, job), JobState)
assert_type(runtime.load("j"), JobState)
with use_runtime(runtime) as used, Runtime() as own:
    assert_type(used, Runtime)
    assert_type(own, Runtime)


async def wait_for_it() -> None:
    assert_type(await flow.aexecute("Fetch", {"request_id": "r"}), JobState)
    assert_type(await runtime.aexecute(flow, "Fetch"), JobState)


# --- jobs ---------------------------------------------------------------------------------------

assert_type(job.status, JobStatus)
assert_type(job.routine_states, dict[str, RoutineState])
assert_type(job.routine_states["Fetch"].status, RoutineStatus)
assert_type(job.shared_data, dict[str, object])
assert_type(job.pending_tasks, tuple[PendingTask, ...])
assert_type(job.pending_tasks[0].due_at, datetime)
assert_type(job.pending_tasks[0].delay, timedelta | None)
assert_type(job.pending_tasks[0].payload, Mapping[str, object])
assert_type(job.outputs, list[Output])
assert_type(job.outputs[0].data, Mapping[str, object])
assert_type(job.pending_tasks[0].gathers, bool)
assert_type(job.dropped, list[DroppedTask])
assert_type(job.error, ErrorInfo | None)
assert_type(job.commits, Sequence[Commit])
assert_type(job.execution_history, list[HistoryRecord])
assert_type(job.execution_history[0].at, datetime)
assert_type(job.retry_count(), int)
assert_type(job.retry_count("Fetch"), int)
assert_type(job.at(1), JobState)
assert_type(job.serialize(), dict[str, object])
assert_type(JobState.deserialize(job.serialize()), JobState)
job.raise_for_status()

# --- documents ----------------------------------------------------------------------------------

saved = assert_type(SavedState.capture(flow, job, monitor), SavedState)
saved.write("job.json")
saved.write("job.json", key=b"sixteen bytes or more")
assert_type(saved.to_bytes(key=b"sixteen bytes or more"), bytes)
saved = SavedState.read(Path("job.json"), verify=False)
saved = SavedState.read("job.json", key=b"sixteen bytes or more")
assert_type(saved.flow, Flow)
assert_type(saved.job, JobState)
assert_type(saved.saved_at, float)
assert_type(saved.retry_count, int)
assert_type(saved.monitor_summary, dict[str, int])

# --- what happened ------------------------------------------------------------------------------

assert_type(monitor.events, list[HistoryRecord])
assert_type(monitor.data_flows, list[DataFlow])
assert_type(monitor.state_changes, list[StateChange])
assert_type(monitor.retries, list[Retry])
assert_type(monitor.retries[0].delay, timedelta)
assert_type(monitor.summary(), dict[str, int])
assert_type(ExecutionMonitor.of(job), ExecutionMonitor)

# --- clocks -------------------------------------------------------------------------------------

fake = FakeClock()
fake.advance(1.5)
fake.move_to("2026-01-03T12:59:03+00:00")
assert_type(fake.now(), datetime)
assert_type(fake.waits, tuple[Wait, ...])
assert_type(SystemClock().now_ns(), int)
assert_type(clock.signal(), Signal)
assert_type(clock.party("mine"), Party)

# --- steps as values ----------------------------------------------------------------------------


def inspect_step(step: StepInput, outcome: StepOutcome) -> bool:
    return step.number == outcome.number


# --- errors -------------------------------------------------------------------------------------


def catch() -> str:
    try:
        job.raise_for_status()
    except (
        UnserializableError,
        CorruptStateError,
        UnsupportedVersionError,
        UnknownRoutineError,
        FlowMismatchError,
    ) as error:
        of_saved_data: SavedStateError = error
        return f"{of_saved_data.path}: {of_saved_data.reason}"
    except (
        FlowDefinitionError,
        JobFailedError,
        StepTimeoutError,
        StepLimitError,
        PoisonJobError,
        ClockStalledError,
        LeaseLostError,
        DuplicateJobError,
        NotResumableError,
        NoActiveStepError,
        IllegalTransitionError,
    ) as error:
        any_of_ours: RoutiluxError = error
        return str(any_of_ours)
    return routilux.__version__


# --- what a type checker refuses ----------------------------------------------------------------

Flow(execution_strategy="parallel")  # type: ignore[arg-type]
flow.connect("Fetch", "output", "second", "trigger", ["data"])  # type: ignore[arg-type]
flow.execute("Fetch", ["r"])  # type: ignore[arg-type]
flow.add_routine(Fetch)  # type: ignore[arg-type]
flow.set_error_handler("retry")  # type: ignore[arg-type]
handler.max_retries = 3  # type: ignore[misc]
flow.fingerprint = "x"  # type: ignore[misc]
run.job = job  # type: ignore[misc]
