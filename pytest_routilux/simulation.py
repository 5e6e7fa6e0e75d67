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
from pytest_routilux.world import Call, World
from routilux import (
    Clock,
    ClockStalledError,
    Commit,
    JobState,
    LeaseLostError,
    NoActiveStepError,
    PendingTask,
    RoutiluxError,
    Runtime,
    Signal,
    StepInput,
    StepOutcome,
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

__all__ = ["Case", "HostCrash", "Life", "SimClock", "live", "running"]

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


class HostCrash(BaseException):
    """The simulated host is dead; raised where no code of the user is on the stack."""


@dataclass(slots=True)
class Life:
    """How one host's life ended: the job as its memory had it, and the flow that it had built.

    `error` is what ended it from outside: the store's trouble, an exit of the process, a stall.
    `broken` are laws of the engine that did not hold, one sentence each. `steps` are the steps that
    began, each with the number of commits that were durable then; `errors` the classes of what
    they raised, by (task id, attempt); `threads` those that outlived a step, with its routine.
    """

    flow: Flow
    job: JobState | None = None
    error: BaseException | None = None
    broken: list[str] = field(default_factory=list)
    steps: list[tuple[int, StepInput]] = field(default_factory=list)
    errors: dict[tuple[str, int], type[BaseException]] = field(default_factory=dict)
    threads: list[tuple[str, str]] = field(default_factory=list)


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

    def __str__(self) -> str:
        step = self.step
        return f"{step.task.task_id} {step.task.routine_id} attempt {step.attempt}"


class running:  # noqa: N801 - it reads as what it is: running.flight
    """The simulation whose handler runs at this moment, for the doubles of effects."""

    flight: _Flight | None = None
    clock: SimClock | None = None


class _StepHost:
    """The host of one step: its sleeps pass at once, its records are held back."""

    __slots__ = ("_clock", "_driven", "_flight", "_stretch")

    def __init__(self, clock: SimClock, flight: _Flight, stretch: tuple[int, int]) -> None:
        self._clock = clock
        self._flight = flight
        self._driven: Any = flight.driven
        self._stretch = stretch

    def now_ns(self) -> int:
        return self._clock.mono + int(self._driven.offset)

    def sleep(self, step: StepInput, length: int) -> None:
        num, den = self._stretch
        until = self._clock.mono + length * num // den
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
        stretch: tuple[int, int],
    ) -> None:
        self._clock = clock
        self._world = world
        self._life = life
        self._choices = choices
        self._faults = faults
        self._stretch = stretch
        self._fresh: list[_Flight] = []
        self._ready: deque[_Flight] = deque()
        self._asleep: list[tuple[int, Key, int, _Flight]] = []
        self._numbers = 0

    def start(self, driven: Driven, step: StepInput) -> None:
        """Take a step."""
        self._fresh.append(_Flight(driven, step))
        self._life.steps.append((len(self._world.commits), step))

    def poke(self) -> None:
        """Do nothing: `next` never waits."""

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return the step that ends next; None where time has come to `until`, or after a write."""
        clock = self._clock
        for flight in self._fresh:
            self._perform(flight)
            self._put(flight)
        self._fresh.clear()
        while True:
            chosen = self._next_flight(until, key)
            if chosen is None:
                if until is None:
                    raise ClockStalledError(
                        "nothing is in flight and no time will bring a task, but the job does not"
                        " rest: a wake-up was lost"
                    )
                clock.mono = max(clock.mono, until)
                return None
            ended = self._go_on(chosen)
            if ended is not None:
                return ended
            if chosen.driven.error is not None:  # type: ignore[attr-defined]  # a Drive
                return None

    def _put(self, flight: _Flight) -> None:
        at = flight.events[0][0]
        if at <= self._clock.mono:
            self._ready.append(flight)
        else:
            self._numbers += 1
            heappush(self._asleep, (at, flight.key, self._numbers, flight))

    def _next_flight(self, until: int | None, key: Key) -> _Flight | None:
        ready, asleep = self._ready, self._asleep
        if self._choices is not FIFO and len(ready) + len(asleep) + (until is not None) > 1:
            return self._choose(until)
        if ready:
            return ready.popleft()
        if asleep and (until is None or asleep[0][:2] <= (until, key)):
            at, _, _, flight = heappop(asleep)
            self._clock.mono = at
            return flight
        return None

    def _choose(self, until: int | None) -> _Flight | None:
        flights = [*self._ready, *(entry[3] for entry in sorted(self._asleep))]
        options = [str(flight) for flight in flights]
        place = len(options)
        if until is not None:
            place = len(self._ready) + sum(entry[0] <= until for entry in self._asleep)
            options.insert(place, "time passes")
        index = self._choices.choose("commit", options)
        if until is not None and index == place:
            return None
        flight = flights[index - (until is not None and index > place)]
        self._ready = deque(f for f in self._ready if f is not flight)
        self._asleep = sorted(entry for entry in self._asleep if entry[3] is not flight)
        self._clock.mono = max(self._clock.mono, flight.events[0][0])
        return flight

    def _go_on(self, flight: _Flight) -> Ended | None:
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
                    return None  # it was given up, and so is what it would have done
                except BaseException:
                    return None  # the store's trouble: the loop knows, and drops the job
            else:
                if isinstance(what, StepOutcome) and what.error_type is not None:
                    task_id = flight.step.task.task_id
                    self._life.errors[task_id, flight.step.attempt] = what.error_type
                return flight.driven, flight.step, what
        self._put(flight)
        return None

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
        flight.events.append((clock.mono, outcome))
        clock.mono = begun

    def _run(
        self, step: StepInput, routine: Routine, slot: Slot, handler: ErrorHandler, flight: _Flight
    ) -> StepOutcome | BaseException:
        threads = threading.active_count()
        host = _StepHost(self._clock, flight, self._stretch)
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
    """Writes commits into the world; `checked` reads each one back from its saved form."""

    def __init__(self, host: _SimRuntime, world: World, faults: Sequence[Fault], checked: bool):
        self._host = host
        self._world = world
        self._faults = faults
        self._checked = checked

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        host, world = self._host, self._world
        if job_id != host.case.job_id:
            return  # a job that a handler executes; it lives in the process alone
        if host.life.job is not None and host.life.job.seq >= commit.seq:
            host.broken(
                f"commit {commit.seq} ({commit.kind}) was folded into the job before it was written"
            )
        if commit.seq != len(world.commits) + 1:
            host.broken(
                f"commit {commit.seq} ({commit.kind}) was written after {len(world.commits)} others"
            )
            raise LeaseLostError(f"the store holds {len(world.commits)} commits")
        if world.commits and commit.at_ns < world.commits[-1].at_ns:
            host.broken(
                f"time ran back: commit {commit.seq} is of {from_ns(commit.at_ns)}, the one before"
                f" of {from_ns(world.commits[-1].at_ns)}"
            )
        if self._checked:
            self._read_back(commit)
        for fault in self._faults:
            fault.before_write(commit)
        world.committed(commit)
        for fault in self._faults:
            fault.after_write(commit)

    def _read_back(self, commit: Commit) -> None:
        data = codec.dumps(commit.serialize())
        again = Commit.load(codec.loads(data), "$")
        difference = first_difference(commit, again)
        if difference is not None:
            where = f"commit {commit.seq} of {commit.routine_id or 'the job'}"
            self._host.broken(f"{where} is changed by saving and loading it: {difference}")


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
        stretch: tuple[int, int],
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
        self._stretch = stretch
        self.journal = _WorldJournal(self, world, case.faults, checked)  # type: ignore[assignment]
        if case.always is not None:
            self.observers = (self,)
        if told:
            self.step_observers = (self,)

    def broken(self, law: str) -> None:
        self.life.broken.append(law)

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
            self.broken(f"always() does not hold after commit {commit.seq}: {error}")
            return
        if held is False:
            self.broken(f"always() does not hold after commit {commit.seq}")

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
            self._stretch,
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
    stretch: tuple[int, int] = (1, 1),
    checked: bool = False,
    told: bool = False,
    flow: Flow | None = None,
) -> Life:
    """Let one host run the job until it rests, or the host dies; the world keeps what it did.

    Without `job` it starts anew, else it goes on with what a store would give back. `stretch`
    scales what handlers sleep. `checked` reads each commit back from its saved form, `told` notes
    for a timeline where steps begin. `flow` is used in place of one that `case.build` makes.
    """
    flow = case.build() if flow is None else flow
    life = Life(flow)
    world.host += 1
    runtime = _SimRuntime(case, world, life, choices, stretch, checked=checked, told=told)
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
    world.now_ns = max(world.now_ns, runtime.clock.now_ns())
    return life
