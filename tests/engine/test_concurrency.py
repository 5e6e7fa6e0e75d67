"""Steps that overlap: actors, width, order, and many jobs at once."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routilux import FakeClock, Flow, JobState, JobStatus, Routine, Runtime
from tests.engine.concurrency import at_once, no_thread_remains
from tests.routines import (
    PATIENCE,
    Wide,
    Works,
    chain,
    ended_at,
    ends,
    fan,
    outputs,
    rest,
    retrying,
    sends,
)


def sleeps_n(self: Routine, n: int) -> None:
    self.ctx.sleep(n)
    self.emit("out", n=n)


def run(flow: Flow, entry: str = "source") -> JobState:
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        return flow.execute(entry, runtime=runtime)


def overlapping(job: JobState, routine_id: str | None = None) -> int:
    """The most steps, of one routine or of all, that were in flight at one instant."""
    spans = [
        (c.started_ns, c.at_ns)
        for c in job.commits
        if c.started_ns is not None
        and c.started_ns < c.at_ns
        and routine_id in (None, c.routine_id)
    ]
    return max(
        (sum(begin <= instant < end for begin, end in spans) for instant, _ in spans), default=0
    )


# --- how many at once -----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.integers(2, 4), st.booleans())
def test_no_more_steps_overlap_than_workers_and_max_concurrency_allow(lengths, workers, wide):
    kind = Wide if wide else Works
    job = run(fan(sends(*lengths), workers=workers, a=kind(sleeps_n), b=Works(sleeps_n)))
    assert JobStatus.COMPLETED is job.status
    assert overlapping(job) <= workers
    assert overlapping(job, "b") == 1
    assert overlapping(job, "a") <= (8 if wide else 1)
    assert 2 * len(lengths) == len(job.outputs)


def test_a_routine_runs_one_step_at_a_time_unless_its_class_allows_more():
    assert 4 == ended_at(run(fan(sends(1, 1, 1, 1), workers=4, a=sleeps_n)))
    assert 1 == ended_at(run(fan(sends(1, 1, 1, 1), workers=4, a=Wide(sleeps_n))))
    assert 2 == ended_at(run(fan(sends(1, 1, 1, 1), workers=2, a=Wide(sleeps_n))))


def test_a_busy_routine_delays_no_other_routine():
    job = run(fan(sends(5, 5), workers=2, slow=sleeps_n, quick=rest))
    assert [("quick", 0), ("quick", 0), ("slow", 5), ("slow", 10)] == ends(job, 2)


def test_tasks_start_in_the_order_of_their_creation():
    job = run(fan(sends(*range(20)), workers=3, a=Wide(rest), b=Wide(rest)))
    begun = sorted((c.started_ns, c.seq) for c in job.commits[2:] if c.started_ns is not None)
    assert 40 == len(begun)
    assert [f"0.{i}" for i in range(40)] == [c.task_id for c in job.commits[2:]]


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
        job = run(flow)
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
    job = run(flow)
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
