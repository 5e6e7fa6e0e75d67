"""Records what each transition of a run touches, and says which transitions commute.

A transition begins with a decision of the driver: a step ends or continues, or time passes. It ends
before the next decision. Steps that it starts belong to it, since they take their snapshot in it.

Invariants:
- Two transitions that `commute` lead to the same state in both orders, as far as a flow can see:
  the same values, the same tasks in flight. Where it is not known, they do not commute.
- What a step reads counts when it starts (its snapshot) and when it ends (the check for conflicts).
- The state of a routine needs no record: steps that use it run one at a time, so they meet in the
  lane of their routine.
- In a run that is `blind`, no two transitions commute: something depends on the clock, or on what
  no transition shows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from routilux import CommitKind, JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routilux import Commit, StepInput
    from routilux.core.parts import PendingTask
    from routilux.graph.messages import Writes
    from routilux.graph.patches import Patch

_ALL_SHARED: Final = "every shared key"
_DOUBLES: Final = "the doubles of effects"
_CALLS: Final = "the order of calls"
_EMISSIONS: Final = "the order of emissions"
_EXACT: Final = (int, Decimal)
_AGAIN: Final = frozenset({CommitKind.CONFLICT, CommitKind.RETRY})
_OVER: Final = frozenset({JobStatus.RUNNING, JobStatus.COMPLETED})


@dataclass(slots=True)
class Transition:
    """What one transition touches.

    `task` is the task that continues. `adds` are the keys that it changes only by an accumulator
    whose operands commute, with the accumulator. `created` counts the tasks that it creates, by
    routine; `freed` are the routines of which it ends a step, `joins` those with a gather that it
    may start. `flights` is the number of steps in flight before it; `busy` counts them by routine,
    with the tasks that wait. `alone`: it commutes with no other transition.
    """

    task: str
    flights: int
    busy: Counter[str]
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    adds: dict[str, str] = field(default_factory=dict)
    created: Counter[str] = field(default_factory=Counter)
    freed: set[str] = field(default_factory=set)
    joins: frozenset[str] = frozenset()
    alone: bool = False

    @property
    def starts(self) -> set[str]:
        """The routines that it gives more to do."""
        return {*self.created, *self.joins}


class Trace:
    """Records the transitions of one run.

    `width` is the most steps in flight, `limits` the most of each routine, `gathers` the routines
    with a gather that waits for each. `ordered`: the order of emissions and of the calls of doubles
    counts.
    """

    def __init__(
        self,
        width: int,
        limits: Mapping[str, int],
        gathers: Mapping[str, frozenset[str]],
        *,
        blind: bool = False,
        ordered: bool = False,
    ) -> None:
        self.width = width
        self.limits = limits
        self._gathers = gathers
        self._ordered = ordered
        self.blind = blind
        """Whether a step reads the clock, waits for a retry, or executes another job."""
        self.starting = False
        """Whether the decision to make is which task starts."""
        self._flights = 0
        self._busy: Counter[str] = Counter()  # by routine, tasks that have not ended
        self._reads: dict[int, frozenset[str]] = {}  # by the number of the step
        self.current = Transition("", 0, Counter())
        """The transition that runs now; the first one starts the job."""

    def next(self, task: str, *, alone: bool) -> None:
        """Begin the transition that continues `task`."""
        self.current = Transition(task, self._flights, self._busy.copy(), alone=alone)

    def begin(self, step: StepInput, options: Sequence[PendingTask], *, alone: bool) -> None:
        """Record that a step starts, one of `options`."""
        self.starting = False
        current = self.current
        if alone or self._flights + len(options) > self.width:
            current.alone = True  # which task starts first depends on which step ends first
        self._flights += 1

    def read_all(self) -> None:
        """Record that a step starts that may read any shared key."""
        self.current.reads.add(_ALL_SHARED)

    def call_double(self) -> None:
        """Record a call of a double whose result may depend on other calls."""
        self.current.writes.add(_DOUBLES)

    def deliver_call(self) -> None:
        """Record that a call of a double becomes visible."""
        if self._ordered:
            self.current.writes.add(_CALLS)

    def handled(self, step: StepInput, outcome: object) -> None:
        """Record what the handler of a step has read."""
        reads = getattr(outcome, "shared_reads", None)
        keys = frozenset([_ALL_SHARED] if reads is None else map(_shared, reads))
        self._reads[step.number] = keys
        self.current.reads |= keys

    def commit(self, commit: Commit, step: StepInput | None) -> None:
        """Record a commit, and the step in flight that it ends."""
        current = self.current
        if commit.status not in _OVER or commit.kind is CommitKind.FAILED:
            current.alone = True
        if commit.delay_ns:
            self.blind = True
        if step is not None and commit.kind is not CommitKind.EFFECT:
            current.reads |= self._reads.pop(step.number, frozenset([_ALL_SHARED]))
            self._end(step.task.routine_id, done=commit.kind not in _AGAIN)
        if commit.shared is not None:
            self._write(commit.shared)
        if commit.emissions and self._ordered:
            current.writes.add(_EMISSIONS)
        for task in commit.tasks:
            if task.into is None:
                current.created[task.routine_id] += 1
                self._busy[task.routine_id] += 1

    def _end(self, routine_id: str, *, done: bool) -> None:
        current, joins = self.current, self._gathers.get(routine_id, frozenset())
        self._flights -= 1
        self._busy[routine_id] -= done
        current.freed.add(routine_id)
        if joins:
            # The last step that a gather waits for starts it; in another state this is the last.
            current.joins |= joins
            current.reads.add(_ALL_SHARED)
            self.deliver_call()

    def _write(self, writes: Writes) -> None:
        current = self.current
        for key in writes.keys:
            name, patches = _shared(key), writes.patches.get(key, ())
            kinds = {current.adds.get(name), *(patch.kind for patch in patches)} - {None}
            if len(kinds) == 1 and all(_is_unordered(patch) for patch in patches):
                current.adds[name] = kinds.pop() or ""
            else:
                current.writes.add(name)


def _shared(key: str) -> str:
    return f"shared {key!r}"


def _is_unordered(patch: Patch) -> bool:
    """Return whether patches of this kind give the same value in any order."""
    if patch.kind == "union":
        return True
    return patch.kind in ("add", "maximum", "minimum") and type(patch.operand) in _EXACT


def commute(a: Transition, b: Transition, trace: Trace) -> bool:
    """Return whether two transitions, both possible in one state, lead to one state in any order.

    `a` has run in that state, so its `flights` and `busy` are those of the state. `b` may have run
    in an earlier one, so a task that only now waits for its end makes them differ.
    """
    if a.alone or b.alone or trace.blind:
        return False
    starts = a.created.total() + b.created.total() + len(a.joins | b.joins)
    if a.flights - len(a.freed) - len(b.freed) + starts > trace.width:
        return False  # they compete for the last workers
    for name in (a.starts & (b.starts | b.freed)) | (b.starts & a.freed):
        if a.busy[name] + a.created[name] + b.created[name] > trace.limits[name]:
            return False  # one of them makes a task wait that the other starts
    return not (_touches(a, b) or _touches(b, a) or _clash(a, b))


def _touches(a: Transition, b: Transition) -> bool:
    """Return whether `a` changes what `b` reads or changes."""
    changed = a.writes | a.adds.keys()
    if a.writes & (b.reads | b.writes | b.adds.keys()) or a.adds.keys() & (b.reads | b.writes):
        return True
    return _ALL_SHARED in b.reads and any(key.startswith("shared ") for key in changed)


def _clash(a: Transition, b: Transition) -> bool:
    return any(b.adds.get(key, kind) != kind for key, kind in a.adds.items())
