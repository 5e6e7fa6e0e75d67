"""Benchmarks of many jobs that share a store: on one host, on several, and while they wait.

Invariants:
- Writing to the disk is compared with the bare `sqlite3` module in the same run, in turns.
- Hosts are processes that start before the clock runs, on a file that was filled before it runs.
- Each job is late by the time between its due time and the start of its next attempt.
"""

from __future__ import annotations

import gc
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from os import getpid
from pathlib import Path
from statistics import median
from threading import Event
from time import perf_counter_ns
from typing import TYPE_CHECKING

from routilux import (
    CommitKind,
    ErrorHandler,
    RetryAfter,
    Routine,
    Runtime,
    SqliteStore,
    SystemClock,
    Worker,
)
from routilux.clocks.durations import SECOND
from tests.benchmarks.durability import (
    _file,
    _hurried,
    _store,
    against_rows,
    bare_rows,
    counter,
    together,
)
from tests.benchmarks.race import Figure, Measurement, Race, Target, time
from tests.routines import chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux import Clock, Commit, JobState


def group_commit(jobs: int, steps: int, rounds: int) -> Measurement:
    """Compare the steps of jobs that run at once, on one host, with the same rows one by one."""
    flow = counter(steps)
    store = _store()
    runtime = Runtime(store=store)
    rows = store.rows(flow.execute("counts", runtime=runtime).job_id)
    race = Race(
        {
            "sqlite3": bare_rows(rows, runtime.owner),
            "routilux": together(flow, runtime, jobs, len(rows)),
        },
        perf_counter_ns,
    )
    what = f"durable steps, SqliteStore, {jobs} jobs"
    return Measurement(
        race,
        rounds,
        lambda: [against_rows(race, "routilux", "sqlite3", what, len(rows), 1, jobs)],
    )


# --- several hosts --------------------------------------------------------------------------------


def _run_worker(path: Path) -> None:
    with SqliteStore(path) as store:
        Worker(store, [counter(3)]).run(until_idle=True)


class _Hosts:
    """Processes that each run a worker until the jobs of the next file are done."""

    def __init__(self, number: int, files: Sequence[Path]) -> None:
        spawn = get_context("spawn")
        self._files = iter(files)
        self._hosts = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(number)]
        for host in self._hosts:
            host.submit(getpid).result()

    def __call__(self) -> None:
        path = next(self._files)
        for run in [host.submit(_run_worker, path) for host in self._hosts]:
            run.result()

    def close(self) -> None:
        for host in self._hosts:
            host.shutdown()


def workers(numbers: Sequence[int], jobs: int, rounds: int) -> Measurement:
    """Compare the jobs a second, of three steps each, of so many workers with bare rows."""
    flow, bare = counter(3), Runtime(store=_store())
    rows = bare.store.rows(flow.execute("counts", runtime=bare).job_id)
    insert = bare_rows(rows, bare.owner)
    with SqliteStore(_file()) as store, _hurried(store):
        runtime = Runtime(store=store)
        for number in range(jobs):
            runtime.submit(flow, "counts", job_id=f"job-{number}")
    files = {n: [shutil.copy(store.path, _file()) for _ in range(rounds + 1)] for n in numbers}
    hosts = {n: _Hosts(n, files[n]) for n in numbers}

    def only_rows() -> None:
        for _ in range(jobs):
            insert()

    race = Race({"sqlite3": only_rows, **{f"{n}": hosts[n] for n in numbers}}, perf_counter_ns)

    def figures() -> list[Figure]:
        for host in hosts.values():
            host.close()
        for path in (files[n][0] for n in numbers):
            with SqliteStore(path) as done:
                assert done.free_in(["counter"]) is None
                assert all(len(done.rows(f"job-{number}")) == 5 for number in range(jobs))
        rates = {name: jobs * 10**9 / race.cost(name) for name in race.costs}
        return [
            Figure(
                f"jobs of 3 steps, {n} worker{'s' * (n > 1)}",
                race.ratio(f"{n}", "sqlite3"),
                f"{rates[f'{n}']:,.0f} /s",
                f"sqlite3, their rows {rates['sqlite3']:,.0f} /s",
            )
            for n in numbers
        ]

    return Measurement(race, rounds, figures)


# --- waiting --------------------------------------------------------------------------------------


def _resident() -> int:
    """Return how many bytes of memory this process uses now."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize()


def waiting_jobs(jobs: int, pace: float, lead: float, clock: Clock | None = None) -> Measurement:
    """Let jobs wait at once, one to wake every `pace` seconds, the first after `lead` seconds."""
    clock = clock or SystemClock()
    numbers = count()
    begins: list[float] = []
    late: list[int] = []
    waited: list[int] = []
    held: list[int] = []
    all_wait = Event()

    def body(self: Routine, n: object = 0) -> None:
        if self.ctx.attempt == 1:
            due = begins[0] + lead + next(numbers) * pace
            raise RetryAfter(due - self.ctx.now().timestamp())

    flow = chain(waits=body)
    flow.set_error_handler(ErrorHandler("retry", max_retries=1))

    class Watch:
        """Keeps how late each retry started, but no job."""

        def __init__(self) -> None:
            self.due: dict[str, int] = {}

        def on_commit(self, job: JobState, commit: Commit) -> None:
            if commit.kind is CommitKind.RETRY:
                self.due[job.job_id] = commit.due_ns or 0
                if len(self.due) == jobs:
                    gc.collect()
                    held.append(_resident())
                    all_wait.set()
            elif commit.kind is CommitKind.DONE:
                waited.append(len(self.due))
                late.append((commit.started_ns or 0) - self.due[job.job_id])

    store = _store()
    runtime = Runtime(clock=clock, store=store, observers=[Watch()])

    def wait() -> None:
        gc.collect()
        held.append(_resident())
        begins.append(clock.now_ns() / SECOND)
        with _hurried(store):
            runs = [flow.start("waits", runtime=runtime) for _ in range(jobs)]
            all_wait.wait()
        for run in runs:
            run.wait()

    def overslept() -> int:
        began = perf_counter_ns()
        Event().wait(pace)
        return perf_counter_ns() - began - round(pace * SECOND)

    def figures() -> list[Figure]:
        assert waited == [jobs] * jobs, "some jobs woke before the last one waited"
        late.sort()
        each = (held[1] - held[0]) / jobs / 2**10
        bare = median(overslept() for _ in range(100))
        return [
            Figure(f"{jobs:,} jobs that wait for a timer", each, f"{each:.2f} KiB each", "1 KiB"),
            Figure(
                f"how late each of {jobs:,} jobs wakes",
                median(late) / bare,
                f"{time(median(late))}, at most {time(late[-1])}",
                f"a thread that sleeps {time(bare)}",
            ),
        ]

    return Measurement(Race({"wait": wait}, perf_counter_ns), 1, figures)


def long_history(steps: int) -> Measurement:
    """Run a job of so many steps with a `history_limit`, and its whole history in the store."""
    held: dict[int, int] = {}
    tenth = steps // 10

    class Watch:
        def on_commit(self, job: JobState, commit: Commit) -> None:
            if commit.seq % tenth == 0:
                gc.collect()
                held[commit.seq // tenth] = _resident()

    store = _store()
    runtime = Runtime(store=store, history_limit=100, observers=[Watch()])
    flow = counter(steps)
    sizes: list[float] = []

    def execute() -> None:
        with _hurried(store):
            job = flow.execute("counts", job_id="long", runtime=runtime)
        assert job.seq == steps + 1
        assert len(job.commits) < 200
        rows = store.rows("long")
        assert len(rows) == steps + 1
        sizes.append(sum(map(len, rows)) / len(rows))
        store.close()

    def figures() -> list[Figure]:
        growth = held[10] / held[1]
        each = store.path.stat().st_size / steps
        return [
            Figure(
                f"memory after {steps:,} steps, history_limit=100",
                growth,
                f"{held[10] / 2**20:.1f} MiB",
                f"after {tenth:,} steps {held[1] / 2**20:.1f} MiB",
                Target(growth, 1.1, " ×"),
            ),
            Figure(
                "bytes of a step in the file",
                each / sizes[0],
                f"{each:,.0f}",
                f"row {sizes[0]:,.0f}",
            ),
        ]

    return Measurement(Race({"execute": execute}, perf_counter_ns), 1, figures)
