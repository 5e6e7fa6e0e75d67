"""Data classes for the checks and results of simulations with crashes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_routilux.sim.oracle import Expected, trie_of

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
    from routilux import Commit, JobState, JobStatus


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
class Checks:
    """The test's own checks of each simulated run.

    `ends` is the status that the undisturbed job must end with. `isolated=False` runs nothing in
    forked processes, for resources that forks must not share.
    """

    invariant: Callable[[Outcome], object] | None = None
    view: Callable[[Outcome], object] | None = None
    isolated: bool = True
    ends: JobStatus | None = None


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

    @property
    def word(self) -> str:
        """The coverage in words: `complete`, or `cut at N of M`."""
        planned, executed = self.planned.total(), self.executed.total()
        return "complete" if planned == executed else f"cut at {executed} of {planned}"


@dataclass(slots=True)
class Reference:
    """The run without a crash, with which other runs are compared.

    `ordered`: one worker, so that the order of the user's lists counts. `custom` is the test's own
    view. With a `finding`, crashes prove nothing. `steady` is the part of `mask` that varies
    also where each step takes the usual time.
    """

    run: Undisturbed
    view: View = field(default_factory=dict)
    mask: Mask = frozenset()
    ordered: bool = True
    custom: object = None
    finding: Finding | None = None
    steady: Mask = frozenset()
    trie: Trie = field(init=False)
    expected: Expected = field(init=False)

    def __post_init__(self) -> None:
        self.trie = trie_of(self.mask)
        self.expected = Expected(self.view, self.trie, ordered=self.ordered)


@dataclass(slots=True)
class Exploration:
    """The result of an exploration: the reference run and all failures.

    `disturbed` holds, for each signature of a finding, the run of the simplest point that shows it.
    """

    reference: Reference
    failures: list[tuple[CrashPoint, Finding]]
    coverage: Coverage
    disturbed: dict[Signature, Disturbed] = field(default_factory=dict)
