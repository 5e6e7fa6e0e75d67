"""A simulated run is the run that threads would make, and repeats for the same scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Call, Case, Host, World
from pytest_routilux.sim.simulator.scheduler import FIFO, SeededScheduler
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import (
    Commit,
    CommitKind,
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    RoutiluxError,
    Routine,
    Runtime,
    codec,
)
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from showcase.test_fan_out import ALBUM, pictures
from tests.soak import also, sampled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.scheduler import Decision, Scheduler

START = FakeClock().now_ns()
SECOND = 1_000_000_000


def simulated(
    build: Callable[[], Flow],
    entry: str,
    params: dict[str, object] | None = None,
    scheduler: Scheduler = FIFO,
) -> tuple[World, Host]:
    world = World(START)
    return world, run_host(Case(build, entry, params), world, scheduler=scheduler, checked=True)


def on_threads(
    build: Callable[[], Flow], entry: str, params: dict[str, object] | None = None
) -> JobState:
    with Runtime(clock=FakeClock()) as runtime:
        return build().execute(entry, params, job_id="job", runtime=runtime)


def history(job: JobState) -> str:
    return codec.dumps(job.serialize())


# --- as on threads ------------------------------------------------------------------------------


class Work(Routine):
    """Does what its script says: sleeps, records, shares, fails, emits."""

    max_concurrency = 3

    def __init__(self, script: list[list[object]], failures: int = 0, children: int = 1) -> None:
        super().__init__()
        self.script = script
        self.failures = failures
        self.children = children
        self.define_slot("trigger", handler=self.work)
        self.define_event("output", ["depth"])

    def work(self, depth: int) -> None:
        for number, (what, length) in enumerate(self.script):
            if what == "sleep":
                self.ctx.sleep(float(str(length)))
            elif what == "once":
                self.ctx.once(f"effect {number}", abs, number)
            else:
                seen = self.ctx.shared.get("sum", 0)
                self.ctx.sleep(float(str(length)))
                self.ctx.shared["sum"] = int(str(seen)) + 1
        if self.ctx.attempt <= self.failures:
            raise ConnectionError(f"attempt {self.ctx.attempt}")
        for _ in range(self.children):
            self.emit("output", depth=depth + 1)


actions = st.tuples(
    st.sampled_from(["sleep", "sleep", "once", "share"]), st.sampled_from([0, 0.1, 0.2, 0.25, 1])
).map(list)
workers = st.tuples(st.lists(actions, max_size=3), st.integers(0, 2), st.integers(1, 2))


@given(st.lists(workers, min_size=1, max_size=4), st.integers(1, 4), st.sampled_from([0, 0.1, 0.3]))
@example([([["sleep", 0.1]], 1, 2), ([["sleep", 0.2], ["once", 0], ["sleep", 0.1]], 1, 1)], 2, 0.1)
@example([([["share", 0.1]], 0, 2), ([["share", 0.1]], 0, 2), ([["share", 0]], 1, 1)], 3, 0)
def test_a_simulation_is_what_threads_on_a_fake_clock_do(
    script: list[tuple[list[list[object]], int, int]], width: int, delay: float
) -> None:
    def build() -> Flow:
        flow = Flow("work", execution_strategy="concurrent", max_workers=width)
        flow.set_error_handler(ErrorHandler("retry", max_retries=2, retry_delay=delay))
        previous = None
        for number, (actions, failures, children) in enumerate(script):
            routine_id = flow.add_routine(Work(actions, failures, children), f"r{number}")
            if previous is not None:
                flow.connect(previous, "output", routine_id, "trigger")
            previous = routine_id
        return flow

    _, host = simulated(build, "r0", {"depth": 0})
    assert host.error is None
    assert [] == host.findings
    assert on_threads(build, "r0", {"depth": 0}) == host.job


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
@pytest.mark.parametrize("failures", range(6))
def test_the_pipeline_of_the_showcase_is_the_same_in_simulation(
    failures: int, strategy: Any
) -> None:
    def build() -> Flow:
        return data_pipeline(failures, strategy)

    world, host = simulated(build, "data_fetch", {"request_id": "r-1"})
    assert [] == host.findings
    assert on_threads(build, "data_fetch", {"request_id": "r-1"}) == host.job
    assert list(host.job.commits) == world.commits


@pytest.mark.parametrize("width", sampled([1, 2, 4, 8], [1, 2]))
def test_the_fan_out_of_the_showcase_is_the_same_in_simulation(width: int) -> None:
    def build() -> Flow:
        return fan_out_and_in(width)

    world, host = simulated(build, "split", pictures(ALBUM))
    assert [] == host.findings
    assert on_threads(build, "split", pictures(ALBUM)) == host.job
    conflicts = sum(commit.kind is CommitKind.CONFLICT for commit in world.commits)
    assert (conflicts > 0) is (width > 1)


# --- scheduler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", also(4, 12))
def test_a_seed_gives_the_same_history_each_time_and_others_give_others(seeds: int) -> None:
    def run(seed: int) -> str:
        _, host = simulated(
            lambda: fan_out_and_in(4), "split", pictures(ALBUM), SeededScheduler(seed)
        )
        assert host.error is None
        assert host.job is not None
        assert "completed" == host.job.status
        assert [] == host.findings
        return history(host.job)

    histories = [run(seed) for seed in range(seeds)]
    assert histories == [run(seed) for seed in range(seeds)]
    assert len(set(histories)) > seeds / 2


def test_every_decision_is_one_choice_among_named_options() -> None:
    kinds = set()

    class Recording(SeededScheduler):
        def choose(self, kind: Decision, options: Sequence[str]) -> int:
            kinds.add(kind)
            assert len(options) >= 2
            assert len(options) == len(set(options))
            return super().choose(kind, options)

    simulated(lambda: fan_out_and_in(2), "split", pictures(ALBUM[:3]), Recording(1))
    assert {"start", "commit"} == kinds


def test_the_first_option_is_what_no_choice_gives() -> None:
    class First:
        def choose(self, kind: object, options: object) -> int:
            return 0

    _, plain = simulated(lambda: fan_out_and_in(4), "split", pictures(ALBUM))
    _, first = simulated(lambda: fan_out_and_in(4), "split", pictures(ALBUM), First())
    assert plain.job == first.job


# --- what a handler does on the way -------------------------------------------------------------


class Pay(Routine):
    """Pays in two steps, with a pause between them."""

    def __init__(self, gateway: object) -> None:
        super().__init__()
        self.gateway: Any = gateway
        self.define_slot("trigger", handler=self.pay)

    def pay(self, name: str) -> None:
        self.ctx.sleep(0.5)
        self.ctx.once("reserve", self.gateway, f"{name}: reserve")
        self.ctx.sleep(0.5)
        self.gateway(f"{name}: charge", key=self.ctx.key("charge"))
        self.ctx.sleep(0.25)


class Shop(Routine):
    """Two customers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.open)
        self.define_event("first", ["name"])
        self.define_event("second", ["name"])

    def open(self) -> None:
        self.emit("first", name="Ann")
        self.ctx.sleep(0.1)
        self.emit("second", name="Bob")


def shop() -> Flow:
    gateway = Effect("gateway", key="key")
    flow = Flow("shop", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(Shop(), "shop")
    flow.add_routine(Pay(gateway), "ann")
    flow.add_routine(Pay(gateway), "bob")
    flow.connect("shop", "first", "ann", "trigger")
    flow.connect("shop", "second", "bob", "trigger")
    return flow


def test_what_handlers_do_stands_in_the_log_when_its_instant_has_come() -> None:
    world, host = simulated(shop, "shop")
    assert host.error is None
    told = [
        (
            (at - START) / SECOND,
            f"commit {what.kind}" if isinstance(what, Commit)
            else f"{what.task_id} effect {what.number}" if isinstance(what, Call)
            else f"{what[0]} attempt {what[2]} starts" if isinstance(what, tuple)
            else what.text,
        )
        for at, _, what in world.log
    ]  # fmt: skip
    assert told == [
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


def test_the_same_inputs_give_the_same_result_and_others_another() -> None:
    world, _ = simulated(shop, "shop")
    assert 4 == len({call.result for call in world.calls})
    again, _ = simulated(shop, "shop")
    assert [call.result for call in world.calls] == [call.result for call in again.calls]


def test_a_double_works_in_a_simulated_handler_only() -> None:
    with pytest.raises(RoutiluxError, match=r"'gateway\.charge' was called outside a handler"):
        Effect("gateway.charge")(7)


class Slow(Routine):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.define_slot("trigger", handler=self.work)

    def work(self) -> None:
        self.ctx.sleep(self.seconds)


@pytest.mark.parametrize("seconds", [1.999, 2.0, 3.0])
def test_an_attempt_that_takes_too_long_ends_at_its_timeout(seconds: float) -> None:
    def build() -> Flow:
        flow = Flow("slow")
        flow.add_routine(Slow(seconds), "slow")
        flow.set_error_handler(ErrorHandler(timeout=2))
        return flow

    _, host = simulated(build, "slow")
    assert on_threads(build, "slow") == host.job


class Nested(Routine):
    """Runs a job of another flow inside its handler."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.define_slot("trigger", handler=self.work)

    def work(self) -> None:
        inner = data_pipeline(2)
        if self.how == "execute":
            job = inner.execute("data_fetch", {"request_id": "inner"})
            self.ctx.state["took"] = (job.updated_ns - job.started_ns) / SECOND
        else:
            inner.start("data_fetch", {"request_id": "inner"})


def nested(how: str) -> Callable[[], Flow]:
    def build() -> Flow:
        flow = Flow("nested")
        flow.add_routine(Nested(how), "outer")
        return flow

    return build


def test_a_job_inside_a_handler_takes_its_virtual_time() -> None:
    world, host = simulated(nested("execute"), "outer")
    assert host.job is not None
    assert {"took": 3.05} == host.job.routine_states["outer"].state
    assert 2 == len(world.commits)
    assert 3.05 == (host.job.updated_ns - START) / SECOND


def test_a_job_in_the_background_is_refused_since_a_simulation_has_one_thread() -> None:
    _, host = simulated(nested("start"), "outer")
    assert host.job is not None
    assert host.job.error is not None
    assert "use execute() where the handler uses start()" in host.job.error.message


class Later(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.work)
        self.define_event("output", ["n"])

    async def work(self) -> None:
        self.ctx.sleep(0.5)
        self.emit("output", n=1)


def test_an_async_handler_is_run_to_its_end() -> None:
    def build() -> Flow:
        flow = Flow("later")
        flow.add_routine(Later(), "later")
        return flow

    _, host = simulated(build, "later")
    assert host.job is not None
    assert "completed" == host.job.status
    assert 0.5 == (host.job.updated_ns - START) / SECOND


def test_a_sleep_of_the_clock_itself_is_a_duration() -> None:
    names = [f"w{n}" for n in range(50)]
    handler = ErrorHandler("continue")
    with frozen_simulation(START):
        _, host = simulated(lambda: word_count(handler), "read", {"records": names})
    assert host.job is not None
    assert "completed" == host.job.status
    assert 5.0 == (host.job.updated_ns - START) / SECOND


def test_what_can_not_go_on_is_told_and_not_waited_for() -> None:
    class Forever(Routine):
        def __init__(self) -> None:
            super().__init__()
            self.define_slot("trigger", handler=self.work)

        def work(self) -> None:
            raise SystemExit(3)

    def build() -> Flow:
        flow = Flow("forever")
        flow.add_routine(Forever(), "forever")
        return flow

    world, host = simulated(build, "forever")
    assert isinstance(host.error, SystemExit)
    assert 1 == len(world.commits)
