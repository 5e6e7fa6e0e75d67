"""A discrete-event run of one job: virtual time, one thread, the engine's own loop.

Laws:
- It is the loop of production, with a driver, a clock and a journal of its own; the machine, the
  commits and everything between them are the engine's.
- A handler runs to its end as soon as its step begins, against its snapshot. What it did on the way
  (effects, results of `once`, its end) is held back, each until its instant comes. So steps overlap
  as they would on threads, and what was held back when a host dies has never happened.
- Who is due at the same instant goes on in the order of the thread driver: whoever need not wait
  before whoever slept, sleepers by (task's creating commit, position).
- With other choices than FIFO a duration and a delay are lower bounds: any step in flight may go on
  next, and any task that may start may start first.
- No real time passes, and no thread is started.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, final

import pytest

from pytest_routilux.choices import FIFO
from pytest_routilux.oracle import Finding
from pytest_routilux.world import Call, World
from routilux import (
    Clock,
    ClockStalledError,
    Commit,
    CorruptStateError,
    JobState,
    LeaseLostError,
    NoActiveStepError,
    PendingTask,
    RoutiluxError,
    Runtime,
    Signal,
    StepInput,
    StepOutcome,
    UnserializableError,
    codec,
    use_runtime,
)
from routilux.core.machine import MOST_CONFLICTS, Machine
from routilux.drive import Drive
from routilux.instants import SECOND, from_ns
from routilux.step import run_step
from routilux.values import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from pytest_routilux.choices import Choices
    from pytest_routilux.faults import Fault
    from routilux import Context, Flow, Routine, Slot
    from routilux.clock import Key
    from routilux.drivers import Driven, Driver, Ended
    from routilux.exchange import Effect
    from routilux.flow import Plan
    from routilux.policy import ErrorHandler

__all__ = ["STEADY", "Case", "HostCrash", "Life", "Pace", "SimClock", "live", "running"]

_MOST_STEPS: Final = 100_000
_UPTIME: Final = 7_919 * SECOND
_OUTCOMES: Final = (KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception)
"""What is not the simulated host's end, but the test's: it passes through."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated: how a flow is built, and how its job starts; `faults` are always there."""

    build: Callable[[], Flow]
    entry: str
    params: Mapping[str, object] | None = None
    slot: str = "trigger"
    job_id: str = "job"
    faults: Sequence[Fault] = ()
    always: Callable[[JobState], object] | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long steps take: `percent` of what handlers sleep, and so much more for each.

    A step whose attempt has a timeout gets nothing on top.
    """

    percent: int = 100
    more_ns: int = 0


STEADY: Final = Pace()


class HostCrash(BaseException):
    """The simulated host is dead; raised where no code of the user is on the stack."""


@dataclass(slots=True)
class Life:
    """How one host's life ended: the job as its memory had it, and the flow that it had built.

    `error` is what ended it from outside: the store's trouble, an exit of the process, a stall.
    `broken` are laws of the engine that did not hold. `steps` are the steps that began, each with
    the number of commits that were durable then; `errors` the classes of what they raised, by
    (task id, attempt), and `asked` the delays (ns) of those that asked for one; `threads` are those
    that outlived a step, with its routine. `exact`: durations and delays are no lower bounds.
    """

    flow: Flow
    job: JobState | None = None
    error: BaseException | None = None
    broken: list[Finding] = field(default_factory=list)
    steps: list[tuple[int, StepInput]] = field(default_factory=list)
    errors: dict[tuple[str, int], type[BaseException]] = field(default_factory=dict)
    asked: dict[tuple[str, int], int] = field(default_factory=dict)
    threads: list[tuple[str, str]] = field(default_factory=list)
    exact: bool = True


# --- time -----------------------------------------------------------------------------------------


class _SimSignal(Signal):
    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set


@final
class SimClock(Clock):
    """Time as one thread makes it pass: whoever waits, waits at once."""

    def __init__(self, start_ns: int, mono: int = 0) -> None:
        self.wall = start_ns - mono  # what the wall clock showed at monotonic 0
        self.mono = mono
        self._thread = threading.get_ident()

    def now_ns(self) -> int:
        return self.wall + self.mono

    def monotonic_ns(self) -> int:
        return self.mono

    def now(self) -> datetime:
        """Return the wall clock's time as an aware UTC datetime."""
        return from_ns(self.now_ns())

    def signal(self) -> Signal:
        return _SimSignal()

    def wait(self, signal: Signal | None, until: int | None, key: Key = (), who: str = "") -> bool:
        # Only a job that a handler executes waits here; the simulated one waits in the driver.
        if signal is not None and signal.is_set():
            return True
        if until is None:
            raise ClockStalledError(f"{who} waits for what nobody will do: a simulation is alone")
        self.mono = max(self.mono, until)
        return False

    def runs_here(self) -> bool:
        """Return whether the calling thread is the one of the simulation."""
        return threading.get_ident() == self._thread


# --- steps ----------------------------------------------------------------------------------------


class _Flight:
    """A step whose handler was run, and what is held back of it: (instant, what)."""

    __slots__ = ("driven", "effects", "events", "step")

    def __init__(self, driven: Driven, step: StepInput) -> None:
        self.driven = driven
        self.step = step
        self.effects = 0
        self.events: deque[tuple[int, Any]] = deque()

    @property
    def key(self) -> Key:
        return (self.driven.ordinal, *self.step.order)


def _named(option: Ended | _Flight | None) -> str:
    if option is None:
        return "time passes"
    step = option[1] if isinstance(option, tuple) else option.step
    return f"{step.task.task_id} {step.task.routine_id} attempt {step.attempt}"


class running:  # noqa: N801 - it reads as what it is: running.flight
    """The simulation whose handler runs at this moment, for the doubles of effects."""

    flight: _Flight | None = None
    clock: SimClock | None = None


class _StepHost:
    """The host of one step: its sleeps pass at once, its records are held back."""

    __slots__ = ("_clock", "_driven", "_flight", "_pace")

    def __init__(self, clock: SimClock, flight: _Flight, pace: Pace) -> None:
        self._clock = clock
        self._flight = flight
        self._driven: Any = flight.driven
        self._pace = pace

    def now_ns(self) -> int:
        return self._clock.mono + int(self._driven.offset)

    def sleep(self, step: StepInput, length: int) -> None:
        until = self._clock.mono + length * self._pace.percent // 100
        if step.timeout_ns is not None:
            until = min(until, step.started_ns + step.timeout_ns - self._driven.offset)
        self._clock.mono = max(self._clock.mono, until)

    def record(self, step: StepInput, name: str, effect: Effect) -> None:
        self._flight.events.append((self._clock.mono, (name, effect)))

    def opened(self, context: Context) -> None:
        """Do nothing: no step runs on after its timeout."""


class SimDriver:
    """Runs the handlers, and hands back what comes next."""

    room = True

    def __init__(
        self,
        clock: SimClock,
        world: World,
        life: Life,
        choices: Choices,
        faults: Sequence[Fault],
        pace: Pace,
        job_id: str,
    ) -> None:
        self._clock = clock
        self._world = world
        self._life = life
        self._choices = choices
        self._faults = faults
        self._pace = pace
        self._job_id = job_id
        self._fresh: list[_Flight] = []
        self._ended: deque[Ended] = deque()
        self._broke = False
        self._asleep: list[tuple[int, Key, int, _Flight]] = []
        self._numbers = 0

    def start(self, driven: Driven, step: StepInput) -> None:
        """Take a step."""
        self._fresh.append(_Flight(driven, step))
        if step.job_id == self._job_id:  # else of a job that a handler executes
            self._life.steps.append((len(self._world.commits), step))

    def poke(self) -> None:
        """Do nothing: `next` never waits."""

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return the step that ends next; None where time has come to `until`, or a job broke."""
        clock = self._clock
        if not self._ended:
            if until is not None and until <= clock.mono:
                return None
            # A thread runs when the loop waits, which it does not while it has ended steps.
            fresh, self._fresh = self._fresh, []
            for flight in fresh:
                self._perform(flight)
                self._go_on(flight)
        while True:
            chosen = self._choose(until, key)
            if isinstance(chosen, _Flight):
                if not chosen.events:
                    self._perform(chosen)
                clock.mono = max(clock.mono, chosen.events[0][0])
                self._go_on(chosen)
            elif chosen is not None:
                return chosen
            elif until is not None:
                clock.mono = max(clock.mono, until)
                return None
            else:
                raise ClockStalledError(
                    "nothing is in flight and no time will bring a task, but the job does not"
                    " rest: a wake-up was lost"
                )
            if self._broke:
                self._broke = False
                return None

    def _choose(self, until: int | None, key: Key) -> Ended | _Flight | None:
        """Return a step that is over, else one that is to go on; None where time passes first."""
        ended, fresh, asleep = self._ended, self._fresh, self._asleep
        if self._choices is FIFO:
            if ended:
                return ended.popleft()
            if asleep and (until is None or asleep[0][:2] <= (until, key)):
                return heappop(asleep)[3]
            return None
        asleep.sort()  # which leaves it a heap
        options: list[Ended | _Flight | None] = [*ended, *fresh, *(entry[3] for entry in asleep)]
        if until is not None:
            sooner = sum(entry[:2] <= (until, key) for entry in asleep)
            options.insert(len(ended) + len(fresh) + sooner, None)
        if not options:
            return None
        index = 0
        if len(options) > 1:
            index = self._choices.choose("commit", [_named(option) for option in options])
        chosen = options[index]
        if isinstance(chosen, tuple):
            ended.remove(chosen)
        elif chosen in fresh:
            fresh.remove(chosen)
        elif chosen is not None:
            self._asleep = [entry for entry in asleep if entry[3] is not chosen]
        return chosen

    def _go_on(self, flight: _Flight) -> None:
        """Let happen what is held back of a step, up to its next sleep or its end."""
        events = flight.events
        clock = self._clock
        while events[0][0] <= clock.mono:
            _, what = events.popleft()
            if isinstance(what, Call):
                self._world.called(what)
            elif isinstance(what, tuple):
                try:
                    flight.driven.record(flight.step, *what)
                except NoActiveStepError:
                    return  # it was given up, and so is what it would have done
                except BaseException:
                    self._broke = True  # the store's trouble: the loop knows, and drops the job
                    return
            else:
                if isinstance(what, StepOutcome) and what.error_type is not None:
                    self._note_error(flight.step, what, what.error_type)
                self._ended.append((flight.driven, flight.step, what))
                return
        self._numbers += 1
        heappush(self._asleep, (events[0][0], flight.key, self._numbers, flight))

    def _note_error(self, step: StepInput, ended: StepOutcome, kind: type[BaseException]) -> None:
        if step.job_id != self._job_id:
            return
        attempt = step.task.task_id, step.attempt
        self._life.errors[attempt] = kind
        if ended.retry_after_ns is not None:
            self._life.asked[attempt] = ended.retry_after_ns

    def _perform(self, flight: _Flight) -> None:
        step = flight.step
        clock = self._clock
        task = step.task
        plan = flight.driven.plan
        routine = plan.routines[task.routine_id]
        slot = plan.slot(task.routine_id, task.slot)
        begun = clock.mono
        for fault in self._faults:
            slot = fault.affect(step, slot, clock)
        outer = running.flight, running.clock
        running.flight, running.clock = flight, clock
        try:
            outcome: StepOutcome | BaseException = self._run(
                step, routine, slot, plan.handlers[task.routine_id], flight
            )
        finally:
            running.flight, running.clock = outer
        if step.timeout_ns is None:
            clock.mono += self._pace.more_ns
        flight.events.append((clock.mono, outcome))
        clock.mono = begun

    def _run(
        self, step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, flight: _Flight
    ) -> StepOutcome | BaseException:
        threads = threading.active_count()
        host = _StepHost(self._clock, flight, self._pace)
        try:
            return run_step(step, routine, slot, handler, host)
        except _OUTCOMES:
            raise
        except BaseException as error:
            return error
        finally:
            if threading.active_count() > threads:
                name = threading.enumerate()[-1].name
                self._life.threads.append((step.task.routine_id, name))


# --- the host -------------------------------------------------------------------------------------


class _WorldJournal:
    """Writes commits into the world.

    `checked` reads each one back from its saved form, and looks whether it stays as it was written:
    at the end, and at the end of each attempt at the commits that brought its payload, its
    routine's state and the shared data.
    """

    def __init__(self, host: _SimRuntime, world: World, faults: Sequence[Fault], checked: bool):
        self._host = host
        self._world = world
        self._faults = faults
        self._checked = checked
        self._written: dict[int, tuple[Commit, str]] = {}
        self._brought: dict[str, int] = {}  # a task -> the commit that created it
        self._wrote: dict[str | None, int] = {}  # a routine -> the last one with its state
        self._shared = 0  # the last one with shared data

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        host, world = self._host, self._world
        if job_id != host.case.job_id:
            return  # a job that a handler executes; it lives in the process alone
        whose = commit.routine_id or "the job"
        this = f"commit {commit.seq} ({commit.kind} of {whose})"
        if host.life.job is not None and host.life.job.seq >= commit.seq:
            host.broken(
                "folded-before-written",
                f"{this} was folded into the job before it was written",
                commit,
            )
        if commit.seq != len(world.commits) + 1:
            host.broken(
                "written-twice", f"{this} was written after {len(world.commits)} others", commit
            )
            raise LeaseLostError(f"the store holds {len(world.commits)} commits")
        if self._checked:
            self._read_back(commit)
        else:
            _refuse_unsaved(commit)
        for fault in self._faults:
            fault.before_write(commit)
        world.committed(commit)
        for fault in self._faults:
            fault.after_write(commit)

    def _read_back(self, commit: Commit) -> None:
        data = codec.dumps(commit.serialize())
        where = f"commit {commit.seq} of {commit.routine_id or 'the job'}"
        try:
            difference = first_difference(commit, Commit.load(codec.loads(data), "$"))
        except CorruptStateError as error:
            self._host.broken("unreadable", f"{where} can't be read back: {error}", commit)
            return
        if difference is not None:
            what = f"{where} is changed by saving and loading it: {difference}"
            self._host.broken("changed-by-saving", what, commit)
        who = f"an attempt of {commit.routine_id} (task {commit.task_id}, attempt {commit.attempt})"
        brought = self._brought.get(commit.task_id or "", 0)
        for seq in {brought, self._wrote.get(commit.routine_id, 0), self._shared}:
            self._compare(seq, commit, who)
        self._written[commit.seq] = commit, data
        for task in commit.tasks:
            self._brought[task.task_id] = commit.seq
        if commit.state is not None:
            self._wrote[commit.routine_id] = commit.seq
        if commit.shared is not None:
            self._shared = commit.seq

    def compare(self) -> None:
        """Look whether every commit still is as it was written."""
        for seq in self._written:
            self._compare(seq, None, "a handler")

    def _compare(self, seq: int, culprit: Commit | None, who: str) -> None:
        commit, data = self._written.get(seq, (None, ""))
        if commit is None:
            return
        try:
            text = codec.dumps(commit.serialize())
        except UnserializableError as error:
            text = str(error)
        if text == data:
            return
        self._written[seq] = commit, text
        difference = first_difference(Commit.load(codec.loads(data), "$"), commit)
        targets = ", ".join(dict.fromkeys(task.routine_id for task in commit.tasks))
        what = (
            f"{who} changes commit {seq} of {commit.routine_id or 'the job'} after it was written"
            f"{targets and f' (it went to {targets})'}: {difference or text}"
        )
        self._host.broken("payload-changed", what, culprit or commit)


def _refuse_unsaved(commit: Commit) -> None:
    """Raise `UnserializableError` where a store would; `once` looks at its results by itself."""
    for index, emission in enumerate(commit.emissions):
        if not emission.flat:
            codec.encode(emission.payload, f"$.emissions[{index}].payload")
    if commit.state is not None:
        codec.encode(commit.state.values, "$.state.values")
    if commit.shared is not None:
        codec.encode(commit.shared.values, "$.shared.values")


class _ChoosingMachine(Machine):
    """A machine whose next task is a decision."""

    __slots__ = ("choices",)

    choices: Choices

    def first(self, now: int) -> PendingTask | None:
        first = super().first(now)
        if first is None or first.conflicts >= MOST_CONFLICTS:
            return first
        options = [task for task in self._schedule.ready(now) if not self._must_wait(task)]
        if len(options) < 2:
            return first
        names = [f"{task.task_id} {task.routine_id}" for task in options]
        return options[self.choices.choose("start", names)]


class _SimRuntime(Runtime):
    """A runtime that lives in one simulated host."""

    def __init__(
        self,
        case: Case,
        world: World,
        life: Life,
        choices: Choices,
        pace: Pace,
        *,
        checked: bool,
        told: bool,
    ) -> None:
        # Each machine was switched on at another time.
        clock = SimClock(world.now_ns, mono=world.host * _UPTIME)
        super().__init__(clock=clock, max_steps=_MOST_STEPS)
        self.sim_clock = clock
        self.case = case
        self.world = world
        self.life = life
        self._choices = choices
        self._pace = pace
        self.journal = _WorldJournal(self, world, case.faults, checked)  # type: ignore[assignment]
        if case.always is not None:
            self.observers = (self,)
        if told:
            self.step_observers = (self,)

    def broken(self, kind: str, what: str, commit: Commit) -> None:
        routine = commit.routine_id
        path = f"engine.{routine or 'job'}"
        self.life.broken.append(Finding(kind, what, path, routine, at_ns=commit.at_ns))

    def on_step(self, job: JobState, step: StepInput) -> None:
        if job.job_id == self.case.job_id:
            self.world.noted(step.started_ns, f"attempt {step.attempt} starts", step)

    def on_commit(self, job: JobState, commit: Commit) -> None:
        check = self.case.always
        if check is None or job.job_id != self.case.job_id:
            return
        try:
            held = check(job)
        except AssertionError as error:
            self.broken(
                "always", f"always() does not hold after commit {commit.seq}: {error}", commit
            )
            return
        if held is False:
            self.broken("always", f"always() does not hold after commit {commit.seq}", commit)

    def _drive_of(self, plan: Plan, job: JobState) -> Drive:
        if job.job_id == self.case.job_id:
            self.life.job = job
        if self._choices is FIFO:
            return Drive(self, Machine(plan, job))
        machine = _ChoosingMachine(plan, job)
        machine.choices = self._choices
        return Drive(self, machine)

    def _take_driver(self, plan: Plan) -> Driver:
        return SimDriver(
            self.sim_clock,
            self.world,
            self.life,
            self._choices,
            self.case.faults,
            self._pace,
            self.case.job_id,
        )

    def _drive_in_background(self, drive: Drive) -> None:
        raise RoutiluxError(
            "a simulation runs in one thread, so that it repeats: use execute() where the handler"
            " uses start() or aexecute()"
        )


def live(
    case: Case,
    world: World,
    job: JobState | None = None,
    *,
    choices: Choices = FIFO,
    pace: Pace = STEADY,
    checked: bool = False,
    told: bool = False,
    flow: Flow | None = None,
) -> Life:
    """Let one host run the job until it rests, or the host dies; the world keeps what it did.

    Without `job` it starts anew, else it goes on with what a store would give back. `pace` is
    how long steps take. `checked` reads each commit back from its saved form, `told` notes
    for a timeline where steps begin. `flow` is used in place of one that `case.build` makes.
    """
    flow = case.build() if flow is None else flow
    life = Life(flow, exact=choices is FIFO)
    world.host += 1
    runtime = _SimRuntime(case, world, life, choices, pace, checked=checked, told=told)
    try:
        with use_runtime(runtime):
            if job is None:
                life.job = runtime.execute(
                    flow, case.entry, case.params, slot=case.slot, job_id=case.job_id
                )
            else:
                life.job = runtime.resume(flow, job)
    except _OUTCOMES:
        raise
    except BaseException as error:
        life.error = error
    if checked:
        runtime.journal.compare()  # type: ignore[union-attr]  # a _WorldJournal
    world.now_ns = max(world.now_ns, runtime.clock.now_ns())
    return life
