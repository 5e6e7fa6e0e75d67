"""Why a finding came about, and the fix as code, in terms of the flow at hand.

Laws:
- What is said as a fact was seen: in the world, in the flow, or in the user's source. Where the
  cause can't be seen, the text says what to look at.
- The engine's own laws are the engine's bugs, and are called that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import routilux
from pytest_routilux.evidence import (
    Kept,
    calls_of,
    handler_place,
    kept_on,
    key_part,
    recorded_by,
)
from pytest_routilux.story import short_error, where_text
from routilux.instants import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_routilux.crash import CrashPoint, Disturbed
    from pytest_routilux.examine import Reference
    from pytest_routilux.oracle import Finding

__all__ = ["Asked", "Reason", "reason_of"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Sentences, one a paragraph: why it is so, and what to do about it."""

    why: list[str]
    fix: list[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A finding and what is known of it; `only` are the kinds of crash that show it."""

    finding: Finding
    known: Reference
    disturbed: Disturbed | None
    point: CrashPoint | None
    root: Path
    only: frozenset[str] = frozenset()

    @property
    def routine(self) -> str:
        """The id of the routine, or words in its place."""
        return self.finding.routine or "a routine"

    def at(self, where: str | None) -> str:
        """Return a place as ` (file:line)`, or nothing."""
        return f" ({where_text(where, self.root)})" if where else ""


def reason_of(asked: Asked) -> Reason:
    """Return why a finding came about, and what to do."""
    return _REASONS.get(asked.finding.kind, _engine)(asked)


# --- effects --------------------------------------------------------------------------------------


def _effect_repeated(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    service, _, verb = effect.rpartition(".")
    service = service or "service"
    once = _once_of(asked, effect)
    double = f'its double has to know the parameter: flow_sim.effect("{effect}", key="key")'
    if once is None:
        return Reason(
            [
                f"the call carried no key, so the {service} could not tell the repeat from a new"
                " call"
            ],
            [
                f'{effect}(..., key=self.ctx.key("{verb}")): the same on every attempt and host',
                f"({double};",
                (
                    "ctx.once alone narrows this window but can't close it: a crash can come before"
                    " its record)"
                ),
            ],
        )
    return Reason(
        [
            (
                f"once({once!r}) records what the call gave back, after the call. The crash is"
                f" between the two, and the call carried no key, so the {service} could not tell the"
                " repeat from a new call"
            )
        ],
        [
            (
                f'self.ctx.once("{once}", {effect}, ..., key=self.ctx.key("{once}")): the key'
                " closes the window that once leaves open"
            ),
            f"({double})",
        ],
    )


def _key_unstable(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    verb = effect.rpartition(".")[2]
    fix = [
        (
            f'key=self.ctx.key("{verb}"): made of the job and the task alone, so it is the same on'
            " every attempt and host"
        )
    ]
    calls = calls_of(asked.disturbed.world, effect) if asked.disturbed is not None else []
    keys = [call.key for call in calls]
    if not calls:
        return Reason(["the key of the call did not stay the same"], fix)
    if None in keys:
        return Reason(["one call carried a key and another none, so they look like two"], fix)
    changed = key_part(keys, [call.attempt for call in calls])
    if changed is None:
        return Reason(
            [
                (
                    f"the key is made anew for each attempt{asked.at(calls[-1].where)}, from"
                    " something that does not stay: look at what it is put together from"
                )
            ],
            fix,
        )
    if "UUID" in changed:
        fix.append("(self.ctx.uuid() repeats on every attempt and host; uuid.uuid4() does not)")
    return Reason(
        [
            (
                f"{changed} is part of the key{asked.at(calls[-1].where)}, and it differs between"
                " the two: the service takes them for two calls"
            )
        ],
        fix,
    )


def _effect_lost(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    kept = _kept(asked)
    if kept is not None:
        why = f"{_said(asked, kept)}; whether {effect} is called may hang on it"
    else:
        why = (
            f"the other host decided otherwise: look at what {asked.routine} asks before it calls"
            f" {effect}{asked.at(asked.finding.hint)}"
        )
    return Reason(
        [why],
        [
            (
                "decide by the payload and by self.ctx.state, which come back as they were; not by"
                " attributes, globals, files or the clock"
            )
        ],
    )


def _once_of(asked: Asked, effect: str) -> str | None:
    worlds = [asked.known.run.world]
    if asked.disturbed is not None:
        worlds.append(asked.disturbed.world)
    for world in worlds:
        for call in reversed(calls_of(world, effect)):
            name = recorded_by(world, call)
            if name is not None:
                return name
    return None


# --- what is not saved ----------------------------------------------------------------------------


def _budget(asked: Asked) -> Reason:
    kept = _kept(asked)
    if kept is None:
        return _unsaved(asked)
    began = _began(asked)
    shown = f"\N{NO-BREAK SPACE}({began})" if began else ""
    return Reason(
        [_said(asked, kept)],
        [
            f"use self.ctx.attempt{shown} and leave the waits to"
            " ErrorHandler(RETRY,\N{NO-BREAK SPACE}...);",
            (
                "what must be remembered belongs in self.ctx.state: it is committed when the"
                " handler succeeds"
            ),
        ],
    )


def _unsaved(asked: Asked) -> Reason:
    kept = _kept(asked)
    if kept is not None:
        return Reason(
            [_said(asked, kept)],
            [
                (
                    f'self.ctx.state["{kept.name}"] in place of self.{kept.name}: it is saved with'
                    " the job; ctx.shared is for what other routines need"
                )
            ],
        )
    place = handler_place(asked.known, asked.finding.routine)
    look = (
        f"look at what {asked.routine}{asked.at(place)} reads besides its payload, ctx.state and"
        " ctx.shared"
    )
    fix = [
        (
            "keep what must last in self.ctx.state or self.ctx.shared, and take time, ids and"
            " chance from self.ctx.now(), .uuid() and .random"
        )
    ]
    if asked.only == {"by document"}:
        why = (
            "only a host that loads the flow from its document, and so calls no build(), does"
            f" otherwise. What build() does besides making the flow is missing there: {look}"
        )
        return Reason([why], fix)
    hint = asked.finding.hint
    if hint:
        return Reason([hint], fix)
    return Reason(
        [
            f"the next host had all that the job saves, and did otherwise; {look}:"
            " module globals, caches, files, the machine's clock"
        ],
        fix,
    )


def _status(asked: Asked) -> Reason:
    job = asked.disturbed.life.job if asked.disturbed is not None else None
    reason = _budget(asked) if _kept(asked) is not None else _unsaved(asked)
    if job is not None and job.error is not None:
        where = asked.at(job.error.where)
        said = f"with the crash the job ends by {short_error(job.error.type)}{where}"
        return Reason([f"{said}; {reason.why[0]}", *reason.why[1:]], reason.fix)
    return reason


def _kept(asked: Asked) -> Kept | None:
    routine = asked.finding.routine
    names = [routine] if routine else [*asked.known.run.life.flow.routines]
    for name in names:
        for kept in kept_on(asked.known, name):
            return kept
    return None


def _said(asked: Asked, kept: Kept) -> str:
    where = where_text(kept.where, asked.root) if kept.where else asked.routine
    return (
        f"{where} changes self.{kept.name}. That lives in the process; the job never saves it: the"
        f" next host begins with {_value(kept.before)} again"
    )


def _began(asked: Asked) -> str:
    """Return the attempt that the last host began with, and when, in words."""
    if asked.disturbed is None:
        return ""
    start = asked.disturbed.world.log[0][0]
    for _, step in asked.disturbed.life.steps:
        if step.task.routine_id == asked.finding.routine:
            return f"{step.attempt} at {seconds_text(step.started_ns - start)}"
    return ""


def _value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


# --- what the test asked for ----------------------------------------------------------------------


def _invariant(asked: Asked) -> Reason:
    return Reason(
        ["the test's invariant does not hold for how this run ended; undisturbed it does"]
        if asked.point is not None
        else ["the test's invariant does not hold, though nothing was disturbed"],
        ["look at what it reads of outcome.job and outcome.calls: the rows and lines above"],
    )


def _always(asked: Asked) -> Reason:
    return Reason(
        ["the test's always=... is asked after every commit, also of jobs that are half done"],
        ["it must hold between any two steps; what holds at the end alone is for invariant=..."],
    )


def _view(asked: Asked) -> Reason:
    reason = _unsaved(asked)
    return Reason(
        ["the test's view=... gives another value; nothing else is compared", *reason.why],
        reason.fix,
    )


def _stuck(asked: Asked) -> Reason:
    life = asked.disturbed.life if asked.disturbed is not None else asked.known.run.life
    name = type(life.error).__name__
    return Reason(
        [f"no host can bring the job to rest: the last one ended by {name}, as said above"],
        ["what raised it has to succeed, or to raise an Exception that an ErrorHandler answers"],
    )


# --- the flow itself ------------------------------------------------------------------------------


def _thread(asked: Asked) -> Reason:
    place = handler_place(asked.known, asked.finding.routine)
    return Reason(
        [
            (
                f"{asked.routine}{asked.at(place)} returned while a thread that it had started was"
                " alive: what that does is in no commit, and dies with its host"
            )
        ],
        [
            "join() it before the handler returns, or make it a routine of its own:",
            f'self.emit(...) in {asked.routine}, then flow.connect("{asked.routine}", ...)',
        ],
    )


def _hidden(asked: Asked) -> Reason:
    kept = _kept(asked)
    if kept is None and asked.finding.hint:
        return Reason(
            [f"{asked.finding.hint}: it lives in the process, and the job never saves it"],
            ["keep it in self.ctx.state, which is saved with the job"],
        )
    return _unsaved(asked)


def _module(asked: Asked) -> Reason:
    hint = asked.finding.hint or f"{asked.routine} uses something that lives in its module"
    return Reason(
        [f"{hint}. Another host imports the module anew, and finds it as it was at first"],
        ["self.ctx.shared for data of the job; a constructor argument for configuration"],
    )


def _hash_order(asked: Asked) -> Reason:
    return Reason(
        ["the order of a set is another one in every process, and it shows in what the job does"],
        ["sorted(...) where the set is walked, or a dict or list, which keep their order"],
    )


def _nondeterminism(asked: Asked) -> Reason:
    hint = f" ({asked.finding.hint})" if asked.finding.hint else ""
    return Reason(
        [f"the same run, from the same instant, comes out otherwise when it is repeated{hint}"],
        [
            "self.ctx.random, self.ctx.uuid() and self.ctx.now() repeat on every attempt and host;",
            "random, uuid.uuid4(), os.urandom and the machine's clock do not",
        ],
    )


def _swallowed(asked: Asked) -> Reason:
    place = handler_place(asked.known, asked.finding.routine)
    return Reason(
        [
            (
                f"{asked.routine}{asked.at(asked.finding.hint or place)} catches what ends its"
                " process and goes on, so an interrupt or an exit is taken for a result"
            )
        ],
        ["except Exception: in place of a bare except or except BaseException, or raise it again"],
    )


def _kills(asked: Asked) -> Reason:
    return Reason(
        [f"{asked.routine} ends its whole process, and every job in it, with no commit"],
        ["raise an Exception: an ErrorHandler decides what becomes of the task, not of the host"],
    )


def _payload(asked: Asked) -> Reason:
    return Reason(
        [
            (
                "what was sent stays as it was: handlers get copies. A change gets through where a"
                " copy shares its inside with what it was made of, by a __deepcopy__ of its class,"
                " say"
            )
        ],
        ["send plain data (dict, list, str, numbers), and change what the handler itself has made"],
    )


def _engine(asked: Asked) -> Reason:
    where = "in a run that nothing disturbs" if asked.point is None else "after this crash"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Reason(
        [f"a law of the engine does not hold {where}. That is a bug of routilux, not of this flow"],
        [
            (
                "nothing in the flow. Please report it to routilux with this text, the flow and the"
                f" versions (routilux {routilux.__version__}, Python {version})"
            )
        ],
    )


_REASONS: Final[dict[str, Callable[[Asked], Reason]]] = {
    "effect-repeated": _effect_repeated,
    "key-unstable": _key_unstable,
    "effect-lost": _effect_lost,
    "attempts-differ": _budget,
    "budget-reset": _budget,
    "status-differs": _status,
    "state-differs": _unsaved,
    "shared-differs": _unsaved,
    "outputs-differ": _unsaved,
    "emissions-differ": _unsaved,
    "view-differs": _view,
    "invariant": _invariant,
    "always": _always,
    "stuck": _stuck,
    "leaked-thread": _thread,
    "hidden-state": _hidden,
    "module-state": _module,
    "hash-order": _hash_order,
    "nondeterminism": _nondeterminism,
    "swallowed-crash": _swallowed,
    "kills-process": _kills,
    "payload-changed": _payload,
}
