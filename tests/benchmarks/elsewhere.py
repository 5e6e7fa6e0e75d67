"""Benchmarks of steps in threads, in other processes and on Dask, against the bare executor.

Invariants:
- A step in another process costs wall time; contestants take turns in the same cluster or pool.
- The cluster is real: a scheduler and worker processes on loopback.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time as real
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import pytest

from routilux import Flow, Routine, Runtime
from tests.benchmarks.asynchronous import _fresh
from tests.benchmarks.crowds import _resident
from tests.benchmarks.race import MILLISECOND, Figure, Measurement, Race, Target, percent, time
from tests.engine.remote.dask_parts import Part


class Split(Routine):
    """Emits the numbers below `n`."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.split)
        self.define_event("out", ["n"])

    def split(self, n: int) -> None:
        for each in range(n):
            self.emit("out", n=each)


class Work(Routine):
    """Does nothing, waits, or computes."""

    max_concurrency = 64

    def __init__(self, wait: float = 0, turns: int = 0) -> None:
        super().__init__()
        self.wait = wait
        self.turns = turns
        self.define_slot("trigger", handler=self.work)

    def work(self, n: int = 0, text: str = "") -> None:
        if self.wait:
            real.sleep(self.wait)
        for _ in range(self.turns):
            n += n & 3


class Dies(Routine):
    """Ends its process in its first run; `path` is where both runs note the time."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.define_slot("trigger", handler=self.die)

    def die(self) -> None:
        die(self.path)


def die(path: str) -> None:
    """Note the time, and in the first run end the process."""
    first = not Path(path).exists()
    with Path(path).open("a") as file:
        file.write(f"{perf_counter_ns()}\n")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)


def nothing(n: int, data: bytes = b"") -> None:
    """Do nothing."""


def one(**options: Any) -> Flow:
    flow = Flow("one")
    flow.add_routine(Work(**options), "work")
    return flow


def fan_out(width: int, **options: Any) -> Flow:
    flow = Flow("fan", execution_strategy="concurrent", max_workers=width)
    if width == 1:
        flow = Flow("fan")
    flow.add_routine(Split(), "split")
    flow.add_routine(Work(**options), "work")
    flow.connect("split", "out", "work", "trigger")
    return flow


@contextmanager
def cluster(workers: int = 2) -> Iterator[Any]:
    """Start a Dask cluster and return a client of it."""
    distributed = pytest.importorskip("distributed")
    options = {"dashboard_address": None, "worker_dashboard_address": None, "host": "127.0.0.1"}
    with (
        distributed.LocalCluster(workers, threads_per_worker=1, **options) as scheduler,
        distributed.Client(scheduler) as client,
    ):
        yield client


# --- threads --------------------------------------------------------------------------------------


def waits_in_threads(steps: int, rounds: int) -> Measurement:
    """Compare handlers that wait 1 ms in 4 and 8 threads with one thread; and no-ops."""

    def run(width: int, tasks: int, wait: float) -> Callable[[], None]:
        flow, runtime = fan_out(width, wait=wait), Runtime()
        return lambda: flow.execute("split", {"n": tasks}, runtime=runtime).raise_for_status()

    widths = (4, 8)
    contestants: dict[str, Callable[[], int | None]] = {"1": run(1, steps, 0.001)}
    contestants |= {str(width): run(width, steps * width, 0.001) for width in widths}
    contestants |= {"sequential": run(1, 4 * steps, 0), "concurrent": run(4, 4 * steps, 0)}
    race = Race(contestants, perf_counter_ns)

    def figures() -> list[Figure]:
        found = [
            Figure(
                f"waits of 1 ms in {width} threads",
                race.ratio(str(width), "1"),
                f"{time(race.cost(str(width), parts=steps * width))} a step",
                f"1 thread {time(race.cost('1', parts=steps))}",
                Target(race.ratio("1", str(width)), 0.95, " × linear", least=True),
            )
            for width in widths
        ]
        share = race.ratio("sequential", "concurrent")
        return [
            *found,
            Figure(
                "no-ops in 4 threads",
                1 / share,
                f"{time(race.cost('concurrent', parts=4 * steps))} a step",
                f"sequential {time(race.cost('sequential', parts=4 * steps))}",
                percent(share, 0.8),
            ),
        ]

    return Measurement(race, rounds, figures)


# --- processes ------------------------------------------------------------------------------------


class _Pools:
    """Pools of one and of two processes, closed by the last figure."""

    def __init__(self, turns: int, steps: int) -> None:
        spawn = get_context("spawn")
        self.pools = {size: ProcessPoolExecutor(size, spawn) for size in (1, 2)}
        self._runtimes = {size: Runtime(executor=pool) for size, pool in self.pools.items()}
        self._turns, self._steps = turns, steps

    def run(self, size: int) -> None:
        flow = fan_out(size, turns=self._turns)
        if size == 1:
            flow = fan_out(2, turns=self._turns)
        runtime = self._runtimes[size]
        flow.execute("split", {"n": self._steps}, runtime=runtime).raise_for_status()

    def bare(self, size: int) -> None:
        list(self.pools[size].map(_compute, [self._turns] * self._steps))

    def close(self) -> None:
        for size, pool in self.pools.items():
            self._runtimes[size].close()
            pool.shutdown()


def _compute(turns: int) -> None:
    Work(turns=turns).work()


def two_cores(turns: int, steps: int, rounds: int) -> Measurement:
    """Compare handlers that compute in two processes with one, and with the bare pools."""
    pools = _Pools(turns, steps)
    race = Race(
        {
            "one": lambda: pools.run(1),
            "two": lambda: pools.run(2),
            "bare one": lambda: pools.bare(1),
            "bare two": lambda: pools.bare(2),
        },
        perf_counter_ns,
    )

    def figures() -> list[Figure]:
        pools.close()
        gain, bare = race.ratio("one", "two"), race.ratio("bare one", "bare two")
        return [
            Figure(
                "computing in 2 processes",
                1 / gain,
                f"{time(race.cost('two', parts=steps))} a step, {gain:.2f} × one process",
                f"the bare pools {bare:.2f} ×",
                Target(gain, 1.7, " × one", least=True),
            )
        ]

    return Measurement(race, rounds, figures)


class _Weighs(Executor):
    """Counts the bytes of each call and of its result, as a pool of processes sends them."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.returned: list[int] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        result = fn(*args, **kwargs)
        if args:
            self.sent.append(len(pickle.dumps((fn, args, kwargs))))
            self.returned.append(len(pickle.dumps(result)))
        future.set_result(result)
        return future


def bytes_of_a_step(size: int) -> Measurement:
    """Weigh a step whose payload has `size` bytes."""
    executor = _Weighs()

    def execute() -> None:
        with Runtime(executor=executor) as runtime:
            job = one().execute("work", {"text": "x" * size}, runtime=runtime)
            job.raise_for_status()

    def figures() -> list[Figure]:
        sent, returned = executor.sent[-1], executor.returned[-1]
        return [
            Figure(
                f"bytes of a step, payload of {size:,}",
                sent / size,
                f"{sent:,} sent, {returned:,} returned",
                f"a payload of {size:,}",
                Target(sent + returned, size * 2.5, " bytes"),
            )
        ]

    return Measurement(Race({"execute": execute}, perf_counter_ns), 1, figures)


# --- Dask -----------------------------------------------------------------------------------------


def dask_steps(steps: int, rounds: int) -> Measurement:
    """Compare a step that does nothing with `Client.submit` of a function that does nothing."""
    each: dict[str, list[float]] = {"routilux": [], "bare": []}

    def measure() -> None:
        numbers = iter(range(10**9))
        with cluster() as client, Runtime(executor=client.get_executor()) as runtime:
            flow = one()

            def ours() -> None:
                flow.execute("work", runtime=runtime).raise_for_status()

            def bare() -> None:
                client.submit(nothing, next(numbers)).result()

            ours()
            bare()
            for _ in range(rounds):
                for name, call in (("routilux", ours), ("bare", bare)):
                    began = perf_counter_ns()
                    for _ in range(steps):
                        call()
                    each[name].append((perf_counter_ns() - began) / steps)

    def figures() -> list[Figure]:
        pairs = zip(each["routilux"], each["bare"], strict=True)
        ratio = median(ours / bare for ours, bare in pairs)
        return [
            Figure(
                "a step on Dask",
                ratio,
                time(median(each["routilux"])),
                f"Client.submit {time(median(each['bare']))}",
                Target(ratio, 1.2, " ×"),
            )
        ]

    return Measurement(Race({"measure": measure}, perf_counter_ns), 1, figures)


def _memory(tasks: int, width: int, kind: str) -> int:
    """Return how many bytes a fan-out adds to the process that runs the job.

    The scheduler is another process: a `LocalCluster` would keep its records in this one.
    """

    def most(run: Callable[[int], object]) -> int:
        run(width)
        before = _resident()
        run(tasks)
        return _resident() - before

    def execute(runtime: Runtime) -> Callable[[int], object]:
        return lambda n: fan_out(width).execute("split", {"n": n}, runtime=runtime)

    if kind == "threads":
        return most(execute(Runtime(history_limit=100)))
    import distributed

    with ExitStack() as stack:
        scheduler = stack.enter_context(Part())
        for _ in range(2):
            stack.enter_context(Part(scheduler.port, "worker"))
        executor = stack.enter_context(distributed.Client(scheduler.address)).get_executor()
        if kind == "dask":
            return most(execute(Runtime(executor=executor, history_limit=100)))
        return most(lambda n: _submit_bare(executor, n, width))


def _submit_bare(executor: Executor, tasks: int, width: int) -> None:
    """Make calls of the size of a step, so many at once."""
    flying: set[Future[None]] = set()
    for n in range(tasks):
        flying.add(executor.submit(nothing, n, b"%d" % tasks + b"x" * 600))
        if len(flying) == width:
            _, flying = wait(flying, return_when=FIRST_COMPLETED)
    wait(flying)


def memory_of_the_owner(tasks: int, width: int) -> Measurement:
    """Compare the memory of a fan-out on Dask with that of the fan-out in threads and bare Dask."""
    pytest.importorskip("distributed")
    most: dict[str, int] = {}

    def measure() -> None:
        for kind in ("dask", "threads", "bare"):
            most[kind] = _fresh(_memory, tasks, width, kind)

    def figures() -> list[Figure]:
        ratio = most["dask"] / max(most["threads"] + most["bare"], 1)
        return [
            Figure(
                f"memory of {tasks:,} tasks on Dask",
                ratio,
                f"{most['dask'] / 2**20:.1f} MiB",
                f"threads {most['threads'] / 2**20:.1f} + bare {most['bare'] / 2**20:.1f} MiB",
                Target(ratio, 1.2, " ×"),
            )
        ]

    return Measurement(Race({"measure": measure}, perf_counter_ns), 1, figures)


def death_of_a_worker(rounds: int) -> Measurement:
    """Compare the time from the death of a worker to the next run with that of bare Dask."""
    each: dict[str, list[int]] = {"routilux": [], "bare": []}

    def measure() -> None:
        with tempfile.TemporaryDirectory() as folder, cluster() as client:
            for number in range(rounds):
                path = f"{folder}/{number}"
                flow = Flow("dies")
                flow.add_routine(Dies(path), "dies")
                with Runtime(executor=client.get_executor()) as runtime:
                    flow.execute("dies", runtime=runtime).raise_for_status()
                each["routilux"].append(_between(path))
                client.wait_for_workers(2)
                client.submit(die, f"{path}.bare").result()
                each["bare"].append(_between(f"{path}.bare"))
                client.wait_for_workers(2)

    def figures() -> list[Figure]:
        ours, bare = median(each["routilux"]), median(each["bare"])
        return [
            Figure(
                "a dead worker of Dask to the next run",
                ours / bare,
                time(ours),
                f"bare Dask {time(bare)}",
                Target((ours - bare) / MILLISECOND, 1000, " ms more"),
            )
        ]

    return Measurement(Race({"measure": measure}, perf_counter_ns), 1, figures)


def _between(path: str) -> int:
    first, second = map(int, Path(path).read_text().split())
    return second - first
