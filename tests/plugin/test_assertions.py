"""flow_monitor: what happened is asserted, and what did not is explained."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pytest_routilux import FlowMonitor
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobState,
    JobStatus,
    Routine,
    RoutineStatus,
    Runtime,
)
from tests.plugin.inner import run_inside


class LockedError(Exception):
    pass


class Fetch(Routine):
    def __init__(self, orders: int = 1) -> None:
        super().__init__()
        self.orders = orders
        self.define_slot("trigger", handler=self.fetch)
        self.define_event("output", ["order"])
        self.define_event("empty")

    def fetch(self) -> None:
        self.ctx.sleep(0.8)
        for number in range(self.orders):
            self.emit("output", order={"id": number, "items": ["pen", "ink"], "total": 12})


class Price(Routine):
    """Fails `failures` times for each order."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("input", handler=self.price)
        self.define_event("output", ["total"])
        self.set_error_handler(
            ErrorHandler("retry", max_retries=4, retry_delay=0.3, retry_backoff=1.5)
        )

    def price(self, order: dict[str, Any]) -> None:
        self.ctx.sleep(0.5)
        if self.ctx.attempt <= self.failures:
            raise LockedError(f"try {self.ctx.attempt}")
        self.emit("output", total=order["total"])


class Store(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.store)

    def store(self, total: int) -> None:
        pass


class Interrupted(Store):
    def store(self, total: int) -> None:
        raise KeyboardInterrupt


class Bounce(Routine):
    """Gives a ball back `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.define_slot("trigger", handler=self.bounce)
        self.define_event("output", ["height"])

    def bounce(self, height: int = 0) -> None:
        if height < self.times:
            self.emit("output", height=height + 1)


def shop(failures: int = 0, orders: int = 1, store: Store | None = None) -> Flow:
    flow = Flow("shop")
    flow.add_routine(Fetch(orders), "fetch")
    flow.add_routine(Price(failures), "price")
    flow.add_routine(store or Store(), "store")
    flow.connect("fetch", "output", "price", "input")
    flow.connect("price", "output", "store", "input")
    return flow


@pytest.fixture
def monitor() -> FlowMonitor:
    return FlowMonitor()


def run(monitor: FlowMonitor, *, job_id: str = "job", **options: int) -> JobState:
    runtime = Runtime(clock=FakeClock(), observers=[monitor])
    return shop(**options).execute("fetch", job_id=job_id, runtime=runtime)


def message_of(check: Callable[..., None], *args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check(*args, **options)
    return str(caught.value)


# --- what holds -----------------------------------------------------------------------------------


def test_all_hold_for_a_flow_that_recovered(monitor) -> None:
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


def test_all_hold_for_a_flow_that_failed(monitor) -> None:
    run(monitor, failures=5)
    monitor.assert_status("failed")
    monitor.assert_states({"fetch": "completed", "price": "failed", "store": "pending"})
    monitor.assert_retried("price", times=4, delays=[0.3, 0.45, 0.675, 1.0125])
    monitor.assert_emitted("price", times=0)
    monitor.assert_flowed("price", "store", times=0)
    monitor.assert_not_run("store")
    monitor.assert_order(["fetch", "price"])


def test_a_job_that_ran_elsewhere_is_judged_by_its_commits() -> None:
    job = shop(failures=2).execute("fetch", runtime=Runtime(clock=FakeClock()))
    monitor = FlowMonitor.of(JobState.deserialize(job.serialize()))
    monitor.assert_retried("price", times=2, delays=[0.3, 0.45])
    monitor.assert_status("completed")


def test_retries_of_several_tasks_are_judged_each_by_itself(monitor) -> None:
    run(monitor, failures=2, orders=3)
    monitor.assert_retried("price", times=2)
    assert "price (task 0.0): expected 3 retries, made 2" in message_of(
        monitor.assert_retried, "price", times=3
    )


def test_a_wait_that_is_not_over_is_judged_by_its_plan(monitor) -> None:
    job = run(monitor, failures=5)
    waiting = FlowMonitor.of(job.at(3))
    waiting.assert_retried("price", times=1, delays=[0.3])
    assert message_of(waiting.assert_retried, "price", delays=[0.4]).startswith(
        "retry 1 of price: expected 0.4 s, planned 0.3 s\n\n"
        "> retry 1  expected 0.4 s, planned 0.3 s, still waits\n"
    )


def test_a_wait_that_took_longer_than_planned_is_told_apart_from_a_wrong_plan(monitor) -> None:
    flow = shop(failures=1, orders=2)
    flow.execute("fetch", runtime=Runtime(clock=FakeClock(), observers=[monitor]))
    # The one routine was at work on the second order when the first was due.
    assert message_of(monitor.assert_retried, "price", delays=[0.3]).startswith(
        "retry 1 of price (task 0.0): expected 0.3 s, waited 0.5 s, planned 0.3 s\n"
    )
    assert message_of(monitor.assert_retried, "price", delays=[0.5]).startswith(
        "retry 1 of price (task 0.0): expected 0.5 s, waited 0.5 s, planned 0.3 s\n"
    )


def test_order_takes_several_tasks_in_a_row_for_one(monitor) -> None:
    run(monitor, orders=3)
    monitor.assert_order(["fetch", "price", "store"])


def test_order_tells_a_return_to_a_routine_from_staying_in_it(monitor) -> None:
    flow = Flow("rally")
    for name in ("ping", "pong"):
        flow.add_routine(Bounce(2), name)
    flow.connect("ping", "output", "pong", "trigger")
    flow.connect("pong", "output", "ping", "trigger")
    flow.execute("ping", runtime=Runtime(clock=FakeClock(), observers=[monitor]))
    monitor.assert_order(["ping", "pong", "ping"])
    assert message_of(monitor.assert_order, ["ping", "pong"]).startswith(
        "order: expected nothing more after pong, ping came\n"
    )
    assert message_of(monitor.assert_order, ["ping", "pong", "ping", "pong"]).startswith(
        "order: expected pong after ping, nothing more came\n"
    )


# --- what does not hold ---------------------------------------------------------------------------


def test_a_wrong_delay_names_the_retry_and_both_waits(monitor) -> None:
    run(monitor, failures=4)
    assert (
        message_of(monitor.assert_retried, "price", times=4, delays=[0.3, 0.45, 0.675, 0.675])
        == """\
retry 4 of price: expected 0.675 s, waited 1.0125 s

  retry 1  expected 0.3 s, planned 0.3 s, waited 0.3 s
  retry 2  expected 0.45 s, planned 0.45 s, waited 0.45 s
  retry 3  expected 0.675 s, planned 0.675 s, waited 0.675 s
> retry 4  expected 0.675 s, planned 1.0125 s, waited 1.0125 s

   t, s  commit  what happened
  1.300  #3      price attempt 1 fails, next in 0.3 s: tests.plugin.test_assertions.LockedError: …
  2.100  #4      price attempt 2 fails, next in 0.45 s: tests.plugin.test_assertions.LockedError:…
  3.050  #5      price attempt 3 fails, next in 0.675 s: tests.plugin.test_assertions.LockedError…
> 4.225  #6      price attempt 4 fails, next in 1.0125 s: tests.plugin.test_assertions.LockedErro…
  5.738  #7      price attempt 5 ok, output -> store
  5.738  #8      store attempt 1 ok

look at  max_retries, retry_delay and retry_backoff of price's ErrorHandler"""
    )


@pytest.mark.parametrize(
    ("times", "lines"),
    [
        (
            1,
            (
                "price: expected 1 retry, made 2\n\n"
                "  retry 1  planned 0.3 s, waited 0.3 s\n"
                "> retry 2  planned 0.45 s, waited 0.45 s\n"
            ),
        ),
        (
            3,
            (
                "price: expected 3 retries, made 2\n\n"
                "  retry 1  planned 0.3 s, waited 0.3 s\n"
                "  retry 2  planned 0.45 s, waited 0.45 s\n"
                "> retry 3  was not made\n"
            ),
        ),
    ],
)
def test_a_wrong_number_of_retries_lists_those_that_were_made(monitor, times, lines) -> None:
    run(monitor, failures=2)
    assert message_of(monitor.assert_retried, "price", times=times).startswith(lines)


def test_no_retry_where_one_was_expected_shows_how_the_routine_fared(monitor) -> None:
    run(monitor)
    assert (
        message_of(monitor.assert_retried, "price")
        == """\
price: expected a retry, made none

   t, s  commit  what happened
  0.000  #1      the job starts with fetch.trigger
  0.800  #2      fetch attempt 1 ok, output -> price
> 1.300  #3      price attempt 1 ok, output -> store
  1.300  #4      store attempt 1 ok

look at  the strategy and retryable_exceptions of price's ErrorHandler"""
    )


def test_an_emission_that_differs_is_told_by_its_first_field_that_does(monitor) -> None:
    run(monitor)
    assert (
        message_of(
            monitor.assert_emitted, "fetch", event="output", data={"order": {"id": 0, "total": 13}}
        )
        == """\
fetch.output: data['order']['total']: expected 13, is 12 (with this data expected at least once, \
emitted 0x)

> emission 1  at 0.8 s  output(order={'id': 0, 'items': ['pen', 'ink'], 'total': 12})

   t, s  commit  what happened
  0.000  #1      the job starts with fetch.trigger
> 0.800  #2      fetch attempt 1 ok, output -> price
  1.300  #3      price attempt 1 ok, output -> store
  1.300  #4      store attempt 1 ok

look at  the arguments of emit() in its handler"""
    )


def test_a_field_that_is_missing_is_told_so(monitor) -> None:
    run(monitor)
    assert message_of(monitor.assert_emitted, "price", data={"tax": 1}).startswith(
        "any event of price: data['tax']: expected 1, is missing"
    )


def test_too_many_emissions_mark_the_first_that_is_too_many(monitor) -> None:
    run(monitor, orders=3)
    assert (
        message_of(monitor.assert_emitted, "price", event="output", times=1)
        == """\
price.output: expected 1x, emitted 3x

  emission 1  at 1.3 s  output(total=12)
> emission 2  at 1.8 s  output(total=12)
  emission 3  at 2.3 s  output(total=12)

   t, s  commit  what happened
  0.000  #1      the job starts with fetch.trigger
  0.800  #2      fetch attempt 1 ok, output -> price, output -> price, output -> price
  1.300  #3      price attempt 1 ok, output -> store
> 1.800  #4      price attempt 1 ok, output -> store
  2.300  #5      price attempt 1 ok, output -> store
  2.300  #6      store attempt 1 ok
  2.300  #7      store attempt 1 ok

look at  the arguments of emit() in its handler"""
    )


def test_a_routine_that_was_never_reached_names_what_feeds_it(monitor) -> None:
    run(monitor, failures=5)
    assert message_of(monitor.assert_flowed, "price", "store").splitlines()[0::2][-1] == (
        "look at  the error of price: what an attempt emits counts once it succeeds"
    )
    assert message_of(monitor.assert_retried, "store").endswith(
        "look at  store never ended an attempt; what feeds it: price.output -> store.input"
    )


def test_a_routine_that_ran_against_expectation_is_shown_with_its_tasks(monitor) -> None:
    run(monitor, orders=2)
    assert (
        message_of(monitor.assert_not_run, "store")
        == """\
store: expected never to run, began 2 attempts

> task 0.0.0  attempt 1
  task 0.1.0  attempt 1

   t, s  commit  what happened
  0.800  #2      fetch attempt 1 ok, output -> price, output -> price
  1.300  #3      price attempt 1 ok, output -> store
  1.800  #4      price attempt 1 ok, output -> store
> 1.800  #5      store attempt 1 ok
  1.800  #6      store attempt 1 ok

look at  what feeds it: price.output -> store.input"""
    )


def test_an_attempt_that_began_and_never_ended_was_a_run(monitor) -> None:
    flow = shop(store=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        flow.execute("fetch", runtime=Runtime(clock=FakeClock(), observers=[monitor]))
    assert message_of(monitor.assert_not_run, "store").startswith(
        "store: expected never to run, began 1 attempt\n\n> task 0.0.0  attempt 1\n"
    )


def test_a_flow_that_took_another_way_is_counted(monitor) -> None:
    run(monitor, orders=2)
    assert (
        message_of(monitor.assert_flowed, "fetch", "price", times=1)
        == """\
fetch -> price: expected 1x, delivered 2x

  delivery 1  output -> input, 0.0
> delivery 2  output -> input, 0.1

   t, s  commit  what happened
  0.000  #1      the job starts with fetch.trigger
> 0.800  #2      fetch attempt 1 ok, output -> price, output -> price
  1.300  #3      price attempt 1 ok, output -> store
  1.800  #4      price attempt 1 ok, output -> store
  1.800  #5      store attempt 1 ok

look at  what fetch emitted, and what each event is connected to"""
    )


def test_wrong_states_are_listed_with_the_right_ones(monitor) -> None:
    run(monitor, failures=5)
    assert (
        message_of(
            monitor.assert_states,
            {"fetch": "completed", "price": "completed", "store": "completed"},
        )
        == """\
price: expected completed, is failed (and 1 more)

  fetch  expected completed, is completed
> price  expected completed, is failed
  store  expected completed, is pending

   t, s  commit  what happened
  2.100  #4      price attempt 2 fails, next in 0.45 s: tests.plugin.test_assertions.LockedError:…
  3.050  #5      price attempt 3 fails, next in 0.675 s: tests.plugin.test_assertions.LockedError…
  4.225  #6      price attempt 4 fails, next in 1.0125 s: tests.plugin.test_assertions.LockedErro…
> 5.738  #7      price attempt 5 fails for good: tests.plugin.test_assertions.LockedError: try 5

look at  the last attempt of price"""
    )


def test_a_wrong_order_shows_where_it_departs(monitor) -> None:
    run(monitor)
    assert (
        message_of(monitor.assert_order, ["fetch", "store", "price"])
        == """\
order: expected store after fetch, price came

  expected  fetch -> store -> price
> ended     fetch -> price -> store

   t, s  commit  what happened
  0.000  #1      the job starts with fetch.trigger
  0.800  #2      fetch attempt 1 ok, output -> price
> 1.300  #3      price attempt 1 ok, output -> store
  1.300  #4      store attempt 1 ok

look at  what feeds store: price.output -> store.input"""
    )


def test_a_routine_that_never_ended_breaks_an_order(monitor) -> None:
    run(monitor, failures=5)
    assert message_of(monitor.assert_order, ["fetch", "price", "store"]).startswith(
        "order: expected store after price, nothing more came\n"
    )


def test_a_wrong_status_comes_with_the_error_and_the_task(monitor) -> None:
    run(monitor, failures=5)
    assert (
        message_of(monitor.assert_status, "completed")
        == """\
job job: expected completed, is failed: tests.plugin.test_assertions.LockedError: try 5

  task 0.0  price.input failed at attempt 5

   t, s  commit  what happened
  2.100  #4      price attempt 2 fails, next in 0.45 s: tests.plugin.test_assertions.LockedError:…
  3.050  #5      price attempt 3 fails, next in 0.675 s: tests.plugin.test_assertions.LockedError…
  4.225  #6      price attempt 4 fails, next in 1.0125 s: tests.plugin.test_assertions.LockedErro…
> 5.738  #7      price attempt 5 fails for good: tests.plugin.test_assertions.LockedError: try 5

look at  the commit marked above, which gave it this status"""
    )


# --- several jobs ---------------------------------------------------------------------------------


def test_without_a_job_all_count_and_with_one_only_that(monitor) -> None:
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


def test_jobs_of_other_flows_are_left_out_where_the_names_are_not_theirs(monitor) -> None:
    run(monitor)
    other = Flow("other")
    other.add_routine(Fetch(), "alone")
    other.execute("alone", runtime=Runtime(clock=FakeClock(), observers=[monitor]))
    monitor.assert_states({"price": "completed"})
    monitor.assert_order(["fetch", "price"])
    with pytest.raises(FlowDefinitionError, match="no job that was watched has all of"):
        monitor.assert_states({"price": "completed", "alone": "completed"})


# --- nothing passes by mistake --------------------------------------------------------------------

ROUTINES = "known: 'fetch', 'price', 'store'"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda m: m.assert_not_run("stor"),
            f"'stor' is no routine of the flow; {ROUTINES}; did you mean 'store'?",
        ),
        (
            lambda m: m.assert_retried("xyz", times=0),
            f"'xyz' is no routine of the flow; {ROUTINES}",
        ),
        (
            lambda m: m.assert_emitted("pricing", times=0),
            f"'pricing' is no routine of the flow; {ROUTINES}; did you mean 'price'?",
        ),
        (
            lambda m: m.assert_emitted("fetch", event="emty", times=0),
            "'emty' is no event of fetch; known: 'empty', 'output'; did you mean 'empty'?",
        ),
        (
            lambda m: m.assert_flowed("fetch", "stor", times=0),
            f"'stor' is no routine of the flow; {ROUTINES}; did you mean 'store'?",
        ),
        (
            lambda m: m.assert_flowed("fetch", "store", times=0),
            (
                "no connection leads from 'fetch' to 'store'; known: fetch.output -> price.input,"
                " price.output -> store.input"
            ),
        ),
        (
            lambda m: m.assert_states({"stor": "pending"}),
            f"'stor' is no routine of the flow; {ROUTINES}; did you mean 'store'?",
        ),
        (
            lambda m: m.assert_states({"store": "complete"}),
            (
                "'complete' is no status of a routine; known: 'pending', 'completed', 'skipped',"
                " 'error_continued', 'failed'; did you mean 'completed'?"
            ),
        ),
        (
            lambda m: m.assert_order(["fetch", "stor"]),
            f"'stor' is no routine of the flow; {ROUTINES}; did you mean 'store'?",
        ),
        (
            lambda m: m.assert_order(["fetch"]),
            "an order needs two routines or more, not ['fetch']",
        ),
        (
            lambda m: m.assert_status("complete"),
            (
                "'complete' is no status of a job; known: 'pending', 'running', 'paused',"
                " 'completed', 'failed', 'cancelled'; did you mean 'completed'?"
            ),
        ),
        (
            lambda m: m.assert_not_run("store", job="jop"),
            "'jop' is no job that was watched; known: 'job'; did you mean 'job'?",
        ),
        (
            lambda m: m.assert_retried("price", times=2, delays=[0.3]),
            "assert_retried('price'): times=2 contradicts the 1 delays",
        ),
    ],
)
def test_a_name_that_is_not_known_is_an_error_even_where_nothing_is_expected(
    monitor, check, message
) -> None:
    run(monitor, failures=5)
    with pytest.raises(FlowDefinitionError) as caught:
        check(monitor)
    assert message == str(caught.value)


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
def test_nothing_holds_where_no_job_was_watched(monitor, check) -> None:
    assert (
        "no job was watched: run it while flow_runtime is in use, or with"
        " Runtime(observers=[flow_monitor])"
    ) == message_of(check, monitor)


def test_a_failure_shows_the_line_of_the_test_and_none_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from routilux import Flow, Routine

        class Idle(Routine):
            def __init__(self):
                super().__init__()
                self.define_slot("trigger", handler=self.idle)

            def idle(self):
                pass

        def test_expects_too_much(flow_runtime, flow_clock_bare, flow_monitor):
            flow = Flow("idle")
            flow.add_routine(Idle(), "idle")
            flow.execute("idle", job_id="job")
            flow_monitor.assert_retried("idle", times=2)

        def test_misspells(flow_runtime, flow_clock_bare, flow_monitor):
            flow = Flow("idle")
            flow.add_routine(Idle(), "idle")
            flow.execute("idle", job_id="job")
            flow_monitor.assert_not_run("idel")
        """
    )
    result = run_inside(pytester)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            '>       flow_monitor.assert_retried("idle", times=2)',
            "E       AssertionError: idle: expected 2 retries, made none",
            '>       flow_monitor.assert_not_run("idel")',
            "E       routilux.errors.FlowDefinitionError: 'idel' is no routine*",
        ]
    )
    result.stdout.no_fnmatch_line("*assertions.py:*")
    result.stdout.no_fnmatch_line("*watched.py:*")
