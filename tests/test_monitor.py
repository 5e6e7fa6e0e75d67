"""The execution monitor: its counts, its waits, and how it is rebuilt from commits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    CommitKind,
    ErrorHandler,
    ExecutionMonitor,
    FakeClock,
    Flow,
    JobState,
    RoutiluxError,
    Runtime,
)
from tests.fuzz.families import Story
from tests.routines import Works, chain, fails, fan, rest, retrying, sends, sleeps

MS = 1_000_000


def pipeline(failures: int) -> Flow:
    handler = retrying(max_retries=4, retry_delay=0.3, retry_backoff=1.5)
    process = Works(fails(failures, after=0.5), handler)
    return chain(data_fetch=sleeps(0.8), data_process=process, data_validator=rest)


def watched(flow: Flow, entry: str, **payload: Any) -> tuple[JobState, ExecutionMonitor]:
    monitor = ExecutionMonitor()
    with Runtime(clock=FakeClock(), observers=[monitor]) as runtime:
        return flow.execute(entry, payload or None, runtime=runtime), monitor


def facts(monitor: ExecutionMonitor) -> dict[str, object]:
    names = ("commits", "events", "data_flows", "state_changes", "retries")
    return {name: getattr(monitor, name) for name in names} | {"summary": monitor.summary()}


def test_at_retry_2_of_the_pipeline_there_are_2_events_1_flow_and_1_state_change():
    job, _ = watched(pipeline(9), "data_fetch")
    at_retry_2 = job.at(4)
    assert 2 == at_retry_2.retry_count()
    assert 2 == len(at_retry_2.execution_history)
    monitor = ExecutionMonitor.of(at_retry_2)
    assert {"events": 2, "data_flows": 1, "state_changes": 1} == monitor.summary()
    (flow,) = monitor.data_flows
    assert ("data_fetch", "out", "data_process") == (flow.source, flow.event, flow.target)
    assert ("trigger", "0.0") == (flow.slot, flow.task_id)
    (change,) = monitor.state_changes
    assert ("data_fetch", "pending", "completed") == (
        change.routine_id, change.before, change.after,
    )  # fmt: skip
    assert ["start", "out"] == [record.event for record in monitor.events]
    assert [1, 2] == [retry.number for retry in monitor.retries]
    assert [800 * MS, None] == [
        None if retry.actual_ns is None else retry.actual_ns + 500 * MS for retry in monitor.retries
    ]


def test_planned_and_actual_waits_are_exact_and_the_last_attempt_has_its_numbers():
    job, monitor = watched(pipeline(9), "data_fetch")
    planned = [300 * MS, 450 * MS, 675 * MS, 1_012_500_000]
    assert planned == [retry.delay_ns for retry in monitor.retries]
    assert planned == [retry.actual_ns for retry in monitor.retries]
    for retry in monitor.retries:
        assert retry.due_ns == retry.started_ns
        assert retry.error is not None
        assert f"attempt {retry.attempt}" == retry.error.message
        assert retry.delay_ns == round(retry.delay.total_seconds() * 1e9)
    assert [1, 2, 3, 4] == [retry.attempt for retry in monitor.retries]
    assert job.job_id == monitor.retries[0].job_id
    last = monitor.state_changes[-1]
    assert ("data_process", "pending", "failed") == (last.routine_id, last.before, last.after)
    assert (5, 4, job.updated_ns) == (last.attempt, last.retry_count, last.at_ns)


def test_the_rest_of_a_wait_after_a_resume_is_its_new_due_time():
    flow = chain(a=Works(fails(1), retrying(retry_delay=10)))
    job, _ = watched(flow, "a")
    monitor = ExecutionMonitor()
    with Runtime(clock=FakeClock("2026-01-01T00:00:07"), observers=[monitor]) as runtime:
        done = flow.resume(job.at(2), runtime=runtime)
    rebuilt = ExecutionMonitor.of(done)
    assert [10_000 * MS] == [retry.actual_ns for retry in rebuilt.retries]
    assert rebuilt.retries[0].due_ns == rebuilt.retries[0].started_ns
    with Runtime(clock=FakeClock("2026-01-01T00:05:00")) as runtime:
        late = ExecutionMonitor.of(flow.resume(job.at(2), runtime=runtime))
    assert [300_000 * MS] == [retry.actual_ns for retry in late.retries]
    assert [10_000 * MS] == [retry.delay_ns for retry in late.retries]


def test_a_fresh_budget_counts_from_one_again():
    flow = chain(a=Works(fails(5), retrying(max_retries=2, retry_delay=1)))
    job, _ = watched(flow, "a")
    with Runtime(clock=FakeClock()) as runtime:
        done = flow.resume(job, retry_failed=True, runtime=runtime)
    monitor = ExecutionMonitor.of(done)
    assert [1, 2, 1, 2] == [retry.number for retry in monitor.retries]
    assert [1, 2, 4, 5] == [retry.attempt for retry in monitor.retries]
    assert [("pending", "failed"), ("failed", "pending"), ("pending", "completed")] == [
        (change.before, change.after) for change in monitor.state_changes
    ]
    assert ExecutionMonitor.summary_of(done) == monitor.summary()


def test_a_monitor_keeps_the_events_of_several_jobs_apart():
    monitor = ExecutionMonitor()
    with Runtime(clock=FakeClock(), observers=[monitor]) as runtime:
        flow = chain(a=Works(fails(1), retrying()), b=rest)
        jobs = [flow.start("a", job_id=f"j{i}", runtime=runtime) for i in range(3)]
        states = [run.wait() for run in jobs]
    for job in states:
        alone = ExecutionMonitor.of(job)
        mine = [commit for job_id, commit in monitor.commits if job_id == job.job_id]
        assert list(job.commits) == mine
        assert alone.retries == [r for r in monitor.retries if r.job_id == job.job_id]
        assert alone.data_flows == [f for f in monitor.data_flows if f.job_id == job.job_id]
        assert alone.state_changes == [c for c in monitor.state_changes if c.job_id == job.job_id]


_handlers = st.sampled_from(
    [
        None,
        ErrorHandler("continue"),
        ErrorHandler("skip"),
        retrying(max_retries=1, retry_delay=0.3),
        retrying(max_retries=3, retry_delay=2, on_exhausted="continue"),
        retrying(max_retries=2, retry_delay=1, on_exhausted="skip"),
    ]
)
_items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=4)


@given(_handlers, _handlers, _items, st.sampled_from([None, 3]), st.booleans())
def test_a_monitor_that_observed_a_job_equals_one_rebuilt_from_its_commits(
    first, second, items, workers, routed
):
    def work(self, n):
        self.ctx.sleep(n[1])
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + n[0]  # type: ignore[operator]
        self.ctx.once("effect", int)
        if self.ctx.attempt <= n[0]:
            raise ValueError
        self.emit("out", n=n)

    events = {"error": ["message"]} if routed else {}
    a, b = Works(work, first, **events), Works(work, second)
    flow = fan(sends(*items), workers=workers, a=a, b=b)
    if routed:
        flow.add_routine(Works(lambda self, **payload: None), "errors")
        flow.connect("a", "error", "errors", "trigger")
    job, monitor = watched(flow, "source")
    assert facts(ExecutionMonitor.of(job)) == facts(monitor)
    assert ExecutionMonitor.summary_of(job) == monitor.summary()
    # And after the commits have been through their saved form, on another host.
    again = JobState.deserialize(job.serialize())
    assert facts(ExecutionMonitor.of(again)) == facts(monitor)
    assert job.execution_history == monitor.events
    last = {(c.routine_id): c.after for c in monitor.state_changes}
    assert {r: s.status for r, s in job.routine_states.items() if s.status != "pending"} == last
    for retry in monitor.retries:
        if retry.actual_ns is not None:
            assert retry.actual_ns >= retry.delay_ns


def test_a_resume_visits_only_the_retries_that_wait():
    story = Story()
    story.spread(40)
    monitor = ExecutionMonitor()
    for i in range(30):
        story.retry(f"0.{i}", 1, 0)
        story.step(CommitKind.DONE, f"0.{i}", 2)
    story.retry("0.30", 1, 10**15)
    for commit in story.job.commits:
        monitor.on_commit(story.job, commit)
    followed = monitor._followed["job-1"]
    assert ["0.30"] == [*followed.waiting]
    story.resume()
    monitor.on_commit(story.job, story.job.commits[-1])
    assert {} == followed.waiting
    assert 31 == len(followed.last)


def test_a_job_without_its_first_commits_has_no_monitor():
    with Runtime(clock=FakeClock(), history_limit=2) as runtime:
        job = pipeline(3).execute("data_fetch", runtime=runtime)
    with pytest.raises(RoutiluxError, match=r"has only its commits from \d+ on; load the job with"):
        ExecutionMonitor.of(job)
