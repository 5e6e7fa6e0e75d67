"""Data classes of a simulation: case, hosts, world and findings.

Invariants:
- A case is a value: any number of runs share it.
- A host holds what one host saw and did; the world holds what outlives it.
- A world only grows. Its log holds everything that happened, in order. The world of any instant is
  a prefix of the log, so a crash cuts the log.
- A commit is in the world once it is stored, even if the host died before the answer.
- An effect enters the world at its virtual instant, not when the handler's code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, get_args

from pytest_routilux.sim.simulator.scheduler import FIFO_ORDER
from pytest_routilux.text import shown
from routilux import Commit, JobStatus, JobStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from pytest_routilux.faults.faults import Fault
    from pytest_routilux.sim.simulator.other_host import OtherHost
    from pytest_routilux.sim.simulator.scheduler import Order
    from pytest_routilux.virtual_time.simulated_step import Pause
    from routilux import Flow, JobState, StepInput

OpenStore: TypeAlias = Callable[[Path], JobStore]
"""Opens a store in the file at a path, which may exist already; such as `SqliteStore`."""
Kind: TypeAlias = Literal[
    "around an effect",
    "before a write",
    "after a write",
    "at an await",
    "in a sleep",
    "in a wait",
    "no host",
    "in a recovery",
    "by document",
    "store refuses",
    "store does not answer",
]
"""The kinds of crash points, the simplest to understand first."""
_KINDS: Final = get_args(Kind)
ENDED: Final = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""The statuses of a job that no host resumes."""
Signature: TypeAlias = tuple[str, str | None, str]
"""What shrinking keeps of a finding: its kind, its routine and the first path that differs."""
Start: TypeAlias = tuple[str, str, int]
"""The start of a step: task id, routine id, attempt. A plain tuple costs a simulated step least."""
LogEntry: TypeAlias = "tuple[int, int, Commit | Call | Start | Note]"
"""An instant (UTC nanoseconds), the number of the host, and what happened."""


# --- what is simulated ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A job to simulate: the flow, the start, the faults and the store.

    With `store`, only what that store keeps in its files is durable. `assertions` says whether a
    failed assertion of a handler is a finding. `fresh` resets what lies outside of the job. Each
    host but the first is `other_host`.
    """

    build: Callable[[], Flow]
    entry: str
    params: Mapping[str, object] | None = None
    slot: str = "trigger"
    job_id: str = "job"
    faults: Sequence[Fault] = ()
    always: Callable[[JobState], object] | None = None
    store: OpenStore | None = None
    assertions: bool = True
    fresh: Callable[[], object] | None = None
    other_host: OtherHost | None = None
    pausing: set[str] = field(default_factory=set, compare=False)
    """The routines whose handlers call doubles that other calls may change; found by its runs."""

    def reset(self) -> None:
        """Bring what lies outside of the job, such as a database, to its first state."""
        if self.fresh is not None:
            self.fresh()


@dataclass(frozen=True, slots=True)
class Pace:
    """The length of sleeps and steps in a simulation.

    A sleep takes `percent` of its length. A step without a timeout takes `more_ns` longer. With
    `twice`, the outcome of each step arrives twice.
    """

    percent: int = 100
    more_ns: int = 0
    twice: bool = False


NORMAL_PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A point of a run at which a host dies.

    The run works in `order`. `commits`, `calls` and `awaits` are how many of the undisturbed run's
    are in the world then; `at_ns` is when the host dies, `resume_ns` when the next one resumes
    (UTC). `name` is for reproducers, `text` for people. `first` is the crash before this one, if
    the point is of a run that resumes the job after a crash. It `outlasts`
    deadlines if no host runs until one may be over, so that the job may end otherwise.
    """

    kind: Kind
    name: str
    text: str
    commits: int
    calls: int
    at_ns: int
    resume_ns: int
    task_id: str | None = None
    routine_id: str | None = None
    attempt: int = 0
    awaits: int = 0
    order: Order = FIFO_ORDER
    first: CrashPoint | None = None
    outlasts: bool = False

    @property
    def simplicity(self) -> tuple[bool, bool, int, int]:
        """The sort key that puts the simplest point first."""
        pair = self.first is not None
        return pair, self.order != FIFO_ORDER, _KINDS.index(self.kind), self.at_ns

    @property
    def crashes(self) -> int:
        """The number of hosts that die."""
        return 2 if self.first is not None or self.kind == "in a recovery" else 1


# --- what outlives a host -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call of an `Effect`; see `Effect.calls` and `Outcome.calls`."""

    effect: str
    """The name of the effect."""
    number: int
    """Its number among the effects of the attempt, from 1."""
    arguments: Mapping[str, object]
    """The inputs by name, or by position as "0", "1", …; without the key."""
    key: object
    """The idempotency key; None without one."""
    result: object
    """What the double returned; None if it raised an error."""
    where: str
    """The line of the handler's code that made the call."""
    routine_id: str
    """The routine."""
    task_id: str
    """The task."""
    attempt: int
    """The number of the attempt, from 1."""
    at_ns: int
    """The virtual time of the call, in UTC nanoseconds."""
    parameter: str | None = None
    """The name of the parameter that carries the key; None if the double has none."""
    error: str | None = None
    """The error that `returns` raised, as a text; None without one."""
    reads: bool = False
    """Whether the double only reads: a repeated call does no harm."""

    def __str__(self) -> str:
        return f"{self.effect}({', '.join(shown(value, 24) for value in self.arguments.values())})"


@dataclass(frozen=True, slots=True)
class Await:
    """An await that suspends a coroutine of a handler, or with `over` is about to end.

    `commits` and `calls` are how many are in the world then. `number` counts the awaits of the
    attempt, from 1; `where` is a line of the user's code.
    """

    commits: int
    calls: int
    at_ns: int
    task_id: str
    routine_id: str
    attempt: int
    number: int
    where: str
    over: bool


@dataclass(frozen=True, slots=True)
class Note:
    """A log entry that says how a host ended; only one that "ends" has an `error`."""

    kind: Literal["crash", "crash after the resume", "ends"]
    error: str = ""

    @property
    def text(self) -> str:
        """The note as a line of a timeline."""
        if self.kind == "ends":
            return f"the host ends: {self.error}"
        return "CRASH" if self.kind == "crash" else "CRASH  again, right after the resume"


class StoreFiles(Protocol):
    """Protocol for the files of a real store in a simulation."""

    def cut(self, commits: int) -> StoreFiles:
        """Return the store's files as they were after the first `commits` commits."""

    def opened(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps the store open while one host runs."""

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        """Write a commit to the open store."""

    def stored_job(self, job_id: str, world: World) -> JobState | Finding | None:
        """Return the stored job, or a finding if the store breaks a rule."""


@dataclass(slots=True)
class World:
    """The commits and effect calls of all hosts until `now_ns`.

    `host_number` counts the hosts. `files` are those of a real store, if the case has one. `awaits`
    are those of the handlers in this world; a cut world has none of the world before.
    """

    now_ns: int
    commits: list[Commit] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    awaits: list[Await] = field(default_factory=list)
    host_number: int = 0
    files: StoreFiles | None = None

    def add_commit(self, commit: Commit) -> None:
        """Add a stored commit to this world's commits and log."""
        self.commits.append(commit)
        self.log.append((commit.at_ns, self.host_number, commit))

    def add_call(self, call: Call) -> None:
        """Add an effect call to this world's calls and log."""
        self.calls.append(call)
        self.log.append((call.at_ns, self.host_number, call))

    def add_await(self, at_ns: int, step: StepInput, pause: Pause) -> None:
        """Add an await of a handler to this world's awaits."""
        task = step.task
        counts = len(self.commits), len(self.calls), at_ns
        whose = task.task_id, task.routine_id, step.attempt
        self.awaits.append(Await(*counts, *whose, *pause))

    def add_note(self, at_ns: int, note: Note) -> None:
        """Add a note on a host's end to this world's log."""
        self.log.append((at_ns, self.host_number, note))

    def cut(self, commits: int, calls: int, at_ns: int) -> World:
        """Return the world after the first `commits` commits and `calls` calls."""
        files = None if self.files is None else self.files.cut(commits)
        world = World(
            at_ns, self.commits[:commits], self.calls[:calls], [], [], self.host_number, files
        )
        for entry in self.log:
            if isinstance(entry[2], Commit):
                commits -= 1
            elif isinstance(entry[2], Call):
                calls -= 1
            if commits < 0 or calls < 0 or entry[0] > at_ns:
                break
            world.log.append(entry)
        return world


# --- what was seen --------------------------------------------------------------------------------


@dataclass(slots=True)
class Finding:
    """A problem that a check found.

    `kind` is its name in lower case, `what` says it in one line. `routine` and `path` say where;
    together with the kind they are what shrinking must keep. `rows` are (name, undisturbed, with
    the crash) for those parts that differ, `call` is the effect that it is about, `hint` a line of
    the user's code.
    """

    kind: str
    what: str
    path: str
    routine: str | None = None
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    hint: str = ""
    call: Call | None = None

    @property
    def signature(self) -> Signature:
        """The kind, routine and path that identify the finding."""
        return self.kind, self.routine, self.path


class HostCrash(BaseException):
    """Raised to end a simulated host."""


@dataclass(slots=True)
class Host:
    """The flow, the job and the recorded events of one simulated host.

    `error` ended it from outside: an error of the store, an exit of the process, a stall.
    `findings` are rules that the engine broke, `store_finding` says that what the host before has
    saved can't be used. `steps` are the steps that began, each with the number of commits that were
    durable then. By (task id, attempt), `errors` are the classes of what steps raised, with the
    classes of a group's leaves, and `retry_after` the delays (ns) that they asked for. `unspent`
    are the attempts whose error asked to spend no retry. `reads` are the shared keys that a step
    read, by its number; None means all. `leaked_threads` are
    the routine of a step, the thread that outlived it in words, and the line that started the
    thread. `sleeps` are the instants in the middle of each `ctx.sleep` of a step. `exact`:
    durations and delays are exact, not lower bounds.
    """

    flow: Flow
    job: JobState | None = None
    error: BaseException | None = None
    findings: list[Finding] = field(default_factory=list)
    steps: list[tuple[int, StepInput]] = field(default_factory=list)
    errors: dict[tuple[str, int], tuple[type[BaseException], ...]] = field(default_factory=dict)
    retry_after: dict[tuple[str, int], int] = field(default_factory=dict)
    unspent: set[tuple[str, int]] = field(default_factory=set)
    reads: dict[int, frozenset[str] | None] = field(default_factory=dict)
    leaked_threads: list[tuple[str, str, str]] = field(default_factory=list)
    sleeps: list[tuple[StepInput, Sequence[int]]] = field(default_factory=list)
    exact: bool = True
    store_finding: Finding | None = None


@dataclass(slots=True)
class Undisturbed:
    """A run without a crash, or the run after `crash`: of the run before, at a point of it.

    `states[n]` is the job that the store would return after n commits. `store_findings` are rules
    that a real store broke, by the number of commits.
    """

    case: Case
    world: World
    host: Host
    durable: list[Commit]
    states: list[JobState]
    store_findings: dict[int, Finding] = field(default_factory=dict)
    order: Order = FIFO_ORDER
    crash: tuple[Undisturbed, CrashPoint] | None = None

    @property
    def job(self) -> JobState:
        """The job at the end of the run."""
        assert self.host.job is not None
        return self.host.job


@dataclass(slots=True)
class Disturbed:
    """A run with a crash planned at `point`, or in another `order` without a crash."""

    point: CrashPoint | None
    world: World
    hosts: list[Host]
    executed: bool  # whether the crash happened
    order: Order = FIFO_ORDER

    @property
    def host(self) -> Host:
        """The last host of the run."""
        return self.hosts[-1]
