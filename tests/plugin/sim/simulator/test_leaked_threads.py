"""Finds threads that a step leaves running, and no others."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from tests.plugin.sim.steps import START, chain, same

ALONE = Checks(isolated=False)  # the server of a test is not in other processes


@pytest.fixture
def stop():
    """An event that ends the threads of a test."""
    stop = threading.Event()
    yield stop
    stop.set()
    assert threading.Thread.start.__module__ == "threading"
    assert ThreadPoolExecutor.submit.__module__ == "concurrent.futures.thread"


def starts(stop):
    threading.Thread(target=stop.wait, daemon=True).start()


def starts_in_another_thread(stop):
    thread = threading.Thread(target=stop.wait, daemon=True)
    first = threading.Thread(target=thread.start)
    first.start()
    first.join()


def starts_a_timer(stop):
    threading.Timer(0, stop.wait).start()


def gives_a_pool_work(stop):
    ThreadPoolExecutor().submit(stop.wait)


def gives_a_pool_that_is_running_work(stop):
    POOL.submit(int).result()
    POOL.submit(stop.wait)


POOL = ThreadPoolExecutor(2)


@pytest.mark.parametrize(
    ("leak", "line", "what"),
    [
        (starts, 1, "starts the thread 'Thread-"),
        (starts_in_another_thread, 3, "starts the thread 'Thread-"),
        (starts_a_timer, 1, "starts the thread 'Thread-"),
        (gives_a_pool_work, 1, "hands work to a thread pool that"),
        (gives_a_pool_that_is_running_work, 2, "hands work to a thread pool that"),
    ],
)
def test_a_thread_that_outlives_its_step_is_found_with_the_line_that_starts_it(
    stop, leak, line, what
):
    def leaks(routine, number):
        leak(stop)
        return number

    finding = explore(chain(same, leaks), START, ALONE).reference.finding
    assert ("leaked-thread", "r1") == (finding.kind, finding.routine)
    assert f"{__file__}:{leak.__code__.co_firstlineno + line}" == finding.hint
    assert f"r1 {what}" in finding.what
    assert finding.what.endswith("outlives the step")


def test_a_pool_whose_work_is_done_is_no_leak():
    def works(routine, number):
        return POOL.submit(int, number).result() + sum(POOL.map(int, [1, 2]))

    def ends_by_itself(routine, number):
        done = threading.Event()
        threading.Thread(target=done.set).start()
        done.wait()
        return number

    found = explore(chain(works, ends_by_itself), START, ALONE)
    assert (None, []) == (found.reference.finding, found.failures)


def test_a_thread_that_is_joined_and_one_of_the_tests_server_are_no_leaks(stop):
    asked = queue.Queue()

    def answer(answered):
        answered.set()
        stop.wait()

    def serve():
        while (answered := asked.get()) is not None:
            threading.Thread(target=answer, args=[answered], daemon=True).start()

    def asks(routine, number):
        answered = threading.Event()
        asked.put(answered)
        answered.wait()
        return number

    def joins(routine, number):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return number

    threading.Thread(target=serve, daemon=True).start()
    found = explore(chain(joins, asks), START, ALONE)
    asked.put(None)
    assert (None, []) == (found.reference.finding, found.failures)
