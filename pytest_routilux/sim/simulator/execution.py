"""Runs one job on one simulated host in virtual time.

Invariants:
- The loop, the machine and the commits are the engine's; the driver, the clock and the journal are
  the simulation's.
- A commit is durable once it is in the world. The journal refuses what a store would refuse.
- With another scheduler than FIFO, any task that may start may start first.
- A perturbation must not change the result of a correct flow.
"""

from __future__ import annotations

import marshal
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_routilux.faults.faults import failing_write
from pytest_routilux.frames import is_engine_bug, raised_at
from pytest_routilux.sim.simulator.async_steps import SimAsyncDriver, async_steps
from pytest_routilux.sim.simulator.driver import (
    TEST_OUTCOMES,
    SimDriver,
    simulation,
)
from pytest_routilux.sim.simulator.host_loop import HostLoop
from pytest_routilux.sim.simulator.model import NORMAL_PACE, Finding, Host, Pace, World
from pytest_routilux.sim.simulator.scheduler import FIFO, BrokenOffError
from pytest_routilux.text import error_text
from pytest_routilux.virtual_time.simulated_step import SimClock
from routilux import (
    Commit,
    CorruptStateError,
    JobState,
    LeaseLostError,
    PendingTask,
    RoutiluxError,
    Runtime,
    UnserializableError,
    codec,
    use_runtime,
)
from routilux.clocks.durations import SECOND
from routilux.codec.equality import first_difference
from routilux.core.machine import Machine
from routilux.core.wire.writes import writes_text
from routilux.engine.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Context

    from pytest_routilux.sim.simulator.handler_thread import HandlerThread
    from pytest_routilux.sim.simulator.model import Case
    from pytest_routilux.sim.simulator.scheduler import Scheduler
    from routilux import Flow, StepInput
    from routilux.engine.drive import Drive
    from routilux.engine.driver import Driver
    from routilux.graph.messages import Writes
    from routilux.graph.plan import Plan

OTHER_START: Final = 8_654_321 * SECOND + 123_456_789  # another day, hour, minute and fraction
_MOST_STEPS: Final = 100_000
_UPTIME: Final = 7_919 * SECOND
_MOST_ENCODED: Final = 1_000
_no_faults: Final = nullcontext()


class _WorldJournal:
    """A journal that adds a simulated host's commits to a `World`.

    With `checked`, each commit is read back from its saved form, and is compared with that form
    again at the end of the run.
    """

    def __init__(self, runtime: _SimRuntime, *, checked: bool) -> None:
        self._runtime = runtime
        self._world = runtime.world
        self._faults = runtime.case.faults
        self._checked = checked
        self._written: list[tuple[Commit, str]] = []

    def write(
        self, job_id: str, commit: Commit, owner: str, *, claims: bool, after_ns: int = 0
    ) -> None:
        self._write(*self.row(job_id, commit, owner), claims=claims)

    def row(self, job_id: str, commit: Commit, owner: str) -> tuple[str, Commit, str]:
        if job_id == self._runtime.case.job_id:
            if self._checked:
                commit.dumps()
            else:
                _refuse_unsaved(commit)
        return job_id, commit, owner

    def append_all(self, appends: Sequence[tuple[str, Commit, str]]) -> list[None]:
        for job_id, commit, owner in appends:
            self._write(job_id, commit, owner, claims=False)
        return [None] * len(appends)

    def _write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        runtime, world = self._runtime, self._world
        if job_id != runtime.case.job_id:
            return  # a handler executes this job; no store keeps it
        if runtime.host.job is not None and runtime.host.job.seq >= commit.seq:
            what = f"{_named(commit)} changed the job before the commit was written"
            runtime.report("folded-before-written", what, commit)
        if commit.seq != len(world.commits) + 1:
            what = f"{_named(commit)} was written when the store had {len(world.commits)} commits"
            runtime.report("written-twice", what, commit)
            raise LeaseLostError(
                f"commit {commit.seq} can't follow the store's last commit, {len(world.commits)}"
            )
        if self._checked:
            self._read_back(commit)
        with failing_write(self._faults, commit) if self._faults else _no_faults:
            if world.files is not None:
                world.files.write(job_id, commit, owner, claims=claims)
            world.add_commit(commit)

    def _read_back(self, commit: Commit) -> None:
        data = commit.dumps()
        where = f"commit {commit.seq} of {_routine_of(commit)}"
        try:
            difference = first_difference(commit, Commit.load(codec.loads(data), "$"))
        except CorruptStateError as error:
            self._runtime.report("unreadable", f"{where} can't be read back: {error}", commit)
            return
        if difference is not None:
            what = f"{where} differs after it is saved and loaded: {difference}"
            self._runtime.report("changed-by-saving", what, commit)
        self._written.append((commit, data))

    def compare_all(self) -> None:
        """Report each commit that has changed since it was written."""
        for commit, data in self._written:
            try:
                text = commit.dumps()
            except UnserializableError as error:
                text = str(error)
            if text == data:
                continue
            difference = first_difference(Commit.load(codec.loads(data), "$"), commit)
            targets = ", ".join(dict.fromkeys(task.routine_id for task in commit.tasks))
            what = (
                f"a handler changes commit {commit.seq} of {_routine_of(commit)} after the write"
                f"{targets and f' (its tasks are for {targets})'}: {difference or text}"
            )
            self._runtime.report("payload-changed", what, commit)


def _routine_of(commit: Commit) -> str:
    return commit.routine_id or "the job"


def _named(commit: Commit) -> str:
    return f"commit {commit.seq} ({commit.kind} of {_routine_of(commit)})"


def _refuse_unsaved(commit: Commit) -> None:
    """Raise `UnserializableError` if a store can't save a value of `commit`."""
    if commit.emissions:
        for index, emission in enumerate(commit.emissions):
            if not emission.flat:
                _encode(emission.payload, f"$.emissions[{index}].payload")
    if commit.state is not None:
        _refuse_unsaved_writes(commit.state, "$.state")
    if commit.shared is not None:
        _refuse_unsaved_writes(commit.shared, "$.shared")


def _refuse_unsaved_writes(writes: Writes, path: str) -> None:
    _encode(writes.values, f"{path}.values")
    if writes.patches:
        writes_text(writes, path)


_encoded: set[bytes] = set()


def _encode(data: dict[str, object], path: str) -> None:
    # Runs of one case write the same values again; equal bytes of plain data are equal values.
    try:
        form = marshal.dumps(data, 2)
    except ValueError:
        codec.encode(data, path)
        return
    if form not in _encoded:
        codec.encode(data, path)
        if len(_encoded) >= _MOST_ENCODED:
            _encoded.clear()
        _encoded.add(form)


class _ChoosingMachine(Machine):
    """A job's state machine with a `scheduler` that picks the next task.

    It picks one only where it matters: if tasks compete for a worker or for their routine, or, with
    `outside`, if what handlers do outside of the job is to have any order.
    """

    __slots__ = ("outside", "scheduler")

    outside: bool
    scheduler: Scheduler

    def begin(self, pending: PendingTask, now: int) -> StepInput:
        options, scheduler = self.startable(now), self.scheduler
        trace = scheduler.trace
        if len(options) > 1 and (self.outside or self._compete(options)):
            if trace is not None:
                trace.starting = True
            pending = options[scheduler.choose([option.task_id for option in options])]
        step = super().begin(pending, now)
        if trace is not None:
            trace.begin(step, options, alone=self._alone)
        return step

    def _compete(self, options: Sequence[PendingTask]) -> bool:
        if len(options) > self._width - self.in_flight:
            return True
        wanted = Counter(option.task.routine_id for option in options)
        busy = Counter(step.task.routine_id for step in self.flights)
        routines = self.plan.routines
        return any(
            most + busy[name] > routines[name].max_concurrency for name, most in wanted.items()
        )

    def accept(self, commit: Commit) -> None:
        step = self._flights.get(commit.task_id or "")
        super().accept(commit)
        if self.scheduler.trace is not None:
            self.scheduler.trace.commit(commit, step)


class _SimRuntime(Runtime):
    """The runtime of one simulated host."""

    def __init__(
        self,
        case: Case,
        world: World,
        host: Host,
        scheduler: Scheduler,
        pace: Pace,
        *,
        checked: bool,
        dies_at: int | None,
    ) -> None:
        # The monotonic clocks of two hosts have nothing in common.
        clock = SimClock(world.now_ns, mono=world.host_number * _UPTIME)
        super().__init__(clock=clock, max_steps=_MOST_STEPS)
        self.threads = _SimThreads(self)
        self.sim_clock = clock
        self.case = case
        self.world = world
        self.host = host
        self.scheduler = scheduler
        self.pace = pace
        self.handlers: list[HandlerThread] = []
        self.host_loop = HostLoop(clock, pace, scheduler, dies_at)
        environment = self.environment
        environment.owner = f"simulated host {world.host_number}"
        environment.run_async_step = async_steps(case, world, host, clock, self.host_loop)
        environment.journal = _WorldJournal(self, checked=checked)  # type: ignore[assignment]  # as one
        environment.observers.registered = () if case.always is None else (self,)

    def report(self, kind: str, what: str, commit: Commit) -> None:
        routine = commit.routine_id
        path = f"engine.{routine or 'job'}"
        self.host.findings.append(Finding(kind, what, path, routine))

    def on_commit(self, job: JobState, commit: Commit) -> None:
        check = self.case.always
        if check is None or job.job_id != self.case.job_id:
            return
        what = f"always() does not hold after commit {commit.seq}"
        try:
            held = check(job)
        except AssertionError as error:
            self.report("always", f"{what}: {error}", commit)
            return
        if held is not None and not held:
            self.report("always", what, commit)

    def drive_of(self, plan: Plan, job: JobState, context: Context | None = None) -> Drive:
        trace = self.scheduler.trace
        if job.job_id == self.case.job_id:
            self.host.job = job
        elif trace is not None:
            trace.blind = True
        drive = super().drive_of(plan, job, context)
        if self.scheduler is not FIFO:
            drive.machine = machine = _ChoosingMachine(plan, job)
            machine.scheduler = self.scheduler
            machine.outside = self.case.fresh is not None
        return drive


class _SimThreads(Threads):
    """Drives all jobs of a simulated host in a single thread."""

    async_driver = SimAsyncDriver

    def __init__(self, runtime: _SimRuntime) -> None:
        super().__init__(runtime.environment, None)
        self._runtime = runtime

    def driver_for(self, drive: Drive) -> Driver:
        runtime = self._runtime
        return SimDriver(
            runtime.sim_clock,
            runtime.world,
            runtime.host,
            runtime.scheduler,
            runtime.case,
            runtime.pace,
            runtime.host_loop,
            runtime.environment,
            runtime.handlers,
        )

    def drive_in_background(self, drive: Drive) -> None:
        raise RoutiluxError(
            "a simulated handler can't start a job in the background: a simulation runs in one"
            " thread; in the handler, use execute() instead of start(), or await aexecute() in an"
            " async handler"
        )


def run_host(
    case: Case,
    world: World,
    job: JobState | None = None,
    *,
    scheduler: Scheduler = FIFO,
    pace: Pace = NORMAL_PACE,
    checked: bool = False,
    flow: Flow | None = None,
    dies_at: int | None = None,
) -> Host:
    """Run a job on one host until the job stops or the host dies.

    With `dies_at` the host dies when so many awaits are in `world`, at the next one.

    Adds the commits to `world`. Without `job` a new job starts, else the host resumes `job`.
    `checked` reads each commit back from its saved form. `flow` replaces the one of `case.build`.
    """
    flow = case.build() if flow is None else flow
    host = Host(flow, exact=scheduler is FIFO)
    world.host_number += 1
    runtime = _SimRuntime(case, world, host, scheduler, pace, checked=checked, dies_at=dies_at)
    try:
        with (
            nullcontext() if world.files is None else world.files.opened(),
            use_runtime(runtime),
            simulation(runtime.sim_clock),
        ):
            if job is None:
                host.job = runtime.execute(
                    flow, case.entry, case.params, slot=case.slot, job_id=case.job_id
                )
            else:
                host.job = runtime.resume(flow, job)
    except (BrokenOffError, *TEST_OUTCOMES):
        raise
    except BaseException as error:
        host.error = error
        if is_engine_bug(error):
            what = f"the host dies of an error in the engine: {error_text(error)}"
            host.findings.append(Finding("engine-error", what, "engine.job", hint=raised_at(error)))
    finally:
        for handler in runtime.handlers:
            handler.close()
        runtime.host_loop.close()
    for failure in runtime.observer_failures:
        raise failure.error  # of the test's `always`, which has checked nothing then
    if checked:
        runtime.environment.journal.compare_all()  # type: ignore[union-attr]  # a _WorldJournal
    world.now_ns = max(world.now_ns, runtime.clock.now_ns())
    return host


# --- perturbations --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variation:
    """A perturbation that must not change a correct flow's result."""

    shift_ns: int = 0
    pace: Pace = NORMAL_PACE

    @property
    def text(self) -> str:
        """What is different, for people; "" for a plain repeat."""
        if self.shift_ns:
            return "at another start instant"
        if self.pace.more_ns:
            return "with steps that take an hour longer"
        twice = self.pace.twice
        return "with longer sleeps and outcomes that arrive twice" if twice else ""


UNVARIED: Final = Variation()
"""A plain repeat."""


def variations(plan: Plan) -> list[Variation]:
    """Return the variations to try for the flow of `plan`."""
    found = [Variation(shift_ns=OTHER_START), Variation(pace=Pace(percent=125, twice=True))]
    if all(handler.deadline is None for handler in plan.handlers.values()):
        # So slow that a retry is due before the steps in flight end, as after a long downtime.
        found.append(Variation(pace=Pace(more_ns=3600 * SECOND)))
    return found
