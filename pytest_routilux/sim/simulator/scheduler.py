"""Decides the order of work in a simulation.

Invariants:
- Every decision of a simulation is one call of `choose`; there is no other source of variety.
- Option 0 is first in, first out. An `Order` whose choices are all 0 differs from FIFO only in that
  durations and delays are lower bounds.
- The same order makes the same choices for the same options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_routilux.sim.simulator.transitions import Trace

    Pick = Callable[[Sequence[str]], int]

TIME: Final = "time"
"""The option that lets time pass, in place of a task's id."""


class Choice(NamedTuple):
    """A decision: the index that was chosen, and the options."""

    chosen: int
    tasks: tuple[str, ...]


class Scheduler(Protocol):
    """Chooses which task starts, which step continues, or that time passes.

    With a `trace`, it is asked for each transition, also if there is one option.
    """

    trace: Trace | None

    def choose(self, tasks: Sequence[str]) -> int:
        """Choose one of two or more options by the ids of their tasks; return its index."""


@final
class FifoScheduler:
    """A scheduler that always chooses the first option (first in, first out)."""

    trace: Trace | None = None

    def choose(self, tasks: Sequence[str]) -> int:
        """Return 0, the index of the first option."""
        return 0


FIFO = FifoScheduler()


class BrokenOffError(BaseException):
    """Raised by a scheduler to break off a run; no other host resumes the job."""


class StaleTapeError(BrokenOffError):
    """Raised if the choices of a tape do not fit the run."""


class OrderScheduler:
    """A scheduler that follows an `Order`, and records its choices.

    If `serial`, a task runs, then all tasks that come from it, then the next one: the only choices
    are those among tasks of one parent.
    """

    trace: Trace | None = None

    def __init__(self, pick: Pick, *, serial: bool = False) -> None:
        self._pick = pick
        self._serial = serial
        self.choices: list[Choice] = []
        """The decisions of the run so far."""

    def choose(self, tasks: Sequence[str]) -> int:
        """Return the index that the order chooses."""
        if not self._serial:
            return self._choose(tasks)
        running = [task for task in tasks if task != TIME]
        if not running:
            return 0
        newest = _parent(running[-1])  # tasks are in the order of their creation
        siblings = [
            index for index, task in enumerate(tasks) if task != TIME and _parent(task) == newest
        ]
        if len(siblings) == 1:
            return siblings[0]
        return siblings[self._choose([tasks[index] for index in siblings])]

    def _choose(self, tasks: Sequence[str]) -> int:
        index = self._pick(tasks)
        self.choices.append(Choice(index, tuple(tasks)))
        return index

    @property
    def tape(self) -> Tape:
        """The choices of the run that differ from FIFO."""
        deviations = {at: choice for at, choice in enumerate(self.choices) if choice.chosen}
        changes = tuple((one.tasks[one.chosen], one.tasks[0]) for one in deviations.values())
        return Tape({at: one.chosen for at, one in deviations.items()}, self._serial, changes)


class Order(Protocol):
    """An order of work, which any number of runs share."""

    @property
    def serial(self) -> bool:
        """Whether at most one step is in flight."""

    def scheduler(self) -> Scheduler:
        """Return the scheduler of one run."""


@dataclass(frozen=True, slots=True)
class Fifo:
    """First in, first out: the order of a run without any disturbance."""

    serial: ClassVar[bool] = False

    def scheduler(self) -> FifoScheduler:
        """Return the scheduler of one run."""
        return FIFO


FIFO_ORDER: Final = Fifo()


@dataclass(frozen=True, slots=True)
class Reversed:
    """Last in, first out."""

    serial: ClassVar[bool] = False

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run."""
        return OrderScheduler(lambda tasks: len(tasks) - 1)


@dataclass(frozen=True, slots=True)
class First:
    """A task and the tasks that come from it go before all others."""

    task_id: str
    serial: ClassVar[bool] = False

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run."""
        below = f"{self.task_id}."

        def pick(tasks: Sequence[str]) -> int:
            for index, task in enumerate(tasks):
                if task == self.task_id or task.startswith(below):
                    return index
            return 0

        return OrderScheduler(pick)


@dataclass(frozen=True, slots=True)
class Seeded:
    """A random order that the seed determines.

    >>> scheduler = Seeded(7).scheduler()
    >>> [scheduler.choose(["0.0", "0.1", "0.2"]) for _ in range(3)]
    [1, 0, 1]
    """

    seed: int
    serial: ClassVar[bool] = False

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run."""
        draw = Random(self.seed).randrange
        return OrderScheduler(lambda tasks: draw(len(tasks)))


@dataclass(frozen=True, slots=True)
class Pct:
    """Probabilistic concurrency testing: random priorities, which `depth - 1` times change.

    The first task that comes from a task has its priority, as the rest of a thread has.
    `choices` is the number of decisions that a run has. A bug that needs `depth` ordered events of
    n threads is found with a probability of at least 1 / (n × choices^(depth - 1)). Source:
    Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010.
    """

    seed: int
    depth: int
    choices: int
    serial: ClassVar[bool] = False

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run."""
        random = Random(self.seed)
        changes = sorted(random.randrange(max(1, self.choices)) for _ in range(self.depth - 1))
        priorities: dict[str, float] = {}
        number = 0

        def pick(tasks: Sequence[str]) -> int:
            nonlocal number
            for task in tasks:
                if task not in priorities:
                    inherited = priorities.get(_parent(task)) if task.endswith(".0") else None
                    priorities[task] = random.random() if inherited is None else inherited
            best = max(tasks, key=priorities.__getitem__)
            while changes and changes[0] <= number:
                changes.pop(0)
                priorities[best] = -1.0 - number  # below all others
                best = max(tasks, key=priorities.__getitem__)
            number += 1
            return tasks.index(best)

        return OrderScheduler(pick)


@dataclass(frozen=True, slots=True)
class Tape:
    """The choices that differ from FIFO: the number of a decision, from 0, and the index.

    `changes` has the tasks of each: the one that was chosen, and the one that FIFO would choose.

    >>> str(Tape({3: 1, 9: 2}))
    'o3-1_9-2'
    >>> Tape.parse("q0-1")
    Tape(deviations={0: 1}, serial=True, changes=())
    """

    deviations: Mapping[int, int]
    serial: bool = False
    changes: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> Tape:
        """Return the tape of a text, such as `o3-1`."""
        pairs = [pair.split("-") for pair in text[1:].split("_") if pair]
        deviations = {int(at): int(index) for at, index in pairs}
        return cls(deviations, serial=text[0] == "q")

    def __str__(self) -> str:
        pairs = "_".join(f"{at}-{index}" for at, index in self.deviations.items())
        return f"{'q' if self.serial else 'o'}{pairs}"

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run; it raises `StaleTapeError` if the tape does not fit."""
        number = -1

        def pick(tasks: Sequence[str]) -> int:
            nonlocal number
            number += 1
            index = self.deviations.get(number, 0)
            if index >= len(tasks):
                raise StaleTapeError(
                    f"decision {number} has {len(tasks)} options, but the reproducer chooses option"
                    f" {index}"
                )
            return index

        return OrderScheduler(pick, serial=self.serial)

    @property
    def size(self) -> int:
        """The number of deviations from FIFO."""
        return len(self.deviations)

    def check(self, choices: Sequence[Choice]) -> None:
        """Raise `StaleTapeError` if a run ended before it came to all decisions."""
        last = max(self.deviations, default=-1)
        if last >= len(choices):
            raise StaleTapeError(
                f"the run has {len(choices)} decisions, but the reproducer chooses at number {last}"
            )


@dataclass(frozen=True, slots=True)
class OneAtATime:
    """One step in flight: a task, then the tasks that come from it, then the next one.

    `order` chooses among the tasks of one parent.
    """

    order: Order
    serial: ClassVar[bool] = True

    def scheduler(self) -> OrderScheduler:
        """Return the scheduler of one run."""
        return OrderScheduler(self.order.scheduler().choose, serial=True)


def _parent(task_id: str) -> str:
    return task_id.rpartition(".")[0]
