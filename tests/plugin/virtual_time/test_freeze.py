"""flow_clock: virtual time for code that asks time and datetime, real time for all machinery."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import ctypes
import datetime as dt
import gc
import json
import logging
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import product
from time import monotonic, sleep
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_routilux import settings
from pytest_routilux.virtual_time import freeze
from pytest_routilux.virtual_time.freeze import frozen_clock, frozen_simulation
from routilux import (
    ErrorHandler,
    ExecutionStrategy,
    FakeClock,
    JobState,
    Routine,
    Runtime,
    SystemClock,
)
from tests.plugin.inner import run_first
from tests.routines import Works, chain, fan, send
from tests.soak import also

STRATEGIES: list[ExecutionStrategy] = ["sequential", "concurrent"]
START = datetime(2026, 1, 1, tzinfo=UTC)
START_NS = FakeClock().now_ns()
REAL_DATE, REAL_DATETIME = settings.REAL_CLASSES


def flow_of(work, strategy="sequential", handler=None):
    """Return a flow whose handler calls a function, and emits what that returns."""

    def do(self: Routine, n: object = 0) -> None:
        self.emit("out", n=work(self.ctx))

    async def do_async(self: Routine, n: object = 0) -> None:
        self.emit("out", n=await work(self.ctx))

    body = do_async if asyncio.iscoroutinefunction(work) else do
    return chain(do=Works(body, handler), workers=1 if strategy == "concurrent" else None)


def run(clock: FakeClock, work: Callable[..., Any], *options: Any) -> JobState:
    with Runtime(clock=clock) as runtime:
        return flow_of(work, *options).execute("do", runtime=runtime)


def result_of(job: JobState) -> Any:
    job.raise_for_status()
    return job.outputs[0].data["n"]


def in_time(work: Callable[[], Any]) -> Any:
    """Call a function that never ends if one of its timers is virtual."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(30)
    assert results, "the function did not end within 30 s: is one of its timers virtual?"
    return results[0]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lengths of all real sleeps, which are skipped."""
    lengths: list[float] = []
    monkeypatch.setattr(freeze, "real_sleep", lengths.append)
    return lengths


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Imports a module of the given name and text, which is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def import_it(name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        names.append(name)
        return __import__(name)

    yield import_it
    for name in names:
        sys.modules.pop(name, None)


# --- what follows the clock -----------------------------------------------------------------------


def every_reading(ctx: Any) -> dict[str, object]:
    ctx.sleep(0.123457)
    return {
        "ctx.now": ctx.now(),
        "datetime.now": datetime.now(),
        "datetime.now(utc)": datetime.now(UTC),
        "datetime.now(+9)": datetime.now(timezone(timedelta(hours=9))),
        "dt.datetime.today": dt.datetime.today(),
        "date.today": date.today(),
        "time.time": time.time(),
        "time.time_ns": time.time_ns(),
        "time.monotonic": time.monotonic(),
        "monotonic": monotonic(),
        "time.monotonic_ns": time.monotonic_ns(),
        "time.perf_counter": time.perf_counter(),
        "time.perf_counter_ns": time.perf_counter_ns(),
        "time.localtime": time.strftime("%FT%T", time.localtime()),
        "time.gmtime": time.strftime("%FT%T", time.gmtime()),
        "time.strftime": time.strftime("%FT%T"),
        "time.ctime": time.ctime(),
        "time.asctime": time.asctime(),
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_that_a_handler_reads_agrees_to_the_microsecond(flow_clock, strategy):
    flow_clock.advance(86_400.5)
    then = START + timedelta(seconds=86_400.623457)
    assert {
        "ctx.now": then,
        "datetime.now": then.replace(tzinfo=None),
        "datetime.now(utc)": then,
        "datetime.now(+9)": then,
        "dt.datetime.today": then.replace(tzinfo=None),
        "date.today": date(2026, 1, 2),
        "time.time": 1767312000.623457,
        "time.time_ns": 1767312000_623457_000,
        "time.monotonic": 86400.623457,
        "monotonic": 86400.623457,
        "time.monotonic_ns": 86400_623457_000,
        "time.perf_counter": 86400.623457,
        "time.perf_counter_ns": 86400_623457_000,
        "time.localtime": "2026-01-02T00:00:00",
        "time.gmtime": "2026-01-02T00:00:00",
        "time.strftime": "2026-01-02T00:00:00",
        "time.ctime": "Fri Jan  2 00:00:00 2026",
        "time.asctime": "Fri Jan  2 00:00:00 2026",
    } == result_of(run(flow_clock, every_reading, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_log_record_is_of_virtual_time(flow_clock, strategy, caplog):
    def work(ctx: Any) -> None:
        ctx.sleep(7)
        logging.getLogger("shop").warning("no stock")

    result_of(run(flow_clock, work, strategy))
    assert [1767225607.0] == [record.created for record in caplog.records]


def test_process_time_and_thread_time_stay_real(flow_clock):
    flow_clock.advance(10**6)
    assert 0 < time.process_time() < 10**5
    assert time.thread_time() < 10**5
    assert time.clock_gettime(time.CLOCK_REALTIME) > 1767225600 + 10**6


def test_a_wall_clock_that_is_set_back_moves_no_timer(flow_clock):
    flow_clock.advance(10)
    flow_clock.jump(-3600)
    assert (10.0, 10.0) == (time.monotonic(), time.perf_counter())
    assert START - timedelta(seconds=3590) == datetime.now(UTC)


def test_nanoseconds_below_a_microsecond_are_cut_in_every_reading(flow_clock):
    flow_clock.advance(0.0000019)
    assert 1000 == datetime.now(UTC).microsecond * 1000 == time.time_ns() % 10**9
    assert 1900 == time.monotonic_ns()


def test_local_time_is_utc_in_every_zone(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with frozen_clock():
            assert datetime(2026, 1, 1) == datetime.now()
            assert time.time() == datetime.now().timestamp()
            assert 0 == time.localtime().tm_hour
        assert "America/New_York" == os.environ["TZ"]
        assert -18_000 == datetime(2026, 1, 1).astimezone().utcoffset().total_seconds()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_module_imported_during_the_test_follows_too(flow_clock, imported):
    # Its name begins like that of a module whose timers are real.
    worker = imported(
        "queue_worker",
        "from datetime import datetime\nfrom time import sleep, time\n"
        "def work(ctx):\n    sleep(2)\n    return datetime.now(), time()",
    )
    assert (datetime(2026, 1, 1, 0, 0, 2), 1767225602.0) == result_of(run(flow_clock, worker.work))


def test_a_module_imported_during_the_test_reads_real_time_after_it(imported):
    with frozen_clock():
        late = imported("late", "from datetime import datetime\nfrom time import sleep, time")
        assert late.sleep is not freeze.real_sleep
    assert late.sleep is time.sleep
    assert late.time is time.time
    assert late.datetime is datetime


def test_a_late_module_of_the_standard_library_reads_real_time_after_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    with frozen_clock():
        late: Any = __import__("sched")
        assert late._time is time.monotonic is not settings.REAL_TIME["monotonic"]
    assert late._time is time.monotonic is settings.REAL_TIME["monotonic"]


# --- sleeping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sleep_in_a_handler_is_virtual_however_it_was_imported(flow_clock, slept, strategy):
    def work(ctx: Any) -> float:
        time.sleep(0.3)
        sleep(1)
        return time.monotonic()

    assert 1.3 == result_of(run(flow_clock, work, strategy))
    assert [("do", 300_000_000), ("do", 10**9)] == [(w.who, w.length_ns) for w in flow_clock.waits]
    assert [] == slept


def test_two_handlers_that_sleep_overlap(flow_clock, slept):
    nap = lambda self, n=0: time.sleep(1)  # noqa: E731 - both routines have it
    flow = fan(send, workers=2, a=nap, b=nap)
    with Runtime(clock=flow_clock) as runtime:
        flow.execute("source", runtime=runtime).raise_for_status()
    assert 1.0 == time.monotonic()
    assert [] == slept


def test_a_sleep_of_the_test_itself_is_real(flow_clock, slept):
    time.sleep(5)
    sleep(6)
    assert [5, 6] == slept
    assert 0.0 == time.monotonic()


@pytest.mark.parametrize("context", [contextvars.Context(), None])
def test_a_sleep_in_a_thread_of_the_handlers_own_is_real(flow_clock, slept, context):
    def work(ctx: Any) -> None:
        # As asyncio.to_thread does, a thread may even have the context of the step.
        own = contextvars.copy_context() if context is None else context
        thread = threading.Thread(target=own.run, args=(lambda: time.sleep(7),), daemon=True)
        thread.start()
        thread.join(10)

    result_of(run(flow_clock, work))
    assert [7] == slept
    assert 0.0 == time.monotonic()


def test_routilux_sleep_real_leaves_a_handlers_sleep_real(slept):
    with frozen_clock("real") as clock:
        result_of(run(clock, lambda ctx: time.sleep(3)))
        assert ([3], 0.0) == (slept, time.monotonic())


def test_a_sleep_stops_where_the_timeout_of_the_attempt_ends(flow_clock):
    job = run(flow_clock, lambda ctx: time.sleep(60), "sequential", ErrorHandler("stop", timeout=2))
    assert "StepTimeoutError" in str(job.error)
    assert 2.0 == time.monotonic()


@pytest.mark.parametrize(
    ("length", "error", "message"),
    [
        (-1, ValueError, "sleep length must be non-negative"),
        ("1", TypeError, "'str' object cannot be interpreted as an integer"),
    ],
)
def test_a_length_that_sleep_refuses_is_refused_in_the_same_words(
    flow_clock, length, error, message
):
    for place in (lambda ctx: time.sleep(length), lambda ctx: freeze.real_sleep(length)):
        assert f"{error.__name__}: {message}" == str(run(flow_clock, place).error)


# --- async handlers -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_async_handler_and_its_event_loop_sleep_and_read_virtually(flow_clock, slept, strategy):
    async def work(ctx: Any) -> tuple[float, datetime]:
        time.sleep(2)  # noqa: ASYNC251 - it is virtual
        await ctx.asleep(1)
        async with asyncio.timeout(60):
            await asyncio.sleep(30)
        return time.monotonic(), datetime.now()

    assert (33.0, datetime(2026, 1, 1, 0, 0, 33)) == result_of(
        in_time(lambda: run(flow_clock, work, strategy))
    )
    assert [] == slept


# --- what stays real ------------------------------------------------------------------------------


def wait_for_queue() -> None:
    with pytest.raises(queue.Empty):
        queue.Queue().get(timeout=0.01)


def wait_for_condition() -> None:
    condition = threading.Condition()
    with condition:
        assert not condition.wait_for(lambda: False, timeout=0.01)


def wait_for_future() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert concurrent.futures.wait([future], timeout=0.01).not_done
    with pytest.raises(TimeoutError):
        next(concurrent.futures.as_completed([future], timeout=0.01))


def wait_for_process() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        process.wait(timeout=0.01)


def wait_for_late_queue() -> None:
    # A module that is imported now finds virtual functions in time.
    before = sys.modules.pop("queue")
    try:
        late: Any = __import__("queue")
    finally:
        sys.modules["queue"] = before
    assert late.time is time.monotonic
    with pytest.raises(late.Empty):
        late.Queue().get(timeout=0.01)


def wait_for_pipe() -> None:
    end, _ = multiprocessing.Pipe()
    assert not end.poll(0.01)


REAL_TIMERS = [value for name, value in globals().items() if name.startswith("wait_for_")]


@pytest.mark.parametrize(
    ("strategy", "timer"),
    [
        *product(["concurrent"], REAL_TIMERS),
        *also(*product(["sequential"], REAL_TIMERS)),
    ],
)
def test_timers_of_threads_and_processes_stay_real_in_a_handler(flow_clock, strategy, timer):
    real = SystemClock()
    begun = real.monotonic_ns()
    result_of(in_time(lambda: run(flow_clock, lambda ctx: timer(), strategy)))
    assert real.monotonic_ns() - begun >= 10_000_000
    assert 0.0 == time.monotonic()


@pytest.mark.parametrize("fixture", ["flow_clock", "flow_sim"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_handler_reads_the_fake_clock_of_its_own_runtime(fixture, strategy, request):
    request.getfixturevalue(fixture)
    own = FakeClock("2030-06-01T12:00:00+00:00")

    def reads(self: Routine) -> None:
        before = monotonic()
        sleep(90)
        assert 90 == monotonic() - before
        assert self.ctx.now() == datetime.now(UTC) == datetime.fromtimestamp(time.time(), UTC)
        self.emit("out", n=datetime.now(UTC).isoformat())

    flow = chain(workers=None if strategy == "sequential" else 2, a=reads)
    for run in (flow.execute, lambda *args, **kwargs: flow.start(*args, **kwargs).wait()):
        job = run("a", runtime=Runtime(clock=own))
        job.raise_for_status()
    assert "2030-06-01T12:03:00+00:00" == job.outputs[0].data["n"]
    assert START == datetime.now(UTC), "the test itself reads the clock of the fixture"


def test_a_runtime_without_the_clock_runs_in_real_time(flow_clock):
    job = flow_of(lambda ctx: ctx.now()).execute("do", runtime=Runtime())
    assert abs(result_of(job) - START) > timedelta(days=1)


def test_durations_and_timestamps_of_pytest_stay_real(pytester):
    pytester.makepyfile(
        """
        import time
        from tests.routines import chain

        def test_waits_for_days(flow_runtime, flow_clock, benchmark):
            for workers in (None, 1):
                flow = chain(a=lambda self, n=0: time.sleep(1_000_000), workers=workers)
                flow.execute("a").raise_for_status()
            benchmark(flow_clock.now)
        """
    )
    before = datetime.now(UTC)
    result = run_first(
        pytester,
        *("-p", "pytest_benchmark.plugin", "--benchmark-json=bench.json"),
        *("--benchmark-max-time=0.01", "--junitxml=report.xml", "--durations=0", "-vv"),
    )
    result.assert_outcomes(passed=1)
    suite = ET.parse(pytester.path / "report.xml").getroot()[0]
    assert abs(datetime.fromisoformat(suite.attrib["timestamp"]) - before) < timedelta(hours=1)
    assert 0 < float(suite.attrib["time"]) < 100
    assert 0 < float(suite[0].attrib["time"]) < 100
    [benchmark] = json.loads((pytester.path / "bench.json").read_text("utf-8"))["benchmarks"]
    assert 0 < benchmark["stats"]["min"] < 0.1


# --- what now() gives -----------------------------------------------------------------------------


def test_what_now_gives_is_an_ordinary_datetime(flow_clock):
    now, today = datetime.now(UTC), date.today()
    assert ("datetime", "date") == (type(now).__name__, type(today).__name__)
    assert REAL_DATETIME is type(now) is type(datetime(2026, 1, 1))
    assert REAL_DATETIME is type(datetime.fromisoformat("2026-01-01"))
    assert REAL_DATE is type(today) is type(date(2026, 1, 1))
    assert type(now) == datetime  # noqa: E721 - as user code may ask
    assert isinstance(now, date)
    assert issubclass(datetime, date)
    assert "moment" == {datetime: "moment"}[type(now)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_datetime_is_pickled_as_anywhere_else(protocol):
    moment = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=UTC), date(2026, 1, 1)
    with frozen_clock():
        inside = pickle.dumps(moment, protocol)
        assert moment == pickle.loads(inside)
        twin = copy.deepcopy([*moment])
    assert [*moment] == twin
    assert [*map(type, moment)] == [*map(type, twin)] == [*map(type, pickle.loads(inside))]
    assert b"freez" not in inside


def test_a_payload_with_a_time_of_user_code_can_be_saved(flow_clock):
    job = run(flow_clock, lambda ctx: [datetime.now(), date.today()])
    assert [datetime(2026, 1, 1), date(2026, 1, 1)] == result_of(job)
    assert job == JobState.deserialize(job.serialize())


def test_a_class_derived_from_datetime_makes_its_own_instances(flow_clock):
    class Moment(datetime):
        pass

    assert Moment is type(Moment.now()) is type(Moment(2026, 1, 1)) is type(Moment.now(UTC))
    assert START == Moment.now(UTC)
    assert not isinstance(datetime.now(), Moment)


class _Capi(ctypes.Structure):
    """The beginning of what `PyDateTime_IMPORT` gives to an extension module."""

    _fields_ = (("date", ctypes.c_void_p), ("datetime", ctypes.c_void_p))


def test_an_extension_module_that_is_imported_meets_the_classes_of_c(flow_clock):
    get = ctypes.pythonapi.PyCapsule_Import
    get.restype = ctypes.POINTER(_Capi)
    capi = get(b"datetime.datetime_CAPI", 0).contents
    assert (id(dt.date), id(dt.datetime)) == (capi.date, capi.datetime)
    assert type is type(dt.datetime) is type(dt.date)
    # Cython checks the size of a class that it derives from, and of one instance.
    assert type(datetime.now()).__basicsize__ == dt.datetime.__basicsize__


def test_a_class_of_an_extension_module_reads_virtual_time(flow_clock):
    class Timestamp(datetime):  # as pandas derives its own
        __slots__ = ()

    assert datetime(2026, 1, 1) == Timestamp.now() == Timestamp.today() == Timestamp.utcnow()
    assert Timestamp is type(Timestamp.today())


# --- beginning and ending -------------------------------------------------------------------------


def names_of_time() -> dict[str, object]:
    return {
        f"{module.__name__}.{name}": value
        for module in (time, dt, sys.modules[__name__], threading, queue, subprocess)
        for name, value in vars(module).items()
        if name != "tzname" and not name.startswith("__")
    }


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("frozen", [frozen_clock, lambda: frozen_simulation(START_NS)])
def test_everything_is_as_before_when_it_ends(frozen, error):
    before, zone = names_of_time(), os.environ.get("TZ")
    with suppress(ValueError, KeyboardInterrupt), frozen():
        assert START == datetime.now(UTC)
        if error is not None:
            raise error
    assert before == names_of_time()
    assert zone == os.environ.get("TZ")
    assert abs(datetime.now(UTC) - START) > timedelta(days=1)


def test_a_function_taken_during_the_test_is_real_after_it():
    with frozen_clock() as fake:
        clock, timer, now = time.time, time.monotonic, datetime.now
        assert (START.timestamp(), 0.0) == (clock(), timer())
    fake.advance(1)  # moves nothing but itself
    assert abs(clock() - START.timestamp()) > 86_400
    assert time.monotonic() <= timer() <= time.monotonic()
    assert abs(now(UTC) - START) > timedelta(days=1)


def test_the_module_time_has_no_new_names_afterwards(monkeypatch):
    monkeypatch.delattr(time, "clock", raising=False)  # freezegun leaves one where it is used alone
    with frozen_clock():
        pass
    assert not hasattr(time, "clock")


def test_a_sleep_that_a_test_replaces_stays_replaced(monkeypatch):
    monkeypatch.setattr(time, "sleep", len)
    with frozen_clock():
        pass
    assert time.sleep is len


# --- what it costs --------------------------------------------------------------------------------


def events_of_a_test() -> int:
    """Return how many functions run to begin and to end virtual time, in Python or called by it."""
    found = 0

    def count(frame: object, event: str, what: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    with frozen_clock():  # searches the new modules
        pass
    freeze.put_back(scope_ended=False)
    gc.disable()  # a collection calls the callbacks of Hypothesis
    sys.setprofile(count)
    try:
        with frozen_clock():
            pass
        freeze.put_back(scope_ended=False)
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


def test_the_cost_does_not_grow_with_the_modules_that_are_loaded(monkeypatch):
    before = events_of_a_test()
    for number in range(2000):
        module = ModuleType(f"library_{number}")
        vars(module).update({f"name_{n}": n for n in range(20)}, datetime=datetime)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(freeze._patches, "_known", {})  # all are of libraries
    monkeypatch.setattr("pytest_routilux.virtual_time.patches.is_users", lambda name, file: False)
    assert events_of_a_test() <= before
