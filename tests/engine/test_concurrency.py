"""Steps that overlap: how many, with which result, and many jobs at once."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routilux import JobState, JobStatus, Routine, Runtime
from tests.engine.concurrency import at_once, no_thread_remains
from tests.routines import (
    PATIENCE,
    Wide,
    Works,
    chain,
    ended_at,
    fan,
    outputs,
    rest,
    retrying,
    run,
    sends,
)


def sleeps_n(self: Routine, n: int) -> None:
    self.ctx.sleep(n)
    self.emit("out", n=n)


def test_a_routine_runs_one_step_at_a_time_unless_its_class_allows_more():
    assert 4 == ended_at(run(fan(sends(1, 1, 1, 1), workers=4, a=sleeps_n), "source"))
    assert 1 == ended_at(run(fan(sends(1, 1, 1, 1), workers=4, a=Wide(sleeps_n)), "source"))


def test_no_more_steps_of_all_routines_overlap_than_there_are_workers():
    flow = fan(sends(1, 1, 1), workers=2, a=Wide(sleeps_n), b=Wide(sleeps_n))
    assert 3 == ended_at(run(flow, "source"))


# --- outcomes do not depend on the mode -----------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6))
def test_a_concurrent_flow_has_the_same_result_as_a_sequential_one(items):
    def work(self, n):
        self.ctx.sleep(n[0])
        if self.ctx.attempt <= n[1]:
            raise ValueError
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + n[0]
        self.emit("out", n=n[0])

    def result(workers):
        flow = fan(sends(*items), workers=workers, a=Works(work, retrying()), b=Wide(sleeps_first))
        flow.add_routine(Works(rest), "after")
        flow.connect("a", "out", "after", "trigger")
        job = run(flow, "source")
        return (
            job.status,
            job.shared_data,
            job.routine_states,
            Counter((c.task_id, c.attempt, c.kind) for c in job.commits if c.kind != "conflict"),
            sorted(repr(output.data) for output in job.outputs),
        )

    assert result(None) == result(4)


def sleeps_first(self: Routine, n: tuple[int, int]) -> None:
    self.ctx.sleep(n[0])
    self.emit("out", n=n)


def test_an_aggregator_fires_once_when_all_items_are_there():
    def collects(self, n):
        got: Any = self.ctx.state.setdefault("got", [])
        got.append(n)
        if len(got) == 6:
            self.emit("out", n=sorted(got))

    flow = fan(sends(5, 3, 1, 4, 2, 0), workers=3, a=Wide(sleeps_n))
    flow.add_routine(Works(collects), "join")
    flow.connect("a", "out", "join", "trigger")
    job = run(flow, "source")
    assert [[0, 1, 2, 3, 4, 5]] == outputs(job)
    assert 6 == job.routine_states["join"].completed


# --- real threads, real time ----------------------------------------------------------------------


def test_steps_overlap_in_real_time_and_lose_no_update():
    meet = threading.Barrier(4)
    met: set[int] = set()

    def adds(self, n):
        total: Any = self.ctx.shared.get("total", 0)
        if n < 4 and n not in met:
            met.add(n)
            meet.wait(PATIENCE)
        self.ctx.shared["total"] = total + 1

    with no_thread_remains(), Runtime() as runtime:
        job = fan(sends(*range(40)), workers=4, a=Wide(adds)).execute("source", runtime=runtime)
    job.raise_for_status()
    assert 40 == job.shared_data["total"]
    times = [commit.at_ns for commit in job.commits]
    assert times == sorted(times)


def test_many_callers_share_one_runtime_and_one_flow():
    def keeps(self, n):
        self.ctx.shared["mine"] = n
        self.emit("out", n=n)

    def checks(self, n):
        self.emit("out", n=self.ctx.shared["mine"] == n)

    flow = chain(workers=2, a=keeps, b=checks)
    jobs: dict[int, JobState] = {}

    def caller(n):
        if n % 2:
            jobs[n] = flow.execute("a", {"n": n}, runtime=runtime)
        else:
            jobs[n] = flow.start("a", {"n": n}, runtime=runtime).wait()

    with no_thread_remains(), Runtime() as runtime:
        at_once(*(partial(caller, n) for n in range(16)))
    assert 16 == len(jobs) == len({job.job_id for job in jobs.values()})
    for n, job in jobs.items():
        assert JobStatus.COMPLETED is job.status
        assert {"mine": n} == job.shared_data
        assert [True] == outputs(job)
