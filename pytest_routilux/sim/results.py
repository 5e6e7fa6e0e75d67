"""Data classes for the scope, the checks and the results of explorations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from time import process_time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

import pytest

from pytest_routilux.sim.oracle import Expected, trie_of
from routilux import FlowDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.oracle import Mask, Trie, View
    from pytest_routilux.sim.simulator.model import (
        Call,
        CrashPoint,
        Disturbed,
        Finding,
        Signature,
        Undisturbed,
    )
    from pytest_routilux.sim.simulator.scheduler import Tape
    from routilux import Commit, JobState, JobStatus

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The job and the effect calls of a simulated run; see `FlowSim.run`."""

    job: JobState
    """The job at its end."""
    calls: Sequence[Call]
    """The calls of effects, in the order of virtual time."""

    @property
    def commits(self) -> Sequence[Commit]:
        """The job's commits."""
        return self.job.commits


@dataclass(frozen=True, slots=True)
class Sample:
    """So many random orders; with a `depth`, of probabilistic concurrency testing.

    Made by `FlowSim.random` and `FlowSim.pct`.
    """

    orders: int
    """The number of orders."""
    depth: int | None = None
    """How many events must come in one order for a bug to show."""

    def __post_init__(self) -> None:
        for name, value in (("orders", self.orders), ("depth", self.depth)):
            if value is not None and (type(value) is not int or value < 1):
                raise FlowDefinitionError(f"{name}={value!r} is not a number from 1; give one")


Schedules: TypeAlias = Literal["fifo", "some", "all"] | Sample
"""Which orders of concurrent work an exploration tries; see `FlowSim.explore`."""


def checked_schedules(schedules: object) -> Schedules:
    """Return `schedules`; raise `FlowDefinitionError` if they are none."""
    if schedules in ("fifo", "some", "all") or isinstance(schedules, Sample):
        return schedules
    raise FlowDefinitionError(
        f"schedules={schedules!r} is not known; give 'fifo', 'some', 'all', flow_sim.random(n) or"
        " flow_sim.pct(n)"
    )


Crashes: TypeAlias = Literal["none", "every", "pairs"]
"""Which crashes an exploration tries; see `FlowSim.explore`."""


@dataclass(frozen=True, slots=True)
class CrashAt:
    """One crash, at the crash point `number` of a run, counted from 0 and round; for `explore`.

    >>> from pytest_routilux import CrashAt
    >>> CrashAt(7).points(["a", "b", "c"])
    ['b']
    """

    number: int
    """The number of the crash point."""

    def points(self, points: list[_T]) -> list[_T]:
        """Return the point in a list; an empty list if there are no points."""
        return [points[self.number % len(points)]] if points else []


def checked_crashes(crashes: object) -> Crashes:
    """Return `crashes`; raise `FlowDefinitionError` if they are none."""
    if isinstance(crashes, CrashAt):
        return "every"
    if crashes in ("none", "every", "pairs"):
        return crashes
    raise FlowDefinitionError(
        f"crashes={crashes!r} is not known; give 'none', 'every', 'pairs' or a CrashAt"
    )


class Shard(NamedTuple):
    """One part of an exploration; see `shards`."""

    number: int
    """The number of the part, from 1."""
    of: int
    """How many parts there are."""

    def __str__(self) -> str:
        return f"{self.number} of {self.of}"


def shards(parts: int) -> pytest.MarkDecorator:
    """Return a mark that runs a test once for each of so many parts of its exploration.

    The test passes its argument `shard` on. Each part tries other orders and crash points; together
    they try all. The ids of the tests are the same in each session, so pytest-xdist can run them on
    several workers::

        import pytest_routilux

        @pytest_routilux.shards(2)
        def test_a_total_survives_two_crashes(flow_sim, flow_factory, shard):
            def add(numbers):
                return {"total": sum(numbers)}

            def build():
                return flow_factory(chain=[add])

            flow_sim.explore(build, "add", {"numbers": [1, 2]}, crashes="pairs", shard=shard)
    """
    if type(parts) is not int or parts < 1:
        raise FlowDefinitionError(f"shards({parts!r}) is not a number of parts; give one from 1")
    found = [Shard(number, parts) for number in range(1, parts + 1)]
    ids = [f"{shard.number}of{shard.of}" for shard in found]
    return pytest.mark.parametrize("shard", found, ids=ids)


def checked_shard(shard: object) -> Shard | None:
    """Return `shard`; raise `FlowDefinitionError` if it is none."""
    if shard is None or isinstance(shard, Shard):
        return shard
    raise FlowDefinitionError(
        f"shard={shard!r} is not a part; give the argument `shard` of a test with"
        " @pytest_routilux.shards(n)"
    )


@dataclass(frozen=True, slots=True)
class Scope:
    """What an exploration tries.

    At most `runs` jobs run in other orders, and at most `runs` with pairs of crashes; `seed`
    chooses the random orders. `tape` is the order of a reproducer, which replaces the others.
    `shard` is the part to try, None for all.
    """

    schedules: Schedules = "some"
    crashes: Crashes = "every"
    runs: int = 5_000
    seed: int = 0
    tape: Tape | None = None
    shard: Shard | None = None

    def part(self, things: Sequence[_T]) -> Sequence[_T]:
        """Return those of `things` that belong to the shard."""
        return things if self.shard is None else things[self.shard.number - 1 :: self.shard.of]


_SECONDS_A_RUN: Final = 0.004


class Budget:
    """The runs and the processor time that a search may take: 20 s for 5,000 runs."""

    def __init__(self, scope: Scope) -> None:
        self.used = 0
        """The number of runs so far."""
        self._scope = scope
        self._begun = process_time()

    def over(self, part: float = 1) -> bool:
        """Return whether `part` of the budget is used."""
        seconds = process_time() - self._begun
        return max(self.used, seconds / _SECONDS_A_RUN) >= self._scope.runs * part


@dataclass(frozen=True, slots=True)
class Checks:
    """The test's own checks of each simulated run, and the scope of the exploration.

    `ends` is the status that the undisturbed job must end with. `isolated=False` runs nothing in
    forked processes, for resources that forks must not share. `progress` is called after each run.
    """

    invariant: Callable[[Outcome], object] | None = None
    view: Callable[[Outcome], object] | None = None
    isolated: bool = True
    ends: JobStatus | None = None
    scope: Scope = Scope()
    progress: Callable[[Coverage], None] = lambda coverage: None


@dataclass(slots=True)
class Coverage:
    """What an exploration has tried; see `FlowSim.crash_everywhere`."""

    planned: Counter[str] = field(default_factory=Counter)
    """The crash points that were found, by kind."""
    executed: Counter[str] = field(default_factory=Counter)
    """The crash points that were tried, by kind."""
    seconds: float = 0.0
    """The real time that the simulation took, in seconds."""
    runs: int = 0
    """How many jobs were simulated."""
    notes: list[str] = field(default_factory=list)
    """What was not tried, and why."""
    orders: int = 1
    """In how many different orders of concurrent work the job ran without a crash."""
    orders_left: int | None = 0
    """How many orders were not tried, at least; None if the orders are a sample."""
    pairs_left: int = 0
    """How many pairs of crashes were not tried, at least."""
    shard: Shard | None = None
    """Which part was tried; None for all."""

    @property
    def word(self) -> str:
        """The coverage in words: `complete`, `sampled`, or `cut at N of at least M`.

        It is complete only if each crash point and each order that can differ was tried. Of a part,
        it begins with `part N of M`.
        """
        part = "" if self.shard is None else f"part {self.shard}: "
        return part + self._word

    @property
    def _word(self) -> str:
        planned, executed = self.planned.total() + self.pairs_left, self.executed.total()
        if planned != executed:
            return f"cut at {executed} of at least {planned}"
        if self.orders_left is None:
            return "sampled"
        if self.orders_left:
            return f"cut at {self.orders} of at least {self.orders + self.orders_left}"
        return "complete"


@dataclass(slots=True)
class Reference:
    """The run without a crash, with which other runs are compared.

    `ordered`: one worker, so that the order of the user's lists counts. `custom` is the test's own
    view. With a `finding`, crashes prove nothing; `disturbed` is the run that shows it, if it needs
    another order. `other` is the job in another order, with other crash points. `time_mask` are the
    paths of the mask that vary with time alone, `steady_mask` those that vary also where each step
    takes the usual time.
    """

    run: Undisturbed
    view: View = field(default_factory=dict)
    mask: Mask = frozenset()
    ordered: bool = True
    custom: object = None
    finding: Finding | None = None
    disturbed: Disturbed | None = None
    other: Undisturbed | None = None
    time_mask: Mask = frozenset()
    steady_mask: Mask = frozenset()
    trie: Trie = field(init=False)
    expected: Expected = field(init=False)

    def __post_init__(self) -> None:
        self.trie = trie_of(self.mask)
        self.expected = Expected(self.view, self.trie, ordered=self.ordered)


class Failure(NamedTuple):
    """A crash point, and the finding that the run with this crash shows."""

    point: CrashPoint
    finding: Finding


@dataclass(slots=True)
class Exploration:
    """The result of an exploration: the reference run and all failures.

    `disturbed` holds, for each signature of a finding, the run of the simplest point that shows it.
    """

    reference: Reference
    failures: list[Failure]
    coverage: Coverage
    disturbed: dict[Signature, Disturbed] = field(default_factory=dict)
