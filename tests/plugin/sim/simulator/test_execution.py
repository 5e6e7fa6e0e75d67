"""A simulated host runs a job as threads would, and repeats it for the same scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Call, Case, World
from pytest_routilux.sim.simulator.scheduler import FIFO, Scheduler, Seeded, Tape
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import (
    Commit,
    CommitKind,
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    RoutiluxError,
    codec,
)
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from showcase.test_fan_out import ALBUM, pictures
from tests.routines import (
    Body,
    Works,
    chain,
    ended_at,
    error_of,
    fan,
    retrying,
    run,
    sends,
    sleeps,
)
from tests.soak import also, sampled

START = FakeClock().now_ns()
SECOND = 1_000_000_000


def simulated(build, entry="a", params=None, scheduler=FIFO):
    world = World(START)
    return world, run_host(Case(build, entry, params), world, scheduler=scheduler, checked=True)


def job_of(build, entry="a", params=None, scheduler=FIFO):
    _, host = simulated(build, entry, params, scheduler)
    assert host.error is None
    assert [] == host.findings
    assert host.job is not None
    return host.job


class Three(Works):
    """Three steps at a time."""

    max_concurrency = 3


def scripted(script: list[list[object]], failures: int, children: int) -> Body:
    """Sleeps, records and shares by a script; then fails or emits."""

    def body(self: Any, n: int = 0) -> None:
        for number, (what, length) in enumerate(script):
            if what == "sleep":
                self.ctx.sleep(length)
            elif what == "once":
                self.ctx.once(f"effect {number}", abs, number)
            else:
                total = self.ctx.shared.get("sum", 0)
                self.ctx.sleep(length)
                self.ctx.shared["sum"] = total + 1
        if self.ctx.attempt <= failures:
            raise ConnectionError(f"attempt {self.ctx.attempt}")
        for _ in range(children):
            self.emit("out", n=n + 1)

    return body


actions = st.tuples(
    st.sampled_from(["sleep", "sleep", "once", "share"]), st.sampled_from([0, 0.1, 0.2, 0.25, 1])
).map(list)
workers = st.tuples(st.lists(actions, max_size=3), st.integers(0, 2), st.integers(1, 2))


@given(st.lists(workers, min_size=1, max_size=4), st.integers(1, 4), st.sampled_from([0, 0.1, 0.3]))
@example([([["sleep", 0.1]], 1, 2), ([["sleep", 0.2], ["once", 0], ["sleep", 0.1]], 1, 1)], 2, 0.1)
@example([([["share", 0.1]], 0, 2), ([["share", 0.1]], 0, 2), ([["share", 0]], 1, 1)], 3, 0)
def test_a_simulation_makes_the_commits_of_threads_on_a_fake_clock(scripts, width, delay):
    def build() -> Flow:
        routines = [Three(scripted(*script)) for script in scripts]
        flow = chain(workers=width, **dict(zip("abcd", routines, strict=False)))
        flow.set_error_handler(retrying(max_retries=2, retry_delay=delay))
        return flow

    assert run(build()) == job_of(build)


@pytest.mark.parametrize("width", sampled([1, 2, 4, 8], [1, 2]))
def test_the_fan_out_of_the_showcase_is_the_same_in_simulation(width):
    def build() -> Flow:
        return fan_out_and_in(width)

    job = job_of(build, "split", pictures(ALBUM))
    assert run(build(), "split", **pictures(ALBUM)) == job
    conflicts = sum(commit.kind is CommitKind.CONFLICT for commit in job.commits)
    assert (conflicts > 0) is (width > 1)


def fan_out(scheduler: Scheduler = FIFO) -> JobState:
    return job_of(lambda: fan_out_and_in(4), "split", pictures(ALBUM), scheduler)


@pytest.mark.parametrize("seeds", also(4, 12))
def test_a_seed_gives_the_same_history_each_time_and_others_give_others(seeds):
    def history(seed: int) -> str:
        job = fan_out(Seeded(seed).scheduler())
        assert "completed" == job.status
        return codec.dumps(job.serialize())

    histories = [history(seed) for seed in range(seeds)]
    assert histories == [history(seed) for seed in range(seeds)]
    assert len(set(histories)) > seeds / 2


def test_a_decision_is_a_choice_among_two_options_or_more():
    scheduler = Seeded(1).scheduler()
    simulated(lambda: fan_out_and_in(2), "split", pictures(ALBUM[:3]), scheduler)
    assert 2 <= min(len(choice.tasks) for choice in scheduler.choices)


def test_a_tape_without_deviations_is_fifo():
    assert fan_out() == fan_out(Tape({}).scheduler())


@pytest.mark.parametrize("seed", sampled(range(40), range(6)))
def test_no_order_lets_a_step_run_into_its_timeout(seed):
    limited = Works(sleeps(1))
    limited.set_error_handler(retrying(timeout=30))

    def build() -> Flow:
        return fan(sends(1), workers=3, slow=sleeps(100), limited=limited)

    job = job_of(build, "source", scheduler=Seeded(seed).scheduler())
    assert "completed" == job.status
    assert 1 == job.routine_states["limited"].attempts


def shop() -> Flow:
    """Two customers at once, who pay in two steps with pauses."""
    gateway = Effect("gateway", key="key")

    def opens(self: Any) -> None:
        self.emit("first", n="Ann")
        self.ctx.sleep(0.1)
        self.emit("second", n="Bob")

    def pays(self: Any, n: str) -> None:
        self.ctx.sleep(0.5)
        self.ctx.once("reserve", gateway, f"{n}: reserve")
        self.ctx.sleep(0.5)
        gateway(f"{n}: charge", key=self.ctx.key("charge"))
        self.ctx.sleep(0.25)

    flow = Flow("shop", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(Works(opens, first=["n"], second=["n"]), "a")
    for event, name in ("first", "ann"), ("second", "bob"):
        flow.add_routine(Works(pays), name)
        flow.connect("a", event, name, "trigger")
    return flow


def test_an_effect_enters_the_log_at_its_instant():
    world, host = simulated(shop)
    assert host.error is None
    log = [
        (
            (at - START) / SECOND,
            f"commit {what.kind}" if isinstance(what, Commit)
            else f"{what.task_id} effect {what.number}" if isinstance(what, Call)
            else f"{what[0]} attempt {what[2]} starts" if isinstance(what, tuple)
            else what.text,
        )
        for at, _, what in world.log
    ]  # fmt: skip
    assert log == [
        (0.0, "commit start"),
        (0.0, "0 attempt 1 starts"),
        (0.1, "commit done"),
        (0.1, "0.0 attempt 1 starts"),
        (0.1, "0.1 attempt 1 starts"),
        (0.6, "0.0 effect 1"),
        (0.6, "commit effect"),
        (0.6, "0.1 effect 1"),
        (0.6, "commit effect"),
        (1.1, "0.0 effect 2"),
        (1.1, "0.1 effect 2"),
        (1.35, "commit done"),
        (1.35, "commit done"),
    ]
    assert [None, None, "job/0.0/charge", "job/0.1/charge"] == [call.key for call in world.calls]
    assert all(__file__ in call.where for call in world.calls)


def test_the_same_inputs_give_the_same_result_and_others_another():
    world, _ = simulated(shop)
    assert 4 == len({call.result for call in world.calls})
    again, _ = simulated(shop)
    assert [call.result for call in world.calls] == [call.result for call in again.calls]


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("clock", ["flow_clock", "flow_clock_bare"])
def test_a_double_records_the_calls_of_jobs_that_are_not_simulated(workers, clock, request):
    for name in (clock, "flow_runtime", "flow_sim"):
        sim = request.getfixturevalue(name)
    gateway, ledger = sim.effect("gateway.charge", key="key"), sim.effect("ledger")

    def charges(self: Any, n: int = 0) -> None:
        self.ctx.sleep(0.5)
        ledger("before")
        gateway(7, key=self.ctx.key("charge"))
        if self.ctx.attempt == 1:
            raise ConnectionError

    flow = chain(workers=workers, a=Works(charges, retrying(retry_delay=2.0)))
    job = flow.execute("a", job_id="A7")
    assert "completed" == job.status
    calls = [
        (call.number, call.arguments, call.key, call.attempt, call.at_ns - job.started_ns)
        for call in gateway.calls
    ]
    key = "A7/0/charge"
    half = SECOND // 2
    assert [(2, {"0": 7}, key, 1, half), (2, {"0": 7}, key, 2, 6 * half)] == calls
    assert 1 == len({call.result for call in gateway.calls})
    assert [1, 1] == [call.number for call in ledger.calls]
    assert () == sim.effect("gateway.charge").calls
    assert 4 == len(sim.run(lambda: flow, "a").calls)
    assert 2 == len(gateway.calls), "a simulated call is in the outcome alone"


def test_a_double_works_in_a_handler_only():
    with pytest.raises(RoutiluxError, match=r"'gateway\.charge' was called outside a handler"):
        Effect("gateway.charge")(7)


@pytest.mark.parametrize("seconds", [1.999, 2.0, 3.0])
def test_an_attempt_that_takes_too_long_ends_at_its_timeout(seconds):
    def build() -> Flow:
        return chain(a=Works(sleeps(seconds), ErrorHandler(timeout=2)))

    assert run(build()) == job_of(build)


def test_a_job_inside_a_handler_takes_its_virtual_time():
    def body(self: Any) -> None:
        job = data_pipeline(2).execute("data_fetch", {"request_id": "inner"})
        self.ctx.state["took"] = ended_at(job)

    world, host = simulated(lambda: chain(a=body))
    assert {"took": 3.05} == host.job.routine_states["a"].state
    assert 2 == len(world.commits)
    assert 3.05 == ended_at(host.job)


def test_a_job_in_the_background_is_refused_since_a_simulation_has_one_thread():
    def body(self: Any) -> None:
        data_pipeline(2).start("data_fetch", {"request_id": "inner"})

    _, message = error_of(job_of(lambda: chain(a=body)))
    assert "use execute() instead of start()" in message


def test_an_async_handler_is_run_to_its_end():
    async def body(self: Any) -> None:
        await self.ctx.asleep(0.5)
        self.emit("out", n=1)

    job = job_of(lambda: chain(a=body))
    assert "completed" == job.status
    assert 0.5 == ended_at(job)


def test_a_sleep_of_the_clock_itself_is_a_duration():
    names = [f"w{n}" for n in range(50)]
    with frozen_simulation(START):
        job = job_of(lambda: word_count(ErrorHandler("continue")), "read", {"records": names})
    assert "completed" == job.status
    assert 5.0 == ended_at(job)


def test_an_exit_of_the_process_ends_the_host():
    def body(self: Any) -> None:
        raise SystemExit(3)

    world, host = simulated(lambda: chain(a=body))
    assert isinstance(host.error, SystemExit)
    assert ["start", "interrupted"] == [commit.kind for commit in world.commits]
