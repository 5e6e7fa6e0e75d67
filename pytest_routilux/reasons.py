"""Why a finding came about, and the fix as code, in terms of the flow at hand.

Invariants:
- What is said as a fact was seen: in the world, in the flow, or in the user's source. Where the
  cause can't be seen, the text says what to look at.
- The engine's own laws are the engine's bugs, and are called that.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import routilux
from pytest_routilux.cells import class_name
from pytest_routilux.evidence import calls_of, changed_by, handler_place, key_part, recorded_by
from pytest_routilux.story import where_text
from routilux.instants import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_routilux.crash import Disturbed
    from pytest_routilux.examine import Reference
    from pytest_routilux.hidden import HiddenChange
    from pytest_routilux.oracle import Finding
    from pytest_routilux.points import CrashPoint

__all__ = ["Asked", "Reason", "reason_of"]

_OF_USERS: Final = ("always", "payload-changed", "changed-by-saving", "unreadable")
"""Kinds that the simulated host finds as it finds the engine's, but a flow or a test can cause."""
_LONGEST_VALUE: Final = 24
_ADDRESS: Final = re.compile(r"\d{9,}")
_TOGETHER: Final = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Sentences, each on lines of its own: why it is so, and what to do about it."""

    why: list[str]
    fix: list[str]


@dataclass(frozen=True)
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

    @cached_property
    def kept(self) -> HiddenChange | None:
        """What a handler changes though no commit keeps it."""
        return changed_by(self.known, self.known.run.world.log[0][0], self.finding.routine)

    def at(self, where: str | None) -> str:
        """Return a place as ` (file:line)`, or nothing."""
        return f" ({where_text(where, self.root)})" if where and where != "?" else ""


def reason_of(asked: Asked) -> Reason:
    """Return why a finding came about, and what to do."""
    finding = asked.finding
    if finding.path.startswith("engine") and finding.kind not in _OF_USERS:
        return _engine(asked)
    if finding.kind in _PLAIN:
        return _plain(asked)
    return _REASONS.get(finding.kind, _engine)(asked)


# --- effects --------------------------------------------------------------------------------------


def _effect_repeated(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    service, _, verb = effect.rpartition(".")
    once = _once_of(asked, effect)
    why = (
        f"the call carried no key, so the {service or 'service'} could not tell the repeat from a"
        " new call"
    )
    double = f'its double has to know the parameter: flow_sim.effect("{effect}", key="key")'
    if once is None:
        narrow = (
            "ctx.once alone narrows this window but can't close it: a crash can come before its"
            " record)"
        )
        key = f'{effect}(..., key=self.ctx.key("{verb}")): the same on every attempt and host'
        return Reason([why], [key, f"({double};", narrow])
    why = (
        f"once({once!r}) records the result after the call. The crash is between the two, and {why}"
    )
    call = f'self.ctx.once("{once}", {effect}, ..., key=self.ctx.key("{once}"))'
    closes = ": the key closes the window that once leaves open"
    return Reason([why], [f"{_joined(call)}{closes}", f"({double})"])


def _key_unstable(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    key = f'key=self.ctx.key("{effect.rpartition(".")[2]}")'
    fix = [
        f"{key}: made of the job and the task alone, so it is the same on every attempt and host"
    ]
    run = asked.known.run if asked.disturbed is None else asked.disturbed
    calls = calls_of(run.world, effect)
    keys = [call.key for call in calls]
    if not calls:
        return Reason(["the key of the call did not stay the same"], fix)
    if None in keys:
        return Reason(["one call carried a key and another none, so they look like two"], fix)
    place = asked.at(calls[-1].where)
    changed = key_part(keys, [call.attempt for call in calls])
    if changed is None:
        why = (
            f"the key is made anew for each attempt{place}, from something that does not stay: look"
            " at what it is put together from"
        )
        return Reason([why], fix)
    if "UUID" in changed:
        fix.append("(self.ctx.uuid() repeats on every attempt and host; uuid.uuid4() does not)")
    why = (
        f"{changed} is part of the key{place}, and differs between the calls: the service takes"
        " them for two"
    )
    return Reason([why], fix)


def _effect_lost(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    if asked.kept is not None:
        why = f"{_said(asked, asked.kept)}; see whether the call of {effect} hangs on it"
    else:
        why = (
            f"the next host decided otherwise: look at what {asked.routine} asks before it calls"
            f" {effect}{asked.at(asked.finding.hint)}"
        )
    fix = (
        "decide by the payload and by self.ctx.state, which come back as they were; not by"
        " attributes, globals, files or the clock"
    )
    return Reason([why], [fix])


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
    kept = asked.kept
    if kept is None or kept.scope != "attribute":
        return _unsaved(asked)
    began = _began(asked)
    attempt = f"self.ctx.attempt (it was {began})" if began else "self.ctx.attempt"
    handler = _joined("ErrorHandler(RETRY, ...)")
    return Reason(
        [_said(asked, kept)],
        [
            f"use {_joined(attempt)} and leave the waits to {handler};",
            (
                f'what must last belongs in self.ctx.state["{_key_of(kept)}"], kept when the'
                " handler returns"
            ),
        ],
    )


def _unsaved(asked: Asked) -> Reason:
    kept = asked.kept
    if kept is not None:
        fix = (
            f'self.ctx.state["{_key_of(kept)}"] in place of {_short_name(kept)}: it is saved with'
            " the job; self.ctx.shared is for what several routines need"
        )
        return Reason([_said(asked, kept)], [fix])
    fix = (
        "keep what must last in self.ctx.state or self.ctx.shared, and take time, ids and chance"
        " from self.ctx.now(), .uuid() and .random"
    )
    place = handler_place(asked.known, asked.finding.routine)
    look = (
        f"look at what {asked.routine}{asked.at(place)} reads besides its payload, ctx.state and"
        " ctx.shared"
    )
    if asked.only == {"by document"}:
        why = (
            "only a host that loads the flow from its document, and so calls no build(), does"
            f" otherwise. What build() does besides making the flow is missing there: {look}"
        )
        return Reason([why], [fix])
    why = (
        f"the next host had all that the job saves, and did otherwise; {look}: module globals,"
        " caches, files, the machine's clock"
    )
    return Reason([why], [fix])


def _status(asked: Asked) -> Reason:
    reason = _budget(asked)
    job = asked.disturbed.life.job if asked.disturbed is not None else None
    if job is None or job.error is None:
        return reason
    ends = f"with the crash the job ends by {class_name(job.error.type)}{asked.at(job.error.where)}"
    return Reason([f"{ends}; {reason.why[0]}", *reason.why[1:]], reason.fix)


def _view(asked: Asked) -> Reason:
    reason = _unsaved(asked)
    gives = "the test's view=... gives another value; nothing else is compared"
    return Reason([gives, *reason.why], reason.fix)


def _mistake(asked: Asked) -> Reason:
    place = asked.at(handler_place(asked.known, asked.finding.routine))
    why = f"{asked.finding.what}. Neither a retry nor another host changes that"
    fix = f"look at {asked.routine}{place}"
    if asked.finding.what.endswith("(UnserializableError)"):
        fix = (
            "plain data, or routilux.register_type for a class of one's own: what has no saved form"
            f" can't go on elsewhere; look at {asked.routine}{place}"
        )
    return Reason([why], [fix])


def _said(asked: Asked, kept: HiddenChange) -> str:
    """Return what a handler changes though no commit keeps it, as a sentence."""
    place = where_text(kept.where, asked.root) if kept.where != "?" else kept.routine_id
    if kept.routine_id != asked.finding.routine:
        place = f"{kept.routine_id}, at {place},"
    if kept.scope == "attribute":
        plain = len(kept.was) <= _LONGEST_VALUE and not _ADDRESS.search(kept.was)
        again = f": the next host begins with {kept.was} again" if plain else ""
        return (
            f"{place} changes {kept.name}. That lives in the process; the job never saves it{again}"
        )
    module, _, name = kept.name.rpartition(":")
    what = "global" if kept.scope == "global" else "class attribute"
    return (
        f"{place} changes the {what} {name} of {module}. That lives in the module: jobs share it,"
        " no job saves it, and a new process has it as it was imported"
    )


def _short_name(kept: HiddenChange) -> str:
    return kept.name if kept.scope == "attribute" else kept.name.rpartition(":")[2]


def _key_of(kept: HiddenChange) -> str:
    return _short_name(kept).rpartition(".")[2].lstrip("_").lower()


def _began(asked: Asked) -> str:
    """Return the attempt that the last host began with, and when, in words."""
    if asked.disturbed is None:
        return ""
    start = asked.disturbed.world.log[0][0]
    for _, step in asked.disturbed.life.steps:
        if step.task.routine_id == asked.finding.routine:
            return f"{step.attempt} at {seconds_text(step.started_ns - start)}"
    return ""


def _joined(code: str) -> str:
    # Code is not broken over lines.
    return code.replace(" ", _TOGETHER)


# --- what needs no looking at the run -------------------------------------------------------------

_PLAIN: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "invariant": (
        "the test's invariant=... does not hold for how this run ended",
        ("look at what it reads of outcome.job and outcome.calls: the rows and lines above",),
    ),
    "always": (
        "the test's always=... is asked after every commit, also of a job that is half done",
        ("it must hold between any two steps; what holds at the end alone is for invariant=...",),
    ),
    "stuck": (
        "no host can bring the job to rest: each one that goes on ends as said above",
        ("what raises it has to succeed, or to raise an Exception that an ErrorHandler answers",),
    ),
    "leaked-thread": (
        (
            "{routine}{handler} returned while a thread that it had started was alive: what that"
            " does is in no commit, and dies with its host"
        ),
        (
            "join() it before the handler returns, or make it a routine of its own:",
            'self.emit(...) in {routine}, then flow.connect("{routine}", ...)',
        ),
    ),
    "module-state": (
        (
            "{routine}{hint} changes {name}. It lives in the module: jobs share it, no job saves"
            " it, and a new process has it as it was imported"
        ),
        (
            (
                "self.ctx.state for what the routine has to remember, self.ctx.shared for what"
                " several need; a constructor argument for configuration"
            ),
        ),
    ),
    "hash-order": (
        "a set has another order in every process, and it shows in what the job does",
        ("sorted(...) where the set is walked, or a dict or list, which keep their order",),
    ),
    "nondeterminism": (
        "{routine}{hint}: the same run, from the same instant, comes out otherwise when repeated",
        (
            "self.ctx.random, self.ctx.uuid() and self.ctx.now() repeat on every attempt and host;",
            "random, uuid.uuid4(), os.urandom and the machine's clock do not",
        ),
    ),
    "swallowed-crash": (
        (
            "{routine}{hint} catches what ends its process and goes on, so an interrupt or an exit"
            " is taken for a result"
        ),
        ("except Exception: in place of a bare except or BaseException, or raise it again",),
    ),
    "kills-process": (
        "{routine}{hint} ends its whole process, and every job in it, with no commit",
        ("raise an Exception: an ErrorHandler decides what becomes of the task, not of the host",),
    ),
    "hangs": (
        "{routine}{hint} loops, or waits for what does not come: its real time is up",
        ("self.ctx.sleep(...) to wait; ErrorHandler(..., timeout=seconds) bounds an attempt",),
    ),
    "store-lost": (
        (
            "the next host opened the store's files as they stood when this one died, and has"
            " nothing else. It is the store that does not keep to JobStore, not the flow"
        ),
        (
            "end the transaction before a write returns, and do all of a write in one:",
            "then a crash leaves what was there before it, or all of it",
        ),
    ),
    "store-changes": (
        "a store keeps bytes, and knows nothing of what is in them: it does not keep to JobStore",
        ("give back from rows() what create, append and claim were given, byte for byte",),
    ),
    "store-refuses": (
        (
            "each host before this one is dead, and this one has started or claimed the job: nobody"
            " else can own it. It is the store that does not keep to JobStore, not the flow"
        ),
        ("in claim, make who claims the owner, in the transaction that keeps the row",),
    ),
    "store-fence": (
        (
            "the other host was not dead, only slow. What it still writes takes the place of what"
            " the owner of the job writes: the store does not keep to JobStore"
        ),
        (
            "in append, compare the owner and insert the row in one transaction;",
            "where another row stands, or another owner has the job, raise LeaseLostError",
        ),
    ),
    "store-frees": (
        (
            "a worker that asks for work gets a job that is over, and takes it up again: the store"
            " does not keep to JobStore"
        ),
        ("in the transaction of a write with rests=True, make the job free for nobody",),
    ),
    "payload-changed": (
        (
            "what was sent stays as it was: handlers get copies. A change gets through where a copy"
            " shares its inside with what it was made of, by a __deepcopy__ of its class, say"
        ),
        ("send plain data (dict, list, str, numbers); change what the handler itself has made",),
    ),
    "changed-by-saving": (
        (
            "what a host saves is not what the next one reads. Where a value is of a type given to"
            " register_type, its encode and decode don't fit each other"
        ),
        ("serialize_roundtrip(value) shows the first place at which what is read back differs",),
    ),
}
_PLAIN["unreadable"] = _PLAIN["changed-by-saving"]
_PLAIN["store-unreadable"] = _PLAIN["store-lost"]


def _plain(asked: Asked) -> Reason:
    why, fix = _PLAIN[asked.finding.kind]
    handler = asked.at(handler_place(asked.known, asked.finding.routine))
    names = {
        "routine": asked.routine,
        "handler": handler,
        "hint": asked.at(asked.finding.hint) or handler,
        "name": asked.finding.path.partition(".")[2],
    }
    return Reason([why.format_map(names)], [line.format_map(names) for line in fix])


def _engine(asked: Asked) -> Reason:
    where = "in a run that nothing disturbs" if asked.point is None else "in this run"
    python = ".".join(map(str, sys.version_info[:2]))
    fix = (
        "nothing in the flow. Please report it to routilux with this text, the flow and the"
        f" versions: routilux {routilux.__version__}, Python {python}"
    )
    why = f"a law of the engine does not hold {where}. That is a bug of routilux, not of this flow"
    return Reason([why], [fix])


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
    "hidden-state": _unsaved,
    "view-differs": _view,
    "mistake": _mistake,
}
