"""Causes of findings, and their fixes as code, in terms of the flow that was tested.

Invariants:
- A cause that is stated as a fact was observed in a run or in the flow. Otherwise the text says
  where to look.
- A broken rule of the engine is reported as a bug of routilux.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import routilux
from pytest_routilux.frames import handler_of
from pytest_routilux.sim.explain.causes_by_kind import CAUSES
from pytest_routilux.sim.explain.evidence import calls_of, changed_by, recorded_by
from pytest_routilux.sim.explain.timeline import where_text
from pytest_routilux.text import class_name
from routilux.clocks.durations import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_routilux.sim.isolation.hidden_state import HiddenChange
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import CrashPoint, Disturbed, Finding

__all__ = ["Failure", "Reason", "reason_of"]

_OF_USERS: Final = ("always", "payload-changed", "changed-by-saving", "unreadable")
"""Kinds that are found as rules of the engine are, but that a flow or a test can cause."""
_LONGEST_VALUE: Final = 24
_ADDRESS: Final = re.compile(r"\d{9,}")
_TOGETHER: Final = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Reason:
    """The cause and the fix; each sentence starts a new line."""

    why: list[str]
    fix: list[str]


@dataclass(frozen=True)
class Failure:
    """A finding and the runs that show it; `only` are the kinds of crash that show it."""

    finding: Finding
    reference: Reference
    disturbed: Disturbed | None
    point: CrashPoint | None
    root: Path
    only: frozenset[str] = frozenset()

    @property
    def routine(self) -> str:
        """The id of the routine, or words in its place."""
        return self.finding.routine or "a routine"

    @property
    def effect(self) -> str:
        """The name of the effect."""
        return self.finding.path.removeprefix("effects.")

    @cached_property
    def hidden(self) -> HiddenChange | None:
        """State that a handler changes and no commit saves."""
        return changed_by(self.reference, self.reference.run.world.log[0][0], self.finding.routine)

    @property
    def handler(self) -> str:
        """The definition of the routine's handler as ` (file:line)`, or an empty text."""
        return self.at(handler_of(self.reference.run.host.flow, self.finding.routine))

    def at(self, where: str | None) -> str:
        """Return a code line as ` (file:line)`, or an empty text."""
        line = where_text(where, self.root) if where else ""
        return f" ({line})" if line else ""


def reason_of(failure: Failure) -> Reason:
    """Return the cause of a finding, and the fix."""
    finding = failure.finding
    if finding.path.startswith("engine") and finding.kind not in _OF_USERS:
        return _engine(failure)
    if finding.kind in CAUSES:
        why, fix = CAUSES[finding.kind]
        names = {
            "routine": failure.routine,
            "handler": failure.handler,
            "hint": failure.at(finding.hint) or failure.handler,
            "name": finding.path.partition(".")[2],
        }
        return Reason([why.format_map(names)], fix.format_map(names).split("\n"))
    return _REASONS.get(finding.kind, _engine)(failure)


def _engine(failure: Failure) -> Reason:
    where = "in an undisturbed run" if failure.point is None else "in this run"
    python = ".".join(map(str, sys.version_info[:2]))
    fix = (
        "none in the flow. Please report it to routilux with this text, the flow and the"
        f" versions: routilux {routilux.__version__}, Python {python}"
    )
    why = f"a rule of the engine is broken {where}. That is a bug of routilux, not of this flow"
    return Reason([why], [fix])


# --- effects --------------------------------------------------------------------------------------


def _effect_repeated(failure: Failure) -> Reason:
    effect = failure.effect
    service, _, verb = effect.rpartition(".")
    once = _once_of(failure)
    why = (
        f"the call carried no key, so the {service or 'service'} could not tell the repeat from a"
        " new call"
    )
    double = f'(flow_sim.effect("{effect}", key="key") makes a double with this parameter)'
    if once is None:
        key = f'{effect}(..., key=self.ctx.key("{verb}")): the same on every attempt and host'
        note = "(ctx.once alone is not enough: a crash can come between the call and its record)"
        return Reason([why], [key, double, note])
    why = (
        f"once({once!r}) records the result after the call. The crash is between the two, and {why}"
    )
    call = _joined(f'self.ctx.once("{once}", {effect}, ..., key=self.ctx.key("{once}"))')
    return Reason([why], [f"{call}: with the key, a repeat has no second effect", double])


def _once_of(failure: Failure) -> str | None:
    # The name of the `once` that recorded a call of the effect.
    disturbed = [] if failure.disturbed is None else [failure.disturbed.world]
    for world in (failure.reference.run.world, *disturbed):
        for call in reversed(calls_of(world, failure.effect)):
            name = recorded_by(world, call)
            if name is not None:
                return name
    return None


def _key_unstable(failure: Failure) -> Reason:
    run = failure.reference.run if failure.disturbed is None else failure.disturbed
    calls = calls_of(run.world, failure.effect)
    where = failure.at(calls[-1].where) if calls else ""
    if any(call.key is None for call in calls):
        why = "one call carried a key and another none"
    else:
        why = f"a part of the key{where} changes, such as the attempt, a time or a random number"
    key = f'key=self.ctx.key("{failure.effect.rpartition(".")[2]}")'
    return Reason(
        [f"{why}: the service takes the repeat for a new call"],
        [f"{key}: made of the job and the task alone, so it is the same on every attempt and host"],
    )


def _effect_lost(failure: Failure) -> Reason:
    if failure.hidden is not None:
        why = (
            f"{_hidden_text(failure, failure.hidden)}; check whether the call of {failure.effect}"
            " depends on it"
        )
    else:
        why = (
            f"the next host decided differently: look at what {failure.routine} reads before it"
            f" calls {failure.effect}{failure.at(failure.finding.hint)}"
        )
    fix = (
        "decide by the payload and by self.ctx.state, which are saved; not by attributes, globals,"
        " files or the clock"
    )
    return Reason([why], [fix])


# --- state that is not saved ----------------------------------------------------------------------


def _budget(failure: Failure) -> Reason:
    hidden = failure.hidden
    if hidden is None or hidden.scope != "attribute":
        return _unsaved(failure)
    attempt = _joined(f"self.ctx.attempt{_last_start(failure)}")
    handler = _joined('ErrorHandler("retry", ...)')
    state = f'self.ctx.state["{_key_of(hidden)}"]'
    return Reason(
        [_hidden_text(failure, hidden)],
        [
            f"use {attempt} and leave the waits to {handler};",
            f"keep the value in {state}, saved when the handler returns",
        ],
    )


def _unsaved(failure: Failure) -> Reason:
    hidden = failure.hidden
    if hidden is not None:
        fix = (
            f'use self.ctx.state["{_key_of(hidden)}"] instead of {_short_name(hidden)}: it is saved'
            " with the job; self.ctx.shared is for state that several routines need"
        )
        return Reason([_hidden_text(failure, hidden)], [fix])
    fix = (
        "keep state that must last in self.ctx.state or self.ctx.shared, and take times, ids and"
        " random numbers from self.ctx.now(), .uuid() and .random"
    )
    look = (
        f"look at what {failure.routine}{failure.handler} reads besides its payload, ctx.state and"
        " ctx.shared"
    )
    why = (
        f"the next host had all that the job saves, and differs; {look}: module globals,"
        " caches, files, the machine's clock"
    )
    if failure.only == {"by document"}:
        why = (
            "only a host that loads the flow from its document differs. It does not call build(),"
            f" so it has nothing of what build() does besides making the flow; {look}"
        )
    return Reason([why], [fix])


def _status(failure: Failure) -> Reason:
    reason = _budget(failure)
    job = failure.disturbed.host.job if failure.disturbed is not None else None
    if job is None or job.error is None:
        return reason
    error = f"{class_name(job.error.type)}{failure.at(job.error.where)}"
    return Reason([f"with the crash the job fails with {error}; {reason.why[0]}"], reason.fix)


def _view(failure: Failure) -> Reason:
    reason = _unsaved(failure)
    gives = "the test's view=... returns another value; nothing else is compared"
    return Reason([gives, *reason.why], reason.fix)


def _mistake(failure: Failure) -> Reason:
    why = f"{failure.finding.what}. Neither a retry nor another host changes that"
    fix = f"look at {failure.routine}{failure.handler}"
    if failure.finding.what.endswith("(UnserializableError)"):
        fix = (
            "use plain data, or routilux.register_type for a class of your own: another host can't"
            f" continue without a saved form; {fix}"
        )
    return Reason([why], [fix])


def _hidden_text(failure: Failure, hidden: HiddenChange) -> str:
    handler = f"{hidden.routine_id}{failure.at(hidden.where)}"
    if hidden.scope == "attribute":
        plain = len(hidden.was) <= _LONGEST_VALUE and not _ADDRESS.search(hidden.was)
        again = f": the next host starts with {hidden.was} again" if plain else ""
        return f"{handler} changes {hidden.name}. It lives in the process and is never saved{again}"
    module, _, name = hidden.name.rpartition(":")
    what = "global" if hidden.scope == "global" else "class attribute"
    return (
        f"{handler} changes the {what} {name} of {module}. It lives in the module: jobs share it,"
        " no job saves it, and a new process starts with its imported value"
    )


def _short_name(hidden: HiddenChange) -> str:
    return hidden.name if hidden.scope == "attribute" else hidden.name.rpartition(":")[2]


def _key_of(hidden: HiddenChange) -> str:
    return _short_name(hidden).rpartition(".")[2].lstrip("_").lower()


def _last_start(failure: Failure) -> str:
    # The attempt with which the last host started, as ` (it was 2 at 0.300)`.
    if failure.disturbed is None:
        return ""
    start = failure.disturbed.world.log[0][0]
    for _, step in failure.disturbed.host.steps:
        if step.task.routine_id == failure.finding.routine:
            return f" (it was {step.attempt} at {seconds_text(step.started_ns - start)})"
    return ""


def _joined(code: str) -> str:
    # Code is not broken over lines.
    return code.replace(" ", _TOGETHER)


_REASONS: Final[dict[str, Callable[[Failure], Reason]]] = {
    "effect-repeated": _effect_repeated,
    "key-unstable": _key_unstable,
    "effect-lost": _effect_lost,
    "attempts-differ": _budget,
    "budget-reset": _budget,
    "status-differs": _status,
    "view-differs": _view,
    "mistake": _mistake,
    **dict.fromkeys(
        (
            "state-differs",
            "shared-differs",
            "outputs-differ",
            "emissions-differ",
            "hidden-state",
        ),
        _unsaved,
    ),
}
