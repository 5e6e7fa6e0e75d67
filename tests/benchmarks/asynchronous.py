"""Benchmarks of async handlers, against bare asyncio programs in the same run.

Invariants:
- A bare program creates a task for each step, and keeps the same records as the job.
- Work in memory costs CPU time of the thread of the event loop. Waits on the real clock cost wall
  time.
- Memory is that of a fresh process.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import quantiles
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, TypeVar

from routilux import (
    Commit,
    CommitKind,
    Emission,
    ErrorHandler,
    FakeClock,
    Flow,
    JobStatus,
    Routine,
    Runtime,
)
from routilux.core.gathering import child_id
from routilux.graph.messages import Task
from tests.benchmarks.crowds import _resident
from tests.benchmarks.engine import Source, _apart
from tests.benchmarks.race import MILLISECOND, Figure, Measurement, Race, Target, time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from routilux import JobState

T = TypeVar("T")


def _fresh(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _run(main: Callable[[], Coroutine[object, object, object]]) -> Callable[[], None]:
    return lambda: asyncio.run(main()) and None


# --- steps in memory ----------------------------------------------------------------------------


class Countdown(Routine):
    """Sends itself one number after the other, until 0."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.trigger)
        self.define_event("output", ["left"])

    async def trigger(self, left: int) -> None:
        if left:
            self.emit("output", left=left - 1)


def countdown() -> Flow:
    flow = Flow("countdown")
    flow.add_routine(Countdown(), "countdown")
    flow.connect("countdown", "output", "countdown", "trigger")
    return flow


class Bare:
    """Counts down in a task for each number, and keeps a commit of each."""

    def __init__(self, steps: int) -> None:
        self.commits: list[Commit] = []
        self.ended = asyncio.get_running_loop().create_future()
        self.begin(Task("0", "countdown", "trigger", {"left": steps - 1}, True, -1))

    def begin(self, task: Task) -> None:
        self.running = asyncio.create_task(self.step(task))

    async def step(self, task: Task) -> None:
        started = monotonic_ns()
        emissions: list[Emission] = []
        await self.trigger(emissions, **task.payload)
        tasks = [
            Task(child_id(task.task_id, n), "countdown", "trigger", emission.payload, True, n)
            for n, emission in enumerate(emissions)
        ]
        commit = Commit(
            len(self.commits) + 1,
            CommitKind.DONE,
            monotonic_ns(),
            JobStatus.RUNNING if tasks else JobStatus.COMPLETED,
            task.task_id,
            "countdown",
            1,
            started,
            0,
            tuple(emissions),
            tuple(tasks),
        )
        self.commits.append(commit)
        for each in tasks:
            self.begin(each)
        if not tasks:
            self.ended.set_result(None)

    async def trigger(self, emissions: list[Emission], left: int) -> None:
        if left:
            emissions.append(Emission("output", {"left": left - 1}, True))


def async_steps(steps: int, rounds: int) -> Measurement:
    """Compare a chain of async steps with tasks that do the same without an engine."""
    flow, runtime = countdown(), Runtime()

    def timeless(commits: list[Commit]) -> list[Commit]:
        return [replace(commit, seq=0, at_ns=0, started_ns=0) for commit in commits]

    async def ours() -> None:
        job = await flow.aexecute("countdown", {"left": steps - 1}, runtime=runtime)
        assert job.status == "completed"
        assert len(job.commits) == steps + 1
        kept.append(list(job.commits)[1:])

    async def bare() -> None:
        program = Bare(steps)
        await program.ended
        kept.append(program.commits)

    kept: list[list[Commit]] = []
    asyncio.run(ours())
    asyncio.run(bare())
    assert timeless(kept[0]) == timeless(kept[1])
    kept.clear()

    def run(main: Callable[[], Coroutine[object, object, object]]) -> None:
        asyncio.run(main())
        kept.clear()

    race = Race(
        {"asyncio": _apart(lambda: run(bare)), "routilux": _apart(lambda: run(ours))},
    )

    def figures() -> list[Figure]:
        ratio, each = race.ratio("routilux", "asyncio"), race.cost("routilux", parts=steps)
        theirs = race.cost("asyncio", parts=steps)
        against = f"asyncio, with records {time(theirs)}"
        rate = 10**9 / each
        measured = f"{rate:,.0f} /s, {time(each)}"
        return [
            Figure("each async step", ratio, measured, against, Target(ratio, 3, " ×")),
            Figure(
                "async steps a second",
                each / theirs,
                measured,
                against,
                Target(rate, 25_000, " /s", least=True),
            ),
        ]

    return Measurement(race, rounds, figures)


# --- waits --------------------------------------------------------------------------------------


class Wait(Routine):
    """Waits, many times at once."""

    max_concurrency = 1_000_000

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.define_slot("input", handler=self.wait)

    async def wait(self, number: int) -> None:
        await asyncio.sleep(self.seconds)


def fan_out(seconds: float, workers: int) -> Flow:
    flow = Flow("fan_out", execution_strategy="concurrent", max_workers=workers)
    flow.add_routine(Source(), "source")
    flow.add_routine(Wait(seconds), "wait")
    flow.connect("source", "output", "wait", "input")
    return flow


def waits_at_once(tasks: int, seconds: float, rounds: int) -> Measurement:
    """Let handlers wait at once on the real clock."""
    flow, runtime = fan_out(seconds, tasks), Runtime()

    async def bare() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(asyncio.sleep(seconds))

    async def awaited() -> None:
        job = await flow.aexecute("source", {"events": tasks}, runtime=runtime)
        assert len(job.commits) == tasks + 2

    def executed() -> None:
        job = flow.execute("source", {"events": tasks}, runtime=runtime)
        assert len(job.commits) == tasks + 2

    race = Race(
        {"asyncio": _run(bare), "aexecute": _run(awaited), "execute": executed}, perf_counter_ns
    )

    def figures() -> list[Figure]:
        runtime.threads.close()
        return [
            Figure(
                f"{tasks:,} handlers wait {seconds:g} s, {name}",
                race.ratio(name, "asyncio"),
                time(race.cost(name)),
                f"asyncio {time(race.cost('asyncio'))}",
                Target(race.cost(name) / MILLISECOND / 1_000, 1.5 * seconds, " s"),
            )
            for name in ("aexecute", "execute")
        ]

    return Measurement(race, rounds, figures)


class Fails(Routine):
    """Fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.fail)

    async def fail(self) -> None:
        if self.ctx.attempt == 1:
            raise ConnectionError("not yet")


def await_retries(jobs: int, delay: float) -> tuple[int, float]:
    """Await jobs that all wait for a retry; return the threads, and the memory of a job in KiB."""
    flow, runtime = Flow("fails"), Runtime()
    flow.add_routine(Fails(), "fails")
    flow.set_error_handler(ErrorHandler("retry", max_retries=1, retry_delay=delay))

    async def main() -> tuple[int, float]:
        await flow.aexecute("fails", runtime=runtime)
        gc.collect()
        before = _resident()
        tasks = [asyncio.create_task(flow.aexecute("fails", runtime=runtime)) for _ in range(jobs)]
        await asyncio.sleep(delay / 2)
        gc.collect()
        threads, held = threading.active_count(), _resident() - before
        ended = await asyncio.gather(*tasks)
        assert {2} == {job.routine_states["fails"].attempts for job in ended}
        return threads, held / jobs / 2**10

    return asyncio.run(main())


def awaited_retries(jobs: int, delay: float) -> Measurement:
    """Measure threads and memory of awaited jobs that wait for a retry."""
    found: list[tuple[int, float]] = []
    race = Race({"await": lambda: found.append(_fresh(await_retries, jobs, delay))})

    def figures() -> list[Figure]:
        [(threads, each)] = found
        what = f"{jobs:,} awaited jobs that wait for a retry"
        return [
            Figure(f"threads of {what}", threads, f"{threads}", "1", Target(threads, 10)),
            Figure(what, each, f"{each:.2f} KiB each", "1 KiB", Target(each, 8, " KiB")),
        ]

    return Measurement(race, 1, figures)


class Hangs(Routine):
    """Waits for ever, and notes when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.hang)

    async def hang(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(perf_counter_ns())


cancelled: list[int] = []


def cancellation(timeout: float, rounds: int) -> Measurement:
    """Measure how late after its timeout a coroutine begins its `finally`."""
    flow, runtime = Flow("hangs"), Runtime()
    flow.add_routine(Hangs(), "hangs")
    flow.set_error_handler(ErrorHandler("continue", timeout=timeout))
    runner = asyncio.Runner()

    def late(began: int) -> int:
        return cancelled.pop() - began - round(timeout * 1_000 * MILLISECOND)

    def bare() -> int:
        async def main() -> int:
            began = perf_counter_ns()
            try:
                async with asyncio.timeout(timeout):
                    try:
                        await asyncio.get_running_loop().create_future()
                    finally:
                        cancelled.append(perf_counter_ns())
            except TimeoutError:
                pass
            return late(began)

        return runner.run(main())

    def awaited() -> int:
        async def main() -> int:
            began = perf_counter_ns()
            await flow.aexecute("hangs", runtime=runtime)
            return late(began)

        return runner.run(main())

    def executed() -> int:
        began = perf_counter_ns()
        flow.execute("hangs", runtime=runtime)
        return late(began)

    race = Race({"asyncio": bare, "aexecute": awaited, "execute": executed}, perf_counter_ns)

    def figures() -> list[Figure]:
        runner.close()
        runtime.threads.close()
        found = []
        for name in ("aexecute", "execute"):
            most = quantiles(race.costs[name], n=100)[98]
            found.append(
                Figure(
                    f"timeout to finally, {name}",
                    race.ratio(name, "asyncio"),
                    f"{time(race.cost(name))}, 99 % in {time(most)}",
                    f"asyncio.timeout {time(race.cost('asyncio'))}",
                    Target(most / MILLISECOND, 5, " ms"),
                )
            )
        return found

    return Measurement(race, rounds, figures)


class Sleeps(Routine):
    """Sleeps many times."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.sleep)

    async def sleep(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(1)


def virtual_sleeps(times: int, rounds: int) -> Measurement:
    """Compare sleeps in virtual time with as many tasks that only give up their turn."""
    clock = FakeClock()
    flow, runtime = Flow("sleeps"), Runtime(clock=clock)
    flow.add_routine(Sleeps(), "sleeps")

    def virtual() -> None:
        began = clock.monotonic_ns()
        with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
            runner.run(flow.aexecute("sleeps", {"times": times}, runtime=runtime))
        assert clock.monotonic_ns() - began == times * 1_000 * MILLISECOND

    async def turns() -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    race = Race({"asyncio": _run(turns), "virtual": virtual})

    def figures() -> list[Figure]:
        cost = race.cost("virtual")
        return [
            Figure(
                f"{times:,} virtual sleeps in a handler",
                race.ratio("virtual", "asyncio"),
                time(cost),
                f"asyncio.sleep(0) {time(race.cost('asyncio'))}",
                Target(cost / MILLISECOND, 100, " ms"),
            )
        ]

    return Measurement(race, rounds, figures)


# --- memory of a fan-out ------------------------------------------------------------------------


class Watch:
    """Keeps the most memory of the process, at every hundredth commit."""

    def __init__(self) -> None:
        self.most = 0

    def on_commit(self, job: JobState, commit: Commit) -> None:
        if commit.seq % 100 == 0 or commit.status is JobStatus.COMPLETED:
            self.most = max(self.most, _resident())


def most_memory(tasks: int, workers: int) -> int:
    """Return how many bytes a fan-out adds to the memory of a process at most."""
    flow, watch = fan_out(0, workers), Watch()
    runtime = Runtime(observers=[watch], history_limit=100)
    asyncio.run(flow.aexecute("source", {"events": 10}, runtime=runtime))
    gc.collect()
    before = _resident()
    job = asyncio.run(flow.aexecute("source", {"events": tasks}, runtime=runtime))
    assert job.seq == tasks + 2
    return watch.most - before


def memory_of_fan_outs(few: int, many: int, workers: int) -> Measurement:
    """Compare the memory of each task of a large fan-out with that of a small one."""
    each: list[float] = []

    def measure() -> None:
        each.extend(_fresh(most_memory, tasks, workers) / tasks for tasks in (few, many))

    def figures() -> list[Figure]:
        ratio = each[1] / max(each[0], 1)
        return [
            Figure(
                f"memory of a task, fan-out of {many:,}",
                ratio,
                f"{each[1] / 2**10:.2f} KiB",
                f"fan-out of {few:,} {each[0] / 2**10:.2f} KiB",
                Target(ratio, 1.1, " ×"),
            )
        ]

    return Measurement(Race({"measure": measure}, perf_counter_ns), 1, figures)
