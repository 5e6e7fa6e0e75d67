"""The gather slots of a flow, and the routines upstream of each; computed once for a plan.

Invariants:
- The scope of a gather is the job, or each task of its split. A routine is upstream within the
  scope if a chain of connections leads from it to the slot and not through the split.
- A chain does not lead through a gather slot of a routine: the task of that gather exists from the
  beginning of its own scope, so the chain begins at its split.
- No gather can reach itself, so gathers are sorted: those upstream come first, then those whose
  routine was added first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from routilux.errors import FlowDefinitionError, nearest
from routilux.graph.routine import names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from routilux.graph.routine import Routine

Edge = tuple[str, str, str, str]
"""The ends of a connection: source, event, target, slot."""
Ends = dict[str, set[str]]
"""Routines by the routine to which, or from which, connections lead."""


@dataclass(frozen=True, slots=True)
class GatherSlot:
    """A gather slot of a flow. `split` is None if the scope is the job.

    `entries` are the routines with which a job can start so that the slot gets deliveries.
    """

    routine_id: str
    slot: str
    parameter: str
    split: str | None
    entries: frozenset[str]
    upstream: frozenset[str]

    def __str__(self) -> str:
        return f"{self.routine_id}.{self.slot}"


class Gathers:
    """The gather slots of a flow, by number.

    `numbers` is by (routine, slot), `opened_by` by split. `upstream` holds, for each routine, the
    gathers that its tasks can still deliver to.
    """

    __slots__ = ("numbers", "opened_by", "slots", "upstream")

    def __init__(self, slots: Sequence[GatherSlot]) -> None:
        self.slots = slots
        self.numbers = {(gather.routine_id, gather.slot): n for n, gather in enumerate(slots)}
        self.opened_by: dict[str, list[int]] = {}
        self.upstream: dict[str, set[int]] = {}
        for number, gather in enumerate(slots):
            if gather.split is not None:
                self.opened_by.setdefault(gather.split, []).append(number)
            for routine_id in gather.upstream:
                self.upstream.setdefault(routine_id, set()).add(number)

    def opened_at_start(self, entry: str) -> list[int]:
        """Return the gathers of a whole job that starts with `entry`."""
        slots = enumerate(self.slots)
        return [n for n, gather in slots if gather.split is None and entry in gather.entries]

    def uncovered(self, entry: str) -> GatherSlot | None:
        """Return a gather to which a job that starts with `entry` could deliver without a scope."""
        numbers = sorted(self.upstream.get(entry, ()))
        found = (self.slots[n] for n in numbers)
        return next((g for g in found if g.split not in (None, entry)), None)


def gathers_of(
    flow_id: str,
    routines: Mapping[str, Routine],
    connections: Iterable[Edge],
    splits: Mapping[str, str],
) -> Gathers | None:
    """Return the gather slots of a flow, or None if it has none.

    `splits` are the splits by the routine that gathers. Raises `FlowDefinitionError` for a split
    that does not exist or is not upstream, and for a delivery that could come from outside of the
    scope.
    """
    found = [(r, s) for r, routine in routines.items() for s in routine._slots.values() if s.gather]
    if not found:
        return None
    sources: dict[tuple[str, str], set[str]] = {(r, s.name): set() for r, s in found}
    before: Ends = {}  # all connections, backwards
    into: Ends = {}  # those within a scope, backwards
    out: Ends = {}  # the same, forwards
    for source, _, target, slot in connections:
        before.setdefault(target, set()).add(source)
        if (target, slot) in sources:
            sources[target, slot].add(source)
        else:
            into.setdefault(target, set()).add(source)
            out.setdefault(source, set()).add(target)
    for r, _ in found:
        if r in splits:
            into.setdefault(r, set()).add(splits[r])
            out.setdefault(splits[r], set()).add(r)
    gathers = []
    for r, s in found:
        split, starts = splits.get(r), sources[r, s.name]
        upstream = reached(starts, into, split)
        gather = GatherSlot(
            r, s.name, s.parameter, split, frozenset(reached(starts, before)), frozenset(upstream)
        )
        if split is not None:
            _check_split(flow_id, routines, gather, starts, reached([split], out))
            wider = {other for other, _ in found if other not in splits} & upstream - {split}
            if wider:
                raise FlowDefinitionError(
                    f"flow {flow_id!r}: gather {gather} collects per {split!r}, but gets deliveries"
                    f" from {min(wider)!r}, which gathers for the whole job; pass"
                    f" gather_per={split!r} for {min(wider)!r} too, or no gather_per for {r!r}"
                )
        gathers.append(gather)
    # A gather has fewer gathers upstream than each gather downstream of it.
    gathering = {r for r, _ in found}
    return Gathers(sorted(gathers, key=lambda gather: len(gather.entries & gathering)))


def _check_split(
    flow_id: str,
    routines: Mapping[str, Routine],
    gather: GatherSlot,
    sources: Iterable[str],
    downstream: set[str],
) -> None:
    split = str(gather.split)
    who = f"flow {flow_id!r}: gather_per of {gather.routine_id!r} is {split!r}"
    if split not in routines:
        raise FlowDefinitionError(
            f"{who}, which is not a routine of the flow; its routines:"
            f" {names_of(routines)}{nearest(split, routines)}"
        )
    if split not in gather.upstream:
        raise FlowDefinitionError(
            f"{who}, but no connections lead from {split!r} to the gather slot {gather}; connect"
            " them, or name a routine upstream"
        )
    outside = sorted(set(sources) - downstream)
    if outside:
        raise FlowDefinitionError(
            f"{who}, but {names_of(outside)} delivers to {gather} and is not downstream of"
            f" {split!r}; a task outside of each scope can't deliver to the gather"
        )


def reached(
    starts: Iterable[str], ends: Mapping[str, set[str]], last: str | None = None
) -> set[str]:
    """Return the routines that `starts` reach, with `starts`; what `last` reaches is left out."""
    found = set(starts)
    todo = list(found)
    while todo:
        routine_id = todo.pop()
        if routine_id != last:
            fresh = ends.get(routine_id, set()) - found
            found |= fresh
            todo += fresh
    return found


class ReturnCheck:
    """Checks, at each new connection of a flow, that no gather can reach itself."""

    __slots__ = ("_after", "_before", "_gathering")

    def __init__(self) -> None:
        self._after: Ends = {}
        self._before: Ends = {}
        self._gathering: list[Edge] = []

    def add(self, new: Edge, *, gather: bool) -> None:
        """Check and note a connection; `gather` says that it ends at a gather slot.

        Raises `FlowDefinitionError` if it closes a cycle through a gather slot.
        """
        before, after = self._before, self._after
        source, event, target, slot = new
        gathering = [new] if gather else self._gathering
        if gathering and self._leads(target, source):
            below, above = reached([target], after), reached([source], before)
            for c in gathering:
                if c is new or (c[0] in below and c[2] in above):
                    raise FlowDefinitionError(
                        f"with {source}.{event} -> {target}.{slot} the gather {c[2]}.{c[3]} could"
                        " reach itself, so it would wait for itself; break the cycle, or end it at"
                        " a slot that does not gather"
                    )
        if gather:
            self._gathering.append(new)
        after.setdefault(source, set()).add(target)
        before.setdefault(target, set()).add(source)

    def _leads(self, start: str, end: str) -> bool:
        """Return whether connections lead from `start` to `end`, searched from both in turn.

        One of both mostly has few routines behind it, in whatever order a flow is built.
        """
        below, above, todo, back = {start}, {end}, [start], [end]
        found = start == end
        while todo and back and not found:
            fresh = self._after.get(todo.pop(), set()) - below
            below |= fresh
            todo += fresh
            more = self._before.get(back.pop(), set()) - above
            above |= more
            back += more
            found = not (fresh.isdisjoint(above) and more.isdisjoint(below))
        return found
