"""The system's clock: real time, waits for signals and instants, and a wall clock that is set."""

from __future__ import annotations

import threading
import time

import pytest

from routilux import FakeClock, SystemClock
from tests.routines import PATIENCE, SECOND


def test_a_signal_of_another_clock_is_refused():
    signal = FakeClock().signal()
    with pytest.raises(TypeError, match="belongs to another clock"):
        SystemClock().wait(signal, None)
    with pytest.raises(TypeError, match="belongs to another clock"):
        FakeClock().wait(SystemClock().signal(), None)


def test_the_system_clock_is_real_though_time_is_patched(monkeypatch):
    def patched(*_):
        raise AssertionError("the patched function was asked")

    for name in ("time", "time_ns", "monotonic", "monotonic_ns", "sleep", "perf_counter"):
        monkeypatch.setattr(time, name, patched)
    clock = SystemClock()
    before, wall = clock.monotonic_ns(), clock.now_ns()
    assert clock.wait(None, before + 1_000_000) is False
    assert clock.wait(clock.signal(), clock.monotonic_ns() + 1_000_000) is False
    assert clock.monotonic_ns() >= before + 2_000_000
    assert clock.now_ns() > wall > 1_700_000_000 * SECOND


def test_a_wait_of_the_system_clock_ends_when_its_signal_is_set():
    clock = SystemClock()
    signal = clock.signal()
    threading.Thread(target=signal.set).start()
    assert clock.wait(signal, None) is True
    assert clock.wait(signal, clock.monotonic_ns() + 10**12) is True
    signal.clear()
    assert clock.wait(signal, clock.monotonic_ns() - 1) is False
    with pytest.raises(ValueError, match="without a signal or an instant"):
        clock.wait(None, None)


def test_a_wait_longer_than_the_system_allows_is_split(monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr("routilux.clocks.clock.real_sleep", asked.append)
    passed = iter([0, 9 * 10**18, 10**20])
    monkeypatch.setattr("routilux.clocks.clock._monotonic_ns", lambda: next(passed))
    clock = SystemClock()
    assert clock.wait(None, 10**20) is False
    assert [threading.TIMEOUT_MAX, threading.TIMEOUT_MAX] == asked


@pytest.mark.parametrize("waiters", [1, 3])
def test_a_signal_of_the_system_clock_wakes_each_thread_that_waits_while_it_is_set(waiters):
    clock = SystemClock()
    for _ in range(200):
        signal = clock.signal()
        together = threading.Barrier(waiters + 1)
        ended: list[bool] = []

        def waits(signal=signal, together=together, ended=ended):
            together.wait(PATIENCE)
            ended.append(clock.wait(signal, clock.monotonic_ns() + 10 * SECOND))

        threads = [threading.Thread(target=waits) for _ in range(waiters)]
        for thread in threads:
            thread.start()
        together.wait(PATIENCE)
        signal.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [True] * waiters == ended
        assert signal.is_set()
