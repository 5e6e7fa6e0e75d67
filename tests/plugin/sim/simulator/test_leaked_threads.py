"""Finds threads that a step leaves running, and no others."""

from __future__ import annotations

import queue
import threading
from typing import Any

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from tests.plugin.sim.steps import START, chain, same


def test_a_thread_that_outlives_its_step_is_found_and_one_that_is_joined_is_not():
    stop = threading.Event()

    def leaks(routine: Any, number: Any) -> object:
        threading.Thread(target=stop.wait, daemon=True).start()
        return number

    def joins(routine: Any, number: Any) -> object:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return number

    try:
        finding = explore(chain(same, leaks), START, Checks()).reference.finding
    finally:
        stop.set()
    assert ("leaked-thread", "r1") == (finding.kind, finding.routine)
    assert explore(chain(same, joins), START, Checks()).reference.finding is None


def test_a_thread_of_a_threads_own_is_found_and_one_of_the_tests_server_is_not():
    stop = threading.Event()

    def leaks(routine: Any, number: Any) -> object:
        again = threading.Thread(target=stop.wait, daemon=True)
        first = threading.Thread(target=again.start)
        first.start()
        first.join()
        return number

    asked: queue.Queue[threading.Event | None] = queue.Queue()

    def answer(answered: threading.Event) -> None:
        answered.set()
        stop.wait()

    def serve() -> None:
        while (answered := asked.get()) is not None:
            threading.Thread(target=answer, args=[answered], daemon=True).start()

    def asks(routine: Any, number: Any) -> object:
        answered = threading.Event()
        asked.put(answered)
        answered.wait()
        return number

    threading.Thread(target=serve, daemon=True).start()
    checks = Checks(isolated=False)  # the server is not in other processes
    try:
        finding = explore(chain(same, leaks), START, checks).reference.finding
        assert ("leaked-thread", "r1") == (finding.kind, finding.routine)
        found = explore(chain(same, asks), START, checks)
        assert (None, []) == (found.reference.finding, found.failures)
    finally:
        stop.set()
        asked.put(None)
    assert threading.Thread.start.__module__ == "threading"
