"""`frozen_simulation`: handlers read their own virtual time from `time` and `datetime`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import freezegun
import pytest

from pytest_routilux.faults.faults import ClockJump
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, World
from pytest_routilux.virtual_time.freeze import frozen_clock, frozen_simulation
from routilux import Flow, JobState
from routilux.clocks.durations import instant_ns
from tests.routines import Body, fan

START = instant_ns("2026-03-01T12:00:00")
NOON = datetime(2026, 3, 1, 12)


def emits(work: Callable[[Any], object]) -> Body:
    """A body that emits what a function of the context returns."""

    def body(self: Any, n: object = 0) -> None:
        self.emit("out", n=work(self.ctx))

    return body


def flow_of(*works: Callable[[Any], object], workers: int | None = None) -> Flow:
    first, *others = map(emits, works)
    return fan(first, workers=workers, **{f"r{n}": body for n, body in enumerate(others, 1)})


def ran(*works: Callable[[Any], object], faults: Any = (), workers: int | None = None) -> JobState:
    case = Case(lambda: flow_of(*works, workers=workers), "source", faults=faults)
    host = run_host(case, World(START))
    assert host.error is None
    host.job.raise_for_status()
    return host.job


def result(job: JobState) -> Any:
    return job.commits[1].emissions[0].payload["n"]


def test_a_sleep_is_the_duration_of_the_step_and_takes_no_time():
    def nap(ctx: Any) -> object:
        began = time.monotonic()
        time.sleep(3600)
        return time.monotonic() - began

    with frozen_simulation(START):
        job = ran(nap)
    assert 3600.0 == result(job)
    assert START + 3600 * 10**9 == job.commits[-1].at_ns


def test_steps_that_overlap_have_a_time_each():
    def slow(ctx: Any) -> object:
        time.sleep(2)
        return datetime.now()

    def fast(ctx: Any) -> object:
        time.sleep(1)
        return datetime.now()

    with frozen_simulation(START):
        job = ran(lambda ctx: None, slow, fast, workers=2)
    ends = {c.routine_id: c.emissions[0].payload["n"] for c in job.commits[2:]}
    assert {"r1": NOON + timedelta(seconds=2), "r2": NOON + timedelta(seconds=1)} == ends


def test_outside_of_handlers_the_time_is_the_first_instant():
    with frozen_simulation(START):
        assert NOON == datetime.now()
        ran(lambda ctx: time.sleep(5))
        assert NOON == datetime.now()
        assert START == time.time_ns()
        assert 0.0 == time.monotonic()


def test_a_host_that_resumes_later_reads_its_own_time():
    case = Case(lambda: flow_of(lambda ctx: None, lambda ctx: datetime.now()), "source")
    with frozen_simulation(START):
        run = run_undisturbed(case, START)
        point = next(p for p in crash_points(run) if p.kind == "after a write")
        later = replace(point, resume_ns=START + 60 * 10**9)
        job = recover(run, later).host.job
    assert job.outputs[-1].data["n"] == NOON + timedelta(seconds=60)


def test_a_clock_that_jumps_moves_no_timer():
    def read(ctx: Any) -> object:
        return datetime.now(), time.monotonic()

    with frozen_simulation(START):
        _, timer = result(ran(read))
        job = ran(read, faults=[ClockJump(-3600)])
    assert (NOON - timedelta(hours=1), timer) == result(job)


def test_a_freeze_inside_a_handler_is_refused_whatever_the_handler_catches():
    def read(ctx: Any) -> object:
        try:
            with freezegun.freeze_time("2000-01-01"):
                return datetime.now()
        except Exception:
            return "caught"

    with frozen_simulation(START), pytest.raises(pytest.fail.Exception) as caught:
        result(ran(read))
    assert "flow_sim and freeze_time('2000-01-01 00:00:00') at " in str(caught.value)


def test_a_fake_clock_and_a_simulation_nest_in_either_order():
    def read(ctx: Any) -> object:
        time.sleep(1)
        return datetime.now()

    with frozen_clock() as clock, frozen_simulation(START):
        clock.advance(10)
        assert datetime(2026, 1, 1, 0, 0, 10) == datetime.now()
        assert NOON + timedelta(seconds=1) == result(ran(read))
    with frozen_simulation(START), frozen_clock() as clock:
        clock.advance(10)
        assert datetime(2026, 1, 1, 0, 0, 10) == datetime.now()
        assert NOON + timedelta(seconds=1) == result(ran(read))


def test_a_sleep_of_a_thread_that_a_handler_starts_is_real(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("pytest_routilux.virtual_time.freeze.real_sleep", slept.append)

    def starts_one(ctx: Any) -> object:
        began = time.monotonic()
        thread = threading.Thread(target=lambda: time.sleep(7))
        thread.start()
        thread.join()
        return time.monotonic() - began

    with frozen_simulation(START):
        assert 0.0 == result(ran(starts_one))
    assert [7] == slept
