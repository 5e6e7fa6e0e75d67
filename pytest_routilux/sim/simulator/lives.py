"""What is simulated, where hosts die, and how their lives ended, as plain values.

Invariants:
- A case is a value: any number of runs share it.
- A life holds what one host saw and did; the world holds what outlives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from routilux import JobStatus, JobStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_routilux.faults.faults import Fault
    from pytest_routilux.sim.simulator.world import Finding, World
    from routilux import Commit, Flow, JobState, StepInput

__all__ = [
    "RESTING",
    "STEADY",
    "Case",
    "CrashPoint",
    "Disturbed",
    "HostCrash",
    "Kind",
    "Life",
    "Opens",
    "Pace",
    "Undisturbed",
]

Opens: TypeAlias = Callable[[Path], JobStore]
"""Opens a store in the file at a path, which may be there already; such as `SqliteStore`."""
Kind: TypeAlias = Literal[
    "around an effect",
    "before a write",
    "after a write",
    "in a wait",
    "in a recovery",
    "by document",
    "store refuses",
    "store does not answer",
]
"""The kinds of crash points, the simplest to understand first."""
_KINDS: Final = get_args(Kind)
RESTING: Final = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""The statuses of a job that no host resumes."""


@dataclass(frozen=True, slots=True)
class Case:
    """A job to simulate: how its flow is built, how it starts, and the `faults` of every run.

    With `store`, durable is what that store keeps in its files.
    """

    build: Callable[[], Flow]
    entry: str
    params: Mapping[str, object] | None = None
    slot: str = "trigger"
    job_id: str = "job"
    faults: Sequence[Fault] = ()
    always: Callable[[JobState], object] | None = None
    store: Opens | None = None


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
    """One host's life: the job in its memory at the end, and the flow that it built.

    `error` ended it from outside: an error of the store, an exit of the process, a stall.
    `broken` are rules that the engine broke. `steps` are the steps that began, each with
    the number of commits that were durable then; `errors` the classes of what they raised, by
    (task id, attempt), and `asked` the delays (ns) of those that asked for one; `threads` are those
    that outlived a step, with its routine. `exact`: durations and delays are no lower bounds.
    `lost` is how a real store broke its rules.
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
    lost: Finding | None = None


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A point at which a host dies.

    `commits` and `calls` are how many of the undisturbed run's are in the world then; `at_ns` is
    when the host dies, `resume_ns` when the next one resumes (UTC). `name` is for reproducers,
    `text` for people.
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

    @property
    def simplicity(self) -> tuple[int, int]:
        """The sort key that puts the simplest point first: the kind, then the time."""
        return _KINDS.index(self.kind), self.at_ns


@dataclass(slots=True)
class Undisturbed:
    """The run without a crash, and the job that the store returns at each of its commits.

    `lost` are rules that a real store broke, by the number of commits.
    """

    case: Case
    world: World
    life: Life
    durable: list[Commit]
    states: list[JobState]
    lost: dict[int, Finding] = field(default_factory=dict)

    @property
    def job(self) -> JobState:
        """The job at the end."""
        assert self.life.job is not None
        return self.life.job


@dataclass(slots=True)
class Disturbed:
    """A run with a crash: its world, its hosts, and whether the crash really came."""

    point: CrashPoint
    world: World
    lives: list[Life]
    executed: bool

    @property
    def life(self) -> Life:
        """The last host."""
        return self.lives[-1]
