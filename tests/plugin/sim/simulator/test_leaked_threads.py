"""Finds threads that a step leaves running, and no others."""

from __future__ import annotations

import queue
import threading

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


@pytest.mark.parametrize("by_another_thread", [False, True])
def test_a_thread_that_outlives_its_step_is_found(stop, by_another_thread):
    def leaks(routine, number):
        thread = threading.Thread(target=stop.wait, daemon=True)
        if by_another_thread:
            first = threading.Thread(target=thread.start)
            first.start()
            first.join()
        else:
            thread.start()
        return number

    finding = explore(chain(same, leaks), START, ALONE).reference.finding
    assert ("leaked-thread", "r1") == (finding.kind, finding.routine)


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
