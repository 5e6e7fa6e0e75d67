"""After an interrupt at any place, as by Ctrl-C, all is usable, and no job is driven any more.

`make test` interrupts at some places, `make soak` at each fifth: at others in each run.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from routilux import (
    Append,
    Clock,
    FakeClock,
    Flow,
    JobState,
    JobStatus,
    JobStore,
    MemoryStore,
    NotResumableError,
    Runtime,
    SqliteStore,
    use_runtime,
)
from routilux.clocks.clock import SystemClock
from routilux.runtime import default_runtime
from tests.engine.concurrency import engine_threads
from tests.interrupts import Interrupter, in_a_thread
from tests.persist.stores import STORES
from tests.routines import PATIENCE, SECOND, Works, chain, fan, retrying
from tests.soak import also, batch_seed, sampled
from tests.worker.jobs import worker


def works(self: Any, n: object = 0) -> None:
    self.ctx.once("effect", len, "three")
    self.ctx.sleep(0.0001)
    if self.ctx.attempt < 2:
        raise ValueError("not yet")
    self.emit("out", n=1)


def ends(self: Any, n: object = 0) -> None:
    self.ctx.shared["sum"] = self.ctx.shared.get("sum", 0) + 1


def short() -> Flow:
    return chain(a=Works(works, retrying(retry_delay=0.0001)), b=ends)


def wide() -> Flow:
    return fan(Works(works, retrying(retry_delay=0.0001)), workers=2, b=ends, c=ends)


@dataclass
class World:
    """A runtime on a store and a clock, and what a caller interrupts."""

    store: JobStore
    runtime: Runtime
    flow: Flow
    seen: list[tuple[str, int]] = field(default_factory=list)

    def on_commit(self, job: JobState, commit: Any) -> None:
        self.seen.append((job.job_id, commit.seq))

    def entry(self) -> str:
        return next(iter(self.flow.routines))


def executes(world: World) -> None:
    world.runtime.execute(world.flow, world.entry(), job_id="j")


def waits(world: World) -> None:
    run = world.runtime.start(world.flow, world.entry(), job_id="j")
    run.wait()


def cancels(world: World) -> None:
    run = world.runtime.start(world.flow, world.entry(), job_id="j")
    with suppress(NotResumableError):
        run.pause()
    run.wait()
    world.runtime.resume(world.flow, run.job)


def hosts(world: World) -> None:
    world.runtime.submit(world.flow, world.entry(), job_id="j")
    worker(world.runtime, world.flow).run(until_idle=True)


def uses(world: World) -> None:
    with use_runtime(world.runtime):
        world.flow.execute(world.entry(), job_id="j")


def advances(world: World) -> None:
    clock = world.runtime.clock
    assert isinstance(clock, FakeClock)
    clock.autojump = False
    world.runtime.start(world.flow, world.entry(), job_id="j")
    clock.advance(1)
    clock.autojump = True


ACTS: dict[str, tuple[Callable[[World], None], str, str, Callable[[], Flow]]] = {
    "execute": (executes, "sqlite", "system", short),
    "execute in memory": (executes, "memory", "fake", short),
    "execute, concurrent": (executes, "sqlite", "fake", wide),
    "start and wait": (waits, "memory", "fake", short),
    "start and wait, in real time": (waits, "sqlite", "system", short),
    "start, pause and resume": (cancels, "memory", "fake", short),
    "worker": (hosts, "memory", "fake", short),
    "worker, in real time": (hosts, "sqlite", "system", short),
    "use_runtime": (uses, "memory", "fake", short),
    "advance": (advances, "memory", "fake", short),
}
_SOME = 15  # places of each
_STRIDE = 5  # of `make soak`


def places(passed: int, how_many: str, some: int) -> range:
    """The numbers of the places at which to interrupt."""
    if how_many == "some":
        return range(1, passed + 1, max(1, passed // some))
    return range(Random(batch_seed(0)).randint(1, _STRIDE), passed + 1, _STRIDE)


@pytest.mark.parametrize("act", sampled(ACTS, [*ACTS][::3]))
@pytest.mark.parametrize("how_many", also("some", "many"))
def test_an_interrupt_at_any_place_leaves_everything_usable(act, how_many, tmp_path):
    does, kind, time, flow = ACTS[act]
    for counter in (Interrupter(), Interrupter()):  # at first, some things are imported and cached
        world = fresh(tmp_path, 0, kind, time, flow)
        with counter.armed():
            does(world)
        close(world)
    assert counter.passed > 100
    for nth in places(counter.passed, how_many, _SOME):
        interrupter = Interrupter(nth)

        def case(interrupter: Interrupter = interrupter, nth: int = nth) -> None:
            interrupted(fresh(tmp_path, nth + 1, kind, time, flow), does, interrupter)

        in_a_thread(case, interrupter.where)


def fresh(folder: Path, number: int, kind: str, time: str, flow: Callable[[], Flow]) -> World:
    clock: Clock = FakeClock() if time == "fake" else SystemClock()
    store: JobStore
    if kind == "memory":
        store = MemoryStore(clock)
    else:
        store = SqliteStore(folder / f"{number}.db", clock=clock)
    world = World(store, Runtime(clock=clock, store=store), flow())
    world.runtime = Runtime(clock=clock, store=store, observers=[world])
    return world


def interrupted(world: World, does: Callable[[World], None], interrupter: Interrupter) -> None:
    runtime, store = world.runtime, world.store
    before = engine_threads()
    try:
        with interrupter.armed():
            does(world)
    except KeyboardInterrupt:
        pass
    else:
        # A job in the background may have been faster this time; a `__del__` can't raise.
        assert not interrupter.place or "close" in interrupter.place, "no caller saw the interrupt"
    environment = runtime.environment
    for machine in list(environment.driven.values()):
        wait_for(runtime, machine)  # a job in the background
    free(runtime, store)
    assert {} == environment.driven, "a job is still driven"
    assert {} == environment.leases, "a lease is still known"
    leased = [hold for hold in store.holders().values() if hold.is_leased]
    assert [] == leased, "a lease was kept"
    assert runtime is not default_runtime(), "the runtime is still the default"
    clock = runtime.clock
    if isinstance(clock, FakeClock):
        clock.autojump = True
        clock.advance(0)
        left = clock._current, list(clock._ready), clock._waiting, clock._results, clock._movers
        assert (None, [], {}, set(), {}) == left, "the clock waits for somebody"
    rows = {"j": len(store.rows("j"))} if "j" in store.job_ids() else {}
    assert [seq for _, seq in world.seen] == sorted({seq for _, seq in world.seen})
    assert all(seq <= rows["j"] for _, seq in world.seen), "an observer saw more than is stored"
    completes(world)
    close(world)
    for thread in engine_threads() - before:
        if thread.ident is None:
            continue  # it was interrupted before it started
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} still runs"


def close(world: World) -> None:
    """Close everything."""
    world.runtime.close()
    if isinstance(world.store, SqliteStore):
        world.store.close()
        world.store.path.unlink()


def wait_for(runtime: Runtime, machine: Any) -> None:
    """Let a background job whose caller was interrupted end."""
    waiting = threading.Event()
    while machine.job.job_id in runtime.environment.driven:
        if isinstance(runtime.clock, FakeClock):
            runtime.clock.autojump = True
            runtime.clock.advance(1)
        else:
            waiting.wait(0.001)


def free(runtime: Runtime, store: JobStore) -> None:
    """Assert that no lock is held and no transaction is open."""
    held: list[str] = []

    def tries() -> None:
        if not runtime.environment.lock.acquire(timeout=1):
            held.append("the runtime's lock")
        else:
            runtime.environment.lock.release()

    thread = threading.Thread(target=tries)
    thread.start()
    thread.join()
    if runtime.environment.lease_lock.locked():
        held.append("the lock of leases")
    if isinstance(store, SqliteStore):
        if store._file.lock.locked():
            held.append("the lock of the connection")
        with sqlite3.connect(store.path, timeout=0.5, isolation_level=None) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        db.close()
    elif isinstance(store, MemoryStore) and store._lock.locked():
        held.append("the lock of the store")
    assert [] == held


def completes(world: World) -> None:
    """Assert that the job resumes from its last commit, and that the runtime runs another job."""
    runtime, flow = world.runtime, world.flow
    if "j" in world.store.job_ids():
        job = runtime.load("j", history=True)
        if job.status is not JobStatus.COMPLETED:
            job = runtime.resume(flow, job)
        assert JobStatus.COMPLETED is job.status
        assert {"sum": 1 if len(flow.routines) == 2 else 2} == job.shared_data
        effects = [c for c in runtime.load("j", history=True).commits if c.kind == "effect"]
        assert 1 == len(effects)
    again = runtime.execute(flow, world.entry(), job_id="again")
    assert JobStatus.COMPLETED is again.status


# --- each call of a store -------------------------------------------------------------------------

LEASE = 600 * SECOND


def _before(store: JobStore) -> None:
    """Bring a store to the state before the call."""
    store.create("mine", b"1", "me", flow_id="f", status="running")
    store.create("queued", b"1", "you", flow_id="f", status="pending")


CALLS: dict[str, Callable[[JobStore], object]] = {
    "create": lambda s: s.create("new", b"1", "me", flow_id="f", status="running"),
    "append": lambda s: s.append("mine", 2, b"2", "me", status="running"),
    "append, stopped": lambda s: s.append("mine", 2, b"2", "me", status="completed"),
    "append_all": lambda s: s.append_all([Append("mine", 2, b"2", "me", "running")] * 1),
    "claim": lambda s: s.claim("queued", 2, b"2", "me", status="running"),
    "overrule": lambda s: s.overrule("mine", 2, b"2", "op", status="pending"),
    "keep_snapshot": lambda s: s.keep_snapshot("mine", 1, b"s"),
    "acquire": lambda s: s.acquire("me", ["f"], LEASE),
    "renew": lambda s: s.renew("me", LEASE),
    "release": lambda s: s.release("queued", "me", 0),
    "rows": lambda s: s.rows("mine"),
    "holders": lambda s: s.holders(),
    "free_in": lambda s: s.free_in(["f"]),
}


# On a server each place takes a schema of its own.
IN_SHORT = [
    *product(["memory", "sqlite"], [*CALLS][::3]),
    *product(["postgres"], ["append_all", "release"]),
]


@pytest.mark.parametrize(("kind", "call"), sampled(product(STORES, CALLS), IN_SHORT))
@pytest.mark.parametrize("how_many", also("some", "many"))
def test_a_call_of_a_store_that_was_interrupted_can_be_repeated(call, kind, how_many, tmp_path):
    does, clock = CALLS[call], FakeClock()
    folders = (tmp_path / str(n) for n in count())

    def state(store: JobStore) -> object:
        jobs = store.job_ids()
        rows = {i: (store.rows(i), store.snapshot(i)) for i in jobs}
        return rows, store.holders()

    @contextmanager
    def made() -> Iterator[JobStore]:
        folder = next(folders)
        folder.mkdir()
        with STORES[kind](folder, clock) as store:
            _before(store)
            yield store

    counter = Interrupter()
    with made() as store:
        without = state(store)
        with counter.armed():
            does(store)
        done = state(store)
    for nth in places(counter.passed, how_many, 4):
        interrupter = Interrupter(nth)

        def case(interrupter: Interrupter = interrupter) -> None:
            with made() as store:
                with suppress(KeyboardInterrupt), interrupter.armed():
                    does(store)
                in_a_thread(lambda: is_one_of(state(store), without, done), interrupter.where)
                if call != "acquire":  # which gives another job, or none
                    does(store)
                    assert done == state(store)

        in_a_thread(case, interrupter.where)


def is_one_of(found: object, *right: object) -> None:
    assert found in right, "it was done by half"
