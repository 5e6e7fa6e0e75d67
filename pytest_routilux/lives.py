"""What is simulated, and how the life of one simulated host ended.

Invariants:
- A case is a value: any number of runs share it.
- A life is what one host saw and did; what outlives it is in the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_routilux.faults import Fault
    from pytest_routilux.files import Opens
    from pytest_routilux.oracle import Finding
    from routilux import Flow, JobState, StepInput

__all__ = ["STEADY", "Case", "HostCrash", "Life", "Pace"]


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated: how a flow is built, and how its job starts; `faults` are always there.

    Where `store` opens one, what is durable is what it keeps in its files.
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
    """How one host's life ended: the job as its memory had it, and the flow that it had built.

    `error` is what ended it from outside: the store's trouble, an exit of the process, a stall.
    `broken` are laws of the engine that did not hold. `steps` are the steps that began, each with
    the number of commits that were durable then; `errors` the classes of what they raised, by
    (task id, attempt), and `asked` the delays (ns) of those that asked for one; `threads` are those
    that outlived a step, with its routine. `exact`: durations and delays are no lower bounds.
    `lost` is what a real store did not keep to.
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
