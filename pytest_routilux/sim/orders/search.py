"""Runs a case in all orders that can differ: a depth-first search with sleep sets.

Invariants:
- Of orders that differ only in transitions that commute, at least one runs to its end. A sleep set
  holds the tasks whose next transition has been tried before and commutes with all since; a run in
  which every option sleeps repeats an earlier one, and is broken off. Source: Godefroid, "Partial-
  Order Methods for the Verification of Concurrent Systems", 1996, chapter 5.
- Each run starts anew and repeats the choices of the runs before it, so handlers need no copies.
- The same case is searched in the same order.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final
from zlib import crc32

from pytest_routilux.sim.recovery import run_in_order
from pytest_routilux.sim.simulator.scheduler import BrokenOffError, Choice, OrderScheduler
from pytest_routilux.sim.simulator.transitions import Trace, commute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.sim.results import Shard
    from pytest_routilux.sim.simulator.model import Case, Host, World
    from pytest_routilux.sim.simulator.scheduler import Tape
    from pytest_routilux.sim.simulator.transitions import Transition
    from routilux.graph.plan import Plan

    Asleep = dict[str, list[Transition]]


_SPLIT: Final = 4  # decisions that say to which shard an order belongs


class _RepeatedError(BrokenOffError):
    """Raised by a run that repeats an earlier one, or belongs to another shard."""


class _Node:
    """A decision on the path of the current run.

    `asleep` are the tasks that need not be tried, with the transitions that they make; `tried` are
    the options that have been tried, with theirs. `starts`: the decision is which task starts.
    """

    __slots__ = ("asleep", "chosen", "starts", "tasks", "tried")

    def __init__(self, tasks: Sequence[str], asleep: Asleep, *, starts: bool) -> None:
        self.tasks = tasks
        self.asleep = asleep
        self.starts = starts
        self.tried: dict[int, list[Transition]] = {}
        self.chosen = -1

    def advance(self) -> bool:
        """Choose the next option; return whether there is one."""
        for index, task in enumerate(self.tasks):
            if index not in self.tried and task not in self.asleep:
                self.chosen = index
                self.tried[index] = []
                return True
        return False

    @property
    def left(self) -> int:
        """The number of options that were not tried."""
        return sum(
            index not in self.tried and task not in self.asleep
            for index, task in enumerate(self.tasks)
        )

    def asleep_after(self, transition: Transition, trace: Trace) -> Asleep:
        """Return what sleeps after the chosen option has made `transition`."""
        before = {
            self.tasks[index]: transitions
            for index, transitions in self.tried.items()
            if index != self.chosen
        }
        return {
            task: transitions
            for task, transitions in {**self.asleep, **before}.items()
            if transitions and all(commute(transition, other, trace) for other in transitions)
        }


class _SearchScheduler(OrderScheduler):
    """Follows the path of a search, and extends it."""

    def __init__(
        self, path: list[_Node], trace: Trace, *, prunes: bool, shard: Shard | None
    ) -> None:
        super().__init__(self._next)
        self._shard = shard
        self.trace = trace
        self._path = path
        self._prunes = prunes
        self._at = 0
        self._last: _Node | None = None  # the last decision on what continues

    def choose(self, tasks: Sequence[str]) -> int:
        index = self._next(tasks)
        if len(tasks) > 1:
            self.choices.append(Choice(index, tuple(tasks)))
        return index

    def _next(self, tasks: Sequence[str]) -> int:
        assert self.trace is not None
        starts = self.trace.starting
        asleep = {} if starts else self._asleep()
        if self._at < len(self._path):
            node = self._path[self._at]
        else:
            if self._shard is not None and self._at < _SPLIT:
                asleep = {}  # what makes a task sleep here may be in another part
            node = _Node(list(tasks), asleep if self._prunes else {}, starts=starts)
            if not node.advance():
                raise _RepeatedError
            self._path.append(node)
        self._at += 1
        if self._at == _SPLIT and self.elsewhere:
            raise _RepeatedError
        if not starts:
            self._last = node
        return node.chosen

    @property
    def elsewhere(self) -> bool:
        """Whether the order belongs to another shard: its first choices say which."""
        if self._shard is None:
            return False
        choices = bytes(node.chosen % 256 for node in self._path[:_SPLIT])
        return crc32(choices) % self._shard.of != self._shard.number - 1

    def _asleep(self) -> Asleep:
        """Note the transition that ends here, and return the tasks that sleep after it."""
        last, trace = self._last, self.trace
        assert trace is not None
        if last is None:
            return {}
        transition = trace.current
        known = last.tried[last.chosen]
        if transition not in known:
            known.append(transition)
        return last.asleep_after(transition, trace) if self._prunes else {}

    def finish(self) -> None:
        """Note the last transition of the run."""
        self._asleep()


class Search:
    """All orders of a case that can differ.

    `ordered`: two orders differ also if only outputs or calls of doubles come in another order.
    """

    def __init__(
        self,
        case: Case,
        start_ns: int,
        plan: Plan,
        *,
        prunes: bool = True,
        ordered: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self._shard = shard
        self._case = case
        self._start_ns = start_ns
        self._plan = plan
        self._ordered = ordered
        limits = any(
            handler.deadline is not None or handler.timeout_ns is not None
            for handler in plan.handlers.values()
        )
        unseen = case.fresh is not None or case.always is not None
        self.prunes = prunes and not (limits or unseen)
        """Whether orders whose transitions commute are left out."""
        self.broken_off = 0
        """The number of runs that repeated an earlier one."""
        self._path: list[_Node] = []
        self._complete = False

    @property
    def left(self) -> int:
        """The least number of orders that were not tried; 0 at the end of the search."""
        if self._complete:
            return 0
        return 1 if self._shard is not None else sum(node.left for node in self._path)

    def runs(self) -> Iterator[tuple[World, list[Host], Tape]]:
        """Yield each run in an order that can differ, with its tape."""
        routines = self._plan.routines
        widths = {name: routine.max_concurrency for name, routine in routines.items()}
        gathers = _gathers_after(self._plan)
        while True:
            trace = Trace(
                self._plan.width,
                widths,
                gathers,
                blind=not self.prunes,
                ordered=self._ordered,
            )
            scheduler = _SearchScheduler(self._path, trace, prunes=self.prunes, shard=self._shard)
            pausing = len(self._case.pausing)
            run = None
            with suppress(_RepeatedError):
                run = run_in_order(self._case, self._start_ns, scheduler)
            blind = trace.blind and self.prunes
            if blind or pausing < len(self._case.pausing):
                self.prunes = self.prunes and not blind  # what was left out may differ
                self._path.clear()
                continue
            if run is None or scheduler.elsewhere:
                self.broken_off += 1
            else:
                scheduler.finish()
                yield *run, scheduler.tape
            while self._path and not self._path[-1].advance():
                self._path.pop()
            if not self._path:
                self._complete = True
                return


def _gathers_after(plan: Plan) -> dict[str, frozenset[str]]:
    """Return, for each routine, the routines with a gather to which its tasks can deliver."""
    if plan.gathers is None:
        return {}
    slots = plan.gathers.slots
    return {
        name: frozenset(slots[number].routine_id for number in numbers)
        for name, numbers in plan.gathers.upstream.items()
    }
