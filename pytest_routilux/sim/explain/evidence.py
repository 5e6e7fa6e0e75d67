"""Evidence of why a run differs, from its records and from a repeated undisturbed run.

Invariants:
- Evidence is what was observed, never what is likely. If nothing was observed, there is none.
- Collecting evidence changes nothing; at most it repeats the undisturbed run.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_routilux.sim.isolation.forked_hosts import ENDS_PROCESS
from pytest_routilux.sim.isolation.hidden_state import HiddenChange, hidden_state
from pytest_routilux.sim.oracle import masked
from pytest_routilux.sim.simulator.model import Call
from routilux import Commit
from routilux.codec.equality import same_value

if TYPE_CHECKING:
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import Finding, World

__all__ = ["calls_of", "changed_by", "recorded_by", "repeated"]


def changed_by(reference: Reference, start_ns: int, routine_id: str | None) -> HiddenChange | None:
    """Return the unsaved state that the handlers of a routine change, attributes first.

    Without a routine, or if it changes nothing, return what another routine changes.
    """
    found: list[HiddenChange] = []
    if reference.finding is not None and reference.finding.kind in ENDS_PROCESS:
        return None
    with suppress(Exception):
        found = hidden_state(reference.run.case, start_ns)
    found.sort(key=lambda change: (change.routine_id != routine_id, change.scope != "attribute"))
    return found[0] if found else None


def calls_of(world: World, effect: str) -> list[Call]:
    """Return the calls of an effect in their order."""
    return [call for call in world.calls if call.effect == effect]


def repeated(
    reference: Reference, world: World, finding: Finding
) -> tuple[Call | None, int, list[Call]]:
    """Return the call that a finding is about, its undisturbed count, and its calls in `world`."""
    effect = finding.path.removeprefix("effects.")
    calls = calls_of(world, effect)
    usual = calls_of(reference.run.world, effect)
    trie = reference.trie.get("effects", {}).get(effect, {}).get("*", {})
    last: tuple[Call | None, int, list[Call]] = None, 0, []
    lost = finding.kind == "effect-lost"
    about = [call for call in calls if finding.at_ns in (None, call.at_ns)] or calls
    if lost:
        about = usual
    for call in reversed(about):
        inputs = masked(dict(call.arguments), trie)
        was, again = (
            [made for made in some if same_value(masked(dict(made.arguments), trie), inputs)]
            for some in (usual, calls)
        )
        if len(again) < len(was) if lost else len(again) > len(was):
            return call, len(was), again
        if last[0] is None:
            last = call, len(was), again
    return last


def recorded_by(world: World, call: Call) -> str | None:
    """Return the name of the `once` that recorded a call's result, or None."""
    entries = iter([what for _, _, what in world.log])
    for what in entries:
        if what is call:
            break
    for what in entries:
        if not isinstance(what, Commit | Call) or what.task_id != call.task_id:
            continue
        if isinstance(what, Call) or what.effect is None:
            return None
        same = same_value(what.effect.result, call.result)
        return str((what.detail or {})["name"]) if same else None
    return None
