"""Saved jobs run again by the code of today: what it would do differently is found."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.flow_sim import FlowSim
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.replay.jobs import replay_jobs
from pytest_routilux.sim.replay.judge import Replay, first_other_step
from pytest_routilux.sim.replay.report import explain_difference
from pytest_routilux.sim.simulator.model import Case
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobState,
    MemoryStore,
    Routine,
    Runtime,
    SavedState,
    SavedStateError,
    SqliteStore,
    SystemClock,
)
from tests.plugin.sim.steps import START
from tests.routines import Works
from tests.soak import also

Body = Callable[..., Any]


class GatewayDown(Exception):
    pass


def flow_of(
    workers: int | None = None, errors: ErrorHandler | None = None, **bodies: Body | Routine
) -> Flow:
    """A chain of routines, each with the events `out` and `other`."""
    options: dict[str, Any] = {}
    if workers is not None:
        options = {"execution_strategy": "concurrent", "max_workers": workers}
    flow = Flow("shop", **options)
    names = list(bodies)
    for name, body in bodies.items():
        routine = body if isinstance(body, Routine) else Works(body, other=["n"])
        flow.add_routine(routine, name)
    for source, target in pairwise(names):
        flow.connect(source, "out", target, "trigger")
    flow.set_error_handler(errors)
    return flow


def saved(flow: Flow, *, clock: Any = None, **params: object) -> MemoryStore:
    """A store with one job of a flow."""
    store = MemoryStore()
    runtime = Runtime(clock=clock or FakeClock(), store=store)
    flow.execute("a", params or {"n": 3}, job_id="A7", runtime=runtime)
    return store


def replayed(source: object, flow: Callable[[], Flow]) -> tuple[Replay, list[tuple[str, str, str]]]:
    replay, found = replay_jobs(source, flow)
    return replay, [*found[0].rows] if found else []


def doubles(self: Any, n: int) -> None:
    self.emit("out", n=2 * n)


def triples(self: Any, n: int) -> None:
    self.emit("out", n=3 * n)


# --- what an attempt does -------------------------------------------------------------------------


def test_a_job_that_goes_the_same_way_is_counted() -> None:
    store = saved(flow_of(a=doubles, b=doubles))
    replay, rows = replayed(store, lambda: flow_of(a=doubles, b=doubles))
    assert ([], 1, 2, {}) == (rows, replay.jobs, replay.steps, replay.not_compared)
    assert "2 steps of 1 job do what was recorded" == str(replay)


def emits_other(self: Any, n: int) -> None:
    self.emit("other", n=2 * n)


def emits_twice(self: Any, n: int) -> None:
    doubles(self, n)
    doubles(self, n)


def writes(self: Any, n: int) -> None:
    self.ctx.state["n"] = n
    doubles(self, n)


def shares(self: Any, n: int) -> None:
    self.ctx.shared.append("seen", n)
    doubles(self, n)


def raises(self: Any, n: int) -> None:
    raise GatewayDown("no answer")


@pytest.mark.parametrize(
    ("today", "row"),
    [
        (triples, ("out[0].n", "12", "18")),
        (emits_other, ("out", "[{'n': 12}]", "nothing")),
        (emits_twice, ("out[1]", "nothing", "{'n': 12}")),
        (writes, ("ctx.state['n']", "nothing", "6")),
        (shares, ("ctx.shared['seen']", "nothing", "[6]")),
        (raises, ("ends as", "done", "failed")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_first_attempt_that_does_something_else_is_found(
    today: Body, row: tuple[str, str, str]
) -> None:
    store = saved(flow_of(a=doubles, b=doubles, c=doubles))
    replay, found = replay_jobs(store, lambda: flow_of(a=doubles, b=today, c=triples))
    assert ("b", 1) == (found[0].commit.routine_id, found[0].commit.attempt)
    assert row in [*found[0].rows]
    assert 2 == replay.steps

    def same() -> Flow:
        return flow_of(a=doubles, b=today, c=doubles)

    twin, rows = replayed(saved(same()), same)
    assert [] == rows, "the same code is no difference"
    assert twin.steps >= 2


def fails_until(attempt: int) -> Body:
    def body(self: Any, n: int) -> None:
        self.ctx.state["n"] = self.ctx.state.get("n", 0) + 1
        if self.ctx.attempt < attempt:
            raise GatewayDown("no answer")
        self.emit("out", n=self.ctx.attempt)

    return body


def retry(**options: Any) -> ErrorHandler:
    return ErrorHandler("retry", **options)


@pytest.mark.parametrize(
    ("options", "until", "attempt", "row"),
    [
        ({"retry_delay": 2.0}, 3, 1, ("waits", "1 s", "2 s")),
        ({"max_retries": 1}, 3, 2, ("ends as", "retry", "failed")),
        ({}, 2, 2, ("ends as", "retry", "done")),
    ],
    ids=["delay", "budget", "fewer"],
)
def test_each_attempt_and_its_retry_are_compared(
    options: dict[str, Any], until: int, attempt: int, row: tuple[str, str, str]
) -> None:
    store = saved(flow_of(errors=retry(), a=fails_until(3)))
    _, found = replay_jobs(store, lambda: flow_of(errors=retry(**options), a=fails_until(until)))
    assert attempt == found[0].commit.attempt
    assert row in [*found[0].rows]
    assert 3 == replayed(store, lambda: flow_of(errors=retry(), a=fails_until(3)))[0].steps


def test_a_changed_graph_is_a_difference() -> None:
    store = saved(flow_of(a=doubles, b=doubles))
    _, rows = replayed(store, lambda: flow_of(a=doubles, c=doubles))
    assert ("tasks[0].slot", "'b.trigger'", "'c.trigger'") in rows
    store = saved(flow_of(a=doubles))
    _, rows = replayed(store, lambda: flow_of(b=doubles))
    assert [("slot a.trigger", "there", "not in the flow")] == rows


# --- what the context gave ------------------------------------------------------------------------


def uses_ctx(self: Any, n: int) -> None:
    self.ctx.sleep(2)
    now = self.ctx.now().isoformat()
    values = [self.ctx.random.random(), str(self.ctx.uuid()), self.ctx.key("pay"), now]
    self.emit("out", n=values)


def test_time_random_numbers_and_keys_are_those_of_the_job() -> None:
    replay, rows = replayed(saved(flow_of(a=uses_ctx)), lambda: flow_of(a=uses_ctx))
    assert ([], 1) == (rows, replay.steps)
    assert not replay.varying


def reads_clocks(self: Any, n: int) -> None:
    self.emit("out", n={"at": self.ctx.now().isoformat(), "id": uuid.uuid4().hex, "sum": n + 1})


def test_a_value_of_the_real_clock_is_left_out_and_named() -> None:
    store = saved(flow_of(a=reads_clocks), clock=SystemClock())
    replay, rows = replayed(store, lambda: flow_of(a=reads_clocks))
    assert ([], 1) == (rows, replay.steps)
    assert {"a.out"} == set(replay.varying)
    assert "not compared: a.out" in str(replay)

    def adds_two(self: Any, n: int) -> None:
        self.emit("out", n={"at": self.ctx.now().isoformat(), "id": uuid.uuid4().hex, "sum": n + 2})

    _, rows = replayed(store, lambda: flow_of(a=adds_two))
    assert [("out[0].n.sum", "4", "5")] == rows


calls: list[object] = []


def gateway(order: object) -> str:
    calls.append(order)
    return f"receipt {len(calls)}"


async def agateway(order: object) -> str:
    return gateway(order)


def pays_once(self: Any, n: int) -> None:
    receipt = self.ctx.once("pay", gateway, n)
    if self.ctx.attempt == 1:
        raise GatewayDown
    self.emit("out", n=receipt)


async def pays_once_async(self: Any, n: int) -> None:
    await self.ctx.asleep(1)
    receipt = await self.ctx.aonce("pay", agateway, n)
    await asyncio.sleep(3)
    self.emit("out", n=[receipt, self.ctx.now().isoformat()])


class Async(Works):
    def __init__(self, body: Body) -> None:
        async def work(n: int = 0) -> None:
            await body(self, n)

        Routine.__init__(self)
        self.define_slot("trigger", handler=work)
        self.define_event("out", ["n"])
        self.define_event("other", ["n"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: flow_of(errors=retry(), a=pays_once),
        lambda: flow_of(errors=retry(), a=Async(pays_once_async)),
    ],
    ids=["sync", "async"],
)
def test_once_returns_what_was_recorded_and_calls_nothing(build: Callable[[], Flow]) -> None:
    calls.clear()
    store = saved(build())
    assert [3] == calls
    replay, rows = replayed(store, build)
    assert [] == rows
    assert replay.steps in (1, 2)
    assert [3] == calls


def pays_other(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.once("pay", gateway, n + 1))


def pays_under_another_name(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.once("charge", gateway, n))


def pays_and_mails(self: Any, n: int) -> None:
    receipt = self.ctx.once("pay", gateway, n)
    self.ctx.once("mail", gateway, n)
    self.emit("out", n=receipt)


def pays_never(self: Any, n: int) -> None:
    self.emit("out", n="receipt 1")


def pays(self: Any, n: int) -> None:
    self.emit("out", n=self.ctx.once("pay", gateway, n))


@pytest.mark.parametrize(
    ("today", "row"),
    [
        (pays_other, ("ends as", "done", "failed")),
        (pays_under_another_name, ("once('charge')", "not called", "called")),
        (pays_and_mails, ("once('mail')", "not called", "called")),
        (pays_never, ("once('pay')", "called", "not called")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_another_once_is_a_difference(today: Body, row: tuple[str, str, str]) -> None:
    calls.clear()
    store = saved(flow_of(a=pays))
    _, rows = replayed(store, lambda: flow_of(a=today))
    assert row in rows
    assert [3] == calls


def test_a_once_that_raised_is_not_compared() -> None:
    def down(n: int) -> str:
        raise GatewayDown

    def body(self: Any, n: int) -> None:
        if self.ctx.attempt == 1:
            self.ctx.once("pay", down, n)
        doubles(self, n)

    def build() -> Flow:
        return flow_of(errors=retry(), a=body)

    replay, rows = replayed(saved(build()), build)
    assert ([], 1) == (rows, replay.steps)
    assert "once('pay') has no recorded result" in str(replay)


# --- calls that leave the process -----------------------------------------------------------------


def connects(self: Any, n: int) -> None:
    with socket.socket() as opened:
        opened.settimeout(0.1)
        opened.connect(("127.0.0.1", 9))


def runs_a_program(self: Any, n: int) -> None:
    subprocess.run(["true"], check=True)


def swallows(self: Any, n: str) -> None:
    with suppress(BaseException):
        Path(n).write_text("paid")
    self.emit("out", n="swallowed")


@pytest.mark.parametrize("today", [connects, runs_a_program, swallows])
def test_a_call_that_leaves_the_process_does_not_happen(today: Body, tmp_path: Path) -> None:
    path = tmp_path / "paid"
    store = saved(flow_of(a=lambda self, n: self.emit("out", n=n), b=doubles), n=str(path))
    replay, rows = replayed(store, lambda: flow_of(a=today, b=doubles))
    assert ([], 1) == (rows, replay.steps)
    [reason] = replay.not_compared
    assert "test_replay.py:" in reason
    assert "outside of once" in reason
    assert not path.exists()
    path.write_text("written outside of a replay")


def test_a_double_outside_of_once_is_compared_where_its_result_does_not_matter(
    flow_sim: FlowSim,
) -> None:
    pay = flow_sim.effect("pay", returns=lambda n: f"receipt of {n}")

    def ignores(self: Any, n: int) -> None:
        pay(n)
        self.emit("out", n=n)

    def sends(self: Any, n: int) -> None:
        self.emit("out", n=pay(n))

    store = saved(flow_of(a=lambda self, n: self.emit("out", n=n)))
    replay, rows = replayed(store, lambda: flow_of(a=ignores))
    assert ([], 1) == (rows, replay.steps)
    replay, rows = replayed(store, lambda: flow_of(a=sends))
    assert ([], 0) == (rows, replay.steps)
    assert "a: it calls pay outside of once at" in str(replay)


# --- concurrent flows, gathers --------------------------------------------------------------------


class Total(Routine):
    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.define_slot("parts", handler=self.add, gather=True)
        self.define_event("out", ["n"])

    def add(self, parts: Any) -> None:
        total = sum(part["n"] for part in parts) * self.factor
        self.emit("out", n=[total, [task.task_id for task in parts.dropped]])


def gathering(factor: int = 1) -> Flow:
    flow = Flow("shop", execution_strategy="concurrent", max_workers=3)

    def split(self: Any, n: int) -> None:
        for part in range(n):
            self.emit("out", n=part)

    def count(self: Any, n: int) -> None:
        self.ctx.sleep(1 + n)
        self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + n
        if n == 1:
            raise GatewayDown
        self.emit("out", n=10 * n)

    flow.add_routine(Works(split), "a")
    flow.add_routine(type("WideCount", (Works,), {"max_concurrency": 3})(count), "count")
    flow.add_routine(Total(factor), "total")
    flow.connect("a", "out", "count", "trigger")
    flow.connect("count", "out", "total", "parts", {"n": "n"})
    flow.set_error_handler(ErrorHandler("continue"))
    return flow


def test_a_gather_gets_its_recorded_deliveries() -> None:
    store = saved(gathering(), n=4)
    replay, rows = replayed(store, gathering)
    assert ([], 6) == (rows, replay.steps)
    _, rows = replayed(store, lambda: gathering(2))
    assert [("out[0].n[0]", "50", "100")] == rows


def counts_wide(self: Any, n: int) -> None:
    if not n:
        for part in range(1, 4):
            self.emit("other", n=part)
        return
    self.ctx.sleep(4 - n)
    seen = self.ctx.state.get("seen", 0)
    self.ctx.state.add("seen", 1)
    self.emit("out", n=[n, seen])


def wide() -> Flow:
    flow = flow_of(3, a=type("WideA", (Works,), {"max_concurrency": 3})(counts_wide, other=["n"]))
    flow.connect("a", "other", "a", "trigger")
    return flow


def test_a_step_may_have_begun_before_the_state_that_another_step_wrote() -> None:
    replay, rows = replayed(saved(wide(), n=0), wide)
    assert ([], 4) == (rows, replay.steps)


@pytest.mark.parametrize(
    "build", also(gathering, lambda: flow_of(2, retry(), a=pays_once, b=fails_until(3)))
)
def test_a_job_that_was_resumed_after_a_crash_is_no_difference(build: Callable[[], Flow]) -> None:
    run = run_undisturbed(Case(build, "a", {"n": 2}), START)
    for point in crash_points(run, documents=False):
        job = recover(run, point).host.job
        assert job is not None
        replay = Replay()
        difference = first_other_step(build(), job, "memory", replay)
        assert difference is None, (point.name, difference)
        assert replay.steps > 3
        assert not replay.not_compared


# --- sources --------------------------------------------------------------------------------------


def job_of(flow: Flow, job_id: str, **params: object) -> JobState:
    return flow.execute("a", params or {"n": 3}, job_id=job_id, runtime=Runtime(clock=FakeClock()))


class Doubles(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.double)
        self.define_event("out", ["n"])

    def double(self, n: int) -> None:
        self.emit("out", n=2 * n)


def saveable_flow() -> Flow:
    return flow_of(a=Doubles(), b=Doubles())


def test_documents_folders_and_stores_are_read(tmp_path: Path) -> None:
    for number in range(2):
        job = job_of(saveable_flow(), f"job-{number}")
        SavedState.capture(saveable_flow(), job).write(tmp_path / f"{number}.json")
    store = SqliteStore(tmp_path / "jobs.db")
    runtime = Runtime(clock=FakeClock(), store=store)
    saveable_flow().execute("a", {"n": 1}, job_id="stored", runtime=runtime)
    store.close()
    (tmp_path / "notes.txt").write_text("no job")
    for source, jobs in ((tmp_path / "0.json", 1), (str(tmp_path / "jobs.db"), 1), (tmp_path, 3)):
        replay, rows = replayed(source, saveable_flow)
        assert ([], jobs, 2 * jobs) == (rows, replay.jobs, replay.steps)


def test_a_job_of_a_class_that_is_gone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    SavedState.capture(saveable_flow(), job_of(saveable_flow(), "A7")).write(path)
    data = path.read_text().replace(f"{__name__}:Doubles", "gone.shop:Doubles")
    path.write_text(data[: data.rindex(",")] + "}")  # without its digest
    assert 2 == replayed(path, saveable_flow)[0].steps


def test_a_source_that_cannot_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"format": "routilux/1", "digest": 3}')
    with pytest.raises(SavedStateError):
        replayed(tmp_path, saveable_flow)
    with pytest.raises(FileNotFoundError):
        replayed(tmp_path / "none.json", saveable_flow)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FlowDefinitionError, match="found no saved job"):
        replayed(empty, saveable_flow)
    with pytest.raises(FlowDefinitionError, match=r"replay\(\) got 7; give the path"):
        replayed(7, saveable_flow)


def test_what_is_not_compared_is_said() -> None:
    store = MemoryStore()
    runtime = Runtime(clock=FakeClock(), store=store)
    flow_of(a=doubles).execute("a", {"n": 1}, job_id="A7", runtime=runtime)
    other = Flow("other")
    other.add_routine(Doubles(), "a")
    other.execute("a", {"n": 1}, job_id="B2", runtime=runtime)
    replay, _ = replayed(store, lambda: flow_of(a=doubles))
    assert (1, {"a job of flow 'other', not of 'shop'": 1}) == (replay.jobs, replay.not_compared)


# --- in a test ------------------------------------------------------------------------------------


def test_a_test_fails_with_the_step_and_both_results(flow_sim: FlowSim) -> None:
    store = saved(flow_of(a=doubles, b=doubles))
    assert 2 == flow_sim.replay(store, lambda: flow_of(a=doubles, b=doubles)).steps
    with pytest.raises(pytest.fail.Exception) as failed:
        flow_sim.replay(store, lambda: flow_of(a=doubles, b=triples))
    text = str(failed.value)
    assert text.startswith("A SAVED JOB GOES ANOTHER WAY: b of job A7")
    assert "[replay-differs]" in text
    assert "step   task 0.0 b, attempt 1, commit #3" in text
    assert "test_replay.py:" in text
    assert "  > out[0].n    12         18" in text
    assert "tried  2 steps of 1 job run again; 1 of 1 job differs" in text
    with pytest.raises(pytest.fail.Exception, match="has compared nothing"):
        flow_sim.replay(store, lambda: Flow("other"))


def test_the_report_fits_a_narrow_terminal() -> None:
    store = saved(flow_of(a=doubles, b=doubles))
    replay, found = replay_jobs(store, lambda: flow_of(a=triples, c=triples))
    text = explain_difference(found[0], replay, 0, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "The flow has changed:" in text


def test_virtual_time_of_the_process_is_that_of_the_attempt(flow_sim: FlowSim) -> None:
    def reads(self: Any, n: int) -> None:
        self.emit("out", n=datetime.now().isoformat())

    store = saved(flow_of(a=lambda self, n: self.emit("out", n=self.ctx.now().isoformat()[:-6])))
    assert 1 == flow_sim.replay(store, lambda: flow_of(a=reads)).steps
