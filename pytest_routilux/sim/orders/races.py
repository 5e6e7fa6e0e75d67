"""Compares the results of a concurrent flow in different orders.

Invariants:
- The standard is the flow itself, one task at a time: a task, then all that comes from it, then the
  next one, in several orders of the tasks. If these runs agree and a concurrent run differs, it is
  a race; if they disagree, the result depends on order.
- Lists are compared as multisets: results that are only collected may arrive in any order.
- What varies with time, and how often steps were tried, is not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.checks import check_invariant, check_variation
from pytest_routilux.sim.oracle import (
    Expected,
    View,
    canonical,
    masked,
    trie_of,
    unordered,
    view_of,
)
from pytest_routilux.sim.results import Outcome
from pytest_routilux.sim.simulator.execution import UNVARIED
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import shown
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.oracle import Mask
    from pytest_routilux.sim.results import Checks
    from pytest_routilux.sim.simulator.model import Host, Undisturbed, World
    from routilux import JobState

_COMPARED: Final = ("status", "error", "shared", "outputs", "effects")
_OF_ROUTINES: Final = ("status", "state", "error")
ORDER_KINDS: Final = ("lost-update", "race", "depends-on-order", "raises-in-order")
"""The kinds of findings that need no crash, but an order."""


@dataclass(frozen=True, slots=True)
class OrderResult:
    """What a run in one order has shown: its view, and the test's own view."""

    view: View
    custom: object
    digest: str


@dataclass(slots=True)
class OrderChecks:
    """Compares runs in different orders with the runs one task at a time.

    `fifo` is the run in FIFO order. `mask` are the paths of a view that vary with time. If the case
    has faults, or a task a deadline, only errors are found: which task a fault strikes, and when a
    task runs, depends on the order.
    """

    fifo: Undisturbed
    checks: Checks
    mask: Mask
    serial: list[OrderResult] = field(default_factory=list)
    """The results of runs one task at a time that differ, FIFO first."""

    @property
    def _unfit(self) -> bool:
        """Whether results may differ for another reason: a fault, or a deadline."""
        handlers = self.fifo.host.flow.plan().handlers.values()
        return bool(self.fifo.case.faults) or any(one.deadline is not None for one in handlers)

    def add_serial(self, world: World, hosts: Sequence[Host]) -> Finding | None:
        """Add a run one task at a time; return a finding if it differs from the ones before."""
        found = self._broken(world, hosts)
        if found is not None:
            return found
        result = self._result(world, hosts[-1].job)
        if all(result.digest != known.digest for known in self.serial):
            self.serial.append(result)
        first = self.serial[0]
        if result.digest == first.digest or self._unfit:
            return None
        return self._difference(first, result, "depends-on-order")

    def check(self, world: World, hosts: Sequence[Host]) -> Finding | None:
        """Return a finding if a concurrent run differs from the runs one task at a time."""
        found = self._broken(world, hosts)
        return found or self._race(self._result(world, hosts[-1].job))

    def check_fifo(self, view: View, custom: object) -> Finding | None:
        """Return a finding if the run in FIFO order differs from the runs one task at a time.

        `view` and `custom` are what it has shown; what lies outside has changed since.
        """
        return self._race(self._seen(view, custom, self.fifo.world))

    def _race(self, result: OrderResult) -> Finding | None:
        if self._unfit or not self.serial:
            return None
        if any(result.digest == known.digest for known in self.serial):
            return None
        return self._difference(self.serial[0], result, "race")

    def _broken(self, world: World, hosts: Sequence[Host]) -> Finding | None:
        found = check_variation(self.fifo, world, hosts, UNVARIED)
        if found is not None:
            if found.kind == "stuck":
                found = replace(found, kind="raises-in-order", path="order")
            return found
        job = hosts[-1].job
        assert job is not None, "it is not stuck"
        return check_invariant(self.checks, job, world)

    def _result(self, world: World, job: JobState | None) -> OrderResult:
        assert job is not None, "it is not stuck"
        view, custom = view_of(job, world), None
        if self.checks.view is not None:
            custom = self.checks.view(Outcome(job, world.calls))
        return self._seen(view, custom, world)

    def _seen(self, view: View, custom: object, world: World) -> OrderResult:
        """Return the result of a run, with its effects as their services see them."""
        view = {**view, "effects": _deliveries(world)}
        if self.checks.view is not None:
            return OrderResult(view, custom, canonical(custom))
        return OrderResult(view, custom, canonical(unordered(self._compared(view))))

    def _compared(self, view: View) -> View:
        """Return the parts of a view that no order may change.

        How far other tasks came before a job failed depends on the order.
        """
        if view["status"] == "failed":
            return {"status": view["status"], "error": view["error"]}
        view = masked(view, trie_of(self.mask))
        routines = {
            name: {part: state[part] for part in _OF_ROUTINES}
            for name, state in view["routines"].items()
        }
        return {**{part: view[part] for part in _COMPARED}, "routines": routines}

    def _difference(self, known: OrderResult, result: OrderResult, kind: str) -> Finding:
        if self.checks.view is not None:
            difference = first_difference(known.custom, result.custom)
            path = "view" if difference is None else difference.path
            what = f"view(outcome) differs between orders: {difference}"
            return Finding(kind, what, path)
        difference = first_difference(
            *map(unordered, map(self._compared, (known.view, result.view)))
        )
        assert difference is not None, "their digests differ"
        rows = Expected(known.view, trie_of(self.mask), ordered=False).compare(result.view)
        path = difference.path.removeprefix("$.")
        was, became = shown(difference.expected), shown(difference.actual)
        if kind == "race" and path.startswith("shared"):
            kind = "lost-update"
        if path == "status" and "failed" in (known.view["status"], result.view["status"]):
            kind = "raises-in-order"
        name, often = path.removeprefix("routines."), None
        if path.startswith("effects"):
            effect, often = _called(known.view["effects"], result.view["effects"])
            name = effect if often else f"an argument of {effect}"
            was, became = (f"{count}x" for count in often) if often else (was, became)
        what = f"{name} {'ran' if often else 'is'} {became}; one at a time {was}"
        if kind in ("depends-on-order", "raises-in-order"):
            what = f"{name} {'ran' if often else 'is'} {was} or {became}"
        found = Finding(kind, what, path, rows=[] if rows is None else rows.rows)
        if often and not found.rows:
            found.rows = [(f"effects {name}", was, became)]
        if path.startswith("effects"):
            callers = [call.routine_id for call in self.fifo.world.calls if call.effect == effect]
            found.routine = next(iter(callers), None)
        if rows is not None:
            found.routine = rows.routine
        return found


def _called(known: View, result: View) -> tuple[str, tuple[int, int] | None]:
    """Return the first effect that differs, and how often it ran if that is the difference."""
    for name in sorted(known.keys() | result.keys()):
        was, became = known.get(name, []), result.get(name, [])
        if canonical(unordered(was)) != canonical(unordered(became)):
            often = len(was), len(became)
            return name, None if often[0] == often[1] else often
    raise AssertionError("their digests differ")


def _deliveries(world: World) -> dict[str, list[object]]:
    """Return the inputs of each effect: calls under one key are one call, and a query is none."""
    found: dict[str, list[object]] = {}
    known: set[tuple[str, str, str]] = set()
    for call in world.calls:
        identity = (call.effect, canonical(call.key), canonical(call.arguments))
        if call.reads or (call.key is not None and identity in known):
            continue
        known.add(identity)
        found.setdefault(call.effect, []).append(call.arguments)
    return found
