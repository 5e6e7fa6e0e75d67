"""What many jobs cost that share a store: on one host, on several, and while they wait.

Laws:
- What the disk does is compared with the bare `sqlite3` module in the same run, in turns.
- Hosts are processes of their own, begun before the clock runs, on a file filled before it runs.
- A job that waits is told to before the clock runs; how late it wakes is told by its own commits.
"""

from __future__ import annotations

import gc
import resource
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from statistics import median
from threading import Event
from time import perf_counter_ns
from typing import TYPE_CHECKING

from routilux import (
    CommitKind,
    ErrorHandler,
    Flow,
    RetryAfter,
    Routine,
    Runtime,
    SqliteStore,
    SystemClock,
)
from routilux.instants import SECOND
from tests.benchmarks.durability import _file, _hurried, _store, bare_rows, counter
from tests.benchmarks.measurements import _time
from tests.benchmarks.race import Bound, Figure, Measurement, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux import Clock, Commit, JobState

__all__ = ["group_commit", "long_history", "waiting_jobs", "workers"]


def group_commit(jobs: int, steps: int, rounds: int) -> Measurement:
    """Compare the steps of jobs that run at once, on one host, with the same rows one by one."""
    flow = counter(steps)
    store = _store()
    runtime = Runtime(store=store)
    rows = store.rows(flow.execute("counts", runtime=runtime).job_id)
    insert = bare_rows(rows, runtime.owner)

    def together() -> None:
        runs = [flow.start("counts", runtime=runtime) for _ in range(jobs)]
        assert all(run.wait().seq == len(rows) for run in runs)

    def figures(best: dict[str, int]) -> list[Figure]:
        alone = len(rows) * 10**9 / best["sqlite3"]
        rate = jobs * len(rows) * 10**9 / best["routilux"]
        return [
            Figure(
                f"durable steps a second, {jobs} jobs at once",
                f"{rate:,.0f}",
                f"{alone:,.0f} rows of sqlite3, one by one",
                rate / alone,
                f"{rate / alone:.0%}",
                Bound(1.0, hard=False, least=True),
            )
        ]

    race = Race({"sqlite3": insert, "routilux": together}, perf_counter_ns)
    return Measurement(race, rounds, figures)


# --- several hosts --------------------------------------------------------------------------------

_HOST = """
import sys
from routilux import Runtime, SqliteStore, Worker
from tests.benchmarks.durability import counter
flow = counter(3)
print("ready", flush=True)
for line in sys.stdin:
    with SqliteStore(line.strip()) as store:
        Worker(store, [flow]).run(until_idle=True)
    print("idle", flush=True)
"""


class _Hosts:
    """Processes that each run a worker until the jobs of a file are done."""

    def __init__(self, number: int, files: Sequence[Path], jobs: int) -> None:
        self._files = iter(files)
        self._jobs = jobs
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _HOST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            for _ in range(number)
        ]
        self._hear("ready")

    def __call__(self) -> None:
        self._tell(next(self._files))
        self._hear("idle")

    def close(self) -> None:
        for process in self._processes:
            process.communicate()

    def _tell(self, path: Path) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()

    def _hear(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout is not None
            assert word == process.stdout.readline().strip()


def workers(numbers: Sequence[int], jobs: int, rounds: int) -> Measurement:
    """Measure how many jobs, of three steps each, so many workers finish in a second."""
    flow = counter(3)
    with SqliteStore(_file()) as store, _hurried(store):
        runtime = Runtime(store=store)
        for number in range(jobs):
            runtime.submit(flow, "counts", job_id=f"job-{number}")
    files = {n: [shutil.copy(store.path, _file()) for _ in range(rounds + 1)] for n in numbers}
    hosts = {n: _Hosts(n, files[n], jobs) for n in numbers}
    race = Race({f"{n}": hosts[n] for n in numbers}, perf_counter_ns)

    def figures(best: dict[str, int]) -> list[Figure]:
        for host in hosts.values():
            host.close()
        for path in (files[n][0] for n in numbers):
            with SqliteStore(path) as done:
                assert done.free_in(["counter"]) is None
                assert all(len(done.rows(f"job-{number}")) == 5 for number in range(jobs))
        rates = {n: jobs * 10**9 / best[f"{n}"] for n in numbers}
        return [
            Figure(
                f"jobs a second with {n} worker{'s' * (n > 1)}",
                "jobs of 3 steps, from submitted to completed",
                "" if n == numbers[0] else f"{rates[n] / rates[numbers[0]]:.2f} × of one",
                rates[n],
                f"{rates[n]:,.0f}",
            )
            for n in numbers
        ]

    return Measurement(race, rounds, figures)


# --- waiting --------------------------------------------------------------------------------------


class Waits(Routine):
    """Fails once, to be tried again at the instant that `due` gives."""

    def __init__(self, due: Callable[[], float]) -> None:
        super().__init__()
        self.due = due
        self.define_slot("trigger", handler=self.trigger)
        self.set_error_handler(ErrorHandler("retry", max_retries=1))

    def trigger(self) -> None:
        if self.ctx.attempt == 1:
            raise RetryAfter(self.due() - self.ctx.now().timestamp())


def _resident() -> int:
    """Return how many bytes of memory this process holds now."""
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

    def due() -> float:
        return begins[0] + lead + next(numbers) * pace

    flow = Flow("waiting")
    flow.add_routine(Waits(due), "waits")

    class Watch:
        """Keeps how late each job was tried again, and no job."""

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

    def figures(best: dict[str, int]) -> list[Figure]:
        assert waited == [jobs] * jobs, "some woke before the last had begun to wait"
        late.sort()
        each = (held[1] - held[0]) / jobs
        return [
            Figure(
                f"{jobs:,} jobs that wait for a timer",
                f"{(held[1] - held[0]) / 2**20:.1f} MiB in all",
                "",
                each,
                f"{each / 2**10:.2f} KiB each",
            ),
            Figure(
                f"how late each of {jobs:,} jobs wakes",
                f"median {_time(median(late))}, 99 % {_time(late[len(late) * 99 // 100])}",
                f"one due every {_time(pace * 10**9)}",
                late[-1],
                f"{_time(late[-1])} at most",
            ),
        ]

    return Measurement(Race({"wait": wait}, perf_counter_ns), 1, figures)


def long_history(steps: int) -> Measurement:
    """Run a job of so many steps with a `history_limit`; its whole history is in the store."""
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

    def figures(best: dict[str, int]) -> list[Figure]:
        growth = held[10] / held[1]
        each = store.path.stat().st_size / steps
        return [
            Figure(
                f"memory after {steps:,} steps",
                f"{held[10] / 2**20:.1f} MiB with history_limit=100",
                f"{held[1] / 2**20:.1f} MiB after {tenth:,}",
                growth,
                f"{growth:.3f} ×",
                Bound(1.1, hard=False),
            ),
            Figure(
                "bytes of a step in the store",
                f"rows of {sizes[0]:,.0f} bytes on average",
                f"the file of {steps:,} steps",
                each,
                f"{each:,.0f}",
            ),
        ]

    return Measurement(Race({"execute": execute}, perf_counter_ns), 1, figures)
