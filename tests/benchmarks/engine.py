"""Benchmarks of the engine, in memory.

Invariants:
- A contestant checks its own result, so that nothing is fast because it does less.
- A job is measured whole, with its history. The cost of an attempt is the difference from a job
  without failures.
"""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

import tenacity

from routilux import (
    ErrorHandler,
    ErrorStrategy,
    Flow,
    Gathered,
    Routine,
    Runtime,
    SavedState,
)
from tests import routines
from tests.benchmarks.race import (
    MILLISECOND,
    Figure,
    Measurement,
    Race,
    Target,
    exponent,
    loop,
    rate,
    time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux import JobState


# --- the cost of a failed attempt ---------------------------------------------------------------


class Flaky(Routine):
    """Fails the first attempts."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("trigger", handler=self.trigger)

    def trigger(self) -> None:
        if self.ctx.attempt <= self.failures:
            raise ValueError("not yet")


def retrying(failures: int, *, delay: float = 0.0, backoff: float = 1.0) -> Flow:
    flow = Flow("retrying")
    flow.add_routine(Flaky(failures), "flaky")
    flow.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=failures,
            retry_delay=delay,
            retry_backoff=backoff,
            retryable_exceptions=(ValueError,),
        )
    )
    return flow


class Plain:
    """The same failures outside of a flow."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise ValueError("not yet")


def with_tenacity(failures: int) -> None:
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(failures + 1),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_exception_type(ValueError),
        sleep=lambda seconds: None,
        reraise=True,
    )
    retrying(Plain(failures))
    assert retrying.statistics["attempt_number"] == failures + 1


def with_routilux(flow: Flow, runtime: Runtime, failures: int) -> None:
    job = flow.execute("flaky", runtime=runtime)
    assert job.status == "completed"
    assert job.retry_count() == failures
    assert len(job.commits) == failures + 2


def retry_overhead(failures: int, rounds: int) -> Measurement:
    """Compare a failed attempt, without delay and with its history, with tenacity."""
    runtime = Runtime()
    many, none = retrying(failures), retrying(0)
    race = Race(
        {
            "tenacity": lambda: with_tenacity(failures),
            "routilux": lambda: with_routilux(many, runtime, failures),
            "tenacity 0": lambda: with_tenacity(0),
            "routilux 0": lambda: with_routilux(none, runtime, 0),
        }
    )

    def figures() -> list[Figure]:
        ours, theirs = (race.cost(n, f"{n} 0", failures) for n in ("routilux", "tenacity"))
        ratio = race.ratio("routilux", "tenacity", less=("routilux 0", "tenacity 0"))
        whole = race.ratio("routilux", "tenacity")
        count = f"{failures:,} failure{'s' * (failures > 1)}"
        measured, against = time(race.cost("routilux")), f"tenacity {time(race.cost('tenacity'))}"
        target = Target(ratio, 0.45, " ×")
        return [
            Figure(f"each of {count}", ratio, time(ours), f"tenacity {time(theirs)}", target),
            Figure(f"a job with {count}", whole, measured, against),
        ]

    return Measurement(race, rounds, figures)


# --- steps a second, and growth -----------------------------------------------------------------


class Source(Routine):
    """Emits `events` events."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.trigger)
        self.define_event("output", ["number"])

    def trigger(self, events: int) -> None:
        for number in range(events):
            self.emit("output", number=number)


class Pass(Routine):
    """Does nothing but pass on what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.input)
        self.define_event("output", ["number"])

    def input(self, number: int) -> None:
        self.emit("output", number=number)


class Countdown(Routine):
    """Sends itself one order after the other, until none is left."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.trigger)
        self.define_event("output", ["left", "sku", "price", "tags"])

    def trigger(
        self, left: int, sku: str = "tea-17", price: float = 4.5, tags: Sequence[str] = ("hot",)
    ) -> None:
        if left:
            self.emit("output", left=left - 1, sku=sku, price=price, tags=["hot", f"{left}"])


def chain(length: int) -> Flow:
    flow = Flow("chain")
    previous = flow.add_routine(Source(), "source")
    for number in range(length):
        routine_id = flow.add_routine(Pass(), f"pass{number}")
        flow.connect(previous, "output", routine_id, "input")
        previous = routine_id
    return flow


def countdown() -> Flow:
    flow = Flow("countdown")
    flow.add_routine(Countdown(), "countdown")
    flow.connect("countdown", "output", "countdown", "trigger")
    return flow


def through_chain(flow: Flow, runtime: Runtime, events: int, length: int) -> None:
    job = flow.execute("source", {"events": events}, runtime=runtime)
    assert job.status == "completed"
    assert len(job.commits) == 2 + events * length
    assert len(job.outputs) == events


def count_down(flow: Flow, runtime: Runtime, steps: int) -> JobState:
    job = flow.execute("countdown", {"left": steps - 1}, runtime=runtime)
    assert job.status == "completed"
    assert len(job.execution_history) == steps
    return job


def throughput(events: int, length: int, rounds: int) -> Measurement:
    """Measure steps a second, in memory, through a chain of no-op routines."""
    flow, runtime = chain(length), Runtime()
    race = Race({"loop": loop, "chain": lambda: through_chain(flow, runtime, events, length)})
    steps = 1 + events * length
    what = f"{events:,} events × {length} routines"
    return Measurement(race, rounds, lambda: [rate(race, "chain", what, steps, 80_000)])


def growth_with_events(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the number of events that are under way at once."""
    flow, runtime = chain(3), Runtime()
    race = Race({str(n): _apart(_bind(through_chain, flow, runtime, n, 3)) for n in sizes})
    return Measurement(race, rounds, lambda: [_growth("growth with events", race)])


def growth_with_history(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the length of a job's history, with one task at a time."""
    flow, runtime = countdown(), Runtime()
    race = Race({str(n): _apart(_bind(count_down, flow, runtime, n)) for n in sizes})
    return Measurement(race, rounds, lambda: [_growth("growth with history", race)])


class Gather(Routine):
    """Counts what it has gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("all", handler=self.count, gather=True)
        self.define_event("output", ["number"])

    def count(self, found: Gathered) -> None:
        self.emit("output", number=len(found))


def gathering() -> Flow:
    flow = Flow("gathering")
    flow.add_routine(Source(), "source")
    flow.add_routine(Gather(), "gather")
    flow.connect("source", "output", "gather", "all")
    return flow


def gather(flow: Flow, runtime: Runtime, deliveries: int) -> None:
    job = flow.execute("source", {"events": deliveries}, runtime=runtime)
    assert [{"number": deliveries}] == [output.data for output in job.outputs]


def deliveries(count: int, rounds: int) -> Measurement:
    """Measure deliveries to a gather a second, in memory, with their emissions."""
    flow, runtime = gathering(), Runtime()
    race = Race({"loop": loop, "gather": _apart(_bind(gather, flow, runtime, count))})
    what = f"{count:,} deliveries to a gather"
    return Measurement(race, rounds, lambda: [rate(race, "gather", what, count, 50_000)])


def growth_with_deliveries(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the number of deliveries to a gather."""
    flow, runtime = gathering(), Runtime()
    race = Race({str(n): _apart(_bind(gather, flow, runtime, n)) for n in sizes})
    return Measurement(race, rounds, lambda: [_growth("growth with deliveries", race)])


def _apart(contestant: Callable[[], object]) -> Callable[[], None]:
    """Keep the collector from the other objects of the process: only long jobs make it run."""

    def run() -> None:
        gc.freeze()
        try:
            contestant()
        finally:
            gc.unfreeze()

    return run


def _growth(what: str, race: Race) -> Figure:
    sizes = [float(size) for size in race.costs]
    rounds = zip(*race.costs.values(), strict=True)
    power = median(exponent(zip(sizes, costs, strict=True)) for costs in rounds)
    first, *_, last = race.costs
    measured = f"{time(race.cost(first))} to {time(race.cost(last))}"
    against = f"exponent for {int(last) // int(first)} × as many"
    return Figure(what, power, measured, against, Target(power, 1.1))


# --- saving and loading -------------------------------------------------------------------------


def save_and_load(records: int, rounds: int) -> Measurement:
    """Compare capture, writing and reading of a document, in memory, to json's own two ways.

    What json writes and reads has each commit in full, not as a row of few bytes.
    """
    flow = countdown()
    job = count_down(flow, Runtime(), records)
    text = SavedState.capture(flow, job).to_bytes()
    document = json.loads(text)
    document["job_state"]["commits"] = [json.loads(commit.dumps()) for commit in job.commits]

    def ours() -> None:
        saved = SavedState.from_bytes(SavedState.capture(flow, job).to_bytes())
        assert saved.job.seq == job.seq

    def theirs() -> None:
        json.loads(json.dumps(document))

    race = Race({"routilux": ours, "json": theirs})

    def figures() -> list[Figure]:
        ratio = race.ratio("routilux", "json")
        return [
            Figure(
                f"save and load {records:,} records",
                ratio,
                f"{time(race.cost('routilux'))}, {len(text) / records:,.0f} B each",
                f"json {time(race.cost('json'))}",
                Target(ratio, 5, " ×"),
            )
        ]

    return Measurement(race, rounds, figures)


# --- the end of a job ---------------------------------------------------------------------------


def return_latency(workers: int | None, rounds: int) -> Measurement:
    """Compare the time from the last handler's return to that of `execute` with a bare thread's."""
    returned = 0

    def body(self: Routine, n: object = 0) -> None:
        nonlocal returned
        returned = perf_counter_ns()

    flow = routines.chain(last=body, workers=workers)
    runtime = Runtime()
    threads = ThreadPoolExecutor(1)

    def last() -> int:
        job = flow.execute("last", runtime=runtime)
        waited = perf_counter_ns() - returned
        assert job.status == "completed"
        return waited

    def thread() -> int:
        ended = threads.submit(perf_counter_ns).result()
        return perf_counter_ns() - ended

    race = Race({"last": last, "thread": thread}, perf_counter_ns)

    def figures() -> list[Figure]:
        threads.shutdown()
        cost = race.cost("last")
        return [
            Figure(
                f"return of execute, {flow.execution_strategy}",
                race.ratio("last", "thread"),
                f"{time(cost)}, worst {time(max(race.costs['last']))}",
                f"return of a future {time(race.cost('thread'))}",
                Target(cost / MILLISECOND, 1, " ms"),
            )
        ]

    return Measurement(race, rounds, figures)


def _bind(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)
