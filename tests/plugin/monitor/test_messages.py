"""The texts of failed assertions, word for word, for flows that are broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux import FlowMonitor
from routilux import ErrorHandler, Flow
from tests.plugin.golden import compare, sections
from tests.plugin.monitor.pricing import (
    Interrupted,
    LockedError,
    Store,
    execute,
    message_of,
    run,
    shop,
)

GOLDEN = sections("assertions.txt")
DELAYS = [0.3, 0.45, 0.675, 1.0125]
STATES = {"fetch": "completed", "price": "completed", "store": "failed"}

CASES: dict[str, tuple[dict[str, int], Callable[[Any], None]]] = {
    "a delay is wrong": (
        {"failures": 4},
        lambda m: m.assert_retried("price", times=4, delays=[0.3, 0.45, 0.675, 0.675]),
    ),
    "a retry too many": ({"failures": 2}, lambda m: m.assert_retried("price", times=1)),
    "a retry too few": ({"failures": 2}, lambda m: m.assert_retried("price", times=3)),
    "no retry at all": ({}, lambda m: m.assert_retried("price")),
    "no attempt at all": ({"failures": 5}, lambda m: m.assert_retried("store")),
    "another payload": (
        {},
        lambda m: m.assert_emitted("fetch", event="output", data={"order": {"id": 0, "total": 13}}),
    ),
    "a field that is missing": ({}, lambda m: m.assert_emitted("price", data={"tax": 1})),
    "an emission too many": ({"orders": 3}, lambda m: m.assert_emitted("price", "output", times=1)),
    "nothing emitted": ({"failures": 5}, lambda m: m.assert_emitted("price")),
    "a routine that ran": ({"orders": 2}, lambda m: m.assert_not_run("store")),
    "a delivery too many": ({"orders": 2}, lambda m: m.assert_flowed("fetch", "price", times=1)),
    "nothing delivered": ({"failures": 5}, lambda m: m.assert_flowed("price", "store")),
    "other states": ({"failures": 5}, lambda m: m.assert_states(STATES)),
    "another order": ({}, lambda m: m.assert_order(["fetch", "store", "price"])),
    "an order cut short": ({"failures": 5}, lambda m: m.assert_order(["fetch", "price", "store"])),
    "another status": ({"failures": 5}, lambda m: m.assert_status("completed")),
}


@pytest.fixture
def monitor() -> FlowMonitor:
    return FlowMonitor()


def text_of(monitor: FlowMonitor, name: str) -> str:
    options, check = CASES[name]
    run(monitor, **options)
    return re.sub(r"raised   \S*(pricing\.py):\d+", r"raised   \1", message_of(check, monitor))


@pytest.mark.parametrize("name", CASES)
def test_the_whole_text_of_a_failure(monitor, name):
    text = text_of(monitor, name)
    compare(GOLDEN[name], text, name)
    lines = text.splitlines()
    assert 25 >= len(lines)
    assert 72 >= max(map(len, lines[1:]))


def test_every_golden_text_has_its_case():
    assert set(CASES) == set(GOLDEN)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"retry_backoff": 2.0}, "retry 2 of price: expected 0.45 s, waited 0.6 s"),
        ({"retry_delay": 0.4}, "retry 1 of price: expected 0.3 s, waited 0.4 s"),
        ({"max_delay": 1.0}, "retry 4 of price: expected 1.0125 s, waited 1 s"),
        ({"max_retries": 3}, "price: expected 4 retries, made 3"),
        ({"retryable_exceptions": OSError}, "price: expected 4 retries, but none was made"),
    ],
)
def test_the_first_line_names_the_first_wrong_wait_of_a_changed_policy(monitor, broken, problem):
    flow = shop(4)
    meant = {"max_retries": 4, "retry_delay": 0.3, "retry_backoff": 1.5}
    flow.routines["price"].set_error_handler(ErrorHandler("retry", **(meant | broken)))
    execute(flow, monitor)
    message = message_of(monitor.assert_retried, "price", times=4, delays=DELAYS)
    assert problem == message.splitlines()[0]


def test_the_message_says_that_a_deadline_kept_a_retry_from_being_made(monitor):
    flow = shop(4)
    handler = ErrorHandler("retry", 4, retry_delay=1, deadline=5)
    flow.routines["price"].set_error_handler(handler)
    execute(flow, monitor)
    message = message_of(monitor.assert_retried, "price", times=4)
    assert "price: expected 4 retries, made 2" == message.splitlines()[0]
    why = "(not retried: the next wait of 4 s would pass the deadline of 5 s)"
    assert why in " ".join(message.split())
    assert "look at  max_retries, deadline and retryable_exceptions" in message


def test_a_missing_connection_is_named(monitor):
    flow = Flow("shop")
    for name, routine in shop().routines.items():
        flow.add_routine(routine, name)
    flow.connect("fetch", "output", "price", "input")
    execute(flow, monitor)
    assert message_of(monitor.assert_states, {"store": "completed"}).endswith(
        "look at  why no attempt of store ended; connections to store: none"
    )


def test_an_attempt_that_started_and_never_ended_counts_as_a_run(monitor):
    with pytest.raises(KeyboardInterrupt):
        execute(shop(store=Interrupted()), monitor)
    assert message_of(monitor.assert_not_run, "store").startswith(
        "store: expected no attempt, but 1 attempt started\n\n> task 0.0.0  attempt 1\n"
    )


class Wordy(Store):
    def store(self, total: int) -> None:
        raise LockedError("a line of it\n" * 500)


def test_an_error_of_many_lines_takes_one_line_of_the_timeline(monitor):
    execute(shop(store=Wordy()), monitor)
    text = message_of(monitor.assert_states, {"store": "completed"})
    assert "> 1.300  #4  store attempt 1 fails for good: LockedError: a line of it …" in text
    assert 72 >= max(map(len, text.splitlines()))
    assert 21 >= len(text.splitlines())
    status = message_of(monitor.assert_status, "completed")
    assert (
        "job job: expected completed, is failed: LockedError: a line of it a line of it a line"
        in status
    )
    for message in (text, status):
        assert 7 == len(re.findall(r"\n(?:error  |       )  .*a line of it", message))
        assert "\n         …\nraised   " in message
    assert 25 >= len(status.splitlines())


class Unreachable(Store):
    def store(self, total: int) -> None:
        raise LockedError(
            "the ledger at https://ledger.example.com/v1/accounts/7 does not answer; check that"
            " LEDGER_URL is set and the VPN is up"
        )


def test_a_long_error_is_shown_in_full_with_the_line_that_raised_it(monitor):
    job = execute(shop(store=Unreachable()), monitor, job_id=None)
    line = Unreachable.store.__code__.co_firstlineno + 1
    here = Path(__file__).relative_to(Path.cwd())
    status = message_of(monitor.assert_status, "completed")
    states = message_of(monitor.assert_states, {"store": "completed"})
    for text in (status, states, message_of(monitor.assert_not_run, "store")):
        assert (
            "\n\n"
            "error    LockedError: the ledger at\n"
            "         https://ledger.example.com/v1/accounts/7 does not answer; check\n"
            "         that LEDGER_URL is set and the VPN is up\n"
            f"raised   {here}:{line}\n"
        ) in text
        assert 72 >= max(map(len, text.splitlines()[1:]))
    assert status.startswith(
        f"job {job.job_id[:8]}…: expected completed, is failed: LockedError: the ledger"
    )


def test_a_golden_text_with_a_wrong_figure_fails_at_its_line(monitor):
    golden, text = GOLDEN["a delay is wrong"], text_of(monitor, "a delay is wrong")
    with pytest.raises(AssertionError, match=r"^it, line \d+:\n  expected  .*1\.0126"):
        compare(golden.replace("1.0125", "1.0126", 1), text, "it")


def test_a_golden_text_that_is_longer_or_shorter_fails():
    with pytest.raises(AssertionError, match=r"line 2:\n  expected  'b'\n  is        None"):
        compare("a\nb", "a")
    with pytest.raises(AssertionError, match=r"line 2:\n  expected  None\n  is        'b'"):
        compare("a", "a\nb")
