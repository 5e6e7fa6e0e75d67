"""What is measured: each function takes sizes and returns what runs and what it comes to.

Laws:
- A contestant checks its own result, so that nothing is fast by doing something else.
- A job is measured whole, with its history; where the fixed cost of a job hides the cost per
  attempt, the difference to a job without failures is shown beside it.
"""

from __future__ import annotations

import gc
import json
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

import tenacity

from pytest_routilux.freeze import frozen_clock
from routilux import (
    ErrorHandler,
    ErrorStrategy,
    ExecutionMonitor,
    FakeClock,
    Flow,
    Routine,
    Runtime,
    SavedState,
    use_runtime,
)
from tests.benchmarks.race import Bound, Figure, Measurement, Race, exponent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux import ExecutionStrategy, JobState

__all__ = [
    "growth_with_events",
    "growth_with_history",
    "one_test",
    "retry_overhead",
    "return_latency",
    "save_and_load",
    "throughput",
]

MILLISECOND = 1_000_000


# --- the cost of a failed attempt ---------------------------------------------------------------


class Flaky(Routine):
    """Fails the first `failures` attempts."""

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


def bare_loop(failures: int) -> None:
    call = Plain(failures)
    for _ in range(failures + 1):
        try:
            call()
        except ValueError:
            continue
        return
    raise AssertionError("no attempt succeeded")


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
    """Compare a failed attempt, at no delay and with its history, to a loop and to tenacity."""
    runtime = Runtime()
    many, none = retrying(failures), retrying(0)
    race = Race(
        {
            "loop": lambda: bare_loop(failures),
            "tenacity": lambda: with_tenacity(failures),
            "routilux": lambda: with_routilux(many, runtime, failures),
            "no failure, loop": lambda: bare_loop(0),
            "no failure, tenacity": lambda: with_tenacity(0),
            "no failure, routilux": lambda: with_routilux(none, runtime, 0),
        }
    )

    def figures(best: dict[str, int]) -> list[Figure]:
        each = {
            name: max((best[name] - best[f"no failure, {name}"]) / failures, 1)
            for name in ("loop", "tenacity", "routilux")
        }
        ratio = each["routilux"] / each["tenacity"]
        whole = best["routilux"] / best["tenacity"]
        count = f"{failures:,} failure{'s' * (failures > 1)}"
        return [
            Figure(
                f"each of {count}",
                _time(each["routilux"]),
                f"tenacity {_time(each['tenacity'])}, loop {_time(each['loop'])}",
                ratio,
                f"{ratio:.2f} ×",
                Bound(0.45, hard=True, unit=" ×"),
            ),
            Figure(
                f"a job with {count}",
                _time(best["routilux"]),
                f"tenacity {_time(best['tenacity'])}, loop {_time(best['loop'])}",
                whole,
                f"{whole:.2f} ×",
            ),
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
    race = Race({"chain": lambda: through_chain(flow, runtime, events, length)}, perf_counter_ns)

    def figures(best: dict[str, int]) -> list[Figure]:
        steps = 1 + events * length
        rate = steps / best["chain"] * 10**9
        return [
            Figure(
                f"{events:,} events × {length} routines",
                f"{steps:,} steps, {_time(best['chain'])}",
                "",
                rate,
                f"{rate:,.0f} /s",
                Bound(80_000, hard=False, least=True, unit=" /s"),
            )
        ]

    return Measurement(race, rounds, figures)


def growth_with_events(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the number of events that are under way at once."""
    flow, runtime = chain(3), Runtime()
    race = Race({str(n): _apart(_bind(through_chain, flow, runtime, n, 3)) for n in sizes})
    return Measurement(race, rounds, lambda best: [_growth("growth with events", best)])


def growth_with_history(sizes: Sequence[int], rounds: int) -> Measurement:
    """Fit how the cost grows with the length of a job's history, with one task at a time."""
    flow, runtime = countdown(), Runtime()
    race = Race({str(n): _apart(_bind(count_down, flow, runtime, n)) for n in sizes})
    return Measurement(race, rounds, lambda best: [_growth("growth with history", best)])


def _apart(contestant: Callable[[], object]) -> Callable[[], object]:
    """Keep the collector from what the process holds besides: it is walked for long jobs only."""

    def run() -> None:
        gc.freeze()
        try:
            contestant()
        finally:
            gc.unfreeze()

    return run


def _growth(what: str, best: dict[str, int]) -> Figure:
    power = exponent((float(size), cost) for size, cost in best.items())
    first, *_, last = best
    return Figure(
        what,
        f"{_time(best[first])} to {_time(best[last])} for {int(last) // int(first)} ×",
        "",
        power,
        f"n^{power:.3f}",
        Bound(1.10, hard=True),
    )


# --- saving and loading -------------------------------------------------------------------------


def save_and_load(records: int, rounds: int) -> Measurement:
    """Compare capture, writing and reading of a document, in memory, to json's own two ways."""
    flow = countdown()
    job = count_down(flow, Runtime(), records)
    text = SavedState.capture(flow, job).to_bytes()
    document = json.loads(text)

    def ours() -> None:
        saved = SavedState.from_bytes(SavedState.capture(flow, job).to_bytes())
        assert saved.job.seq == job.seq

    race = Race({"routilux": ours, "json": lambda: json.loads(json.dumps(document))})

    def figures(best: dict[str, int]) -> list[Figure]:
        ratio = best["routilux"] / best["json"]
        return [
            Figure(
                f"save and load {records:,} records",
                f"{_time(best['routilux'])}, {len(text) / records:,.0f} B a record",
                f"json {_time(best['json'])}",
                ratio,
                f"{ratio:.1f} ×",
                Bound(5, hard=True, unit=" ×"),
            )
        ]

    return Measurement(race, rounds, figures)


# --- what a test costs --------------------------------------------------------------------------


def _whole_test(clock: FakeClock) -> None:
    monitor = ExecutionMonitor()
    with Runtime(clock=clock, observers=[monitor]) as runtime, use_runtime(runtime):
        job = retrying(4, delay=0.3, backoff=1.5).execute("flaky")
    assert job.updated_ns - job.started_ns == 2_437_500_000
    assert len(monitor.retries) == 4


def one_test(rounds: int) -> Measurement:
    """Measure a test of 4 retries, set-up and all, with and without freezegun's part."""

    def bare() -> None:
        _whole_test(FakeClock())

    def frozen() -> None:
        with frozen_clock() as clock:
            _whole_test(clock)

    race = Race({"bare": bare, "frozen": frozen}, perf_counter_ns)

    def figures(best: dict[str, int]) -> list[Figure]:
        return [
            _absolute("4-retry test, flow_clock_bare", "set-up and all", best["bare"], 0.1),
            _absolute("4-retry test, flow_clock", "set-up and all", best["frozen"], 15),
        ]

    return Measurement(race, rounds, figures)


class Last(Routine):
    """Notes when its handler is about to return."""

    returned = 0

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.trigger)

    def trigger(self) -> None:
        Last.returned = perf_counter_ns()


def return_latency(strategy: ExecutionStrategy, rounds: int) -> Measurement:
    """Measure from the return of the last handler to that of `execute`, as a median."""
    flow = Flow("last", execution_strategy=strategy)
    flow.add_routine(Last(), "last")
    runtime = Runtime()
    waits: list[int] = []

    def last() -> None:
        job = flow.execute("last", runtime=runtime)
        waits.append(perf_counter_ns() - Last.returned)
        assert job.status == "completed"

    def figures(best: dict[str, int]) -> list[Figure]:
        what = f"return of execute, {strategy}"
        measured = f"median, worst {_time(max(waits))}"
        return [_absolute(what, measured, round(median(waits)), 1)]

    return Measurement(Race({"last": last}, perf_counter_ns), rounds, figures)


def _absolute(what: str, measured: str, cost: int, milliseconds: float) -> Figure:
    value = cost / MILLISECOND
    bound = Bound(milliseconds, hard=False, unit=" ms")
    return Figure(what, measured, "", value, _time(cost), bound)


def _bind(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _time(nanoseconds: float) -> str:
    """Return a time in the unit that fits, with three digits.

    >>> _time(12_345), _time(1_234_567_890)
    ('12.3 µs', '1.23 s')
    """
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"
