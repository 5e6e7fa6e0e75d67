"""The assertions of flow_monitor: when they hold, when they fail, and which names they refuse."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from pytest_routilux import FlowMonitor
from routilux import FakeClock, FlowDefinitionError, JobState, JobStatus, RoutineStatus, Runtime
from tests.plugin.monitor.pricing import execute, message_of, run, shop
from tests.routines import chain, rest


@pytest.fixture
def monitor() -> FlowMonitor:
    return FlowMonitor()


# --- what holds -----------------------------------------------------------------------------------


def test_true_assertions_hold_for_a_flow_that_recovered(monitor):
    job = run(monitor, failures=4)
    monitor.assert_status("completed")
    monitor.assert_status(JobStatus.COMPLETED, job=job)
    monitor.assert_status(job)
    monitor.assert_states({"fetch": "completed", "price": RoutineStatus.COMPLETED})
    monitor.assert_retried("price")
    monitor.assert_retried("price", times=4)
    monitor.assert_retried("price", times=4, delays=[0.3, 0.45, 0.675, 1.0125])
    monitor.assert_retried("price", delays=[timedelta(milliseconds=300), 0.45, 0.675, 1.0125])
    monitor.assert_retried("store", times=0)
    monitor.assert_retried("fetch", delays=[])
    monitor.assert_emitted("fetch")
    monitor.assert_emitted("fetch", event="output", times=1)
    monitor.assert_emitted("fetch", event="empty", times=0)
    monitor.assert_emitted("fetch", data={"order": {"items": ["pen", "ink"]}})
    monitor.assert_emitted("fetch", times=0, data={"order": {"items": ["pen"]}})
    monitor.assert_flowed("fetch", "price")
    monitor.assert_flowed("price", "store", times=1)
    monitor.assert_order(["fetch", "price", "store"])
    monitor.assert_order(["fetch", "store"])


def test_true_assertions_hold_for_a_flow_that_failed(monitor):
    run(monitor, failures=5)
    monitor.assert_status("failed")
    monitor.assert_states({"fetch": "completed", "price": "failed", "store": "pending"})
    monitor.assert_retried("price", times=4, delays=[0.3, 0.45, 0.675, 1.0125])
    monitor.assert_emitted("price", times=0)
    monitor.assert_flowed("price", "store", times=0)
    monitor.assert_not_run("store")
    monitor.assert_order(["fetch", "price"])


def test_a_job_that_ran_elsewhere_is_checked_by_its_commits():
    job = shop(failures=2).execute("fetch", runtime=Runtime(clock=FakeClock()))
    monitor = FlowMonitor.of(JobState.deserialize(job.serialize()))
    monitor.assert_retried("price", times=2, delays=[0.3, 0.45])
    monitor.assert_status("completed")


def test_retries_of_several_tasks_are_checked_one_task_at_a_time(monitor):
    run(monitor, failures=2, orders=3)
    monitor.assert_retried("price", times=2)
    assert "price (task 0.0): expected 3 retries, made 2" in message_of(
        monitor.assert_retried, "price", times=3
    )


def test_a_wait_that_has_not_ended_is_checked_by_its_plan(monitor):
    job = run(monitor, failures=5)
    waiting = FlowMonitor.of(job.at(3))
    waiting.assert_retried("price", times=1, delays=[0.3])
    assert message_of(waiting.assert_retried, "price", delays=[0.4]).startswith(
        "retry 1 of price: expected 0.4 s, planned 0.3 s\n\n"
        "> retry 1  expected 0.4 s, planned 0.3 s, still waits\n"
    )


def test_a_wait_that_took_longer_than_planned_shows_both(monitor):
    run(monitor, failures=1, orders=2)
    # The routine was busy with the second order when the retry of the first was due.
    for delay in (0.3, 0.5):
        assert message_of(monitor.assert_retried, "price", delays=[delay]).startswith(
            f"retry 1 of price (task 0.0): expected {delay} s, waited 0.5 s, planned 0.3 s\n"
        )


def test_several_tasks_of_a_routine_in_a_row_count_once_in_an_order(monitor):
    run(monitor, orders=3)
    monitor.assert_order(["fetch", "price", "store"])


def test_a_return_to_a_routine_counts_again_in_an_order(monitor):
    def bounce(self, n=0):
        if n < 2:
            self.emit("out", n=n + 1)

    flow = chain(ping=bounce, pong=bounce)
    flow.connect("pong", "out", "ping", "trigger")
    execute(flow, monitor, "ping")
    monitor.assert_order(["ping", "pong", "ping"])
    assert message_of(monitor.assert_order, ["ping", "pong"]).startswith(
        "order: expected nothing more after pong, found ping\n"
    )
    assert message_of(monitor.assert_order, ["ping", "pong", "ping", "pong"]).startswith(
        "order: expected pong after ping, found nothing more\n"
    )


# --- several jobs ---------------------------------------------------------------------------------


def test_an_assertion_is_about_all_jobs_or_about_the_one_that_is_given(monitor):
    good, bad = run(monitor, job_id="good"), run(monitor, job_id="bad", failures=5)
    monitor.assert_emitted("fetch", times=2)
    monitor.assert_emitted("price", times=1)
    monitor.assert_emitted("price", times=0, job=bad)
    monitor.assert_flowed("fetch", "price", times=1, job="good")
    monitor.assert_not_run("store", job="bad")
    monitor.assert_retried("price", times=0, job=good)
    monitor.assert_states({"price": "failed"}, job=bad)
    monitor.assert_order(["fetch", "price", "store"], job=good)
    monitor.assert_status("failed", job="bad")
    assert "expected completed, is failed" in message_of(monitor.assert_status, "completed")
    assert "\n  job bad\n" in message_of(monitor.assert_states, {"price": "completed"})
    assert "\n  job good\n" in message_of(monitor.assert_not_run, "store")


def test_jobs_of_flows_without_the_named_routines_do_not_count(monitor):
    run(monitor)
    execute(chain(alone=rest), monitor, "alone", "other")
    monitor.assert_states({"price": "completed"})
    monitor.assert_order(["fetch", "price"])
    with pytest.raises(FlowDefinitionError, match="no recorded job has all of these routines"):
        monitor.assert_states({"price": "completed", "alone": "completed"})


# --- nothing passes by mistake --------------------------------------------------------------------

ROUTINES = "known: 'fetch', 'price', 'store'"


@pytest.mark.parametrize(
    "check",
    [
        lambda m: m.assert_not_run("stor"),
        lambda m: m.assert_retried("stor", times=0),
        lambda m: m.assert_emitted("stor", times=0),
        lambda m: m.assert_flowed("fetch", "stor", times=0),
        lambda m: m.assert_states({"stor": "pending"}),
        lambda m: m.assert_order(["fetch", "stor"]),
    ],
)
def test_an_unknown_routine_is_an_error_with_the_known_ones(monitor, check):
    run(monitor, failures=5)
    with pytest.raises(FlowDefinitionError) as caught:
        check(monitor)
    expected = f"unknown routine of the flow: 'stor'; {ROUTINES}; did you mean 'store'?"
    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda m: m.assert_retried("xyz", times=0), f"of the flow: 'xyz'; {ROUTINES}"),
        (lambda m: m.assert_emitted("fetch", event="emty", times=0), "event of fetch: 'emty'"),
        (lambda m: m.assert_emitted("fetch", event="emty", times=0), "did you mean 'empty'?"),
        (lambda m: m.assert_flowed("fetch", "store", times=0), "no connection leads from 'fetch'"),
        (lambda m: m.assert_flowed("fetch", "store", times=0), "known: fetch.output -> price.inp"),
        (lambda m: m.assert_states({"store": "complete"}), "status of a routine: 'complete'"),
        (lambda m: m.assert_states({"store": "complete"}), "'error_continued', 'failed'; did you"),
        (lambda m: m.assert_order(["fetch"]), "must name two routines or more, not ['fetch']"),
        (lambda m: m.assert_order("fetch"), "an order must name two routines or more, not 'fetch'"),
        (lambda m: m.assert_status("complete"), "status of a job: 'complete'; known: 'pend"),
        (lambda m: m.assert_status("complete"), "'cancelled'; did you mean 'completed'?"),
        (lambda m: m.assert_not_run("store", job="jop"), "recorded job: 'jop'; known: 'job'"),
        (lambda m: m.assert_retried("price", times=2, delays=[0.3]), "times=2 does not fit the 1"),
    ],
)
def test_an_unknown_name_is_an_error_even_if_nothing_is_expected(monitor, check, says):
    run(monitor, failures=5)
    with pytest.raises(FlowDefinitionError, match=re.escape(says)):
        check(monitor)


@pytest.mark.parametrize(
    "check",
    [
        lambda m: m.assert_not_run("store"),
        lambda m: m.assert_emitted("store", times=0),
        lambda m: m.assert_flowed("a", "b", times=0),
        lambda m: m.assert_retried("store", times=0),
        lambda m: m.assert_states({}),
        lambda m: m.assert_order(["a", "b"]),
        lambda m: m.assert_status("completed"),
    ],
)
def test_no_assertion_holds_without_a_recorded_job(monitor, check):
    assert (
        "flow_monitor recorded no job: run the job in flow_runtime, or in"
        " Runtime(observers=[flow_monitor])"
    ) == message_of(check, monitor)
