"""Backpressure: jobs and routines take turns, and no step looks at all the others in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from routilux import FakeClock, Flow, JobState, Routine, Runtime, StepInput
from routilux.engine.drive import Drive
from routilux.engine.loop import _TURN
from tests.routines import Body, Wide, arun, chain, ended_at, fan, outputs, retrying, sends, sleeps

TOGETHER = pytest.mark.parametrize("how", ["start", "aexecute"])


def together(how: str, runtime: Runtime, flows: Sequence[tuple[Flow, str]]) -> list[JobState]:
    """Run one job of each flow, all at the same time; their ids are `0`, `1`, …"""
    if how == "start":
        with runtime.environment.lock:  # so that no job has a head start
            runs = [
                flow.start(entry, job_id=str(n), runtime=runtime)
                for n, (flow, entry) in enumerate(flows)
            ]
        return [run.wait() for run in runs]

    async def main() -> list[JobState]:
        jobs = [
            flow.aexecute(entry, job_id=str(n), runtime=runtime)
            for n, (flow, entry) in enumerate(flows)
        ]
        return await asyncio.gather(*jobs)

    return arun(runtime, main())


class Starts:
    """Keeps the routine and the job of each step, in the order in which they start."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.routines: list[str] = []

    def on_step(self, job: JobState, step: StepInput) -> None:
        self.jobs.append(job.job_id)
        self.routines.append(step.task.routine_id)

    def on_commit(self, job: JobState, commit: Any) -> None:
        pass


def wide(body: Any, limit: int) -> Routine:
    routine = Wide(body)
    routine.max_concurrency = limit
    return routine


async def waits(self: Routine, n: object = 0) -> None:
    await asyncio.sleep(1)


@TOGETHER
@pytest.mark.parametrize("tasks", [100, 2_000])
def test_a_job_with_many_tasks_delays_the_steps_of_another_job_by_one_turn(how, tasks):
    starts = Starts()
    many = fan(sends(*range(tasks)), workers=tasks, a=wide(waits, tasks))
    few = fan(sends(*range(10)), workers=10, a=wide(waits, 10))
    with Runtime(clock=FakeClock(), observers=[starts]) as runtime:
        together(how, runtime, [(many, "source"), (few, "source")])

    of_few = [place for place, job_id in enumerate(starts.jobs) if job_id == "1"]
    assert 11 == len(of_few)
    assert of_few[1] - of_few[0] <= _TURN + 2
    assert {2} == {later - earlier for earlier, later in pairwise(of_few[1:])}


@TOGETHER
def test_a_long_chain_of_steps_delays_the_steps_of_another_job_by_one_step(how):
    async def counts(self: Routine, n: int = 0) -> None:
        if n < (1_000 if self.ctx.job_id == "0" else 10):
            self.emit("out", n=n + 1)

    flow, starts = chain(a=counts), Starts()
    flow.connect("a", "out", "a", "trigger")
    with Runtime(clock=FakeClock(), observers=[starts]) as runtime:
        together(how, runtime, [(flow, "a"), (flow, "a")])

    of_short = [place for place, job_id in enumerate(starts.jobs) if job_id == "1"]
    assert 11 == len(of_short)
    assert of_short[-1] - of_short[0] <= 3 * len(of_short)


def test_a_routine_with_many_tasks_leaves_workers_to_the_others():
    starts = Starts()
    flow = fan(sends(*range(1_000)), workers=20, a=wide(waits, 10), b=wide(waits, 10))
    with Runtime(clock=FakeClock(), observers=[starts]) as runtime:
        job = flow.execute("source", runtime=runtime)

    assert 100 == ended_at(job)
    assert {10} == {starts.routines[1 + 20 * n : 21 + 20 * n].count("a") for n in range(100)}


@TOGETHER
def test_async_and_sync_jobs_do_not_starve_each_other(how):
    async def waits_on_the_loop(self: Routine, n: object = 0) -> None:
        await asyncio.sleep(1)
        self.emit("out", n="async")

    def waits_in_a_thread(self: Routine, n: object = 0) -> None:
        self.ctx.sleep(1)
        self.emit("out", n="sync")

    flows = [(chain(a=waits_in_a_thread), "a"), (chain(a=waits_on_the_loop), "a")] * 500
    with Runtime(clock=FakeClock()) as runtime:
        runtime.threads._size = 10
        jobs = together(how, runtime, flows)

    # 500 sync jobs have ten threads, and get one in the order in which they came.
    assert ["sync", "async"] * 500 == [outputs(job)[0] for job in jobs]
    assert [1] * 500 == [ended_at(job) for job in jobs[1::2]]
    assert [1 + n // 10 for n in range(500)] == [ended_at(job) for job in jobs[::2]]


def test_a_job_whose_steps_end_while_it_waits_for_a_thread_has_one_place_in_the_queue():
    def nap(seconds: float) -> Body:
        async def naps(self: Routine, n: object = 0) -> None:
            await asyncio.sleep(seconds)
            self.emit("out", n=n)

        return naps

    asks_again = fan(nap(0), workers=8, p=nap(0.1), q=nap(0.2), **dict.fromkeys("abc", sleeps(1)))
    later = chain(a=nap(0.3), b=sleeps(1))
    with Runtime(clock=FakeClock()) as runtime:
        runtime.threads._size = 1
        flows = [(chain(a=sleeps(1)), "a"), (asks_again, "source"), (later, "a")]
        jobs = together("start", runtime, flows)

    assert [1, 5, 3] == [ended_at(job) for job in jobs]


@pytest.mark.parametrize("tasks", [50, 400])
def test_timeouts_at_different_instants_are_not_looked_for_in_all_steps(tasks, monkeypatch):
    looks = 0
    limit_ns = Drive.limit_ns

    def counted(self: Drive, step: StepInput) -> int | None:
        nonlocal looks
        looks += 1
        return limit_ns(self, step)

    async def hangs(self: Routine, n: int = 0) -> None:
        if self.ctx.attempt == 1:
            await asyncio.sleep(n / 1_000)
            raise ConnectionError
        await asyncio.sleep(3_600)

    routine = wide(hangs, tasks)
    routine.set_error_handler(
        retrying(max_retries=1, retry_delay=1, timeout=10, on_exhausted="continue")
    )
    monkeypatch.setattr(Drive, "limit_ns", counted)
    flow = fan(sends(*range(tasks)), workers=tasks, a=routine)
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.execute("source", runtime=runtime)

    assert pytest.approx(11 + (tasks - 1) / 1_000) == ended_at(job)
    assert tasks == len(job.dropped)
    assert looks <= 10 * tasks


def test_limits_of_steps_that_have_ended_are_not_kept(monkeypatch):
    drives: list[Drive] = []
    kept: list[int] = []

    async def passes(self: Routine, n: object = 0) -> None:
        if not drives:
            drives.append(self.ctx._host)
        await asyncio.sleep(0.001)
        kept.append(len(drives[0].limits))

    routine = wide(passes, 10)
    routine.set_error_handler(retrying(timeout=3_600))
    with Runtime(clock=FakeClock()) as runtime:
        fan(sends(*range(1_000)), workers=10, a=routine).execute("source", runtime=runtime)

    assert 10 <= max(kept) <= 50
