"""Runs a simulated job with or without a crash.

Invariants:
- After a crash, the durable state is a prefix of the undisturbed run's world, read back from its
  saved form, or from the files of a real store. No code of the dead host runs: no `finally`, no
  `except`.
- The next host builds its flow anew and has only the world. With `fresh`, what lies outside is as
  the dead host left it: it is reset, and the handlers that had started by the crash run again.
- Each run says whether its planned crash was executed; without it, the run proves nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.faults.faults import Fault
from pytest_routilux.sim.simulator.execution import Variation, run_host
from pytest_routilux.sim.simulator.model import (
    ENDED,
    NORMAL_PACE,
    Case,
    Disturbed,
    Finding,
    Host,
    HostCrash,
    Note,
    Undisturbed,
    World,
)
from pytest_routilux.sim.simulator.scheduler import FIFO, FIFO_ORDER, OrderScheduler
from pytest_routilux.sim.simulator.store_files import RealStoreFiles
from pytest_routilux.text import error_text
from routilux import (
    Commit,
    FlowDefinitionError,
    JobState,
    RoutiluxError,
    SavedState,
    SavedStateError,
    UnserializableError,
    codec,
)
from routilux.codec.equality import first_difference
from routilux.core.replay import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import CrashPoint, Pace
    from pytest_routilux.sim.simulator.scheduler import Order, Scheduler
    from routilux import Flow

_MOST_HOSTS: Final = 12
_IN_FLIGHT: Final = ("before a write", "around an effect", "at an await")
_REFUSALS: Final = ("store refuses", "store does not answer")


def run_undisturbed(case: Case, start_ns: int, order: Order = FIFO_ORDER) -> Undisturbed:
    """Run a job in an order, without a simulated crash.

    A new host resumes the job if a handler kills the host. Raises the error of an entry or params
    that the flow does not accept.
    """
    world = _new_world(case, start_ns)
    scheduler = order.scheduler()
    hosts = _run_hosts(case, world, None, checked=True, scheduler=scheduler)
    if isinstance(scheduler, OrderScheduler):
        order = scheduler.tape
    if not world.commits and isinstance(hosts[-1].error, FlowDefinitionError | UnserializableError):
        raise hosts[-1].error
    return _read_durable(Undisturbed(case, world, hosts[-1], [], [], order=order), hosts[:-1])


def run_recovered(run: Undisturbed, disturbed: Disturbed) -> Undisturbed:
    """Return the run after a crash in `run` as one whose hosts can be crashed again."""
    point = disturbed.point
    assert point is not None
    begun = run.durable[: point.commits], run.states[: point.commits + 1]
    *before, last = disturbed.hosts
    again = Undisturbed(run.case, disturbed.world, last, *begun, crash=(run, point))
    return _read_durable(again, before)


def _read_durable(run: Undisturbed, hosts: Sequence[Host]) -> Undisturbed:
    """Read the commits of a run back, from its last durable one, and merge the earlier hosts."""
    case, world, merged = run.case, run.world, run.host
    durable, states = run.durable, run.states
    if not states:
        states.append(JobState(case.job_id))
    job = states[-1].copy()
    for commit in world.commits[len(durable) :]:
        path = f"$.{case.job_id}[{commit.seq}]"
        try:
            durable.append(Commit.load(codec.loads(commit.dumps()), path))
            follow(job, durable[-1], path)
        except SavedStateError as error:
            routine = commit.routine_id or "the job"
            what = f"commit {commit.seq} of {routine} can't be read back: {error}"
            merged.findings.append(
                Finding("unreadable", what, f"engine.{routine}", commit.routine_id)
            )
            break
        states.append(job.copy())
    for host in reversed(hosts):
        merged.findings[:0] = host.findings
        merged.steps[:0] = host.steps
        merged.sleeps[:0] = host.sleeps
        merged.errors = {**host.errors, **merged.errors}
        merged.reads |= host.reads
        merged.unspent |= host.unspent
        merged.retry_after = {**host.retry_after, **merged.retry_after}
    if world.files is not None:
        for number in range(0 if run.crash is None else run.crash[1].commits, len(states)):
            stored = world.files.cut(number).stored_job(case.job_id, world)
            if isinstance(stored, Finding):
                run.store_findings[number] = stored
            elif stored is not None:
                states[number] = stored
    return run


def run_variation(case: Case, start_ns: int, variation: Variation) -> tuple[World, list[Host]]:
    """Run a job with `variation`, without a real store; return the run's world and hosts."""
    case.reset()
    case = replace(case, store=None)
    world = World(start_ns + variation.shift_ns)
    return world, _run_hosts(case, world, None, pace=variation.pace)


def run_in_order(
    case: Case, start_ns: int, scheduler: Scheduler, *, serial: bool = False
) -> tuple[World, list[Host]]:
    """Run a job in the order of `scheduler`, without a real store; return its world and hosts.

    `serial`: at most one step is in flight.
    """
    case.reset()
    case = replace(case, store=None)
    if serial:
        case = replace(case, build=_Sequential(case.build))
    world = World(start_ns)
    return world, _run_hosts(case, world, None, scheduler=scheduler)


@dataclass(frozen=True, slots=True)
class _Sequential:
    """Builds a flow that runs one task at a time."""

    build: Callable[[], Flow]

    def __call__(self) -> Flow:
        flow = self.build()
        flow.execution_strategy = "sequential"
        return flow


def _new_world(case: Case, start_ns: int) -> World:
    case.reset()
    return World(start_ns, files=None if case.store is None else RealStoreFiles(case.store))


def recover(run: Undisturbed, point: CrashPoint) -> Disturbed:
    """Crash a job's host at `point`, then resume the job on other hosts."""
    case = run.case
    if point.kind in _REFUSALS:
        # The host is alive when the store fails, so it runs from the start of the job.
        durable = point.kind == "store does not answer"
        how = "did not acknowledge" if durable else "failed to write"
        seq = point.commits + 1
        fault = _FailsAt(seq, OSError(f"the store {how} commit {seq}"), durable=durable)
        world = _new_world(case, run.world.log[0][0])
        failing = replace(case, faults=(fault, *case.faults))
        hosts = _run_hosts(failing, world, None, scheduler=run.order.scheduler())
        return Disturbed(point, world, hosts, fault.struck == 1, run.order)
    if case.fresh is not None:
        _run_until(run, point)
    world = _cut(run, point)
    if point.commits in run.store_findings:
        host = Host(run.host.flow, store_finding=run.store_findings[point.commits])
        return Disturbed(point, world, [host], True, run.order)
    job = run.states[point.commits] if point.commits else None
    executed = True
    dead: list[Host] = []
    if point.kind == "in a recovery" and job is not None:
        job, executed, dead = _crash_on_resume(case, world, job)
    flow = None
    if point.kind == "by document" and job is not None:
        read = read_back(run.host.flow, job)
        if isinstance(read, Finding):
            host = Host(run.host.flow, store_finding=read)
            return Disturbed(point, world, [host], True, run.order)
        flow, job = read.flow, read.job
    hosts = _run_hosts(case, world, job, flow=flow)
    return Disturbed(point, world, [*dead, *hosts], executed, run.order)


def _cut(run: Undisturbed, point: CrashPoint) -> World:
    """Return the world in which the next host resumes the job after a crash."""
    world = run.world.cut(point.commits, point.calls, point.at_ns)
    world.commits = run.durable[: point.commits]
    world.add_note(point.at_ns, Note("crash"))
    world.now_ns = point.resume_ns
    return world


def read_back(flow: Flow, job: JobState) -> SavedState | Finding:
    """Save a job as a document and load it again; return a finding if it can't be read.

    Raises `UnserializableError` if an argument of the flow can't be saved.
    """
    try:
        data = SavedState.capture(flow, job).to_bytes()
    except UnserializableError:
        try:
            job.dumps()
        except UnserializableError as error:
            what = f"the job can't be saved, but all its commits were: {error}"
            return Finding("document-unsaved", what, "engine.document")
        raise
    try:
        document = SavedState.from_bytes(data)
    except SavedStateError as error:
        what = f"the document that the engine made of the job can't be read back: {error}"
        return Finding("document-unreadable", what, "engine.document")
    found, loaded = job.serialize(), document.job.serialize()
    difference = None if found == loaded else first_difference(found, loaded)
    if difference is not None:
        what = f"the job differs after it was saved as a document and loaded: {difference}"
        return Finding("document-differs", what, "engine.document")
    return document


def _run_until(run: Undisturbed, point: CrashPoint) -> None:
    """Run the handlers that had started by the crash; one in flight runs to its end.

    An async handler in flight runs to the next await of any of them.
    """
    world, job = None, None
    if run.crash is None:
        run.case.reset()
    else:
        before, first = run.crash
        _run_until(before, first)
        world, job = _cut(before, first), before.states[first.commits]
        world.files = None
    in_flight = point.kind in _IN_FLIGHT or any(
        commits == point.commits and step.started_ns < point.at_ns
        for commits, step in run.host.steps
    )
    seq = point.commits + in_flight
    awaits = run.world.awaits[point.awaits :]
    dies_at = None
    if in_flight and awaits and awaits[0].commits == point.commits:
        dies_at = point.awaits
    if seq > (0 if job is None else job.seq):
        dies = _FailsAt(seq, HostCrash(), durable=not in_flight)
        case = replace(run.case, faults=(dies, *run.case.faults), store=None)
        for fault in case.faults:
            fault.begin(0 if job is None else job.seq)
        world = world or World(run.durable[0].at_ns)
        run_host(case, world, job, scheduler=run.order.scheduler(), dies_at=dies_at)


class _FailsAt(Fault):
    """Makes the write of commit `seq` fail once.

    If `durable`, the store keeps the commit. Writes aren't counted: a commit may need several.
    """

    def __init__(self, seq: int, error: BaseException, *, durable: bool) -> None:
        self._seq = seq
        self._error = error
        self._durable = durable

    def before_write(self, commit: Commit) -> None:
        if not self._durable:
            self._fail(commit)

    def after_write(self, commit: Commit) -> None:
        if self._durable:
            self._fail(commit)

    def _fail(self, commit: Commit) -> None:
        if commit.seq == self._seq and not self.struck:
            self.struck += 1
            raise self._error


def _crash_on_resume(case: Case, world: World, job: JobState) -> tuple[JobState, bool, list[Host]]:
    """Crash a host right after a resume.

    Returns the stored job, whether the crash happened, and the hosts.
    """
    hosts = []
    dies = _FailsAt(len(world.commits) + 1, HostCrash(), durable=True)  # no user code runs then
    for fault in case.faults:
        fault.begin(len(world.commits))
    for _ in range(_MOST_HOSTS):  # a store that the test lets fail may end others before
        host = run_host(replace(case, faults=(dies, *case.faults)), world, job)
        hosts.append(host)
        job = _stored(case, world, job, host) or job
        if dies.struck:
            break
    world.add_note(world.now_ns, Note("crash after the resume"))
    return job, dies.struck == 1, hosts


def _stored(case: Case, world: World, job: JobState | None, host: Host) -> JobState | None:
    """Return the job in the store after the end of `host`."""
    if world.files is not None:
        stored = world.files.stored_job(case.job_id, world)
        if not isinstance(stored, Finding):
            return stored
        host.store_finding = stored
    if not world.commits:
        return None
    job = JobState(case.job_id) if job is None else job.copy()  # as the host loaded it
    for commit in world.commits[job.seq :]:
        job.fold(commit)
    return job


def _run_hosts(
    case: Case,
    world: World,
    job: JobState | None,
    *,
    checked: bool = False,
    flow: Flow | None = None,
    scheduler: Scheduler = FIFO,
    pace: Pace = NORMAL_PACE,
) -> list[Host]:
    """Run up to `_MOST_HOSTS` hosts, one after another, until the job ends.

    The first one works in the order of `scheduler`, the others in FIFO order.
    """
    for fault in case.faults:
        fault.begin(len(world.commits))
    hosts: list[Host] = []
    while len(hosts) < _MOST_HOSTS:
        if job is not None and job.status in ENDED:
            hosts.append(Host(case.build(), job))
            break
        other = case.other_host if world.host_number else None
        with nullcontext() if other is None else other.running():
            host = run_host(
                case, world, job, scheduler=scheduler, pace=pace, checked=checked, flow=flow
            )
        scheduler = FIFO
        hosts.append(host)
        over = host.error is None or isinstance(host.error, RoutiluxError)
        if over and world.files is None:
            break
        job = _stored(case, world, job, host)
        if over or host.store_finding is not None:
            break
        flow = None
        assert host.error is not None
        world.add_note(world.now_ns, Note("ends", error_text(host.error)))
    return hosts
