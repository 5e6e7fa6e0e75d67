"""Crashes on a real store give the same results as crashes on the simulated store in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from pytest_routilux.faults.faults import ClockJump, Fault, Raises, Slow, StoreFails
from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks, Coverage, Reference
from pytest_routilux.sim.simulator import execution
from pytest_routilux.sim.simulator.model import Case, CrashPoint, Disturbed, OpenStore, World
from routilux import ErrorHandler, FakeClock, Flow, Routine, SqliteStore, codec
from routilux.codec.equality import first_difference
from routilux.persist.rows import row_place, without_checksum
from routilux.persist.versions import FORMAT
from showcase.flows import data_pipeline, fan_out_and_in
from showcase.test_fan_out import ALBUM, pictures
from tests.plugin.sim import bugs, test_planted_flows
from tests.plugin.sim.conformance.test_checker import flow_of
from tests.plugin.sim.simulator.test_store_files import ALONE_WORKED, LIES
from tests.plugin.sim.sqlite_stores import Grouped, Leased, failing
from tests.plugin.sim.test_recovery import build as payment
from tests.routines import Body, chain, retrying, saveable
from tests.soak import also, sampled

START = FakeClock().now_ns()
ALONE = Checks(isolated=False)
FEW = 8  # crash points, of which there are some hundred


def too_slow_twice(self: Any) -> None:
    self.ctx.sleep(5 if self.ctx.attempt < 3 else 1)


def exits(self: Any) -> None:
    raise SystemExit(3)


def sends_three(self: Any) -> None:
    for n in range(3):
        self.emit("out", n=n)


def fails_at_one(self: Any, n: int) -> None:
    """Fails for good at the second of three; its `error` event says so."""
    self.ctx.sleep(0.1)
    if n == 1:
        raise ConnectionError("no line")
    self.emit("out", n=n)


def alone(body: Body, **options: Any) -> Flow:
    flow = chain(a=saveable(body))
    flow.set_error_handler(retrying(max_retries=3, retry_delay=0.5, **options))
    return flow


def with_failure(handler: ErrorHandler, workers: int | None = None) -> Flow:
    """Three tasks, of which the second fails."""
    work = saveable(fails_at_one, error=["task_id"])
    flow = chain(a=saveable(sends_three), work=work, workers=workers)
    flow.set_error_handler(handler)
    return flow


class Joins(Routine):
    """Waits for three tasks, which end or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("done", handler=lambda n: self.count(n))
        self.define_slot("failed", handler=lambda task_id: self.count(task_id))
        self.define_event("out", ["seen"])

    def count(self, what: object) -> None:
        seen: Any = self.ctx.state.setdefault("seen", [])
        seen.append(what)
        if len(seen) == 3:
            self.emit("out", seen=seen)


def join() -> Flow:
    flow = with_failure(retrying(max_retries=1, on_exhausted="continue"), workers=2)
    flow.add_routine(Joins(), "join")
    flow.connect("work", "out", "join", "done")
    flow.connect("work", "error", "join", "failed")
    return flow


def pipeline(failures: int, *faults: Fault, strategy: Any = "sequential") -> Case:
    build, params = partial(data_pipeline, failures, strategy), {"request_id": "r-1"}
    return Case(build, "data_fetch", params, faults=faults)


OUTAGE = Raises("data_storage", ConnectionError("no line"), attempts=[1])
CASES: dict[str, Case] = {
    "a chain with retries": pipeline(4),
    "a chain that fails for good": pipeline(5),
    "a chain on many workers": pipeline(2, strategy="concurrent"),
    "fan-out, fan-in and shared data": Case(
        lambda: fan_out_and_in(3), "split", pictures(ALBUM[:3])
    ),
    "a join that a failure ends": Case(join, "a"),
    "once, an effect and a wait": Case(payment(), "pay", {"order": "A7"}),
    "once with a deadline": Case(payment(60), "pay", {"order": "A7"}),
    "continue": Case(lambda: with_failure(ErrorHandler("continue")), "a"),
    "skip": Case(lambda: with_failure(ErrorHandler("skip")), "a"),
    "stop": Case(lambda: with_failure(ErrorHandler("stop")), "a"),
    "timeouts": Case(lambda: alone(too_slow_twice, timeout=2), "a"),
    "poisoned by its store": pipeline(0, *map(StoreFails, (2, 4, 6, 8))),
    "an outage and a jump of the clock": pipeline(
        0, OUTAGE, Slow("data_fetch", 2), ClockJump(-3600)
    ),
    "a store that fails by itself": pipeline(2, StoreFails(3), StoreFails(5, durable=True)),
}


def rows_of(world: World) -> list[str]:
    """The saved commits, from the files if there are any.

    Without the version and the checksum, which only a store has.
    """
    if world.files is not None:
        version = f'"format":{codec.dumps(FORMAT)},'
        return [
            without_checksum(row, row_place("job", seq)).decode().replace(version, "", 1)
            for seq, row in enumerate(world.files.rows, 1)
        ]
    return [commit.dumps() for commit in world.commits]


def result_of(reference: Reference, after: Disturbed) -> dict[str, object]:
    """The result of a crash, without the parts that differ between any two runs."""
    finding = reference.finding or check_disturbed(reference, after, ALONE)
    job = after.host.job
    return {
        "executed": after.executed,
        "commits": rows_of(after.world),
        "calls": [(c.effect, c.number, c.arguments, c.key, c.at_ns) for c in after.world.calls],
        "hosts end by": [f"{type(host.error).__name__}: {host.error}" for host in after.hosts],
        "job": None if job is None else codec.dumps(job.serialize()),
        "verdict": None if finding is None else (*finding.signature, finding.what, finding.rows),
    }


def reference_of(case: Case) -> Reference:
    return run_reference(case, START, ALONE, Coverage())


def disagreements(case, open_store=SqliteStore, sample=None):
    """The crashes whose results differ between a store and memory, a line each."""
    memory, store = reference_of(case), reference_of(replace(case, store=open_store))
    first, second = memory.run, store.run
    difference = first_difference(rows_of(first.world), rows_of(second.world))
    if difference is not None:
        return [f"undisturbed, memory against the store: commits differ, {difference}"]
    if memory.finding != store.finding:
        return [f"undisturbed: found {memory.finding} on memory, {store.finding} on the store"]
    points = crash_points(first)
    if points != crash_points(second):
        return ["not the same crash points"]
    found = [
        f"commit {number}: the store returns another job: {difference}"
        for number, (a, b) in enumerate(zip(first.states, second.states, strict=True))
        if (difference := first_difference(a.serialize(), b.serialize())) is not None
    ]
    for point in points if sample is None else drawn(points, sample):
        on_memory = result_of(memory, recover(first, point))
        on_store = result_of(store, recover(second, point))
        if not on_store["executed"]:
            found.append(f"{point.name}: the crash did not happen")
        found += [
            f"{point.name}: {name} on memory {was!r}, on the store {on_store[name]!r}"
            for name, was in on_memory.items()
            if was != on_store[name]
        ]
    return found


def drawn(points: list[CrashPoint], count: int) -> list[CrashPoint]:
    """Draw so many points at random, and at least one of each kind."""
    drawn = Random(count).sample(points, len(points))
    first = {point.kind: point for point in reversed(drawn)}
    rest = [point for point in drawn if point is not first[point.kind]]
    return [*first.values(), *rest[: max(0, count - len(first))]]


@pytest.mark.parametrize("sample", also(FEW, None), ids=["few", "all"])
@pytest.mark.parametrize("name", sampled(CASES, [*CASES][::5]))
def test_every_crash_has_the_same_result_on_a_real_store_as_on_memory(name, sample):
    assert [] == disagreements(CASES[name], sample=sample)


@pytest.mark.parametrize("sample", also(FEW, None), ids=["few", "all"])
@pytest.mark.parametrize("open_store", [Leased, Grouped])
@pytest.mark.parametrize("name", also("a store that fails by itself", "once, an effect and a wait"))
def test_so_it_has_under_a_lease_and_with_writes_of_several_jobs(name, open_store, sample):
    assert [] == disagreements(CASES[name], open_store, sample)


@pytest.mark.parametrize("sample", also(FEW, None), ids=["few", "all"])
def test_a_job_whose_handler_ends_every_host_is_poisoned_on_both(sample):
    poisoned = Case(lambda: alone(exits), "a")
    assert [] == disagreements(poisoned, sample=sample)
    finding = reference_of(poisoned).finding
    assert "stuck" == finding.kind


@pytest.mark.parametrize("seed", sampled(range(20), [6]))
def test_crashes_of_random_flows_have_the_same_results(seed, monkeypatch):
    monkeypatch.setattr(execution, "_MOST_STEPS", 60)
    assert [] == disagreements(Case(lambda: flow_of(seed), "r0", {"n": 3}), sample=12)


@pytest.mark.parametrize("lie", sampled(LIES, [*LIES][:2]))
def test_a_store_that_lies_does_not_agree(lie):
    open_store, _, _, says = LIES[lie]
    assert says in "\n".join(disagreements(ALONE_WORKED, open_store))


SHOP = {"order": "A7", "amount": 19.9}
BUGS: dict[str, Case] = {
    routine.__name__: Case(partial(bugs.shop, routine, bugs.ThreeOrders), "orders", SHOP)
    for routine in (bugs.Charge, *bugs.Charge.__subclasses__())
    # Not those of other test modules; and one has no bug.
    if routine.__module__ == bugs.__name__ and routine is not bugs.Ending
} | {
    f"planted: {name}": Case(planted.buggy, "orders", {"order": "A7"}, faults=planted.faults)
    for name, planted in test_planted_flows.PLANTED.items()
}
BUGS["SecondThoughts"] = replace(
    BUGS["SecondThoughts"], faults=(Raises("charge", bugs.GatewayDown, [1]),)
)


@pytest.mark.parametrize(
    "name", sampled(BUGS, ["Numbered", "planted: a key drawn anew on each host"])
)
def test_a_bug_of_a_flow_is_found_at_the_same_crashes(name):
    def found(store: OpenStore | None) -> list[tuple[object, ...]]:
        result = explore(replace(BUGS[name], store=store), START, ALONE)
        assert result.coverage.planned == result.coverage.executed
        first = result.reference.finding
        return [
            ("undisturbed", first and first.signature),
            *((point.name, finding.signature) for point, finding in result.failures),
        ]

    assert [("undisturbed", None)] != found(None) == found(SqliteStore)


def sends_much(self: Any, data: str) -> None:
    """Emits more than a page of a database holds, also after a failure."""
    self.ctx.sleep(1)
    if self.ctx.attempt == 1:
        raise ConnectionError("no line " + 9_000 * ".")
    self.emit("out", data=data)


def bulky() -> Flow:
    flow = chain(a=saveable(sends_much, out=["data"]), b=saveable(sends_much, out=["data"]))
    flow.set_error_handler(retrying(retry_delay=0.5))
    return flow


BULKY = Case(bulky, "a", {"data": 9_000 * "x"})


def refused_on_memory(seq: int, kind: str) -> Disturbed:
    run = run_undisturbed(BULKY, START)
    [point] = [p for p in crash_points(run) if p.kind == kind and p.commits == seq - 1]
    return recover(run, point)


@pytest.mark.parametrize("seq", sampled(range(1, 6), [2, 5]))
@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("refuses", "store refuses", "the disk is gone"),
        ("does not answer", "store does not answer", "after it was written"),
        ("is full", "store refuses", "no commit is half written"),
        ("is locked", "store refuses", "another process keeps the file locked"),
    ],
)
def test_a_real_store_that_fails_leaves_what_a_simulated_one_does(how, kind, says, seq):
    open_store = failing(seq, how)
    run = run_undisturbed(replace(BULKY, store=open_store), START)
    assert 1 == open_store.struck
    ends = [note.text for _, _, note in run.world.log if hasattr(note, "text")]
    assert [True] == [says in text for text in ends if text.startswith("the host ends: OSError")]
    assert rows_of(refused_on_memory(seq, kind).world) == rows_of(run.world)
    assert {} == run.store_findings
    assert run.host.store_finding is None
